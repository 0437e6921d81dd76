"""NeoBERT: a deep, narrow encoder with SwiGLU and RMSNorm (Le Breton et al. 2025; chandar-lab/NeoBERT).

    bertjax data build refinedweb/ --format plain --tokenizer vocab.txt --out corpus/
    bertjax pretrain experiments/neobert.py data=corpus/ dtype=bfloat16 --workdir runs/neobert
    bertjax pretrain experiments/neobert.py stage=extend init=runs/neobert data=long/ dtype=bfloat16 --workdir runs/long

Recipe: 20% of the tokens masked, all of them by [MASK]; AdamW β .9/.95, eps 1e-8, weight decay 0.1 of all parameters,
norms and the one bias too (src/neobert/optimizer/optimizer.py), clipped at 1; `pretrain` 1M steps of 2048 rows of 1024,
2000 steps of warm-up to 6e-4, a half cosine to a tenth of that at step 900k, then constant; `extend` 50k steps of 512
rows of 4096 at that last rate, on long texts (paper, section 3; jobs/neobert.sh, jobs/neobert-4096.sh). Published: 2.1T
tokens of RefinedWeb on 8 H100. Expected: no loss was published.

Deviations: rate and weight decay are the paper's, where the repository has 1e-4 and 0.01 (conf/optimizer/adamw.yaml);
rotary pairs lie half a head apart, not side by side (positions.py), which matters for released weights; corpus and
vocabulary are your own.
"""

from typing import Literal

from bertjax.checkpoints.described import sized_as
from bertjax.config import Experiment, Phase
from bertjax.data.records import read_manifest
from bertjax.data.rows import DocumentSentences
from bertjax.data.tokenizer import Vocabulary
from bertjax.masking import Masking
from bertjax.models.layers import Uniform, rms_norm, silu
from bertjax.models.modern import Modern, Norms, untied_head
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule, cosine
from bertjax.rules import EVERYTHING

UNCASED = Vocabulary(30522, pad=0, unk=100, cls=101, sep=102, mask=103)
STAGES = {"pretrain": (1_000_000, 2048, 1024), "extend": (50_000, 512, 4096)}  # steps, rows, length


def experiment(
    stage: Literal["pretrain", "extend"] = "pretrain",
    data: str = "",
    init: str = "",  # the model that the stage before left, of which the sizes are taken
    steps: int | None = None,  # none: as published for the stage; so are the next two
    batch_size: int | None = None,
    length: int | None = None,
    learning_rate: float = 6e-4,
    warmup: int = 2000,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Build the experiment."""
    v = read_manifest(data).vocabulary if data else UNCASED
    steps, batch_size, length = (
        published if given is None else given
        for given, published in zip((steps, batch_size, length), STAGES[stage], strict=True)
    )
    encoder = Modern(
        V=v.size, D=768, N=28, H=12, F=2048, norms=Norms(rms_norm, embedding=False, first=True), head=untied_head,
        attention_dropout=0.0, activation=silu, initializer=Uniform(0.02), dtype=dtype,
    )  # fmt: skip
    masking = Masking(mask_id=v.mask, random_ids=(0, v.size), specials=(v.cls, v.sep), rate=0.2, masked=1.0, random=0.0)
    end = learning_rate / 10
    schedule = Schedule(learning_rate, warmup, steps, cosine, tail=steps - round(0.9 * steps), end=end)
    if stage == "extend":
        schedule = Schedule(end, 0, steps, decay=0)
    return Experiment(
        objective=sized_as(init, MaskedLM(encoder, masking)),
        optimizer=Optimizer(schedule, b2=0.95, eps=1e-8, weight_decay=0.1, decayed=EVERYTHING),
        phases=(Phase(steps, batch_size, DocumentSentences(data, length)),),
        init=init,
    )
