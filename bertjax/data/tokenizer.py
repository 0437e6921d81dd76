"""Read any tokenizer of the field behind one small interface.

WordPiece (`vocab.txt`), byte-level BPE (`vocab.json` with `merges.txt`) and `tokenizer.json` run on the `tokenizers`
library, `.model` files on `sentencepiece`. Text is text: a literal "[MASK]" in it is punctuation and letters, never the
special token; special tokens are added by id.
"""

import hashlib
import json
import string
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import sentencepiece
import tokenizers

from bertjax.errors import InputError


class Vocabulary(NamedTuple):
    """Tell what models and corruption need of a tokenizer: its size and the ids of its special tokens."""

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
    """What the rest of the package needs of a tokenizer."""

    vocabulary: Vocabulary
    starts_word: np.ndarray  # bool [V]: does this piece begin a word
    files: Mapping[str, bytes]  # what it was read from, and what `save` writes

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


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer from a file (`vocab.txt`, `vocab.json`, `tokenizer.json`, `*.model`) or a folder with one.

    Raises InputError where there is none, or where it lacks a special token that pre-training needs.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt", "vocab.json") if (path / name).is_file()]
        found += sorted(path.glob("*.model"))
        if not found:
            raise InputError(f"{path} holds no tokenizer: no tokenizer.json, vocab.txt, vocab.json or *.model")
        path = found[0]
    if not path.is_file():
        raise InputError(f"no tokenizer at {path}: give a vocab.txt, vocab.json, tokenizer.json, *.model or a folder")
    files = {path.name: path.read_bytes()}
    for sibling in ("merges.txt",) if path.name == "vocab.json" else ("tokenizer_config.json",):
        if (path.parent / sibling).is_file():
            files[sibling] = (path.parent / sibling).read_bytes()
    return tokenizer_from_files(files, origin=str(path))


def tokenizer_from_files(files: Mapping[str, bytes], *, origin: str) -> Tokenizer:
    """Build a tokenizer from the contents of its files, as a checkpoint carries them; `origin` names it in errors."""
    try:
        if any(name.endswith(".model") for name in files):
            return SentencePieceTokenizer(files, origin)
        if "tokenizer.json" in files:
            return FastTokenizer(_read_json(files), files, origin)
        if "vocab.json" in files:
            return FastTokenizer(_read_byte_level(files, origin), files, origin)
        if "vocab.txt" in files:
            rust, files = _read_wordpiece(files, origin)
            return FastTokenizer(rust, files, origin)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more exact
        raise InputError(f"{origin} is damaged or not what its name says: {error}") from error
    raise InputError(f"{origin}: none of {', '.join(files)} is a tokenizer")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files into `folder`; `load_tokenizer(folder)` reads the same tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)


def fingerprint(tokenizer: Tokenizer) -> str:
    """Identify a tokenizer by the SHA-256 of its files: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, content in sorted(tokenizer.files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def same_tokenizer(a: Tokenizer, b: Tokenizer) -> bool:
    """Tell whether two tokenizers are one: by their files, or else by all their pieces and what they make of a text.

    A `vocab.txt` and the `tokenizer.json` made of it are the same tokenizer in other files.
    """
    if fingerprint(a) == fingerprint(b):
        return True
    if a.vocabulary != b.vocabulary:
        return False
    pieces = all(a.piece(index) == b.piece(index) for index in range(a.vocabulary.size))
    return pieces and a.ids([_PROBE]) == b.ids([_PROBE])


_PROBE = "The Quick-Brown FÖX cost 1,234.50 (or £9), didn't it? ``Naïve'' 東京 ﬁne … Straße\tİstanbul  end."


class FastTokenizer:
    """Run WordPiece, byte-level BPE or any `tokenizer.json` on the `tokenizers` library."""

    def __init__(self, rust: tokenizers.Tokenizer, files: Mapping[str, bytes], origin: str) -> None:
        self.library = rust  # its own type, for who wants more of it
        self.files = files
        if sorted(rust.get_vocab().values()) != list(range(rust.get_vocab_size())):
            raise InputError(f"{origin}: its ids are not 0 to {rust.get_vocab_size() - 1}, each once: it is damaged")
        pieces = [self.piece(index) for index in range(rust.get_vocab_size())]
        self.vocabulary = _find_specials({piece: index for index, piece in enumerate(pieces)}, len(pieces), origin)
        model = json.loads(rust.to_str())["model"]
        continuation = model.get("continuing_subword_prefix") if model["type"] == "WordPiece" else None
        self.starts_word = np.array(
            [
                _is_punctuation(piece)
                or (not piece.startswith(continuation) if continuation else piece.startswith(("Ġ", "▁")))
                for piece in pieces
            ]
        )

    def encode(self, text: str) -> Encoding:
        """See Tokenizer.encode."""
        encoded = self.library.encode(text, add_special_tokens=False)
        return _encoding(encoded.ids, encoded.offsets, self.starts_word)

    def ids(self, texts: list[str]) -> list[list[int]]:
        """See Tokenizer.ids."""
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

    def __init__(self, files: Mapping[str, bytes], origin: str) -> None:
        content = next(content for name, content in files.items() if name.endswith(".model"))
        self.files: Mapping[str, bytes] = {name: x for name, x in files.items() if name.endswith(".model")}
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise InputError(f"{origin} is not a SentencePiece model") from error
        pieces = [self._model.id_to_piece(index) for index in range(self._model.get_piece_size())]
        self.vocabulary = _find_specials({piece: index for index, piece in enumerate(pieces)}, len(pieces), origin)
        self.starts_word = np.array([piece.startswith("▁") or _is_punctuation(piece) for piece in pieces])
        self.published = {"£", "€", "–"} <= set(pieces[:20])
        self.lowercase = all(piece == piece.lower() for piece in pieces[20:])
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
        prepared, origin = self._prepare(text)
        mapping: Any = self._model.encode(prepared, return_type="offset_mapping")
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for index, (begin, end) in zip(mapping["ids"], mapping["offsets"], strict=True):
            parts = self.split_again.get(index, [index])
            lengths = [len(self.piece(part).removeprefix("▁")) for part in parts]
            cuts = [begin, *(end - sum(lengths[after:]) for after in range(1, len(parts))), end]
            ids += parts
            offsets += [(origin[left], _end(origin, left, right)) for left, right in pairwise(cuts)]
        return _encoding(ids, offsets, self.starts_word)

    def ids(self, texts: list[str]) -> list[list[int]]:
        """See Tokenizer.ids."""
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
            for character in '"' if quotes else unicodedata.normalize("NFKD", read):
                if not unicodedata.combining(character):
                    kept.append(character)
                    origin.append(position)
            position += 2 if quotes else 1
        prepared = "".join(kept)
        # All at once, since a Σ becomes ς at the end of a word; what was taken apart keeps its length.
        return prepared.lower() if self.lowercase else prepared, [*origin, len(text)]


def _read_wordpiece(files: Mapping[str, bytes], origin: str) -> tuple[tokenizers.Tokenizer, Mapping[str, bytes]]:
    """Build BERT's tokenizer from `vocab.txt`, and state whether it lower-cases beside it.

    `do_lower_case` comes from tokenizer_config.json; without one, a vocabulary with capitals is cased. Words of over
    200 characters become unknown, as in google-research/bert tokenization.py.
    """
    lines = files["vocab.txt"].decode("utf-8").removesuffix("\n").split("\n")
    pieces = [line.strip() or line for line in lines]
    if "" in pieces:
        raise InputError(f"{origin} is blank in line {pieces.index('') + 1}: a line is an id, so delete or fill it")
    if len(set(pieces)) != len(pieces):
        twice = next(piece for index, piece in enumerate(pieces) if piece in pieces[:index])
        raise InputError(f"{origin} lists {twice!r} twice: one piece a line, each once")
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    capitals = any(piece != piece.lower() for piece in pieces if piece[0] not in "[<")
    lowercase = bool(config.get("do_lower_case", not capitals))
    specials = _find_specials({piece: index for index, piece in enumerate(pieces)}, len(pieces), origin)
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
    rust = tokenizers.Tokenizer(tokenizers.models.BPE(json.loads(files["vocab.json"]), merges))
    rust.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = tokenizers.decoders.ByteLevel()
    return rust


def _read_json(files: Mapping[str, bytes]) -> tokenizers.Tokenizer:
    """Read `tokenizer.json` so that no text can spell a special token.

    Those that are added to the model's vocabulary are declared special, which `encode_special_tokens` then passes over;
    those inside it, which some models match like any piece, get a name that no text has.
    """
    described = json.loads(files["tokenizer.json"])
    vocabulary = described["model"]["vocab"]
    inside = {piece for piece, _ in vocabulary} if isinstance(vocabulary, list) else set(vocabulary)
    names = {name for names in _SPECIALS.values() for name in names} - {described["model"].get("unk_token")}
    added = [token for token in described.get("added_tokens", ()) if token["content"] not in names & inside]
    described["added_tokens"] = [token | {"special": token["special"] or token["content"] in names} for token in added]
    if isinstance(vocabulary, list):
        hidden: Any = [[_HIDDEN + piece if piece in names else piece, score] for piece, score in vocabulary]
    else:
        hidden = {_HIDDEN + piece if piece in names else piece: index for piece, index in vocabulary.items()}
    described["model"]["vocab"] = hidden
    rust = tokenizers.Tokenizer.from_str(json.dumps(described))
    rust.encode_special_tokens = True
    rust.no_padding()
    rust.no_truncation()
    return rust


_HIDDEN = "\U0010fffe"  # a noncharacter: Unicode promises that text does not use it
_SPECIALS = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


def _find_specials(ids: Mapping[str, int], size: int, origin: str) -> Vocabulary:
    found = {}
    for role, names in _SPECIALS.items():
        present = [name for name in names if name in ids]
        if not present:
            raise InputError(
                f"the vocabulary of {origin} has no {' nor '.join(names)}, which pre-training needs: add it, or train "
                "a vocabulary with `bertjax tokenizer train`"
            )
        found[role] = ids[present[0]]
    return Vocabulary(size, **found)


def _end(origin: Sequence[int], left: int, right: int) -> int:
    """Find where the text of prepared characters left..right ends: where the next one that came from later begins."""
    return next(place for place in origin[right:] if place > origin[right - 1]) if right > left else origin[left]


def _is_punctuation(piece: str) -> bool:
    return all(character in string.punctuation for character in piece)


def _encoding(ids: list[int], offsets: list[tuple[int, int]], starts_word: np.ndarray) -> Encoding:
    ids_n = np.array(ids, np.int32)
    word_starts = starts_word[ids_n] if ids else np.zeros(0, bool)
    word_starts[:1] = True
    return Encoding(ids_n, np.array(offsets, np.int32).reshape(-1, 2), word_starts)
