"""The experiment of test_gs.py, and the program that each of its two processes runs: killed|resumed CORPUS PLACE."""

import os
import signal
import sys
import time

from contract import small_bert

from bertjax import train
from bertjax.config import Experiment, Phase, Run
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.records import corpus_tokenizer
from bertjax.masking import Masking
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import BertLinear
from bertjax.run import processes
from bertjax.storage.paths import path_of


def experiment(corpus: str) -> Experiment:
    """Four steps on eight rows of 16 tokens, with dropout."""
    v = corpus_tokenizer(corpus).vocabulary
    encoder = small_bert(V=v.size, D=16, F=16, N=1)
    objective = MaskedLM(encoder, Masking(v.mask, (0, v.size), (v.cls, v.sep)), pair=True)
    run = Run(log_every=1, evaluate_every=4, evaluate_batches=1, checkpoint_every=2)
    rows = NextSentencePairs(corpus, 16, duplicates=1)
    return Experiment(objective, bert_adam(BertLinear(1e-2, 2, 4)), (Phase(4, 8, rows),), run=run)


def main(what: str, corpus: str, place: str) -> None:
    processes.join(timeout=60)
    ours = experiment(corpus)
    if what == "killed":
        train.fit(ours, f"{place}/straight")
        put, calls = train.place_batch, iter(range(100))

        def dying(*arguments):  # type: ignore[no-untyped-def]
            if next(calls) == 3:
                while not (path_of(place) / "killed/checkpoints/2/commit_success.txt").exists():
                    time.sleep(0.05)
                os.kill(os.getpid(), signal.SIGKILL)
            return put(*arguments)

        train.place_batch = dying
    train.fit(ours, f"{place}/killed")


if __name__ == "__main__":
    main(*sys.argv[1:])
