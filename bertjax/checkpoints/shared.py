"""The checkpoints that Orbax writes, of several processes or in Cloud Storage, with a note of the newest finished one.

Orbax finishes a checkpoint on a thread of its own and tells nobody, so a thread looks for it, on process 0 alone. The
note is `<run>/saved.json`, as `saving.py` writes it: it tells a run that was killed before its first checkpoint from
one whose checkpoints are gone.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from bertjax.storage import files

LOOK = 2.0
"""Seconds between looks for a checkpoint that is being written."""


class SharedSaves:
    """Orbax's manager of the checkpoints in a folder, and the note.

    finished: returns the steps of finished checkpoints. report: is told of errors of the note.
    """

    def __init__(
        self,
        manager: ocp.CheckpointManager,
        folder: Path,
        finished: Callable[[], list[int]],
        report: Callable[[str], None],
    ) -> None:
        self.directory = folder
        self._manager, self._finished, self._report = manager, finished, report
        self._looking: threading.Thread | None = None
        self._settled = threading.Event()  # Orbax writes no checkpoint: it has finished, or has failed
        if jax.process_index() == 0 and (finished() or not self._path.exists()):
            self._note(max(finished(), default=None))

    def __enter__(self) -> "SharedSaves":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def save(self, step: int, args: Any) -> bool:
        """Save in the background; return whether Orbax does. Raises the error of the save before, as Orbax does."""
        self.wait_until_finished()
        saves: bool = self._manager.save(step, args=args)
        if saves and jax.process_index() == 0:
            self._settled.clear()
            self._looking = threading.Thread(target=self._look, args=(step,), name="saved", daemon=True)
            self._looking.start()
        return saves

    def wait_until_finished(self) -> None:
        """Wait until the newest checkpoint is finished and noted. Raises the error of its save."""
        try:
            self._manager.wait_until_finished()
        finally:
            self._settled.set()
            if self._looking is not None:
                self._looking.join()
                self._looking = None

    def close(self) -> None:
        """Close the manager, once the newest checkpoint is finished and noted."""
        try:
            self.wait_until_finished()
        finally:
            self._manager.close()

    @property
    def _path(self) -> Path:
        return self.directory.parent / "saved.json"

    def _look(self, step: int) -> None:
        settled = False
        while not settled:
            settled = self._settled.wait(LOOK)
            try:
                found = step in self._finished()
            except Exception as error:  # noqa: BLE001 Cloud Storage may not answer for a while
                self._report(f"warning: whether checkpoint {step} is finished is not known: {error}")
                continue
            if found:
                return self._note(step)
        return None

    def _note(self, step: int | None) -> None:
        try:
            files.write(self._path, json.dumps({"step": step}))
        except Exception as error:  # noqa: BLE001 the checkpoint counts, not the note
            self._report(f"warning: {self._path} was not written: {error}")
