"""Say that a program is being compiled where that takes long, and how long it took on this machine before."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import jax

from bertjax.machine.compile_seconds import remember, roughly, usual
from bertjax.run.writers import Progress

LONG = 2.0
"""Seconds after which something is said."""

UNKNOWN = "which may take minutes where the model is large"


@contextmanager
def told_if_long(progress: Progress, text: Callable[[], str]) -> Iterator[None]:
    """Say a text where the block takes over LONG seconds; on a thread, since the block may be in the compiler."""
    timer = threading.Timer(LONG, lambda: progress.say(text()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Compiling:
    """The programs of a run, each of which is compiled when it is first called."""

    def __init__(self, progress: Progress, device: str = "") -> None:
        self._progress, self._seen = progress, set[Hashable]()
        self._device = device or jax.devices()[0].device_kind

    @contextmanager
    def first_call(self, program: Hashable) -> Iterator[None]:
        """Watch the call of a program; its first one compiles it."""
        if program in self._seen:
            yield
            return
        self._seen.add(program)
        begun = time.monotonic()
        with told_if_long(self._progress, lambda: f"compiling the step, {usual(self._device) or UNKNOWN}"):
            yield
        seconds = time.monotonic() - begun
        if seconds > LONG and self._progress.shown:
            self._progress.say(f"compiled in {roughly(seconds)}")
            remember(self._device, seconds)
