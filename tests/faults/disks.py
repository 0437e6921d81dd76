"""Save to disks that fail for a while, damage what is written, are full, or stay full."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from unittest.mock import patch

from drilled import HOME, Trials, compiled_once, digest, experiment_of, fitted, newest
from without import protected

from bertjax import faults
from bertjax.checkpoints import checkpoint, saving
from bertjax.errors import SaveFailed


@contextmanager
def hasty() -> Iterator[None]:
    """Let attempts follow each other quickly."""
    with patch.object(saving, "FIRST_PAUSE", 0.01), patch.object(saving, "LONGEST_PAUSE", 0.05), compiled_once():
        yield


@contextmanager
def faulty(text: str) -> Iterator[None]:
    """Inject faults, counted from now on."""
    faults._passes.clear()
    with patch.dict(os.environ, BERTJAX_FAULT=text):
        yield


def flaky(trials: int, on: bool = True) -> Trials:
    """Fail some attempts of each save at some point: training ends, the newest checkpoint is whole, none was lost.

    Off: an attempt that fails is not repeated.
    """
    rng, passed, notes, experiment = random.Random(2), 0, list[str](), experiment_of("bert", 20)
    with hasty(), protected(on, "attempts", "reading back"):
        wanted = digest(fitted(experiment, HOME / f"steady-{on}").params)
        for _ in range(trials):
            points = ["checkpoint.write", "checkpoint.commit", "checkpoint.delete"]
            chosen = [f"{rng.choice(points)}:{rng.choice(['enospc', 'edquot', 'eacces', 'eio'])}@{rng.randint(1, 4)}"]
            first = rng.randint(1, 3)
            chosen += [f"{rng.choice(points[:2])}:enospc@{first}-{first + rng.randint(0, 4)}"]
            chosen += [f"checkpoint.written:{rng.choice(['flip', 'truncate', 'delete'])}@{rng.randint(1, 4)}"]
            folder = HOME / f"flaky-{on}"
            try:
                with faulty(",".join(chosen)):
                    state = fitted(experiment, folder)
                whole = checkpoint.read_info(folder / "checkpoints" / "20")
                right = digest(state.params) == wanted and whole["step"] == 20
                problem = "another end"
            except Exception as error:  # noqa: BLE001 a run that ended has not passed
                right, problem = False, repr(error)
            passed += right
            notes += [] if right else [f"{','.join(chosen)}: {problem}"[:300]]
            shutil.rmtree(folder, ignore_errors=True)
    return Trials(trials, passed, tuple(notes))


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """Mount a disk of memory with so many megabytes. Raises CalledProcessError where this process may not."""
    folder = HOME / f"disk-{os.getpid()}"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, left: int) -> None:
    """Write a file that leaves so many bytes on a disk."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(2**16)):
                pass
        file.truncate(max(0, file.tell() - left))


def full(trials: int, on: bool = True) -> Trials:
    """Fill a disk at some save for some attempts: the run ends as one that had room, and so do its files.

    Each fourth time the disk stays full: the run ends with the exit code for that, and the newest checkpoint is whole.
    Off: an attempt that fails is not repeated.
    """
    rng, passed, notes, experiment = random.Random(5), 0, list[str](), experiment_of("bert", 20)
    with hasty(), protected(on, "attempts"), small_disk(64) as disk:
        wanted = digest(fitted(experiment, HOME / f"roomy-{on}").params)
        log = (HOME / f"roomy-{on}/log.jsonl").read_bytes()
        for trial in range(trials):
            stays, first = trial % 4 == 3, rng.randint(1, 3)
            last = first + (1000 if stays else rng.randint(0, 6))
            left = rng.choice([0, 4096, 20_000, 100_000])
            folder, problem = disk / "run", ""
            with _filled(disk, first, last, left):
                try:
                    end = digest(fitted(experiment, folder).params)
                    if stays or end != wanted or newest(folder) != 20 or (folder / "log.jsonl").read_bytes() != log:
                        problem = "it ended" if stays else "another end"
                except SaveFailed as error:
                    whole = checkpoint.read_info(checkpoint.latest_step(folder))["step"] if newest(folder) else 0
                    problem = "" if stays and whole == newest(folder) and on else repr(error)
                except Exception as error:  # noqa: BLE001 any other end is wrong
                    problem = repr(error)
            passed += not problem
            notes += [f"full from attempt {first} to {last}, {left} bytes left: {problem}"[:300]] if problem else []
            for path in disk.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Trials(trials, passed, tuple(notes))


@contextmanager
def _filled(disk: Path, first: int, last: int, left: int) -> Iterator[None]:
    """Leave so many bytes on a disk before the first of some attempts to save, and room again after the last."""
    attempted, attempts = saving.BackgroundSaves._attempt, count(1)

    def attempt(self: saving.BackgroundSaves, job: saving._Job) -> str:
        number = next(attempts)
        if number == first:
            fill(disk, left)
        elif number == last + 1:
            (disk / "ballast").unlink(missing_ok=True)
        return attempted(self, job)

    with patch.object(saving.BackgroundSaves, "_attempt", attempt):
        yield
