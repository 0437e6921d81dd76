"""Train in Cloud Storage while the service refuses, is slow, drops connections or disappears, and kill the run."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from unittest.mock import patch

sys.path.append(str(Path(__file__).parents[1] / "gs"))

from drilled import REPOSITORY, TOKENIZER, Trials, compiled_once, digest, experiment_of, fitted
from emulator import emulated, variables
from matrix import started
from proxy import Fault, Proxy, passing
from texts import make_documents

from bertjax.checkpoints.trained import load
from bertjax.data.build import BuildSettings, build
from bertjax.data.corpus import split_sentences
from bertjax.storage.paths import path_of

CORPUS = "gs://made/corpus"
STEPS, EVERY = 6, 2


def _some(status: int, begin: float, seconds: float, share: float = 1.0) -> Callable[[random.Random], Fault]:
    """Answer a share of all requests with a status for some seconds, some seconds after the first; 0: drop them."""

    def make(rng: random.Random) -> Fault:
        first: list[float] = []

        def fault(method: str, path: str) -> int | None:
            first.append(time.monotonic()) if not first else None
            due = begin < time.monotonic() - first[0] < begin + seconds
            return status if due and rng.random() < share else None

        return fault

    return make


def _slow(seconds: float) -> Callable[[random.Random], Fault]:
    return lambda rng: lambda method, path: seconds * rng.random()


FAULTS: dict[str, Callable[[random.Random], Fault]] = {
    "503 for a third": _some(503, 0.1, 5.0, 0.33),
    "429 for a third": _some(429, 0.1, 5.0, 0.33),
    "a fifth dropped": _some(0, 0.1, 5.0, 0.2),
    "slow": _slow(0.1),
    "gone for 2 s at the start": _some(0, 0.1, 2.0),
    "gone for 6 s": _some(0, 1.0, 6.0),
    "gone for 20 s": _some(0, 1.5, 20.0),
    "503 for 5 s": _some(503, 0.7, 5.0),
    "429 for 5 s": _some(429, 1.2, 5.0),
}


def emulator(count: int, on: bool = True) -> Trials:
    """Train in Cloud Storage under each fault, and killed at random moments: weights and log are as on good days.

    Each third trial is a kill. Off: gcsfs does not repeat a request.
    """
    import gcsfs.retry

    rng, notes, passed = random.Random(8), list[str](), 0
    with emulated() as proxy, patch.dict(os.environ, variables(proxy.url)), compiled_once():
        build(make_documents(200), TOKENIZER, path_of(CORPUS), BuildSettings(split_sentences, holdout=0.1))
        whole = "gs://made/whole"
        wanted = digest(fitted(_experiment(), path_of(whole)).params)
        log = (path_of(whole) / "log.jsonl").read_bytes()
        hasty = nullcontext() if on else patch.object(gcsfs.retry, "is_retriable", lambda error: False)
        with hasty:
            for trial, name in zip(range(count), _names(count, on), strict=False):
                place = f"gs://made/trial-{trial}"
                try:
                    if name == "killed":
                        _killed(proxy, place, rng.uniform(2, 9))
                    else:
                        proxy.fault = FAULTS[name](rng)
                    end = digest(fitted(_experiment(), path_of(place)).params)
                    proxy.fault = passing
                    right = end == wanted == digest(load(place).params)
                    right = right and (path_of(place) / "log.jsonl").read_bytes() == log
                    problem = "" if right else "another end"
                except Exception as error:  # noqa: BLE001 a run that ended has not passed
                    problem = f"{type(error).__name__}: {error}"
                proxy.fault = passing
                passed += not problem
                print(f"{name}: {problem or 'as it should'}", flush=True)
                notes += [f"{name}: {problem}"[:300]] if problem else []
    return Trials(count, passed, tuple(notes))


def _names(count: int, on: bool) -> list[str]:
    kinds = [*FAULTS]
    names = [kinds[n % len(kinds)] for n in range(count)]
    return ["killed" if on and n % 3 == 2 else name for n, name in enumerate(names)]


def _experiment() -> object:
    return experiment_of("electra", STEPS, EVERY, data=CORPUS)


def _killed(proxy: Proxy, place: str, seconds: float) -> None:
    """Train in a process of its own, and kill it after so many seconds."""
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    command = [sys.executable, __file__, place]
    process = started(command, environment, subprocess.DEVNULL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    fitted(_experiment(), path_of(sys.argv[1]))
