"""Guard the work directory of a run: one run at a time, always the same experiment.

<run>/experiment.json     the description of the experiment     NAME.py        a copy of each own experiment file in it
      checkpoints/        see bertjax.checkpoints.checkpoint    saved.json     see bertjax.checkpoints.saving
      log.jsonl           metrics                               timing.jsonl   speed
      log.jsonl.damaged   the log before it was mended          messages.log   of process N: messages-N.log
      diverged/           see bertjax.run.bad_batch             profile/       traces
      tensorboard/        events                                wandb/         with wandb_id, the name of the run
      lock                locked while a run is going on
"""

import dataclasses
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertjax.amendments import STEPS, Amendment
from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.info import Described
from bertjax.checkpoints.newest import read_newest
from bertjax.config import Experiment, sources
from bertjax.errors import InputError
from bertjax.serialization.bounded_json import parse_object
from bertjax.serialization.closed_set import COUNTERS
from bertjax.serialization.description import dump, from_json, to_json, up_to_date
from bertjax.serialization.places import PLACES
from bertjax.serialization.typed_json import typed
from bertjax.storage import files
from bertjax.storage.lease import leased, owner_of
from bertjax.storage.paths import in_cloud, path_of


@contextmanager
def lock_workdir(workdir: str | Path) -> Iterator[Callable[[], None]]:
    """Create the directory if need be, and lock it. Raises InputError where it is locked or cannot be written.

    Yields a function that raises InputError where another process has taken the lock over, which can happen in Cloud
    Storage alone: see `bertjax.storage.lease`.
    """
    folder = path_of(workdir)
    if in_cloud(folder):
        with leased(folder / "lock") as lease:
            yield lease.check
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = files.open_append(folder / "lock")
    except OSError as error:
        raise InputError(f"cannot write to the work folder {folder}: {error.strerror}; choose another") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system when the process dies
        except BlockingIOError as error:
            lock.seek(0)
            raise InputError(
                f"another run is going on in {folder} ({lock.read().strip()}): wait for it, or choose another --workdir"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        lock.flush()
        _check_links(folder)
        yield lambda: None


def _check_links(folder: Path) -> None:
    """Raise InputError where a link leads out of what a run reads and writes, or a file is none: before it begins."""
    for path in folder.iterdir():
        if path.name != "wandb" or path.is_symlink():  # W&B links its logs to its cache
            files.check_tree(folder, path.name)


def lock_text(folder: Path) -> str:
    """Return the text in the lock: hosts that read different texts do not see the same directory."""
    try:
        return (
            owner_of(folder / "lock")
            if in_cloud(folder)
            else files.read_inside(folder, "lock").decode(errors="replace")
        )
    except (OSError, InputError):
        return ""


def as_begun(folder: Path, experiment: Experiment) -> Experiment:
    """Return the experiment as the run in the directory goes on with it, if there is one.

    That is with the rule for counters that it began with, and with all amendments so far; `extend` becomes one, from
    the step after the newest checkpoint on. Raises InputError where a new one is for a step that is done, where a run
    would not become longer, and where amendments so far do not fit the experiment, which is another one then.
    """
    there = recorded(folder)
    if there is None and experiment.extend:
        raise InputError(
            f"extend={experiment.extend} makes a run longer that has begun, and {folder} has none: leave it out, and "
            "set the experiment's own `steps`"
        )
    if there is None:
        return experiment
    counters = from_json(there["counters"], COUNTERS, "counters")
    begun = _amendments(there)
    new = [each for each in experiment.amend if each not in begun]
    done = max((int(path.name) for path in checkpoint.finished_steps(folder / "checkpoints")), default=0)
    new += _extension(experiment, [*begun, *new], done)
    replaced = {(each.name, each.step) for each in new}
    for each in new:
        if each.step <= done:
            raise InputError(
                f"amend={each}: step {each.step} is done, the newest checkpoint is that of step {done}: amend from "
                f"step {done + 1} on, or move later checkpoints away"
            )
    kept = [each for each in begun if (each.name, each.step) not in replaced]
    amend = tuple(sorted([*kept, *new], key=lambda each: (each.step, each.name)))
    try:
        return dataclasses.replace(experiment, counters=counters, amend=amend, extend=0)
    except ValueError as error:
        _check_same(folder, there, dataclasses.replace(experiment, counters=counters, amend=(), extend=0))
        raise InputError(
            f"the amendments of the run in {folder} do not fit: {error}. Mend `amend` in its experiment.json, or "
            "choose another --workdir"
        ) from error


def _extension(experiment: Experiment, amend: list[Amendment], done: int) -> list[Amendment]:
    """Return the amendment for `extend`, none where there is none to make or the run has so many steps already."""
    now = max(sum(phase.steps for phase in experiment.phases), *(int(e.value) for e in amend if e.name == STEPS), 0)
    if experiment.extend and experiment.extend < now:
        raise InputError(
            f"extend={experiment.extend} is the number of all steps, and the run has {now} already: for so many steps "
            f"more give extend={now + experiment.extend}"
        )
    return [Amendment(STEPS, str(experiment.extend), done + 1)] if experiment.extend > now else []


def _amendments(described: dict[str, Any]) -> tuple[Amendment, ...]:
    return tuple(Amendment(each["name"], each["value"], each["step"]) for each in described.get("amend", ()))


def recorded(folder: Path) -> dict[str, Any] | None:
    """Return the description of the experiment of a work directory, None for a new one.

    Where experiment.json is missing or damaged, that of its newest checkpoint is as good. Raises InputError where there
    is none.
    """
    path = folder / "experiment.json"
    problem = ""
    if path.exists():
        try:
            there: dict[str, Any] = {**typed(_read(folder, path.name), Described, str(path))}
            _amendments(there)  # raises InputError for one of another form
            if "counters" in there and there.get("phases"):
                return there
            problem = f"{path} is no description of an experiment"
        except (InputError, KeyError, TypeError) as error:
            problem = f"{path} is damaged ({error})"
    if checkpoint.has_checkpoint(folder):
        found: dict[str, Any] = read_newest(folder, checkpoint.read_info, say=lambda text: None)[0]["experiment"]
        return found
    if problem:
        raise InputError(f"{problem}, and no checkpoint has a copy of it: delete {folder}, or choose another --workdir")
    return None


def _read(folder: Path, name: str) -> Any:
    return up_to_date(parse_object(files.read_inside(folder, name), f"{folder / name}"))


def record_experiment(folder: Path, experiment: Experiment) -> None:
    """Write experiment.json. Raises InputError where the directory belongs to another experiment.

    Logging and the paths of corpora may differ; their contents are compared when a checkpoint is restored.
    The rule for counters and earlier amendments are those of the directory, see `as_begun`.
    """
    experiment, path = as_begun(folder, experiment), folder / "experiment.json"
    saved = recorded(folder)
    if saved is not None:
        _check_same(folder, saved, experiment)
    files.write(path, dump(experiment))
    for name, source in sources(experiment).items():
        files.write(folder / name, source)


def _check_same(folder: Path, saved: dict[str, Any], experiment: Experiment) -> None:
    """Raise InputError where the recorded description of a work directory is of another experiment."""
    found = differences(_computed(saved), _computed(to_json(experiment)))
    changes = [f"{name} is {json.dumps(a):.200} there, {json.dumps(b):.200} here" for name, a, b in found]
    if changes:
        more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
        raise InputError(
            f"work folder {folder} belongs to another experiment: {'; '.join(changes[:3])}{more}. Choose another "
            "--workdir, or use the settings of this one; a number of the optimiser may change from a step on "
            "(amend=optimizer.FIELD:VALUE@STEP), and the run be made longer (extend=STEPS)"
        )


def _computed(described: dict[str, Any]) -> dict[str, Any]:
    """Keep the fields that decide the numbers."""
    phases = [phase | {"rows": phase["rows"] | PLACES} for phase in described["phases"]]
    return described | {
        "run": None,
        "phases": phases,
        "init": described.get("init", ""),
        "mesh": None,
        "amend": None,
        "extend": None,
    }


def differences(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield where two descriptions differ: the dotted name of a field, its value there, its value here."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (a, b) in enumerate(zip(there, here, strict=True)):
            yield from differences(a, b, f"{name}.{index}".lstrip("."))
    elif there != here:
        yield name, there, here
