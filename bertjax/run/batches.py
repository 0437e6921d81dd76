"""The batches of a run: of training, with each process's request to stop, and of the validation split."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from bertjax.config import Experiment, Phase
from bertjax.data.source import Batch, Bucketed, ReportsDataIssues, Rows, Source, evaluation_batches, training_batches
from bertjax.errors import EmptySplit
from bertjax.faults import fault
from bertjax.run.stop import StopRequest
from bertjax.run.writers import Progress
from bertjax.serialization.description import to_json
from bertjax.serialization.places import PLACES
from bertjax.sharding.mesh import held_rows
from bertjax.storage.paths import in_cloud
from bertjax.wording import counted


def open_split(rows: Rows, split: str, progress: Progress) -> Source:
    """Open a split, and report the examples that were dropped or repaired."""
    source = rows.open(split)
    if isinstance(source, ReportsDataIssues):
        for issue, count in source.notes.items():
            progress.say(f"{rows.corpus}, {split}: {counted(count, issue)}")
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


def local_batches(phase: Phase, source: Source, mesh: Mesh, *, seed: int, start: int, first: int) -> Iterator[Batch]:
    """Return this process's rows of each batch of a phase from its step `start` on; see `training_batches`."""
    held = held_rows(mesh, phase.batch_size)
    # Each row of a corpus in Cloud Storage is a request or two, tens of milliseconds of waiting, so many are under way.
    threads = 64 if in_cloud(phase.rows.corpus) else 4
    return training_batches(
        source, phase.batch_size, phase.steps, seed, start=start, first=first, held=held, threads=threads
    )


class Inputs:
    """The batches of a phase for this process, until it has to stop: by a signal, or by an error in its data.

    A process alone raises that error, or KeyboardInterrupt. One of several keeps it in `error`, and from then on
    serves rows of padding with `stop` i32 [rows], which let no process update its state: see `with_loop_metrics`. They
    also have `host` f32 [rows, 3]: the number of the process and its times of the last step, see `run/hosts.py`.

    Rows in buckets have a length that all processes must agree on: it is known where the rows are read, so these are
    read also after a signal, and an error in them is raised here, on this process alone.
    """

    def __init__(self, batches: Iterator[Batch], source: Source, phase: Phase, mesh: Mesh, stop: StopRequest) -> None:
        self._batches, self._stop = batches, stop
        self._several, self._bucketed = jax.process_count() > 1, isinstance(source, Bucketed)
        self._padding = phase.rows.padding(len(held_rows(mesh, phase.batch_size))) if self._several else {}
        self.error: BaseException | None = None

    def next(self, step: int, times: tuple[float, float]) -> Batch:
        """Return the rows of the batch of a step; times: of this process in the last one."""
        batch = self._padding
        if self._several and self._bucketed:
            fault("batch", step)
            batch = next(self._batches)
            self.error = KeyboardInterrupt() if self._stop.signal else None
        elif self.error is None:
            try:
                with self._stop.raising():
                    fault("batch", step)
                    batch = next(self._batches)
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 the others wait for this process
                self.error = error
        if not self._several:
            if self.error is not None:
                raise self.error
            return batch
        count = len(batch["example"])
        host = np.tile(np.array([jax.process_index(), *times], np.float32), (count, 1))
        return batch | {"stop": np.full(count, self.error is not None, np.int32), "host": host}


class Unfailing:
    """Batches for what several processes compute together: after an error, which is kept, rows of padding to the end.

    A process alone raises the error. count: of the batches, on every process. padding: None where the shape of the next
    batch is not known without reading it; then the error is raised on this process alone.
    """

    def __init__(self, batches: Iterator[Batch], count: int, padding: Batch | None) -> None:
        self._batches, self._count, self._padding = batches, count, padding
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self._count):
            batch = self._padding
            if batch is None or self.error is None:
                try:
                    fault("evaluation", number + 1)
                    batch = next(self._batches)
                except Exception as error:
                    if jax.process_count() == 1 or self._padding is None:
                        raise
                    self.error, batch = error, self._padding
            yield batch


def validation_batches(phase: Phase, mesh: Mesh, progress: Progress) -> Callable[[int], Unfailing] | None:
    """Return a function that reads the validation split of a phase from its start, so many batches, 0 for all.

    None, with a notice, where there is no such split.
    """
    rows, size = phase.rows, phase.batch_size // phase.accumulate
    if "validation" not in rows.splits():
        progress.say(f"{rows.corpus} has no validation split (of a corpus: --holdout 0): skipping evaluation")
        return None
    try:
        source = open_split(rows, "validation", progress)
    except EmptySplit as error:
        progress.say(f"skipping evaluation: {error}")
        return None
    held, count = held_rows(mesh, size), -(-len(source) // size)
    padding = None if isinstance(source, Bucketed) else source.padding(len(held))

    def read(limit: int) -> Unfailing:
        return Unfailing(evaluation_batches(source, size, held=held), min(count, limit or count), padding)

    return read
