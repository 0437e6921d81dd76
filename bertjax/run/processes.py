"""Run as one of several processes: join them first thing, agree on what is run, fail together.

Every process runs the same program on the devices of its own host. What one of them finds wrong is an error on all, so
that none waits for another that has given up.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from bertjax.errors import InputError, PassingError
from bertjax.run.workdir import differences

_FORMS = (r".+:\d+", r"-?\d+", r"-?\d+")  # of the three variables below


def join(timeout: int = 55) -> None:
    """Join the other processes of this run, if there are any: before anything else that asks JAX for devices.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are; without these what JAX finds out on
    Cloud TPU, Slurm and the like. timeout: seconds until missing processes are a PassingError that names them.
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
        address, count, index = _found(timeout)
    if count == 1:
        return
    if not 0 <= index < count:
        raise InputError(f"JAX_PROCESS_ID={index} is not one of {count} processes: they count from 0")
    roll_call(address, count, index, timeout)
    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=timeout)
    except RuntimeError as error:
        raise PassingError(f"cannot join the processes of this run at {address}: {error}") from error


def _found(timeout: int) -> tuple[str, int, int]:
    """Find (coordinator's address, number of processes, number of this one) as JAX would; of one process without.

    JAX ends the process where others are missing, so they have to be called before it is asked to join, and it has no
    public way to say who they are.
    """
    from jax._src.clusters.cluster import ClusterEnv

    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout)
    address, count, index = found[:3]
    if address is None or count is None or index is None:
        return "", 1, 0
    return str(address), int(count), int(index)


def roll_call(address: str, count: int, index: int, timeout: float) -> None:
    """Wait until all processes have called process 0. Raises PassingError, on all that came, naming who did not.

    address: host:port, where nothing listens yet.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    problem = _call(host, int(port), index, deadline) if index else _hear(int(port), count, deadline)
    if problem:
        raise PassingError(problem)


def _hear(port: int, count: int, deadline: float) -> str:
    """Take the calls of all others; answer them, and return, what is wrong: nothing where all have called."""
    called: dict[int, socket.socket] = {}
    with socket.create_server(("", port), backlog=count) as server:
        while len(called) < count - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with suppress(TimeoutError):
                connection, _ = server.accept()
                connection.settimeout(5)
                with suppress(OSError, ValueError):  # whoever else knocks at this port
                    called[int(connection.recv(16))] = connection
    missing = [str(number) for number in range(1, count) if number not in called]
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    answer = ""
    if missing:
        named = [f"{n} ({hosts[int(n)]})" if len(hosts) == count else n for n in missing]
        answer = (
            f"of {count} processes, number {', '.join(named)} did not come: start the same command on every host, and "
            f"see that they reach port {port} of process 0"
        )
    for connection in called.values():
        with suppress(OSError), connection:
            connection.sendall(answer.encode() or b"\n")
    return answer


def _call(host: str, port: int, index: int, deadline: float) -> str:
    """Call process 0 until it answers; return what it says is wrong."""
    while (left := deadline + 5 - time.monotonic()) > 0:  # it answers last
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(str(index).encode())
                answer = connection.recv(4096)
                if answer:
                    return answer.decode().strip()
        except OSError:
            pass
        time.sleep(0.2)
    return (
        f"process 0 does not answer at {host}:{port}: start the same command there, and see that this host reaches it"
    )


def first() -> bool:
    """Tell whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def only_one(what: str) -> None:
    """Raise InputError, on all, where there are several processes for something that is made for one."""
    if jax.process_count() > 1:
        raise InputError(f"{what} runs in one process, but this is one of {jax.process_count()}: use one host")


@contextmanager
def failing_together() -> Iterator[None]:
    """Raise on every process the InputErrors that any of them meets inside, once all have come to the end."""
    if jax.process_count() == 1:
        yield
        return
    problem = ""
    try:
        yield
    except InputError as error:
        problem = str(error)
    problems = {name: text for name, text in gather(problem).items() if text}
    if problems:
        raise InputError("; ".join(f"{name}: {text}" for name, text in problems.items()))


def gather(text: str) -> dict[str, str]:
    """Collect a text from every process, by its number and host."""
    said = np.frombuffer(f"{socket.gethostname()}\0{text}".encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(said)))))
    padded = np.zeros(-(-longest // 1024) * 1024, np.uint8)
    padded[: len(said)] = said
    found = {}
    for index, row in enumerate(np.atleast_2d(multihost_utils.process_allgather(padded))):
        host, text = row.tobytes().rstrip(b"\0").decode().partition("\0")[::2]
        found[f"process {index} on {host}"] = text
    return found


def agree(facts: Mapping[str, object]) -> None:
    """See that facts are equal on all processes. Raises InputError, on all, that names what differs, and where."""
    if jax.process_count() == 1:
        return
    found = gather(json.dumps(facts))
    if problem := disagreement({process: json.loads(text) for process, text in found.items()}):
        raise InputError(problem)


def disagreement(found: Mapping[str, Mapping[str, object]]) -> str:
    """Say which facts are not those of most processes, on which ones, and where they begin to differ; else nothing."""
    said = []
    for name in next(iter(found.values())):
        texts = {process: json.dumps(facts[name], sort_keys=True) for process, facts in found.items()}
        usual = Counter(texts.values()).most_common(1)[0][0]
        odd = [process for process, text in texts.items() if text != usual]
        if odd:
            changes = list(differences(json.loads(usual), found[odd[0]][name]))
            fields = [f"{field or 'it'} is {json.dumps(b)}, not {json.dumps(a)}" for field, a, b in changes[:3]]
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            said.append(f"{name} is another on {', '.join(odd)} than on the rest ({'; '.join(fields)}{more})")
    return "; ".join(said) + ": make it the same on all hosts" if said else ""


def versions() -> dict[str, object]:
    """Say what has to be alike for hosts to compute the same: the source files of this package, what is installed."""
    root = Path(__file__).parent
    code = {f"{path.relative_to(root)}": _digest(path.read_bytes()) for path in sorted(root.rglob("*.py"))}
    # What was half removed is there without a name.
    found = [each for each in importlib.metadata.distributions() if each.name]
    installed = dict(sorted((each.name, each.version) for each in found))
    return {"the code of bertjax": code, "what is installed": installed}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
