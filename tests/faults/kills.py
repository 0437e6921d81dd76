"""Kill runs at random moments, and resume them at every step: the end is bit-equal to that of one left alone."""

import dataclasses
import json
import os
import random
import shutil
from functools import partial

from drilled import HOME, Trials, compiled_once, corpus, experiment_of, newest, trained
from forked import forked
from without import protected

from bertjax.checkpoints import saving

STEPS, EVERY = 30, 5


def kills(kind: str, count: int, on: bool = True) -> Trials:
    """Kill -9 at random moments, from the start on; the run that goes on ends bit-equal, and leaves nothing behind.

    After each kill, no checkpoint that was there is gone, and no step was logged that is not in the newest checkpoint,
    in the one that was being written, or in the interval after that. Off: checkpoints are written in place, the log is
    not mended, and damaged checkpoints are not passed over.
    """
    rng, made, passed, notes = random.Random(f"{kind} {on}"), 0, 0, list[str]()
    corpus()
    folder, words = HOME / f"killed-{kind}-{on}", HOME / f"killed-{kind}-{on}.txt"

    def run(place: object) -> str:
        return trained(experiment_of(kind, STEPS, EVERY), place)

    wanted, _ = forked(partial(run, HOME / f"whole-{kind}-{on}"), words)  # which compiles
    _, seconds = forked(partial(run, HOME / f"timed-{kind}-{on}"), words)

    def protected_run() -> str:
        with protected(on, "renaming", "mending", "search"):
            return run(folder)

    of_this_run: list[bool] = []
    while made < count:
        before, problem = newest(folder), ""
        try:
            answer, _ = forked(protected_run, words, rng.uniform(0, seconds) if len(of_this_run) < 6 else None)
        except RuntimeError as error:
            answer, problem = "failed", str(error).strip().splitlines()[-1]
        if answer is None:
            made += 1
            log = folder / "log.jsonl"
            lines = log.read_text().splitlines()[:-1] if log.exists() else []
            reached = max((json.loads(line)["step"] for line in lines), default=0) if on else 0
            of_this_run.append(newest(folder) >= before and reached - newest(folder) <= 2 * EVERY)
            if not of_this_run[-1]:
                notes.append(f"killed at step {reached}: checkpoint {newest(folder)}, before {before}")
            continue
        unfinished = [path for pattern in saving._UNFINISHED for path in (folder / "checkpoints").glob(pattern)]
        if answer != wanted or unfinished:  # all the kills of this run may be to blame
            notes.append(problem or f"after {len(of_this_run)} kills the end differs, left {unfinished}")
            of_this_run = [False] * len(of_this_run)
        passed += sum(of_this_run)
        of_this_run = []
        shutil.rmtree(folder)
    if of_this_run:  # the last one goes on to its end too
        try:
            right = forked(protected_run, words)[0] == wanted
        except RuntimeError:
            right = False
        passed += sum(of_this_run) if right else 0
        shutil.rmtree(folder)
    return Trials(made, passed, tuple(notes))


def resumes(kind: str, count: int, on: bool = True) -> Trials:
    """Resume at every step of a run. Off: the batches of the resumed run begin with the first."""
    steps = 40
    experiment = experiment_of(kind, steps, every=1, keep=steps)
    seldom = dataclasses.replace(experiment, run=dataclasses.replace(experiment.run, checkpoint_every=1000))
    whole, passed, notes = HOME / f"every-{kind}-{on}", 0, list[str]()
    resumed = range(1, steps)
    if count < steps - 1:
        resumed = sorted(random.Random(0).sample(resumed, count))
    with compiled_once():
        wanted = trained(experiment, whole)
        for step in resumed:
            folder = HOME / f"resumed-{kind}-{on}"
            (folder / "checkpoints").mkdir(parents=True)
            for name in ("experiment.json", "log.jsonl", "timing.jsonl", "saved.json"):
                shutil.copy(whole / name, folder / name)
            shutil.copytree(whole / f"checkpoints/{step}", folder / f"checkpoints/{step}", copy_function=os.link)
            with protected(on, "order of data"):
                right = trained(seldom, folder) == wanted
            passed += right
            notes += [] if right else [f"resumed at step {step}: the end differs"]
            shutil.rmtree(folder)
    return Trials(len(resumed), passed, tuple(notes))
