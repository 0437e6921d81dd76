"""The exit codes of bertjax, one for each way in which a command ends.

`tpu/watch.py` reads this file without the package, and docs/runs.md lists it: nothing is imported from bertjax or JAX.
"""

from typing import NamedTuple

DONE = 0
DIVERGED = 1
MISTAKE = 2
NOT_FITTING = 3
FAILED = 70  # EX_SOFTWARE of sysexits.h
SAVE_FAILED = 74  # EX_IOERR
PEERS_MISSING = 75  # EX_TEMPFAIL
STOPPED = 81
HUNG = 82
REPLICAS_DIFFER = 83
INTERRUPTED = 130  # 128 + SIGINT
PREEMPTED = 143  # 128 + SIGTERM


class Exit(NamedTuple):
    """Meaning of an exit code, and whether the same command may succeed if it is run again."""

    meaning: str
    again: bool


EXITS = {
    DONE: Exit("done; of a run: the checkpoint of its last step is on disk", False),
    DIVERGED: Exit(
        "diverged: steps in a row were of no use, or the validation loss; or no seed of a fine-tuning learned", False
    ),
    MISTAKE: Exit("a mistake in the command or its input", False),
    NOT_FITTING: Exit("`plan`: the step does not fit the memory of its devices", False),
    FAILED: Exit("an error that bertjax does not expect, on this host or another; the message says if it saved", True),
    SAVE_FAILED: Exit("checkpoints of one process cannot be saved on its disk, also after several attempts", True),
    PEERS_MISSING: Exit(
        "other processes of the run did not connect or are gone, or Cloud Storage did not answer", True
    ),
    STOPPED: Exit("stopped by a signal before a checkpoint could be saved", True),
    HUNG: Exit("no step within `run.patience` seconds; `messages.log` has the stacks of all threads", True),
    REPLICAS_DIFFER: Exit("replicas of a parameter differ, as after a flipped bit; this state is not saved", True),
    INTERRUPTED: Exit("stopped by Ctrl-C after a checkpoint; the same command resumes the run", True),
    PREEMPTED: Exit("stopped by SIGTERM, SIGHUP or SIGUSR1 after a checkpoint; the same command resumes it", True),
}
"""By code: all ways in which a command ends, but for those in which the system ends it (SIGKILL: 137 in a shell)."""
