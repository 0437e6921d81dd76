"""Drill the promises of docs/reliability.md and write that page: `make reliability`, or some cases by name.

    python tests/faults/reliability.py [--share 1.0] [CASE …]

A trial passes where the promise held. "Off" is the same drill with the protection switched off: it has to fail in some
trials, or the drill proves nothing. Two cases run at a time, each in a process of its own. Results of earlier calls are
kept in reliability.json beside this file.
"""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from drilled import HOME, Drill, corpus
from scipy.stats import beta

from bertjax.commands.main import _tell_of_unraisable

RESULTS, PAGE = Path(__file__).with_name("reliability.json"), Path(__file__).parents[2] / "docs" / "reliability.md"


@dataclass(frozen=True)
class Case:
    """A drill. drill: module and function, and what else it is called with. trials: in full; off: without protection.

    remark: for the page. short: the tests of the suite that try the same in short.
    priority: as of `nice`, where time is measured and this process may.
    """

    text: str
    drill: tuple[str, ...]
    trials: int
    off: int
    short: tuple[str, ...]
    remark: str = ""
    priority: int = 0

    def function(self) -> Drill:
        """Return the drill."""
        module, name, *more = self.drill
        return partial(getattr(import_module(module), name), *more)


KINDS = ("bert", "electra", "xlnet")
CASES = {
    "preempted": Case(
        "a preemption, of a run of ten minutes with one every 30 s", ("preempted", "preempted"), 600, 70,
        ("run/test_ways_out.py::test_a_stop_in_a_blocked_input_saves_and_the_next_run_goes_on",), priority=-10,
    ),
    "matrix": Case(
        "one of two processes killed, stopped, hung, failed, late", ("matrix", "matrix"), 36, 14,
        ("run/test_processes.py::test_a_hang_of_one_process_ends_all_with_the_stacks_of_each",
         "run/test_processes.py::test_all_processes_stop_after_the_same_step_and_resume_bit_by_bit"), priority=-10,
    ),
    **{
        f"kills-{kind}": Case(
            f"kill -9 at a random moment of a run, {kind}", ("kills", "kills", kind), 67, 12,
            ("test_train.py::test_a_run_killed_after_every_step_ends_bit_equal_to_an_undisturbed_one",),
        )
        for kind in KINDS
    },
    "emulator": Case(
        "Cloud Storage slow, refusing, dropping, gone for up to 20 s; runs killed there", ("cloud", "emulator"), 24, 9,
        ("gs/test_gs.py::test_a_run_survives_a_service_that_is_slow_refuses_and_disappears",
         "gs/test_gs.py::test_two_processes_train_in_one_place_are_killed_and_go_on_bit_equal"),
    ),
    **{
        f"resume-{kind}": Case(
            f"resumed at each step of a run of 40, {kind}", ("kills", "resumes", kind), 39, 8,
            ("test_train.py::test_a_run_killed_after_every_step_ends_bit_equal_to_an_undisturbed_one",),
        )
        for kind in KINDS
    },
    "folders": Case(
        "a work folder with damaged, exchanged, missing or strange files", ("folders", "folders"), 120, 80,
        ("checkpoints/test_newest.py", "run/test_mended.py"),
    ),
    "flaky-disk": Case(
        "saves that fail, are damaged, or cannot delete", ("disks", "flaky"), 60, 20,
        ("checkpoints/test_saving.py",),
    ),
    "full-disk": Case(
        "a disk that is full for some saves, or for good", ("disks", "full"), 40, 20,
        ("checkpoints/test_saving.py",),
    ),
    "bad-batch": Case(
        "one step with a nan, an inf or 10³⁰ times the values in loss or gradient", ("poison", "bad_batches"), 24, 12,
        ("test_train.py::test_one_bad_batch_is_skipped_logged_and_not_in_the_way_of_exact_resume",),
    ),
    "poison": Case(
        "a corpus with damaged, exchanged or foreign records, ids, counts, vocabulary", ("poison", "corpora"), 77, 77,
        ("data/test_records.py",),
        remark="off are the hashes in the manifest and the look at the ids alone, not the other checks (checksums of "
        "records, counts that add up, the fingerprint of the tokenizer), which refuse most of it too; of the 10 trials "
        "whose records are damaged in the middle of a run the weights are not compared",
    ),
    "deleted": Case(
        "a checkpoint read while the run deletes it", ("states", "deleted_while_read"), 400, 200,
        ("checkpoints/test_newest.py",),
    ),
    "damage": Case(
        "a checkpoint flipped, truncated, exchanged or deleted in part", ("states", "damage"), 200, 200,
        ("checkpoints/test_checkpoint.py",),
    ),
    "clean": Case(
        "a whole checkpoint restored", ("states", "clean"), 100, 0, ("checkpoints/test_checkpoint.py",),
        remark="nothing is switched off, since it counts false alarms of a protection, which is on",
    ),
    "shards": Case(
        "two shards of a corpus exchanged", ("poison", "exchanged_shards"), 50, 50, ("data/test_verify.py",),
    ),
}  # fmt: skip
"""By name, those that take longest first."""


def one(name: str, share: float) -> dict[str, Any]:
    """Run a case, on and off, in this process."""
    warnings.simplefilter("ignore")
    sys.unraisablehook = _tell_of_unraisable
    if name == "costs":
        return import_module("costs").costs()
    case, found = CASES[name], dict[str, Any]()
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + case.priority)
    for on, full in ((True, case.trials), (False, case.off)):
        if full:
            begun, prefix = time.perf_counter(), "" if on else "off_"
            count, passes, notes = case.function()(max(2, round(full * share)), on)
            found |= {
                f"{prefix}trials": count,
                f"{prefix}passes": passes,
                f"{prefix}notes": list(notes[: 20 if on else 3]),
            }
            found[f"{prefix}seconds"] = round(time.perf_counter() - begun, 1)
    return found


def page(results: dict[str, dict[str, Any]]) -> str:
    """Format all results as docs/reliability.md."""
    lines = [INTRODUCTION, "| case | trials | passes | held in at least | off | seconds | measured | load |",
             "|---|---:|---:|---:|---:|---:|---|---:|"]  # fmt: skip
    shown = {name: results[name] for name in CASES if name in results}
    for name, each in shown.items():
        trials, passes = int(each["trials"]), int(each["passes"])
        bound = beta.ppf(0.05, passes, trials - passes + 1) if passes else 0.0
        off = f"{each['off_passes']} of {each['off_trials']}" if "off_trials" in each else "none"
        seconds = each["seconds"] + each.get("off_seconds", 0)
        row = (
            CASES[name].text,
            trials,
            passes,
            f"{bound:.1%}",
            off,
            f"{seconds:.0f}",
            each["measured"],
            each.get("load", ""),
        )
        lines.append("| " + " | ".join(map(str, row)) + " |")
    total = sum(each["seconds"] + each.get("off_seconds", 0) for each in shown.values())
    lines.append(f"\nIn all {total / 60:.0f} minutes of cases, two at a time.\n")
    for name, each in shown.items():
        notes = [*each["notes"], *filter(None, [CASES[name].remark])]
        lines += [f"- {CASES[name].text}: {note}" for note in notes]
    if missing := [case.text for name, case in CASES.items() if name not in results]:
        lines.append(f"\n**Without a result of a whole run so far:** {'; '.join(missing)}.")
    lines.append(LIMITS)
    if found := results.get("costs"):
        lines.append(import_module("costs").described(found))
    lines += import_module("fuzz").section()
    lines += [SHORT, "| case | tests |", "|---|---|"]
    lines += [f"| {case.text} | {', '.join(f'`{each}`' for each in case.short)} |" for case in CASES.values()]
    return "\n".join(lines) + "\n"


INTRODUCTION = """# Reliability

What bertjax promises about runs that are killed, preempted, damaged or starved, and how often each promise
was tried. The page is made by `make reliability` (tests/faults/reliability.py), on tiny models; on two cores
of its own it is meant to take under 40 minutes, and beside other work longer. Load: the mean number of
processes that wanted a core in the last quarter of an hour, those of others included. The bound is the
one-sided 95% bound of Clopper and Pearson on the rate at which the promise holds. Off: passes of the same
drill with its protection switched off (tests/faults/without.py), which shows that the drill can fail. A
passed trial of a run means that its weights, and its log, are bit by bit those of a run that was left
alone, or that it ended in one line with the exit code for it.
"""

LIMITS = """
Not promised: a changed digit in `log.jsonl` is not noticed, since its lines have no checksums. Nothing
can be switched off of what the operating system does by itself: that renaming a folder is one step, and
that a killed process leaves no lock. A preempted run needs the seconds that Python, JAX and its compiler
take to start; on CPUs compiled programs are kept only with `JAX_COMPILATION_CACHE_DIR`.
"""

SHORT = """
## The short forms
Each case has a short form in the test suite, below `tests/`; `pytest $(python tests/faults/reliability.py --short)`
runs them.
"""


def machine() -> str:
    """Name the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return f"{os.cpu_count()} cores, {names[0] if names else 'of unknown kind'}"


def main() -> None:
    """Run cases, add their results to reliability.json, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"{', '.join(CASES)}, costs (default: all)")
    parser.add_argument("--share", type=float, default=1.0, help="share of the trials (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="only list the tests of the suite that are the short form")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--one", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        Path(options.one).write_text(json.dumps(one(options.cases[0], options.share)))
        return
    if options.short:
        print(*dict.fromkeys(f"tests/{each}" for case in CASES.values() for each in case.short))
        return
    if options.page:
        PAGE.write_text(page(json.loads(RESULTS.read_text())))
        return
    run = _in_process(options.share)

    def add(name: str) -> None:
        found = run(name) | {"machine": machine(), "measured": time.strftime("%Y-%m-%d %H:%M")}
        found["load"] = round(os.getloadavg()[2], 1)
        print(name, {key: value for key, value in found.items() if not key.startswith("off_notes")}, flush=True)
        with RESULTS.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # other cases may be run by another call
            results = json.load(file) | {name: found}
            file.seek(0)
            file.truncate()
            json.dump(results, file, indent=1)
            PAGE.write_text(page(results))

    corpus()
    names = options.cases or [*CASES]
    with ThreadPoolExecutor(2) as pool:
        ended = [pool.submit(add, name) for name in names if name != "costs"]
    if "costs" in names or not options.cases:
        add("costs")  # alone: it is a measurement
    for each in ended:
        each.result()
    shutil.rmtree(HOME, ignore_errors=True)


def _in_process(share: float) -> Callable[[str], dict[str, Any]]:
    def run(name: str) -> dict[str, Any]:
        file = HOME / f"{name}.json"
        command = [sys.executable, __file__, "--one", str(file), "--share", str(share), name]
        with (HOME / f"{name}.txt").open("wb") as output:
            code = subprocess.run(command, stdout=output, stderr=output).returncode
        if code:
            raise RuntimeError(f"{name}, exit {code}: {(HOME / f'{name}.txt').read_text(errors='replace')[-3000:]}")
        return json.loads(file.read_text())

    return run


if __name__ == "__main__":
    main()
