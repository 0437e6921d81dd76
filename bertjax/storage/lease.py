"""Lock a folder in Cloud Storage, which has no locks: by an object that is created only where there is none.

Its owner renews it until the block ends, and deletes it then. An owner that was killed does not: whoever comes next
waits until the lock has not been renewed for as long as it holds, which is told by the clock of the server alone, and
takes it over. Every step is a request on the condition that the object has not changed meanwhile, so one process wins.
On the machine of a killed owner the lock is taken over at once.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.errors import InputError
from bertjax.serialization.bounded_json import parse_object
from bertjax.storage.paths import CLOUD, explained

SECONDS = 60.0
"""How long a lock holds that is not renewed."""

_EACH = 10.0  # seconds between renewals


class Lease:
    """A lock that this process holds: `check` before what only its owner may do."""

    def __init__(self, path: Path, text: str, generation: int) -> None:
        self._path, self._text, self._generation = path, text, generation
        self._renewed = time.monotonic()  # when the last renewal that succeeded began
        self._ended = threading.Event()
        self._taken_by = ""
        self._thread = threading.Thread(target=self._renew, daemon=True, name=f"renew {path}")
        self._thread.start()

    def check(self) -> None:
        """Raise InputError where another process has taken the lock over, because it was not renewed in time.

        Where no renewal has succeeded for that long, the lock is read again.
        """
        if not self._taken_by and time.monotonic() - self._renewed > SECONDS:
            with suppress(Exception):  # then what is to be saved will not be taken either, and is tried again
                self._look()
        if self._taken_by:
            raise InputError(
                f"{self._path} was taken over ({self._taken_by}), since this process did not renew it for over "
                f"{SECONDS:.0f} seconds: the other run goes on, this one has to stop"
            )

    def release(self) -> None:
        """Stop renewing, and delete the lock unless another process holds it."""
        self._ended.set()
        self._thread.join()
        if not self._taken_by:
            with suppress(Exception):  # then it ends by itself
                _blob(self._path).delete(if_generation_match=self._generation, timeout=_TIMEOUT)

    def _renew(self) -> None:
        while not self._ended.wait(_EACH) and not self._taken_by:
            begun = time.monotonic()
            try:
                self._generation = self._rewritten()
            except Exception:  # noqa: BLE001, of requests, of google-auth and of the service: the next may succeed
                continue
            self._renewed = begun

    def _rewritten(self) -> int:
        """Write the lock again, unless it was taken over; return its generation."""
        try:
            return _written(self._path, self._text, self._generation)
        except _Refused:
            return self._look()  # of a request that was repeated, and had succeeded

    def _look(self) -> int:
        """Read who holds the lock; return its generation if that is this process."""
        found = _read(self._path)
        if found is None or found.text != self._text:
            self._taken_by = _owner(found.text) if found else "it was deleted"
            return self._generation
        return found.generation


@contextmanager
def leased(path: Path, kind: str = "run") -> Iterator[Lease]:
    """Create the object `path`, or take it over from an owner that has ended, and hold it until the block ends.

    kind: "run" or "build", for messages. Raises InputError, which names the owner, where that is alive: within the
    seconds between two renewals.
    """
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = f"process {os.getpid()} on {socket.gethostname()} since {since}"
    text = json.dumps({"owner": owner, "id": uuid.uuid4().hex, "process": _process(os.getpid())})
    with explained(path):
        generation = _acquired(path, text, kind)
    lease = Lease(path, text, generation)
    try:
        yield lease
    finally:
        lease.release()


def owner_of(path: Path) -> str:
    """Return the owner of a lock, "" where it is free."""
    with explained(path):
        found = _read(path)
        return _owner(found.text) if found else ""


_TIMEOUT = (10, 30)  # seconds to connect, and for the answer
_LARGEST = 2**16  # bytes of a lock: ours have some 300


class _Refused(Exception):
    """The object was changed meanwhile. now: the time by the server's clock."""

    def __init__(self, now: datetime) -> None:
        super().__init__("the object was changed")
        self.now = now


class _Found(NamedTuple):
    text: str
    generation: int
    renewed: datetime


def _acquired(path: Path, text: str, kind: str) -> int:
    """Create the lock or take it over; wait while it may have been left by a process that was killed.

    Returns the generation of the object.
    """
    seen = 0  # the generation of the lock when it was first read
    while True:
        try:
            return _written(path, text, 0)
        except _Refused as refused:
            now = refused.now
        found = _read(path)
        if found and found.text == text:
            return found.generation  # a request that was repeated had succeeded
        if found:
            seen = seen or found.generation
            if found.generation != seen:
                raise InputError(
                    f"another {kind} is going on in {path.parent} ({_owner(found.text)}): wait for it, or choose "
                    "another folder"
                )
            if (now - found.renewed).total_seconds() > SECONDS or _has_ended(found.text):
                with suppress(_Refused):  # another process was quicker
                    return _written(path, text, found.generation)
        time.sleep(min(1.0, _EACH / 4))


@lru_cache(maxsize=1)
def _client() -> Any:
    from google.cloud import storage

    return storage.Client()


def _blob(path: Path) -> Any:
    bucket, _, name = os.fspath(path).removeprefix(CLOUD).partition("/")
    return _client().bucket(bucket).blob(name)


def _written(path: Path, text: str, generation: int) -> int:
    """Write the lock where its generation is that one, 0: where there is none; return its new generation.

    Raises _Refused where it is another one.
    """
    from google.api_core.exceptions import PreconditionFailed

    blob = _blob(path)
    try:
        blob.upload_from_string(text, if_generation_match=generation, timeout=_TIMEOUT)
    except PreconditionFailed as error:
        raise _Refused(parsedate_to_datetime(error.response.headers["Date"])) from error
    return int(blob.generation)


def _read(path: Path) -> _Found | None:
    """Read the lock; None where there is none. One that is too large to be ours is as if it were empty."""
    from google.api_core.exceptions import NotFound

    blob = _blob(path)
    try:
        blob.reload(timeout=_TIMEOUT)
        content = b""
        if blob.size <= _LARGEST:  # raw, since what is compressed may become larger
            content = blob.download_as_bytes(timeout=_TIMEOUT, raw_download=True)  # of the generation just seen
    except NotFound:
        return None
    return _Found(content.decode(errors="replace"), int(blob.generation), blob.updated)


def _owner(text: str) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(parse_object(text, "the lock")["owner"]) or "an unknown process"
    return "an unknown process"


def _process(number: int) -> list[object]:
    """Identify a process of this machine, whatever it is called: [] where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *others = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return [] if state in "ZX" else [boot, os.readlink("/proc/self/ns/pid"), number, others[18]]
    except (OSError, IndexError):
        return []


def _has_ended(text: str) -> bool:
    """Return whether the owner was a process of this machine that is no more."""
    try:
        theirs, ours = parse_object(text, "the lock")["process"], _process(os.getpid())
        return bool(theirs and ours) and theirs[:2] == ours[:2] and _process(int(theirs[2])) != theirs
    except (KeyError, TypeError, IndexError):
        return False
    except ValueError:
        return True  # not a lease: the lock of a disk, from which the folder was copied
