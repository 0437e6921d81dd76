"""Find folders by their text: a path on a disk of this machine, or gs://BUCKET/FOLDER in Cloud Storage; nothing else.

A path in Cloud Storage is one of etils, over gcsfs: it joins, lists, opens and deletes as a `pathlib.Path` does. The
rest of the package asks where a folder lies only where an object store differs: it has no links and no locks, an object
is written whole or not at all and never appended to, and a folder is there as long as something is in it.

gcsfs, TensorStore and ArrayRecord's reader each repeat a request that fails for the moment, with jitter and up to a
limit. What they raise after that, or at once, is explained here in one line: `explained`.
"""

import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, cast

from bertjax.errors import InputError, PassingError

CLOUD = "gs://"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f#?*\[\]]")  # a generation or a pattern to gcsfs, or refused by the service


def path_of(text: str | os.PathLike[str]) -> Path:
    """Return the path that a text names: what it returns for gs:// has the methods of `Path` that read and write.

    Raises InputError for every other scheme, without the extra `gcs`, and where the bucket does not exist or cannot be
    listed, which is asked once for each bucket; PassingError where Cloud Storage does not answer.
    """
    if not isinstance(text, str | os.PathLike):
        raise InputError(f"{text!r:.60} is no path: give the place of a file or folder as a text or a Path")
    name = os.fspath(text)
    if not name.startswith(CLOUD):
        if (_SCHEME.match(name) and "://" in name) or name.lower().startswith(("gs:/", "s3:/", "hf:/")):
            raise InputError(
                f"{name} is no place that bertjax reads or writes: give a path on a disk, or gs://BUCKET/FOLDER"
            )
        return Path(name)
    bucket, _, folder = name.removeprefix(CLOUD).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise InputError(f"{name}: {bucket!r} is no name of a bucket: give gs://BUCKET/FOLDER")
    if _NOT_IN_NAMES.search(folder) or {".", ".."} & set(folder.split("/")) or not folder.strip("/"):
        raise InputError(
            f"{name}: give a folder in the bucket, gs://BUCKET/FOLDER, without . and .. and without any of #?*[]"
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f"{name} needs the extra for Cloud Storage: pip install 'bertjax[gcs]'")
    _check_bucket(bucket)
    from etils import epath

    return cast(Path, epath.Path(name))


def in_cloud(path: str | os.PathLike[str]) -> bool:
    """Return whether a path lies in Cloud Storage."""
    return os.fspath(path).startswith(CLOUD)


def absolute(path: Path) -> Path:
    """Return an absolute path; one in Cloud Storage is absolute."""
    return path if in_cloud(path) else path.absolute()


@cache
def file_system() -> Any:
    """Return gcsfs's file system, the one that paths of `path_of` use; its errors are explained.

    It remembers no listings, since other processes write. A connection that does not answer within seconds, or from
    which nothing comes for a minute, counts as a failure, so that the request is repeated.
    """
    import aiohttp
    import fsspec
    from etils.epath import backend

    logger = logging.getLogger("gcsfs")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)  # it prints a traceback of what is explained here
    chosen = {"use_listings_cache": False, "requests_timeout": aiohttp.ClientTimeout(sock_connect=10, sock_read=60)}
    fsspec.config.conf.setdefault("gcs", {}).update(chosen)
    os.environ.setdefault("EPATH_USE_TF", "false")  # else etils would use TensorFlow where that is installed
    # The same limits for TensorStore, which would wait for ever.
    os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", "10")
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "60")
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    system = backend.fsspec_backend.fs(CLOUD)
    for name in ("cat_file", "cp_file", "du", "exists", "find", "glob", "info", "isdir", "isfile", "listdir", "ls",
                 "mv", "open", "pipe_file", "put_file", "rm", "walk"):  # fmt: skip
        setattr(system, name, _explaining(getattr(system, name)))
    return system


def _explaining(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of the file system with its errors explained: of its arguments the first in Cloud Storage."""

    @wraps(method)
    def explaining(*arguments: Any, **options: Any) -> Any:
        texts = [each for each in map(str, arguments[:2]) if in_cloud(each)] or [f"{CLOUD}{arguments[0]}"]
        with explained(texts[0]):
            return method(*arguments, **options)

    return explaining


@cache
def _check_bucket(bucket: str) -> None:
    """Raise InputError where the objects of a bucket cannot be listed."""
    try:
        with explained(f"{CLOUD}{bucket}"):
            file_system().call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    except FileNotFoundError as error:
        raise InputError(
            f"there is no bucket {CLOUD}{bucket}: check its name (gcloud storage ls), or create it "
            f"(gcloud storage buckets create {CLOUD}{bucket})"
        ) from error


@contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Explain what Cloud Storage refuses: raise an InputError that names the object and the remedy.

    A PassingError where it did not answer, after the retries. Other exceptions, and those about paths on a disk, pass.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        problem = storage_problem(path, error) if in_cloud(path) else None
        if problem is None:
            raise
        raise problem from error


_PROBLEMS = (
    # The causes as gcsfs, google-auth, TensorStore and ArrayRecord's reader (google-cloud-cpp) state them.
    (
        r"Forbidden|PERMISSION_DENIED|PermissionDenied|does not have storage\.|(code|status)\W+403",
        "no permission for {path}: give this account the role Storage Object User on the bucket, or check who it is "
        "(gcloud auth list)",
    ),
    (
        r"UNAUTHENTICATED|(code|status)\W+401|[Cc]redentials|RefreshError|DefaultCredentialsError|invalid_grant",
        "not signed in to Cloud Storage for {path}: gcloud auth application-default login, or run on a machine with a "
        "service account",
    ),
)
_PASSING = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|Retry (policy|loop)|Transient|CURL error|"
    r"(code|status)\W+(408|429|5\d\d)|ClientConnectorError|ServerDisconnected|ServerTimeout|ClientOSError|"
    r"ConnectionError|ConnectionReset|ProxyError|TimeoutError|Cannot connect to host|Server disconnected"
)


def storage_problem(path: str | os.PathLike[str], error: BaseException) -> InputError | None:
    """Return an error that names the path in Cloud Storage and the remedy; None where something else went wrong."""
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 8:
        code = getattr(cause, "code", "")
        causes += [f"{type(cause).__name__}: {cause}" + (f" (code {code})" if code else "")]
        cause = cause.__cause__ or cause.__context__
    text = "\n".join(causes)
    for pattern, message in _PROBLEMS:
        if re.search(pattern, text):
            return InputError(message.format(path=path))
    if _PASSING.search(text):
        reason = " ".join(causes[0].split())[:200]
        return PassingError(f"Cloud Storage does not answer for {path} ({reason}): run the same command again later")
    return None
