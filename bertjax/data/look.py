"""Show how a tokenizer reads: its files and keys, and the pieces, ids, offsets and unknown words of a text."""

import unicodedata
from typing import Any, NamedTuple

from bertjax.data.coverage import coverage
from bertjax.data.templates import Templates, framed
from bertjax.data.tokenizer import Tokenizer


class Piece(NamedTuple):
    """One token of a row: its spelling, id, attention mask, segment, offsets, and whether it begins a word."""

    piece: str
    id: int
    mask: int
    segment: int
    start: int | None  # None for special tokens, which are not in the text
    end: int | None
    starts_word: bool


class Look(NamedTuple):
    """The encoding of a text and its quality.

    decoded: the text of the ids. round_trip: `exact`, `alike` but for case, accents and white space, or `differs`.
    scripts: words, pieces per word and the share of unknown words of each script. reading: how the tokenizer reads.
    """

    text: str
    tokens: list[Piece]
    decoded: str
    round_trip: str
    scripts: dict[str, dict[str, float]]
    warnings: list[str]
    reading: dict[str, Any]


def look(tokenizer: Tokenizer, text: str, templates: Templates) -> Look:
    """Encode a text as a row with its special tokens, and measure it."""
    encoding = tokenizer.encode(text)
    row = framed(templates.text, tokenizer.vocabulary, encoding.ids.tolist())
    tokens = []
    for place, (index, segment) in enumerate(zip(row.tokens.tolist(), row.types.tolist(), strict=True)):
        inside = 0 <= place - row.a < len(encoding.ids)
        start, end = encoding.offsets[place - row.a].tolist() if inside else (None, None)
        starts = bool(encoding.word_starts[place - row.a]) if inside else False
        tokens.append(Piece(tokenizer.piece(index), index, 1, segment, start, end, starts))
    decoded = tokenizer.decode(encoding.ids.tolist())
    found = coverage(tokenizer, [text])
    scripts = {
        name.lower(): {
            "words": script.words,
            "pieces_per_word": round(script.pieces / script.words, 2),
            "unknown": round(script.unknown / script.words, 4),
        }
        for name, script in found.scripts.items()
    }
    warnings = list(found.warnings().values())
    return Look(text, tokens, decoded, _compared(text, decoded), scripts, warnings, describe(tokenizer))


def summary(tokenizer: Tokenizer, templates: Templates) -> dict[str, Any]:
    """Return the size of a tokenizer, its special tokens and templates, and how it reads."""
    v = tokenizer.vocabulary
    found: dict[str, Any] = {"ids": v.size}
    found |= {role: f"{tokenizer.piece(i)} {i}" for role, i in zip(v._fields[1:], v[1:], strict=True)}
    for name in ("text", "pair"):
        found[name] = " ".join(f"{part}:{segment}" for part, segment in getattr(templates, name))
    return found | describe(tokenizer)


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return how a tokenizer reads: the rules that hold, the files that were read, the keys that were obeyed, notes."""
    reading = tokenizer.reading
    described = {"read_as": reading.read_as, "files": list(reading.files), "keys": dict(reading.keys)}
    return described | {"unread": list(reading.unread), "notes": list(reading.notes)}


def _compared(text: str, decoded: str) -> str:
    if decoded == text:
        return "exact"
    return "alike" if _bare(decoded) == _bare(text) else "differs"


def _bare(text: str) -> str:
    kept = (x for x in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(x) and not x.isspace())
    return "".join(kept)
