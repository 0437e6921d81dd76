"""DeBERTa 1, 2, 3 and mDeBERTa: disentangled attention (He et al. 2020, 2021; microsoft/DeBERTa).

    bertjax tokenizer train text/ --format plain --kind unigram --size 128000 --out spm/
    bertjax data build text/ --format plain --tokenizer spm/ --out corpus/
    bertjax pretrain experiments/deberta.py size=v3-base data=corpus/ dtype=bfloat16 --workdir runs/deberta

Recipe (experiments/language_model/mlm.sh, rtd.sh and their JSON files): 1M steps of 256 rows of 512, BERT's Adam at
1e-4 with 10k steps of warm-up, then linear to 0. Versions 1 and 2 predict whole words in n-grams of up to 3 with the
mask decoder; version 2 has a convolution, and in the script 32 rows and 1k steps of warm-up. Version 3 detects replaced
tokens; its generator is as wide and half as deep and has the mask decoder, all of its 15% are masked, the embeddings
are disentangled; xsmall has 64 rows at 3e-4. The papers' batches are larger, 2048 rows. mDeBERTa is version 3 base with
a vocabulary for 100 languages: 251000 rows (microsoft/mdeberta-v3-base config.json), [MASK] at 250101
(added_tokens.json of models fine-tuned from it, such as tmnam20/mdeberta-v3-base-vsmec-1). Published hardware: version
1 large, 96 V100. Expected: no loss was published.

Deviations: n-grams partition the words of a row (bertjax.masking). The original steps generator and discriminator in
turn, with an optimiser for each; here one step trains both, and clips the gradients of both together. The weight of the
discriminator's loss matters only to that clipping: it is 10, as in the code (apps/tasks/rtd_task.py); in the paper it
is 50. The discriminator has no position table, which the original has and never reads. Corpus and vocabulary are your
own.
"""

from typing import Literal

from bertjax.checkpoints.described import size_of, sized_as
from bertjax.config import Experiment, Phase
from bertjax.data.records import read_manifest
from bertjax.data.rows import FullSentences
from bertjax.data.tokenizer import Vocabulary
from bertjax.masking import Masking, ngrams
from bertjax.models.deberta import DeBERTa
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.rtd import DisentangledEmbeddings, ReplacedTokenDetection, deberta_discriminator_head
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import Schedule

BASE, LARGE = {"N": 12, "D": 768, "H": 12, "F": 3072}, {"N": 24, "D": 1024, "H": 16, "F": 4096}
WIDE = {"N": 24, "D": 1536, "H": 24, "F": 6144}
V1 = {"key_bias": False}
V3 = {"buckets": 256, "table_norm": True, "shared_projections": True}
V2 = V3 | {"convolution": 3}
# What is guessed; the encoder; rows in a step, rate, warm-up.
SIZES = {
    "tiny": ("tokens", V3 | {"N": 4, "D": 128, "H": 2, "F": 512}, 128, 5e-4, 10_000),  # not published: for a CPU
    "v1-base": ("words", V1 | BASE, 256, 1e-4, 10_000),
    "v1-large": ("words", V1 | LARGE, 256, 1e-4, 10_000),
    "v1-xlarge": ("words", V1 | LARGE | {"N": 48}, 256, 1e-4, 10_000),
    "v2-xlarge": ("words", V2 | WIDE, 32, 1e-4, 1000),
    "v2-xxlarge": ("words", V2 | WIDE | {"N": 48}, 32, 1e-4, 1000),
    "v3-xsmall": ("tokens", V3 | {"N": 12, "D": 384, "H": 6, "F": 1536}, 64, 3e-4, 10_000),
    "v3-small": ("tokens", V3 | BASE | {"N": 6}, 256, 1e-4, 10_000),
    "v3-base": ("tokens", V3 | BASE, 256, 1e-4, 10_000),
    "v3-large": ("tokens", V3 | LARGE, 256, 1e-4, 10_000),
    "mdeberta": ("tokens", V3 | BASE, 256, 1e-4, 10_000),
}
# The tables of versions 2 and 3 have spare rows.
PUBLISHED = {
    "v1": Vocabulary(50265, pad=0, unk=3, cls=1, sep=2, mask=50264),
    "mdeberta": Vocabulary(251000, pad=0, unk=3, cls=1, sep=2, mask=250101),
}
SPARE = Vocabulary(128100, pad=0, unk=3, cls=1, sep=2, mask=128000)


def experiment(
    size: Literal[
        "auto", "tiny", "v1-base", "v1-large", "v1-xlarge", "v2-xlarge", "v2-xxlarge", "v3-xsmall", "v3-small",
        "v3-base", "v3-large", "mdeberta",
    ] = "auto",  # that of init, or v3-base
    data: str = "",
    init: str = "",  # a model to start from, of which the sizes are taken
    steps: int = 1_000_000,
    batch_size: int | None = None,  # none: as published for the size; so are the next two
    learning_rate: float | None = None,
    warmup: int | None = None,
    length: int = 512,
    discriminator_weight: float = 10.0,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:  # fmt: skip
    """Build the experiment."""
    size = size_of(size, {name: fields for name, (_, fields, *_) in SIZES.items()}, init, "v3-base")
    v = read_manifest(data).vocabulary if data else PUBLISHED.get(size.split("-")[0], SPARE)
    guessed, fields, *published = SIZES[size]
    given = (batch_size, learning_rate, warmup)
    batch_size, learning_rate, warmup = (p if g is None else g for g, p in zip(given, published, strict=True))
    fields = fields | {"V": v.size, "positions": max(512, length), "dtype": dtype}
    specials = (v.cls, v.sep, v.mask, v.unk)
    if guessed == "words":
        masking = Masking(mask_id=v.mask, random_ids=(0, v.size), specials=specials, unit=ngrams(3))
        objective = MaskedLM(DeBERTa(**fields, decoder=2), masking)
    else:
        masking = Masking(mask_id=v.mask, random_ids=(0, v.size), specials=specials, masked=1.0, random=0.0)
        generator = fields | {"N": fields["N"] // 2}
        objective = ReplacedTokenDetection(
            DeBERTa(**generator, decoder=2), DeBERTa(**fields), masking, DisentangledEmbeddings(),
            discriminator_weight=discriminator_weight, discriminator_head=deberta_discriminator_head,
        )  # fmt: skip
    return Experiment(
        objective=sized_as(init, objective),
        optimizer=bert_adam(Schedule(learning_rate, warmup, steps)),
        phases=(Phase(steps, batch_size, FullSentences(data, length)),),
        init=init,
    )
