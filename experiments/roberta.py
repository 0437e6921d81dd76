"""RoBERTa: masked language modelling on full sentences, without pairs (Liu et al. 2019; fairseq, examples/roberta).

    bertjax data build text/ --format plain --tokenizer roberta/vocab.json --out corpus/
    bertjax pretrain experiments/roberta.py size=base data=corpus/ dtype=bfloat16 --workdir runs/roberta

Recipe: 500k steps of 8192 rows of 512, Adam β .9/.98, weight decay 0.01 on every parameter, no clipping, linear from
6e-4 after 24k steps (base), 4e-4 after 30k (large) (README.md of the released models); masks redrawn at every step over
all positions, special tokens included, their number rounded at random (fairseq data/mask_tokens_dataset.py). Published
hardware: 1024 V100, about a day per 100k steps. Expected: not comparable with losses over non-special positions.

Deviations: fairseq initialises the row of the padding piece with zeros; sentences are split by this package, not given.
"""

from dataclasses import replace
from typing import Literal

from bertjax.checkpoints.described import size_of, sized_as
from bertjax.config import Experiment, Phase
from bertjax.data.records import read_manifest
from bertjax.data.rows import FullSentences
from bertjax.data.tokenizer import Vocabulary
from bertjax.masking import Masking, stochastically_rounded
from bertjax.models.encoder import Encoder
from bertjax.models.kernels import fused_attend
from bertjax.models.layers import Normal
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule
from bertjax.rules import EVERYTHING

SIZES = {
    "base": {"N": 12, "D": 768, "H": 12, "F": 3072},
    "large": {"N": 24, "D": 1024, "H": 16, "F": 4096},
}
RATES = {"base": (6e-4, 24_000), "large": (4e-4, 30_000)}
PUBLISHED = Vocabulary(50265, pad=1, unk=3, cls=0, sep=2, mask=50264)


def experiment(
    size: Literal["auto", "base", "large"] = "auto",  # that of init, or base
    data: str = "",
    init: str = "",  # a model to start from, of which the sizes are taken
    steps: int = 500_000,
    warmup: int | None = None,  # none: as published for the size
    batch_size: int = 8192,
    length: int = 512,
    dtype: Literal["float32", "bfloat16"] = "float32",
    kernel: bool = False,  # attention by a kernel on TPU from v4 on: quicker, and equal, dropout included
) -> Experiment:
    """Build the experiment."""
    v = read_manifest(data).vocabulary if data else PUBLISHED
    size = size_of(size, SIZES, init, "base")
    peak, published = RATES[size]
    encoder = Encoder(
        V=v.size, positions=514, first_position=2, types=0, norm_eps=1e-5, initializer=Normal(0.02), dtype=dtype,
        **SIZES[size],
    )  # fmt: skip
    if kernel:
        encoder = replace(encoder, attend=fused_attend)
    # Random replacements exclude the specials that the vocabulary begins with: <s> <pad> </s> <unk>, not <mask>.
    leading = next(index for index in range(v.size) if index not in v[1:])
    masking = Masking(mask_id=v.mask, random_ids=(leading, v.size), count=stochastically_rounded)
    schedule = Schedule(peak, published if warmup is None else warmup, steps)
    return Experiment(
        objective=sized_as(init, MaskedLM(encoder, masking)),
        optimizer=Optimizer(schedule, b2=0.98, clip=0.0, decayed=EVERYTHING),
        phases=(Phase(steps, batch_size, FullSentences(data, length)),),
        init=init,
    )
