"""A BERT small enough for a laptop: all steps in minutes on two CPU cores, on the English of Python's documentation.

    make demo

runs all commands: text, vocabulary, corpus, `bertjax pretrain experiments/smoke.py data=demo/corpus
--workdir demo/run`, evaluation, predicted masks. Expected: held-out masked-LM loss about 4.6 where the unigram entropy
of the same targets is 6.0, in 3 minutes on two cores.

Deviations from BERT, for a model and a corpus this small: a wider initialisation, higher masking and learning
rates, no dropout, masks redrawn at every step.
"""

from bertjax.config import Experiment, Phase, Run
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.records import read_manifest
from bertjax.masking import Masking
from bertjax.models.encoder import Encoder
from bertjax.models.layers import TruncatedNormal
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import ElectraLinear


def experiment(data: str, steps: int = 3500, batch_size: int = 32, length: int = 64) -> Experiment:
    """Build the experiment."""
    v = read_manifest(data).vocabulary
    encoder = Encoder(
        V=v.size, D=128, N=2, H=2, F=512, dropout=0.0, attention_dropout=0.0, initializer=TruncatedNormal(0.06)
    )
    masking = Masking(mask_id=v.mask, random_ids=(0, v.size), specials=(v.cls, v.sep), rate=0.25)
    return Experiment(
        objective=MaskedLM(encoder, masking, pair=True),
        optimizer=Optimizer(ElectraLinear(peak=2e-3, warmup=steps // 10, total=steps), b2=0.98),
        phases=(Phase(steps, batch_size, NextSentencePairs(data, length, duplicates=5)),),
        run=Run(evaluate_every=500, evaluate_batches=10, checkpoint_every=1000),
    )
