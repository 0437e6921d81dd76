"""Watch that a run goes on: a thread ends it where no step is made for too long, or another process has failed.

Its main thread cannot: it may be waiting for a batch, for a device, or for a process that is gone.
"""

import threading
import time
from collections.abc import Hashable

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
        self._closed = threading.Event()
        self._first: dict[Hashable, int] = {}  # the first step of each program
        self.now("the start", COMPILATION)
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        if patience:
            self._thread.start()
        if jax.process_count() > 1:
            threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def now(self, stage: str, extra: float = 0.0) -> None:
        """Note what the run does from now on, and for how long it may at most."""
        self._stage = (stage, self._patience + extra)

    def step(self, step: int, program: Hashable, read: int) -> None:
        """Note that a step is being made. Its program is compiled, here or elsewhere, until a step of it was `read`."""
        first = self._first.setdefault(program, step)
        self.now(f"step {step}", COMPILATION if first > read else 0)

    def close(self) -> None:
        """End the watch; where it is ending the process, wait for that."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        pause = min(1.0, self._patience / 4)
        before, watched, seconds = time.monotonic(), self._stage, 0.0
        while not self._closed.wait(pause):
            now = time.monotonic()
            seconds = 0.0 if watched is not self._stage else seconds
            seconds += min(now - before, pause + 1)  # time in which this process was stopped, as by Ctrl-Z, is its own
            before, watched = now, self._stage
            if seconds > watched[1]:
                text = (
                    f"hung: {watched[0]} took over {watched[1]:.0f} s (run.patience); the stacks of all threads follow"
                )
                return end(self._progress, exits.HUNG, text, wait=LINGER)
        return None

    def _listen(self) -> None:
        """Listen for failures of other processes, on a thread of its own, since process 0 may not answer."""
        former = processes.published_failures()  # of an earlier run of these processes
        while not self._closed.wait(LISTEN):
            failures = [each for each in processes.published_failures() if each not in former]
            if failures and not self._closed.wait(LINGER):
                (code, text), *_ = failures
                return end(self._progress, code, f"ended since another process failed: {text}")
        return None
