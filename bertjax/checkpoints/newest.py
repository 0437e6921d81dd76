"""Find the newest checkpoint that can be read: from newest to oldest, telling what was passed over and why."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bertjax.checkpoints.checkpoint import Damaged, finished_steps, latest_step
from bertjax.checkpoints.saving import STEP
from bertjax.errors import InputError
from bertjax.serialization.bounded_json import parse_object
from bertjax.storage import files

Read = TypeVar("Read")

_DELETION = 0.2
"""Seconds after which a checkpoint that is being deleted, and looks damaged meanwhile, is gone."""

_LISTINGS = 4


def read_newest(
    run: Path,
    read: Callable[[Path], Read],
    say: Callable[[str], None],
    together: Callable[[Callable[[], Any]], Any] = lambda look: look(),
) -> tuple[Read, Path, list[Path]]:
    """Return what `read` returns for the newest checkpoint that it can read, its folder, and those that are damaged.

    read: raises Damaged. One that is deleted meanwhile, as a run deletes old ones, is not damaged: the next newest is
    read. together: returns what one of several processes sees, so that all go on with the same checkpoint; then `read`
    raises the same errors on all. Raises InputError where there is none, and where all are damaged.
    """
    damaged: dict[Path, str] = {}
    deleted: set[Path] = set()
    while True:
        paths = [run / name for name in together(lambda: _names(run))]
        left = [path for path in paths if path not in damaged and path not in deleted]
        if not left:
            raise InputError(
                "; ".join([*damaged.values()] or [f"the checkpoints of {run} are deleted as they are read"])
            )
        path = max(left, key=lambda path: int(path.name) if STEP.fullmatch(path.name) else -1)
        try:
            together(partial(_check_link, path))
            found = read(path)
        except (InputError, FileNotFoundError) as error:
            if isinstance(error, Damaged):
                time.sleep(_DELETION)
            there = together(path.exists)
            if path == run or (there and not isinstance(error, Damaged)):
                raise
            if there:
                damaged[path] = str(error)
            else:
                deleted.add(path)
            continue
        for each in damaged.values():
            say(f"passed over: {each.partition(': move that folder')[0]}")
        if damaged:
            say(f"using {path} instead")
        return found, path, list(damaged)


def _check_link(path: Path) -> None:
    files.real_path(path.parent, path.name)


def _names(run: Path) -> list[str]:
    """Return the finished checkpoints as paths below a folder; "." where it is one itself.

    The folder is listed again where the newest has gone meanwhile, and another has come.
    """
    for _ in range(_LISTINGS if (run / "checkpoints").is_dir() else 0):
        with suppress(InputError):
            return _listed(run)
        time.sleep(_DELETION / _LISTINGS)
    return _listed(run)  # raises an error where there is none


def _listed(run: Path) -> list[str]:
    first = latest_step(run)
    return ["."] if first == run else [str(path.relative_to(run)) for path in finished_steps(first.parent)]


def check_not_emptied(run: Path, every: int) -> None:
    """Raise InputError where a run without checkpoints had some: to begin at step 0 would overwrite its log.

    every: steps between checkpoints. Where a run has no saved.json, as those of earlier versions, its log is asked.
    """
    folder = run / "checkpoints"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    parts = [(name, *name.split(".")) for name in names]
    aside = [name for name, step, *rest in parts if STEP.fullmatch(step) and rest[:1] in (["damaged"], ["diverged"])]
    remedy = f"put them back, or choose another --workdir; to begin again at step 0, delete {run}"
    if aside:
        raise InputError(f"{folder} holds no checkpoint to resume from, only {', '.join(aside)}: {remedy}")
    saved, log = run / "saved.json", run / "log.jsonl"
    if saved.exists():
        step = parse_object(files.read_inside(run, saved.name), str(saved)).get("step")
    else:
        step = _last_logged(log) if log.exists() else None
        step = step // every * every if step and every and step >= every else None
    if step is not None:
        raise InputError(f"{folder} is empty, but the run had saved step {step}: is its disk mounted? If so, {remedy}")


_LARGEST_LOG = 2**28  # bytes; a line of a log has some hundred


def _last_logged(log: Path) -> int | None:
    """Return the step of the last line of a log that can be read; None where there is none."""
    for line in reversed(files.read_inside(log.parent, log.name, _LARGEST_LOG).splitlines()):
        try:
            step = parse_object(line, str(log), constants=True).get("step")
        except InputError:
            continue
        if type(step) is int:  # nor true, NaN or Infinity
            return step
    return None
