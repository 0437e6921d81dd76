"""Rows of one segment: RoBERTa's two formats, and packed documents.

Liu et al. 2019, section 4.2; fairseq data/token_block_dataset.py (`complete`, `complete_doc`). Packing as in Krell et
al. 2021, "Efficient Sequence Packing without Cross-contamination": over the histogram of lengths, here by best fit.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bertjax.data import corpus_rows
from bertjax.data.records import DOCUMENT, WORD
from bertjax.data.source import Batch, Corpus, ShardIndex, Source, cut_sentences, empty_batch
from bertjax.errors import InputError


@dataclass(frozen=True)
class FullSentences:
    """Fill each row with whole sentences, across documents, with an extra separator between documents."""

    corpus: str
    length: int
    features: ClassVar[tuple[str, ...]] = ()
    group_size: ClassVar[int] = 1

    load_tokenizer = corpus_rows.load_tokenizer
    splits = corpus_rows.splits
    digest = corpus_rows.digest
    padding = corpus_rows.padding

    def open(self, split: str) -> Source:
        """See Rows.open."""
        return _Contiguous(Corpus(self.corpus, split), self.length, cross_documents=True)


@dataclass(frozen=True)
class DocumentSentences:
    """Fill each row with whole sentences of one document; the last row of a document is short."""

    corpus: str
    length: int
    features: ClassVar[tuple[str, ...]] = ()
    group_size: ClassVar[int] = 1

    load_tokenizer = corpus_rows.load_tokenizer
    splits = corpus_rows.splits
    digest = corpus_rows.digest
    padding = corpus_rows.padding

    def open(self, split: str) -> Source:
        """See Rows.open."""
        return _Contiguous(Corpus(self.corpus, split), self.length, cross_documents=False)


@dataclass(frozen=True)
class PackedDocuments:
    """Pack several documents into a row, each with special tokens and its own number in `mask`, which bounds attention.

    Documents longer than a row are split as in DocumentSentences. seed: selects which documents share a row.
    """

    corpus: str
    length: int
    seed: int = 0
    features: ClassVar[tuple[str, ...]] = ()
    group_size: ClassVar[int] = 1

    load_tokenizer = corpus_rows.load_tokenizer
    splits = corpus_rows.splits
    digest = corpus_rows.digest
    padding = corpus_rows.padding

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be at least 0")

    def open(self, split: str) -> Source:
        """See Rows.open."""
        return _Packed(_Contiguous(Corpus(self.corpus, split), self.length, cross_documents=False), self.seed)


def plan_rows(shard: ShardIndex, room: int, *, cross_documents: bool) -> tuple[np.ndarray, np.ndarray]:
    """Split a shard greedily into runs of whole sentences, and return their starts and ends in the token stream.

    A run has at most `room` tokens, including a separator before each document that begins inside it.
    """
    sentences = len(shard.tokens) - 1
    begins_document = np.zeros(sentences + 1, np.int64)
    begins_document[shard.documents[:-1]] = cross_documents
    cost = shard.tokens + np.concatenate([[0], np.cumsum(begins_document[:-1])])
    after = np.searchsorted(cost, cost[:-1] + room + begins_document[:-1], side="right") - 1
    if not cross_documents:
        ends = np.repeat(shard.documents[1:], np.diff(shard.documents))
        after = np.minimum(after, ends)
    following, first, starts = after.tolist(), 0, []
    while first < sentences:
        starts.append(first)
        first = following[first]
    bounds = shard.tokens[np.array([*starts, sentences])]
    return bounds[:-1], bounds[1:]


class _Contiguous:
    """A source of rows that are slices of the token stream."""

    group_size = 1

    def __init__(self, corpus: Corpus, length: int, *, cross_documents: bool) -> None:
        if length < 3:
            raise InputError(
                f"rows of length {length} have no room for a token between their two special tokens: use at least 3"
            )
        self.corpus, self.length, self._cross = corpus, length, cross_documents
        plans = [
            plan_rows(cut_sentences(shard, length - 2), length - 2, cross_documents=cross_documents)
            for shard in corpus.shards
        ]
        self.shard = np.repeat(np.arange(len(plans)), [len(starts) for starts, _ in plans])
        self.start = np.concatenate([starts for starts, _ in plans])
        self.end = np.concatenate([ends for _, ends in plans])

    def __len__(self) -> int:
        return len(self.start)

    def padding(self, n: int) -> Batch:
        """See Source.padding."""
        return empty_batch(n, self.length, self.corpus.vocabulary.pad)

    def rows(self, index: np.ndarray) -> Batch:
        """See Source.rows."""
        batch = self.padding(len(index))
        batch["example"][:] = index
        for i, row in enumerate(index):
            self.place(batch, i, 0, int(row), 1)
        return batch

    def place(self, batch: Batch, i: int, at: int, row: int, number: int) -> int:
        """Write row `row`, with special tokens, into row i of the batch at position `at`; return its end."""
        vocabulary = self.corpus.vocabulary
        start = int(self.start[row])
        tokens, flags = self.corpus.shards[self.shard[row]].reader.read(start, int(self.end[row]) - start)
        word_starts = flags & WORD > 0
        if self._cross:
            inner = np.flatnonzero(flags[1:] & DOCUMENT) + 1
            tokens = np.insert(tokens.astype(np.int32), inner, vocabulary.sep)
            word_starts = np.insert(word_starts, inner, True)
        end = at + len(tokens) + 2
        batch["tokens"][i, at], batch["tokens"][i, end - 1] = vocabulary.cls, vocabulary.sep
        batch["tokens"][i, at + 1 : end - 1] = tokens
        batch["word_starts"][i, at + 1 : end - 1] = word_starts
        batch["mask"][i, at:end] = number
        return end


class _Packed:
    """A source of rows packed from rows of a `_Contiguous` source."""

    group_size = 1

    def __init__(self, parts: _Contiguous, seed: int) -> None:
        self._parts = parts
        lengths = parts.end - parts.start + 2
        self._bounds, self._members = pack(lengths, parts.length, np.random.default_rng(seed))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def padding(self, n: int) -> Batch:
        """See Source.padding."""
        return self._parts.padding(n)

    def rows(self, index: np.ndarray) -> Batch:
        """See Source.rows."""
        batch = self.padding(len(index))
        batch["example"][:] = index
        for i, row in enumerate(index):
            at = 0
            members = self._members[self._bounds[row] : self._bounds[row + 1]]
            for number, member in enumerate(members, start=1):
                at = self._parts.place(batch, i, at, int(member), number)
        return batch


def pack(lengths: np.ndarray, room: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pack items of `lengths` into rows of `room`; row r is members[bounds[r] : bounds[r + 1]].

    Best fit on the histogram of lengths, the longest first; which items of a length go into which row is random.
    """
    kinds: dict[int, list[tuple[tuple[int, ...], int]]] = defaultdict(list)  # room left -> (lengths, how many rows)
    kinds[room].append(((), len(lengths)))
    counts = np.bincount(lengths, minlength=room + 1)
    for length in range(room, 0, -1):
        todo = int(counts[length])
        for left in range(length, room + 1):
            while todo and kinds[left]:
                held, rows = kinds[left].pop()
                each = min(left // length, todo)
                used = min(rows, todo // each)
                if rows > used:
                    kinds[left].append((held, rows - used))
                kinds[left - each * length].append((held + (length,) * each, used))
                todo -= used * each
    items = {length: rng.permutation(np.flatnonzero(lengths == length)) for length in np.unique(lengths).tolist()}
    taken: dict[int, int] = defaultdict(int)
    sizes, members = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for held, rows in (kind for left in sorted(kinds) for kind in kinds[left] if kind[0]):
        columns = np.empty((rows, len(held)), np.int64)
        for column, length in enumerate(held):
            columns[:, column] = items[length][taken[length] : taken[length] + rows]
            taken[length] += rows
        sizes.append(np.full(rows, len(held)))
        members.append(columns.reshape(-1))
    return np.concatenate([[0], np.cumsum(np.concatenate(sizes))]), np.concatenate(members)
