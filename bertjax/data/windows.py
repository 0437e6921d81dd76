"""Windows of a stream of documents, in both directions: the training data of XLNet.

Yang et al. 2019, section 2.4; zihangdai/xlnet data_utils.py create_tfrecords, _split_a_and_b. A window is reused text,
which becomes the memory of the next window, and two segments A and B; consecutive windows of the stream are
concatenated in a row. Every row is full: A and B are truncated to the window, and never shorter.

Where we deviate: memory starts empty in each row, where the original's continues through its file, so that rows may be
shuffled; the stream is a shard, where the original's is one of a batch's parts of a file; a random B may hold the last
token of the stream; there is one pass, where the original makes ten with other Bs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from bertjax.data import corpus_rows
from bertjax.data.records import WORD
from bertjax.data.source import Batch, Corpus, ShardIndex, Source, empty_batch
from bertjax.data.two_segments import truncate
from bertjax.errors import EmptySplit, InputError


@dataclass(frozen=True)
class Windows:
    """Put length // window consecutive windows into a row: `reuse` tokens, A <sep> B <sep> <cls>.

    The next window begins `reuse` tokens later, the next row after the last window's. `reuse` must be the first part of
    the objective's permutation, so that no token is both in memory and in the window. B continues A, or begins at a
    random sentence of the shard, half each. types: 0 up to A's <sep>, 1 up to B's, 2 at <cls>. boundary: the id after
    each document (XLNet's <eod>), a part of its last sentence. both_directions: rows 2k and 2k + 1 are row k of the
    stream and row k of the reversed stream, with `backward` 1.
    """

    corpus: str
    reuse: int = 256
    length: int = 2048
    window: int = 512
    boundary: int | None = None
    seed: int = 0
    both_directions: bool = True
    features: ClassVar[tuple[str, ...]] = ("types", "backward")

    load_tokenizer = corpus_rows.load_tokenizer
    splits = corpus_rows.splits
    digest = corpus_rows.digest
    padding = corpus_rows.padding

    def __post_init__(self) -> None:
        if self.reuse < 1:
            raise ValueError(f"reuse={self.reuse}: windows advance by it, so use at least 1")
        if self.segments < 2:
            raise ValueError(
                f"window={self.window} has no room for two segments and three special tokens after reuse={self.reuse}: "
                f"use a window of {self.reuse + 5} or more"
            )
        if self.length < 1 or self.length % self.window:
            raise ValueError(f"length={self.length} does not divide into windows of {self.window}: use a multiple")
        if self.boundary is not None and self.boundary < 0:
            raise ValueError(f"boundary={self.boundary} is not an id: use an id, or none for no boundary")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be at least 0")

    @property
    def segments(self) -> int:
        """Total tokens of A and B."""
        return self.window - self.reuse - 3

    @property
    def group_size(self) -> int:
        """See Rows.group_size: a batch is half forward and half backward."""
        return 2 if self.both_directions else 1

    def open(self, split: str) -> Source:
        """See Rows.open."""
        return _Windowed(Corpus(self.corpus, split), self)


class Split(NamedTuple):
    """Lengths of the segments of each window, i64: `a` tokens, and `b` tokens from `b_begin`; a + b is constant."""

    a: np.ndarray
    b_begin: np.ndarray
    b: np.ndarray


def split_windows(starts: np.ndarray, begin: np.ndarray, total: int, draws: np.ndarray) -> Split:
    """Choose A and B, of `total` tokens in all; A starts at `begin` [n].

    starts: where sentences begin in the stream, and its end, which is beyond begin + total. draws: [3, n] in [0, 1):
    whether B is random, which of the sentences' ends within reach ends A, where B begins.
    """
    first, after = np.searchsorted(starts, begin, side="right"), np.searchsorted(starts, begin + total)
    cuts = after - first  # 0: A ends with the sentence that goes beyond the window, which is starts[first] too
    middle = starts[first + (draws[1] * cuts).astype(np.int64)]
    a = middle - begin
    least = np.maximum(1, total - a)
    place = (draws[2] * (starts[-1] - least)).astype(np.int64)
    random = (cuts == 0) | (draws[0] < 0.5)
    b_begin = np.where(random, starts[np.searchsorted(starts, place, side="right") - 1], middle)
    b_end = np.where(random, starts[np.searchsorted(starts, place + least)], starts[after])
    kept = [truncate(int(one), int(other), total) for one, other in zip(a, b_end - b_begin, strict=True)]
    return Split(np.array([a for a, _ in kept]), b_begin, np.array([b for _, b in kept]))


class _Stream:
    """The concatenated documents of a shard, each followed by the boundary, in one direction."""

    def __init__(self, shard: ShardIndex, boundary: int | None, *, backward: bool) -> None:
        self._reader, self._boundary, self._backward = shard.reader, boundary, backward
        self._ends = np.zeros(0, np.int64)  # where boundaries lie in the stream forward
        starts = shard.tokens
        if boundary is not None:
            documents = np.arange(len(shard.documents) - 1)
            self._ends = starts[shard.documents[1:]] + documents
            before = np.repeat(documents, np.diff(shard.documents))
            starts = starts + np.append(before, len(documents))
        self.starts = starts[-1] - starts[::-1] if backward else starts
        self.size = int(starts[-1])

    def read(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and word starts [length] from position `start` of the stream."""
        if self._backward:
            start = self.size - start - length
        first, last = np.searchsorted(self._ends, [start, start + length])
        tokens, word_starts = np.full(length, self._boundary or 0, np.int32), np.ones(length, bool)
        text = np.ones(length, bool)
        text[self._ends[first:last] - start] = False
        if text.any():
            tokens[text], flags = self._reader.read(start - int(first), length - int(last - first))
            word_starts[text] = flags & WORD > 0
        order = slice(None, None, -1 if self._backward else 1)
        return tokens[order], word_starts[order]


class _Windowed:
    """A source of rows; row n has its own random draws, from (seed, n)."""

    def __init__(self, corpus: Corpus, rows: Windows) -> None:
        self._vocabulary, self._rows, self.group_size = corpus.vocabulary, rows, rows.group_size
        if rows.boundary is not None and rows.boundary >= self._vocabulary.size:
            raise InputError(f"boundary={rows.boundary} is not an id of the {self._vocabulary.size} of {rows.corpus}")
        directions = [False, True][: self.group_size]
        self._streams: list[Sequence[_Stream]] = [
            [_Stream(shard, rows.boundary, backward=backward) for backward in directions] for shard in corpus.shards
        ]
        self._step = rows.length // rows.window * rows.reuse
        # As in the original, one more token must follow the last window.
        after = rows.segments + 1
        counts = [max(0, streams[0].size - after) // self._step for streams in self._streams]
        self._before = np.concatenate([[0], np.cumsum(counts)])
        if not self._before[-1]:
            raise EmptySplit(
                f"no shard of the {corpus.split} split of {rows.corpus} has the {self._step + after} tokens of a row: "
                "use a shorter length, or more text"
            )

    def __len__(self) -> int:
        return int(self._before[-1]) * self.group_size

    def padding(self, n: int) -> Batch:
        """See Source.padding."""
        return empty_batch(n, self._rows.length, self._vocabulary.pad, Windows.features)

    def rows(self, index: np.ndarray) -> Batch:
        """See Source.rows."""
        batch = self.padding(len(index))
        batch["example"][:] = index
        batch["mask"][:] = 1
        for i, example in enumerate(index):
            text, backward = divmod(int(example), self.group_size)
            shard = int(np.searchsorted(self._before, text, side="right")) - 1
            start = (text - int(self._before[shard])) * self._step
            rng = np.random.Generator(np.random.Philox(key=[self._rows.seed, int(example)]))
            row = {name: batch[name][i] for name in ("tokens", "word_starts", "types")}
            self._write(row, self._streams[shard][backward], start, rng)
            batch["backward"][i] = backward
        return batch

    def _write(self, row: Batch, stream: _Stream, start: int, rng: np.random.Generator) -> None:
        """Write a row, arrays [length], whose first window starts at `start` of the stream."""
        tokens, word_starts, types = row["tokens"], row["word_starts"], row["types"]
        reuse, window, total = self._rows.reuse, self._rows.window, self._rows.segments
        n = len(tokens) // window
        split = split_windows(stream.starts, start + reuse * np.arange(1, n + 1), total, rng.random((3, n)))
        text, text_starts = stream.read(start, self._step + total)  # of all windows, without B
        for c, (a, b_begin, b) in enumerate(zip(*(column.tolist() for column in split), strict=True)):
            at, sep, cls = c * window, c * window + reuse + a, (c + 1) * window - 1
            here = slice(c * reuse, (c + 1) * reuse + a)
            tokens[at:sep], word_starts[at:sep] = text[here], text_starts[here]
            tokens[sep + 1 : cls - 1], word_starts[sep + 1 : cls - 1] = stream.read(b_begin, b)
            tokens[sep] = tokens[cls - 1] = self._vocabulary.sep
            tokens[cls] = self._vocabulary.cls
            types[sep + 1 : cls], types[cls] = 1, 2
