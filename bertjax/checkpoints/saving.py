"""Save the states of a run in a thread: a failed attempt is repeated, a checkpoint counts once it was read back.

A checkpoint is written beside the others under a name of its own, read back and compared, flushed to the disk, and only
then renamed; an old one goes after that. So neither a full disk nor a kill ever costs a checkpoint that is there.

<run>/saved.json    the step of the newest checkpoint that was finished, null before the first one
"""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bertjax.errors import SaveFailed
from bertjax.faults import fault
from bertjax.storage import files
from bertjax.wording import counted

Arrays = Mapping[str, Any]
"""Trees of arrays by item: params, optimizer."""

ATTEMPTS = 8
"""Failed attempts in a row after which a run stops."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 32.0  # seconds between attempts, doubled each time: a minute for all of them

STEP = re.compile(r"[0-9]{1,15}")
"""The name of a checkpoint; isdigit() holds for ² too."""

_UNFINISHED = ("*.saving*", "*.deleting", "*.orbax-checkpoint-tmp*")


class _Job(NamedTuple):
    step: int
    arrays: Arrays
    info: Mapping[str, Any]


class BackgroundSaves:
    """The checkpoints of a run of one process, on a disk, and the thread that writes them.

    write(folder, arrays, info): writes a checkpoint. verify(folder, arrays, info): raises an error unless it reads the
    same from there. report: is told of failed attempts. Any error of an attempt is one that may pass.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        keep_every: int,
        write: Callable[[Path, Arrays, Mapping[str, Any]], None],
        verify: Callable[[Path, Arrays, Mapping[str, Any]], None],
        report: Callable[[str], None],
    ) -> None:
        self._folder, self._keep, self._keep_every = folder, keep, keep_every
        self._write, self._verify, self._report = write, verify, report
        self._changed = threading.Condition()
        self._job: _Job | None = None  # the newest state that is not saved yet
        self._pausing = self._closing = False
        self._failures, self._error = 0, ""
        for pattern in _UNFINISHED:
            for path in folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)
        if not (folder.parent / "saved.json").exists():
            self._note(max((step for step, _ in self._finished()), default=None))
        self._thread = threading.Thread(target=self._work, name="saves", daemon=True)
        self._thread.start()

    def __enter__(self) -> "BackgroundSaves":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def save(self, step: int, arrays: Arrays, info: Mapping[str, Any]) -> None:
        """Copy the arrays to the host and save them in the background, once the attempt that is running has ended.

        A state whose attempts have failed so far is given up for this one. Raises SaveFailed after ATTEMPTS failures.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._job is None or self._pausing)
            self._raise_failure()
        for leaf in jax.tree.leaves(arrays):
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()
        copied = jax.tree.map(lambda leaf: np.array(leaf, copy=True), dict(arrays))  # the next update reuses its memory
        with self._changed:
            self._job = _Job(step, copied, info)
            self._changed.notify_all()

    def wait_until_finished(self) -> None:
        """Wait until the newest state is saved. Raises SaveFailed after ATTEMPTS failures."""
        with self._changed:
            self._changed.wait_for(lambda: self._job is None)
            self._raise_failure()

    def close(self) -> None:
        """End the thread once the newest state is saved. Raises SaveFailed after ATTEMPTS failures."""
        try:
            self.wait_until_finished()
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._thread.join()

    def _raise_failure(self) -> None:
        if self._error:
            error, self._error = self._error, ""
            raise SaveFailed(error)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._job is not None or self._closing)
                if self._job is None:
                    return
                job = self._job
            problem = self._attempt(job)
            with self._changed:
                pause = self._noted(job, problem)
                self._pausing = pause > 0
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closing, pause)
                self._pausing = False

    def _noted(self, job: _Job, problem: str) -> float:
        """Count the outcome of an attempt; return the seconds until the next one, 0 where none is needed."""
        if not problem:
            if self._failures:
                self._tell(
                    f"the checkpoint of step {job.step} is saved, after {counted(self._failures, 'failed attempts')}"
                )
            self._job = None if self._job is job else self._job  # a newer one may have come while this one was written
            self._failures = 0
            return 0.0
        self._failures += 1
        failed = f"the checkpoint of step {job.step} was not saved ({problem})"
        if self._failures >= ATTEMPTS:
            self._job, self._failures = None, 0
            self._error = (
                f"{failed}, nor any in {ATTEMPTS} attempts: see to the disk of {self._folder}, then run the same "
                "command again, which goes on from the newest checkpoint there"
            )
            return 0.0
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failures - 1))
        self._tell(f"{failed}: attempt {self._failures} of {ATTEMPTS}, the next in {pause:g} s; training goes on")
        return pause

    def _attempt(self, job: _Job) -> str:
        """Write, read back and rename a checkpoint, and delete old ones; return what went wrong, "" for nothing."""
        saving, final = self._folder / f"{job.step}.saving", self._folder / str(job.step)
        try:
            self._folder.mkdir(exist_ok=True)
            self._remove_unfinished(job.step)
            fault("checkpoint.write")
            self._write(saving, job.arrays, job.info)
            fault("checkpoint.written", path=saving)
            self._verify(saving, job.arrays, job.info)
            _flush_tree(saving)
            fault("checkpoint.commit")
            if final.exists():
                self._delete(final)
            saving.rename(final)
            _flush(self._folder)
        except BaseException as error:  # noqa: BLE001 of any kind; without this thread the run would wait for ever
            with suppress(Exception):  # the next attempt does it too, and reports why it cannot
                self._remove_unfinished(job.step)
            return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        self._note(job.step)
        self._delete_old()
        return ""

    def _remove_unfinished(self, step: int) -> None:
        for path in self._folder.glob(f"{step}.saving*"):
            shutil.rmtree(path, ignore_errors=True)

    def _note(self, step: int | None) -> None:
        try:
            files.write(self._folder.parent / "saved.json", json.dumps({"step": step}))
        except Exception as error:  # noqa: BLE001 the checkpoint is there all the same
            self._tell(f"warning: {self._folder.parent / 'saved.json'} was not written: {error}")

    def _tell(self, text: str) -> None:
        with suppress(Exception):  # output that has gone away must not end the thread
            self._report(text)

    def _finished(self) -> list[tuple[int, Path]]:
        return sorted((int(path.name), path) for path in self._folder.iterdir() if STEP.fullmatch(path.name))

    def _delete_old(self) -> None:
        """Delete old checkpoints. What fails is reported, and tried again after the next checkpoint."""
        try:
            old = self._finished()[: -self._keep]
        except Exception as error:  # noqa: BLE001 the new checkpoint is there all the same
            self._tell(f"warning: the old checkpoints in {self._folder} were not deleted: {error}")
            return
        for step, path in old:
            if not self._keep_every or step % self._keep_every:
                try:
                    self._delete(path)
                except Exception as error:  # noqa: BLE001 as above
                    self._tell(f"warning: the old checkpoint {path} was not deleted: {error}")

    def _delete(self, path: Path) -> None:
        """Delete a checkpoint: it is gone at once, so that no reader finds a part of it."""
        fault("checkpoint.delete", path=path)
        going = path.with_name(f"{path.name}.deleting")
        path.rename(going)
        shutil.rmtree(going, ignore_errors=True)


def _flush_tree(folder: Path) -> None:
    """Flush a folder with all its files from the system's memory to the disk, so that a power cut loses nothing."""
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
