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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bertjax.errors import InputError, PassingError
from bertjax.paths import in_cloud
from bertjax.run.roll_call import roll_call
from bertjax.run.workdir import differences, lock_text, lock_workdir

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
    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=timeout)
    except RuntimeError as error:
        raise PassingError(f"cannot join the processes of this run at {address}: {error}") from error


_NOT_IN_THIS_JAX = (ImportError, AttributeError, TypeError)
"""Exceptions raised where a private function of JAX has been removed, or has changed."""


def _join_without_roll_call(timeout: int, reason: Exception) -> None:
    """Let JAX detect the cluster and join it: where processes are missing, JAX ends this one without naming them."""
    try:
        jax.distributed.initialize(initialization_timeout=timeout)
    except ValueError:  # no cluster: JAX has found no address of a coordinator
        return
    except RuntimeError as error:
        raise PassingError(f"cannot join the processes of this run: {error}") from error
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


@contextmanager
def raising_on_all() -> Iterator[None]:
    """Raise on every process the InputErrors that any of them raises inside, once all have reached the end."""
    if jax.process_count() == 1:
        yield
        return
    problem = ""
    try:
        yield
    except InputError as error:
        problem = str(error)
    problems = {name: text for name, text in allgather_text(problem).items() if text}
    if problems:
        raise InputError("; ".join(f"{name}: {text}" for name, text in problems.items()))


def allgather_text(text: str) -> dict[str, str]:
    """Gather a text from every process: "process 0 on HOST" -> its text."""
    encoded = np.frombuffer(f"{socket.gethostname()}\0{text}".encode(), np.uint8)
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
