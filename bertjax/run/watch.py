"""Watch that a run goes on: a thread ends it where no step is made for too long, or another process has failed.

Its main thread cannot: it may be waiting for a batch, for a device, or for a process that is gone.
"""

import threading
import time

import jax

from bertjax import exits
from bertjax.run import processes
from bertjax.run.leaving import LINGER, end
from bertjax.run.writers import Progress

COMPILATION = 3600.0
"""Seconds beyond the patience for what may include a compilation, or is not a step: the start, evaluation, saving."""

LISTEN = 2.0
"""Seconds between looks for failures of other processes."""


class Watch:
    """Watch a run, of which `now` is told each stage; closed at its end.

    patience: seconds for a step; 0: no limit. Other stages may take `extra` seconds more.
    """

    def __init__(self, patience: float, progress: Progress) -> None:
        self._patience, self._progress = patience, progress
        self._ending = False
        self._closed = threading.Event()
        self._former = processes.published_failures() if jax.process_count() > 1 else []  # of an earlier run
        self.now("the start", COMPILATION)
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        if patience or jax.process_count() > 1:
            self._thread.start()

    def now(self, stage: str, extra: float = 0.0) -> None:
        """Note what the run does from now on, and for how long it may at most."""
        self._stage = (stage, time.monotonic(), self._patience + extra if self._patience else float("inf"))

    def close(self) -> None:
        """End the watch; where it is ending the process, wait for that."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        pause = min(1.0, self._patience / 4) if self._patience else LISTEN
        listened, heard = time.monotonic(), 0.0
        while not self._closed.wait(pause):
            stage, since, limit = self._stage
            now = time.monotonic()
            if now - since > limit:
                text = f"hung: {stage} took over {limit:.0f} s (run.patience); the stacks of all threads follow"
                return end(self._progress, exits.HUNG, text, wait=LINGER)
            if jax.process_count() > 1 and now - listened > LISTEN:
                listened = now
                failures = [each for each in processes.published_failures() if each not in self._former]
                heard = heard or (now if failures else 0.0)
                if failures and now - heard > LINGER:
                    (code, text), *_ = failures
                    return end(self._progress, code, f"ended since another process failed: {text}", wait=0)
        return None
