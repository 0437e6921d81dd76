"""Measure how well a vocabulary covers texts: what becomes unknown, and what falls apart into letters, by script.

A cased, accented or foreign text under a vocabulary that was not made for it still gives ids, and a model still gives
answers: worthless ones, without a word. So every fine-tuning and every prediction looks here first.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import gcd
from typing import TypeVar

import numpy as np

from bertjax.data.tokenizer import Tokenizer
from bertjax.data.words import words_by_script

T = TypeVar("T")

MOST_UNKNOWN = 0.01
"""Of all words; fewer, as the Greek ones of an English encyclopedia, are what every vocabulary lacks."""

MOST_PIECES_PER_LETTER = 0.75
"""Over all words of two letters or more: in ordinary English it is a quarter, where words fall into letters near 1."""

MOST_PIECES_PER_IDEOGRAPH = 1.5
"""An ideograph is a word, so one piece is what it should be; bytes are two or three."""

LEAST_SHATTERED = 2
"""Words of a script that make it worth a warning, however much else there is: one alone may be a stray."""

_TOGETHER = 256  # words that are encoded at a time: one long text takes no longer than its lines
_WITHOUT_SPACES = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"}


@dataclass
class Script:
    """Count of one script: words, their pieces, those with an unknown piece.

    letters, pieces_of_letters: of the words that are judged, all of letters and known, two or more of them or an
    ideograph. shattered: those that are cut into single letters.
    """

    most: float = MOST_PIECES_PER_LETTER
    words: int = 0
    pieces: int = 0
    unknown: int = 0
    letters: int = 0
    pieces_of_letters: int = 0
    shattered: Counter[str] = field(default_factory=Counter)

    @property
    def shatters(self) -> bool:
        """Tell whether its words fall into little more than letters, all of them taken together."""
        return self.pieces_of_letters > self.most * self.letters


@dataclass
class Coverage:
    """What a vocabulary makes of texts: counts by script, and the words that it does not know."""

    scripts: dict[str, Script] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def words(self) -> int:
        """All words."""
        return sum(script.words for script in self.scripts.values())

    def warnings(self) -> dict[str, str]:
        """Say what is wrong, a sentence for unknown words and one for each script: none where there is nothing.

        A script is named where its words shatter, taken together, and two of them do or they are over 1% of all: its
        share does not matter, since what the model reads of them is worth nothing; a single one among many does not.
        """
        said = {}
        unknown = sum(script.unknown for script in self.scripts.values())
        if unknown > MOST_UNKNOWN * self.words:
            said["unknown"] = (
                f"{unknown:,} of {self.words:,} words ({unknown / self.words:.1%}) become unknown to this vocabulary: "
                f"{_first(self.unknown)}"
            )
        for name, script in self.scripts.items():
            many = script.shattered.total() >= LEAST_SHATTERED or script.words > MOST_UNKNOWN * self.words
            if script.shatters and many:
                said[name] = (
                    f"this vocabulary cuts {name if name == 'CJK' else name.capitalize()} words into single letters or "
                    f"less, {script.pieces_of_letters:,} pieces for {script.letters:,} letters: "
                    f"{_first(script.shattered)} ({script.words:,} of {self.words:,} words)"
                )
        return said


def coverage(tokenizer: Tokenizer, texts: Iterable[str], *, most_words: int = 20_000) -> Coverage:
    """Look at the first `most_words` words of texts and encode no more, however long or many the texts are.

    20,000 words, enough to see what is one in a thousand, take a second or two of one core.
    """
    found = Coverage()
    left = most_words
    for text in texts:
        words, encoded = words_by_script(text), 0
        while some := list(islice(words, min(left, _TOGETHER))):
            end = some[-1][2]
            _count(tokenizer, text[encoded:end], [(script, b - encoded, e - encoded) for script, b, e in some], found)
            left, encoded = left - len(some), end
        if not left:
            break
    return found


def evenly(things: Sequence[T]) -> Iterator[T]:
    """Yield all of them in an order of which any beginning is spread evenly over the whole.

    So whoever stops early has seen a data set that is sorted, or joined from several, from its start to its end.
    """
    step = max(1, round(0.618 * len(things)))  # the golden section: its multiples leave no large gaps
    while gcd(step, len(things)) > 1:
        step += 1
    for number in range(len(things)):
        yield things[number * step % len(things)]


def _count(tokenizer: Tokenizer, text: str, words: Sequence[tuple[str, int, int]], found: Coverage) -> None:
    encoding = tokenizer.encode(text)
    real = encoding.offsets[:, 0] < encoding.offsets[:, 1]
    begins, ends = encoding.offsets[real, 0], encoding.offsets[real, 1]
    unknown_before = np.concatenate([[0], np.cumsum(encoding.ids[real] == tokenizer.vocabulary.unk)])
    firsts = np.searchsorted(ends, [begin for _, begin, _ in words], "right")
    lasts = np.maximum(firsts, np.searchsorted(begins, [end for _, _, end in words], "left"))
    pieces_of = (lasts - firsts).tolist()
    is_unknown = (unknown_before[lasts] > unknown_before[firsts]).tolist()
    for (script, begin, end), pieces, unknown in zip(words, pieces_of, is_unknown, strict=True):
        word = text[begin:end]
        letters = _letters(word)
        most = MOST_PIECES_PER_IDEOGRAPH if script == "CJK" else MOST_PIECES_PER_LETTER
        counted = found.scripts.setdefault(script, Script(most))
        # Where no space tells words apart, a run of letters counts as so many words.
        many = max(1, letters) if script in _WITHOUT_SPACES else 1
        counted.words += many
        counted.pieces += pieces
        if unknown:
            counted.unknown += many
            found.unknown[word] += 1
        elif letters > 1 or (letters and script == "CJK"):
            counted.letters += letters
            counted.pieces_of_letters += pieces
            counted.shattered[word] += pieces > most * letters


def _letters(word: str) -> int:
    """Count what a vocabulary of single letters would have for a word; none where digits or signs are in it.

    Vowel signs that take room are letters, marks above and below are not: many tokenizers strip those. A syllable of
    Hangul is its two or three letters.
    """
    if word.isascii():
        return len(word) if word.isalpha() else 0
    kinds = [unicodedata.category(character) for character in unicodedata.normalize("NFD", word)]
    return sum(kind[0] == "L" or kind == "Mc" for kind in kinds) if all(kind[0] in "LMC" for kind in kinds) else 0


def _first(words: Counter[str], most: int = 5, longest: int = 24) -> str:
    chosen = [word for word, count in words.most_common(most) if count]
    shown = [word if len(word) <= longest else word[:longest] + "…" for word in chosen]
    return ", ".join(shown) + (", …" if sum(count > 0 for count in words.values()) > most else "")
