"""Functions for rows of one or two segments: truncation, the plan of several passes, the layout of a row."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from bertjax.data.records import WORD
from bertjax.data.source import Batch, ShardIndex
from bertjax.data.tokenizer import Vocabulary

Plan = TypeVar("Plan", bound=tuple[np.ndarray, ...])


def truncate(a: int, b: int, room: int) -> tuple[int, int]:
    """Return the lengths of two segments after dropping tokens of the longer one, b if equal, until both fit."""
    over = max(0, a + b - room)
    from_longer = min(over, abs(a - b))
    rest = over - from_longer
    a, b = (a - from_longer, b) if a > b else (a, b - from_longer)
    return a - rest // 2, b - (rest + 1) // 2


def plan_passes(
    shards: Sequence[ShardIndex], passes: int, seed: int, plan: Callable[[ShardIndex, np.random.Generator], Plan]
) -> tuple[np.ndarray, Plan]:
    """Plan the examples of several passes over all shards, each by a generator of its own.

    plan: a named tuple of columns, one entry for each example of a shard. Returns the shard of each example, and the
    concatenated columns.
    """
    plans = [
        plan(shard, np.random.default_rng([seed, number, place]))
        for number in range(passes)
        for place, shard in enumerate(shards)
    ]
    shard_of = np.repeat(np.tile(np.arange(len(shards)), passes), [len(each[0]) for each in plans])
    return shard_of, type(plans[0])(*(np.concatenate(columns) for columns in zip(*plans, strict=True)))


class Segment(NamedTuple):
    """Tokens i32 [n] and their flags (see records), with WORD at the first token of each word."""

    tokens: np.ndarray
    flags: np.ndarray


def write_row(batch: Batch, row: int, vocabulary: Vocabulary, a: Segment, b: Segment | None) -> None:
    """Write <cls> a <sep>, and of two segments b <sep> with type 1, into a row of an empty batch."""
    tokens, starts = batch["tokens"][row], batch["word_starts"][row]
    tokens[0], end = vocabulary.cls, 1
    for number, segment in enumerate([a] if b is None else [a, b]):
        begin, end = end, end + len(segment.tokens) + 1
        tokens[begin : end - 1], tokens[end - 1] = segment.tokens, vocabulary.sep
        starts[begin : end - 1] = segment.flags & WORD > 0
        batch["types"][row, begin:end] = number
    batch["mask"][row, :end] = 1
