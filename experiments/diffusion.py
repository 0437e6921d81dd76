"""Masked diffusion: MDLM (Sahoo et al. 2024; kuleshov-group/mdlm), from the start or from a masked LM.

    bertjax data build text/ --format plain --tokenizer vocab.txt --out corpus/
    bertjax pretrain experiments/diffusion.py size=small data=corpus/ dtype=bfloat16 --workdir runs/diffusion
    bertjax pretrain experiments/diffusion.py init=bert-base-uncased/ data=corpus/ steps=5000 --workdir runs/bert
    bertjax evaluate --model runs/diffusion
    bertjax predict infill --model runs/diffusion "The [MASK:8] sat on the mat."

Recipe (configs/config.yaml, configs/model/small.yaml, configs/noise/loglinear.yaml): log-linear noise with eps 1e-3, so
weights 1/t; times spread over the batch, from 1e-3 on; no conditioning on time; AdamW β .9/.999, eps 1e-8, no weight
decay, clipped at 1; 2500 steps of warm-up to a constant 3e-4; 1M steps of 512 rows; dropout 0.1; `small` has 12 layers
of width 768, 12 heads and 3072 in the feed-forward, in rows of 1024 (OpenWebText) or 128 (LM1B, length=128). `base` is
BERT's body, as in dBERT (AntonXue/dBERT: BERT base against masked LM on 13.1B tokens); with init= it is the encoder of
that model, whatever its family, as in MDLM's and dLLM's fine-tuning of BERT (5000 steps). Published hardware: 8 A100
for small. Expected: perplexity at most 23.0 on LM1B, 22.98 on OpenWebText (paper, tables 1 and 2).

Deviations: MDLM's small is a DiT, whose norms and residuals are modulated by a condition, here absent; ours is a
pre-norm encoder with rotary positions and GeGLU of 2048, as many parameters as 3072 without a gate; no average of the
parameters (EMA 0.9999); special tokens are never masked; corpus and vocabulary are your own. block=16 trains a model
of blocks (Arriola et al. 2025, BD3-LM, which starts it from MDLM's weights: init=runs/diffusion).
"""

from dataclasses import replace
from typing import Literal

from bertjax.checkpoints.described import encoders_in, size_of
from bertjax.config import Experiment, Phase
from bertjax.data.records import read_manifest
from bertjax.data.rows import PackedDocuments
from bertjax.data.tokenizer import Vocabulary
from bertjax.models.encoder import Encoder
from bertjax.models.layers import TruncatedNormal
from bertjax.models.modern import Modern
from bertjax.models.positions import Rotary
from bertjax.noise import LogLinear, RandomTime
from bertjax.objectives.diffusion import MaskedDiffusion
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule
from bertjax.serialization.description import from_json

UNCASED = Vocabulary(30522, pad=0, unk=100, cls=101, sep=102, mask=103)

SIZES = {  # tiny is for a test on a CPU
    "tiny": {"D": 128, "N": 4, "H": 2, "F": 256},
    "small": {"D": 768, "N": 12, "H": 12, "F": 2048},
    "base": {"D": 768, "N": 12, "H": 12, "F": 3072},
}


def experiment(
    size: Literal["auto", "tiny", "small", "base"] = "auto",  # that of init, or small
    data: str = "",
    init: str = "",  # a masked LM, whose encoder is taken, or a diffusion model
    steps: int = 1_000_000,
    batch_size: int = 512,
    length: int | None = None,  # none: 1024, or the positions of the encoder if these are fewer
    learning_rate: float = 3e-4,
    warmup: int = 2500,
    block: int | None = None,  # tokens in a block of BD3-LM; none: the row is one
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Build the experiment."""
    v = read_manifest(data).vocabulary if data else UNCASED
    size = size_of(size, SIZES, init, "small")
    encoder = encoder_of(init, dtype) if init else encoder_of_size(size, v.size, dtype)
    length = length or min(1024, encoder.max_length or 1024)
    return Experiment(
        objective=MaskedDiffusion(
            encoder, v.mask, (v.cls, v.sep), RandomTime(LogLinear(1e-3), lowest=1e-3), block=block
        ),
        optimizer=Optimizer(Schedule(learning_rate, min(warmup, steps), steps, decay=0), eps=1e-8, weight_decay=0.0),
        phases=(Phase(steps, batch_size, PackedDocuments(data, length)),),
        init=init,
    )


def encoder_of_size(size: str, V: int, dtype: str) -> Encoder | Modern:
    """Build the encoder of a published size."""
    if size == "base":
        return Encoder(V=V, dtype=dtype, **SIZES[size])
    N = SIZES[size]["N"]
    return Modern(
        V=V, **SIZES[size], positions=Rotary(10_000), dropout=0.1, attention_dropout=0.1, dtype=dtype,
        output_initializer=TruncatedNormal(0.02 / (2 * N) ** 0.5),
    )  # fmt: skip


def encoder_of(init: str, dtype: str) -> Encoder | Modern:
    """Build the encoder of the model in `init`."""
    found = encoders_in(init)
    return replace(from_json(found.get("encoder") or next(iter(found.values()))), dtype=dtype)
