"""List the objectives and models that must keep the contract of docs/design.md; a new one is one more line."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from bertjax.masking import Masking, Permutation, mask_with_replacement, ngrams, spans, stochastically_rounded, words
from bertjax.models import layers
from bertjax.models.deberta import DeBERTa
from bertjax.models.encoder import Encoder
from bertjax.models.heads import PairHead, TokenHead, TransformedHead
from bertjax.models.modern import Biases, Modern, Norms, post_norm, tied_head, untied_head
from bertjax.models.positions import Alibi, Rotary, ScaledSinusoids
from bertjax.models.published import Published
from bertjax.models.span_heads import electra_span_head
from bertjax.models.xlnet import XLNet
from bertjax.objectives import supervised as labelled
from bertjax.objectives.distil import Distillation
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.plm import PermutationLM
from bertjax.objectives.rtd import DisentangledEmbeddings, ReplacedTokenDetection, judged_in_context
from bertjax.objectives.sift import SiFT
from bertjax.objectives.supervised import BeamSpans, Supervised

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
MASKING = Masking(mask_id=3, random_ids=(0, V), specials=SPECIALS)
OBJECTIVES = {
    "bert": MaskedLM(small_bert(), MASKING, pair=True),
    "whole words, static, remat full": MaskedLM(
        small_bert(remat="full"), dataclasses.replace(MASKING, unit=words, seed=7), pair=True
    ),
    "spans, remat dots": MaskedLM(small_bert(remat="dots"), dataclasses.replace(MASKING, unit=spans(0.2, 10))),
    "roberta": MaskedLM(
        small_roberta(), dataclasses.replace(MASKING, specials=(), random_ids=(4, V), count=stochastically_rounded)
    ),
    "albert": MaskedLM(small_albert(), dataclasses.replace(MASKING, unit=ngrams(3), max_predictions=4), pair=True),
    "xlnet": PermutationLM(small_xlnet(), Permutation(functional=SPECIALS, parts=(16, 16), targets=6)),
    "xlnet, memory, tied, clamped, remat dots": PermutationLM(
        small_xlnet(untied=False, clamp=5, remat="dots", tied_head=False),
        Permutation(functional=SPECIALS, parts=(10, 6), targets=4, block=2, seed=5),
        memory=7,
    ),
    "modernbert, remat dots": MaskedLM(
        small_modernbert(remat="dots"), dataclasses.replace(MASKING, specials=(), rate=0.3)
    ),
    "neobert": MaskedLM(small_neobert(), dataclasses.replace(MASKING, rate=0.2, masked=1.0, random=0.0)),
    "mosaicbert": MaskedLM(small_mosaicbert(), MASKING),
    "crammed, remat full": MaskedLM(
        small_crammed(remat="full"), dataclasses.replace(MASKING, specials=(), rate=0.25)
    ),
    "electra": ReplacedTokenDetection(
        small_generator(), small_bert(), dataclasses.replace(MASKING, masked=0.85, random=0.0),
        corrupt=mask_with_replacement,
    ),
    "electra, disentangled": ReplacedTokenDetection(
        small_generator(tied_head=False), small_bert(), MASKING, DisentangledEmbeddings(), temperature=0.5
    ),
    "deberta": MaskedLM(small_deberta(decoder=2), dataclasses.replace(MASKING, unit=ngrams(3))),
    "deberta v3, remat dots": ReplacedTokenDetection(
        small_deberta_v2(N=1, decoder=1, convolution=None), small_deberta_v2(remat="dots"), MASKING,
        DisentangledEmbeddings(), judge=judged_in_context,
    ),
    "sift": SiFT(MaskedLM(small_bert(tied_head=False), MASKING)),
    "classes": supervised(
        small_xlnet(N=1), labelled.classes, "classify", PairHead(32, 3, INIT, "float32", position=-1)
    ),
    "numbers": supervised(
        small_bert(N=1), labelled.numbers, "classify",
        TransformedHead(32, 1, "mean", layers.gelu, 1e-5, INIT, "float32"),
    ),
    "tags": supervised(small_roberta(N=1), labelled.tags, "tags", TokenHead(32, 5, INIT, "float32", dropout=0.1)),
    "options": supervised(small_bert(N=1), labelled.options, "choice", PairHead(32, 1, INIT, "float32", dropout=0.1)),
    "spans": supervised(small_bert(N=1), labelled.spans, "span", TokenHead(32, 2, INIT, "float32")),
    "beam spans": supervised(small_bert(N=1), BeamSpans(), "beams", electra_span_head(small_bert(), 0)),
    # Weights with which the masks outweigh a teacher that knows nothing.
    "distillation": Distillation(
        small_bert(N=1, types=0), small_bert(tied_head=False), MASKING, layers=(1,), soft_weight=0.05, mlm_weight=1.0
    ),
}  # fmt: skip

LIKE_TAGS = {"classes", "numbers", "options", "spans"}
"""Objectives that differ from `tags` in a line: devices and micro-batches are seen to there."""


def replace_fields(described, **fields):
    """Replace the fields of these names in a dataclass and in all that it holds."""
    changed = {}
    for field in dataclasses.fields(described):
        value = getattr(described, field.name)
        if field.name in fields:
            changed[field.name] = fields[field.name]
        elif field.name != "parent" and dataclasses.is_dataclass(value):
            changed[field.name] = replace_fields(value, **fields)
        elif field.name == "named_heads":
            changed[field.name] = tuple((name, replace_fields(head, **fields)) for name, head in value)
    return dataclasses.replace(described, **changed)


def without_dropout(objective):
    return replace_fields(objective, dropout=0.0, attention_dropout=0.0)


def batch_for(objective):
    """Make a batch that the objective can read: one of a task has labels, and rows of options lie side by side."""
    batch, score = make_batch(), getattr(objective, "score", None)
    rng, real = np.random.default_rng(1), np.asarray(batch["mask"])
    inside = rng.integers(1, L // 2 - 1, (B, 2))
    labels = {
        labelled.classes: rng.integers(0, 3, B),
        labelled.numbers: rng.normal(size=B).astype(np.float32),
        labelled.tags: np.where(real & (rng.random((B, L)) < 0.5), rng.integers(0, 5, (B, L)), -1),
        labelled.options: rng.integers(0, 2, B),
        labelled.spans: inside,
    }
    if score is None:
        return batch
    if isinstance(objective.encoder, XLNet):  # padded on the left
        batch = {name: x[:, ::-1] if x.ndim == 2 else x for name, x in batch.items()}
    if score is labelled.options:
        batch = {name: jnp.stack([x, x[::-1]], axis=1) if x.ndim == 2 else x for name, x in batch.items()}
    if isinstance(score, BeamSpans):
        batch |= {"context": batch["mask"], "answerable": batch["backward"]}
    array = jnp.asarray(labels.get(score, inside))
    return batch | {"labels": array if array.dtype == jnp.float32 else array.astype(jnp.int32)}


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
