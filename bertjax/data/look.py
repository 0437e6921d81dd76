"""Show what a tokenizer makes of a text: its pieces, their ids and places, what comes back, what is unknown to it."""

import unicodedata
from typing import Any, NamedTuple

from bertjax.data.coverage import coverage
from bertjax.data.templates import Templates, framed
from bertjax.data.tokenizer import Tokenizer


class Piece(NamedTuple):
    """One token of a row: its spelling, id, mask and segment, where it stands in the text, whether it begins a word."""

    piece: str
    id: int
    mask: int
    segment: int
    start: int | None  # None at specials, which are not of the text
    end: int | None
    starts_word: bool


class Look(NamedTuple):
    """What a tokenizer makes of a text.

    decoded: the text of the ids. round_trip: `exact`, `alike` but for case, accents and white space, or `differs`.
    scripts: words, pieces per word and unknown words of each script.
    """

    text: str
    tokens: list[Piece]
    decoded: str
    round_trip: str
    scripts: dict[str, dict[str, float]]
    warnings: list[str]


def look(tokenizer: Tokenizer, text: str, templates: Templates) -> Look:
    """Encode a text as a row of its own, specials included, and measure it."""
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
    return Look(text, tokens, decoded, _compared(text, decoded), scripts, list(found.warnings().values()))


def summary(tokenizer: Tokenizer) -> dict[str, Any]:
    """Describe a tokenizer: its size and its specials."""
    v = tokenizer.vocabulary
    return {"ids": v.size} | {role: f"{tokenizer.piece(i)} {i}" for role, i in zip(v._fields[1:], v[1:], strict=True)}


def _compared(text: str, decoded: str) -> str:
    if decoded == text:
        return "exact"
    return "alike" if _bare(decoded) == _bare(text) else "differs"


def _bare(text: str) -> str:
    kept = (x for x in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(x) and not x.isspace())
    return "".join(kept)
