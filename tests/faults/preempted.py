"""Preempt a run every half minute for ten minutes: the same weights, and most of the time in steps that count."""

import json
import signal
import subprocess
import time

import numpy as np
from drilled import HOME, Trials, digest
from matrix import command, environment, started

from bertjax import exits
from bertjax.checkpoints.trained import load

STEP = 0.1
"""Seconds that each step is made longer by, in which the host sleeps, as where an accelerator computes."""

EVERY, GRACE = 30.0, 10.0  # seconds from the start of a process to SIGTERM, and from there to SIGKILL

SHARE = 0.8
"""The target for the time in steps that count, as a share of all."""


def preempted(count: int, on: bool = True) -> Trials:
    """Train for about `count` seconds; weights and log are those of a run left alone. A trial is one preemption.

    Productive are the steps of the final run, each at the median time of a step; the rest is lost: starts, restoring,
    compilation, saves, steps made twice. Off: a signal ends the process as it does any other, so what it did since the
    last checkpoint is lost.
    """
    steps = max(20, round(0.84 * count / (STEP + 0.012)))
    words = [f"steps={steps}", "run.checkpoint_every=1000"]
    alone, folder = HOME / f"left-alone-{on}", HOME / f"preempted-{on}"
    assert started(command(words, alone), environment(0, 1, 0), subprocess.DEVNULL).wait() == exits.DONE
    begun, ends = time.monotonic(), list[int]()
    while (not ends or ends[-1] != exits.DONE) and time.monotonic() - begun < 2 * count:
        given, variables = command(words, folder, "" if on else "signals"), environment(0, 1, 0, f"batch:sleep={STEP}")
        process = started(given, variables, subprocess.DEVNULL)
        ends.append(_ended(process))
        if not on and time.monotonic() - begun > count:
            break
    seconds = time.monotonic() - begun
    done = ends[-1] == exits.DONE
    lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    median = float(np.median([line["step_ms_p50"] for line in lines if "step_ms_p50" in line])) / 1000
    share = steps * median / seconds if done else 0.0
    equal = done and digest(load(folder).params) == digest(load(alone).params)
    equal = equal and (folder / "log.jsonl").read_bytes() == (alone / "log.jsonl").read_bytes()
    text = (
        f"{steps} steps of {1000 * median:.0f} ms in {seconds:.0f} s, {len(ends) - 1} preemptions, "
        f"{ends.count(-signal.SIGKILL)} of them by SIGKILL: productive {share:.1%} (target: {SHARE:.0%}), "
        + ("bit-equal" if equal else "another end" if done else "not done")
    )
    trials = len(ends) - done
    return Trials(trials, trials * equal, (text,))


def _ended(process: "subprocess.Popen[bytes]") -> int:
    """Let a process run for a while, preempt it if it is not done, and return its exit code."""
    for seconds, number in ((EVERY, signal.SIGTERM), (GRACE, signal.SIGKILL)):
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    return process.wait()
