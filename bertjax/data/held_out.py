"""Draw which documents are held out for validation, and count documents that repeat an earlier one.

A document's split depends on a key of the document and on the seed alone. With the text as the key, exact repeats of a
text are in one split, so that no text of the validation split is trained on.
"""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

DocumentKey = Callable[[int, int], int]
"""(number of the document in the input from 1, `text_hash`) -> the key, u64, of its split: `by_text` or `by_number`."""


def by_text(number: int, text: int) -> int:
    """Draw by the text: equal texts share a split."""
    return text


def by_number(number: int, text: int) -> int:
    """Draw by the place in the input, so that repeats may lie in both splits: corpora before version 0.2."""
    return number


def text_hash(lines: Sequence[str]) -> int:
    """Hash the lines of a document to 64 bits; 0 where they have no text."""
    text = "\n".join(lines)
    if not text.strip():
        return 0
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


Split = Literal["train", "validation"]
"""The splits of a corpus."""


def split_of(key: int, seed: int, holdout: float) -> Split:
    """Return the split of the document with this key."""
    words = np.array([seed, key], np.uint64)
    return "validation" if np.random.Generator(np.random.Philox(key=words)).random() < holdout else "train"


class Repeats:
    """Count texts that are equal to an earlier one, from 8 bytes for each.

    Two of n different texts share a hash with a probability of n² / 2^65: 3 in 10,000 for 100 million texts.
    """

    def __init__(self) -> None:
        self._texts = array("Q")

    def add(self, text: int) -> None:
        """Add a text by its `text_hash`; one without text is left out."""
        if text:
            self._texts.append(text)

    def count(self) -> int:
        """Return how many of the texts equal an earlier one. Sorts them in place; needs a byte more for each."""
        if not self._texts:
            return 0
        texts = np.frombuffer(self._texts, np.uint64)
        texts.sort()
        return int(np.count_nonzero(texts[1:] == texts[:-1]))
