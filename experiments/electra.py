"""ELECTRA: detect the tokens that a small generator replaced (Clark et al. 2020; google-research/electra).

    bertjax data build wiki/ --format wikiextractor --tokenizer vocab.txt --out corpus/
    bertjax pretrain experiments/electra.py size=base data=corpus/ dtype=bfloat16 --workdir runs/electra

Recipe: small 1M steps of 128 rows of 128 at 5e-4, base 766k of 256 rows of 512 at 2e-4, large 400k of 2048 rows of 512
at 2e-4 with 25% masked; BERT's Adam, 10k steps of warm-up (configure_pretraining.py, flops_computation.py). The
generator is as deep and 1/4 (base 1/3) as wide, and shares its whole embedding block with the discriminator; the
released small weights have a generator of full width (README.md): `released=true`. Positions are drawn with
replacement, 85% become the mask, all are replaced by samples; the discriminator's loss has weight 50. Published
hardware: small one V100, base 16 TPU v3 chips, 4 days each. Expected: the generator's accuracy well below BERT's; a
discriminator loss that stays near 0.2 as the generator improves; neither predicts results of fine-tuning.

`sharing=disentangled` trains with the embeddings of DeBERTa-v3, `sharing=separate` with separate ones.

Deviations: text is joined without gaps and sentences longer than a row are cut first (data/segments.py); of a position
drawn twice the larger sample is kept (objectives/rtd.py); corpus and vocabulary are your own.
"""

from typing import Literal

from bertjax.checkpoints.described import size_of, sized_as
from bertjax.config import Experiment, Phase
from bertjax.data.records import read_manifest
from bertjax.data.segments import Segments
from bertjax.data.tokenizer import Vocabulary
from bertjax.masking import Masking, mask_tokens, mask_with_replacement
from bertjax.models.encoder import Encoder
from bertjax.models.layers import GlorotUniform
from bertjax.objectives.rtd import (
    DisentangledEmbeddings,
    ReplacedTokenDetection,
    SeparateEmbeddings,
    SharedEmbeddings,
)
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import ElectraLinear

# The discriminator; the generator's width and heads as a share of its; rows, their length, steps, rate, share masked.
SIZES = {
    "tiny": ({"N": 4, "D": 128, "H": 2, "F": 512}, 2, 128, 128, 1_000_000, 5e-4, 0.15),  # not published: for a CPU
    "small": ({"N": 12, "D": 256, "H": 4, "F": 1024, "E": 128}, 4, 128, 128, 1_000_000, 5e-4, 0.15),
    "base": ({"N": 12, "D": 768, "H": 12, "F": 3072}, 3, 256, 512, 766_000, 2e-4, 0.15),
    "large": ({"N": 24, "D": 1024, "H": 16, "F": 4096}, 4, 2048, 512, 400_000, 2e-4, 0.25),
}
SHARING = {
    "shared": SharedEmbeddings(),
    "separate": SeparateEmbeddings(),
    "disentangled": DisentangledEmbeddings(),
}
UNCASED = Vocabulary(30522, pad=0, unk=100, cls=101, sep=102, mask=103)


def experiment(
    size: Literal["auto", "tiny", "small", "base", "large"] = "auto",  # that of init, or small
    data: str = "",
    init: str = "",  # a run of both models to start from, of which the sizes are taken
    sharing: Literal["shared", "separate", "disentangled"] = "shared",
    replacement: bool = True,  # positions may be drawn twice, as published; else they are distinct
    released: bool = False,  # a generator as wide as the discriminator, as in the released small weights
    steps: int | None = None,  # none: as published for the size; so are the next three
    batch_size: int | None = None,
    length: int | None = None,
    learning_rate: float | None = None,
    warmup: int = 10_000,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Build the experiment."""
    v = read_manifest(data).vocabulary if data else UNCASED
    size = size_of(size, {name: widths for name, (widths, *_) in SIZES.items()}, init, "small")
    widths, fraction, *published, rate = SIZES[size]
    given = (batch_size, length, steps, learning_rate)
    batch_size, length, steps, learning_rate = (p if g is None else g for g, p in zip(given, published, strict=True))
    narrower = 1 if released else fraction
    generator = widths | {name: widths[name] // narrower for name in ("D", "H", "F")}
    # Where the generator is narrower than the tables that it shares, a layer leads from their width to its own.
    generator["E"] = widths.get("E", widths["D"] if narrower > 1 else None)
    both = {"V": v.size, "positions": max(512, length), "project_initializer": GlorotUniform(), "dtype": dtype}
    masking = Masking(
        mask_id=v.mask, random_ids=(0, v.size), specials=(v.cls, v.sep, v.mask), rate=rate, masked=0.85, random=0.0,
        max_predictions=int((rate + 0.005) * length),
    )  # fmt: skip
    objective = ReplacedTokenDetection(
        Encoder(**both, **generator),
        Encoder(**both, **widths),
        masking,
        SHARING[sharing],
        mask_with_replacement if replacement else mask_tokens,
    )
    return Experiment(
        objective=sized_as(init, objective),
        optimizer=bert_adam(ElectraLinear(learning_rate, warmup, steps)),
        phases=(Phase(steps, batch_size, Segments(data, length)),),
        init=init,
    )
