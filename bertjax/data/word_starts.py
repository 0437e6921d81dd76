"""Decide where words begin among the pieces of a tokenizer, by one rule for WordPiece, BPE and SentencePiece.

A word begins where the vocabulary marks it (`Ġ`, `▁`, no `##`, after `</w>`) and at ASCII punctuation. In scripts that
are written without spaces each piece is a word, and so is a piece that follows them: BERT makes each ideograph a word
(google-research/bert tokenization.py), and for kana, Thai, Lao, Khmer, Burmese or Tibetan a piece is the smallest unit
of a vocabulary. Without that rule a whole sentence would be one word, too long to be masked.
"""

import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RANGES = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x1AAF), (0x1B00, 0x1B7F), (0x2E80, 0xA4CF),
    (0xA980, 0xA9DF), (0xAA60, 0xAADF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF), (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)  # fmt: skip
"""Unicode blocks of scripts without spaces: Thai, Lao, Tibetan; Burmese; Khmer; Tai; Balinese; Han, kana, bopomofo, Yi
and their punctuation; Javanese; more Burmese and Tai; compatibility ideographs, vertical and full-width forms."""

_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF = {chr(byte): byte for byte in _PRINTED} | {
    chr(256 + number): byte for number, byte in enumerate(byte for byte in range(256) if byte not in _PRINTED)
}
"""The byte behind each character of byte-level BPE (openai/gpt-2 encoder.py, bytes_to_unicode)."""


@dataclass(frozen=True, eq=False)
class WordRule:
    """Where words begin: starts_V, pieces that begin one; ends_V, pieces after which one begins (bool [V])."""

    starts_V: np.ndarray
    ends_V: np.ndarray

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Return for each of ids [n] whether a word begins there, the first always: bool [n]."""
        found = self.starts_V[ids]
        found[1:] |= self.ends_V[ids[:-1]]
        found[:1] = True
        return found


def word_rule(pieces: Sequence[str], described: dict[str, Any] | None) -> WordRule:
    """Build the rule of a vocabulary. described: its tokenizer.json; None for a SentencePiece model."""
    model = described["model"] if described else {}
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    if described and '"ByteLevel"' in _steps(described):
        return _rule(pieces, lambda piece: piece.startswith("Ġ"), lambda piece: False, _bytes_of)
    if model.get("type") == "WordPiece" or prefix:
        return _rule(
            pieces,
            lambda piece: not piece.startswith(prefix),
            lambda piece: False,
            lambda piece: piece.removeprefix(prefix).encode(errors="replace"),
        )
    if suffix:
        return _rule(
            pieces,
            lambda piece: False,
            lambda piece: piece.endswith(suffix),
            lambda piece: piece.removesuffix(suffix).encode(errors="replace"),
        )
    marked = not described or any(piece.startswith(("▁", "Ġ")) for piece in pieces)
    return _rule(
        pieces,
        lambda piece: not marked or piece.startswith(("▁", "Ġ")),
        lambda piece: False,
        lambda piece: _fallen_back(piece.removeprefix("▁")),
    )


def _steps(described: dict[str, Any]) -> str:
    return json.dumps([described.get("pre_tokenizer"), described.get("decoder")])


def _rule(
    pieces: Sequence[str],
    starts: Callable[[str], bool],
    ends: Callable[[str], bool],
    spelling: Callable[[str], bytes],
) -> WordRule:
    """spelling: the UTF-8 bytes of a piece without its marks; they may begin or end within a character."""
    spelled = [spelling(piece) for piece in pieces]
    return WordRule(
        np.array(
            [
                starts(piece) or _is_punctuation(text) or _begins_without_spaces(text)
                for piece, text in zip(pieces, spelled, strict=True)
            ],
            bool,
        ),
        np.array(
            [ends(piece) or _ends_without_spaces(text) for piece, text in zip(pieces, spelled, strict=True)], bool
        ),
    )


def _bytes_of(piece: str) -> bytes:
    if all(character in _BYTE_OF for character in piece):
        return bytes(_BYTE_OF[character] for character in piece).removeprefix(b" ")
    return piece.encode(errors="replace")  # an added token


def _fallen_back(piece: str) -> bytes:
    """Return the byte of a piece `<0xE4>`, or the text of any other."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            pass
    return piece.encode(errors="replace")


_PUNCTUATION = frozenset(string.punctuation.encode())


def _is_punctuation(text: bytes) -> bool:
    return all(byte in _PUNCTUATION for byte in text)


def _begins_without_spaces(text: bytes) -> bool:
    """Return whether the first character is of such a script; for a truncated one, whether all its completions are."""
    if not text or text[0] < 0xE0:
        return False
    size = 3 if text[0] < 0xF0 else 4
    first = text[:size]
    lowest, highest = (first + bytes([filler]) * (size - len(first)) for filler in (0x80, 0xBF))
    return _in_ranges(lowest) and _in_ranges(highest)


def _ends_without_spaces(text: bytes) -> bool:
    """Return whether the last character is complete and of such a script."""
    return any(len(text) >= size and text[-size] >= 0xE0 and _in_ranges(text[-size:]) for size in (3, 4))


def _in_ranges(character: bytes) -> bool:
    try:
        point = ord(character.decode())
    except (UnicodeDecodeError, TypeError):
        return False
    return any(first <= point <= last for first, last in _RANGES)
