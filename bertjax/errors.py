"""Exceptions for mistakes that the user can correct."""


class InputError(ValueError):
    """A mistake of the user, in one line: the thing, the problem, and the fix. Commands print it and exit with 2."""


class EmptySplit(InputError):
    """A split is too small for one row of the requested kind: training ends, an evaluation is skipped."""


class PassingError(InputError):
    """A temporary failure that a retry may resolve, such as a host that is not up yet. Commands exit 75."""
