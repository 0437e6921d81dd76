"""BERT: masked language modelling and next-sentence prediction (Devlin et al. 2018; google-research/bert).

    bertjax data build wiki/ --format wikiextractor --tokenizer vocab.txt --out corpus/
    bertjax pretrain experiments/bert.py size=base data=corpus/ dtype=bfloat16 --workdir runs/base

Recipe: 1M steps of 256 rows, 90% of them of length 128 and the rest of 512, BERT's Adam at 1e-4 with 10k steps of
warm-up (README.md, optimization.py, run_pretraining.py); ten passes of pairs with static masks
(create_pretraining_data.py). Published hardware: 16 TPU chips for base, 64 for large, about 4 days each. Expected:
held-out masked-LM loss about 1.4 for base (issue 90 of the repository). On one CPU use a small size and fewer steps:
see experiments/README.md for such a run.

Deviations: one learning-rate schedule over both lengths, where some ports restart it; the exact GELU of the released
weights, where the repository has since moved to the tanh form; corpus and vocabulary are your own.
"""

from dataclasses import replace
from typing import Literal

from bertjax.checkpoints.described import size_of, sized_as
from bertjax.config import Experiment, Phase
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.records import read_manifest
from bertjax.data.tokenizer import Vocabulary
from bertjax.masking import Masking
from bertjax.models.encoder import Encoder
from bertjax.models.kernels import fused_attend
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import BertLinear

SIZES = {
    "tiny": {"N": 2, "D": 128, "H": 2, "F": 512},
    "mini": {"N": 4, "D": 256, "H": 4, "F": 1024},
    "small": {"N": 4, "D": 512, "H": 8, "F": 2048},
    "medium": {"N": 8, "D": 512, "H": 8, "F": 2048},
    "base": {"N": 12, "D": 768, "H": 12, "F": 3072},
    "large": {"N": 24, "D": 1024, "H": 16, "F": 4096},
}
UNCASED = Vocabulary(30522, pad=0, unk=100, cls=101, sep=102, mask=103)
CASED = Vocabulary(28996, pad=0, unk=100, cls=101, sep=102, mask=103)


def experiment(
    size: Literal["auto", "tiny", "mini", "small", "medium", "base", "large"] = "auto",  # that of init, or base
    data: str = "",
    init: str = "",  # a model to start from, of which the sizes are taken
    cased: bool = False,  # which published vocabulary to plan with, where there is no corpus
    steps: int = 1_000_000,
    long: float = 0.1,  # share of the steps at length 512
    batch_size: int = 256,
    learning_rate: float = 1e-4,
    warmup: int = 10_000,
    dtype: Literal["float32", "bfloat16"] = "float32",
    kernel: bool = False,  # attention by a kernel on TPU from v4 on: quicker, and equal, dropout included
) -> Experiment:
    """Build the experiment."""
    if not 0 <= long <= 1:
        raise ValueError(f"long={long} is not a share in [0, 1]")
    v = read_manifest(data).vocabulary if data else CASED if cased else UNCASED
    masking = Masking(mask_id=v.mask, random_ids=(0, v.size), specials=(v.cls, v.sep), seed=12345)
    at_512 = round(long * steps)
    phases = [Phase(steps - at_512, batch_size, NextSentencePairs(data, length=128))] if at_512 < steps else []
    phases += [Phase(at_512, batch_size, NextSentencePairs(data, length=512))] if at_512 else []
    encoder = Encoder(V=v.size, dtype=dtype, **SIZES[size_of(size, SIZES, init, "base")])
    if kernel:
        encoder = replace(encoder, attend=fused_attend)
    return Experiment(
        objective=sized_as(init, MaskedLM(encoder, masking, pair=True)),
        optimizer=bert_adam(BertLinear(learning_rate, warmup, steps)),
        phases=tuple(phases),
        init=init,
    )
