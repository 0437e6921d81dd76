"""Measure how well a vocabulary covers texts: what becomes unknown, and what falls apart into letters, by script.

A cased, accented or foreign text under a vocabulary that was not made for it still gives ids, and a model still gives
answers: worthless ones, without a word. So every fine-tuning and every prediction looks here first.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from bertjax.data.tokenizer import Tokenizer

MOST_UNKNOWN = 0.01
"""Of all words; fewer, as the Greek ones of an English encyclopedia, are what every vocabulary lacks."""

MOST_PIECES_PER_LETTER = 0.6
"""Of words of four letters or more: in ordinary English it is a quarter, where words fall into letters it is near 1."""

_SHORTEST = 4
_WITHOUT_SPACES = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"}
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass
class Script:
    """Count of one script: words, their pieces, those with an unknown piece; letters and pieces of the longer words."""

    words: int = 0
    pieces: int = 0
    unknown: int = 0
    letters: int = 0
    pieces_of_letters: int = 0
    shattered: Counter[str] = field(default_factory=Counter)

    @property
    def shatters(self) -> bool:
        """Tell whether its longer words fall into little more than letters."""
        return self.letters > 0 and self.pieces_of_letters > MOST_PIECES_PER_LETTER * self.letters


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
        """Say what is wrong, a sentence for unknown words and one for each script: none where there is nothing."""
        said = {}
        unknown = sum(script.unknown for script in self.scripts.values())
        if unknown > MOST_UNKNOWN * self.words:
            said["unknown"] = (
                f"{unknown:,} of {self.words:,} words ({unknown / self.words:.1%}) become unknown to this vocabulary: "
                f"{_first(self.unknown)}"
            )
        for name, script in self.scripts.items():
            if script.shatters and script.words > MOST_UNKNOWN * self.words:
                said[name] = (
                    f"this vocabulary cuts {name.capitalize()} words into single letters, {script.pieces_of_letters:,} "
                    f"pieces for {script.letters:,} letters: {_first(script.shattered)}"
                )
        return said


def coverage(tokenizer: Tokenizer, texts: Iterable[str], *, most_words: int = 20_000) -> Coverage:
    """Look at texts until `most_words` words have been seen."""
    found = Coverage()
    for text in texts:
        if found.words >= most_words:
            break
        _count(tokenizer, text, found)
    return found


def _count(tokenizer: Tokenizer, text: str, found: Coverage) -> None:
    encoding = tokenizer.encode(text)
    begins, ends = encoding.offsets[:, 0], encoding.offsets[:, 1]
    is_unknown = encoding.ids == tokenizer.vocabulary.unk
    for script, begin, end in _words(text):
        word = text[begin:end]
        here = (begins < end) & (ends > begin)
        counted = found.scripts.setdefault(script, Script())
        pieces, unknown = int(here.sum()), bool(np.any(is_unknown & here))
        counted.words += 1
        counted.pieces += pieces
        counted.unknown += unknown
        found.unknown[word] += unknown
        if not unknown and len(word) >= _SHORTEST and script != "NUMBER":
            counted.letters += len(word)
            counted.pieces_of_letters += pieces
            if pieces > MOST_PIECES_PER_LETTER * len(word):
                counted.shattered[word] += 1


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield words as (script, begin, end): runs of letters, single ideographs, symbols; punctuation is none."""
    for match in _WORD.finditer(text):
        script = script_of(match.group())
        if script in _WITHOUT_SPACES:
            yield from ((script, place, place + 1) for place in range(match.start(), match.end()))
        elif script:
            yield script, match.start(), match.end()


def script_of(word: str) -> str:
    """Name the script of a word's first letter, as Unicode does; NUMBER, SYMBOL, or nothing for punctuation."""
    for character in word:
        kind = unicodedata.category(character)[0]
        if kind == "L":
            return unicodedata.name(character, "UNKNOWN").split()[0]
        if kind == "S" and not character.isascii():
            return "SYMBOL"
    return "NUMBER" if any(unicodedata.category(character)[0] == "N" for character in word) else ""


def _first(words: Counter[str], most: int = 5) -> str:
    chosen = [word for word, count in words.most_common(most) if count]
    return ", ".join(chosen) + (", …" if sum(count > 0 for count in words.values()) > most else "")
