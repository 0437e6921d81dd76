"""Rows of one or two segments of consecutive text, as in ELECTRA, which has no pair objective.

google-research/electra build_pretraining_dataset.py. The examples of a pass over the corpus are planned once, for all
documents at once; each is then one slice of the token stream, read by its number. Tokens that do not fit are dropped,
as in the original.

Where we deviate: once a sentence is in the second segment, so are all that follow, where the original puts a later
short one into the first and so joins text that is not consecutive; sentences longer than a row are cut to row length
before they are gathered, so that fewer tokens are dropped.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from bertjax.data import corpus_rows
from bertjax.data.source import Batch, Corpus, ShardIndex, Source, cut_sentences, empty_batch
from bertjax.data.two_segments import Segment, plan_passes, write_row


@dataclass(frozen=True)
class Segments:
    """Fill each row with consecutive sentences of a document, in two segments of about half a row each.

    short: fraction of rows with a random shorter target length. single: fraction of rows with one segment.
    """

    corpus: str
    length: int
    short: float = 0.05
    single: float = 0.1
    duplicates: int = 1
    seed: int = 0
    features: ClassVar[tuple[str, ...]] = ("types",)
    group_size: ClassVar[int] = 1

    load_tokenizer = corpus_rows.load_tokenizer
    splits = corpus_rows.splits
    digest = corpus_rows.digest
    padding = corpus_rows.padding

    def __post_init__(self) -> None:
        if self.length < 8:
            raise ValueError(f"rows of length {self.length} have no room for two segments: use at least 8")
        if not 0 <= self.short <= 1 or not 0 <= self.single <= 1:
            raise ValueError(f"short={self.short} and single={self.single} must be fractions in [0, 1]")
        if self.duplicates < 1 or self.seed < 0:
            raise ValueError(f"duplicates={self.duplicates} must be at least 1, seed={self.seed} at least 0")

    def open(self, split: str) -> Source:
        """See Rows.open. A held-out split is one pass over its documents."""
        return _Segmented(Corpus(self.corpus, split), self, self.duplicates if split == "train" else 1)


class Examples(NamedTuple):
    """Runs of sentences of one shard, all i32: first .. middle is the first segment, middle .. last the second."""

    first: np.ndarray
    middle: np.ndarray
    last: np.ndarray


def plan_examples(shard: ShardIndex, length: int, short: float, single: float, rng: np.random.Generator) -> Examples:
    """Plan the examples of all documents at once: sentences up to the target length, in one or two segments."""
    following, end = shard.documents[:-1].copy(), shard.documents[1:]
    planned = []
    active = np.arange(len(end))
    while len(active):
        n = len(active)
        first = following[active]
        target = np.where(rng.random(n) < short, rng.integers(5, length + 1, n), length)
        last = np.minimum(np.searchsorted(shard.tokens, shard.tokens[first] + target), end[active])
        # The first segment takes sentences up to half of the target, the first one in any case, and by a fair coin the
        # one that goes beyond.
        half = shard.tokens[first] + (target - 3) // 2
        middle = np.maximum(np.searchsorted(shard.tokens, half) - 1, first + 1)
        middle += (shard.tokens[middle] < half) & (rng.random(n) < 0.5)
        middle = np.where(rng.random(n) < single, last, np.minimum(middle, last))
        planned.append([column.astype(np.int32) for column in (first, middle, last)])
        following[active] = last
        active = active[last < end[active]]
    return Examples(*(np.concatenate(columns) for columns in zip(*planned, strict=True)))


class _Segmented:
    """A source of the examples of all passes."""

    group_size = 1

    def __init__(self, corpus: Corpus, rows: Segments, duplicates: int) -> None:
        self._vocabulary, self._length = corpus.vocabulary, rows.length
        self._shards = [cut_sentences(shard, rows.length) for shard in corpus.shards]

        def plan(shard: ShardIndex, rng: np.random.Generator) -> Examples:
            return plan_examples(shard, rows.length, rows.short, rows.single, rng)

        self._shard, self._plan = plan_passes(self._shards, duplicates, rows.seed, plan)

    def __len__(self) -> int:
        return len(self._shard)

    def padding(self, n: int) -> Batch:
        """See Source.padding."""
        return empty_batch(n, self._length, self._vocabulary.pad, Segments.features)

    def rows(self, index: np.ndarray) -> Batch:
        """See Source.rows."""
        batch = self.padding(len(index))
        batch["example"][:] = index
        for i, example in enumerate(index):
            shard = self._shards[self._shard[example]]
            begin, middle, end = (int(shard.tokens[column[example]]) for column in self._plan)
            a = min(middle - begin, self._length - 2)
            b = min(end - middle, max(0, self._length - 3 - a))
            text, flags = shard.reader.read(begin, a + b)  # b is 0 where a is cut
            second = Segment(text[a:], flags[a:]) if b else None
            write_row(batch, i, self._vocabulary, Segment(text[:a], flags[:a]), second)
        return batch
