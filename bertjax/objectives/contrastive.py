"""Contrastive training of sentence embeddings: each anchor's own passage against all others of the batch.

    loss = mean over anchors of −log exp(cos(aᵢ, pᵢ) / τ) / Σ over passages c of exp(cos(aᵢ, c) / τ)

The passages c are those of the whole global batch, the hard negatives among them, on any mesh. With `widths` the same
term is added for the first dimensions of the vectors, each scaled to length 1 again (Matryoshka).

Henderson et al. 2017 (multiple negatives); van den Oord et al. 2018 (InfoNCE); Gao, Yao and Chen 2021 (SimCSE: rows
whose passage is the anchor's text, which dropout tells apart); Gao, Zhang, Han and Callan 2021 (GradCache: `chunks`);
Kusupati et al. 2022 (Matryoshka); sentence-transformers, MultipleNegativesRankingLoss and its cached form. Where we
deviate: a passage is left out of an anchor's negatives where the data say that it is none: the same text as its own
passage or as the anchor itself, and the passage of an equal anchor. An anchor without any negative weighs nothing.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bertjax.errors import InputError
from bertjax.inputs import check_ids, check_step
from bertjax.models.layers import apply
from bertjax.models.published import Published
from bertjax.models.sentence import SENTENCE, SentenceEmbedding, vector_width
from bertjax.models.span_heads import HIDDEN
from bertjax.objectives.losses import real_tokens, scores, weighted_mean
from bertjax.rules import Rules
from bertjax.sharding.collectives import sums_per_replica
from bertjax.types import Array, Batch, Key, Mean, Metrics, Params, total


class Allowed(NamedTuple):
    """Which passages of the batch an anchor is compared with: bool [B, B·K], passage k of row j at j·K + k.

    compared: its own and its negatives. false: left out of the negatives, since the data say that they are none.
    """

    compared_BC: Array
    false_BC: Array


@dataclass(frozen=True)
class Contrastive:
    """Train `model`, an encoder with a head for sentence embeddings, to place anchors near their own passages.

    temperature: τ, of cosines. widths: also train the first dimensions alone, so many of them each. chunks: encode the
    batch in so many parts, whose activations are computed again for the gradient, so that memory is that of one part;
    the loss is that of the whole batch all the same, but each part has dropout of its own.
    Raises ValueError where the model does not have that head alone, for a temperature that is not above 0, and for
    widths that are not below that of the vectors.
    """

    model: Published
    temperature: float = 0.05
    widths: tuple[int, ...] = ()
    chunks: int = 1

    def __post_init__(self) -> None:
        names = [name for name, _ in self.model.named_heads]
        if names != [SENTENCE] or not isinstance(self.sentence, SentenceEmbedding):
            raise ValueError(f"embeddings need one head, `{SENTENCE}`: this model has {', '.join(names) or 'none'}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be above 0 and finite: cosines are divided by it")
        if self.chunks < 1:
            raise ValueError(f"chunks={self.chunks} must be 1 or more: the parts in which a batch is encoded")
        full = vector_width(self.sentence, self.encoder.D)
        if len({*self.widths}) < len(self.widths) or not all(0 < width < full for width in self.widths):
            raise ValueError(
                f"widths={self.widths}: name numbers of dimensions from 1 to {full - 1}, each once; the vectors have "
                f"{full}, which are always trained"
            )

    @property
    def encoder(self) -> Any:
        """The encoder."""
        return self.model.encoder

    @property
    def sentence(self) -> Any:
        """The head that computes vectors."""
        return self.model.named_heads[0][1]

    @property
    def objective(self) -> Published:
        """The objective that serves the trained model."""
        return self.model

    @property
    def frozen(self) -> Rules:
        """The rules that an optimiser's rates must begin with: see Published.frozen."""
        return self.model.frozen

    def init(self, rng: Key, batch: Batch) -> Params:
        """Initialise {encoder, head: {sentence}}."""
        return self.model.init(rng, batch)

    def remap_params(self, found: Params) -> Params:
        """Return the encoder of the model in `init`, and its head for sentence embeddings, where it has one.

        Raises ValueError for a model in parts.
        """
        if "encoder" not in found:
            raise ValueError(f"embeddings are of one encoder: name one of its parts, {' or '.join(found)}")
        return {"encoder": found["encoder"], "head": {SENTENCE: found.get("head", {}).get(SENTENCE, {})}}

    def encode(self, params: Params, batch: Batch) -> Array:
        """Return hidden states x_BLD of the anchors."""
        return self.model.encode(params, batch)

    def loss(self, params: Params, batch: Batch, rng: Key, *, train: bool) -> tuple[Array, Metrics]:
        """Return the loss and its metrics; `negatives/used` and `negatives/false` are counts for each anchor.

        Raises ValueError without passages in the batch, where there is no other passage to compare with, and for rows
        that do not divide into `chunks`; InputError for a micro-batch, whose rows would see too few of the others.
        """
        _check(batch)
        anchors_BD, passages_BKD = self.vectors(params, batch, rng, train=train)
        passages_CD = passages_BKD.reshape(-1, passages_BKD.shape[-1])
        compared_BC, false_BC = allowed(batch["texts"])
        real_B = (batch["texts"][:, 0] >= 0).astype(jnp.float32)
        weights_B = real_B * (compared_BC.sum(1) > 1)
        own_B = jnp.arange(len(real_B)) * batch["texts"][:, 1:].shape[1]
        metrics: Metrics = {}
        for width in (0, *self.widths):
            cosines_BC = cosines(anchors_BD[:, : width or None], passages_CD[:, : width or None])
            logits_BC = jnp.where(compared_BC, cosines_BC / self.temperature, HIDDEN)
            metrics |= scores(f"contrastive_{width}" if width else "contrastive", logits_BC, own_B, weights_B)
        metrics["negatives/used"] = weighted_mean(compared_BC.sum(1) - 1.0, real_B)
        metrics["negatives/false"] = weighted_mean(false_BC.sum(1).astype(jnp.float32), real_B)
        masks = [real_tokens(batch[name]) for name in ("mask", "passage_mask")]
        metrics["tokens/real"] = Mean(masks[0].sum + masks[1].sum, masks[0].weight + masks[1].weight)
        return total(metrics), metrics

    def vectors(self, params: Params, batch: Batch, rng: Key, *, train: bool) -> tuple[Array, Array]:
        """Return the vectors of anchors f32 [B, D] and of passages [B, K, D], in chunks where there are several.

        What is saved of a chunk for the backward pass is its tokens, so the gradient is that of GradCache: each chunk
        is encoded again, with the gradient of its vectors. Chunk c holds every `chunks`-th row from c on, so that a
        batch that is split over devices stays where it is.
        """
        check_step(params, ("encoder", "head"), batch, rng, self.encoder)
        check_ids(
            "passage_tokens", batch["passage_tokens"], self.encoder.V, f"the vocabulary has V={self.encoder.V} ids"
        )
        texts = {name: batch[name] for name in _TEXTS if name in batch}
        if self.chunks == 1:
            return self._encoded(params, texts, rng, train=train)

        def in_chunks(params: Params, texts: Batch, rng: Key) -> tuple[tuple[()], tuple[Array, Array]]:
            n, rows = self.chunks, len(texts["tokens"])
            if rows % n:
                raise InputError(
                    f"chunks={n} do not divide a batch whose rows on each replica are {rows}: use a divisor of that"
                )
            parts = jax.tree.map(lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1), texts)
            keys = jax.vmap(partial(jax.random.fold_in, rng))(jnp.arange(n))
            encode = jax.checkpoint(partial(self._encoded, train=train), prevent_cse=False)
            found = jax.lax.map(lambda part: encode(params, *part), (parts, keys))
            return (), jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), found)

        _, found = sums_per_replica(in_chunks)(params, texts, rng)
        return found

    def _encoded(self, params: Params, texts: Batch, rng: Key, *, train: bool) -> tuple[Array, Array]:
        """Return the vectors of the anchors and passages of some rows."""
        B, K, _ = texts["passage_tokens"].shape
        keys = jax.random.split(rng)
        passages = {name: texts[f"passage_{name}"] for name in ("tokens", "mask", "types") if name in texts}
        passages = {name: array.reshape(B * K, -1) for name, array in passages.items()}
        anchors = {name: texts[name] for name in passages}
        found = [
            self._embedded(params, rows, key, train=train) for rows, key in zip((anchors, passages), keys, strict=True)
        ]
        return found[0], found[1].reshape(B, K, -1)

    def _embedded(self, params: Params, rows: Batch, rng: Key, *, train: bool) -> Array:
        """Return a vector for each row. One of padding counts as a text of one token: no vector is 0."""
        first_L = jnp.arange(rows["mask"].shape[1]) == 0
        mask_BL = jnp.where(rows["mask"].any(1, keepdims=True), rows["mask"], first_L)
        x_BLD = self.model.encode(params, {**rows, "mask": mask_BL}, train=train, rngs={"dropout": rng})
        return apply(self.sentence, params.get("head", {}).get(SENTENCE, {}), x_BLD, mask_BL)


_TEXTS = ("tokens", "mask", "types", "passage_tokens", "passage_mask", "passage_types")


def _check(batch: Batch) -> None:
    if "passage_tokens" not in batch:
        raise ValueError("contrastive training needs passages in the batch: use rows of pairs (TextPairs)")
    if "global_row" in batch:
        raise InputError(
            "accumulate divides the batch, and each row would be compared with its own part alone: leave accumulate at "
            "1 and set objective.chunks, which bounds memory and compares with the whole batch"
        )
    B, K, _ = batch["passage_tokens"].shape
    if B * K < 2:
        raise ValueError(
            "a batch of one pair has no negative to compare with: use a batch_size of 2 or more, or hard negatives"
        )


def allowed(texts_BT: Array) -> Allowed:
    """Return which passages each anchor is compared with, from the numbers of the texts of each row.

    texts_BT: i32, the anchor's, its own passage's, those of hard negatives; equal texts have one number, -1 is none.
    """
    B, K = texts_BT.shape[0], texts_BT.shape[1] - 1
    anchors_B, owns_B, texts_C = texts_BT[:, 0], texts_BT[:, 1], texts_BT[:, 1:].reshape(-1)
    own_BC = jnp.arange(B * K)[None] == K * jnp.arange(B)[:, None]
    given_BC = (texts_C >= 0)[None] & (anchors_B >= 0)[:, None]
    same_BC = (texts_C[None] == owns_B[:, None]) | (texts_C[None] == anchors_B[:, None])
    of_equal_anchor_BC = jnp.repeat(anchors_B, K)[None] == anchors_B[:, None]
    positive_C = jnp.arange(B * K) % K == 0
    false_BC = given_BC & ~own_BC & (same_BC | (of_equal_anchor_BC & positive_C[None]))
    return Allowed(own_BC | (given_BC & ~false_BC), false_BC)


def cosines(a_BD: Array, b_CD: Array) -> Array:
    """Return the cosine of each pair of vectors: f32 [B, C]."""
    a_BD, b_CD = (x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24)) for x in (a_BD, b_CD))
    # TPUs would round to bfloat16, an error that the temperature multiplies by 20.
    return jnp.einsum("BD,CD->BC", a_BD, b_CD, precision=jax.lax.Precision.HIGHEST)
