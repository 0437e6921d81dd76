"""Exceptions for mistakes that the user can correct."""


class InputError(ValueError):
    """A mistake of the user, in one line: what is wrong, with which thing, and the fix. Commands print it and exit 2."""


class PassingError(InputError):
    """A temporary failure that a retry may resolve, such as a host that is not up yet. Commands exit 75."""
