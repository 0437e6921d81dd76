"""Serve rows of a corpus at random access: batch n is a pure function of (seed, corpus, n).

So a run resumes from one integer, on any number of threads or hosts. `Rows` says which rows; `open` lays their plan
out once; the order of an epoch is a permutation computed index by index (Grain), never stored.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from grain.experimental import index_shuffle, set_next_index

from bertjax.data.records import Manifest, TokenReader, file_digest, index_name, read_manifest, shard_name
from bertjax.data.tokenizer import Tokenizer
from bertjax.errors import InputError

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Rows at random access: host side, numpy only."""

    @property
    def group_size(self) -> int:
        """See Rows.together."""
        ...

    def __len__(self) -> int: ...

    def rows(self, index: np.ndarray) -> Batch:
        """Assemble the rows of `index` [n]: arrays [n, …] as in `bertjax.types.Batch`."""
        ...


class Rows(Protocol):
    """Which rows to cut from which corpus: a frozen dataclass, so that it can be dumped and overridden."""

    @property
    def corpus(self) -> str:
        """The folder of the corpus."""
        ...

    @property
    def length(self) -> int:
        """Positions in a row."""
        ...

    @property
    def features(self) -> tuple[str, ...]:
        """The arrays of a batch, beside tokens, mask, word_starts and example."""
        ...

    @property
    def group_size(self) -> int:
        """How many consecutive rows always share a batch: they number a whole multiple of it."""
        ...

    def open(self, split: str) -> Source:
        """Plan the rows of a split."""
        ...


@runtime_checkable
class LabelledRows(Protocol):
    """What rows offer besides that are not cut from a corpus: a data set of its own, with labels."""

    def load_tokenizer(self) -> Tokenizer:
        """Read the tokenizer that they are encoded with."""
        ...

    def splits(self) -> tuple[str, ...]:
        """Name the splits that are there."""
        ...

    def digest(self) -> str:
        """Identify all that they are made of."""
        ...

    def padding(self, n: int) -> Batch:
        """Make n rows of padding: all the arrays of a batch."""
        ...


@runtime_checkable
class Bucketed(Protocol):
    """What a source offers whose rows differ in length: rows(index) is as long as the bucket of the longest of them.

    Its rows(index) also take -1, for a row of padding.
    """

    buckets: np.ndarray  # i64 [rows]: what length each row asks for


@runtime_checkable
class ReportsDataIssues(Protocol):
    """What a source offers that treats its data in ways the user should know: in words -> how often."""

    notes: Mapping[str, int]


@dataclass(frozen=True)
class ShardIndex:
    """Locate sentences and documents of one shard.

    tokens: i64 [S + 1], where sentence s begins in the token stream. documents: i64 [D + 1], the first sentence of
    document d. Both end with the total.
    """

    tokens: np.ndarray
    documents: np.ndarray
    reader: TokenReader


class Corpus:
    """Open one split of a corpus. Raises InputError where it is missing, damaged or empty."""

    def __init__(self, folder: str, split: str) -> None:
        self.folder, self.split = folder, split
        self.manifest: Manifest = read_manifest(folder)
        self.vocabulary = self.manifest.vocabulary
        shards = self.manifest.splits.get(split, ())
        if not shards:
            raise InputError(f"corpus {folder} has no {split} split: build it with another --holdout")
        self.shards = []
        for index, shard in enumerate(shards):
            counts = {}
            for what, digest in zip(("sentences", "documents"), shard.sha256[1:], strict=True):
                path = Path(folder) / index_name(split, index, len(shards), what)
                if not path.is_file() or file_digest(path) != digest:
                    raise InputError(f"{path} is missing or damaged: build the corpus again")
                counts[what] = np.load(path)
            path = Path(folder) / shard_name(split, index, len(shards))
            if not path.is_file():
                raise InputError(f"{path} is missing: build the corpus again")
            bounds = {what: np.concatenate([[0], np.cumsum(count, dtype=np.int64)]) for what, count in counts.items()}
            reader = TokenReader(path, self.manifest.dtype)
            self.shards.append(ShardIndex(bounds["sentences"], bounds["documents"], reader))


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
    """Make a batch of padding, with the arrays that every source has and `features`."""
    batch: Batch = {
        "tokens": np.full((n, length), pad, np.int32),
        "mask": np.zeros((n, length), np.int32),
        "word_starts": np.ones((n, length), np.int32),
        "example": np.zeros(n, np.uint32),
    }
    return batch | {name: np.zeros(feature_shape(name, n, length), np.int32) for name in features}


def feature_shape(name: str, n: int, length: int) -> tuple[int, ...]:
    """Say the shape that a feature has in a batch of n rows."""
    return {"types": (n, length), "pair": (n,), "backward": (n,)}[name]


def epoch_order(n: np.ndarray, size: int, seed: int, group_size: int = 1) -> np.ndarray:
    """Map running example numbers to rows: every epoch of `size` examples is a permutation of its own.

    Groups of `together` rows are what is shuffled; the rows of a group stay side by side, in order.
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
    """Raise InputError, with `no_row` where the source is empty, or where batches would part rows of a group."""
    if not len(source):
        raise InputError(no_row)
    if batch_size % source.group_size:
        raise InputError(
            f"batches of {batch_size} rows, but these rows come in groups of {source.group_size} that share a batch "
            f"(both directions of a text): use a multiple of {source.group_size}"
        )


class _Steps:
    """Random access to the batches of a phase, for Grain: item s is the batch of step s."""

    def __init__(self, source: Source, batch_size: int, steps: int, seed: int, held: np.ndarray) -> None:
        self._source, self._batch_size, self._steps, self._seed, self._held = source, batch_size, steps, seed, held
        self._pool = lru_cache(maxsize=2)(self._make_pool)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: Any) -> Batch:
        if isinstance(self._source, Bucketed):
            pool, place = divmod(int(step), POOL)
            batch = self._source.rows(self._pool(pool)[place])  # all of it: together they say how long it is
            return {name: array[self._held] for name, array in batch.items()}
        numbers = step * self._batch_size + self._held
        return self._source.rows(epoch_order(numbers, len(self._source), self._seed, self._source.group_size))

    def _make_pool(self, pool: int) -> list[np.ndarray]:
        """Say which rows each of the next POOL batches has, or those that are left of the phase."""
        assert isinstance(self._source, Bucketed)
        first, last = pool * POOL, min((pool + 1) * POOL, self._steps)
        numbers = np.arange(first * self._batch_size, last * self._batch_size)
        rows = epoch_order(numbers, len(self._source), self._seed)
        return bucketed(rows, self._source.buckets[rows], self._batch_size, np.random.default_rng([self._seed, pool]))


POOL = 64
"""Batches whose rows are sorted by length among themselves: many enough that few batches mix lengths."""


def bucketed(rows: np.ndarray, lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Part rows into batches of like `lengths`, in random order, the last of the longest filled up with -1.

    Only batches where two lengths meet hold rows that a shorter batch would have held.
    """
    ordered = rows[np.argsort(lengths, kind="stable")]
    ordered = np.append(ordered, np.full(-len(ordered) % batch_size, -1))
    batches = ordered.reshape(-1, batch_size)
    return list(batches[rng.permutation(len(batches))])


def training_batches(
    source: Source, batch_size: int, steps: int, seed: int, *, start: int = 0, held: np.ndarray | None = None
) -> Iterator[Batch]:
    """Yield the batches of steps start .. steps, read ahead by threads; batch s is the same from whatever start.

    held: which rows of each batch to read, where other processes read the others.

    Rows in buckets are taken in the same order, POOL batches' worth at a time, and sorted by length among themselves.
    """
    _check(source, batch_size, "the corpus gives no row of this kind: use more text, or other rows")
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)
    batches = _Steps(source, batch_size, steps, seed, np.arange(batch_size) if held is None else held)
    iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
    set_next_index(iterator, start)
    return iterator


def evaluation_batches(
    source: Source, batch_size: int, features: tuple[str, ...], pad: int, *, held: np.ndarray | None = None
) -> Iterator[Batch]:
    """Yield every row once, always in the same shuffled order, so that the first batches stand for all.

    The last batch is filled up with rows of padding, which weigh nothing; of rows in buckets, that of the longest.
    held: as of `training_batches`.
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
        there = numbers < len(source)
        chosen = numbers[there] if there.any() else np.arange(1)  # a row for its shapes, where none held here is there
        batch = source.rows(epoch_order(chosen, len(source), 0, source.group_size))
        length = batch["tokens"].shape[1]
        filling = empty_batch(int((~there).sum()), length, pad, features)
        yield {name: np.concatenate([array[: there.sum()], filling[name]]) for name, array in batch.items()}
