"""Measure how well a vocabulary covers texts, by script: words mapped to the unknown token, or split into characters.

With a vocabulary trained on other texts, a cased, accented or foreign text still has ids, and a model predicts from
them without an error, but uselessly. So every fine-tuning and every prediction checks the coverage first.
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
"""Fraction of all words; every vocabulary lacks some, such as the Greek ones of an English encyclopedia."""

MOST_PIECES_PER_LETTER = 0.75
"""Over all words of two letters or more: about 0.25 in ordinary English, near 1 if words are split into letters."""

MOST_PIECES_PER_IDEOGRAPH = 1.5
"""An ideograph is a word, which should be one piece; as bytes it is two or three."""

LEAST_SHATTERED = 2
"""Number of split words of a script that justifies a warning however long the texts are; one may be a stray."""

_WORDS_AT_A_TIME = 256  # words encoded at a time, so that one long text takes no longer than its lines would
_WITHOUT_SPACES = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"}


@dataclass
class Script:
    """Counts of one script: words, their pieces, and words with an unknown piece.

    letters, pieces_of_letters: of the words in the comparison: known, all letters, and two or more letters or an
    ideograph. shattered: the words of over `most` pieces per letter.
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
        """Whether its words, all taken together, are split into pieces of little more than a letter."""
        return self.pieces_of_letters > self.most * self.letters


@dataclass
class Coverage:
    """The coverage of texts by a vocabulary: counts by script, and the unknown words."""

    scripts: dict[str, Script] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def words(self) -> int:
        """Number of words in all scripts."""
        return sum(script.words for script in self.scripts.values())

    def warnings(self) -> dict[str, str]:
        """Return warnings by kind: `unknown` for unknown words, and the name of each script whose words are split.

        A script is reported if its words shatter, taken together, and two of them do or they are over 1% of all words.
        Its share does not matter otherwise, since the model reads nothing useful from it; a single stray word is not
        reported.
        """
        warnings = {}
        unknown = sum(script.unknown for script in self.scripts.values())
        if unknown > MOST_UNKNOWN * self.words:
            warnings["unknown"] = (
                f"{unknown:,} of {self.words:,} words ({unknown / self.words:.1%}) are unknown to this vocabulary: "
                f"{_first(self.unknown)}"
            )
        for name, script in self.scripts.items():
            many = script.shattered.total() >= LEAST_SHATTERED or script.words > MOST_UNKNOWN * self.words
            if script.shatters and many:
                warnings[name] = (
                    f"this vocabulary splits {name if name == 'CJK' else name.capitalize()} words into letters or "
                    f"less, {script.pieces_of_letters:,} pieces for {script.letters:,} letters: "
                    f"{_first(script.shattered)} ({script.words:,} of {self.words:,} words)"
                )
        return warnings


def coverage(tokenizer: Tokenizer, texts: Iterable[str], *, most_words: int = 20_000) -> Coverage:
    """Measure the first `most_words` words of texts; no more are encoded, however long or many the texts are.

    20,000 words, enough to detect a defect of one word in a thousand, take a second or two on one core.
    """
    found = Coverage()
    left = most_words
    for text in texts:
        words, encoded = words_by_script(text), 0
        while some := list(islice(words, min(left, _WORDS_AT_A_TIME))):
            end = some[-1][2]
            _count(tokenizer, text[encoded:end], [(script, b - encoded, e - encoded) for script, b, e in some], found)
            left, encoded = left - len(some), end
        if not left:
            break
    return found


def evenly(things: Sequence[T]) -> Iterator[T]:
    """Yield all items in an order of which any prefix is spread evenly over the sequence.

    So a sample of a data set that is sorted, or concatenated from several, covers it from start to end.
    """
    step = max(1, round(0.618 * len(things)))  # the golden ratio, whose multiples leave no large gaps
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
        # Without spaces between words, each letter of a run counts as a word.
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
    """Count the letters of a word, 0 if it contains digits or symbols.

    Spacing vowel signs are letters, marks above and below are not: many tokenizers strip those. A syllable of Hangul
    is two or three letters.
    """
    if word.isascii():
        return len(word) if word.isalpha() else 0
    kinds = [unicodedata.category(character) for character in unicodedata.normalize("NFD", word)]
    return sum(kind[0] == "L" or kind == "Mc" for kind in kinds) if all(kind[0] in "LMC" for kind in kinds) else 0


def _first(words: Counter[str], most: int = 5, longest: int = 24) -> str:
    chosen = [word for word, count in words.most_common(most) if count]
    shown = [word if len(word) <= longest else word[:longest] + "…" for word in chosen]
    return ", ".join(shown) + (", …" if sum(count > 0 for count in words.values()) > most else "")
