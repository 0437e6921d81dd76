"""The batches of a run: of training, with each process's request to stop, and of the validation split."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from bertjax.config import Experiment, Phase
from bertjax.data.source import Batch, ReportsDataIssues, Rows, Source, evaluation_batches, training_batches
from bertjax.description import to_json
from bertjax.errors import EmptySplit
from bertjax.places import PLACES
from bertjax.run.stop import StopRequest
from bertjax.run.writers import Progress
from bertjax.sharding.mesh import held_rows


def open_split(rows: Rows, split: str, progress: Progress) -> Source:
    """Open a split, and report the examples that were dropped or repaired."""
    source = rows.open(split)
    if isinstance(source, ReportsDataIssues):
        for issue, count in source.notes.items():
            progress.say(f"{rows.corpus}, {split}: {count:,} {issue}")
    return source


def first_examples(experiment: Experiment, data: Sequence[str]) -> list[int]:
    """Return the number of the first example of each phase by the experiment's rule; data: the digest of each's data.

    Rows are equal where the same data are cut in the same way, whatever their paths, which a resumed run may change.
    """
    kinds = [(to_json(phase.rows) | PLACES, digest) for phase, digest in zip(experiment.phases, data, strict=True)]
    counts = [phase.steps * phase.batch_size for phase in experiment.phases]
    return [
        experiment.counters.first_example([counts[i] for i in range(index) if kinds[i] == kind])
        for index, kind in enumerate(kinds)
    ]


def local_batches(
    phase: Phase, source: Source, mesh: Mesh, stop: StopRequest, *, seed: int, start: int, first: int
) -> Iterator[Batch]:
    """Yield this process's rows of each batch of a phase from its step `start` on; see `training_batches`.

    Where there are several processes, `stop` i32 [rows] carries whether this one was asked to stop.
    """
    held = held_rows(mesh, phase.batch_size)
    for batch in training_batches(source, phase.batch_size, phase.steps, seed, start=start, first=first, held=held):
        if jax.process_count() > 1:
            batch["stop"] = np.full(len(held), stop.signal > 0, np.int32)
        yield batch


def validation_batches(phase: Phase, mesh: Mesh, progress: Progress) -> Callable[[], Iterable[Batch]] | None:
    """Return a function that reads the validation split of a phase from its start; None, with a notice, without one."""
    rows, size = phase.rows, phase.batch_size // phase.accumulate
    if "validation" not in rows.splits():
        progress.say(f"{rows.corpus} has no validation split (of a corpus: --holdout 0): skipping evaluation")
        return None
    try:
        source = open_split(rows, "validation", progress)
    except EmptySplit as error:
        progress.say(f"skipping evaluation: {error}")
        return None
    return partial(evaluation_batches, source, size, held=held_rows(mesh, size))
