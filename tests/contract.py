"""List the objectives and encoders that must keep the contract of docs/design.md; a new one is one more line.

An objective is a line of CONTRACT, with what is expected of it; an encoder is a line of ENCODERS, and is trained by
masked LM unless a line of CONTRACT trains it otherwise.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.masking import (
    Masking,
    mask_with_replacement,
    ngrams,
    rounded,
    spans,
    stochastically_rounded,
    tokens,
    words,
)
from bertjax.models import layers
from bertjax.models.deberta import DeBERTa
from bertjax.models.encoder import Encoder
from bertjax.models.heads import (
    PairHead,
    Pooler,
    ReplacedHead,
    ReplacedInContextHead,
    TokenHead,
    TransformedHead,
)
from bertjax.models.modern import Biases, Modern, Norms, post_norm, tied_head, untied_head
from bertjax.models.positions import Alibi, Rotary, ScaledSinusoids
from bertjax.models.published import Published
from bertjax.models.sentence import SENTENCE, SentenceEmbedding, UnitLength, cls_token
from bertjax.models.span_heads import electra_span_head
from bertjax.models.xlnet import XLNet
from bertjax.noise import ExactCount
from bertjax.objectives import supervised as labelled
from bertjax.objectives.contrastive import Contrastive
from bertjax.objectives.diffusion import MaskedDiffusion
from bertjax.objectives.distil import Distillation
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.plm import PermutationLM
from bertjax.objectives.rtd import DisentangledEmbeddings, ReplacedTokenDetection, deberta_discriminator_head
from bertjax.objectives.sift import SiFT
from bertjax.objectives.supervised import BeamSpans, Supervised
from bertjax.permutation import Permutation
from bertjax.random import with_global_rows
from bertjax.rules import name_of
from bertjax.sharding.mesh import MeshShape
from bertjax.types import Batch

V, SPECIALS = 200, (1, 2)  # ids: padding 0, [CLS] 1, [SEP] 2, [MASK] 3
B, L = 8, 32


def small_bert(**fields):
    return Encoder(**({"V": V, "D": 32, "N": 2, "H": 2, "F": 64, "positions": 64} | fields))


def small_roberta(**fields):
    return small_bert(first_position=2, types=0, norm_eps=1e-5, initializer=layers.Normal(0.02), **fields)


def small_albert(**fields):
    return small_bert(E=16, shared=True, activation=layers.gelu_tanh, **fields)


def small_xlnet(**fields):
    return XLNet(**({"V": V, "D": 32, "N": 2, "H": 2, "F": 64} | fields))


def small_modernbert(**fields):
    """Make one with two groups of layers, thetas that differ, and windows shorter than rows."""
    wanted = {"V": V, "D": 32, "N": 4, "H": 2, "F": 32, "positions": Rotary(100.0, 10.0), "global_every": 2, "reach": 3}
    return Modern(**(wanted | fields))


def small_neobert(**fields):
    norms = Norms(layers.rms_norm, embedding=False, first=True)
    fields = {"norms": norms, "head": untied_head, "activation": layers.silu, "initializer": layers.Uniform()} | fields
    return small_modernbert(**({"N": 2, "global_every": 1} | fields))


def small_mosaicbert(**fields):
    norms, biases = Norms(bias=True, first=True, final=False), Biases(attention=True, narrow=True, head=True)
    fields = {"positions": Alibi(), "residual": post_norm, "norms": norms, "biases": biases, "types": 2} | fields
    return small_modernbert(**({"N": 2, "H": 4, "global_every": 1, "dropout": 0.1} | fields))


def small_crammed(**fields):
    fields = {"positions": ScaledSinusoids(), "norms": Norms(bias=True, first=True), "head": tied_head} | fields
    return small_modernbert(**({"N": 2, "global_every": 1} | fields))


def small_generator(**fields):
    return small_bert(D=16, E=32, H=1, F=32, **fields)


def small_deberta(**fields):
    return DeBERTa(**({"V": V, "D": 32, "N": 2, "H": 2, "F": 64, "distances": 24, "key_bias": False} | fields))


def small_deberta_v2(**fields):
    published = {"buckets": 6, "table_norm": True, "shared_projections": True, "key_bias": True}
    return small_deberta(**(published | {"convolution": 3, "E": 16} | fields))


ENCODERS = {
    "bert": small_bert,
    "roberta": small_roberta,
    "albert": small_albert,
    "xlnet": small_xlnet,
    "deberta": small_deberta,
    "deberta v2": small_deberta_v2,
    "modernbert": small_modernbert,
    "neobert": small_neobert,
    "mosaicbert": small_mosaicbert,
    "crammed": small_crammed,
}


def supervised(encoder, score, name, head, **fields):
    return Supervised(Published(encoder, ((name, head),)), score, **fields)


INIT = layers.TruncatedNormal(0.02)
SMALL_HEADS = {
    "transformed": small_bert().language_head(),
    "transformed, untied": small_bert(tied_head=False).language_head(),
    "tied": small_xlnet().language_head(),
    "untied": small_xlnet(tied_head=False).language_head(),
    "pair": PairHead(32, 2, INIT, "float32"),
    "pooler": Pooler(32, INIT, "float32"),
    "tokens": TokenHead(32, 5, INIT, "float32"),
    "summary": TransformedHead(32, 3, "mean", layers.gelu, 1e-5, INIT, "float32"),
    "replaced": ReplacedHead(32, layers.gelu, INIT, "float32"),
    "replaced in context": ReplacedInContextHead(32, layers.gelu, 1e-7, INIT, "float32"),
    "beams": electra_span_head(small_bert(), 0),
}
MASKING = Masking(mask_id=3, random_ids=(0, V), specials=SPECIALS)
MIXED = MeshShape(data=2, fsdp=2)  # copies of the parameters, each of which is split over two devices


def make_batch(seed=0, rows=B, length=L):
    """Make rows of random ids, specials at their ends, most of them padded, in two segments."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length // 2, length + 1, rows)
    lengths[0] = length
    tokens = rng.integers(4, V, (rows, length))
    real = np.arange(length) < lengths[:, None]
    middle = lengths // 2
    tokens[:, 0] = 1
    tokens[np.arange(rows), middle] = 2
    tokens[np.arange(rows), lengths - 1] = 2
    batch = {
        "tokens": np.where(real, tokens, 0),
        "mask": real,
        "types": (np.arange(length) > middle[:, None]) & real,
        "word_starts": rng.random((rows, length)) < 0.7,
        "pair": rng.integers(0, 2, rows),
        "backward": np.arange(rows) % 2,
    }
    batch = {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}
    return batch | {"example": jnp.asarray(rng.permutation(1000)[:rows], jnp.uint32)}


@cache
def random_params(encoder, spread=0.02, noise=0.0):
    """Return normal parameters of an encoder from NumPy, much sooner than its initialisation compiles.

    Scales are 1 and biases 0; then all get `noise`, so that every influence shows.
    """
    ids, rng = jnp.ones((2, 8), jnp.int32), np.random.default_rng(0)

    def draw(path, leaf):
        first, last = rng.normal(size=(2, *leaf.shape))
        name = name_of(path)
        begin = 1.0 if name.endswith("scale") else 0.0 if name.endswith("bias") else spread * first
        return jnp.asarray(begin + noise * last, leaf.dtype)

    shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids, ids)["params"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


Numbers = float | tuple[float, float]
"""A number, or the least and the largest that it may be."""


@dataclass(frozen=True)
class Row:
    """An objective, and what the tests of the contract expect of it.

    initial: metrics and their values at random initialisation, within 5%, given the batch. weights: the weight of each
    term of the loss, given the batch. overfitted: the terms whose sum falls below 0.5 where one batch is over-fitted.
    drawn: the metric of an evaluation that shows what was drawn, or None where nothing but dropout is; redrawn: whether
    another rng draws otherwise. batch: what makes a batch that the objective reads, of other `rows` and `length` where
    they are given. devices: False where another row splits the same parameters over devices (a test sees to it).
    micro_batches: the mesh on which gradients are accumulated, one row of each objective. bfloat16: what kernels and
    tables are multiplied by before gradients in bfloat16 are compared, where their terms cancel at random
    initialisation, so that little but rounding is left; 0 where they always do. alone: False where the loss of a row
    depends on the other rows of its batch.
    """

    objective: Any
    initial: Callable[[Batch], dict[str, float]]
    weights: Callable[[Batch], dict[str, Numbers]]
    overfitted: tuple[str, ...]
    drawn: str | None
    redrawn: bool = True
    batch: Callable[..., Batch] = make_batch
    devices: bool = True
    micro_batches: MeshShape | None = None
    bfloat16: float = 1.0
    alone: bool = True


def rows_of(batch):
    """Count the rows."""
    return len(batch["mask"])


def real_of(batch):
    """Count the tokens that are not padding."""
    return int((batch["mask"] > 0).sum())


def chosen_by(masking):
    """Return how many tokens a masking chooses in a batch; of units longer than a token at most so many."""

    def count(batch):
        low, high = 0, 0
        for n in np.asarray(batch["mask"] > 0).sum(1).tolist():
            exact = masking.rate * n
            counts = (max(1, round(exact)),) * 2 if masking.count is rounded else (math.floor(exact), math.ceil(exact))
            low, high = (total + min(one, masking.slots(L)) for total, one in zip((low, high), counts, strict=True))
        return low if masking.unit is tokens else B, high

    return count


def masked_lm(encoder, masking, *, pair=False, **expected):
    """Expect of masked LM: a uniform guess of V ids, and of 2 pairs."""
    chosen = chosen_by(masking)
    return Row(
        MaskedLM(encoder, masking, pair),
        lambda batch: {"loss/mlm": math.log(V)} | ({"loss/pair": math.log(2)} if pair else {}),
        lambda batch: {"loss/mlm": chosen(batch)} | ({"loss/pair": rows_of(batch)} if pair else {}),
        ("loss/mlm",), "targets/mlm", masking.seed is None, **expected,
    )  # fmt: skip


def permutation_lm(encoder, permutation, *, memory=0, **expected):
    """Expect of permutation LM: a uniform guess of V ids, at no more places than there are targets."""
    most = B * permutation.targets * L // permutation.window
    return Row(
        PermutationLM(encoder, permutation, memory),
        lambda batch: {"loss/plm": math.log(V)},
        lambda batch: {"loss/plm": (1, most)},
        ("loss/plm",), "targets/plm", permutation.seed is None, **expected,
    )  # fmt: skip


def numbered(**sizes):
    """Make a batch whose rows keep their numbers in it, and the key of their step, in whatever order they come."""
    return with_global_rows(jax.random.key(7), make_batch(**sizes))


def maskable_of(batch):
    """Count the tokens that may be masked: real ones, but for the specials."""
    return int(((batch["mask"] > 0) & ~jnp.isin(batch["tokens"], jnp.array(SPECIALS))).sum())


def diffusion(encoder, **fields):
    """Expect of masked diffusion: a uniform guess of all ids but that of the mask, where tokens are masked."""
    return Row(
        MaskedDiffusion(encoder, 3, SPECIALS, slots=1.0, **fields),
        lambda batch: {"cross_entropy/diffusion": math.log(V - 1)},
        lambda batch: {"loss/diffusion": maskable_of(batch)},
        ("loss/diffusion",), "targets/diffusion", redrawn=False, batch=numbered, micro_batches=MeshShape(data=2),
    )  # fmt: skip


def replaced_tokens(*parts, **expected):
    """Expect of replaced-token detection: a uniform guess of V ids by the generator, and of 2 by the discriminator."""
    given = {name: value for name, value in expected.items() if name not in {f.name for f in dataclasses.fields(Row)}}
    objective = ReplacedTokenDetection(*parts, **given)
    return Row(
        objective,
        lambda batch: {"loss/mlm": math.log(V), "cross_entropy/rtd": math.log(2)},
        lambda batch: {"loss/mlm": chosen_by(objective.masking)(batch), "loss/rtd": real_of(batch)},
        ("loss/mlm",), "targets/mlm", **{name: value for name, value in expected.items() if name not in given},
    )  # fmt: skip


def task(encoder, score, name, head, terms, *, labels, initial, **expected):
    """Expect of fine-tuning: labels of one row each, unless `weights` says otherwise; nothing but dropout drawn."""
    return Row(
        supervised(encoder, score, name, head), initial,
        **{"weights": lambda batch: dict.fromkeys(terms, B), "overfitted": terms, "drawn": None,
           "batch": partial(with_labels, labels)} | expected,
    )  # fmt: skip


def with_labels(labels, **sizes):
    """Make a batch with what `labels` makes of a generator and the batch."""
    batch = make_batch(**sizes)
    return batch | {name: jnp.asarray(array) for name, array in labels(np.random.default_rng(1), batch).items()}


def left_padded(make):
    """Turn the rows of a batch round: XLNet reads the last position."""
    return lambda **sizes: {name: x[:, ::-1] if x.ndim == 2 else x for name, x in make(**sizes).items()}


def some_classes(rng, batch):
    return {"labels": rng.integers(0, 3, rows_of(batch), np.int32)}


def some_numbers(rng, batch):
    return {"labels": 3 * rng.normal(size=rows_of(batch)).astype(np.float32)}


def some_labels(rng, batch):
    return {"labels": rng.integers(0, 2, (rows_of(batch), 3)).astype(np.float32)}


def some_tags(rng, batch):
    shape = batch["mask"].shape
    scored = (np.asarray(batch["mask"]) > 0) & (rng.random(shape) < 0.5)
    return {"labels": np.where(scored, rng.integers(0, 5, shape), -1).astype(np.int32)}


def some_options(rng, batch):
    """Let two rows be the options of a question."""
    pairs = {name: jnp.stack([x, x[::-1]], axis=1) for name, x in batch.items() if x.ndim == 2}
    return pairs | {"labels": rng.integers(0, 2, rows_of(batch), np.int32)}


def some_spans(rng, batch):
    rows, length = batch["mask"].shape
    spans = {"labels": rng.integers(1, length // 2 - 1, (rows, 2), np.int32)}
    return spans | {"context": batch["mask"], "answerable": batch["backward"]}


def some_passages(rng, batch):
    """Give each row a passage of its own and, but for the last two rows, a hard negative."""
    rows = rows_of(batch)
    given = [make_batch(seed, rows, 24) for seed in (5, 6)]
    arrays = {f"passage_{name}": jnp.stack([each[name] for each in given], 1) for name in ("tokens", "mask", "types")}
    arrays["passage_mask"] = arrays["passage_mask"].at[-2:, 1].set(0)
    texts = np.arange(3 * rows).reshape(rows, 3).astype(np.int32)
    texts[-2:, 2] = -1
    return arrays | {"texts": texts}


def uniform_end(batch):
    """Return the loss of a uniform guess among the tokens of each row."""
    return float(np.log(np.asarray((batch["mask"] > 0).sum(1))).mean())


ELECTRA = dataclasses.replace(MASKING, masked=0.85, random=0.0)
CONTRACT = {
    "bert": masked_lm(small_bert(), MASKING, pair=True, micro_batches=MeshShape(data=2)),
    "roberta, spans, remat dots": masked_lm(
        small_roberta(remat="dots"),
        dataclasses.replace(
            MASKING, specials=(), random_ids=(4, V), unit=spans(0.2, 10), count=stochastically_rounded
        ),
    ),
    "albert, n-grams, static, remat full": masked_lm(
        small_albert(remat="full"), dataclasses.replace(MASKING, unit=ngrams(3), max_predictions=4, seed=7), pair=True
    ),
    "xlnet": permutation_lm(
        small_xlnet(), Permutation(functional=SPECIALS, parts=(16, 16), targets=6),
        micro_batches=MeshShape(data=2),
    ),
    "xlnet, memory, tied, clamped, remat dots": permutation_lm(
        small_xlnet(untied=False, clamp=5, remat="dots", tied_head=False),
        Permutation(functional=SPECIALS, parts=(10, 6), targets=4, block=2, seed=5), memory=7,
    ),
    "modernbert, whole words, remat dots": masked_lm(
        small_modernbert(remat="dots"), dataclasses.replace(MASKING, specials=(), unit=words, rate=0.3)
    ),
    "neobert": masked_lm(
        small_neobert(), dataclasses.replace(MASKING, rate=0.2, masked=1.0, random=0.0)
    ),
    "mosaicbert": masked_lm(small_mosaicbert(), MASKING),
    "crammed, remat full": masked_lm(
        small_crammed(remat="full"), dataclasses.replace(MASKING, specials=(), rate=0.25)
    ),
    "deberta": masked_lm(small_deberta(decoder=2), dataclasses.replace(MASKING, unit=ngrams(3))),
    "electra": replaced_tokens(
        small_generator(), small_bert(), ELECTRA, corrupt=mask_with_replacement, micro_batches=MIXED
    ),
    "electra, disentangled": replaced_tokens(
        small_generator(tied_head=False), small_bert(), MASKING, DisentangledEmbeddings(), temperature=0.5,
        devices=False,
    ),
    "deberta v2, replaced tokens, remat dots": replaced_tokens(
        small_deberta_v2(N=1, decoder=1, convolution=None), small_deberta_v2(remat="dots"), MASKING,
        DisentangledEmbeddings(), discriminator_head=deberta_discriminator_head, micro_batches=MeshShape(data=2),
    ),
    "sift": dataclasses.replace(
        masked_lm(small_bert(tied_head=False), MASKING, micro_batches=MeshShape(data=2)),
        objective=SiFT(MaskedLM(small_bert(tied_head=False), MASKING)),
        weights=lambda batch: dict.fromkeys(("loss/mlm", "loss/sift"), chosen_by(MASKING)(batch)),
    ),
    # Weights with which the masks outweigh a teacher that knows nothing.
    "distillation": dataclasses.replace(
        masked_lm(small_bert(), MASKING, micro_batches=MeshShape(data=1)),
        objective=Distillation(
            small_bert(N=1, types=0), small_bert(tied_head=False), MASKING, layers=(1,), soft_weight=0.05,
            mlm_weight=1.0,
        ),
        weights=lambda batch: {
            "loss/mlm": chosen_by(MASKING)(batch), "loss/soft": real_of(batch), "loss/cosine": real_of(batch)
        },
    ),
    "diffusion in blocks": diffusion(small_modernbert(attention_dropout=0.1), noise=ExactCount(), block=5),
    "classes": task(
        small_xlnet(N=1), labelled.classes, "classify", PairHead(32, 3, INIT, "float32", position=-1),
        ("loss/classify",), labels=some_classes, initial=lambda batch: {"loss/classify": math.log(3)},
        batch=left_padded(partial(with_labels, some_classes)), devices=False,
    ),
    "labels": task(
        small_bert(N=1), labelled.labels, "classify", PairHead(32, 3, INIT, "float32"), ("loss/labels",),
        labels=some_labels, initial=lambda batch: {"loss/labels": math.log(2)}, devices=False,
    ),
    "numbers": task(
        small_bert(N=1), labelled.numbers, "classify",
        TransformedHead(32, 1, "mean", layers.gelu, 1e-5, INIT, "float32"), ("loss/regress",), labels=some_numbers,
        initial=lambda batch: {"loss/regress": float(jnp.square(batch["labels"]).mean())}, devices=False,
    ),
    "tags": task(
        small_roberta(N=1), labelled.tags, "tags", TokenHead(32, 5, INIT, "float32", dropout=0.1), ("loss/tags",),
        labels=some_tags, initial=lambda batch: {"loss/tags": math.log(5)},
        weights=lambda batch: {"loss/tags": int((batch["labels"] >= 0).sum())}, micro_batches=MeshShape(data=2),
    ),
    "options": task(
        small_bert(N=1), labelled.options, "choice", PairHead(32, 1, INIT, "float32", dropout=0.1), ("loss/choice",),
        labels=some_options, initial=lambda batch: {"loss/choice": math.log(2)}, devices=False,
        bfloat16=0,  # what two options of a question share cancels in their softmax
    ),
    # By the classification token, so that all vectors are nearly equal at random initialisation.
    "contrastive, matryoshka, in chunks": Row(
        Contrastive(
            Published(small_bert(), ((SENTENCE, SentenceEmbedding((cls_token,), (UnitLength(),))),)),
            temperature=0.1, widths=(8,), chunks=2,
        ),
        lambda batch: dict.fromkeys(("loss/contrastive", "loss/contrastive_8"), math.log(2 * B - 2)),
        lambda batch: dict.fromkeys(("loss/contrastive", "loss/contrastive_8"), B),
        ("loss/contrastive", "loss/contrastive_8"), None, batch=partial(with_labels, some_passages), alone=False,
        devices=False, bfloat16=0,  # what all vectors share cancels in a softmax over them
    ),
    "spans": task(
        small_bert(N=1), labelled.spans, "span", TokenHead(32, 2, INIT, "float32"), ("loss/span",), labels=some_spans,
        initial=lambda batch: {"loss/span": uniform_end(batch)}, devices=False,
        bfloat16=8,  # what all positions share cancels in a softmax over them; for its sum see test_heads.py
    ),
    "beam spans": task(
        small_bert(N=1), BeamSpans(), "beams", electra_span_head(small_bert(), 0), ("loss/span", "loss/answerable"),
        labels=some_spans, initial=lambda batch: {"cross_entropy/answerable": math.log(2)},
        micro_batches=MeshShape(data=1),
    ),
}  # fmt: skip
"""By name. A name begins with that of an encoder of ENCODERS where the row is there for it."""

CONTRACT |= {
    name: masked_lm(make(), MASKING)
    for name, make in ENCODERS.items()
    if name not in {row.split(",")[0] for row in CONTRACT}
}
OBJECTIVES = {name: row.objective for name, row in CONTRACT.items()}


def replace_fields(described, **fields):
    """Replace the fields of these names and types in a dataclass and in all that it holds."""
    changed = {}
    for field in dataclasses.fields(described):
        value = getattr(described, field.name)
        if field.name in fields and isinstance(value, type(fields[field.name])):
            changed[field.name] = fields[field.name]
        elif field.name != "parent" and dataclasses.is_dataclass(value):
            changed[field.name] = replace_fields(value, **fields)
        elif field.name == "named_heads":
            changed[field.name] = tuple((name, replace_fields(head, **fields)) for name, head in value)
    return dataclasses.replace(described, **changed)


def without_dropout(objective):
    return replace_fields(objective, dropout=0.0, attention_dropout=0.0)
