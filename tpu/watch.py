"""Keep a training going on slices that may be preempted: create, install, run, and again, until it is done.

    python tpu/watch.py bert --zone us-central2-b --type v4-32 --spot --corpus gs://mine/wiki \\
        --gcs gs://mine/runs/base -- experiments/bert.py size=base dtype=bfloat16

It looks at the slice and does what is missing, so it can itself be stopped and started again at any time. After
`--restarts` restarts without progress it gives up; progress is a checkpoint or a log line of a step never seen before.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import slices
from slices import CloudError, Target

WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "DELETING", "SUSPENDING")
MISTAKE = 2  # bertjax's exit code for what the user must mend


@dataclass(frozen=True)
class Patience:
    """Say how long to wait for what. `interval`: seconds between looks."""

    interval: float
    restarts: int  # without progress
    looks: int  # that workers may fail to answer before their slice is replaced
    stall: float  # seconds without progress after which a run counts as hung


@dataclass
class Course:
    """Hold what has happened so far."""

    restarts: int = 0  # since the last progress
    step: int = -1  # the furthest
    moved: float = 0.0  # when that was, or when the run began again
    unanswered: int = 0  # looks in a row
    total: int = 0  # restarts in all

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
    """Look, do what is missing, wait, and again. Returns 0 once done, 1 on giving up, 2 where the user must mend.

    delete: the slice is deleted at the end, whichever it is; else it stays, and is paid for.
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
                say(f"the slice is {state}: deleting it, to create it again")
                slices.delete(target)
                course.restarted()
        except CloudError as error:  # of `state`, for example: this computer may be offline
            say(str(error))
            code = MISTAKE if error.final else None
        if code is None and course.restarts > patience.restarts:
            say(f"giving up: {patience.restarts} restarts without progress, at step {course.step}")
            code = 1
        if code is not None:
            break
        time.sleep(pause)
    say(f"{'done' if code == 0 else 'ended'} at step {course.step}, {course.total} restart(s)")
    return leave(target, code, patience, delete=delete)


def leave(target: Target, code: int, patience: Patience, *, delete: bool) -> int:
    """Delete the slice, or say how to; where it cannot be deleted return 1 instead of 0."""
    project = f" --project {target.project}" * bool(target.project)
    by_hand = f"slices.py delete {target.name} --zone {target.zone}{project}"
    if not delete:
        say(f"the slice stays until: {by_hand}")
    elif not deleted(target, patience):
        say(f"the slice is still there, and is paid for, until: {by_hand}")
        return code or 1
    return code


def deleted(target: Target, patience: Patience) -> bool:
    """Delete the slice, trying as often as workers may fail to answer."""
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
    """Create the slice; without quota or capacity count that, and try again later, since both come back."""
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
    """Look at the run on a slice that is there: begin it, begin it again, or leave it. Returns a code once it ended."""
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
                slices.install(target)  # a slice that was repaired has new disks
                run()
                course.moved = time.monotonic()
    except CloudError as error:
        if error.final:
            raise
        say(str(error))
        verdict = "unanswered"
    course.unanswered = course.unanswered + 1 if verdict == "unanswered" else 0
    if verdict == "unanswered" and course.unanswered >= patience.looks:
        say(f"not all workers answered, {course.unanswered} times: deleting the slice, to create it again")
        slices.delete(target)
        course.restarted()
    if verdict == "mistake":
        say(
            f"exit code {MISTAKE}, to be mended before it runs again: slices.py logs {target.name} --zone {target.zone}"
        )
    return {"done": 0, "mistake": MISTAKE}.get(verdict)


def judge(statuses: Sequence[dict]) -> str:
    """Tell from what workers say: unanswered, absent, running, done, mistake or broken.

    How many there are those know that have a run. A mistake is one only where no worker ended otherwise: those that
    miss a worker that was lost end with codes of their own.
    """
    count = max([1, *(each.get("hosts", 1) for each in statuses)])
    states = {each.get("state", "absent") for each in statuses}
    codes = {each.get("code") for each in statuses if each.get("state") == "ended"}
    if len(statuses) < count:
        return "unanswered"
    if states == {"ended"} and codes <= {0, MISTAKE}:
        return "mistake" if MISTAKE in codes else "done"
    if states == {"absent"}:
        return "absent"
    if states <= {"starting", "running", "ended"} and codes <= {0, MISTAKE}:  # the others end soon
        return "running"
    return "broken"


def note(statuses: Sequence[dict], course: Course) -> None:
    """Note the furthest step, and when that was new."""
    step = max([-1, *(each["step"] for each in statuses if "step" in each)])
    if step > course.step:
        course.step, course.moved, course.restarts = step, time.monotonic(), 0
    say(f"step {step}, {len(statuses)} worker(s)")


def say(text: str) -> None:
    """Print a line with the hour."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch until the run ends."""
    parser = argparse.ArgumentParser(description="Keep a training going on slices that may be preempted.")
    slices.add_target(parser)
    slices.add_create(parser)
    slices.add_run(parser)
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between looks (default: %(default)g)")
    parser.add_argument("--restarts", type=int, default=5, help="without progress, then give up (default: %(default)s)")
    parser.add_argument("--looks", type=int, default=3, help="that a worker may miss (default: %(default)s)")
    parser.add_argument(
        "--stall-minutes", type=float, default=60.0, help="without progress: hung (default: %(default)g)"
    )
    parser.add_argument("--delete", action="store_true", help="delete the slice at the end, however it ends")
    options = parser.parse_args(arguments)
    target = slices.target_of(options)

    def create() -> None:
        slices.create(target, options.type, slices=options.slices, spot=options.spot, runtime=options.runtime,
                      more=options.flag)  # fmt: skip

    def run() -> None:
        slices.run(target, options.words, gcs=options.gcs, corpus=options.corpus, env=options.env,
                   push_seconds=options.push_seconds)  # fmt: skip

    try:
        if target.dry_run:  # one look of each kind
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
        say("no longer watching: the run goes on")
        return 130


if __name__ == "__main__":
    sys.exit(main())
