"""Masked diffusion: a language model that unmasks text in any order, from masks alone to the whole.

    loss = Σ over masked tokens of w·nll / Σ over all tokens that may be masked

where w makes it a bound on -log p(text) per token (bertjax/noise.py). Masked LM is one step of it: one rate of masking,
all rates alike. As in MDLM's SUBS, [MASK] itself has probability 0, and what is not masked is carried over and costs
nothing. The model is not told the time: what it sees says it (Ou et al. 2024, arXiv 2406.03736).

In blocks (Arriola et al. 2025, BD3-LM) a row is generated block by block: a block is diffused given the text before it.
All blocks are trained at once, from two copies of the row: tokens of the noised copy attend to their own block of it,
and to the blocks before in the copy of the text.

Sources: Sahoo et al. 2024 (kuleshov-group/mdlm diffusion.py); Nie et al. 2025 (LLaDA GUIDELINES.md); BD3-LM
(kuleshov-group/bd3lms models/dit.py block_diff_mask). Where we deviate: times are spread over the global batch and in
pairs t and 1 - t, where MDLM spreads those of a device; only masked tokens reach the vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.data.tokenizer import Vocabulary
from bertjax.fields import check_fields
from bertjax.inputs import check_step, require
from bertjax.models.initialise import one_program
from bertjax.models.language import LanguageEncoder, encode, hidden, initialised, takes_visible, word_table
from bertjax.models.layers import apply, restarting_positions, states_at
from bertjax.models.xlnet import XLNet
from bertjax.noise import Noise, Noised, RandomTime, slots_of
from bertjax.objectives.losses import (
    histogram,
    is_first_best,
    negative_log_likelihood,
    real_tokens,
    weighted_mean,
)
from bertjax.random import antithetic, global_rows, row_keys
from bertjax.sharding.collectives import replica_groups
from bertjax.types import Array, Batch, Key, Mean, Metrics, Params, total

GOLDEN = 0.6180339887
"""Between the times of consecutive blocks of a row, so that those of a row are spread too."""

MDLM = RandomTime()

Share = Callable[[Array], tuple[Array, Array]]
"""candidates_BL -> (shares_B, whole): a row's tokens weigh `shares_B` each, and the loss is divided by `whole`."""


def per_token(candidates_BL: Array) -> tuple[Array, Array]:
    """Weigh all tokens alike: the bound per token."""
    return jnp.ones(len(candidates_BL)), candidates_BL.sum(dtype=jnp.float32)


def per_row(candidates_BL: Array) -> tuple[Array, Array]:
    """Weigh all rows alike, whatever their number of tokens: LLaDA's, of answers to instructions."""
    n_B = candidates_BL.sum(1, dtype=jnp.float32)
    return 1 / jnp.maximum(n_B, 1), (n_B > 0).sum(dtype=jnp.float32)


@dataclass(frozen=True)
class MaskedDiffusion:
    """Train `encoder`, by its language head, to predict the tokens that `noise` masked.

    mask_id: the id of [MASK]. share: how the tokens of a row weigh, per_token or per_row.
    specials: ids that are never masked, besides padding and tokens with `given` in the batch. slots: the number of
    tokens that can be predicted, as a share of all positions of a batch (of a micro-batch, on one replica of the
    parameters); where more are masked, a random part of them is scored with more weight, and `overflow/diffusion` is
    the share of the others. cut: the share of rows that are cut at a uniformly random length. block: tokens in a block,
    or None for one block.
    Raises ValueError for an id that exceeds V, shares outside their range, and blocks of an encoder that takes no
    attention mask.
    """

    encoder: LanguageEncoder
    mask_id: int
    specials: tuple[int, ...] = ()
    noise: Noise = MDLM
    share: Share = per_token
    slots: float = 0.6
    cut: float = 0.0
    block: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        largest = max((self.mask_id, *self.specials))
        if largest >= self.encoder.V:
            raise ValueError(f"diffusion uses id {largest}, but the encoder's vocabulary has V={self.encoder.V} ids")
        if not 0 < self.slots <= 1:
            raise ValueError(f"slots={self.slots} is not a share in (0, 1]")
        if not 0 <= self.cut <= 1:
            raise ValueError(f"cut={self.cut} is not a share in [0, 1]")
        if self.block is not None and self.block < 1:
            raise ValueError(f"block={self.block} must be 1 or more tokens, or none")
        if self.block is not None and not takes_visible(self.encoder):
            raise ValueError(
                f"block={self.block} needs an attention mask that {type(self.encoder).__name__} does not take: use an "
                "Encoder or a Modern, or block=none"
            )

    @property
    def head(self) -> nn.Module:
        """The language head of the encoder."""
        return self.encoder.language_head()

    @property
    def heads(self) -> dict[str, nn.Module]:
        """Its head by its name among the parameters, that of masked LM."""
        return {"mlm": self.head}

    @one_program
    def init(self, rng: Key, batch: Batch) -> Params:
        """Initialise {encoder, head: {mlm}}, as masked LM."""
        encoder_key, head_key = jax.random.split(rng)
        encoder = initialised(self.encoder, encoder_key, batch)
        x_BPD = jnp.zeros((*batch["tokens"][:, :1].shape, self.encoder.D))
        # A head that is the word table alone has no parameters.
        head = self.head.init(head_key, x_BPD, word_table(encoder)).get("params", {})
        return {"encoder": encoder, "head": {"mlm": head}}

    def remap_params(self, found: Params) -> Params:
        """See RemapsWarmStart: permutation LM's head predicts ids as this one does."""
        head = dict(found.get("head", {}))
        if "plm" in head and "mlm" not in head:
            head["mlm"] = head.pop("plm")
        return {**found, "head": head} if head else found

    def encode(self, params: Params, batch: Batch) -> Array:
        """Return hidden states x_BLD of tokens as they are; of a model in blocks without the blocks after their own."""
        return encode(self.encoder, params, batch, **self.seen(batch))

    def language_logits(self, params: Params, batch: Batch, positions_BP: Array | None = None) -> Array:
        """Return logits_BPV at `positions_BP`, or at every position if None; those of [MASK] are -inf."""
        _, x_BLD = hidden(self.encoder, params, batch, None, None, **self.seen(batch))
        return self.logits(params, states_at(x_BLD, positions_BP))

    def special_tokens(self, v: Vocabulary) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the special tokens before and after a text, as (id, segment)."""
        at_its_end = isinstance(self.encoder, XLNet)
        return ([], [(v.sep, 0), (v.cls, 2)]) if at_its_end else ([(v.cls, 0)], [(v.sep, 0)])

    def loss(self, params: Params, batch: Batch, rng: Key, *, train: bool) -> tuple[Array, Metrics]:
        """Return the loss and its metrics; without `train` also the histogram of the targets.

        cross_entropy/diffusion is the mean over masked tokens, without weights, which masked LM calls its loss.
        Raises ValueError for blocks of rows that are longer than the positions of the encoder.
        """
        check_step(params, ("encoder", "head"), batch, rng, self.encoder)
        batch = self._shortened(batch, rng)
        candidates_BL = self.candidates(batch)
        bits_2BL, noised = self._noised(batch, candidates_BL, rng)
        x_BLD = self.states(params, batch, noised.masked_BL, train=train, rngs={"dropout": _fold(rng, 2)})
        G, (B, L) = replica_groups(len(x_BLD)), candidates_BL.shape
        slots = slots_of(noised.masked_BL, bits_2BL[1], G, math.ceil(self.slots * B * L / G))

        def in_slots(x_BL: Array) -> Array:
            return jnp.take_along_axis(x_BL.reshape(G, -1), slots.index_GS, axis=1, mode="promise_in_bounds")

        shares_B, whole = self.share(candidates_BL)
        targets_GS, used_GS = in_slots(batch["tokens"]), slots.used_GS.astype(jnp.float32)
        kept_G = slots.used_GS.sum(1)
        more_G = 1 + slots.dropped_G / jnp.maximum(kept_G, 1)
        weights_GS = in_slots(noised.weights_BL * shares_B[:, None]) * used_GS * more_G[:, None]
        logits_GSV = self.logits(params, states_at(x_BLD.reshape(G, -1, x_BLD.shape[-1]), slots.index_GS))
        nll_GS = negative_log_likelihood(logits_GSV, targets_GS)
        masked = noised.masked_BL.sum(dtype=jnp.float32)
        metrics = {
            "loss/diffusion": Mean((weights_GS * nll_GS).sum(), whole),
            "cross_entropy/diffusion": weighted_mean(nll_GS, used_GS),
            "accuracy/diffusion": weighted_mean(is_first_best(logits_GSV, targets_GS).astype(jnp.float32), used_GS),
            "masked/diffusion": Mean(masked, candidates_BL.sum(dtype=jnp.float32)),
            "overflow/diffusion": Mean(slots.dropped_G.sum(dtype=jnp.float32), masked),
            "tokens/real": real_tokens(batch["mask"]),
        }
        if not train:
            metrics["targets/diffusion"] = histogram(self.encoder.V, targets_GS, used_GS)
        return total(metrics), metrics

    def candidates(self, batch: Batch) -> Array:
        """Return which tokens may be masked, bool [B, L]: real ones, none of `specials`, not given, no [MASK]."""
        candidates_BL = (batch["mask"] > 0) & (batch["tokens"] != self.mask_id)
        for special in self.specials:
            candidates_BL &= batch["tokens"] != special
        return candidates_BL & (batch["given"] == 0) if "given" in batch else candidates_BL

    def blocks(self, batch: Batch) -> Array:
        """Return the block of each token within its document, i32 [B, L]: 0 without blocks."""
        if self.block is None:
            return jnp.zeros_like(batch["mask"])
        return restarting_positions(batch["mask"]) // self.block

    def states(self, params: Params, batch: Batch, masked_BL: Array, **options: Any) -> Array:
        """Return the input x_BLD of the head where tokens are masked; in blocks, given the text of earlier blocks."""
        tokens_BL = jnp.where(masked_BL, self.mask_id, batch["tokens"])
        if self.block is None:
            return hidden(self.encoder, params, batch, tokens_BL, None, **options)[1]
        L, longest = tokens_BL.shape[1], getattr(self.encoder, "max_length", None)
        if longest is not None and longest < L:
            raise ValueError(f"rows of length {L} exceed the {longest} positions of the encoder: shorten the rows")

        def twice(first_BL: Array, second_BL: Array) -> Array:
            return jnp.concatenate([first_BL, second_BL], axis=1)

        mask_BL = batch["mask"]
        # Other numbers for the documents of the text, so that its positions begin anew.
        both = {"mask": twice(mask_BL, jnp.where(mask_BL > 0, mask_BL + L, 0))}
        if "types" in batch:
            both["types"] = twice(batch["types"], batch["types"])
        visible_BLM = two_copies(mask_BL, self.blocks(batch))
        tokens_BL = twice(tokens_BL, batch["tokens"])
        return hidden(self.encoder, params, both, tokens_BL, None, visible_BLM=visible_BLM, **options)[1][:, :L]

    def logits(self, params: Params, x_BPD: Array) -> Array:
        """Return the logits of states that `states` returned: -inf for [MASK]."""
        logits_BPV = apply(self.head, params["head"]["mlm"], x_BPD, word_table(params["encoder"]))
        is_mask_V = jnp.arange(self.encoder.V) == self.mask_id
        return jnp.where(jax.lax.broadcast_to_rank(is_mask_V, logits_BPV.ndim), -jnp.inf, logits_BPV)

    def seen(self, batch: Batch) -> dict[str, Array]:
        """Return the attention mask of a model in blocks, where the blocks after a token's own are not there yet."""
        require(batch, "tokens", "mask")
        if self.block is None:
            return {}
        mask_BL, block_BL = batch["mask"], self.blocks(batch)
        earlier_BLM = block_BL[:, :, None] >= block_BL[:, None, :]
        return {"visible_BLM": (mask_BL[:, :, None] == mask_BL[:, None, :]) & earlier_BLM}

    def _noised(self, batch: Batch, candidates_BL: Array, rng: Key) -> tuple[Array, Noised]:
        """Return random bits u32 [2, B, L], and the masks: the same on every mesh, and in every micro-batch."""
        groups_BL = self.blocks(batch)
        time_BL = (antithetic(rng, batch)[:, None] + GOLDEN * groups_BL.astype(jnp.float32)) % 1
        keys_B = _keys(batch, rng, 0)
        bits_B2L = jax.vmap(lambda key: jax.random.bits(key, (2, groups_BL.shape[1])))(keys_B)
        bits_2BL = bits_B2L.swapaxes(0, 1)
        return bits_2BL, self.noise(bits_2BL[0], time_BL, candidates_BL, groups_BL)

    def _shortened(self, batch: Batch, rng: Key) -> Batch:
        """Cut some rows: what is beyond a random length becomes padding."""
        if not self.cut:
            return batch
        u_B2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(_keys(batch, rng, 1))
        L = batch["mask"].shape[1]
        length_B = jnp.where(u_B2[:, 0] < self.cut, 1 + jnp.floor(u_B2[:, 1] * L).astype(jnp.int32), L)
        return {**batch, "mask": jnp.where(jnp.arange(L)[None] < length_B[:, None], batch["mask"], 0)}


def _keys(batch: Batch, rng: Key, purpose: int) -> Key:
    """Return a key for each row: by its example and the step, whatever part of the batch is seen."""
    rows = global_rows(rng, batch)
    return row_keys(_fold(rows.key, purpose), {"example": rows.number_B, **batch})


def _fold(rng: Key, purpose: int) -> Key:
    return jax.random.fold_in(rng, 2**31 + purpose)


def two_copies(mask_BL: Array, block_BL: Array) -> Array:
    """Return visible_BLM for rows that hold a noised copy and then the text: bool [B, 2·L, 2·L].

    A noised token sees its block of the noised copy, and earlier blocks of the text; a token of the text its own and
    earlier blocks of the text. Nothing sees another document (BD3-LM, block_diff_mask).
    """
    same_BLM = mask_BL[:, :, None] == mask_BL[:, None, :]
    query_BL1, key_B1M = block_BL[:, :, None], block_BL[:, None, :]
    noised = jnp.concatenate([same_BLM & (query_BL1 == key_B1M), same_BLM & (query_BL1 > key_B1M)], axis=2)
    text = jnp.concatenate([jnp.zeros_like(same_BLM), same_BLM & (query_BL1 >= key_B1M)], axis=2)
    return jnp.concatenate([noised, text], axis=1)
