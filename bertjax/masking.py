"""Corrupt a batch for masked language modelling: pure functions of (key, batch, recipe), with no parameters.

A recipe is a `Masking`: the number of chosen positions, their units, and their replacements. The number of slots P is
fixed by the row length, so shapes are static; unused slots have weight 0. Everything is a sort, a cumulative sum or a
compare over [B, L]: no host callback, no dynamic shape.

Sources: google-research/bert create_pretraining_data.py create_masked_lm_predictions; fairseq data/
mask_tokens_dataset.py; google-research/albert create_pretraining_data.py; Joshi et al. 2020 (SpanBERT). Where we
deviate: n-grams and spans partition the words of a row at random and whole groups are then drawn, where ALBERT and
SpanBERT draw random anchors and reject overlaps; sizes follow the same law, overlaps cannot happen, and a group that
would overshoot the budget is skipped, as BERT skips a word.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.fields import check_fields, check_kind
from bertjax.inputs import check_draw
from bertjax.random import row_keys, stream, unit_interval
from bertjax.types import Array, Batch, Key


class Masked(NamedTuple):
    """A corrupted batch and the targets in it.

    tokens_BL: corrupted ids. positions_BP: where to predict, ascending, 0 in unused slots. targets_BP: the original
    ids there. weights_BP: f32, 1 where the slot is used.
    """

    tokens_BL: Array
    positions_BP: Array
    targets_BP: Array
    weights_BP: Array


Unit = Callable[[Array, Array], Array]
"""(random bits_L, word_starts_L) -> starts_L: the first tokens of units, which are chosen as a whole."""

Count = Callable[[Array, Array, float, int], Array]
"""(random bits, length, rate, L) -> how many tokens to choose of a row of `length` real tokens."""


def tokens(bits_L: Array, word_starts_L: Array) -> Array:
    """Choose single tokens."""
    return jnp.ones_like(word_starts_L)


def words(bits_L: Array, word_starts_L: Array) -> Array:
    """Choose whole words."""
    return word_starts_L


@dataclass(frozen=True)
class Groups:
    """Choose runs of 1 .. len(probabilities) whole words, of random size with these probabilities."""

    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.probabilities or min(self.probabilities) < 0 or abs(sum(self.probabilities) - 1) > 1e-6:
            raise ValueError(f"probabilities {self.probabilities} are not a distribution over sizes 1, 2, …")

    def __call__(self, bits_L: Array, word_starts_L: Array) -> Array:
        L = word_starts_L.shape[0]
        upto = jnp.asarray(np.cumsum(self.probabilities)[:-1], jnp.float32)
        sizes_L = 1 + (unit_interval(bits_L)[:, None] >= upto[None]).sum(-1)
        is_first_word = jnp.zeros(L + 1, bool).at[0].set(True).at[jnp.cumsum(sizes_L)].set(True, mode="drop")
        word_L = jnp.cumsum(word_starts_L) - 1
        return word_starts_L & is_first_word[word_L]


def ngrams(longest: int) -> Groups:
    """Choose n-grams of up to `longest` words with p(n) ∝ 1/n: ALBERT's, with longest 3."""
    weights = [1 / n for n in range(1, longest + 1)]
    return Groups(tuple(weight / sum(weights) for weight in weights))


def spans(p: float, longest: int) -> Groups:
    """Choose spans of words, geometric with parameter p and cut at `longest`: SpanBERT's, with 0.2 and 10."""
    weights = [p * (1 - p) ** (n - 1) for n in range(1, longest + 1)]
    return Groups(tuple(weight / sum(weights) for weight in weights))


def rounded(bits: Array, length: Array, rate: float, L: int) -> Array:
    """Count as BERT: max(1, round(rate · length)), half to even, of all real tokens, specials included."""
    table = np.array([0] + [max(1, round(rate * n)) for n in range(1, L + 1)], np.int32)
    return jnp.asarray(table)[length]


def stochastically_rounded(bits: Array, length: Array, rate: float, L: int) -> Array:
    """Count as fairseq: floor(rate · length + u) with u uniform in [0, 1)."""
    return jnp.floor(rate * length + unit_interval(bits)).astype(jnp.int32)


@dataclass(frozen=True)
class Masking:
    """A recipe of masking: which tokens are chosen, and their replacements.

    Raises ValueError at construction where the fields contradict each other.

    Attributes:
        mask_id: the id of the mask
        random_ids: random replacements are uniform over [low, high)
        specials: ids that are never chosen, besides padding
        rate: share of the real tokens of a row that are chosen
        unit: what is chosen as a whole: masking.tokens, words, or the Groups that ngrams and spans return
        count: how the rate becomes a number of tokens: masking.rounded or stochastically_rounded
        masked: share of chosen tokens replaced by mask_id
        random: share replaced by a random id; the rest is unchanged
        max_predictions: at most so many per row; None: ceil(rate · L)
        seed: None: resampled at every step; else static for each example, by this seed
    """

    mask_id: int
    random_ids: tuple[int, int]
    specials: tuple[int, ...] = ()
    rate: float = 0.15
    unit: Unit = tokens
    count: Count = rounded
    masked: float = 0.8
    random: float = 0.1
    max_predictions: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        low, high = self.random_ids
        if not 0 < self.rate < 1:
            raise ValueError(f"rate={self.rate} is not a share in (0, 1)")
        if min(self.masked, self.random) < 0 or self.masked + self.random > 1 + 1e-9:
            raise ValueError(f"shares masked={self.masked} and random={self.random} are not parts of 1")
        if not 0 <= low < high or self.mask_id < 0:
            raise ValueError(f"random_ids={self.random_ids} and mask_id={self.mask_id} are not a range and an id")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise ValueError(f"max_predictions={self.max_predictions} leaves nothing to predict: use 1 or more")

    def check_vocabulary(self, V: int) -> None:
        """Raise ValueError where an id exceeds a vocabulary of V ids."""
        largest = max(self.mask_id, self.random_ids[1] - 1, *self.specials)
        if largest >= V:
            raise ValueError(f"masking uses id {largest}, but the encoder's vocabulary has V={V} ids")

    def slots(self, L: int) -> int:
        """Return the number of slots P of a row of length L."""
        return min(self.max_predictions or L, int(np.ceil(self.rate * L)))

    def expected_targets(self, rows: int, length: int, real_tokens: float) -> float:
        """Return about how many of `real_tokens` tokens in rows of this length are chosen."""
        return min(self.rate * real_tokens, float(rows * self.slots(length)))


def mask_tokens(rng: Key, batch: Batch, spec: Masking) -> Masked:
    """Choose positions of every row and corrupt them.

    Reads tokens, mask and, for units larger than a token, word_starts; `example`, if given, seeds the draws of a row.
    Raises ValueError where the unit needs word_starts and the batch has none.
    """
    check_draw(rng, batch)
    check_kind("spec", spec, Masking)
    tokens_BL, real_BL = batch["tokens"], batch["mask"] > 0
    if spec.unit is not tokens and "word_starts" not in batch:
        raise ValueError("this unit of masking needs `word_starts` in the batch")
    word_starts_BL = batch.get("word_starts", jnp.ones_like(tokens_BL)) > 0
    keys_B, candidates_BL = _keys_and_candidates(rng, batch, spec)

    def mask_row(key: Key, tokens_L: Array, real_L: Array, candidates_L: Array, word_starts_L: Array) -> Masked:
        L = tokens_L.shape[0]
        P = spec.slots(L)
        # One call of the generator for a row: each is costly to compile.
        unit_bits_L, count_bits_L, order_bits_L, kind_bits_L, random_bits_L = jax.random.bits(key, (5, L))
        n = jnp.minimum(spec.count(count_bits_L[0], real_L.sum(), spec.rate, L), P)
        after_gap_L = jnp.concatenate([jnp.ones(1, bool), ~candidates_L[:-1]])
        breaks_L = ~candidates_L | after_gap_L
        chosen_L = _choose(order_bits_L, spec.unit(unit_bits_L, word_starts_L | breaks_L) | breaks_L, candidates_L, n)

        kind_L, random_L = unit_interval(kind_bits_L), _random_ids(random_bits_L, spec)
        corrupted_L = jnp.where(
            kind_L < spec.masked, spec.mask_id, jnp.where(kind_L < spec.masked + spec.random, random_L, tokens_L)
        )
        used_P = jnp.arange(P) < chosen_L.sum()
        positions_P = jnp.where(used_P, jnp.sort(jnp.where(chosen_L, jnp.arange(L), L))[:P], 0)
        return Masked(
            jnp.where(chosen_L, corrupted_L, tokens_L),
            positions_P,
            tokens_L.at[positions_P].get(mode="promise_in_bounds"),
            used_P.astype(jnp.float32),
        )

    return jax.vmap(mask_row)(keys_B, tokens_BL, real_BL, candidates_BL, word_starts_BL)


Corruption = Callable[[Key, Batch, Masking], Masked]
"""(rng, batch, recipe) -> corrupted tokens and targets: `mask_tokens`, `mask_with_replacement`, or one's own."""


def _keys_and_candidates(rng: Key, batch: Batch, spec: Masking) -> tuple[Key, Array]:
    """Return the key of each row, and which positions may be chosen."""
    keys_B = row_keys(rng if spec.seed is None else stream(spec.seed, "static masks"), batch)
    candidates_BL = batch["mask"] > 0
    for special in spec.specials:
        candidates_BL &= batch["tokens"] != special
    return keys_B, candidates_BL


def _random_ids(bits: Array, spec: Masking) -> Array:
    low, high = spec.random_ids
    return low + (bits % jnp.uint32(high - low)).astype(jnp.int32)


def _choose(bits_L: Array, starts_L: Array, candidates_L: Array, n: Array) -> Array:
    """Take units in random order, skipping those that would overshoot n tokens: chosen_L.

    BERT's loop over shuffled words, in rounds: each takes the longest prefix that fits, and discards the units that are
    too long for the rest, as the loop does one by one. Units of one token need one round.
    """
    L = starts_L.shape[0]
    index_L = jnp.arange(L)
    first_L = jax.lax.cummax(jnp.where(starts_L, index_L, 0))
    nowhere = jnp.uint32(2**32 - 1)
    unit_L = jnp.where(candidates_L, bits_L.at[first_L].get(mode="promise_in_bounds") >> 1, nowhere)
    # Sort the tokens: units in random order, the tokens of a unit adjacent, those that cannot be chosen last.
    unit_L, position_L, starts_L = jax.lax.sort((unit_L, index_L, starts_L), num_keys=2)
    first_L = jax.lax.cummax(jnp.where(starts_L, index_L, 0))
    next_L = jax.lax.cummin(jnp.where(starts_L, index_L, L), reverse=True)
    next_L = jnp.concatenate([next_L[1:], jnp.full(1, L)])
    length_L = next_L - first_L

    def one_round(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        undecided_L, taken_L, left = carry
        fits_L = undecided_L & (length_L <= left)
        total_at_end_L = jnp.cumsum(fits_L) - (index_L - first_L + 1) + length_L
        new_L = fits_L & (total_at_end_L <= left)
        return fits_L & ~new_L, taken_L | new_L, left - new_L.sum()

    undecided_L = unit_L != nowhere
    start = (undecided_L, jnp.zeros_like(undecided_L), n)
    _, taken_L, _ = jax.lax.while_loop(lambda carry: carry[0].any(), one_round, start)
    return jax.lax.sort((position_L, taken_L), num_keys=1)[1]


def mask_with_replacement(rng: Key, batch: Batch, spec: Masking) -> Masked:
    """Choose single positions independently, with replacement, so that some are chosen twice and count twice.

    As google-research/electra draws them (pretrain/pretrain_helpers.py mask): of a rate of 15% it leaves about 14%.
    The same arguments, result and errors as `mask_tokens`; ValueError too for units larger than a token.
    """
    check_draw(rng, batch)
    check_kind("spec", spec, Masking)
    if spec.unit is not tokens:
        raise ValueError("units larger than a token cannot be drawn with replacement: use mask_tokens")
    keys_B, candidates_BL = _keys_and_candidates(rng, batch, spec)

    def mask_row(key: Key, tokens_L: Array, real_L: Array, candidates_L: Array) -> Masked:
        L = tokens_L.shape[0]
        P = spec.slots(L)
        count_bits_P, place_bits_P, kind_bits_P, random_bits_P = jax.random.bits(key, (4, P))
        n = jnp.minimum(spec.count(count_bits_P[0], real_L.sum(), spec.rate, L), P)
        used_P = (jnp.arange(P) < n) & candidates_L.any()
        # The k-th candidate for a uniform k: as many positions as have k candidates or fewer up to them.
        k_P = jnp.floor(unit_interval(place_bits_P) * candidates_L.sum()).astype(jnp.int32)
        positions_P = (jnp.cumsum(candidates_L)[None, :] <= k_P[:, None]).sum(-1)
        positions_P = jnp.sort(jnp.where(used_P, positions_P, L))
        positions_P = jnp.where(used_P, positions_P, 0)
        targets_P = tokens_L.at[positions_P].get(mode="promise_in_bounds")
        kind_P, random_P = unit_interval(kind_bits_P), _random_ids(random_bits_P, spec)
        written_P = jnp.where(
            kind_P < spec.masked, spec.mask_id, jnp.where(kind_P < spec.masked + spec.random, random_P, -1)
        )
        written_L = put(jnp.full_like(tokens_L, -1), positions_P, written_P, used_P)
        return Masked(
            jnp.where(written_L >= 0, written_L, tokens_L), positions_P, targets_P, used_P.astype(jnp.float32)
        )

    return jax.vmap(mask_row)(keys_B, batch["tokens"], batch["mask"] > 0, candidates_BL)


def put(tokens_L: Array, positions_P: Array, values_P: Array, used_P: Array) -> Array:
    """Write values [P] at positions of tokens [L] where `used`; of several at one position the largest.

    Values below 0 are not written. A compare and a maximum, for scatters are slow on TPU and arbitrary for duplicates.
    """
    here_PL = (positions_P[:, None] == jnp.arange(tokens_L.shape[0])[None, :]) & used_P[:, None]
    written_L = jnp.where(here_PL, values_P[:, None], -1).max(0)
    return jnp.where(written_L >= 0, written_L, tokens_L)
