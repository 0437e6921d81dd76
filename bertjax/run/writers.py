"""Write the metrics of a run: always a JSON-lines log and progress on the terminal, on request TensorBoard and W&B.

`log.jsonl` holds only numbers that are reproducible, so that the log of a resumed run equals that of an uninterrupted
one, byte for byte. Numbers that depend on the machine and the time go to `timing.jsonl`.
"""

import faulthandler
import json
import math
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from bertjax.errors import InputError
from bertjax.run.mended import mended
from bertjax.serialization.places import without_places
from bertjax.storage import files
from bertjax.terminal import escaped, message

Writer = Callable[[int, Mapping[str, float]], None]
"""(step, values) -> None: writes the values of a step."""

_UNASKED = {
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "host": "",
    "username": "",
    "email": "",
}
"""Settings of W&B that keep back what it else sends: output, commands, paths, names of hosts and users, packages."""


class Log:
    """Append to `log.jsonl` of a work directory, after dropping the lines beyond `step`, from which the run resumes.

    every: steps between lines. Where earlier lines are lost, a line of the log states which, and `say` is told.
    """

    def __init__(self, folder: Path, step: int, say: Callable[[str], None] | None = None, *, every: int = 0) -> None:
        path = folder / "log.jsonl"
        lost = [text for _, text in mended(_lines(folder, path.name), step, every) if text]
        if lost:
            (say or print)(f"{path}: {'; '.join(lost)}: as it was it is kept as {path}.damaged")
            if path.exists():
                files.write(path.with_name("log.jsonl.damaged"), b"".join(_lines(folder, path.name)))
        with files.writing(path) as kept:
            for line, _ in mended(_lines(folder, path.name), step, every):
                kept.write(line + b"\n")
        self._lines = Lines(path, say)

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line."""
        self._lines(json.dumps({"step": step} | dict(values)) + "\n")


def _lines(folder: Path, name: str) -> Iterator[bytes]:
    """Yield the lines of a log; none where there is no such file."""
    if (folder / name).exists():
        with files.open_inside(folder, name) as file:
            while line := file.readline(_LONGEST_LINE):
                yield line


_LONGEST_LINE = 2**20  # bytes


def evaluated_at(folder: Path, step: int) -> bool:
    """Return whether the log of a work directory has an evaluation of a step, near its end."""
    path = folder / "log.jsonl"
    with files.open_inside(folder, path.name) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE))
        lines = file.read().splitlines()
    return any(line.startswith(b'{"step": %d, ' % step) and b'"validation/' in line for line in lines)


class Timing:
    """Append to `timing.jsonl` of a work directory."""

    def __init__(self, folder: Path, say: Callable[[str], None] | None = None) -> None:
        self._lines = Lines(folder / "timing.jsonl", say)

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line, with the time."""
        self._lines(json.dumps({"step": step, "time": round(time.time(), 3)} | dict(values)) + "\n")


class Lines:
    """Append lines to a file; those that cannot be written, as where the disk is full, are tried again with the next.

    say: is told when writing fails, and when all has been written again.
    """

    def __init__(self, path: Path, say: Callable[[str], None] | None = None) -> None:
        self.path, self._say = path, say or (lambda text: None)
        self._left, self._failed = b"", False
        with suppress(OSError):
            files.open_append(path).close()  # raises InputError for a link, before anything is trained

    def __call__(self, text: str) -> None:
        """Append a text that ends with a newline, after those that are left."""
        self._left += files.utf8(text)
        try:
            with files.open_append(self.path) as file:
                while self._left:  # a part may fit on the disk: the rest follows it later
                    self._left = self._left[os.write(file.fileno(), self._left) :]
        except (OSError, InputError) as error:
            if not self._failed:
                self._say(f"{self.path} cannot be written, it is tried again with each line: {error}")
            self._failed = True
        else:
            if self._failed:
                self._say(f"{self.path} is complete again")
            self._failed = False


def tensorboard_writer(folder: Path) -> Writer:
    """Write scalars for TensorBoard into `<run>/tensorboard`. Raises InputError where it is not installed."""
    try:
        from tensorboard.summary import Writer as Events
    except ImportError as error:
        raise InputError("run.tensorboard needs the extra: pip install 'bertjax[tensorboard]'") from error
    events = Events(str(files.make_folder(folder, "tensorboard")))

    def write(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if isinstance(value, float):
                events.add_scalar(name, value, step)
        events.flush()

    return write


def wandb_writer(folder: Path, project: str, experiment: Mapping[str, Any]) -> Writer:
    """Log to W&B, as one run however often it is resumed; WANDB_MODE=offline keeps it on this machine.

    Metrics and the experiment are sent, without paths, and nothing of the machine: what else W&B collects is sent where
    its own variable asks for it, such as WANDB_CONSOLE=auto. W&B ignores steps that a resumed run repeats, since they
    were logged before. Raises InputError where it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise InputError("run.wandb needs the extra: pip install 'bertjax[wandb]'") from error
    identity = folder / "wandb_id"
    if not identity.exists():
        files.write(identity, wandb.util.generate_id())
    files.make_folder(folder, "wandb")  # else W&B would follow a link in its place
    name = files.read_inside(folder, identity.name).decode(errors="replace")
    if not re.fullmatch(r"[\w-]{1,64}", name, re.ASCII):
        raise InputError(f"{identity} is not the name of a run: delete it, and the next run has another")
    settings = {setting: off for setting, off in _UNASKED.items() if f"WANDB_{setting.upper()}" not in os.environ}
    run = wandb.init(
        project=project, id=name, resume="allow", dir=folder, config=without_places(experiment), settings=settings
    )
    return lambda step, values: run.log(dict(values), step=step)


def dropped_at_an_error(name: str, make: Callable[[], Writer], say: Callable[[str], None]) -> Writer:
    """Return a writer that is dropped, with a message, at its first error: only the log must not miss a value.

    Raises the InputErrors of `make`, since training has not begun.
    """
    working: list[Writer] = []

    def drop(error: Exception) -> None:
        working.clear()
        say(f"nothing more is written to {name}, training goes on: {type(error).__name__}: {error}")

    def write(step: int, values: Mapping[str, float]) -> None:
        for each in tuple(working):
            try:
                each(step, values)
            except Exception as error:  # noqa: BLE001 whatever a library raises
                drop(error)

    try:
        working.append(make())
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 as above: a server that is away must not keep a run from resuming
        drop(error)
    return write


class Progress:
    """Show progress on standard error: a line that is updated on a terminal, else a line every `every_seconds`.

    Messages are kept in `messages.log` of the work directory too, once `keep` was called. Nothing here raises or waits
    for a reader: where standard error is closed, full, or its reader is gone or does not read, messages are only kept.

    shown: whether anything is shown; false on all processes of a run but the coordinator.
    """

    def __init__(self, every_seconds: float = 10.0, *, shown: bool = True) -> None:
        self.shown = shown
        self._terminal = _is_terminal(sys.stderr)
        self._every = 0.2 if self._terminal else every_seconds
        self._shown = -math.inf  # a monotonic clock may start at 0 with the machine
        self._missed = False  # whether the last message could not be shown
        self._kept: Lines | None = None
        self._early: list[str] = []  # notes from before `keep`

    def line(self, text: str) -> None:
        """Show a line of progress, unless one was shown less than the interval ago."""
        if self.shown and time.monotonic() - self._shown >= self._every:
            self._shown = time.monotonic()
            shown = escaped(text)
            self._show(f"\r\033[K{shown}" if self._terminal else f"{shown}\n", seconds=0)

    def say(self, text: str) -> None:
        """Show a message, always, on a line of its own, and keep it."""
        if self.shown:
            self._keep(text)
            shown = message(text)
            self._show(f"\r\033[K{shown}\n" if self._terminal else f"{shown}\n", seconds=0 if self._missed else 1)

    def note(self, text: str) -> None:
        """Show a message and keep it, also on a process that shows no progress: of what happens to this process."""
        self.record(text)
        self._show(f"{message(text)}\n", seconds=0 if self._missed else 1)

    def record(self, text: str) -> None:
        """Keep a message without showing it."""
        self._keep(text)

    def stacks(self, text: str) -> None:
        """Note a message, and the stacks of all threads of Python, which are only kept if there is a file for them."""
        self.note(text)
        with suppress(OSError, InputError):  # as where standard error is closed
            if self._kept is None:
                faulthandler.dump_traceback(2, all_threads=True)
            else:
                with files.open_append(self._kept.path) as file:
                    faulthandler.dump_traceback(file, all_threads=True)

    def keep(self, path: Path) -> None:
        """Append messages to a file from now on, and those that told of lost output before."""
        self._kept, early, self._early = Lines(path), self._early, []
        for text in early:
            self._keep(text)

    def _keep(self, text: str) -> None:
        if self._kept is not None:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            self._kept("".join(f"{stamp} {line}\n" for line in message(text).splitlines()))

    def _show(self, text: str, seconds: float) -> None:
        try:
            _write(sys.stderr, text, seconds)
            self._missed = False
        except (OSError, ValueError) as error:
            reason = f"messages are kept here alone, since standard error takes none: {error}"
            if not self._missed and self._kept is None:
                self._early.append(reason)
            elif not self._missed:
                self._keep(reason)
            self._missed = True


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


_PIECE = 1000
"""Characters that are written at once: a pipe that is ready takes 4096 bytes without waiting for its reader."""


def _write(stream: TextIO | None, text: str, seconds: float) -> None:
    """Write a text. Raises OSError where the stream does not take it, also after `seconds`, ValueError if closed."""
    own = stream is sys.__stderr__  # not where a notebook or a test has put its own
    if stream is None:
        raise OSError("it is closed")
    ready = select.poll() if own else None
    if ready is not None:
        ready.register(stream.fileno(), select.POLLOUT)
    for begin in range(0, len(text), _PIECE):
        if ready is not None and not ready.poll(1000 * seconds):
            raise TimeoutError("its reader does not read")
        stream.write(text[begin : begin + _PIECE])
        stream.flush()


def duration(seconds: float) -> str:
    """Format seconds as 1:02:03."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
