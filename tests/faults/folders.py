"""Damage the work folder of a run that was killed: it goes on to the same end, or is refused, and loses nothing."""

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from drilled import HOME, Trials, compiled_once, digest, experiment_of, fitted
from poison import DAMAGES
from without import protected

from bertjax import train
from bertjax.config import Experiment
from bertjax.errors import InputError

Change = Callable[[Path], Any]

FILES = (
    "experiment.json", "log.jsonl", "timing.jsonl", "saved.json", "messages.log", "lock",
    *(f"checkpoints/10/{name}" for name in (
        "info/metadata", "params/_METADATA", "params/manifest.ocdbt", "params/d", "optimizer/d", "_CHECKPOINT_METADATA",
    )),
)  # fmt: skip

CONTENTS: dict[str, Change] = {name: damage for name, damage in DAMAGES.items() if name != "exchanged"} | {
    "of brackets": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text("[1]"),
    "of no text": lambda path: path.write_bytes(b"\xff\xfe{}"),
}


def _file(name: str, damage: Change) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        damage(max(path.iterdir(), key=lambda each: each.stat().st_size) if path.is_dir() else path)

    return change


def _renamed(one: str, other: str) -> Change:
    return lambda folder: (folder / "checkpoints" / one).rename(folder / "checkpoints" / other)


def _swapped(folder: Path) -> None:
    for one, other in (("5", "x"), ("10", "5"), ("x", "10")):
        _renamed(one, other)(folder)


def _without(name: str) -> Change:
    return lambda folder: shutil.rmtree(folder / "checkpoints" / name)


def _put(name: str, make: Change) -> Change:
    return lambda folder: make(folder / name)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").mkdir()


def _in_place_of_checkpoints(make: Change) -> Change:
    def change(folder: Path) -> None:
        (folder / "checkpoints").rename(folder.with_name(f"{folder.name}-moved"))
        make(folder / "checkpoints")

    return change


def _all_damaged(folder: Path) -> None:
    for path in folder.glob("checkpoints/*/info/metadata"):
        path.write_bytes(b"{}")


def _log(change: Callable[[list[bytes]], list[bytes]]) -> Change:
    def write(folder: Path) -> None:
        path = folder / "log.jsonl"
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return write


def _seed(folder: Path) -> None:
    path = folder / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 7}))


def _copied(name: str, other: str) -> Change:
    return lambda folder: shutil.copytree(folder / name, folder / other)


PLACES: dict[str, Change] = {
    "checkpoints emptied": _emptied,
    "checkpoints gone": lambda folder: shutil.rmtree(folder / "checkpoints"),
    "checkpoints a file": _in_place_of_checkpoints(Path.touch),
    "checkpoints a link to nothing": _in_place_of_checkpoints(lambda path: path.symlink_to("unmounted")),
    "checkpoints elsewhere": _in_place_of_checkpoints(lambda path: path.symlink_to(f"../{path.parent.name}-moved")),
    "checkpoints a queue": _in_place_of_checkpoints(os.mkfifo),
    "the newest renamed to a later step": _renamed("10", "99"),
    "the oldest renamed to a later step": _renamed("5", "50"),
    "the newest renamed to no step": _renamed("10", "ten"),
    "two exchanged": _swapped,
    "a copy under a later step": _copied("checkpoints/10", "checkpoints/15"),
    "the newest without parameters": _without("10/params"),
    "the newest without moments": _without("10/optimizer"),
    "the newest without a description": _without("10/info"),
    "the newest gone": _without("10"),
    "the newest set aside": _renamed("10", "10.damaged"),
    "all set aside": lambda folder: (_renamed("10", "10.damaged")(folder), _renamed("5", "5.damaged")(folder)),
    "all damaged": _all_damaged,
    "a file as the newest": _put("checkpoints/15", Path.touch),
    "an empty folder as the newest": _put("checkpoints/15", Path.mkdir),
    "a step of other digits": _put("checkpoints/²", Path.mkdir),
    "a step beyond numbers": _put("checkpoints/" + "9" * 200, Path.mkdir),
    "a step with a zero before": _put("checkpoints/010", Path.mkdir),
    "a step that was being written": _copied("checkpoints/10", "checkpoints/15.saving"),
    "a step that was being deleted": _copied("checkpoints/10", "checkpoints/5.deleting"),
    "an experiment of another seed": _seed,
    "a log with lines twice": _log(lambda lines: [line for line in lines for _ in range(2)]),
    "a log out of order": _log(lambda lines: lines[::-1]),
    "a log of Windows": _log(lambda lines: [line.replace(b"\n", b"\r\n") for line in lines]),
    "a log with a hole": _log(lambda lines: lines[:3] + lines[7:]),
    "a log of later steps": _log(lambda lines: [line.replace(b'"step": 1', b'"step": 91') for line in lines]),
    "a log whose last line is cut": _log(lambda lines: [*lines[:-1], lines[-1][:20]]),
    "a log with zeros at its end": _log(lambda lines: [*lines, bytes(512)]),
    "a note of a later step": _put("saved.json", lambda path: path.write_text('{"step": 1000}')),
    "a note of no step": _put("saved.json", lambda path: path.write_text('{"step": "ten"}')),
}

HOSTILE = PLACES | {
    f"{name} {damage}": _file(name, change) for damage, change in CONTENTS.items() for name in FILES
}  # fmt: skip

UNSEEN = "log.jsonl flipped"
"""A changed digit in the log is not noticed, as the page says: the weights are the same."""

SECONDS = 60


def folders(count: int, on: bool = True) -> Trials:
    """Resume a run whose work folder was damaged.

    It ends as the run that was not killed, with the same log or a line in it that says what is lost; or it is refused
    in one line, and the checkpoints that were good are there as before. It never begins again at step 0 where a step
    was saved. Off: checkpoints are not searched, steps not compared with their names, empty folders not noticed, and
    the log is not mended.
    """
    names = [*PLACES, *random.Random(11).sample(sorted(HOSTILE.keys() - PLACES.keys()), len(HOSTILE) - len(PLACES))]
    names = names[:count] if count >= len(PLACES) else random.Random(12).sample(names, count)
    notes, experiment = list[str](), experiment_of("bert", 20)
    with compiled_once():
        killed, wanted, log = _killed(experiment)
        for name in names:
            folder, moved = HOME / f"hostile-{on}", HOME / f"hostile-{on}-moved"
            shutil.copytree(killed, folder)
            HOSTILE[name](folder)
            problem = _resumed(name, experiment, folder, wanted, log, on)
            notes += [f"{name}: {problem}"[:300]] if problem else []
            for path in (folder, moved):
                shutil.rmtree(path, ignore_errors=True)
    return Trials(len(names), len(names) - len(notes), tuple(notes))


@cache
def _killed(experiment: Experiment) -> tuple[Path, str, list[bytes]]:
    """Return the folder of a run that was killed after step 12, and the end and the log of one that was not."""
    whole, killed = (HOME / f"{name}-{os.getpid()}" for name in ("unhurt", "killed"))
    wanted = digest(fitted(experiment, whole).params)
    place, calls = train.place_batch, iter(range(100))

    def dying(*arguments: Any) -> Any:
        if next(calls) == 12:
            raise SystemExit
        return place(*arguments)

    train.place_batch = dying
    with suppress(SystemExit):
        fitted(experiment, killed)
    train.place_batch = place
    return killed, wanted, (whole / "log.jsonl").read_bytes().splitlines()


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"it took over {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _contents(folder: Path) -> dict[str, bytes]:
    names = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def _resumed(name: str, experiment: Experiment, folder: Path, wanted: str, log: list[bytes], on: bool) -> str:
    """Resume a run; return what went wrong, "" for nothing."""
    before, messages = _contents(folder / "checkpoints"), folder / "messages.log"
    said_before = messages.read_bytes() if messages.is_file() else b""
    try:
        with _at_most(SECONDS), protected(on, "search", "names", "emptied", "mending"):
            end = digest(fitted(experiment, folder).params)
    except InputError as error:
        after = _contents(folder / "checkpoints")
        lost = [name for name in before if after.get(name) != before[name]]
        return f"refused, but {lost[:3]} changed" if lost else "" if "\n" not in str(error) else "not in one line"
    except BaseException as error:  # noqa: BLE001 any other end is wrong
        return f"{type(error).__name__}: {error}"
    if end != wanted:
        return "another end"
    said = messages.read_bytes().removeprefix(said_before) if messages.is_file() else b""
    if re.search(rb"from step 0\b", said):
        return "it began again at step 0"
    found = (folder / "log.jsonl").read_bytes().splitlines() if (folder / "log.jsonl").is_file() else []
    told = any(b'"lost"' in line for line in found) or name == UNSEEN
    return "" if found == log or told else f"another log, of {len(found)} lines, without a word"
