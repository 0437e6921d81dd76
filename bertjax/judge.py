"""Judge a model on a task: run it over the rows of a split, put its answers together, score them as the task is."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from bertjax.data.source import Batch, bucketed
from bertjax.data.supervised import Encoded
from bertjax.data.tasks import Task

Logits = Callable[[Batch], Any]
"""batch -> what the head of the task says of it: arrays whose first axis is the rows."""


class Said(NamedTuple):
    """What a head says of one row, and the length of the batch that it was in."""

    row: int
    logits: Any
    length: int


def said(logits: Logits, encoded: Encoded, batch_size: int) -> Iterator[Said]:
    """Run all rows, in batches of like length; in whatever order."""
    for index in bucketed(np.arange(len(encoded)), encoded.buckets, batch_size, np.random.default_rng(0)):
        batch = encoded.rows(index)
        found = jax.device_get(logits(batch))
        for place, row in enumerate(index.tolist()):
            if row >= 0:
                yield Said(row, jax.tree.map(lambda x, place=place: x[place], found), batch["tokens"].shape[-1])


def of_rows(logits: Logits, encoded: Encoded, batch_size: int) -> np.ndarray:
    """Return logits [R, C] of rows or of their options, in order."""
    found = {each.row: each.logits for each in said(logits, encoded, batch_size)}
    return np.stack([found[row] for row in range(len(encoded))])


def of_words(logits: Logits, encoded: Encoded, batch_size: int) -> list[np.ndarray]:
    """Return for each example the logits [words, C] at the first pieces of its words."""
    classes = 0
    found: list[dict[int, np.ndarray]] = [{} for _ in encoded.examples]
    for row, logits_LC, length in said(logits, encoded, batch_size):
        classes = logits_LC.shape[-1]
        places, words = encoded.first_pieces(row, length)
        found[encoded.of[row]] |= {int(word): logits_LC[place] for place, word in zip(places, words, strict=True)}
    return [
        np.stack([each[word] for word in sorted(each)]) if each else np.zeros((0, classes), np.float32)
        for each in found
    ]


class Judgement(NamedTuple):
    """The metrics of a task, and what was predicted, as files to write: name -> content."""

    metrics: dict[str, float]
    files: dict[str, str]


def judged(task: Task, encoded: Encoded, logits: Logits, batch_size: int) -> Judgement:
    """Run the rows of a labelled split and score them."""
    scores = of_rows(logits, encoded, batch_size)
    labels = encoded.labels
    return Judgement({"accuracy": float((scores.argmax(-1) == labels).mean())}, {})


def constant_answer(task: Task, encoded: Encoded) -> float:
    """Return the first metric of the best answer that is always the same."""
    if task.metrics[0] == "accuracy" and encoded.labels is not None:
        return float(np.bincount(encoded.labels).max() / len(encoded.labels))
    return 0.0
