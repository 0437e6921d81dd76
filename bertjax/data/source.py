"""Serve rows at random access, as batches: batch n is a pure function of (seed, data, n).

So a run resumes from one integer, on any number of threads or hosts. `Rows` describes which rows; `open` plans them
once; the order of an epoch is a permutation computed index by index (Grain), never stored.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from grain.experimental import index_shuffle, set_next_index

from bertjax.data.records import (
    CHUNK,
    Manifest,
    Shard,
    TokenReader,
    file_digest,
    index_name,
    read_manifest,
    shard_name,
)
from bertjax.data.tokenizer import Tokenizer
from bertjax.errors import EmptySplit, InputError
from bertjax.storage import files
from bertjax.storage.paths import path_of
from bertjax.wording import counted

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Protocol for the rows of one split at random access: on the host, in NumPy."""

    @property
    def group_size(self) -> int:
        """See Rows.group_size."""
        ...

    def __len__(self) -> int: ...

    def padding(self, n: int) -> Batch:
        """Return n rows of padding: the arrays that `rows` returns, mask 0 throughout."""
        ...

    def rows(self, index: np.ndarray) -> Batch:
        """Assemble the rows of `index` [n]: arrays [n, …] as in `bertjax.types.Batch`."""
        ...


class Rows(Protocol):
    """Protocol for a description of rows: cut from a corpus, or the examples of a task.

    A frozen dataclass, so that it can be written as JSON, overridden, and planned with where the data are elsewhere.
    """

    @property
    def corpus(self) -> str:
        """The folder of the corpus or of the data set."""
        ...

    @property
    def length(self) -> int:
        """Positions in a row; of rows in buckets, in the longest."""
        ...

    @property
    def features(self) -> tuple[str, ...]:
        """The arrays of a batch beside tokens, mask and example, and beside word_starts of rows cut from a corpus."""
        ...

    @property
    def group_size(self) -> int:
        """The number of consecutive rows that always share a batch; the number of rows is a multiple of it."""
        ...

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer that the rows are encoded with."""
        ...

    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits that the data have."""
        ...

    def digest(self) -> str:
        """Return a digest of all data that the rows are made of. Raises InputError where they are damaged."""
        ...

    def padding(self, n: int) -> Batch:
        """Return n rows of padding, of full length, with all arrays of a batch. Reads no data."""
        ...

    def open(self, split: str) -> Source:
        """Plan the rows of a split. Raises EmptySplit where the split is too small to give one."""
        ...


@runtime_checkable
class Bucketed(Protocol):
    """Protocol for a source whose rows differ in length: rows(index) is as long as the bucket of the longest of them.

    Its rows(index) also take -1, for a row of padding.
    """

    buckets: np.ndarray  # i64 [rows]: the length of each row's bucket


@runtime_checkable
class ReportsDataIssues(Protocol):
    """Protocol for a source that dropped or repaired examples: a description of the issue -> number of examples."""

    notes: Mapping[str, int]


@dataclass(frozen=True)
class ShardIndex:
    """The boundaries of sentences and documents in one shard.

    tokens: i64 [S + 1], the position in the token stream at which sentence s begins. documents: i64 [D + 1], the first
    sentence of document d. Both end with the total.
    """

    tokens: np.ndarray
    documents: np.ndarray
    reader: TokenReader


class Corpus:
    """One split of a corpus, opened. Raises InputError where it is missing, damaged or empty."""

    def __init__(self, folder: str, split: str) -> None:
        self.folder, self.split = folder, split
        home = path_of(folder)
        self.manifest: Manifest = read_manifest(folder)
        self.vocabulary = self.manifest.vocabulary
        shards = self.manifest.splits.get(split, ())
        if not shards:
            raise InputError(f"corpus {folder} has no {split} split: build it with another --holdout")
        self.shards = [self._opened(home, index, len(shards), shard) for index, shard in enumerate(shards)]

    def _opened(self, home: Path, index: int, count: int, shard: Shard) -> ShardIndex:
        """Open a shard. What is read into memory is bounded by the number of its records, so by their file's size."""
        path = home / shard_name(self.split, index, count)
        if not path.is_file():
            raise InputError(f"{path} is missing: build the corpus again")
        reader = TokenReader(path, self.manifest.dtype, self.vocabulary.size)
        if not shard.documents <= shard.sentences <= shard.tokens <= CHUNK * reader.records:
            raise InputError(
                f"{path} has {counted(reader.records, 'records')} of at most {CHUNK:,} tokens, but manifest.json says "
                f"{shard.tokens:,} tokens, {shard.sentences:,} sentences and {shard.documents:,} documents: "
                "build the corpus again"
            )
        bounds = []
        for what, total, digest in zip(
            ("sentences", "documents"), (shard.tokens, shard.sentences), shard.sha256[1:], strict=True
        ):
            path = home / index_name(self.split, index, count, what)
            if not path.is_file() or file_digest(path) != digest:
                raise InputError(f"{path} is missing or damaged: build the corpus again")
            counts = _read_counts(path, getattr(shard, what))
            if (counts < 1).any() or counts.sum(dtype=np.int64) != total:
                raise InputError(
                    f"the numbers in {path} are not positive or do not add up to {total:,}, as manifest.json says: "
                    "build the corpus again"
                )
            bounds.append(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
        sentences, documents = bounds
        return ShardIndex(sentences, documents, reader)


_HEADER = re.compile(rb"\{'descr': '<i4', 'fortran_order': False, 'shape': \((\d{1,19}),\), \} *\n")


def _read_counts(path: Path, count: int) -> np.ndarray:
    """Read an index file of i32 numbers, as many as the manifest says. Raises InputError for anything else.

    NumPy would parse its header as Python, of which not all ends in an error of one kind.
    """
    with files.open_inside(path.parent, path.name) as file:
        magic, length = file.read(8), int.from_bytes(file.read(2), "little")
        header = _HEADER.fullmatch(file.read(length))
        size = 10 + length + 4 * count
        fits = magic == b"\x93NUMPY\x01\x00" and header and int(header[1]) == count
        content = file.read(4 * count) if fits and files.version_of(path)[0] == size else b""
    if not fits or len(content) != 4 * count:
        raise InputError(f"{path} does not hold {count:,} numbers, as manifest.json says: build the corpus again")
    return np.frombuffer(content, "<i4")


def cut_sentences(shard: ShardIndex, room: int) -> ShardIndex:
    """Cut sentences of over `room` tokens into pieces of at most `room`, each a sentence from here on."""
    lengths = np.diff(shard.tokens)
    pieces = np.maximum(1, -(-lengths // room))
    if (pieces == 1).all():
        return shard
    first = np.concatenate([[0], np.cumsum(pieces)])  # the first piece of each old sentence
    within = np.arange(first[-1]) - np.repeat(first[:-1], pieces)
    tokens = np.append(np.repeat(shard.tokens[:-1], pieces) + within * room, shard.tokens[-1])
    return ShardIndex(tokens, first[shard.documents], shard.reader)


def empty_batch(n: int, length: int, pad: int, features: tuple[str, ...] = ()) -> Batch:
    """Return n rows of padding, with the arrays that every source has and `features`."""
    batch: Batch = {
        "tokens": np.full((n, length), pad, np.int32),
        "mask": np.zeros((n, length), np.int32),
        "word_starts": np.ones((n, length), np.int32),
        "example": np.zeros(n, np.uint32),
    }
    return batch | {name: np.zeros(feature_shape(name, n, length), np.int32) for name in features}


def feature_shape(name: str, n: int, length: int) -> tuple[int, ...]:
    """Return the shape of a feature in a batch of n rows."""
    return {"types": (n, length), "given": (n, length), "pair": (n,), "backward": (n,)}[name]


def epoch_order(n: np.ndarray, size: int, seed: int, group_size: int = 1) -> np.ndarray:
    """Map running example numbers [n] to row numbers: every epoch of `size` examples is a permutation of its own.

    Groups of `group_size` rows are shuffled; the rows of a group stay side by side, in order.
    """
    rows = np.empty(len(n), np.int64)
    for i, number in enumerate(n):
        epoch, place = divmod(int(number), size)
        group, member = divmod(place, group_size)
        shuffled = index_shuffle(
            group, max_index=size // group_size - 1, seed=(seed * 1_000_003 + epoch) % 2**32, rounds=4
        )
        rows[i] = shuffled * group_size + member
    return rows


def _check(source: Source, batch_size: int, no_row: str) -> None:
    """Raise EmptySplit(no_row) where the source is empty, InputError where batches would part rows of a group."""
    if not len(source):
        raise EmptySplit(no_row)
    if batch_size % source.group_size:
        raise InputError(
            f"batches of {batch_size} rows, but these rows come in groups of {source.group_size} that share a batch "
            f"(both directions of a text): use a multiple of {source.group_size}"
        )


class _Steps:
    """Random access to the batches of a phase, for Grain: item s is the batch of step s."""

    def __init__(self, source: Source, batch_size: int, steps: int, seed: int, first: int, held: np.ndarray) -> None:
        self._source, self._batch_size, self._steps, self._seed, self._held = source, batch_size, steps, seed, held
        self._first = first
        self._pool = lru_cache(maxsize=2)(self._make_pool)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: Any) -> Batch:
        if isinstance(self._source, Bucketed):
            pool, place = divmod(int(step), POOL)
            batch = self._source.rows(self._pool(pool)[place])  # all rows: the longest decides the length
            return {name: array[self._held] for name, array in batch.items()}
        numbers = self._first + step * self._batch_size + self._held
        return self._source.rows(epoch_order(numbers, len(self._source), self._seed, self._source.group_size))

    def _make_pool(self, pool: int) -> list[np.ndarray]:
        """Return the rows of each of the next POOL batches, or of as many as the phase still has."""
        assert isinstance(self._source, Bucketed)
        first, last = pool * POOL, min((pool + 1) * POOL, self._steps)
        numbers = self._first + np.arange(first * self._batch_size, last * self._batch_size)
        rows = epoch_order(numbers, len(self._source), self._seed)
        rng = np.random.default_rng([self._seed, pool, self._first])  # a 0 at the end changes nothing
        return bucketed(rows, self._source.buckets[rows], self._batch_size, rng)


POOL = 64
"""The number of batches whose rows are sorted by length among themselves: enough that few batches mix lengths."""


def bucketed(rows: np.ndarray, lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Divide rows into batches of similar `lengths`, in random order; the last batch of the longest is padded with -1.

    Only batches at the boundary of two lengths hold rows that would fit into a shorter batch.
    """
    ordered = rows[np.argsort(lengths, kind="stable")]
    ordered = np.append(ordered, np.full(-len(ordered) % batch_size, -1))
    batches = ordered.reshape(-1, batch_size)
    return list(batches[rng.permutation(len(batches))])


def training_batches(
    source: Source,
    batch_size: int,
    steps: int,
    seed: int,
    *,
    start: int = 0,
    first: int = 0,
    held: np.ndarray | None = None,
    threads: int = 4,
) -> Iterator[Batch]:
    """Yield the batches of steps start .. steps, prefetched by `threads`; batch s depends on neither, nor on `start`.

    first: the running number of the first example of step 0, a multiple of the rows' `group_size`. held: the rows of
    each batch that this process reads; all by default. Rows in buckets are taken in the same order,
    POOL batches at a time, and sorted by length among themselves. Raises EmptySplit where there are no rows.
    """
    _check(source, batch_size, "the corpus gives no row of this kind: use more text, or other rows")
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(16, threads))
    batches = _Steps(source, batch_size, steps, seed, first, np.arange(batch_size) if held is None else held)
    iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
    set_next_index(iterator, start)
    return iterator


def evaluation_batches(source: Source, batch_size: int, *, held: np.ndarray | None = None) -> Iterator[Batch]:
    """Yield every row once, always in the same shuffled order, so that the first batches are a fair sample.

    The last batch is filled up with rows of padding, which weigh nothing; of rows in buckets, that of the longest.
    held: see `training_batches`.
    """
    held = np.arange(batch_size) if held is None else held
    _check(source, batch_size, "the split gives no row of this kind: hold more text out, or use other rows")
    if isinstance(source, Bucketed):
        rows = epoch_order(np.arange(len(source)), len(source), 0)
        for chosen in bucketed(rows, source.buckets[rows], batch_size, np.random.default_rng(0)):
            yield {name: array[held] for name, array in source.rows(chosen).items()}
        return
    for start in range(0, len(source), batch_size):
        numbers = start + held
        real = numbers[numbers < len(source)]
        filling = source.padding(len(numbers) - len(real))
        if len(real):
            batch = source.rows(epoch_order(real, len(source), 0, source.group_size))
            yield {name: np.concatenate([array, filling[name]]) for name, array in batch.items()}
        else:
            yield filling
