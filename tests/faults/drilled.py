"""What all drills share: a folder to work in, tiny experiments, programs that are compiled once, hashes of results."""

import hashlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NO_GCE_CHECK", "true")  # read where google.auth is imported: there is none to ask

import jax
import numpy as np
from contract import OBJECTIVES
from texts import make_documents, wordpiece_files

from bertjax import train
from bertjax.config import Experiment, Phase, Run
from bertjax.data.build import BuildSettings, build
from bertjax.data.corpus import split_sentences
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.rows import FullSentences
from bertjax.data.tokenizer import tokenizer_from_files
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import BertLinear
from bertjax.run.writers import Progress

HOME = Path(os.environ.get("RELIABILITY_HOME") or tempfile.mkdtemp(prefix="reliability-"))
"""The folder of all drills of one call of reliability.py, which deletes it."""
os.environ["RELIABILITY_HOME"] = str(HOME)
os.environ["XDG_CACHE_HOME"] = str(HOME / "cache")  # which remembers the corpora that were verified
PROGRAMS = os.environ.get("BERTJAX_TEST_PROGRAMS") or str(HOME / "programs")
jax.config.update("jax_compilation_cache_dir", PROGRAMS)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

REPOSITORY = Path(__file__).parents[2]
TOKENIZER = tokenizer_from_files(wordpiece_files(), origin="the test vocabulary")


class Trials(NamedTuple):
    """How often something was tried, and how often the promise held; notes: what failed, or was measured."""

    count: int
    passes: int
    notes: tuple[str, ...] = ()


Drill = Callable[[int, bool], Trials]
"""(trials, whether the protection is on) -> Trials"""


@cache
def corpus() -> str:
    """Return the folder of the corpus of all drills, built by a process of its own.

    Its libraries have threads from then on, with which this process could not fork.
    """
    folder = HOME / "corpus"
    if not (folder / "manifest.json").exists():
        subprocess.run([sys.executable, __file__], check=True)
    return str(folder)


def _build_corpus() -> None:
    sys.modules["bertjax.data.build"].__dict__["_BATCH"] = 20_000  # bytes that a worker reads: so there are more shards
    making = HOME / f"corpus-{os.getpid()}"
    build(make_documents(200), TOKENIZER, making, BuildSettings(split_sentences, holdout=0.1, shard_tokens=4000))
    making.rename(HOME / "corpus")


def experiment_of(kind: str, steps: int = 40, every: int = 5, keep: int = 3, data: str = "") -> Experiment:
    """Build a tiny experiment: masked LM with pairs, replaced tokens, permutations; dropout on."""
    data = data or corpus()
    rows = NextSentencePairs(data, 16, duplicates=1) if kind == "bert" else FullSentences(data, 32)
    run = Run(log_every=1, evaluate_every=0, evaluate_batches=1, checkpoint_every=every, keep=keep)
    objective: Any = OBJECTIVES[kind]
    rates = (*getattr(objective, "frozen", ()), (r".*", 1.0))  # those first that the objective does not train
    optimizer = bert_adam(BertLinear(1e-2, 4, 400), rates=rates)
    return Experiment(objective, optimizer, (Phase(steps, 8, rows),), run=run)


_steps: dict[object, train.Step] = {}


def made_once(experiment: Experiment, phase: Phase, mesh: jax.sharding.Mesh) -> train.Step:
    """Make the step of an objective once for all runs of this process."""
    faults = [each for each in os.environ.get("BERTJAX_FAULT", "").split(",") if each.startswith(("loss", "gradient"))]
    key = (experiment.objective, experiment.optimizer, train.judge, *faults)  # these are traced into the step
    if key not in _steps:
        _steps[key] = train.sharded_step(experiment, phase, mesh)
    return _steps[key]


@contextmanager
def compiled_once() -> Iterator[None]:
    """Let the runs of this process share their evaluation, which depends on the objective alone."""
    made = train.evaluator
    train.evaluator = cache(made)
    try:
        yield
    finally:
        train.evaluator = made


def fitted(experiment: Experiment, folder: Path) -> Any:
    """Train to the end, with words in messages.log alone; return the state."""
    with redirect_stderr(io.StringIO()):
        return train.fit(experiment, folder, progress=Progress(), make_step=made_once)


def digest(tree: object) -> str:
    """Hash the bytes of all arrays."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def trained(experiment: Experiment, folder: Path) -> str:
    """Train to the end, and return the hash of the state and of the log."""
    state = fitted(experiment, folder)
    return digest((state.params, state.opt)) + hashlib.sha256((folder / "log.jsonl").read_bytes()).hexdigest()


def newest(folder: Path) -> int:
    """Return the step of the newest checkpoint, 0 where there is none."""
    steps = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    return max(steps, default=0)


if __name__ == "__main__":
    _build_corpus()
