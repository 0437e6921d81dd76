"""Write the metrics of a run: always a JSON-lines log and progress on the terminal, on request TensorBoard and W&B.

`log.jsonl` holds only numbers that are reproducible, so that the log of a resumed run equals that of an uninterrupted
one, byte for byte. Numbers that depend on the machine and the time go to `timing.jsonl`.
"""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from bertjax import files
from bertjax.bounded_json import parse_object
from bertjax.errors import InputError
from bertjax.places import without_places
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
    """Append to `log.jsonl` of a work directory, after dropping the lines beyond `step`, from which the run resumes."""

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / "log.jsonl"
        with files.writing(path) as kept:
            for line in _lines(folder, path.name):
                try:
                    if parse_object(line, f"{path}", constants=True)["step"] <= step:
                        kept.write(line.rstrip(b"\n") + b"\n")
                except (ValueError, KeyError, TypeError):  # a line truncated by a kill is the last one
                    break
        self._file: TextIO = files.open_append(path)

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line."""
        self._file.write(json.dumps({"step": step} | dict(values)) + "\n")


def _lines(folder: Path, name: str) -> Iterator[bytes]:
    """Yield the lines of a log; none where there is no such file."""
    if (folder / name).exists():
        with files.open_inside(folder, name) as file:
            while line := file.readline(_LONGEST_LINE):
                yield line


_LONGEST_LINE = 2**20  # bytes


def append_timing(folder: Path, step: int, values: Mapping[str, float]) -> None:
    """Append one line to `timing.jsonl`."""
    with files.open_append(folder / "timing.jsonl") as file:
        file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | dict(values)) + "\n")


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
    name = files.read_inside(folder, identity.name).decode(errors="replace")
    if not re.fullmatch(r"[\w-]{1,64}", name, re.ASCII):
        raise InputError(f"{identity} is not the name of a run: delete it, and the next run has another")
    settings = {setting: off for setting, off in _UNASKED.items() if f"WANDB_{setting.upper()}" not in os.environ}
    run = wandb.init(
        project=project, id=name, resume="allow", dir=folder, config=without_places(experiment), settings=settings
    )
    return lambda step, values: run.log(dict(values), step=step)


class Progress:
    """Show progress on standard error: a line that is updated on a terminal, else a line every `every_seconds`.

    shown: whether anything is shown; false on all processes of a run but the coordinator.
    """

    def __init__(self, every_seconds: float = 10.0, *, shown: bool = True) -> None:
        self._silent = not shown
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else every_seconds
        self._shown = -math.inf  # a monotonic clock may start at 0 with the machine

    def line(self, text: str) -> None:
        """Show a line of progress, unless one was shown less than the interval ago."""
        if not self._silent and time.monotonic() - self._shown >= self._every:
            self._shown = time.monotonic()
            print(
                f"\r\033[K{escaped(text)}" if self._terminal else escaped(text),
                end="" if self._terminal else "\n",
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        """Show a message, always, on a line of its own."""
        if not self._silent:
            print(f"\r\033[K{message(text)}" if self._terminal else message(text), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Format seconds as 1:02:03."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
