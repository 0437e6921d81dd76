"""Stop a run on Ctrl-C or SIGTERM: after the step that is running, once a checkpoint is saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop by signal number `signal`, and stopped after a checkpoint."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}, checkpoint saved: run the same command again to resume")
        self.signal = number


@dataclass
class StopRequest:
    """The signal that asked the run to stop; 0 while none has."""

    signal: int = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; a second one, of either kind, acts at once.

    With the first one the handlers that were set before are restored: Python's own end the process. Outside the main
    thread, where Python allows no handlers, as in some notebooks, nothing is caught.
    """
    request = StopRequest()
    before: dict[int, Any] = {}

    def receive(number: int, frame: Any) -> None:
        request.signal = number
        restore()

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, receive)
    except ValueError:  # not the main thread
        pass
    try:
        yield request
    finally:
        restore()
