"""Crammed-BERT: pre-training in one day on one GPU (Geiping and Goldstein 2023; JonasGeiping/cramming).

    bertjax tokenizer train text/ --format plain --kind wordpiece --size 32768 --lowercase --out wordpiece/
    bertjax data build text/ --format plain --tokenizer wordpiece/ --out corpus/
    bertjax pretrain experiments/crammed.py data=corpus/ steps=… dtype=bfloat16 --workdir runs/crammed

Recipe: rows of 128, exactly a quarter of their positions masked, special tokens included; AdamW β .9/.98, eps
1e-12, weight decay 0.01, clipped at 0.5, no dropout; the rate rises from 2.5e-4 to 1e-3 over three quarters of the
budget and falls to 0 over the rest; one pass over filtered text of the Pile (config/arch/crammed-bert.yaml,
config/train/bert-o4.yaml, config/train/optim/adam.yaml, backend/optimizers/schedulers.py). Published: 24 hours on one
GPU, GLUE within a few points of BERT's. Expected: no loss was published.

Deviations: the budget is `steps`, not hours, so measure a few first and set it to those of a day; batches have their
8192 rows from the first step, where the original grows them until 60% of the budget; the number of masked tokens is
fixed for each row, where the original fixes it for 128 rows in total.
"""

from typing import Literal

from bertjax.checkpoints.described import sized_as
from bertjax.config import Experiment, Phase
from bertjax.data.records import read_manifest
from bertjax.data.rows import FullSentences
from bertjax.data.tokenizer import Vocabulary
from bertjax.masking import Masking
from bertjax.models.layers import Normal
from bertjax.models.modern import Modern, Norms, tied_head
from bertjax.models.positions import ScaledSinusoids
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule

PUBLISHED = Vocabulary(32768, pad=0, unk=1, cls=2, sep=3, mask=4)


def experiment(
    data: str = "",
    init: str = "",  # a model to start from, of which the sizes are taken
    steps: int = 10_000,  # not published: what a day holds depends on the device
    batch_size: int = 8192,
    accumulate: int = 1,
    length: int = 128,
    learning_rate: float = 1e-3,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Build the experiment."""
    v = read_manifest(data).vocabulary if data else PUBLISHED
    encoder = Modern(
        V=v.size, D=768, N=16, H=12, F=1536, positions=ScaledSinusoids(), head=tied_head,
        norms=Norms(eps=1e-12, bias=True, first=True), attention_dropout=0.0, initializer=Normal(0.02), dtype=dtype,
    )  # fmt: skip
    masking = Masking(mask_id=v.mask, random_ids=(0, v.size), rate=0.25)
    schedule = Schedule(learning_rate, round(0.75 * steps), steps, start=learning_rate / 4)
    return Experiment(
        objective=sized_as(init, MaskedLM(encoder, masking)),
        optimizer=Optimizer(schedule, b2=0.98, eps=1e-12, clip=0.5),
        phases=(Phase(steps, batch_size, FullSentences(data, length), accumulate),),
        init=init,
    )
