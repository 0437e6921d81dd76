"""The program that each of the two processes of test_processes.py runs: CORPUS FOLDER."""

import json
import os
import signal
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
from contract import small_bert

from bertjax import train
from bertjax.config import Experiment, Phase, Run
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.records import corpus_tokenizer
from bertjax.errors import InputError
from bertjax.masking import Masking
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import BertLinear
from bertjax.run import processes
from bertjax.run.stop import Interrupted
from bertjax.sharding import placement
from bertjax.sharding.mesh import MeshShape


def experiment(corpus: str, mesh: MeshShape) -> Experiment:
    """Four steps on sixteen rows of 16 tokens, each in two micro-batches. Small matrices are split too."""
    v = corpus_tokenizer(corpus).vocabulary
    encoder = small_bert(V=v.size, D=16, F=16, N=1)
    objective = MaskedLM(encoder, Masking(v.mask, (0, v.size), (v.cls, v.sep)), pair=True)
    rows = NextSentencePairs(corpus, 16, duplicates=1)
    run = Run(log_every=1, evaluate_every=2, evaluate_batches=3, checkpoint_every=2)
    phase = Phase(4, 16, rows, accumulate=2)
    return Experiment(objective, bert_adam(BertLinear(1e-2, 2, 4)), (phase,), run=run, mesh=mesh)


def main(corpus: str, folder: Path) -> None:
    processes.join(timeout=60)
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

    for name, odd in {
        "experiment": replace(ours, seed=jax.process_index()),
        "corpus": replace(
            ours, phases=tuple(replace(p, rows=replace(p.rows, corpus="nowhere")) for p in ours.phases)
        ) if jax.process_index() else ours,
        "init": replace(ours, init=str(folder / "straight"), phases=(replace(ours.phases[0], steps=1),)),
        "folder": ours,
    }.items():  # fmt: skip
        try:
            fit(odd, folder / (f"folder of {jax.process_index()}" if name == "folder" else name))
        except InputError as error:
            found[name] = str(error)
    try:
        with processes.raising_on_all():
            if jax.process_index() == 1:
                raise InputError("long " * 1000 + "and not cut")
    except InputError as error:
        found["long"] = str(error)
    try:
        processes.require_one_process("fine-tuning")
    except InputError as error:
        found["only one"] = str(error)
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
