"""ModernBERT and Ettin: RoPE, GeGLU, alternating attention (Warner et al. 2024; Weller et al. 2025).

    bertjax data build text/ --format plain --tokenizer tokenizer.json --out corpus/
    bertjax pretrain experiments/modernbert.py size=base data=corpus/ dtype=bfloat16 --workdir runs/base
    bertjax pretrain experiments/modernbert.py size=base stage=extend init=runs/base data=long/ dtype=bfloat16 \
--workdir runs/extended
    bertjax pretrain experiments/modernbert.py size=base stage=decay init=runs/extended data=best/ dtype=bfloat16 \
--workdir runs/final

Recipe (AnswerDotAI/ModernBERT yamls/modernbert, JHU-CLSP/ettin-encoder-vs-decoder pretraining/configs/standard): 30% of
all positions masked, special tokens included; StableAdamW β .9/.98, eps 1e-6, fully decoupled decay, no clipping.
`pretrain`: 1.7T tokens in rows of 1024, warm-up and then a constant rate; large was restarted at a tenth of its rate
after 900B, and has a tenth of its decay from there on, 1e-6 (modernbert-large-context-extension.yaml,
…-learning-rate-decay.yaml). `extend`: 250B tokens in rows of 8192, theta 160,000 in global layers. `decay`: 50B tokens
more, 1 − √progress. Ettin (17m to 1b) has theta 160,000 in all layers from `extend` on, falls by 1 − √progress in both
stages, and masks 15% in the last. Published hardware: 8 H100; Ettin 4 H100 from 6 days (17m) to 90 (1b). Expected: no
loss was published.

Deviations: large is freshly initialised, not tiled from base (`init_from_checkpoint`, modernbert-large-pretrain.yaml);
a fixed number of positions of a row is masked, and random ids are drawn from the whole vocabulary; held-out loss is at
the rate of training, not at 15%; batches have their full size from the first step, not after 50B tokens; weight decay
is not reduced with the update (optim.py); Ettin did not pack, and its long rows had 7999 tokens.
"""

from typing import Literal, NamedTuple

from bertjax.checkpoints.described import size_of, sized_as
from bertjax.config import Experiment, Phase
from bertjax.data.records import read_manifest
from bertjax.data.rows import PackedDocuments
from bertjax.data.tokenizer import Vocabulary
from bertjax.masking import Masking
from bertjax.models.layers import TruncatedNormal
from bertjax.models.modern import Modern
from bertjax.models.positions import Rotary
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import stable_adamw
from bertjax.optim.schedules import Restarting, Schedule, one_minus_sqrt


class Recipe(NamedTuple):
    """The differences between sizes: widths, batch size of each stage, rate, warm-up in tokens, decay."""

    widths: dict[str, int]
    rows: tuple[int, int, int]
    rate: float
    warmup: float
    decay: float
    ettin: bool = True
    last: float = 50e9  # tokens of the stage `decay`


BASE = {"N": 22, "D": 768, "H": 12, "F": 1152}
LARGE = {"N": 28, "D": 1024, "H": 16, "F": 2624}
ETTIN = (4608, 4608, 4608)
RECIPES = {
    "base": Recipe(BASE, (4608, 576, 576), 8e-4, 3e9, 1e-5, ettin=False),
    "large": Recipe(LARGE, (4928, 616, 624), 5e-4, 2e9, 1e-5, ettin=False),
    "17m": Recipe({"N": 7, "D": 256, "H": 4, "F": 384}, ETTIN, 3e-3, 4e9, 3e-4),
    "32m": Recipe({"N": 10, "D": 384, "H": 6, "F": 576}, ETTIN, 3e-3, 4e9, 3e-4),
    "68m": Recipe({"N": 19, "D": 512, "H": 8, "F": 768}, ETTIN, 3e-3, 3e9, 3e-4),
    "150m": Recipe(BASE, ETTIN, 8e-4, 3e9, 1e-5),
    "400m": Recipe(LARGE, ETTIN, 5e-4, 2e9, 1e-5),
    "1b": Recipe({"N": 28, "D": 1792, "H": 28, "F": 3840}, ETTIN, 5e-4, 2e9, 5e-5, last=50e9 / 3),
}
PUBLISHED = Vocabulary(50368, pad=50283, unk=50280, cls=50281, sep=50282, mask=50284)
STAGES = ("pretrain", "extend", "decay")


def experiment(
    size: Literal["auto", "base", "large", "17m", "32m", "68m", "150m", "400m", "1b"] = "auto",  # of init, or base
    stage: Literal["pretrain", "extend", "decay"] = "pretrain",
    data: str = "",
    init: str = "",  # the model that the stage before left, of which the sizes are taken
    steps: int | None = None,  # none: as published for the size and stage; so are the next two
    batch_size: int | None = None,
    length: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Build the experiment."""
    v = read_manifest(data).vocabulary if data else PUBLISHED
    size = size_of(size, {name: recipe.widths for name, recipe in RECIPES.items()}, init, "base")
    recipe, number = RECIPES[size], STAGES.index(stage)
    length = length or (1024, 8192, 8192)[number]
    batch_size = batch_size or recipe.rows[number]
    tokens = (1.7e12 if recipe.ettin or size == "large" else 1.719e12, 250e9, recipe.last)[number]
    steps = steps or round(tokens / (batch_size * length))
    long = stage != "pretrain"
    encoder = Modern(
        V=v.size, positions=Rotary(160_000 if long else 10_000, 160_000 if long and recipe.ettin else 10_000),
        global_every=3, dtype=dtype, output_initializer=TruncatedNormal(0.02 / (2 * recipe.widths["N"]) ** 0.5),
        **recipe.widths,
    )  # fmt: skip
    rate = 0.15 if recipe.ettin and stage == "decay" else 0.3
    # The released vocabulary ends in pieces that no text has; they may stand in as random ids.
    masking = Masking(mask_id=v.mask, random_ids=(0, v.size), rate=rate)
    schedule, peak, decay = schedule_of(size, stage, steps, batch_size * length)
    return Experiment(
        objective=sized_as(init, MaskedLM(encoder, masking)),
        optimizer=stable_adamw(schedule, b2=0.98, weight_decay=decay / peak),
        phases=(Phase(steps, batch_size, PackedDocuments(data, length)),),
        init=init,
    )


def schedule_of(size: str, stage: str, steps: int, tokens: int) -> tuple[Schedule | Restarting, float, float]:
    """Return the schedule of a stage of `steps` steps of `tokens` tokens, its peak, and the decay at it."""
    recipe = RECIPES[size]
    warmup = min(steps // 10, round(recipe.warmup / tokens))
    if stage == "pretrain" and size == "large":
        before = round(steps * 0.9 / 1.7)  # 900B of 1.7T tokens
        parts = (
            Schedule(recipe.rate, warmup, before, decay=0),
            Schedule(recipe.rate / 10, 0, steps - before, decay=0),  # decay fell by ten as well: the same ratio
        )
        return Restarting(parts), recipe.rate, recipe.decay
    if stage == "pretrain":
        return Schedule(recipe.rate, warmup, steps, decay=0), recipe.rate, recipe.decay
    if recipe.ettin:
        peak, end = (recipe.rate, 0.5) if stage == "extend" else (recipe.rate / 2, 0.04)
        return Schedule(peak, 0, steps, one_minus_sqrt, steps, end=end * peak), peak, recipe.decay
    peak, decay = (3e-4, 1e-5) if size == "base" else (5e-5, 1e-6)
    falling = 0 if stage == "extend" else steps
    return Schedule(peak, 0, steps, one_minus_sqrt, falling, end=1e-3 * peak), peak, decay
