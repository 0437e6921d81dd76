"""Keep a training running on slices that may be preempted: create, install, run, restart, until it is done.

    python tpu/watch.py bert --zone us-central2-b --type v4-32 --spot --corpus gs://mine/wiki \\
        --gcs gs://mine/runs/base -- experiments/bert.py size=base dtype=bfloat16

It is stateless: it checks the slice and does the missing steps, so it can be stopped and restarted at any time. After
`--restarts` restarts without progress it gives up; progress is a checkpoint or a log line of a new furthest step.
"""

import argparse
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import slices
import words as texts
from slices import CloudError, Target

WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "DELETING", "SUSPENDING")
EXITS = runpy.run_path(str(Path(__file__).parents[1] / "bertjax/exits.py"))
MISTAKE, DONE = EXITS["MISTAKE"], EXITS["DONE"]
FINAL = {code for code, ending in EXITS["EXITS"].items() if not ending.again}
"""Exit codes of runs that are not restarted: they are done, or would end in the same way again."""


@dataclass(frozen=True)
class Patience:
    """Limits of waiting. `interval`: seconds between checks."""

    interval: float
    restarts: int  # without progress
    looks: int  # consecutive checks that workers may fail to answer before their slice is replaced
    stall: float  # seconds without progress after which a run counts as stalled


@dataclass
class Course:
    """The history of a run so far."""

    restarts: int = 0  # since the last progress
    step: int = -1  # the furthest step
    moved: float = 0.0  # time of the last progress or restart
    unanswered: int = 0  # consecutive checks without an answer
    total: int = 0  # all restarts

    def restarted(self) -> None:
        """Count a restart."""
        self.restarts, self.total = self.restarts + 1, self.total + 1
        self.moved, self.unanswered = time.monotonic(), 0


def watch(
    target: Target,
    *,
    create: Callable[[], None],
    run: Callable[[], None],
    patience: Patience,
    delete: bool = False,
) -> int:
    """Check the slice, do the missing step, wait, repeat. Returns 0 when done, 1 on giving up, 2 on a user's mistake.

    delete: delete the slice at the end in any case; else it stays, and is billed.
    """
    course = Course(moved=time.monotonic())
    while True:
        code, pause = None, patience.interval
        try:
            state = slices.state(target)
            if state == "NONE":
                if not created(create, course):
                    pause *= 2 ** min(course.restarts, 6)
            elif state == "ACTIVE":
                code = attend(target, run, course, patience)
            elif state not in WAITING:
                say(f"the slice is {state}: deleting it to create a new one")
                slices.delete(target)
                course.restarted()
        except CloudError as error:  # for example this computer is offline
            say(str(error))
            code = MISTAKE if error.final else None
        except ValueError as error:  # of the slice that now exists, such as several workers without --gcs
            say(str(error))
            code = MISTAKE
        if code is None and course.restarts > patience.restarts:
            say(f"giving up: {patience.restarts} restarts without progress, at step {course.step}")
            code = 1
        if code is not None:
            break
        time.sleep(pause)
    say(f"{'done' if code == 0 else 'ended'} at step {course.step}, {course.total} restart(s)")
    return leave(target, code, patience, delete=delete)


def leave(target: Target, code: int, patience: Patience, *, delete: bool) -> int:
    """Delete the slice, or print how to. Returns `code`, but 1 instead of 0 if the slice cannot be deleted."""
    project = f" --project {target.project}" * bool(target.project)
    by_hand = f"slices.py delete {target.name} --zone {target.zone}{project}"
    if not delete:
        say(f"the slice stays, and is billed, until: {by_hand}")
    elif not deleted(target, patience):
        say(f"the slice still exists, and is billed, until: {by_hand}")
        return code or 1
    return code


def deleted(target: Target, patience: Patience) -> bool:
    """Delete the slice, with as many attempts as `looks`. Returns whether it is deleted."""
    for look in range(max(1, patience.looks)):
        if look:
            time.sleep(patience.interval)
        try:
            slices.delete(target)
            return True
        except CloudError as error:
            if error.missing:
                return True
            say(str(error))
            if error.final:
                break
    return False


def created(create: Callable[[], None], course: Course) -> bool:
    """Create the slice. Without quota or capacity, count a restart and return False: a retry may succeed."""
    try:
        create()
    except CloudError as error:
        if error.final:
            raise
        if not error.exists:
            say(str(error))
            course.restarted()
            return False
    return True


def attend(target: Target, run: Callable[[], None], course: Course, patience: Patience) -> int | None:
    """Check the run on an active slice, and start or restart it if needed. Returns the exit code if it has ended."""
    try:
        statuses = slices.status(target)
        verdict = judge(statuses)
        if verdict != "absent":
            note(statuses, course)
        if verdict == "absent":
            slices.install(target)
            run()
            course.moved = time.monotonic()
        elif verdict == "running" and time.monotonic() - course.moved > patience.stall:
            verdict = "stalled"
        if verdict in ("broken", "stalled"):
            say(f"the run is {verdict}: {statuses}")
            slices.stop(target)
            course.restarted()
            if course.restarts <= patience.restarts:
                slices.install(target)  # a repaired slice has new disks
                run()
                course.moved = time.monotonic()
    except CloudError as error:
        if error.final:
            raise
        say(str(error))
        verdict = "unanswered"
    course.unanswered = course.unanswered + 1 if verdict == "unanswered" else 0
    if verdict == "unanswered" and course.unanswered >= patience.looks:
        say(f"not all workers answered, {course.unanswered} times: deleting the slice to create a new one")
        slices.delete(target)
        course.restarted()
    return final_code(target, statuses) if verdict in ("done", "final") else None


def final_code(target: Target, statuses: Sequence[dict]) -> int:
    """Return the exit code of a run that has ended for good, and say what it means."""
    code = int(max(each["code"] for each in statuses))
    if code != DONE:
        say(f"exit code {code}, {EXITS['EXITS'][code].meaning}: see slices.py logs {target.name} --zone {target.zone}")
    return code


def judge(statuses: Sequence[dict]) -> str:
    """Judge a run by the statuses of its workers: unanswered, absent, running, done, final or broken.

    The number of workers is in the statuses of those that have a run. An exit code of `FINAL` is final only if no
    worker ended in another way: workers that lose another one end with other codes.
    """
    count = max([1, *(each.get("hosts", 1) for each in statuses)])
    states = {each.get("state", "absent") for each in statuses}
    codes = {each.get("code") for each in statuses if each.get("state") == "ended"}
    if len(statuses) < count:
        return "unanswered"
    if states == {"ended"} and codes <= FINAL:
        return "done" if codes == {DONE} else "final"
    if states == {"absent"}:
        return "absent"
    if states <= {"starting", "running", "ended"} and codes <= FINAL:  # the others end soon
        return "running"
    return "broken"


def note(statuses: Sequence[dict], course: Course) -> None:
    """Record the furthest step, and the time of progress."""
    step = max([-1, *(each["step"] for each in statuses if "step" in each)])
    if step > course.step:
        course.step, course.moved, course.restarts = step, time.monotonic(), 0
    say(f"step {step}, {len(statuses)} worker(s)")


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {texts.printable(text)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch a run until it ends."""
    parser = argparse.ArgumentParser(description="Keep a training running on slices that may be preempted.")
    slices.add_target(parser)
    slices.add_create(parser)
    slices.add_run(parser)
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between checks (default: %(default)g)")
    parser.add_argument(
        "--restarts", type=int, default=5, help="restarts without progress before it gives up (default: %(default)s)"
    )
    parser.add_argument(
        "--looks",
        type=int,
        default=3,
        help="consecutive checks that a worker may fail to answer (default: %(default)s)",
    )
    parser.add_argument(
        "--stall-minutes",
        type=float,
        default=60.0,
        help="minutes without progress before a restart (default: %(default)g)",
    )
    parser.add_argument("--delete", action="store_true", help="delete the slice at the end in any case")
    options = parser.parse_args(arguments)

    def create() -> None:
        slices.create(target, options.type, slices=options.slices, spot=options.spot, runtime=options.runtime,
                      more=options.flag)  # fmt: skip

    def run() -> None:
        slices.run(target, options.words, gcs=options.gcs, corpus=options.corpus, env=env)

    try:
        target, env = slices.target_of(options), texts.variables(options.env, options.env_file)
        for place in filter(None, (options.gcs, options.corpus)):  # before a slice is created, and billed
            texts.checked("address", place)
        if target.dry_run:  # each command once
            slices.state(target)
            create()
            slices.hosts(target)
            slices.status(target)
            slices.install(target)
            run()
            slices.stop(target)
            slices.delete(target)
            return 0
        patience = Patience(options.interval, options.restarts, options.looks, 60 * options.stall_minutes)
        return watch(target, create=create, run=run, patience=patience, delete=options.delete)
    except ValueError as error:
        print(f"watch: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        say("no longer watching: the run continues")
        return 130


if __name__ == "__main__":
    sys.exit(main())
