"""Do something to one of two processes of a run: both end within their time, each with its exit code."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import IO

from drilled import HOME, PROGRAMS, REPOSITORY, Trials, corpus, newest

from bertjax import exits

PATIENCE = 4
WORDS = (
    "pretrain", f"{REPOSITORY}/experiments/smoke.py", "batch_size=8", "length=32", "run.log_every=1",
    "run.evaluate_every=0", "run.evaluate_batches=1", "run.checkpoint_every=100000", f"run.patience={PATIENCE}",
)  # fmt: skip
ENDLESS = "steps=100000"
START = 60
"""Seconds that two processes may take to start where others use the same cores."""


@dataclass(frozen=True)
class Case:
    """What is done to one of the two, the victim.

    numbers: signals that it gets, once steps are made, or `early`, once the run has its folder. or_: other codes, of
    the other one and the victim, where the moment decides. fault: of the victim alone.
    words: of both; own: of the victim alone. late: seconds after which it starts. victim, other: the exit codes; None
    for what a signal ended. seconds: within which both have ended after the signal, or after the start of the later
    one. off: protections without which one of it fails. saved: whether the last step has a checkpoint.
    """

    name: str
    victim: int | None
    other: int
    numbers: tuple[signal.Signals, ...] = ()
    fault: str = ""
    words: tuple[str, ...] = (ENDLESS,)
    own: tuple[str, ...] = ()
    early: bool = False
    late: float = 0.0
    seconds: float = 30.0
    off: str = ""
    saved: bool = False
    or_: tuple[list[int], ...] = ()


CASES = (
    Case("SIGKILL", None, exits.PEERS_MISSING, (signal.SIGKILL,), off="aborts,watch"),
    Case("SIGSTOP", None, exits.HUNG, (signal.SIGSTOP,), off="watch"),
    Case("SIGTERM", exits.PREEMPTED, exits.PREEMPTED, (signal.SIGTERM,), off="signals", saved=True),
    Case("SIGINT twice", exits.INTERRUPTED, exits.PREEMPTED, (signal.SIGINT, signal.SIGINT), off="signals",
         saved=True),
    Case("SIGTERM three times", exits.PREEMPTED, exits.PREEMPTED, (signal.SIGTERM,) * 3, off="signals", saved=True),
    Case("SIGHUP", exits.PREEMPTED, exits.PREEMPTED, (signal.SIGHUP,), off="signals", saved=True),
    Case("SIGUSR1", exits.PREEMPTED, exits.PREEMPTED, (signal.SIGUSR1,), off="signals", saved=True),
    Case("input blocked", exits.HUNG, exits.HUNG, fault="batch:hang@9", off="watch"),
    Case("input failed", exits.FAILED, exits.FAILED, fault="batch:eio@9", off="stop with the rows", saved=True),
    Case("evaluation failed", exits.FAILED, exits.FAILED, fault="evaluation:eio@2",
         words=("steps=12", "run.evaluate_every=6", "run.evaluate_batches=3"), off="together", saved=True),
    Case("restore forbidden", exits.MISTAKE, exits.MISTAKE, fault="checkpoint.read:eacces", off="together"),
    Case("restore damaged", exits.MISTAKE, exits.MISTAKE, fault="checkpoint.read:eio", off="together"),
    Case("another seed", exits.MISTAKE, exits.MISTAKE, own=("optimizer.b2=0.9",), off="comparing"),
    Case("no corpus", exits.MISTAKE, exits.MISTAKE, own=("data=nowhere",), off="together"),
    Case("SIGTERM at the start", exits.STOPPED, exits.STOPPED, (signal.SIGTERM,), early=True,
         or_=([exits.PEERS_MISSING, exits.STOPPED], [exits.PREEMPTED, exits.PREEMPTED])),
    Case("SIGKILL at the start", None, exits.PEERS_MISSING, (signal.SIGKILL,), early=True),
    Case("slow", exits.DONE, exits.DONE, fault="batch:sleep=0.3", words=("steps=12",), seconds=60.0),
    Case("late", exits.DONE, exits.DONE, words=("steps=12",), late=8.0, seconds=60.0),
)  # fmt: skip


def matrix(count: int, on: bool = True) -> Trials:
    """Try each case on each of the two processes. Off: without the protection of the case, where it has one."""
    cases = [case for case in CASES if on or case.off]
    trials = list(islice(cycle((case, number) for number in (1, 0) for case in cases), count))
    notes, slowest = [], 0.0
    _make_checkpoint()
    for case, number in trials:
        folder = HOME / f"two-{on}"
        problem, seconds = _tried(case, number, folder, on)
        print(f"{case.name} to process {number}: {problem or 'as it should'}, {seconds:.1f} s", flush=True)
        notes += [f"{case.name} to process {number}: {problem}"] if problem else []
        slowest = slowest if problem else max(slowest, seconds)
        shutil.rmtree(folder, ignore_errors=True)
    passes = len(trials) - len(notes)
    return Trials(len(trials), passes, (*notes, f"the slowest took {slowest:.0f} s") if on else tuple(notes))


def environment(number: int, count: int, port: int, fault: str = "") -> dict[str, str]:
    """Return the environment of one of several processes."""
    several = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
    }
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": PROGRAMS,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
        "BERTJAX_FAULT": fault,
    } | (several if count > 1 else {})  # fmt: skip


def started(given: list[str], variables: dict[str, str], output: int | IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start a process that the system ends with this one."""
    return subprocess.Popen(given, env=variables, stdout=output, stderr=output, preexec_fn=_end_with_parent)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def command(words: Sequence[str], folder: Path, off: str = "") -> list[str]:
    """Return the command that trains in a folder, without some protections."""
    program = [str(Path(__file__).with_name("without.py")), off] if off else ["-m", "bertjax"]
    data = [] if any(word.startswith("data=") for word in words) else [f"data={corpus()}"]
    return [sys.executable, *program, *WORDS, *words, *data, "--workdir", str(folder)]


def _make_checkpoint() -> None:
    """Let one process train for a checkpoint that two go on from; both programs are compiled."""
    folder = HOME / "before-two"
    if not folder.exists():
        running = [
            started(command(["steps=6"], folder), environment(n, 2, port), subprocess.DEVNULL)
            for port in [free_port()] for n in range(2)
        ]  # fmt: skip
        for process in running:
            assert process.wait(180) == exits.DONE


def _tried(case: Case, number: int, folder: Path, on: bool) -> tuple[str, float]:
    """Try a case; return what went wrong, "" for nothing, and the seconds until both had ended."""
    port, off, words = free_port(), "" if on else case.off, case.words
    if case.fault.startswith("checkpoint.read"):
        shutil.copytree(HOME / "before-two", folder)
        words = ("steps=6",)
    running: list[subprocess.Popen[bytes]] = []
    output = HOME / f"two-{on}.txt"
    with output.open("wb") as written:
        try:
            for n in (1 - number, number):
                time.sleep(case.late if n == number else 0)
                own, fault = (case.own, case.fault) if n == number else ((), "")
                given = command([*words, *own], folder, off)
                running.append(started(given, environment(n, 2, port, fault), written))
            other, victim = running
            _hit(case, folder, victim, running)
            begun = time.monotonic()
            bound = case.seconds + (0 if case.numbers else START)
            codes = [_code(other, begun + bound)]
            codes += [_code(victim, begun + bound) if case.victim is not None else None]
            seconds = time.monotonic() - begun
        finally:
            for process in running:
                with contextlib.suppress(OSError):
                    process.kill()
                process.wait()
    if codes not in ([case.other, case.victim], *case.or_):
        said = " | ".join(output.read_text(errors="replace").strip().splitlines()[-2:])[:300]
        return f"ended with {codes}, not {[case.other, case.victim]}: {said}", seconds
    if case.saved and newest(folder) == 0:
        return "no checkpoint was saved", seconds
    return "", seconds


def _hit(case: Case, folder: Path, victim: subprocess.Popen[bytes], running: list[subprocess.Popen[bytes]]) -> None:
    """Send the victim its signals, at the start or once five steps are made."""
    if not case.numbers:
        return
    sign, deadline = folder / ("experiment.json" if case.early else "log.jsonl"), time.monotonic() + 120
    while not (sign.exists() and (case.early or sign.read_bytes().count(b"\n") >= 5)):
        if time.monotonic() > deadline or any(process.poll() is not None for process in running):
            return
        time.sleep(0.02)
    for number in case.numbers:
        victim.send_signal(number)
        time.sleep(0.1)


def _code(process: subprocess.Popen[bytes], deadline: float) -> int | str:
    """Return the exit code of a process, "running" where it has none by the deadline."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(max(0.1, deadline - time.monotonic()))
    return "running"
