"""Exceptions for mistakes that the user can correct."""


class InputError(ValueError):
    """A mistake of the user, in one line: the thing, what is wrong with it, and the fix. Commands print it, exit 2."""


class EmptySplit(InputError):
    """A split is too small for one row of the requested kind: training ends, an evaluation is skipped."""


class PassingError(InputError):
    """A temporary failure that a retry may resolve, such as a host that is not up yet. Commands exit 75."""
