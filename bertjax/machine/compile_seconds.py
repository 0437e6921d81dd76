"""Remember how long the last compilations took on this machine, so that the next one can be announced with it."""

import json
from contextlib import suppress

from bertjax.errors import InputError
from bertjax.serialization.bounded_json import parse_object
from bertjax.serialization.typed_json import typed
from bertjax.storage import files
from bertjax.wording import counted

_FILE, _KEPT = "compile_seconds.json", 5
"""In the user's cache: by what was compiled for, such as a kind of device, the seconds of the last times."""


def usual(kind: str, what: str = "steps") -> str:
    """Return how long the last compilations of a kind took here, "" where there was none."""
    known = _recorded().get(kind, [])
    if not known:
        return ""
    low, high = min(known), max(known)
    took = roughly(high) if high < 1.5 * low + 1 else f"{roughly(low)} to {roughly(high)}"
    return f"usually {took} on this machine ({counted(len(known), what)} so far)"


def remember(kind: str, seconds: float) -> None:
    """Add the seconds of a compilation to those of its kind; where there is no cache nothing is kept."""
    folder = files.user_cache()
    if folder is None:
        return
    known = _recorded()
    known[kind] = [*known.get(kind, []), round(seconds, 1)][-_KEPT:]
    with suppress(OSError, InputError):  # as where the home folder is read-only
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.write(folder / _FILE, json.dumps(known))


def _recorded() -> dict[str, list[float]]:
    folder = files.user_cache()
    if folder is None or not (folder / _FILE).exists():
        return {}
    try:
        return typed(parse_object(files.read_inside(folder, _FILE), _FILE), dict[str, list[float]], _FILE)
    except (OSError, InputError):
        return {}


def roughly(seconds: float) -> str:
    """Format seconds as "12 s" or "3 minutes"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
