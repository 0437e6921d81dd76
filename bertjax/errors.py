"""The exceptions for what a user can mend."""


class InputError(ValueError):
    """Tell the user in one line what is wrong, with which thing, and how to mend it; commands print it and exit 2."""


class PassingError(InputError):
    """Tell the same of what may be there when it is tried again, such as another host; commands exit 75."""
