"""End this process within a bound and with its exit code, whatever its threads, its libraries and other processes do.

Threads that wait for input keep Python from ending, and JAX waits at the end for processes that are gone, or aborts.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from bertjax import exits
from bertjax.run.writers import Progress

_decided: list[int] = []  # a process has one exit code: the first that is decided


def decide(code: int) -> int:
    """Decide the exit code of this process, and return it; of several decisions the first counts."""
    _decided.append(code)
    return _decided[0]


def end_within(seconds: float, code: int) -> None:
    """Decide the exit code, and end the process with it after some seconds, unless it has ended before."""
    code = decide(code)

    def end() -> None:
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=end, name="end", daemon=True).start()


def exit_at_aborts() -> None:
    """Let an abort end this process with the exit code that is decided, else with `PEERS_MISSING`.

    JAX aborts a process where another one of the run is gone, from a thread of its own, before Python can act.
    """

    def aborted(number: int) -> None:
        if not _decided:
            with suppress(OSError):
                os.write(2, b"bertjax: JAX has ended this process, as it does where another one of the run is gone\n")
        os._exit(_decided[0] if _decided else exits.PEERS_MISSING)

    handler = _HANDLER(aborted)
    _kept.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept: list[Any] = []  # C has the address of what is in here


LINGER = 5.0
"""Seconds that a process waits for others: to write their messages, or to hear of a failure."""


def end(progress: Progress, code: int, text: str, *, wait: float = 0) -> None:
    """Keep a message with the stacks of all threads, and end this process after `wait` seconds.

    An interactive session is not ended.
    """
    if hasattr(sys, "ps1"):
        progress.note(text)
        return
    end_within(wait + LINGER, code)  # also where the disk of the messages does not answer
    progress.stacks(text)
    time.sleep(wait)
    os._exit(decide(code))
