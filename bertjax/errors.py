"""Exceptions with exit codes of their own: mistakes that the user can correct, and ends of runs."""

from bertjax import exits


class InputError(ValueError):
    """A mistake of the user, in one line: the thing, the problem, and the fix. Commands print it and exit with 2."""

    exit_code = exits.MISTAKE


class EmptySplit(InputError):
    """A split is too small for one row of the requested kind: training ends, an evaluation is skipped."""


class PassingError(InputError):
    """A temporary failure that a retry may resolve, such as a host that is not up yet. Commands exit 75."""

    exit_code = exits.PEERS_MISSING


class Diverged(FloatingPointError):
    """The loss or the gradient of a run is no longer finite."""

    exit_code = exits.DIVERGED


class SaveFailed(Exception):
    """The checkpoints of a run cannot be saved."""

    exit_code = exits.SAVE_FAILED


class ReplicasDiffer(Exception):
    """Replicas of a parameter, which must be equal, differ."""

    exit_code = exits.REPLICAS_DIFFER


class ProcessFailed(Exception):
    """A process of the run failed, this one or another, and all end together. `exit_code`: that of the failure."""

    def __init__(self, message: str, exit_code: int = exits.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of an error: that of its class; `MISTAKE` for paths that are wrong; else `FAILED`."""
    paths = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
    if isinstance(error, KeyboardInterrupt):
        return exits.STOPPED
    if isinstance(error, FloatingPointError):
        return exits.DIVERGED
    return int(getattr(error, "exit_code", exits.MISTAKE if isinstance(error, paths) else exits.FAILED))
