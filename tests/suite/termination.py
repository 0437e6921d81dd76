"""End the suite at SIGTERM, whatever handler a test has installed: `fit` catches the signal, and a test would go on.

The interpreter writes each signal that it handles to a file descriptor, before and beside the handlers. A thread reads
it, so that not even a long compilation delays the end.
"""

import os
import signal
import threading
import time
from pathlib import Path

PATIENCE = 1.0 if "PYTEST_XDIST_WORKER" in os.environ else 4.0  # seconds: workers end their children before they end


def install() -> None:
    """Watch for SIGTERM from other processes, from now on; must be called in the main thread."""
    sent_by_tests: list[int] = []
    kill, reader_and_writer = os.kill, os.pipe()
    reader, writer = reader_and_writer

    def noted_kill(pid: int, number: int) -> None:
        if (pid, number) == (os.getpid(), signal.SIGTERM):
            sent_by_tests.append(number)
        kill(pid, number)

    def watch() -> None:
        while received := os.read(reader, 1):
            if received[0] != signal.SIGTERM:
                continue
            if sent_by_tests:
                sent_by_tests.pop()
            else:
                end()

    def reset() -> None:  # in a forked child, whose signals are no concern of ours
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    os.kill = noted_kill
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # signals without a handler in Python are not written
    os.register_at_fork(after_in_child=reset)
    threading.Thread(target=watch, daemon=True).start()


def end() -> None:
    """End the child processes, then this one, without waiting for any Python code that it runs."""
    deadline = time.monotonic() + PATIENCE
    asked = send(signal.SIGTERM)
    while asked & send(0) and time.monotonic() < deadline:
        time.sleep(0.05)
    send(signal.SIGKILL)  # also to workers that xdist has begun in place of those that ended
    os.write(2, b"\nended by SIGTERM\n")
    os._exit(128 + signal.SIGTERM)


def send(number: int) -> set[int]:
    """Send a signal to all children that run; return their process ids."""
    found = set()
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            try:
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    os.kill(pid, number)
                    found.add(pid)
            except (ChildProcessError, ProcessLookupError):
                continue
    return found
