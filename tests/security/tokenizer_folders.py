"""Tokenizers that name code and places, claim sizes that nothing has, or take for ever."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from security import world as w
from security.run_folders import in_place, sparse
from security.world import VOCABULARY, Hostile, World, copied, in_json, with_file, with_link

PIECES = VOCABULARY.decode().split("\n")
_LOOKS = (w.LOOK, w.BUILD_WITH)
_OF_MODEL = (w.LOAD, w.CLASSIFY, w.EXPORT)
_ALL = (*_LOOKS, w.EXPORT)


def tokenizer_json(**changed: Any) -> dict[str, Any]:
    """Return an honest WordPiece tokenizer.json, changed."""
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None, "decoder": {"type": "WordPiece",
                                                                                       "prefix": "##", "cleanup": True},
        "model": model_of("WordPiece"),
    } | changed  # fmt: skip


def model_of(kind: str, **changed: Any) -> dict[str, Any]:
    """Return the model of a tokenizer.json over the honest pieces."""
    ids = {piece: index for index, piece in enumerate(PIECES)}
    fields: dict[str, dict[str, Any]] = {
        "WordPiece": {"vocab": ids, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100},
        "WordLevel": {"vocab": ids, "unk_token": "[UNK]"},
        "BPE": {"vocab": ids, "merges": [], "unk_token": "[UNK]", "dropout": None, "fuse_unk": False,
                "byte_fallback": False, "continuing_subword_prefix": None, "end_of_word_suffix": None},
        "Unigram": {"vocab": [[piece, -1.0] for piece in PIECES], "unk_id": 1, "byte_fallback": False},
    }  # fmt: skip
    return {"type": kind} | fields[kind] | changed


def _json(source: str = "tokenizer", **changed: Any) -> Callable[[World], None]:
    return with_file(source, "tokenizer.json", json.dumps(tokenizer_json(**changed)))


def _ids(ids: dict[str, Any], kind: str = "WordPiece") -> Callable[[World], None]:
    return _json(model=model_of(kind, vocab={piece: n for n, piece in enumerate(PIECES)} | ids))


def _as_transformers(write: Callable[[World], None], **config: Any) -> Callable[[World], None]:
    """Let a folder be read by the rules of transformers."""

    def put(world: World) -> None:
        write(world)
        stated = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[PAD]",
                  "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"} | config  # fmt: skip
        (world.given / "tokenizer_config.json").write_text(json.dumps(stated))

    return put


def _split(pattern: str, **more: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} | more


def _token(content: str, number: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True} | more  # fmt: skip


def _config(**stated: Any) -> Callable[[World], None]:
    return in_json("classifier", "tokenizer_config.json", **stated)


def _model_file(content: bytes) -> Callable[[World], None]:
    def write(world: World) -> None:
        (world.given / "spiece.model").write_bytes(content)

    return write


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def _piece(piece: str, score: bytes = b"\0\0\0\0", kind: int = 1) -> bytes:
    text = piece.encode(errors="surrogatepass")
    inner = b"\x0a" + varint(len(text)) + text + b"\x15" + score + b"\x18" + varint(kind)
    return b"\x0a" + varint(len(inner)) + inner


def sentencepiece_model(pieces: list[str] | None = None, **more: bytes) -> bytes:
    """Return a SentencePiece model, with these further fields: trainer (2), normalizer (3)."""
    specials = ["<unk>", "<pad>", "[CLS]", "[SEP]", "[MASK]"]
    body = b"".join(_piece(piece, kind=2 if piece == "<unk>" else 3 if n < 5 else 1)
                    for n, piece in enumerate(pieces or [*specials, "▁good", "▁time", "▁", "a"]))  # fmt: skip
    for key, number in (("trainer", 2), ("normalizer", 3)):
        if key in more:
            body += bytes([number << 3 | 2]) + varint(len(more[key])) + more[key]
    return body


def _long(text: str) -> tuple[str, ...]:
    return ("tokenizer", "inspect", "--model", "{given}", text)


_BOMB = "a" * 40 + "!"
_ABSURD = 4_000_000_000

INPUTS = {
    "ids up to four billion": Hostile(_ids({"zzz": _ABSURD}), _LOOKS),
    "ids up to four billion, as transformers reads them": Hostile(_as_transformers(_ids({"zzz": _ABSURD})), _LOOKS),
    "ids of words up to four billion": Hostile(_as_transformers(_ids({"zzz": _ABSURD}, "WordLevel")), _LOOKS),
    "negative ids": Hostile(_ids({"zzz": -5}), _LOOKS),
    "ids that are fractions": Hostile(_ids({"zzz": 1.5}), _LOOKS),
    "ids of text": Hostile(_ids({"zzz": "5"}), _LOOKS),
    "an id twice": Hostile(_ids({"zzz": 5}), _LOOKS),
    "an added token at four billion": Hostile(_json(added_tokens=[_token("zzz", _ABSURD)]), _LOOKS, harmless=True),
    "an added token at four billion, as transformers reads it": Hostile(
        _as_transformers(_json(added_tokens=[_token("zzz", _ABSURD)])), _LOOKS, harmless=True
    ),
    "an added token of the config at four billion": Hostile(
        _as_transformers(_json(), added_tokens_decoder={str(_ABSURD): {"content": "zzz", "special": True}}),
        _LOOKS,
        harmless=True,
    ),
    "an added token at a word": Hostile(
        _as_transformers(_json(), added_tokens_decoder={"x": {"content": "z"}}), _LOOKS
    ),
    "an added token of other fields": Hostile(
        _as_transformers(_json(), added_tokens_decoder={"5": {"content": "z", "__class__": "os.system"}}),
        _LOOKS,
        harmless=True,
    ),
    "added tokens that are a list": Hostile(_as_transformers(_json(), added_tokens_decoder=[1]), _LOOKS),
    "an added token without text": Hostile(_json(added_tokens=[_token("", 300)]), _LOOKS, harmless=True),
    "ten thousand added tokens": Hostile(
        _json(added_tokens=[_token(f"z{n}", len(PIECES) + n) for n in range(10**4)]), _LOOKS, harmless=True
    ),
    "a pattern of backtracking before pieces": Hostile(
        _json(pre_tokenizer=_split("(a+)+$")), (_long(_BOMB),), harmless=True
    ),
    "a pattern of backtracking in the normaliser": Hostile(
        _json(normalizer={"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": "x"}),
        (_long(_BOMB),),
        harmless=True,
    ),
    "a pattern that is none": Hostile(_json(pre_tokenizer=_split("(((")), _LOOKS),
    "a pattern of a gigabyte of repeats": Hostile(
        _json(pre_tokenizer=_split("((((a{999}){999}){999}){999})")), _LOOKS, harmless=True
    ),
    "a pattern of brackets": Hostile(_json(pre_tokenizer=_split("(" * 10**5 + ")" * 10**5)), _LOOKS, harmless=True),
    "a normaliser that makes more of everything": Hostile(
        _json(normalizer={"type": "Replace", "pattern": {"Regex": "."}, "content": "ab" * 10**6}),
        (w.LOOK,),
        harmless=True,
    ),
    "a chain of normalisers that double": Hostile(
        _json(
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
            }
        ),
        (_long("a good man"),),
        harmless=True,
    ),
    "a normaliser of random bytes": Hostile(
        _json(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA//8="}), _LOOKS, harmless=True
    ),
    "a normaliser of no base64": Hostile(
        _json(normalizer={"type": "Precompiled", "precompiled_charsmap": "!!"}), _LOOKS
    ),
    "an unknown normaliser": Hostile(_json(normalizer={"type": "os.system"}), _LOOKS),
    "a padding without end": Hostile(
        _json(
            padding={
                "strategy": {"Fixed": 10**12},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "[PAD]",
            }
        ),
        _LOOKS,
        harmless=True,
    ),
    "a truncation to nothing": Hostile(
        _json(truncation={"max_length": 0, "strategy": "LongestFirst", "stride": 10, "direction": "Right"}),
        _LOOKS,
        harmless=True,
    ),
    "a template of a hundred thousand parts": Hostile(
        _as_transformers(
            _json(
                post_processor={
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * 10**5,
                    "pair": [],
                    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}},
                }
            )
        ),
        _LOOKS,
        harmless=True,
    ),
    "a template of ids beyond the pieces": Hostile(
        _as_transformers(
            _json(
                post_processor={
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                    ],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 9}}],
                    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [_ABSURD], "tokens": ["[CLS]"]}},
                }
            )
        ),
        _LOOKS,
    ),
    "no model": Hostile(_json(model=None), _LOOKS),
    "a model of another type": Hostile(_json(model={"type": "os.system", "vocab": {}}), _LOOKS),
    "a model without pieces": Hostile(_json(model=model_of("WordPiece", vocab={})), _LOOKS),
    "a model whose pieces are a number": Hostile(_json(model=model_of("WordPiece", vocab=7)), _LOOKS),
    "scores that are no numbers": Hostile(_json(model=model_of("Unigram", vocab=[[p, None] for p in PIECES])), _LOOKS),
    "scores without end": Hostile(
        _json(model=model_of("Unigram", vocab=[[p, 1e308] for p in PIECES])), _LOOKS, harmless=True
    ),
    "an unknown piece beyond the pieces": Hostile(_json(model=model_of("Unigram", unk_id=10**9)), _LOOKS),
    "merges of pieces that are missing": Hostile(_json(model=model_of("BPE", merges=[["zz", "yy"]])), _LOOKS),
    "merges of one": Hostile(_json(model=model_of("BPE", merges=["a"])), _LOOKS),
    "a prefix of a megabyte": Hostile(
        _json(model=model_of("WordPiece", continuing_subword_prefix="#" * 10**6)), _LOOKS, harmless=True
    ),
    "words without end": Hostile(
        _json(model=model_of("WordPiece", max_input_chars_per_word=2**60)), (_long("a" * 2000),), harmless=True
    ),
    "tokenizer.json of brackets": Hostile(with_file("tokenizer", "tokenizer.json", "[" * 10**6), _LOOKS),
    "tokenizer.json of another encoding": Hostile(with_file("tokenizer", "tokenizer.json", b"\xff\xfe{\0}\0"), _LOOKS),
    "tokenizer.json that is a list": Hostile(with_file("tokenizer", "tokenizer.json", "[]"), _LOOKS),
    "tokenizer.json of two gigabytes": Hostile(in_place("tokenizer.json", sparse(2**31), "tokenizer"), _ALL),
    "tokenizer.json that is a queue": Hostile(
        in_place("tokenizer.json", os.mkfifo, "tokenizer"), _LOOKS, harmless=True
    ),
    "tokenizer.json elsewhere": Hostile(with_link("tokenizer", "tokenizer.json", "config.json"), _LOOKS),
    "vocab.txt elsewhere": Hostile(with_link("tokenizer", "vocab.txt", "vocab.txt"), _LOOKS),
    "vocab.txt that is a device": Hostile(with_link("tokenizer", "vocab.txt", "/dev/zero"), _LOOKS),
    "vocab.txt of a model elsewhere": Hostile(with_link("classifier", "vocab.txt", "vocab.txt"), _OF_MODEL),
    "settings elsewhere": Hostile(with_link("tokenizer", "tokenizer_config.json", "config.json"), _LOOKS),
    "settings of a model elsewhere": Hostile(
        with_link("classifier", "tokenizer_config.json", "config.json"), _OF_MODEL
    ),
    "names of special tokens elsewhere": Hostile(
        with_link("classifier", "special_tokens_map.json", "config.json"), _OF_MODEL
    ),
    "a model file elsewhere": Hostile(with_link("tokenizer", "spiece.model", "passwords.txt"), _LOOKS),
    "settings of brackets": Hostile(with_file("classifier", "tokenizer_config.json", "[" * 10**6), _OF_MODEL),
    "settings that are a list": Hostile(with_file("classifier", "tokenizer_config.json", "[1]"), _OF_MODEL),
    "settings of two gigabytes": Hostile(in_place("tokenizer_config.json", sparse(2**31), "classifier"), _OF_MODEL),
    "a class of code": Hostile(
        _config(tokenizer_class="os.system", auto_map={"AutoTokenizer": ["evil.T", None]}), _OF_MODEL
    ),
    "a class that is a list": Hostile(_config(tokenizer_class=["BertTokenizer"]), _OF_MODEL),
    "a class of escapes": Hostile(_config(tokenizer_class="\x1b[2J\x9b31m"), _OF_MODEL),
    "files by their paths": Hostile(
        _config(vocab_file="/etc/passwd", tokenizer_file="/etc/passwd", name_or_path="/etc", chat_template="{{ 7*7 }}"),
        _OF_MODEL,
        harmless=True,
    ),
    "a length that is no number": Hostile(_config(model_max_length="long"), _OF_MODEL, harmless=True),
    "a length without end": Hostile(
        with_file(
            "classifier", "tokenizer_config.json", '{"tokenizer_class": "BertTokenizer", "model_max_length": 1e999}'
        ),
        _OF_MODEL,
        harmless=True,
    ),
    "special tokens of other types": Hostile(
        _config(pad_token=7, tokenizer_class="BertTokenizer"), _OF_MODEL, harmless=True
    ),
    "special tokens of deep objects": Hostile(
        _config(pad_token={"__type": "AddedToken", "content": {"a": 1}}, tokenizer_class="BertTokenizer"), _OF_MODEL
    ),
    "pieces of escapes": Hostile(
        with_file("tokenizer", "vocab.txt", VOCABULARY + b"\n\x1b[2J\n\xc2\x9b31m\na\x07b"),
        (w.LOOK, ("tokenizer", "inspect", "--model", "{given}")),
        harmless=True,
    ),
    "the last piece twice": Hostile(
        with_file(
            "tokenizer", "vocab.txt", VOCABULARY + b"\n" + b"\n".join(b"z%d" % n for n in range(10**5)) + b"\nz99999"
        ),
        _LOOKS,
    ),
    "a piece of ten megabytes": Hostile(
        with_file("tokenizer", "vocab.txt", VOCABULARY + b"\n" + b"z" * 10**7), _LOOKS, harmless=True
    ),
    "three million pieces": Hostile(
        with_file(
            "tokenizer", "vocab.txt", VOCABULARY + b"\n" + b"\n".join(b"%x" % n for n in range(10**6, 4 * 10**6))
        ),
        _LOOKS,
    ),
    "pieces of no text": Hostile(with_file("tokenizer", "vocab.txt", b"\xff\xfe\x80"), _LOOKS),
    "no pieces": Hostile(with_file("tokenizer", "vocab.txt", b""), _LOOKS),
    "a model file of random bytes": Hostile(_model_file(bytes(range(256)) * 50), _LOOKS),
    "an empty model file": Hostile(_model_file(b""), _LOOKS),
    "a model file cut short": Hostile(_model_file(sentencepiece_model()[:-3]), _LOOKS),
    "a piece of a length beyond the file": Hostile(_model_file(b"\x0a" + varint(2**31 - 1) + b"x"), _LOOKS),
    "a piece of a negative length": Hostile(_model_file(b"\x0a" + varint(2**64 - 1) + b"x"), _LOOKS),
    "fields in fields": Hostile(_model_file(b"\x0b" * 10**5), _LOOKS),
    "a model file without special pieces": Hostile(_model_file(sentencepiece_model(["<unk>", "a"])), _LOOKS),
    "a model file with a piece twice": Hostile(_model_file(sentencepiece_model(["<unk>", "a", "a"])), _LOOKS),
    "a model file whose normaliser is random": Hostile(
        _model_file(sentencepiece_model(normalizer=b"\x12\x10" + b"\xff" * 16)), _LOOKS, harmless=True
    ),
    "a model file whose normaliser claims 4 GB": Hostile(
        _model_file(sentencepiece_model(normalizer=b"\x12\x08" + b"\xff\xff\xff\xff" + b"abcd")), _LOOKS, harmless=True
    ),
    "a model file with numbers of pieces elsewhere": Hostile(
        _model_file(sentencepiece_model(trainer=b"\xc0\x02" + varint(2**31 - 1))), _LOOKS, harmless=True
    ),
    "pieces of escapes in a model file": Hostile(
        _model_file(sentencepiece_model(["<unk>", "<pad>", "[CLS]", "[SEP]", "[MASK]", "\x1b[2J", "\x9b31m"])),
        (w.LOOK, ("tokenizer", "inspect", "--model", "{given}")),
        harmless=True,
    ),
}


def _many_models(world: World) -> None:
    copied("tokenizer")(world)
    for name in ("a", "b", "\x1b[2J"):
        (Path(world.given) / f"{name}.model").write_bytes(sentencepiece_model())


INPUTS["several model files, one of escapes"] = Hostile(_many_models, _LOOKS, harmless=True)
