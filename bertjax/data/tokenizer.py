"""Read every common kind of tokenizer behind one small interface.

WordPiece (`vocab.txt`), byte-level BPE (`vocab.json` with `merges.txt`) and `tokenizer.json` run on the `tokenizers`
library, `.model` files on `sentencepiece`. The folders of others are read as transformers reads them
(tokenizer_folder.py). Text is text: a literal "[MASK]" in it is punctuation and letters, never the model's special
token, unless asked for (`parsing_special_tokens`); special tokens are added by id. Tokens that a user added are tokens.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import sentencepiece
import tokenizers

from bertjax.data.tokenizer_bounds import (
    check_lines,
    check_pieces,
    check_sentencepiece,
    check_tokenizer,
    panics_refused,
)
from bertjax.data.tokenizer_classes import ADDED, CONFIG, JSON, MAP, MODEL_CONFIG, NAMED
from bertjax.data.tokenizer_folder import KEPT, SENTENCEPIECE, Reading, compile_folder, sentencepiece_folder
from bertjax.data.word_starts import WordRule, word_rule
from bertjax.errors import InputError
from bertjax.serialization.bounded_json import LARGE, parse_object
from bertjax.storage.files import make_folder, read_given, read_inside, real_path, utf8, write
from bertjax.storage.paths import path_of

Template = tuple[tuple[str, int], ...]
"""The parts of a row in order, as (part, segment): `cls` and `sep` are special tokens, `a` and `b` the texts."""


class Vocabulary(NamedTuple):
    """The size of a vocabulary and the ids of its special tokens, which models and corruption need."""

    size: int
    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


class Encoding(NamedTuple):
    """ids: i32 [n]. offsets: i32 [n, 2], where each piece begins and ends in the text. word_starts: bool [n]."""

    ids: np.ndarray
    offsets: np.ndarray
    word_starts: np.ndarray


class Tokenizer(Protocol):
    """Protocol for a tokenizer.

    files: the files that it was read from, which `save_tokenizer` writes. templates: of one text and of two, with
    special tokens and segments, as stated by the files of a folder; None where the family decides.
    """

    vocabulary: Vocabulary
    word_rule: WordRule
    files: Mapping[str, bytes]
    reading: Reading
    templates: tuple[Template, Template] | None

    def encode(self, text: str) -> Encoding:
        """Encode one text, without special tokens."""
        ...

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Encode many texts, ids only: the fast path."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens stay visible."""
        ...

    def piece(self, index: int) -> str:
        """Return the piece of one id, as the vocabulary spells it."""
        ...


_VOCABULARIES = (JSON, "vocab.txt", "vocab.json")
_SETTINGS = (CONFIG, MAP, ADDED, MODEL_CONFIG)
_LARGEST = LARGE.bytes  # of a tokenizer file; real ones have up to 40 million
_PARSE, _MASK_ONLY = "parse_special_tokens", "mask"  # a key of ours in tokenizer_config.json, and one of its values


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer from a file (`vocab.txt`, `vocab.json`, `tokenizer.json`, `*.model`) or a folder with one.

    Where a folder has several, `tokenizer.json` goes before the rest. A folder of transformers (with a config.json, or
    a tokenizer_config.json that names its class) is read as transformers reads it; a bare vocabulary file as the code
    that it was published with. Raises InputError where there is none, where it lacks a special token that pre-training
    needs, and for settings that cannot be followed.
    """
    path = path_of(path)
    if path.is_dir():
        found = [path / name for name in _VOCABULARIES if (path / name).is_file()] + sorted(path.glob("*.model"))
        if not found:
            raise InputError(f"{path} holds no tokenizer: no tokenizer.json, vocab.txt, vocab.json or *.model")
        chosen = found
    elif path.is_file():
        chosen = [path]
    else:
        raise InputError(f"no tokenizer at {path}: give a vocab.txt, vocab.json, tokenizer.json, *.model or a folder")
    folder = path if path.is_dir() else path.parent
    beside = [folder / name for name in (*_SETTINGS, "merges.txt") if (folder / name).is_file()]
    # A file that the user names may be a link; of a folder, no file leads out of it.
    given = {} if path.is_dir() else {path.name: read_given(path, _LARGEST)}
    names = [file.name for file in (*chosen, *beside)]
    files = {name: given[name] if name in given else read_inside(folder, name, _LARGEST) for name in names}
    origin = str(path if path.is_file() else chosen[0])
    if _is_of_transformers(files):
        return _from_folder(files, str(folder))
    models = [file for file in chosen if file.name.endswith(".model")]
    if models and _object(files, CONFIG).get("read_as") == SENTENCEPIECE:  # the other files are for transformers
        chosen = models
    kept = {chosen[0].name: files[chosen[0].name]}
    sibling = "merges.txt" if chosen[0].name == "vocab.json" else CONFIG
    kept |= {sibling: _known(files[sibling], sibling, folder)} if sibling in files else {}
    return tokenizer_from_files(kept, origin=origin)


_CARRIED = {
    *NAMED, *KEPT, "tokenizer_class", "read_as", "model_input_names", "extra_special_tokens", "model_type", "prepare",
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "keep_accents", "add_prefix_space", "split_by_punct",
    _PARSE,
}  # fmt: skip
"""The keys of tokenizer_config.json that go on into corpora, checkpoints and exports: those that have an effect."""


def _known(content: bytes, name: str, folder: Path) -> bytes:
    """Return a file as it is carried on: of tokenizer_config.json the known keys, with values of their types."""
    if name != CONFIG:
        return content
    stated = parse_object(content, f"{folder / name}")
    kept = {key: value for key, value in stated.items() if key in _CARRIED and _is_setting(value)}
    return content if kept == stated else utf8(json.dumps(kept, ensure_ascii=False))


def _is_setting(value: Any) -> bool:
    plain = str | int | float | None  # and bool, which is an int
    return all(isinstance(each, str) for each in value) if isinstance(value, list) else isinstance(value, plain)


def saved_tokenizer(folder: Path) -> Tokenizer:
    """Read a folder that `save_tokenizer` of any version wrote, with its files unchanged, so with its fingerprint."""
    if folder.exists():
        real_path(folder.parent, folder.name)  # it is a folder of a corpus or of a run
    found = (path for path in sorted(folder.glob("*")) if _is_file_of_tokenizer(path.name))
    names = [path.name for path in found if path.is_file()]
    if not names:
        raise InputError(f"{folder} holds no tokenizer: build the corpus or write the tokenizer again")
    return tokenizer_from_files({name: read_inside(folder, name, _LARGEST) for name in names}, origin=str(folder))


def _is_of_transformers(files: Mapping[str, bytes]) -> bool:
    """Return whether files are read by transformers' rules, and not by those of the code that bare files belong to.

    Files of `tokenizer train` and `save_tokenizer` are not: `vocab.txt` with its case alone, compiled files.
    """
    config = _object(files, CONFIG)
    if "read_as" in config or _PARSE in config:
        return False
    if "model_type" in _object(files, MODEL_CONFIG) or {MAP, ADDED} & files.keys():
        return True
    plain = "vocab.txt" in files and JSON not in files and config.keys() <= {"do_lower_case", "tokenizer_class"}
    return bool(config) and not (plain and config.get("tokenizer_class", _BERT) == _BERT)


_BERT = "BertTokenizer"


def _from_folder(files: Mapping[str, bytes], origin: str) -> Tokenizer:
    """Read a folder as transformers does; SentencePiece models without tokenizer.json by their own library."""
    try:
        alone = sentencepiece_folder(files, origin)
        if alone is not None:
            return SentencePieceTokenizer(alone.files, origin, alone.reading)
        with panics_refused(origin):
            compiled = compile_folder(files, origin)
            return _fast(compiled.files, origin, compiled.reading)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more exact
        raise InputError(f"the tokenizer of {origin} is damaged or not what its files say: {error}") from error


def tokenizer_from_files(files: Mapping[str, bytes], *, origin: str) -> Tokenizer:
    """Build a tokenizer from the contents of its files, as a checkpoint carries them; `origin` names it in errors.

    Raises InputError for a file of another name than tokenizers have: they are written into folders by these names.
    """
    for name in files:
        if not _is_file_of_tokenizer(name):
            raise InputError(f"{origin} has a file {name!r:.100}, which no tokenizer has: it is not written anywhere")
    try:
        if any(name.endswith(".model") for name in files) and JSON not in files:
            return SentencePieceTokenizer(files, origin)
        if JSON in files:
            with panics_refused(origin):
                return _fast(files, origin)
        if "vocab.json" in files:
            reading = Reading("byte-level BPE, as openai/gpt-2 and fairseq read it", tuple(files))
            return FastTokenizer(_read_byte_level(files, origin), files, origin, reading)
        if "vocab.txt" in files:
            rust, files = _read_wordpiece(files, origin)
            keys = {f"{CONFIG}: {key}": value for key, value in _object(files, CONFIG).items() if key[:2] == "do"}
            reading = Reading("WordPiece, as google-research/bert reads it", tuple(files), keys)
            return FastTokenizer(rust, files, origin, reading)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more exact
        raise InputError(f"{origin} is damaged or not what its name says: {error}") from error
    raise InputError(f"{origin}: none of {', '.join(files)} is a tokenizer")


def _is_file_of_tokenizer(name: str) -> bool:
    """Return whether a name is a fixed one, or that of a SentencePiece model, which users name: no path, not hidden."""
    fixed = (*_VOCABULARIES, *_SETTINGS, "merges.txt")
    return name in fixed or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.model", name, re.ASCII) is not None


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Parse a JSON object; empty where there is no such file, or it is something else."""
    try:
        return parse_object(files.get(name, b"{}"), name, LARGE)
    except InputError:
        return {}


def parsing_special_tokens(tokenizer: Tokenizer, *, mask_only: bool = False) -> Tokenizer:
    """Return a tokenizer that reads a literal "[MASK]" or "</s>" in a text as the special token, as transformers does.

    Whether it does so is written into its files, so it stays so in checkpoints and corpora. mask_only: of no token but
    the mask, for the tokenizers of folders.
    """
    if any(name in tokenizer.files for name in ("vocab.txt", "vocab.json")):
        assert isinstance(tokenizer, FastTokenizer)
        described = json.loads(tokenizer.library.to_str())
        v = tokenizer.vocabulary
        added = [
            {"id": index, "content": tokenizer.piece(index), "single_word": False, "rstrip": False, "special": True,
             "lstrip": index == v.mask and "vocab.json" in tokenizer.files, "normalized": False}
            for index in sorted({*v[1:]})
        ]  # fmt: skip
        described["added_tokens"] = added
        files = {JSON: json.dumps(described).encode(), CONFIG: tokenizer.files.get(CONFIG, b"{}")}
    else:
        files = dict(tokenizer.files)
    config = parse_object(files.get(CONFIG, b"{}"), CONFIG) | {_PARSE: _MASK_ONLY if mask_only else True}
    return tokenizer_from_files(files | {CONFIG: json.dumps(config).encode()}, origin="the tokenizer")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files into `folder`; `load_tokenizer(folder)` reads the same tokenizer."""
    make_folder(folder.parent, folder.name)
    for name, content in tokenizer.files.items():
        write(folder / name, content)


def fingerprint(tokenizer: Tokenizer) -> str:
    """Identify a tokenizer by the SHA-256 of its files: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, content in sorted(tokenizer.files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def same_tokenizer(a: Tokenizer, b: Tokenizer) -> bool:
    """Return whether two tokenizers are equal: their files, or else all their pieces and the ids of a test sentence.

    A `vocab.txt` and a `tokenizer.json` built from it are the same tokenizer in other files.
    """
    if fingerprint(a) == fingerprint(b):
        return True
    if a.vocabulary != b.vocabulary:
        return False
    pieces = all(a.piece(index) == b.piece(index) for index in range(a.vocabulary.size))
    return pieces and a.ids([_PROBE]) == b.ids([_PROBE])


_PROBE = "The Quick-Brown FÖX cost 1,234.50 (or £9), didn't it? ``Naïve'' 東京 ﬁne … Straße\tİstanbul  end. 21,219"


class FastTokenizer:
    """Run WordPiece, BPE or any `tokenizer.json` on the `tokenizers` library."""

    def __init__(
        self,
        rust: tokenizers.Tokenizer,
        files: Mapping[str, bytes],
        origin: str,
        reading: Reading,
        described: dict[str, Any] | None = None,
        config: Mapping[str, Any] = MappingProxyType({}),
        templates: tuple["_Framing", "_Framing"] | None = None,
    ) -> None:
        self.library = rust  # its own type, for who wants more of it
        self.files = files
        self._origin = origin
        self.reading = reading
        found = rust.get_vocab()
        size = max(found.values(), default=-1) + 1
        if sorted(found.values()) != list(range(size)) and "read_as" not in config:
            raise InputError(f"{origin}: its ids are not 0 to {len(found) - 1}, each once: it is damaged")
        pieces = [self.piece(index) for index in range(size)]
        ids = {piece: index for index, piece in enumerate(pieces)}
        self.vocabulary = v = _find_specials(ids, size, origin, config, templates[0] if templates else ())
        self.templates = templates and (_in_roles(templates[0], v, origin), _in_roles(templates[1], v, origin))
        self.word_rule = word_rule(pieces, described or json.loads(rust.to_str()))

    def encode(self, text: str) -> Encoding:
        """See Tokenizer.encode."""
        with panics_refused(self._origin):  # an expression of the folder may give up on a text
            encoded = self.library.encode(text, add_special_tokens=False)
        return _encoding(encoded.ids, encoded.offsets, self.word_rule)

    def ids(self, texts: list[str]) -> list[list[int]]:
        """See Tokenizer.ids."""
        with panics_refused(self._origin):
            return [encoded.ids for encoded in self.library.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer.decode."""
        return self.library.decode([int(index) for index in ids], skip_special_tokens=False).replace(_HIDDEN, "")

    def piece(self, index: int) -> str:
        """See Tokenizer.piece."""
        return (self.library.id_to_token(int(index)) or "").removeprefix(_HIDDEN)


class SentencePieceTokenizer:
    """Run a `.model` file on the `sentencepiece` library.

    The published ALBERT and XLNet models expect text as their own code prepared it (prepro_utils.py, tokenization.py):
    white space and quotes unified, accents stripped, lower-cased where the vocabulary has no capitals, and pieces that
    end in digit and comma split again. They are known by the symbols that only they reserve.
    """

    def __init__(self, files: Mapping[str, bytes], origin: str, reading: Reading | None = None) -> None:
        name, content = next((name, content) for name, content in files.items() if name.endswith(".model"))
        self.templates: tuple[Template, Template] | None = None
        check_sentencepiece(content, origin)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise InputError(f"{origin} is not a SentencePiece model") from error
        pieces = [self._model.id_to_piece(index) for index in range(self._model.get_piece_size())]
        ids = {piece: index for index, piece in enumerate(pieces)}
        config = _object(files, CONFIG)
        self.vocabulary = _find_specials(ids, len(pieces), origin, config)
        self.word_rule = word_rule(pieces, None)
        told = {
            "prepare": {"£", "€", "–"} <= set(pieces[:20]),
            "do_lower_case": all(piece == piece.lower() for piece in pieces[20:]),
            "keep_accents": False,
            _PARSE: False,
        }
        stated = {key: config[key] for key in told if config.get(key, told[key]) != told[key]}
        self.published, self.lowercase, self.keep_accents, parse = (told | stated).values()
        self.files: Mapping[str, bytes] = {name: content}
        if stated:
            self.files |= {CONFIG: json.dumps(stated).encode()}
        self.reading = reading or Reading(SENTENCEPIECE, (name,), stated)
        literal = [pieces[index] for index in self.vocabulary[1:]] if parse else []
        self._literal = re.compile("|".join(map(re.escape, literal))) if literal else None
        self.split_again = {
            index: self._without_comma(piece)
            for index, piece in enumerate(pieces)
            if self.published and len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit()
        }

    def _without_comma(self, piece: str) -> list[int]:
        """Split `▁1,000,` as the original does: the digits by themselves, then the comma."""
        ids = self._model.encode(piece[:-1].replace("▁", ""))
        if piece[0] != "▁":  # encoding put a space in front that the piece does not have
            first = self._model.id_to_piece(ids[0]).removeprefix("▁")
            ids = ([self._model.piece_to_id(first)] if first else []) + ids[1:]
        return [*ids, self._model.piece_to_id(",")]

    def encode(self, text: str) -> Encoding:
        """See Tokenizer.encode."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        end = 0
        for match in self._literal.finditer(text) if self._literal else ():
            self._encode_part(text[end : match.start()], end, ids, offsets)
            ids.append(self._model.piece_to_id(match.group()))
            offsets.append(match.span())
            end = match.end()
        self._encode_part(text[end:], end, ids, offsets)
        return _encoding(ids, offsets, self.word_rule)

    def _encode_part(self, text: str, start: int, ids: list[int], offsets: list[tuple[int, int]]) -> None:
        """Append the ids and offsets of a part of a text that begins at `start`."""
        prepared, origin = self._prepare(text)
        mapping: Any = self._model.encode(prepared, return_type="offset_mapping")
        for index, (begin, end) in zip(mapping["ids"], mapping["offsets"], strict=True):
            parts = self.split_again.get(index, [index])
            lengths = [len(self.piece(part).removeprefix("▁")) for part in parts]
            cuts = [begin, *(end - sum(lengths[after:]) for after in range(1, len(parts))), end]
            ids += parts
            offsets += [(start + origin[left], start + _end(origin, left, right)) for left, right in pairwise(cuts)]

    def ids(self, texts: list[str]) -> list[list[int]]:
        """See Tokenizer.ids."""
        if self._literal:
            return [self.encode(text).ids.tolist() for text in texts]
        prepared = [self._prepare(text)[0] for text in texts] if self.published else texts
        encoded = self._model.encode(prepared, num_threads=1)
        if not self.split_again:
            return encoded
        again = self.split_again
        return [
            [part for index in ids for part in again.get(index, (index,))] if not again.keys().isdisjoint(ids) else ids
            for ids in encoded
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer.decode."""
        return "".join(self.piece(index) for index in ids).replace("▁", " ").strip()

    def piece(self, index: int) -> str:
        """See Tokenizer.piece."""
        return self._model.id_to_piece(int(index))

    def _prepare(self, text: str) -> tuple[str, Sequence[int]]:
        """Prepare text as the published models expect it; also where each character, and the end, came from."""
        if not self.published:
            return text, range(len(text) + 1)
        kept: list[str] = []
        origin: list[int] = []
        position = 0
        while position < len(text):
            quotes = text[position : position + 2] in ("``", "''")
            # Python's white space, some of which the library would drop: U+0085, U+001C to U+001F.
            read = " " if text[position].isspace() else text[position]
            for character in '"' if quotes else read if self.keep_accents else unicodedata.normalize("NFKD", read):
                if self.keep_accents or not unicodedata.combining(character):
                    kept.append(character)
                    origin.append(position)
            position += 2 if quotes else 1
        prepared = "".join(kept)
        # All at once, since a Σ becomes ς at the end of a word; decomposed characters keep their length.
        return prepared.lower() if self.lowercase else prepared, [*origin, len(text)]


def _read_wordpiece(files: Mapping[str, bytes], origin: str) -> tuple[tokenizers.Tokenizer, Mapping[str, bytes]]:
    """Build BERT's tokenizer from `vocab.txt`, and state whether it lower-cases beside it.

    `do_lower_case` comes from tokenizer_config.json; without one, a vocabulary with capitals is cased. Words of over
    200 characters become unknown, as in google-research/bert tokenization.py.
    """
    check_lines(files["vocab.txt"], origin)
    lines = files["vocab.txt"].decode("utf-8").removesuffix("\n").split("\n")
    pieces = [line.strip() or line for line in lines]
    if "" in pieces:
        raise InputError(f"{origin} is blank in line {pieces.index('') + 1}: a line is an id, so delete or fill it")
    if len(set(pieces)) != len(pieces):
        twice = next(piece for piece, count in Counter(pieces).items() if count > 1)
        raise InputError(f"{origin} lists {twice!r:.100} twice: one piece a line, each once")
    config = parse_object(files.get(CONFIG, b"{}"), f"{CONFIG} of {origin}")
    capitals = any(piece != piece.lower() for piece in pieces if piece[0] not in "[<")
    lowercase = bool(config.get("do_lower_case", not capitals))
    specials = _find_specials({piece: index for index, piece in enumerate(pieces)}, len(pieces), origin, {})
    model = tokenizers.models.WordPiece(
        vocab={piece: index for index, piece in enumerate(pieces)},
        unk_token=pieces[specials.unk],
        max_input_chars_per_word=200,
        continuing_subword_prefix="##",
    )
    rust = tokenizers.Tokenizer(model)
    rust.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    rust.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    rust.decoder = tokenizers.decoders.WordPiece()
    stated = json.dumps({"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer"}).encode()
    return rust, {"vocab.txt": files["vocab.txt"], "tokenizer_config.json": stated}


def _read_byte_level(files: Mapping[str, bytes], origin: str) -> tokenizers.Tokenizer:
    """Build GPT-2's and RoBERTa's tokenizer from `vocab.json` and `merges.txt`."""
    if "merges.txt" not in files:
        raise InputError(f"{origin} has no merges.txt beside it: byte-level BPE needs both files")
    lines = files["merges.txt"].decode("utf-8").splitlines()
    pairs = (line.partition(" ") for line in lines if line and not line.startswith("#version"))
    merges = [(left, right) for left, _, right in pairs]
    vocabulary = parse_object(files["vocab.json"], origin, LARGE)
    check_pieces(vocabulary, origin)
    rust = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    rust.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = tokenizers.decoders.ByteLevel()
    return rust


def _fast(files: Mapping[str, bytes], origin: str, reading: Reading | None = None) -> FastTokenizer:
    """Build the tokenizer of a `tokenizer.json`, compiled or as it was found."""
    described = parse_object(files[JSON], f"{JSON} of {origin}", LARGE)
    check_tokenizer(described, f"{JSON} of {origin}")
    config = parse_object(files.get(CONFIG, b"{}"), f"{CONFIG} of {origin}")
    rust = _read_json(described, config)
    templates = _templates(rust, config) if "read_as" in config else None
    reading = reading or Reading(config.get("read_as", f"{JSON} as it stands"), tuple(files))
    return FastTokenizer(rust, files, origin, reading, described, config, templates)


def _read_json(described: dict[str, Any], config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Read `tokenizer.json` so that no text can spell one of the model's own special tokens, unless config asks for it.

    Those that are added to the model's vocabulary are declared special, which `encode_special_tokens` then passes over;
    those inside it, which some models match like any piece, get a name that no text has. All other added tokens are
    matched in texts, special or not, unless config says `split_special_tokens`.
    """
    described = dict(described)
    if config.get(_PARSE) is not True:
        model, own = described["model"], _own_names(config)
        vocabulary, split = model["vocab"], bool(config.get("split_special_tokens"))
        inside = {piece for piece, _ in vocabulary} if isinstance(vocabulary, list) else set(vocabulary)
        hide = (own - {model.get("unk_token")}) & inside
        described["added_tokens"] = [
            token | {"special": token["content"] in own or (split and token["special"])}
            for token in described.get("added_tokens", ())
            if token["content"] not in hide
        ]
        if isinstance(vocabulary, list):
            hidden: Any = [[_HIDDEN + piece if piece in hide else piece, score] for piece, score in vocabulary]
        else:
            hidden = {_HIDDEN + piece if piece in hide else piece: index for piece, index in vocabulary.items()}
        described["model"] = model | {"vocab": hidden}
    rust = tokenizers.Tokenizer.from_str(json.dumps(described))
    rust.encode_special_tokens = config.get(_PARSE) is not True
    rust.no_padding()
    rust.no_truncation()
    return rust


def _own_names(config: Mapping[str, Any]) -> set[str]:
    """Name the model's own special tokens: those of the named roles; where one is not stated, its usual names."""
    named = {config[key] for key in NAMED if isinstance(config.get(key), str)}
    for role, names in _SPECIALS.items():
        named |= set(names) if "read_as" not in config or not config.get(f"{role}_token") else set()
    return named - {config.get("mask_token")} if config.get(_PARSE) == _MASK_ONLY else named


def _templates(rust: tokenizers.Tokenizer, config: Mapping[str, Any]) -> tuple["_Framing", "_Framing"]:
    """Return the post-processor's templates of one text and of two; segments are 0 where the model reads none."""
    one = next((text for text in _SAMPLES if rust.encode(text, add_special_tokens=False).ids), "")
    segments = "token_type_ids" in config["model_input_names"]
    found: list[_Framing] = []
    for encoded in (rust.encode(one), rust.encode(one, one)):
        parts: list[tuple[int | str, int]] = []
        for index, sequence, segment in zip(encoded.ids, encoded.sequence_ids, encoded.type_ids, strict=True):
            part = (index if sequence is None else "ab"[sequence], segment if segments else 0)
            parts += [part] if sequence is None or part not in parts else []
        found.append(tuple(parts))
    return found[0], found[1]


_Framing = tuple[tuple[int | str, int], ...]
_SAMPLES = ("a", "1", ".", "A", "中", "the")


_HIDDEN = "\U0010fffe"  # a noncharacter: Unicode promises that text does not use it
_SPECIALS = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


def _find_specials(
    ids: Mapping[str, int],
    size: int,
    origin: str,
    config: Mapping[str, Any],
    single: _Framing = (),
) -> Vocabulary:
    """Find the special tokens by the names in the files, by the template of a text, or by their usual names.

    Raises InputError where one is missing; a byte-level vocabulary needs no unknown piece, and gives the padding's.
    """
    found: dict[str, int] = {}
    places = [part == "a" for part, _ in single]
    around = [part for part, _ in single if isinstance(part, int)]
    if around:
        found["cls"] = around[0] if not places[0] else around[-1]
        found["sep"] = around[-1] if not places[0] else around[0]
    for role, names in _SPECIALS.items():
        stated = config.get(f"{role}_token")
        present = [name for name in ((stated, *names) if isinstance(stated, str) else names) if name in ids]
        if role in found or (role == "unk" and not present and "read_as" in config):
            continue
        if not present and "read_as" in config:
            raise InputError(
                f"{origin}: its files name no {role} token: put {role}_token into {CONFIG}, as its vocabulary spells it"
            )
        if not present:
            raise InputError(
                f"the vocabulary of {origin} has no {' nor '.join(names)}, which pre-training needs: add it, or train "
                "a vocabulary with `bertjax tokenizer train`"
            )
        found[role] = ids[present[0]]
    found.setdefault("unk", found["pad"])
    beyond = next((role for role, index in found.items() if index >= size), "")
    if beyond:
        raise InputError(f"{origin}: its {beyond} token has the id {found[beyond]:,}, but the last piece {size - 1:,}")
    return Vocabulary(size, **found)


def _in_roles(framing: _Framing, v: Vocabulary, origin: str) -> Template:
    """Name the special tokens of a template by their roles. Raises InputError for one that is neither."""
    roles = {v.sep: "sep", v.cls: "cls", "a": "a", "b": "b"}
    for part, _ in framing:
        if part not in roles:
            raise InputError(
                f"{origin}: the post-processor of {JSON} puts id {part} around a text, besides {v.cls} (cls) and "
                f"{v.sep} (sep): more than two kinds of special tokens around a text are not supported"
            )
    return tuple((roles[part], segment) for part, segment in framing)


def _end(origin: Sequence[int], left: int, right: int) -> int:
    """Find where the text of prepared characters left..right ends: where the next one that came from later begins."""
    return next(place for place in origin[right:] if place > origin[right - 1]) if right > left else origin[left]


def _encoding(ids: list[int], offsets: list[tuple[int, int]], word_rule: WordRule) -> Encoding:
    ids_n = np.array(ids, np.int32)
    return Encoding(ids_n, np.array(offsets, np.int32).reshape(-1, 2), word_rule(ids_n))
