"""Token sequences of encoded examples, and the result type of the encoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bertjax.data.templates import Framed
from bertjax.data.tokenizer import Encoding


@dataclass
class Sequences:
    """Concatenated token sequences: tokens i32, types i8 [T]; sequence s is bounds[s] .. bounds[s + 1]."""

    tokens: np.ndarray
    types: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Framed]) -> "Sequences":
        """Concatenate framed rows."""
        sizes = [len(row.tokens) for row in rows]
        nothing = np.zeros(0, np.int32)
        return cls(
            np.concatenate([nothing, *(row.tokens for row in rows)]),
            np.concatenate([nothing, *(row.types for row in rows)]).astype(np.int8),
            np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        )


class Window(NamedTuple):
    """Pieces start .. start + size of a context; the first of them is at position `at` of its row without padding."""

    start: int
    size: int
    at: int


class Tokenized(NamedTuple):
    """The rows of encoded examples, R of them with T tokens in all.

    example_of_row: i64 [R]. first: i64 [R + 1]; row r has the sequences first[r] .. first[r + 1], one unless it is a
    choice. labels: [R], [R, 3] of spans (start, end, answerable), [T] of tags with -1 where none is scored; None if an
    example has no label. words: i32 [T], the word of which a piece is the first, else -1 (tag). windows: of each row
    (span). contexts: the encoded context of each example (span).
    """

    sequences: Sequences
    example_of_row: np.ndarray
    first: np.ndarray
    labels: np.ndarray | None
    words: np.ndarray | None = None
    windows: Sequence[Window] = ()
    contexts: Sequence[Encoding] = ()


def tokenized(
    sequences: Sequence[Framed],
    labels: np.ndarray | None,
    *,
    example_of_row: np.ndarray | None = None,
    first: np.ndarray | None = None,
    words: np.ndarray | None = None,
    windows: Sequence[Window] = (),
    contexts: Sequence[Encoding] = (),
) -> Tokenized:
    """Join framed sequences; by default each is a row, and each row an example of its own."""
    first = np.arange(len(sequences) + 1) if first is None else first
    example_of_row = np.arange(len(first) - 1) if example_of_row is None else example_of_row
    return Tokenized(Sequences.of(sequences), example_of_row, first, labels, words, windows, contexts)
