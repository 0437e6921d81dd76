"""What each of the two processes of tests/test_processes.py runs: CORPUS FOLDER."""

import json
import os
import signal
import sys
from dataclasses import replace
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
from bertjax.sharding.mesh import MeshShape


def experiment(corpus: str, mesh: MeshShape) -> Experiment:
    """Six steps on sixteen rows of 16 tokens, each in two micro-batches; matrices of 128 × 128 are split."""
    v = corpus_tokenizer(corpus).vocabulary
    encoder = small_bert(V=v.size, D=128, F=128, N=1)
    objective = MaskedLM(encoder, Masking(v.mask, (0, v.size), (v.cls, v.sep)), pair=True)
    rows = NextSentencePairs(corpus, 16, duplicates=1)
    run = Run(log_every=1, evaluate_every=3, evaluate_batches=0, checkpoint_every=3)
    phase = Phase(6, 16, rows, accumulate=2)
    return Experiment(objective, bert_adam(BertLinear(1e-3, 2, 6)), (phase,), run=run, mesh=mesh)


def main(corpus: str, folder: Path) -> None:
    processes.join(timeout=30)
    ours, found = experiment(corpus, MeshShape(fsdp=2)), {}
    train.fit(ours, folder / "straight")

    # One of them is asked to stop, while the third step is made ready: both do, and both go on later.
    place, calls = train.place_batch, []

    def stopping(*arguments):  # type: ignore[no-untyped-def]
        calls.append(None)
        if len(calls) == 3 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return place(*arguments)

    train.place_batch = stopping
    try:
        train.fit(ours, folder / "stopped")
    except train.Interrupted as stopped:
        found["stopped"] = str(stopped)
    train.place_batch = place
    train.fit(ours, folder / "stopped")

    for name, odd in {
        "experiment": replace(ours, seed=jax.process_index()),
        "corpus": replace(
            ours, phases=tuple(replace(p, rows=replace(p.rows, corpus="nowhere")) for p in ours.phases)
        ) if jax.process_index() else ours,
        "init": replace(ours, init=str(folder / "straight")),
        "folder": ours,
    }.items():  # fmt: skip
        try:
            train.fit(odd, folder / (f"folder of {jax.process_index()}" if name == "folder" else name))
        except InputError as error:
            found[name] = str(error)
    try:
        with processes.failing_together():
            if jax.process_index() == 1:
                raise InputError("long " * 1000 + "and not cut")
    except InputError as error:
        found["long"] = str(error)
    try:
        processes.only_one("fine-tuning")
    except InputError as error:
        found["only one"] = str(error)
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
