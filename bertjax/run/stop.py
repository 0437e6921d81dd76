"""Stop a run on a signal: after the step that is running, once a checkpoint is saved; without one after a while.

Ctrl-C, SIGTERM, SIGHUP (the terminal is gone) and SIGUSR1 (a notice of Slurm) all ask for it. A thread sees them too,
since Python runs handlers in the main thread alone, which may be compiling or waiting for a device.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from bertjax import exits

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

GRACE = 25.0
"""Seconds after the first signal in which a run may begin to save. Most machines and jobs that are preempted get 30."""


class Interrupted(Exception):
    """The run was asked to stop by signal number `signal`, and stopped after a checkpoint."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}, checkpoint saved: run the same command again to resume")
        self.signal = number
        self.exit_code = exits.INTERRUPTED if number == signal.SIGINT else exits.PREEMPTED


@dataclass
class StopRequest:
    """The signals that asked the run to stop, and what it is doing meanwhile."""

    signal: int = 0  # the first; 0 while none has arrived
    count: int = 0  # of all, as far as the thread has seen them
    since: float = 0.0  # when the first arrived, by the monotonic clock
    at_once: bool = False  # whether to raise KeyboardInterrupt in the main thread, which loses nothing by it now
    starting: bool = False  # whether there is no step to save yet
    saving: bool = False  # whether a checkpoint is being saved, or is saved
    step_seconds: float = 0.0  # a step that takes longer than the grace must be able to end

    def receive(self, number: int) -> None:
        """Note a signal, of which only the first decides."""
        if not self.signal:
            self.signal, self.since = number, time.monotonic()

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Let a signal raise KeyboardInterrupt inside, also one that has arrived before."""
        self.at_once = True
        try:
            if self.signal:
                raise KeyboardInterrupt
            yield
        finally:
            self.at_once = False

    def overdue(self, grace: float) -> float:
        """Return the seconds since a run should have begun to save; negative before that, and without a signal."""
        return time.monotonic() - self.since - grace - 2 * self.step_seconds if self.signal else -grace


@contextmanager
def stop_requests(
    grace: float = GRACE, end: Callable[[int, str], Any] | None = None, say: Callable[[str], None] | None = None
) -> Iterator[StopRequest]:
    """Turn signals into requests to stop, and end the process without a checkpoint if none begins within the grace.

    Later signals are counted. One that arrives while a checkpoint is being saved, after the grace, ends the process
    too. SIGHUP and SIGUSR1 stay ignored where the caller ignores them, as nohup does. Outside the main thread, where
    Python allows no handlers, as in some notebooks, nothing is caught.

    end: called with an exit code and a message, to end the process; without it, and in an interactive session, a
    signal after the grace raises KeyboardInterrupt. say: is told what happens, on the thread.
    """
    request = StopRequest()

    def receive(number: int, frame: Any) -> None:
        late = request.overdue(grace) > 0
        request.receive(number)
        if request.at_once or (late and (end is None or hasattr(sys, "ps1"))):
            request.at_once = False
            raise KeyboardInterrupt

    before: dict[int, Any] = {}
    try:
        for number in map(int, SIGNALS):
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN or number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, receive)
    except ValueError:  # not the main thread
        yield request
        return
    try:
        with _watching(request, set(before), grace, end, say or (lambda text: None)):
            yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def catch_again() -> None:
    """Install the handlers of `stop_requests` again, after a library has replaced them behind Python's back."""
    with suppress(ValueError):  # not the main thread
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, handler)


@contextmanager
def _watching(
    request: StopRequest,
    numbers: set[int],
    grace: float,
    end: Callable[[int, str], Any] | None,
    say: Callable[[str], None],
) -> Iterator[None]:
    """Watch the signals on a thread, to which the interpreter writes the number of each as a byte."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            late = request.overdue(grace)
            if late > 0 and not request.saving and end is not None:
                return end(
                    exits.STOPPED, f"no checkpoint could be begun within {time.monotonic() - request.since:.0f} s"
                )
            seconds = None if not request.signal else -late if late < 0 else 1.0
            ready, _, _ = select.select([reader], [], [], seconds)
            received = os.read(reader, 1) if ready else b""
            if received == _CLOSE:
                return None
            if received:
                if former >= 0:
                    with suppress(OSError):
                        os.write(former, received)  # of a program around this one
                again = received[0] in numbers and _count(request, received[0], grace, say) > 1
                if again and late > 0 and end is not None:
                    return end(exits.STOPPED, "a signal arrived again while the checkpoint was being saved")

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        os.write(writer, _CLOSE)
        thread.join()
        os.close(reader)
        os.close(writer)


_CLOSE = b"\0"


def _count(request: StopRequest, number: int, grace: float, say: Callable[[str], None]) -> int:
    """Count a signal, and acknowledge it at once, whatever the main thread does."""
    request.receive(number)
    request.count += 1
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    how = "once the checkpoint is saved" if request.saving else "after a checkpoint"
    if request.starting:
        how = "now, as there is no step to save yet"
    if request.count == 1:
        left = max(0, -request.overdue(grace))
        limit = f" of the step that is running, or without one if that takes over {left:.0f} s more"
        say(f"{name}: stopping {how}{limit * (how == 'after a checkpoint')}")
    elif request.count < 5:
        say(f"{name} again: still stopping {how}")
    return request.count
