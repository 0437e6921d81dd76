"""Drill the promises of docs/reliability.md and write that page: `make reliability`, or some cases by name.

    python tests/faults/reliability.py [--share 1.0] [CASE …]

A trial passes where the promise held. "Off" is the same drill with the protection switched off: it has to fail in some
trials, or the drill proves nothing. Results of earlier cases are kept in reliability.json beside this file.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="reliability-cache-")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from contract import OBJECTIVES
from scipy.stats import beta
from texts import make_documents, wordpiece_files

from bertjax import train
from bertjax.checkpoints import checkpoint, saving
from bertjax.checkpoints.newest import read_newest
from bertjax.config import Experiment, Phase, Run
from bertjax.data import corpus_rows
from bertjax.data.build import BuildSettings, build
from bertjax.data.corpus import split_sentences
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.rows import FullSentences
from bertjax.data.tokenizer import tokenizer_from_files
from bertjax.errors import Diverged, InputError
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import BertLinear
from bertjax.run.writers import Progress
from bertjax.train import fit, sharded_step

jax.config.update("jax_compilation_cache_dir", os.environ.get("BERTJAX_TEST_PROGRAMS") or tempfile.mkdtemp())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

HOME = Path(os.environ.get("RELIABILITY_HOME") or tempfile.mkdtemp(prefix="reliability-"))
RESULTS, PAGE = Path(__file__).with_name("reliability.json"), Path(__file__).parents[2] / "docs" / "reliability.md"
QUIET = Progress(shown=False)
TOKENIZER = tokenizer_from_files(wordpiece_files(), origin="the test vocabulary")
KINDS = ("bert", "electra", "xlnet")
STEPS = 40

Trials = tuple[int, int]
"""(trials, passes)"""


def experiment_of(kind: str, steps: int = STEPS, every: int = 5, keep: int = 3) -> Experiment:
    """Build a tiny experiment: masked LM with pairs, replaced tokens, permutations; dropout on."""
    name = {"bert": "bert", "electra": "electra", "xlnet": "xlnet"}[kind]
    corpus = HOME / "corpus"
    if not (corpus / "manifest.json").exists():
        build(make_documents(200), TOKENIZER, corpus, BuildSettings(split_sentences, holdout=0.1, shard_tokens=4000))
    rows = {
        "bert": lambda: NextSentencePairs(str(corpus), 16, duplicates=1),
        "electra": lambda: FullSentences(str(corpus), 32),
        "xlnet": lambda: FullSentences(str(corpus), 32),
    }[kind]()
    run = Run(log_every=1, evaluate_every=0, evaluate_batches=1, checkpoint_every=every, keep=keep)
    objective = OBJECTIVES[name]
    schedule = BertLinear(1e-2, 4, steps)
    return Experiment(objective, bert_adam(schedule, rates=rates_of(objective)), (Phase(steps, 8, rows),), run=run)


def rates_of(objective: object) -> tuple[tuple[str, float], ...]:
    """Return the rates of an optimiser, with those first that the objective does not train."""
    return (*getattr(objective, "frozen", ()), (r".*", 1.0))


STEP_OF: dict[object, train.Step] = {}


def made_once(experiment: Experiment, phase: Phase, mesh: jax.sharding.Mesh) -> train.Step:
    """Make the step of an objective once for all runs of this process."""
    key = (experiment.objective, experiment.optimizer, os.environ.get("BERTJAX_FAULT"))
    if key not in STEP_OF:
        STEP_OF[key] = sharded_step(experiment, phase, mesh)
    return STEP_OF[key]


def digest(tree: object) -> str:
    """Hash the bytes of all arrays."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def trained(experiment: Experiment, folder: Path) -> str:
    """Train to the end, and return the hash of the state and of the log."""
    state = fit(experiment, folder, progress=QUIET, make_step=made_once)
    return digest((state.params, state.opt)) + hashlib.sha256((folder / "log.jsonl").read_bytes()).hexdigest()


def newest(folder: Path) -> int:
    """Return the step of the newest checkpoint, 0 where there is none."""
    steps = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    return max(steps, default=0)


# Cases: each returns trials and passes -------------------------------------------------------------------------------


def kills(kind: str, count: int) -> Trials:
    """Kill -9 at random moments; the run that goes on ends bit-equal, loses an interval at most, leaves nothing."""
    rng, every = random.Random(kind), 5
    experiment_of(kind)  # which builds the corpus
    wanted = child(kind, HOME / f"whole-{kind}", None)
    made, passed, folder = 0, 0, HOME / f"killed-{kind}"
    while made < count:
        before, log = newest(folder), folder / "log.jsonl"
        answer = child(kind, folder, rng.uniform(0, 2.5))
        if answer is None:
            made += 1
            steps = [json.loads(line)["step"] for line in log.read_text().splitlines()[:-1]]
            reached = max(steps, default=0)
            passed += newest(folder) >= before and reached - newest(folder) <= 2 * every
            continue
        unfinished = [path for pattern in saving._UNFINISHED for path in (folder / "checkpoints").glob(pattern)]
        if answer != wanted or unfinished:
            passed = 0  # all the kills of this run may be to blame
        shutil.rmtree(folder)
    return made, passed


def child(kind: str, folder: Path, kill_after: float | None) -> str | None:
    """Train in a process of its own; return the hash of its end, None where it was killed, seconds after it resumed."""
    command = [sys.executable, __file__, "--train", kind, str(folder)]
    log, environment = folder / "log.jsonl", os.environ | {"RELIABILITY_HOME": str(HOME)}
    mark = log.stat().st_mtime_ns if log.exists() else 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    if kill_after is not None:
        while process.poll() is None and not (log.exists() and log.stat().st_mtime_ns > mark):
            time.sleep(0.02)
        with suppress(subprocess.TimeoutExpired):
            process.wait(kill_after)
        process.kill()
    text, _ = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the run failed by itself, with status {process.returncode}")
    return text.strip() or None


def resumes(kind: str, count: int) -> Trials:
    """Resume at every step of a run: the end is bit-equal to that of one that was not stopped."""
    experiment = experiment_of(kind, STEPS, every=1, keep=STEPS)
    wanted = trained(experiment, HOME / f"every-{kind}")
    seldom = dataclasses.replace(experiment, run=dataclasses.replace(experiment.run, checkpoint_every=1000))
    passed, steps = (
        0,
        range(1, STEPS) if count >= STEPS - 1 else sorted(random.Random(0).sample(range(1, STEPS), count)),
    )
    for step in steps:
        folder = HOME / "resumed"
        shutil.copytree(HOME / f"every-{kind}", folder)
        for later in range(step + 1, STEPS + 1):
            shutil.rmtree(folder / "checkpoints" / str(later))
        passed += trained(seldom, folder) == wanted
        shutil.rmtree(folder)
    return len(steps), passed


def unchecked(folder: Path, item: str, like: object, _: object) -> object:
    """Restore without comparing checksums."""
    return checkpoint.read_arrays(folder, item, like)


def damage(count: int, *, protected: bool = True) -> Trials:
    """Flip, truncate, swap and delete files of a checkpoint: it is refused, or equal; never other weights."""
    rng = np.random.default_rng(0)
    state = {
        "a": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=300), jnp.float32),
    }
    folder, before = HOME / "damaged", jax.tree.leaves(state)
    if not folder.exists():
        checkpoint.write(folder, 3, state, {"m": state["a"]}, experiment=DESCRIBED, tokenizer=TOKENIZER)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    data = [path for path in files if "params" in path.parts and path.stat().st_size > 1000]
    passed = 0
    for trial in range(count):
        path, kind = (data if trial % 2 else files)[rng.integers(len(data if trial % 2 else files))], trial % 4
        other = files[rng.integers(len(files))]
        contents = path.read_bytes(), other.read_bytes()
        if kind == 0:
            path.write_bytes(contents[0][: rng.integers(len(contents[0]))])
        elif kind in (1, 3):
            content = bytearray(contents[0])
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            path.write_bytes(content)
        elif trial % 8 == 2:
            path.unlink()
        else:
            path.write_bytes(contents[1])
            other.write_bytes(contents[0])
        try:
            info = checkpoint.read_info(folder)
            restore = checkpoint.restore if protected else unchecked
            found = jax.tree.leaves(restore(folder, "params", like, info))
            passed += all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(found, before, strict=True))
        except InputError:
            passed += 1
        path.write_bytes(contents[0])
        other.write_bytes(contents[1] if other != path else contents[0])
    return count, passed


DESCRIBED, MOMENTS = {"objective": {"type": "x"}}, {"m": np.zeros(3, np.float32)}


def clean(count: int) -> Trials:
    """Restore checkpoints that are whole: no false alarm."""
    rng, passed = np.random.default_rng(1), 0
    for trial in range(count):
        shape = tuple(int(n) for n in rng.integers(1, 40, size=int(rng.integers(0, 4))))
        state = {"a": jnp.asarray(rng.normal(size=shape), jnp.bfloat16 if trial % 2 else jnp.float32)}
        folder = HOME / "clean"
        checkpoint.write(folder, 1, state, MOMENTS, experiment=DESCRIBED, tokenizer=TOKENIZER)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        found = checkpoint.restore(folder, "params", like, checkpoint.read_info(folder))
        passed += bool((np.asarray(found["a"]) == np.asarray(state["a"])).all())
    return count, passed


def flaky_disk(count: int, *, protected: bool = True) -> Trials:
    """Fail some attempts of each save at some point: training ends, the newest checkpoint is whole, none was lost."""
    rng, passed = random.Random(2), 0
    saving.FIRST_PAUSE, saving.LONGEST_PAUSE = 0.01, 0.05
    attempts, saving.ATTEMPTS = saving.ATTEMPTS, saving.ATTEMPTS if protected else 1
    experiment = experiment_of("bert", 20)
    wanted = digest(fit(experiment, HOME / "steady", progress=QUIET, make_step=made_once).params)
    for _ in range(count):
        points = ["checkpoint.write", "checkpoint.commit", "checkpoint.delete"]
        faults = [f"{rng.choice(points)}:{rng.choice(['enospc', 'edquot', 'eacces', 'eio'])}@{rng.randint(1, 4)}"]
        first = rng.randint(1, 3)
        faults += [f"{rng.choice(points[:2])}:enospc@{first}-{first + rng.randint(0, 4)}"]
        faults += [f"checkpoint.written:{rng.choice(['flip', 'truncate', 'delete'])}@{rng.randint(1, 4)}"]
        os.environ["BERTJAX_FAULT"] = ",".join(faults)
        saving.fault.__globals__["_passes"].clear()
        folder = HOME / "flaky"
        try:
            step = STEP_OF[(experiment.objective, experiment.optimizer, None)]
            state = fit(experiment, folder, progress=QUIET, make_step=lambda *_, step=step: step)
            del os.environ["BERTJAX_FAULT"]
            whole = checkpoint.read_info(folder / "checkpoints" / "20")
            passed += digest(state.params) == wanted and whole["step"] == 20
        except Exception:  # noqa: BLE001 a run that ended has not passed
            pass
        os.environ.pop("BERTJAX_FAULT", None)
        shutil.rmtree(folder, ignore_errors=True)
    saving.ATTEMPTS = attempts
    return count, passed


def deleted_while_read(count: int, *, protected: bool = True) -> Trials:
    """Read a run while it deletes old checkpoints: what it deletes is not called damaged."""
    folder, state = HOME / f"moving {protected}", {"a": jnp.arange(2000.0)}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    manager = checkpoint.open_checkpoints(folder / "checkpoints", keep=1, keep_every=0)
    if not protected:
        manager._delete = shutil.rmtree
    checkpoint.save(manager, 1, state, MOMENTS, experiment=DESCRIBED, tokenizer=TOKENIZER, data=[])
    manager.wait_until_finished()
    ended, told = threading.Event(), []

    def write() -> None:
        step = 2
        while not ended.is_set():
            checkpoint.save(manager, step, state, MOMENTS, experiment=DESCRIBED, tokenizer=TOKENIZER, data=[])
            step += 1

    def read(path: Path) -> object:
        info = checkpoint.read_info(path)
        time.sleep(0.05)  # as for a large model
        return checkpoint.restore(path, "params", like, info)

    writer = threading.Thread(target=write)
    writer.start()
    passed = 0
    for _ in range(count):
        told.clear()
        try:
            if protected:
                read_newest(folder, read, told.append)
            else:
                read(checkpoint.latest_step(folder))
            passed += not told
        except (InputError, OSError):
            pass
    ended.set()
    writer.join()
    manager.close()
    return count, passed


def bad_batches(count: int, *, protected: bool = True) -> Trials:
    """Poison the gradient of one step with nan or inf: its state is that of the step before, and the run goes on."""
    experiment, passed = experiment_of("bert", 12, every=1, keep=12), 0
    judged = train.judge
    if not protected:
        train.judge = lambda skips, *rest: (jnp.bool_(True), judged(skips, *rest)[1])
    for trial in range(count):
        step, value = 2 + trial % 9, ("nan", "inf")[trial % 2]
        os.environ["BERTJAX_FAULT"] = f"{('gradient', 'loss')[trial % 3 == 2]}:{value}@{step}"
        folder = HOME / "poisoned"
        try:
            state = fit(experiment, folder, progress=QUIET)
            held = checkpoint.read_info(folder / "checkpoints" / str(step + 1))["skips"]["total"] == 1
            finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((state.params, state.opt)))
            passed += held and finite and int(state.skips.total) == 1
        except (Diverged, InputError):
            pass
        del os.environ["BERTJAX_FAULT"]
        shutil.rmtree(folder, ignore_errors=True)
    train.judge = judged
    return count, passed


def exchanged_shards(count: int, *, protected: bool = True) -> Trials:
    """Exchange two shards of a corpus: the run is refused when it begins."""
    experiment_of("bert")
    folder, passed, rng = HOME / "exchanged", 0, random.Random(3)
    shutil.copytree(HOME / "corpus", folder, dirs_exist_ok=True)
    shards = sorted(folder.glob("*.array_record-*"))
    protections = corpus_rows.verify_shards, corpus_rows.Corpus
    if not protected:  # the second notices shards of other sizes
        corpus_rows.verify_shards, corpus_rows.Corpus = lambda folder: None, lambda folder, split: None
    for _ in range(count):
        a, b = rng.sample(shards, 2)
        for first, second in ((a, folder / "other"), (b, a), (folder / "other", b)):
            first.rename(second)
        try:
            FullSentences(str(folder), 16).digest()
        except InputError:
            passed += 1
        for first, second in ((a, folder / "other"), (b, a), (folder / "other", b)):
            first.rename(second)
    corpus_rows.verify_shards, corpus_rows.Corpus = protections
    return count, passed


CASES: dict[str, tuple[str, Callable[[int], Trials], int, Callable[[int], Trials] | None]] = {
    **{
        f"kills-{kind}": (f"kill -9 at a random moment of a run, {kind}", lambda n, kind=kind: kills(kind, n), 67, None)
        for kind in KINDS
    },
    **{
        f"resume-{kind}": (
            f"resumed at each step of a run of {STEPS}, {kind}", lambda n, kind=kind: resumes(kind, n), STEPS - 1, None,
        )
        for kind in KINDS
    },
    "damage": ("a checkpoint flipped, truncated, exchanged or deleted in part", damage, 200,
               lambda n: damage(n, protected=False)),
    "clean": ("a whole checkpoint restored", clean, 100, None),
    "flaky-disk": ("saves that fail, are damaged, or cannot delete", flaky_disk, 60,
                   lambda n: flaky_disk(n, protected=False)),
    "deleted": ("a checkpoint read while the run deletes it", deleted_while_read, 400,
                lambda n: deleted_while_read(n, protected=False)),
    "bad-batch": ("one step with a nan or inf in loss or gradient", bad_batches, 18,
                  lambda n: bad_batches(n, protected=False)),
    "shards": ("two shards of a corpus exchanged", exchanged_shards, 50,
               lambda n: exchanged_shards(n, protected=False)),
}  # fmt: skip
"""By name: what is done, the drill, its trials in full, and the drill with its protection off."""


def costs() -> dict[str, float]:
    """Measure restoring with and without checksums, and how long a save stops training, on 50 million parameters."""
    state = {f"layer{n}": jax.random.normal(jax.random.key(n), (2500, 1000)) for n in range(20)}
    folder = HOME / "large"
    checkpoint.write(folder, 1, state, MOMENTS, experiment=DESCRIBED, tokenizer=TOKENIZER)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    info = checkpoint.read_info(folder)
    checkpoint.restore(folder, "params", like, info)
    seconds: dict[str, list[float]] = {"plain": [], "checked": [], "save": []}
    for _ in range(5):
        begun = time.perf_counter()
        jax.block_until_ready(checkpoint.read_arrays(folder, "params", like))
        seconds["plain"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        checkpoint.restore(folder, "params", like, info)
        seconds["checked"].append(time.perf_counter() - begun)
    manager = checkpoint.open_checkpoints(HOME / "large-run" / "checkpoints", keep=1, keep_every=0)
    for step in range(1, 4):
        manager.wait_until_finished()
        begun = time.perf_counter()
        checkpoint.save(manager, step, state, MOMENTS, experiment=DESCRIBED, tokenizer=TOKENIZER, data=[])
        seconds["save"].append(time.perf_counter() - begun)
    manager.close()
    found = {name: float(np.median(each)) for name, each in seconds.items()}
    return found | {"ratio": found["checked"] / found["plain"]}


def page(results: dict[str, dict[str, float | str]]) -> str:
    """Format all results as docs/reliability.md."""
    lines = [
        "# Reliability",
        "",
        "What bertjax promises about runs that are killed, damaged or starved, and how often each promise",
        "was tried. The page is made by `make reliability` (tests/faults/reliability.py), on tiny models.",
        "The bound is the one-sided 95% bound of Clopper and Pearson on the rate at which the promise",
        "holds. Off: passes of the same drill with its protection switched off, which shows that the drill",
        "can fail.",
        "",
        "| case | trials | passes | held in at least | off | seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in CASES:
        if name in results:
            each = results[name]
            trials, passes = int(each["trials"]), int(each["passes"])
            bound = beta.ppf(0.05, passes, trials - passes + 1) if passes else 0.0
            off = f"{each['off_passes']} of {each['off_trials']}" if "off_trials" in each else ""
            lines.append(f"| {CASES[name][0]} | {trials} | {passes} | {bound:.1%} | {off} | {each['seconds']:.0f} |")
    if found := results.get("costs"):
        lines += [
            "",
            f"Costs, with 50 million parameters on {found['machine']}: restoring with checksums takes",
            f"{found['checked']:.2f} s, {found['ratio']:.2f} times the {found['plain']:.2f} s without; a save stops",
            f"training for {found['save']:.2f} s.",
        ]
    return "\n".join(lines) + "\n"


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
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(trained(experiment_of(options.train[0], 400), Path(options.train[1])), flush=True)
        return
    warnings.simplefilter("ignore")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.cases or [*CASES, "costs"]:
        begun = time.perf_counter()
        if name == "costs":
            results[name] = costs() | {"machine": machine()}
        else:
            _, drill, full, off = CASES[name]
            trials, passes = drill(max(1, round(full * options.share)))
            results[name] = {"trials": trials, "passes": passes}
            if off is not None:
                off_trials, off_passes = off(max(8, round(full * options.share)))
                results[name] |= {"off_trials": off_trials, "off_passes": off_passes}
            results[name]["seconds"] = time.perf_counter() - begun
        print(name, results[name], flush=True)
        RESULTS.write_text(json.dumps(results, indent=1))
        PAGE.write_text(page(results))
    shutil.rmtree(HOME, ignore_errors=True)


if __name__ == "__main__":
    main()
