"""Run as one of several processes: join them before anything else, check that they run the same, fail together.

Every process runs the same program on the devices of its own host. An input error on one of them is raised on all, so
that none waits for another that has ended.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from bertjax import exits
from bertjax.errors import InputError, PassingError, ProcessFailed, ReplicasDiffer, exit_code_of
from bertjax.run import leaving
from bertjax.run.roll_call import roll_call
from bertjax.run.stop import Interrupted, StopRequest, catch_again
from bertjax.run.workdir import differences, lock_text, lock_workdir
from bertjax.storage.files import utf8
from bertjax.storage.paths import in_cloud

Value = TypeVar("Value")

_FORMS = (r".+:\d+", r"-?\d+", r"-?\d+")  # of the three variables below


def join(timeout: int = 55) -> None:
    """Join the other processes of this run, if there are any: before anything else that asks JAX for devices.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID identify them; without these variables JAX detects the
    cluster (Cloud TPU, Slurm and others). timeout: in seconds; then a PassingError names the missing processes.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name, "") for name in names]
    if all(given):
        for name, text, form, meant in zip(names, given, _FORMS, ("host:port", "a number", "a number"), strict=True):
            if not re.fullmatch(form, text):
                raise InputError(f"{name}={text} is not {meant}")
        address, count, index = given[0], int(given[1]), int(given[2])
        if not 0 < int(address.rpartition(":")[2]) < 2**16:
            raise InputError(f"{names[0]}={address} has no port from 1 to 65535")
    elif any(given):
        missing = [name for name, text in zip(names, given, strict=True) if not text]
        raise InputError(f"to run as one of several processes set {', '.join(missing)} too")
    else:
        try:
            address, count, index = _detect_cluster(timeout)
        except _NOT_IN_THIS_JAX as error:
            return _join_without_roll_call(timeout, error)
    if count == 1:
        return None
    if not 0 <= index < count:
        raise InputError(f"JAX_PROCESS_ID={index} is not one of {count} processes: they count from 0")
    roll_call(address, count, index, timeout)
    _keep_signals()
    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=timeout)
    except RuntimeError as error:
        raise PassingError(f"cannot join the processes of this run at {address}: {error}") from error
    catch_again()
    leaving.exit_at_aborts()
    return None


def _keep_signals() -> None:
    """Keep JAX from taking SIGTERM for itself: `run/stop.py` stops a run."""
    with suppress(AttributeError, ValueError):  # a JAX without the option: `catch_again` takes the signal back
        jax.config.update("jax_enable_preemption_service", False)


_NOT_IN_THIS_JAX = (ImportError, AttributeError, TypeError)
"""Exceptions raised where a private function of JAX has been removed, or has changed."""


def _join_without_roll_call(timeout: int, reason: Exception) -> None:
    """Let JAX detect the cluster and join it: where processes are missing, JAX ends this one without naming them."""
    _keep_signals()
    try:
        jax.distributed.initialize(initialization_timeout=timeout)
    except ValueError:  # no cluster: JAX has found no address of a coordinator
        return
    except RuntimeError as error:
        raise PassingError(f"cannot join the processes of this run: {error}") from error
    catch_again()
    leaving.exit_at_aborts()
    warnings.warn(
        f"bertjax cannot read the processes of a run from JAX {jax.__version__} ({reason}), so it cannot name missing "
        "ones: to have them named, set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID",
        stacklevel=3,
    )


def _detect_cluster(timeout: int) -> tuple[str, int, int]:
    """Return (address of the coordinator, number of processes, index of this one) as JAX detects them, or ("", 1, 0).

    JAX ends the process where others are missing, so the roll call comes before JAX is asked to join, and it has no
    public function that returns these. Raises an error of _NOT_IN_THIS_JAX where the private one is not as expected.
    """
    from jax._src.clusters.cluster import ClusterEnv

    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout)
    address, count, index = found[:3]
    if address is None or count is None or index is None:
        return "", 1, 0
    return str(address), int(count), int(index)


def is_coordinator() -> bool:
    """Return whether this is process 0, which writes logs and the description of the experiment for all."""
    return jax.process_index() == 0


def messages_path(folder: Path) -> Path:
    """Return the file of a work directory for the messages of this process."""
    return folder / ("messages.log" if is_coordinator() else f"messages-{jax.process_index()}.log")


@contextmanager
def raising_on_all() -> Iterator[None]:
    """Raise on every process the errors that any of them raises inside, once all have reached the end.

    InputErrors are raised as one of all; others as they are where they happened, elsewhere as ProcessFailed.
    """
    if jax.process_count() == 1:
        yield
        return
    failure = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 others wait for this process, whatever happened
        failure = error
    raise_together(failure)


def raise_together(failure: Exception | None, note: str = "") -> None:
    """Raise, on all processes, the failures of any of them; to be called by all. note: added to each message."""
    described = "" if failure is None else json.dumps([exit_code_of(failure), _message(failure) + note])
    failures = {name: json.loads(text) for name, text in allgather_text(described).items() if text}
    if not failures:
        return
    text = "; ".join(f"{name}: {message}" for name, (_, message) in failures.items())
    codes = {code for code, _ in failures.values()}
    together: Exception = ProcessFailed(text, max(codes - {exits.MISTAKE}, default=exits.MISTAKE))
    if failure is not None and not isinstance(failure, InputError):
        together = failure
    elif codes == {exits.MISTAKE}:
        together = InputError(text)
    together.known_to_all = True  # type: ignore[attr-defined]
    raise together


def _message(error: BaseException) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


@contextmanager
def telling_others() -> Iterator[None]:
    """Tell the other processes of an error inside, which they do not know of: they may wait for this one.

    An error that other processes caused, since they are gone, gets the exit code `PEERS_MISSING`.
    """
    try:
        yield
    except BaseException as error:
        known = isinstance(error, Interrupted | FloatingPointError | ReplicasDiffer) or getattr(
            error, "known_to_all", False
        )
        if jax.process_count() > 1 and not known:
            if isinstance(error, RuntimeError | ValueError) and _PEERS_GONE.search(str(error)):  # JAX raises either
                error.exit_code = exits.PEERS_MISSING  # type: ignore[union-attr]
            else:
                _publish_failure(exit_code_of(error), _message(error))
            with suppress(AttributeError):
                error.known_to_all = True  # type: ignore[attr-defined]
        raise


_PEERS_GONE = re.compile(
    "gloo|by peer|coordination service|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|barrier|socket closed", re.IGNORECASE
)
_FAILURES = "bertjax/failures/"


def _publish_failure(code: int, text: str) -> None:
    place = f"process {jax.process_index()} on {socket.gethostname()}"
    with suppress(Exception):  # the service of JAX may be gone, or have changed
        _service().key_value_set(f"{_FAILURES}{jax.process_index()}", json.dumps([code, f"{place}: {text}"]))


def published_failures() -> list[tuple[int, str]]:
    """Return exit code and message of the processes that failed alone, as far as JAX's service tells."""
    with suppress(Exception):
        return [tuple(json.loads(text)) for _, text in _service().key_value_dir_get(_FAILURES)]
    return []


def _service() -> Any:
    """Return the client of JAX's coordination service, for which there is no public function."""
    from jax._src.distributed import global_state

    return global_state.client


def allgather_text(text: str) -> dict[str, str]:
    """Gather a text from every process: "process 0 on HOST" -> its text."""
    encoded = np.frombuffer(utf8(f"{socket.gethostname()}\0{text}"), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(encoded)))))
    padded = np.zeros(-(-longest // 1024) * 1024, np.uint8)
    padded[: len(encoded)] = encoded
    found = {}
    for index, row in enumerate(np.atleast_2d(multihost_utils.process_allgather(padded))):
        host, text = row.tobytes().rstrip(b"\0").decode().partition("\0")[::2]
        found[f"process {index} on {host}"] = text
    return found


def from_coordinator(value: Any) -> Any:
    """Return on every process the value of process 0, of JSON types."""
    if jax.process_count() == 1:
        return value
    found = allgather_text(json.dumps(value) if is_coordinator() else "")
    return json.loads(next(iter(found.values())))


def together(compute: Callable[[], Value]) -> Value:
    """Return on every process what process 0 computes, of JSON types; its errors are raised on all."""
    value: Any = None
    with raising_on_all():
        if is_coordinator():
            value = compute()
    found: Value = from_coordinator(value)
    return found


def stopping_together(stop: StopRequest | None) -> Callable[[], None]:
    """Return a function for all processes to call before each batch of an evaluation that they compute together.

    It raises KeyboardInterrupt on all of them once any was asked to stop. A process alone is interrupted at once, by
    `StopRequest.raising`, and needs none.
    """
    if stop is None or jax.process_count() == 1:
        return lambda: None
    calls = count()

    def check() -> None:
        if next(calls) % EACH == 0 and multihost_utils.process_allgather(np.int32(stop.signal > 0)).any():
            raise KeyboardInterrupt

    return check


EACH = 4
"""Batches between questions whether another process was asked to stop: each takes about a millisecond."""


def assert_equal_on_all(facts: Mapping[str, object]) -> None:
    """Raise InputError, on all processes, where facts differ between them; it names the facts and the processes."""
    if jax.process_count() == 1:
        return
    found = allgather_text(json.dumps(facts))
    if problem := disagreement({process: json.loads(text) for process, text in found.items()}):
        raise InputError(problem)


def disagreement(found: Mapping[str, Mapping[str, object]]) -> str:
    """Describe the facts that differ from those of most processes, with the processes and values; "" if none do."""
    problems = []
    for name in next(iter(found.values())):
        texts = {process: json.dumps(facts[name], sort_keys=True) for process, facts in found.items()}
        usual = Counter(texts.values()).most_common(1)[0][0]
        odd = [process for process, text in texts.items() if text != usual]
        if odd:
            changes = list(differences(json.loads(usual), found[odd[0]][name]))
            fields = [f"{field or 'it'} is {json.dumps(b)}, not {json.dumps(a)}" for field, a, b in changes[:3]]
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            problems.append(f"{name} differs on {', '.join(odd)} from the other processes ({'; '.join(fields)}{more})")
    return "; ".join(problems) + ": make it the same on all hosts" if problems else ""


@contextmanager
def locked_by_coordinator(workdir: Path) -> Iterator[Callable[[], None]]:
    """Lock a work directory, on process 0 for all processes. Raises InputError where they do not see the same one.

    Yields a function, for all processes to call, which raises where the lock was lost: see `lock_workdir`.
    """
    with ExitStack() as locked:
        check: Callable[[], None] = lambda: None  # noqa: E731
        with raising_on_all():
            if is_coordinator():
                check = locked.enter_context(lock_workdir(workdir))
        assert_equal_on_all({"the work directory": lock_text(workdir)})

        def check_on_all() -> None:
            with raising_on_all():
                check()

        yield check_on_all if in_cloud(workdir) else check


@cache
def versions() -> dict[str, object]:
    """Return digests of bertjax's source files and versions of packages, which must be equal on all hosts."""
    root = Path(__file__).parents[1]
    code = {f"{path.relative_to(root)}": _digest(path.read_bytes()) for path in sorted(root.rglob("*.py"))}
    # A package that was removed in part is found without a name.
    found = [each for each in importlib.metadata.distributions() if each.name]
    installed = dict(sorted((each.name, each.version) for each in found))
    return {"the code of bertjax": code, "the environment": installed}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
