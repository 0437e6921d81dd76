"""Train in processes of their own that cost no start of Python: forked from one that has imported all, but not begun.

JAX starts its threads with its first device; so a process that has none yet may fork, and each of its children is a
training process as any other, which a real SIGKILL ends at any moment.
"""

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jax._src import xla_bridge


def forked(work: Callable[[], str], output: Path, kill_after: float | None = None) -> tuple[str | None, float]:
    """Return what `work` returned in a child, None where it was killed that many seconds after it began; its seconds.

    Raises RuntimeError where the child failed by itself. output: the file that it writes its words to.
    """
    assert not xla_bridge.backends_are_initialized(), "JAX has begun: its threads would be missing in the child"
    reader, writer = os.pipe()
    begun = time.monotonic()
    child = os.fork()
    if not child:
        _work(work, writer, output)
    os.close(writer)
    if kill_after is not None:
        with suppress(ChildProcessError):
            while time.monotonic() - begun < kill_after and not os.waitid(
                os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
            ):
                time.sleep(0.005)
        os.kill(child, signal.SIGKILL)  # a zombie at least is there
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the run failed by itself, with status {status}: {output.read_text()[-2000:]}")
    return (said or None), time.monotonic() - begun


def _work(work: Callable[[], str], writer: int, output: Path) -> None:
    code = 1
    try:
        words = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(words, 1)
        os.dup2(words, 2)
        faulthandler.enable()
        os.write(writer, work().encode())
        code = 0
    except BaseException:  # noqa: BLE001 nothing of the parent may go on here
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
