"""Build the tokenizers of transformers' classes from a vocabulary and the keys of `tokenizer_config.json`.

A class of a family takes from `tokenizer.json` only the vocabulary, the merges and the map of characters; its
normaliser, pre-tokenizer and templates are its own, by its keys. Sources: transformers 5, tokenization_*.py.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordPiece

from bertjax.data.tokenizer_bounds import check_lines, check_pieces
from bertjax.errors import InputError
from bertjax.serialization.bounded_json import LARGE, parse_object

JSON, CONFIG, MAP, ADDED, MODEL_CONFIG = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
)
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GENERAL = ("TokenizersBackend", "PreTrainedTokenizerFast")
SEGMENTS = ("input_ids", "token_type_ids", "attention_mask")
NO_SEGMENTS = ("input_ids", "attention_mask")
_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
"""White space by Unicode, which the library strips from the ends of lines."""


@dataclass
class Opened:
    """The files of a folder while they are read; `keys` and `notes` become those of the Reading."""

    origin: str
    json: dict[str, Any]
    config: dict[str, Any]  # tokenizer_config.json
    model_config: dict[str, Any]
    files: Mapping[str, bytes]
    stated: dict[str, Any]  # arguments of the class: tokenizer_config.json and special_tokens_map.json merged
    where: dict[str, str] = field(default_factory=dict)  # the file that each key of `stated` comes from
    keys: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def flag(self, key: str, default: bool | None) -> bool | None:
        """Return a key that is true or false, or its default. Raises InputError for anything else."""
        value = self.stated.get(key, default)
        if key in self.stated:
            if not isinstance(value, bool) and not (value is None and default is None):
                raise InputError(f"{self.origin}: {self.where[key]} says {key}={value!r}: it must be true or false")
            self.keys[f"{self.where[key]}: {key}"] = value
        return value

    def token(self, key: str, default: str | None) -> "str | AddedToken | None":
        """Return a named special token."""
        value = self.stated.get(key, default)
        if value is not None and not isinstance(value, str | AddedToken):
            raise InputError(f"{self.origin}: {self.where[key]} says {key}={value!r}: it must be a string")
        return value

    def name(self, key: str, default: str) -> str:
        """Return the spelling of a named special token."""
        value = self.token(key, default)
        return content_of(value) if value is not None else "None"


def content_of(token: Any) -> str:
    """Return the spelling of a token that is a string or an AddedToken."""
    return token if isinstance(token, str) else str(token.content)


Built = tuple[Tokenizer, dict[str, Any], Callable[[Tokenizer], None] | None]
"""The backend without added tokens, the named special tokens, and a function that then sets the post-processor."""


@dataclass(frozen=True)
class Kind:
    """A class of a family.

    model: of `tokenizer.json`. vocabulary: its files where there is none. extra: tokens that are special besides the
    named ones. inputs: the model inputs that the class returns.
    """

    build: Callable[[Opened], Built]
    model: str
    vocabulary: tuple[str, ...]
    inputs: tuple[str, ...] = NO_SEGMENTS
    extra: tuple[str, ...] = ()

    def check(self, opened: Opened, name: str) -> None:
        """Raise InputError where the folder has no vocabulary of the kind that this class reads."""
        if opened.json:
            model = opened.json["model"]
            kind = model.get("type") or ("Unigram" if isinstance(model["vocab"], list) else self.model)
            if kind != self.model:
                raise InputError(
                    f"{opened.origin}: {name} reads {self.model}, but {JSON} is {kind}: set the right "
                    f"tokenizer_class in {CONFIG}, {GENERAL[1]} to use the file unchanged"
                )
            return
        missing = [file for file in self.vocabulary if file not in opened.files]
        if missing:
            raise InputError(f"{opened.origin}: {name} needs {JSON}, or {' and '.join(self.vocabulary)}")


_OF_CLASSES = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "keep_accents")


def build_general(opened: Opened) -> Tokenizer:
    """Take tokenizer.json as it stands; without a post-processor nothing is put around a text."""
    rust = Tokenizer.from_str(opened.files[JSON].decode())
    unread = [key for key in _OF_CLASSES if key in opened.stated]
    unread += ["add_prefix_space"] if opened.stated.get("add_prefix_space") else []
    for key in unread:
        opened.notes.append(f"{opened.where[key]}: {key}={opened.stated[key]} has no effect: {JSON} holds as it stands")
    if rust.post_processor is None:
        rust.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    return rust


def _wordpiece(opened: Opened) -> dict[str, int]:
    if opened.json:
        vocabulary: dict[str, int] = opened.json["model"]["vocab"]
        return vocabulary
    check_lines(opened.files["vocab.txt"], f"vocab.txt of {opened.origin}")
    lines = opened.files["vocab.txt"].decode("utf-8").removesuffix("\n").split("\n")
    return {line.rstrip(_SPACE): index for index, line in enumerate(lines)}


def _bpe(opened: Opened) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if opened.json:
        model = opened.json["model"]
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        return model["vocab"], [(left, right) for left, right in pairs]
    lines = opened.files["merges.txt"].decode("utf-8").splitlines()
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    vocabulary = parse_object(opened.files["vocab.json"], "vocab.json", LARGE)
    check_pieces(vocabulary, f"vocab.json of {opened.origin}")
    return vocabulary, [(left, right) for left, right in pairs]


def _unigram(opened: Opened) -> list[tuple[str, float]]:
    return [(piece, score) for piece, score in opened.json["model"]["vocab"]]


def _charsmap(opened: Opened) -> list[Any]:
    """Return the normaliser that a SentencePiece model brings along, if there is one in tokenizer.json."""
    described = opened.json.get("normalizer") or {}
    for each in described["normalizers"] if described.get("type") == "Sequence" else [described]:
        if each.get("type") == "Precompiled" and "precompiled_charsmap" in each:
            return [normalizers.Precompiled(base64.b64decode(each["precompiled_charsmap"]))]
    return []


def _named(opened: Opened, **defaults: str) -> dict[str, Any]:
    return {key: opened.token(key, defaults.get(key)) for key in NAMED}


def _id(rust: Tokenizer, token: Any) -> int:
    index = rust.token_to_id(content_of(token))
    if index is None:
        raise InputError(f"the vocabulary has no {content_of(token)}")
    return index


def _around(named: Mapping[str, Any], first: str, last: str, between: str, segment: int) -> Callable[[Tokenizer], None]:
    """Put `first` before and `last` after a text, `between` between two; the second text has `segment`."""

    def put(rust: Tokenizer) -> None:
        a, b = content_of(named[first]), content_of(named[last])
        rust.post_processor = processors.TemplateProcessing(
            single=f"{a}:0 $A:0 {b}:0",
            pair=f"{a}:0 $A:0 {between.replace('SEP', f'{b}:0')} $B:{segment} {b}:{segment}",
            special_tokens=[(a, _id(rust, a)), (b, _id(rust, b))],
        )

    return put


def _build_bert(opened: Opened) -> Built:
    """models/bert/tokenization_bert.py, and those of DistilBERT and ELECTRA."""
    named = _named(opened, unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]", cls_token="[CLS]",
                   mask_token="[MASK]")  # fmt: skip
    vocabulary = _wordpiece(opened)
    lowercase = opened.flag("do_lower_case", True)
    if lowercase and "do_lower_case" not in opened.stated and any(
        piece != piece.lower() for piece in vocabulary if piece[:1] not in ("[", "<")
    ):  # fmt: skip
        opened.notes.append(
            f"the vocabulary has capitals, but no file says do_lower_case: text is lower-cased, as transformers "
            f'does. If the model is cased, put {{"do_lower_case": false}} into {CONFIG}'
        )
    rust = Tokenizer(WordPiece(vocabulary, unk_token=opened.name("unk_token", "[UNK]")))
    rust.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(opened.flag("tokenize_chinese_chars", True)),
        strip_accents=opened.flag("strip_accents", None),
        lowercase=bool(lowercase),
    )
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece(prefix="##")
    for key in ("do_basic_tokenize", "never_split"):
        if opened.stated.get(key) not in (None, True, []):
            opened.notes.append(f"{opened.where[key]}: {key}={opened.stated[key]} has no effect on fast tokenizers")
    return rust, named, _around(named, "cls_token", "sep_token", "SEP", 1)


def _build_mpnet(opened: Opened) -> Built:
    """models/mpnet/tokenization_mpnet.py."""
    rust, _, _ = _build_bert(opened)
    named = _named(opened, bos_token="<s>", eos_token="</s>", sep_token="</s>", cls_token="<s>", unk_token="[UNK]",
                   pad_token="<pad>", mask_token="<mask>")  # fmt: skip
    named |= {key: AddedToken(x, lstrip=key == "mask_token") for key, x in named.items() if isinstance(x, str)}
    return rust, named, _around(named, "cls_token", "sep_token", "SEP SEP", 0)


ROBERTA = {
    "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
    "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip
CLS = {
    "bos_token": "[CLS]", "eos_token": "[SEP]", "sep_token": "[SEP]", "cls_token": "[CLS]", "unk_token": "[UNK]",
    "pad_token": "[PAD]", "mask_token": "[MASK]",
}  # fmt: skip


def _byte_level(opened: Opened) -> Tokenizer:
    vocabulary, merges = _bpe(opened)
    rust = Tokenizer(BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(opened.flag("add_prefix_space", False)))
    rust.decoder = decoders.ByteLevel()
    return rust


def _with_wide_mask(opened: Opened, named: dict[str, Any]) -> dict[str, Any]:
    """Let the mask take the space before it, as in published RoBERTa, where no file says anything of it.

    Here alone we read otherwise than transformers 5, which leaves a lone space before the mask, as in no training text.
    """
    if isinstance(named["mask_token"], str):
        opened.notes.append(
            f"no file says whether {named['mask_token']} takes the space before it: it does, as in published RoBERTa"
        )
        named["mask_token"] = AddedToken(named["mask_token"], lstrip=True, special=True)
    return named


def _build_roberta(opened: Opened) -> Built:
    """models/roberta/tokenization_roberta.py."""
    rust, named = _byte_level(opened), _with_wide_mask(opened, _named(opened, **ROBERTA))

    def put(rust: Tokenizer) -> None:
        sep, cls = ((content_of(named[key]), _id(rust, named[key])) for key in ("sep_token", "cls_token"))
        prefix = bool(opened.stated.get("add_prefix_space", False))
        rust.post_processor = processors.RobertaProcessing(sep, cls, True, prefix)

    return rust, named, put


def _build_deberta(opened: Opened) -> Built:
    """models/deberta/tokenization_deberta.py."""
    rust, named = _byte_level(opened), _with_wide_mask(opened, _named(opened, **CLS))
    return rust, named, _around(named, "cls_token", "sep_token", "SEP SEP", 0)


def _build_herbert(opened: Opened) -> Built:
    """models/herbert/tokenization_herbert.py: BPE of words that end in `</w>`."""
    vocabulary, merges = _bpe(opened)
    named = _named(opened, **{key: x for key, x in ROBERTA.items() if key[:3] not in ("bos", "eos")})
    rust = Tokenizer(BPE(vocabulary, merges, unk_token=content_of(named["unk_token"]), end_of_word_suffix="</w>"))
    rust.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.BPEDecoder(suffix="</w>")

    def put(rust: Tokenizer) -> None:
        sep, cls = content_of(named["sep_token"]), content_of(named["cls_token"])
        rust.post_processor = processors.BertProcessing((sep, 2), (cls, 0))

    return rust, named, put


def _metaspace(rust: Tokenizer, scheme: str, *before: Any) -> None:
    rust.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.Metaspace(prepend_scheme=scheme)])
    rust.decoder = decoders.Metaspace(prepend_scheme=scheme)


def _scheme(opened: Opened, otherwise: str = "never") -> str:
    return "always" if opened.flag("add_prefix_space", True) else otherwise


def _build_albert(opened: Opened) -> Built:
    """models/albert/tokenization_albert.py; the post-processor is that of tokenizer.json."""
    rust, named = Tokenizer(Unigram(_unigram(opened), 1)), _named(opened, **(CLS | {"unk_token": "<unk>"}))
    named["pad_token"] = opened.token("pad_token", "<pad>")
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not opened.flag("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    steps += [normalizers.Lowercase()] if opened.flag("do_lower_case", True) else []
    rust.normalizer = normalizers.Sequence(steps + _charsmap(opened))
    _metaspace(rust, _scheme(opened), pre_tokenizers.WhitespaceSplit())
    given = Tokenizer.from_str(opened.files[JSON].decode()).post_processor

    def put(rust: Tokenizer) -> None:
        if given is None:
            _around({"a": "[CLS]", "b": "[SEP]"}, "a", "b", "SEP", 1)(rust)
        else:
            rust.post_processor = given

    return rust, named, put


def _build_xlnet(opened: Opened) -> Built:
    """models/xlnet/tokenization_xlnet.py: the classification token comes last."""
    named = _named(opened, bos_token="<s>", eos_token="</s>", unk_token="<unk>", sep_token="<sep>", pad_token="<pad>",
                   cls_token="<cls>", mask_token="<mask>")  # fmt: skip
    if isinstance(named["mask_token"], str):
        named["mask_token"] = AddedToken(named["mask_token"], lstrip=True)
    rust = Tokenizer(Unigram(_unigram(opened), int(opened.stated.get("unk_id", 0))))
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    steps += [normalizers.NFKD(), normalizers.StripAccents()]
    steps += [normalizers.Lowercase()] if opened.flag("do_lower_case", False) else []
    if opened.stated.get("keep_accents"):
        opened.notes.append(f"{opened.where['keep_accents']}: keep_accents=True has no effect on XLNetTokenizer")
    rust.normalizer = normalizers.Sequence(steps + _charsmap(opened))
    _metaspace(rust, "always", pre_tokenizers.WhitespaceSplit())

    def put(rust: Tokenizer) -> None:
        cls, sep = content_of(named["cls_token"]), content_of(named["sep_token"])
        rust.post_processor = processors.TemplateProcessing(
            single=f"$A:0 {sep}:0 {cls}:2",
            pair=f"$A:0 {sep}:0 $B:1 {sep}:1 {cls}:2",
            special_tokens=[(sep, _id(rust, sep)), (cls, _id(rust, cls))],
        )

    return rust, named, put


def _build_xlm_roberta(opened: Opened) -> Built:
    """models/xlm_roberta/tokenization_xlm_roberta.py."""
    rust, named = Tokenizer(Unigram(_unigram(opened), 3)), _named(opened, **ROBERTA)
    charsmap = _charsmap(opened)
    if charsmap:
        rust.normalizer = charsmap[0]
    _metaspace(rust, _scheme(opened), pre_tokenizers.WhitespaceSplit())
    return rust, named, _around(named, "bos_token", "eos_token", "SEP SEP", 0)


def _build_camembert(opened: Opened) -> Built:
    """models/camembert/tokenization_camembert.py."""
    named = _named(opened, **ROBERTA)
    if isinstance(named["mask_token"], str):
        named["mask_token"] = AddedToken(named["mask_token"], lstrip=True, special=True)
    pieces, unk = _unigram(opened), content_of(named["unk_token"])
    rust = Tokenizer(Unigram(pieces, next((index for index, (piece, _) in enumerate(pieces) if piece == unk), 0)))
    charsmap = _charsmap(opened)
    if charsmap:
        rust.normalizer = charsmap[0]
    _metaspace(rust, _scheme(opened), pre_tokenizers.WhitespaceSplit())
    return rust, named, _around(named, "bos_token", "eos_token", "SEP SEP", 0)


def _build_deberta_v2(opened: Opened) -> Built:
    """models/deberta_v2/tokenization_deberta_v2.py."""
    named, pieces = _named(opened, **CLS), _unigram(opened)
    unknown = (content_of(named["unk_token"]), 0.0)
    index = pieces.index(unknown) if unknown in pieces else int(opened.stated.get("unk_id", 1))
    rust = Tokenizer(Unigram(pieces, index))
    steps: list[Any] = [normalizers.Lowercase()] if opened.flag("do_lower_case", False) else []
    steps += [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC()]
    rust.normalizer = normalizers.Sequence([*steps, normalizers.Strip(left=False, right=True)])
    punctuation = [pre_tokenizers.Punctuation("isolated")] if opened.flag("split_by_punct", False) else []
    _metaspace(rust, _scheme(opened, "first"), *punctuation)
    return rust, named, _around(named, "cls_token", "sep_token", "SEP", 1)


_SPIECE, _BPE_FILES = ("spiece.model",), ("vocab.json", "merges.txt")
KINDS = {
    "AlbertTokenizer": Kind(_build_albert, "Unigram", _SPIECE, SEGMENTS),
    "BertTokenizer": Kind(_build_bert, "WordPiece", ("vocab.txt",), SEGMENTS),
    "CamembertTokenizer": Kind(_build_camembert, "Unigram", ("sentencepiece.bpe.model",),
                                extra=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")),
    "DebertaTokenizer": Kind(_build_deberta, "BPE", _BPE_FILES, SEGMENTS),
    "DebertaV2Tokenizer": Kind(_build_deberta_v2, "Unigram", ("spm.model",), SEGMENTS),
    "DistilBertTokenizer": Kind(_build_bert, "WordPiece", ("vocab.txt",)),
    "HerbertTokenizer": Kind(_build_herbert, "BPE", _BPE_FILES),
    "MPNetTokenizer": Kind(_build_mpnet, "WordPiece", ("vocab.txt",)),
    "RobertaTokenizer": Kind(_build_roberta, "BPE", _BPE_FILES),
    "XLMRobertaTokenizer": Kind(_build_xlm_roberta, "Unigram", ("sentencepiece.bpe.model",)),
    "XLNetTokenizer": Kind(_build_xlnet, "Unigram", _SPIECE, SEGMENTS, extra=("<eop>", "<eod>")),
}  # fmt: skip
