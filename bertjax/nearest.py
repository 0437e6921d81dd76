"""Find the name that was meant, for the error about one that does not exist."""

import re
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known name that is nearest to a word, "" where none is near.

    By spelling, by the initials of its parts (lr: learning_rate), or by its beginning (batch: batch_size).
    """
    import difflib  # takes longer to import than a command without a typo should wait

    names = {_plain(name): name for name in reversed(list(known))}
    plain = _plain(word)
    close = difflib.get_close_matches(plain, names, n=1)
    if close:
        return names[close[0]]
    begun = [name for key, name in names.items() if _begins(key, plain) or _begins(plain, key)]
    parts = {name: re.split(r"[-_. ]", key) for key, name in names.items()}
    initials = [name for name, own in parts.items() if len(own) > 1 and "".join(part[:1] for part in own) == plain]
    return next(iter([*initials, *begun]), "")


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """Return "did you mean 'NAME'?" after the text `before` where a known name is near, else ""."""
    found = nearest(word, known)
    return f"{before}did you mean {found!r}?" if found else ""


def _begins(beginning: str, name: str) -> bool:
    return len(beginning) > 2 and name.startswith(beginning)


def _plain(name: str) -> str:
    return name.lower().lstrip("-")
