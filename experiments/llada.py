"""LLaDA: masked diffusion at the size of a large language model, and its instruction tuning (Nie et al. 2025).

    bertjax pretrain experiments/llada.py size=1b data=corpus/ dtype=bfloat16 --workdir runs/llada
    bertjax pretrain experiments/llada.py stage=instruct init=runs/llada data=pairs.jsonl tokenizer=corpus/tokenizer \
--workdir runs/llada-instruct

Recipe (paper, section 2 and appendix B; ML-GSAI/LLaDA GUIDELINES.md; SMDM pretrain/train_mdm.py): t uniform over rows,
masks at rate (1 - 1e-3) t + 1e-3, weighted by one over it, divided by all tokens; 1% of the rows at a random length;
AdamW, weight decay 0.1; warm-up over 2000 steps to 4e-4, held; 1280 rows of 4096, 2.3T tokens, the last 0.3T of which
decay linearly to 1e-5. An encoder with RMSNorm, SwiGLU and rotary positions, no biases, and a head of its own: 8b has
32 layers of width 4096. `instruct`: pairs of a prompt, never masked, and an answer, whose end and padding are masked
and predicted too; each row weighs alike; 3 epochs of 4.5M pairs, 256 rows, 2.5e-5 after 50 steps, at the end falling to
2.5e-6. Published hardware: 0.13M H800 hours for 8b. Expected: no loss was published.

Deviations: the step from 4e-4 to 1e-4 after 1.2T tokens is left out; text is not wrapped in a chat template;
initialisation is BERT's; corpus and vocabulary are your own.
"""

from typing import Literal

from bertjax.checkpoints.described import size_of, sized_as
from bertjax.config import Experiment, Phase
from bertjax.data.records import read_manifest
from bertjax.data.rows import PackedDocuments
from bertjax.data.tokenizer import Vocabulary, load_tokenizer
from bertjax.models.layers import rms_norm, silu
from bertjax.models.modern import Modern, Norms, untied_head
from bertjax.models.positions import Rotary
from bertjax.noise import Linear, RandomTime
from bertjax.objectives.diffusion import MaskedDiffusion, per_row, per_token
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule
from bertjax.tasks.instructions import Instructions

SIZES = {
    "tiny": {"N": 2, "D": 128, "H": 2, "F": 256},
    "1b": {"N": 22, "D": 2048, "H": 32, "F": 5632},
    "8b": {"N": 32, "D": 4096, "H": 32, "F": 12288},
}
LLADA = Vocabulary(126464, pad=126081, unk=126080, cls=126080, sep=126081, mask=126336)


def experiment(
    size: Literal["auto", "tiny", "1b", "8b"] = "auto",  # that of init, or 8b
    stage: Literal["pretrain", "instruct"] = "pretrain",
    data: str = "",  # a corpus; for `instruct` JSON lines with prompt and answer
    tokenizer: str = "",  # of `instruct`: that of the corpus
    init: str = "",  # of `instruct`: the model of the stage before, of which the sizes are taken
    steps: int | None = None,  # none: as published for the stage; so are the next two
    batch_size: int | None = None,
    length: int = 4096,
    learning_rate: float | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Build the experiment."""
    instruct = stage == "instruct"
    v = LLADA
    if data:
        v = load_tokenizer(tokenizer).vocabulary if instruct else read_manifest(data).vocabulary
    encoder = Modern(
        V=v.size, positions=Rotary(500_000), norms=Norms(rms_norm, embedding=False, first=True), head=untied_head,
        attention_dropout=0.0, activation=silu, dtype=dtype,
        **SIZES[size_of(size, SIZES, init, "8b")],
    )  # fmt: skip
    batch_size = batch_size or (256 if instruct else 1280)
    published = 3 * 4_500_000 // batch_size if instruct else round(2.3e12 / (batch_size * length))
    steps = steps or published
    peak = learning_rate or (2.5e-5 if instruct else 4e-4)
    warmup, decay, end = (50, round(0.1 * steps), peak / 10) if instruct else (2000, round(0.3 / 2.3 * steps), 1e-5)
    specials = () if instruct else (v.cls, v.sep)  # the end of an answer is predicted
    objective = MaskedDiffusion(
        encoder, v.mask, specials, RandomTime(Linear(), lowest=1e-3), per_row if instruct else per_token,
        slots=1.0 if instruct else 0.6, cut=0.0 if instruct else 0.01,
    )  # fmt: skip
    rows = Instructions(data, tokenizer, length) if instruct else PackedDocuments(data, length)
    return Experiment(
        objective=sized_as(init, objective),
        optimizer=Optimizer(Schedule(peak, min(warmup, steps // 10), steps, decay=decay, end=end), weight_decay=0.1),
        phases=(Phase(steps, batch_size, rows),),
        init=init,
    )
