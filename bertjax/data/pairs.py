"""Pairs of segments as in BERT and ALBERT, for next-sentence prediction and sentence-order prediction.

google-research/bert create_pretraining_data.py create_instances_from_document; google-research/albert the same. The
chunks of a pass over the corpus are planned once, for all documents at once; each example is then read from the stream
by its number. The data set is `duplicates` passes, each with its own chunks, pairs and (if static) masks.

Where we deviate: sentences longer than a row are cut to row length before they are gathered, so that less is truncated;
random documents come from the whole split, not from one input file at a time; ALBERT's chunks of a single sentence, for
which its code falls back to a random document, are split in the middle.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from bertjax.data import corpus_rows
from bertjax.data.source import Batch, Corpus, ShardIndex, Source, cut_sentences, empty_batch
from bertjax.data.two_segments import Segment, plan_passes, truncate, write_row
from bertjax.errors import EmptySplit


@dataclass(frozen=True)
class NextSentencePairs:
    """Pair a segment with the text after it (label 0) or with sentences of a random document (label 1), half each.

    short: fraction of documents whose chunks have a random shorter target length.
    """

    corpus: str
    length: int
    duplicates: int = 10
    short: float = 0.1
    seed: int = 0
    features: ClassVar[tuple[str, ...]] = ("types", "pair")
    group_size: ClassVar[int] = 1

    load_tokenizer = corpus_rows.load_tokenizer
    splits = corpus_rows.splits
    digest = corpus_rows.digest
    padding = corpus_rows.padding

    def __post_init__(self) -> None:
        _check(self.length, self.duplicates, self.short, self.seed)

    def open(self, split: str) -> Source:
        """See Rows.open."""
        return _open(self, split, next_sentence=True)


@dataclass(frozen=True)
class SentenceOrderPairs:
    """Pair two consecutive segments, in order (label 0) or swapped (label 1), half and half.

    short: fraction of documents whose chunks have a random shorter target length.
    """

    corpus: str
    length: int
    duplicates: int = 10
    short: float = 0.1
    seed: int = 0
    features: ClassVar[tuple[str, ...]] = ("types", "pair")
    group_size: ClassVar[int] = 1

    load_tokenizer = corpus_rows.load_tokenizer
    splits = corpus_rows.splits
    digest = corpus_rows.digest
    padding = corpus_rows.padding

    def __post_init__(self) -> None:
        _check(self.length, self.duplicates, self.short, self.seed)

    def open(self, split: str) -> Source:
        """See Rows.open."""
        return _open(self, split, next_sentence=False)


def _open(rows: NextSentencePairs | SentenceOrderPairs, split: str, *, next_sentence: bool) -> Source:
    """Plan the pairs of a split; all but `train` is passed over once."""
    duplicates = rows.duplicates if split == "train" else 1
    corpus = Corpus(rows.corpus, split)
    return _Pairs(corpus, rows.length, duplicates, rows.short, rows.seed, next_sentence=next_sentence)


def _check(length: int, duplicates: int, short: float, seed: int) -> None:
    if length < 8:
        raise ValueError(f"rows of length {length} have no room for two segments: use at least 8")
    if duplicates < 1 or not 0 <= short <= 1 or seed < 0:
        raise ValueError(f"duplicates={duplicates} must be at least 1, short={short} in [0, 1], seed={seed} at least 0")


class Chunks(NamedTuple):
    """Runs of sentences of one shard: sentences first .. last of `document`, the first `a` of them segment A.

    target: target number of tokens. random: whether B is from another document (next-sentence prediction). All i32 and
    bool: with the shard, 29 bytes for each example of the `duplicates` passes.
    """

    first: np.ndarray
    last: np.ndarray
    a: np.ndarray
    target: np.ndarray
    random: np.ndarray
    document: np.ndarray


def plan_chunks(shard: ShardIndex, room: int, short: float, rng: np.random.Generator, *, next_sentence: bool) -> Chunks:
    """Plan the chunks of all documents at once: sentences up to the target length, of which the first `a` are A.

    With `next_sentence`, B is random in half of the chunks and in all of a single sentence; the next chunk then begins
    after A, instead of after the chunk.
    """
    documents = np.arange(len(shard.documents) - 1)
    target = np.where(rng.random(len(documents)) < short, rng.integers(2, room + 1, len(documents)), room)
    first, end = shard.documents[:-1].copy(), shard.documents[1:]
    planned = []
    active = documents
    while len(active):
        begin = first[active]
        reach = np.searchsorted(shard.tokens, shard.tokens[begin] + target[active], side="left")
        last = np.minimum(np.maximum(reach, begin + 1), end[active])
        count = last - begin
        a = np.where(count > 1, rng.integers(1, np.maximum(count, 2)), 1)
        random = (rng.random(len(active)) < 0.5) | (count == 1) if next_sentence else np.zeros(len(active), bool)
        columns = (begin, last, a, target[active], random, active)
        planned.append([x if x is random else x.astype(np.int32) for x in columns])
        first[active] = np.where(random, begin + a, last)
        active = active[first[active] < end[active]]
    return Chunks(*(np.concatenate(columns) for columns in zip(*planned, strict=True)))


class _Pairs:
    """A source of the examples of all passes; example n has its own random draws, from (seed, n)."""

    group_size = 1

    def __init__(
        self, corpus: Corpus, length: int, duplicates: int, short: float, seed: int, *, next_sentence: bool
    ) -> None:
        self._corpus, self._length, self._seed, self._next_sentence = corpus, length, seed, next_sentence
        self._room = length - 3
        self._shards = [cut_sentences(shard, self._room) for shard in corpus.shards]
        self._documents = np.array([len(shard.documents) - 1 for shard in self._shards])
        if next_sentence and self._documents.sum() < 2:
            raise EmptySplit(
                f"next-sentence pairs need at least two documents, the {corpus.split} split of {corpus.folder} has "
                f"{self._documents.sum()}: check that documents are separated, and increase --holdout"
            )

        def plan(shard: ShardIndex, rng: np.random.Generator) -> Chunks:
            chunks = plan_chunks(shard, self._room, short, rng, next_sentence=next_sentence)
            # A single token cannot be split into two segments.
            kept = (shard.tokens[chunks.last] - shard.tokens[chunks.first] > 1) | next_sentence
            return Chunks(*(column[kept] for column in chunks))

        self._shard, self._plan = plan_passes(self._shards, duplicates, seed, plan)

    def __len__(self) -> int:
        return len(self._shard)

    def padding(self, n: int) -> Batch:
        """See Source.padding."""
        return empty_batch(n, self._length, self._corpus.vocabulary.pad, NextSentencePairs.features)

    def rows(self, index: np.ndarray) -> Batch:
        """See Source.rows."""
        vocabulary, batch = self._corpus.vocabulary, self.padding(len(index))
        batch["example"][:] = index
        for i, example in enumerate(index):
            a, b, label = self._segments(int(example))
            write_row(batch, i, vocabulary, a, b)
            batch["pair"][i] = label
        return batch

    def _segments(self, example: int) -> tuple[Segment, Segment, int]:
        """Read segments A and B of one example, truncated, as (tokens, word starts), and the label of the pair."""
        rng = np.random.Generator(np.random.Philox(key=[self._seed, example]))
        chunk = Chunks(*(column[example] for column in self._plan))
        shard = self._shards[self._shard[example]]
        begin, middle, end = (int(shard.tokens[s]) for s in (chunk.first, chunk.first + chunk.a, chunk.last))
        if not self._next_sentence and chunk.last - chunk.first == 1:
            middle = begin + (end - begin + 1) // 2
        a, b = (shard, begin, middle), (shard, middle, end)
        label = 0
        if self._next_sentence and chunk.random:
            b, label = self._random_segment(rng, example, int(chunk.target) - (middle - begin)), 1
        elif not self._next_sentence and rng.random() < 0.5:
            a, b, label = b, a, 1
        kept_a, kept_b = truncate(a[2] - a[1], b[2] - b[1], self._room)
        return _read(rng, *a, kept_a), _read(rng, *b, kept_b), label

    def _random_segment(self, rng: np.random.Generator, example: int, target: int) -> tuple[ShardIndex, int, int]:
        """Choose sentences from a random start in a random other document, up to `target` tokens."""
        before = np.concatenate([[0], np.cumsum(self._documents)])
        own = before[self._shard[example]] + self._plan.document[example]
        other = int(rng.integers(before[-1] - 1))
        other += other >= own
        number = int(np.searchsorted(before, other, side="right")) - 1
        shard = self._shards[number]
        document = other - int(before[number])
        start = int(rng.integers(shard.documents[document], shard.documents[document + 1]))
        reach = int(np.searchsorted(shard.tokens, shard.tokens[start] + target, side="left"))
        end = min(max(reach, start + 1), int(shard.documents[document + 1]))
        return shard, int(shard.tokens[start]), int(shard.tokens[end])


def _read(rng: np.random.Generator, shard: ShardIndex, begin: int, end: int, kept: int) -> Segment:
    """Read `kept` tokens of a segment; each truncated token is dropped from front or back by a fair coin."""
    begin += int(rng.binomial(end - begin - kept, 0.5))
    if not kept:
        return Segment(np.zeros(0, np.int32), np.zeros(0, np.uint8))
    return Segment(*shard.reader.read(begin, kept))
