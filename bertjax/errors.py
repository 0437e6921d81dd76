"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Tell the user in one line what is wrong, with which thing, and how to mend it; commands print it and exit 2."""
