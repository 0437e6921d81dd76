"""Profile steps of a run: a trace for xprof, and a summary of device time as text.

`run.profile=20,22` traces steps 20 to 22 into `<run>/profile`. Profile steps after the first of a phase, whose time is
compilation. `tensorboard --logdir <run>/profile` shows the trace where xprof is installed; `summary.txt` needs neither.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData

from bertjax.run.writers import Progress
from bertjax.storage import files


class Profile:
    """Trace steps (first, last) of a run, or none where `steps` is empty; the loop calls `before` and `after` each.

    A trace that cannot be made or written, as on a full disk, is given up with a message: it ends no run.
    """

    def __init__(self, folder: Path, steps: tuple[int, ...], progress: Progress) -> None:
        self._folder, self._progress = folder / "profile", progress
        self._first, self._last = steps or (0, 0)
        self._from = 0  # the first traced step; 0 while no trace is running

    def before(self, step: int, pending: Any) -> None:
        """Start the trace before the first of its steps that the run makes, once the `pending` arrays are ready.

        Of several processes only process 0 is traced.
        """
        if not self._from and self._first <= step <= self._last and jax.process_index() == 0:
            jax.block_until_ready(pending)
            with self._given_up_at_an_error():
                jax.profiler.start_trace(str(files.make_folder(self._folder.parent, self._folder.name)))
                self._from = step

    def after(self, step: int, result: Any) -> bool:
        """Return whether this was the last step to trace; then wait for its `result`, and write trace and summary."""
        if not self._from or step < self._last:
            return False
        jax.block_until_ready(result)
        self._stop(step)
        return True

    def close(self) -> None:
        """Stop a trace that is still running, where the run ends before the last step to trace."""
        if self._from:
            self._from = 0
            with self._given_up_at_an_error():
                jax.profiler.stop_trace()

    def _stop(self, step: int) -> None:
        begin, self._from = self._from, 0
        with self._given_up_at_an_error():
            jax.profiler.stop_trace()
            operations = read_trace(self._folder)
            text = summarise(operations, steps=step - begin + 1)
            files.write(self._folder / "summary.txt", text)
            self._progress.say(f"profile of steps {begin} to {step} in {self._folder}\n{text.rstrip()}")

    @contextmanager
    def _given_up_at_an_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 whatever the profiler raises
            self._first = self._last = 0
            self._progress.say(f"no profile, training goes on: {type(error).__name__}: {error}")


class Operation(NamedTuple):
    """Device time of the operations of one name, without the operations nested in them."""

    name: str
    origin: str  # the JAX operation that it was compiled from, where the trace has it
    seconds: float
    runs: int


def read_trace(folder: Path) -> list[Operation]:
    """Add up the operations of the newest trace in a folder, longest first.

    Of TPUs and GPUs the operations on the devices, of CPUs those on the host's threads. Nested operations, such as the
    body of a loop, are not counted in the outer one. Raises FileNotFoundError where there is no trace.
    """
    traces = sorted(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not traces:
        raise FileNotFoundError(f"no trace in {folder}")
    seconds: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    origin: dict[str, str] = {}
    for line in _lines(ProfileData.from_file(str(traces[-1]))):
        for name, place, own in _own_times(line):
            seconds[name] += own * 1e-9
            count[name] += 1
            origin[name] = place
    operations = [Operation(name, origin[name], seconds[name], count[name]) for name in seconds]
    return sorted(operations, key=lambda operation: -operation.seconds)


def _lines(data: ProfileData) -> Iterator[Any]:
    planes = list(data.planes)
    devices = [plane for plane in planes if re.match(r"/device:(TPU|GPU):\d+", plane.name)]
    for plane in devices or [plane for plane in planes if plane.name == "/host:CPU"]:
        lines = list(plane.lines)
        # A TPU has a line of operations, beside others that repeat them as steps and modules.
        yield from [line for line in lines if line.name == "XLA Ops"] or lines


def _own_times(line: Any) -> Iterator[tuple[str, str, float]]:
    """Yield name, origin and own nanoseconds of the operations on a line, which may be nested."""
    events = []
    for event in line.events:
        statistics = dict(event.stats)
        if line.name == "XLA Ops" or "hlo_op" in statistics:
            name = str(statistics.get("hlo_op") or event.name)
            place = str(statistics.get("tf_op") or statistics.get("name") or "")
            events.append((event.start_ns, event.duration_ns, name, place))
    events.sort(key=lambda event: (event[0], -event[1]))
    open_: list[tuple[float, str, str, list[float]]] = []
    for start, duration, name, place in events:
        while open_ and open_[-1][0] <= start:
            _, *closed, own = open_.pop()
            yield closed[0], closed[1], own[0]
        if open_:
            open_[-1][3][0] -= duration
        open_.append((start + duration, name.split(" = ")[0].lstrip("%"), place, [duration]))
    while open_:
        _, *closed, own = open_.pop()
        yield closed[0], closed[1], own[0]


def summarise(operations: Iterable[Operation], *, steps: int, top: int = 15) -> str:
    """Format the kinds of operations (their names without numbers), and the longest ones, in milliseconds a step."""
    operations = list(operations)
    total = sum(operation.seconds for operation in operations)
    if not total:
        return "the trace holds no operation of a device\n"
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for operation in operations:
        kind = kinds[re.sub(r"[.\d]+$", "", operation.name)]
        kind[0] += operation.seconds
        kind[1] += operation.runs
    ranked = sorted(kinds.items(), key=lambda item: -item[1][0])

    def row(name: str, seconds: float, count: float, origin: str = "") -> str:
        line = f"{1e3 * seconds / steps:10.3f}  {100 * seconds / total:5.1f}%  {count / steps:8.0f}  {name}  {origin}"
        return line.rstrip() + "\n"

    text = f"{1e3 * total / steps:.3f} ms of device time a step, over all devices or threads\n\n"
    header = "   ms/step   share  a step    "
    text += header + "kind\n" + "".join(row(name, seconds, count) for name, (seconds, count) in ranked[:top])
    text += "\n" + header + "operation\n"
    return text + "".join(row(each.name, each.seconds, each.runs, each.origin) for each in operations[:top])
