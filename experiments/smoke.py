"""A BERT small enough for a laptop: the whole path on two CPU cores in minutes, on the English that Python carries.

    make demo

or, step by step, the commands that the target `demo` of the Makefile runs.
"""

from bertjax.config import Experiment, Phase, Run
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.records import read_manifest
from bertjax.masking import Masking
from bertjax.models.encoder import Encoder
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim import ElectraLinear, Optimizer


def experiment(data: str, steps: int = 2000, batch_size: int = 32, length: int = 64, N: int = 2, D: int = 128, peak: float = 2e-3, dropout: float=0.0, warmup:int=200, rate: float=0.15) -> Experiment:
    """Build the experiment."""
    v = read_manifest(data).vocabulary
    masking = Masking(mask_id=v.mask, random_ids=(0, v.size), specials=(v.cls, v.sep), rate=rate)
    encoder = Encoder(V=v.size, D=D, N=N, H=D // 64, F=4 * D, dropout=dropout, attention_dropout=dropout)
    return Experiment(
        objective=MaskedLM(encoder, masking, pair=True),
        optimizer=Optimizer(ElectraLinear(peak, warmup, steps)),
        phases=(Phase(steps, batch_size, NextSentencePairs(data, length, duplicates=5)),),
        run=Run(evaluate_every=250, checkpoint_every=1000),
    )
