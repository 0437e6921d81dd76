"""The program that each of the two processes of test_processes.py runs: CORPUS FOLDER."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
from contract import small_bert

from bertjax import train
from bertjax.commands.main import main as command
from bertjax.config import Experiment, Phase, Run
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.records import corpus_tokenizer
from bertjax.errors import InputError, ProcessFailed, exit_code_of
from bertjax.finetuning.recipe import FineTuning, Recipe
from bertjax.finetuning.run import finetune
from bertjax.masking import Masking
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import BertLinear
from bertjax.run import processes
from bertjax.run.stop import Interrupted
from bertjax.run.writers import Progress
from bertjax.sharding import placement
from bertjax.sharding.mesh import MeshShape
from bertjax.tasks.own import own_task


def experiment(corpus: str, mesh: MeshShape) -> Experiment:
    """Four steps on sixteen rows of 16 tokens, each in two micro-batches. Small matrices are split too."""
    v = corpus_tokenizer(corpus).vocabulary
    encoder = small_bert(V=v.size, D=16, F=16, N=1)
    objective = MaskedLM(encoder, Masking(v.mask, (0, v.size), (v.cls, v.sep)), pair=True)
    rows = NextSentencePairs(corpus, 16, duplicates=1)
    run = Run(log_every=1, evaluate_every=2, evaluate_batches=3, checkpoint_every=2)
    phase = Phase(4, 16, rows, accumulate=2)
    return Experiment(objective, bert_adam(BertLinear(1e-2, 2, 4)), (phase,), run=run, mesh=mesh)


def own_data(folder: Path, texts: int) -> FineTuning:
    """Describe a fine-tuning on texts that end in a word that tells their class; the validation split has 21."""
    if processes.is_coordinator():
        (folder / "data").mkdir()
        for split, count in (("train", texts), ("dev", 21)):
            lines = [f"the man is {('good', 'old')[n % 2]},{('yes', 'no')[n % 2]}\n" for n in range(count)]
            (folder / f"data/{split}.csv").write_text("text,label\n" + "".join(lines))
    processes.from_coordinator("written")
    task = own_task("classify", str(folder / "data"), ("text",), "label")
    recipe = Recipe(1e-2, 8, epochs=5, length=16, decay=1.0, dropout=0.0)
    return FineTuning(task, str(folder / "data"), str(folder / "straight"), recipe, seeds=1, run=Run(log_every=1))


def fine_tune(folder: Path) -> dict[str, object]:
    """Fine-tune in both processes, and evaluate the best model in both; return what was printed and returned."""
    found: dict[str, object] = {}
    tuning = own_data(folder, 64)
    found["tuned"] = finetune(tuning, folder / "tuned", progress=Progress(shown=False))
    assert finetune(tuning, folder / "tuned", progress=Progress(shown=False)) == found["tuned"]
    for name, more in {
        "task": ["task", "own", "--data", str(folder / "data"), "--model", str(folder / "tuned/best"), "--json"],
        "text": ["--model", str(folder / "straight"), "--batch-size", "8", "--json"],
    }.items():
        with redirect_stdout(io.StringIO()) as printed:
            assert command(["evaluate", *more]) == 0
        found[name] = printed.getvalue()
    odd = replace(tuning, recipe=tuning.recipe.changed(learning_rate=0.1 + jax.process_index()))
    try:
        finetune(odd, folder / "odd", progress=Progress(shown=False))
    except InputError as error:
        found["odd"] = str(error)
    return found


def interrupted(fit: Callable[[Path], object], folder: Path) -> list[object]:
    """Return how a run ends that is asked to stop, and the evaluations in its log."""
    try:
        fit(folder)
    except Interrupted as stopped:
        return [str(stopped), (folder / "log.jsonl").read_text().count("validation")]
    return []


def main(corpus: str, folder: Path) -> None:
    processes.join(timeout=60)
    processes.join = lambda: None  # for the commands
    placement.SMALLEST = 1
    ours, found = experiment(corpus, MeshShape(fsdp=2)), {}
    step = train.sharded_step(ours, ours.phases[0], ours.mesh.mesh(8))  # that of all runs: they differ in nothing else
    fit = partial(train.fit, make_step=lambda *_: step)
    train.evaluator = cache(train.evaluator)
    fit(ours, folder / "straight")

    # One of them is asked to stop while the first step is made ready: both do, and both go on later.
    place, calls = train.place_batch, []

    def stopping(*arguments):  # type: ignore[no-untyped-def]
        calls.append(None)
        if len(calls) == 1 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return place(*arguments)

    train.place_batch = stopping
    try:
        fit(ours, folder / "stopped")
    except Interrupted as stopped:
        found["stopped"] = str(stopped)
    train.place_batch = place
    fit(ours, folder / "stopped")
    # Process 1 alone cannot read the newest checkpoint: both go on from the one before.
    odd = "BERTJAX_FAULT" if jax.process_index() == 1 else "NONE"
    os.environ[odd] = "checkpoint.arrays:eio@1"
    fit(ours, folder / "stopped")
    del os.environ[odd]

    for name, other in {
        "experiment": replace(ours, seed=jax.process_index()),
        "corpus": replace(
            ours, phases=tuple(replace(p, rows=replace(p.rows, corpus="nowhere")) for p in ours.phases)
        ) if jax.process_index() else ours,
        "init": replace(ours, init=str(folder / "straight"), phases=(replace(ours.phases[0], steps=1),)),
        "folder": ours,
    }.items():  # fmt: skip
        try:
            fit(other, folder / (f"folder of {jax.process_index()}" if name == "folder" else name))
        except InputError as error:
            found[name] = str(error)
    try:
        with processes.raising_on_all():
            if jax.process_index() == 1:
                raise InputError("long " * 1000 + "and not cut")
    except InputError as error:
        found["long"] = str(error)
    found |= fine_tune(folder)

    # The data of process 1 fail: all leave after the same step. Then it is slow, and at last it hangs.
    for name, fault in {"unevaluated": "evaluation:eio@2", "failed": "batch:eio@3"}.items():
        os.environ[odd] = fault
        try:
            fit(ours, folder / "failed")
        except (OSError, ProcessFailed) as error:
            found[name] = [exit_code_of(error), type(error).__name__, str(error)]
    processes.EACH, os.environ[odd] = 1, "evaluation:term@2"
    found["evaluating"] = interrupted(partial(fit, ours), folder / "evaluating")
    os.environ[odd] = "batch:sleep=0.3"
    fit(ours, folder / "failed", progress=Progress(shown=processes.is_coordinator()))
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(found))
    os.environ[odd] = "batch:hang@4"
    fit(replace(ours, run=replace(ours.run, patience=2)), folder / "hung")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
