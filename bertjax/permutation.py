"""Choose targets and a permutation for permutation LM: pure functions of (key, batch, recipe), with no parameters.

A recipe is a `Permutation`. No token is replaced: a rank for each token decides which others it sees. The number of
targets P is fixed by the recipe, so shapes are static; unused slots have weight 0.

Source: zihangdai/xlnet data_utils.py _sample_mask and _local_perm.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.fields import check_fields, check_kind
from bertjax.inputs import check_draw
from bertjax.random import row_keys, stream, unit_interval
from bertjax.types import Array, Batch, Key


@dataclass(frozen=True)
class Permutation:
    """A recipe of permutation LM: the targets of a window of XLNet, and the order of attention.

    A window has parts; a part attends to those before it, never those after, and its targets are chosen and permuted
    within it. Targets are runs of 1 .. `longest` pieces, of n with p(n) ∝ 1/n, from the beginning of a word, each in
    `context` · n other tokens; single tokens make up the rest. Raises ValueError where the fields contradict each
    other.

    Attributes:
        functional: ids that are never predicted and attend to themselves: <sep>, <cls>
        parts: lengths; the first becomes memory, and is the stride of rows
        targets: of a window, split evenly over its parts
        block: tokens permuted among themselves, in the same way in each block; None: the part
        longest: pieces of the longest run
        context: how many other tokens a run of n pieces stands in, over n
        seed: None: resampled at every step; else static for each example, as published
    """

    functional: tuple[int, ...]
    parts: tuple[int, ...] = (256, 256)
    targets: int = 85
    block: int | None = None
    longest: int = 5
    context: int = 6
    seed: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.parts or min(*self.parts, self.longest, self.context) < 1:
            raise ValueError(f"parts={self.parts}, longest={self.longest}, context={self.context} must be 1 or more")
        for length, goal in zip(self.parts, self.goals, strict=True):
            if not 1 <= goal < length:
                raise ValueError(
                    f"targets={self.targets} are {goal} in a part of {length} tokens: use 1 to {length - 1} a part"
                )
            if self.block is not None and (self.block < 1 or length % self.block):
                raise ValueError(f"block={self.block} does not divide a part of {length} tokens")

    @property
    def window(self) -> int:
        """The length of a window."""
        return sum(self.parts)

    @property
    def goals(self) -> tuple[int, ...]:
        """The number of targets of each part."""
        share, rest = divmod(self.targets, len(self.parts))
        return tuple(share + (part < rest) for part in range(len(self.parts)))


class Permuted(NamedTuple):
    """The attention order of a window, and the targets in it.

    ranks_BL: i32; the state of a token may depend on tokens of its rank and below, its prediction on tokens below.
    positions_BP, targets_BP, weights_BP: as in Masked; P is the number of targets.
    """

    ranks_BL: Array
    positions_BP: Array
    targets_BP: Array
    weights_BP: Array


def permute(rng: Key, batch: Batch, spec: Permutation) -> Permuted:
    """Choose the targets of every row, a window each, and a random order in which they attend to each other.

    zihangdai/xlnet data_utils.py _sample_mask and _local_perm, as one rank for each token instead of a matrix: tokens
    that are neither targets nor functional attend to all such tokens of their part and to no others there; a target
    attends to these and to the targets and functional tokens before it in the order; all attend to the parts before.
    Reads tokens, mask, word_starts; where given, `example` and `backward`: 1 where a row holds its text backwards. A
    functional token that a run covers is no target, nor is a token that attends to nothing, so that a row may have
    fewer targets than slots. Where we deviate: rows with padding, which the original never has, get targets in
    proportion. Raises ValueError where rows are not as long as the window, or lack word_starts.
    """
    check_draw(rng, batch)
    check_kind("spec", spec, Permutation)
    tokens_BL, L = batch["tokens"], batch["tokens"].shape[1]
    if spec.window != L:
        raise ValueError(f"rows of {L} tokens are no windows of parts {spec.parts}: let these add up to the row")
    if "word_starts" not in batch:
        raise ValueError("targets begin where words do: that needs `word_starts` in the batch")
    # Fold in both: derived from `rng` itself, the key of the targets of example 1 would equal that of the orders.
    span_key, order_key = jax.random.fold_in(rng, 0), jax.random.fold_in(rng, 1)
    span_keys_B = row_keys(span_key if spec.seed is None else stream(spec.seed, "static targets"), batch)
    order_keys_B = row_keys(order_key, batch)
    functional_BL = jnp.zeros(tokens_BL.shape, bool)
    for index in spec.functional:
        functional_BL |= tokens_BL == index
    backward_B = batch.get("backward", jnp.zeros(tokens_BL.shape[0], jnp.int32)) > 0

    def permute_row(
        span_key: Key, order_key: Key, tokens_L: Array, mask_L: Array, starts_L: Array, functional_L: Array, back: Array
    ) -> Permuted:
        begin, ranks, chosen, real_L = 0, [], [], mask_L > 0
        for part, (length, goal) in enumerate(zip(spec.parts, spec.goals, strict=True)):
            real, starts = real_L[begin : begin + length], starts_L[begin : begin + length]
            real, starts = (jnp.where(back, x[::-1], x) for x in (real, starts))
            chosen_L = _runs(jax.random.fold_in(span_key, part), real, starts & real, goal, spec)
            chosen.append(jnp.where(back, chosen_L[::-1], chosen_L))
            block = spec.block or length
            offset = jnp.argsort(jnp.argsort(jax.random.bits(jax.random.fold_in(order_key, part), (block,))))
            within = (jnp.arange(length // block)[:, None] * block + offset[None]).reshape(length)
            # No functional token, at most at the end of its part, has the rank of the next part.
            ranks.append(2 * begin + within)
            begin += length
        chosen_L = jnp.concatenate(chosen) & ~functional_L
        first_L = jnp.concatenate([jnp.full(n, 2 * sum(spec.parts[:part])) for part, n in enumerate(spec.parts)])
        ranks_L = jnp.where(chosen_L | functional_L, jnp.concatenate(ranks), first_L - 1).astype(jnp.int32)
        positions_P = jnp.sort(jnp.where(chosen_L, jnp.arange(L), L))[: spec.targets]
        ranks_P, mask_P = (x.at[positions_P].get(mode="clip") for x in (ranks_L, mask_L))
        # With no visible key the softmax would be uniform, over the token itself too; only in very short documents.
        sees_P = ((ranks_L[None] < ranks_P[:, None]) & (mask_L[None] == mask_P[:, None])).any(-1)
        positions_P = jnp.sort(jnp.where(sees_P, positions_P, L))
        used_P = positions_P < L
        positions_P = jnp.where(used_P, positions_P, 0)
        targets_P = tokens_L.at[positions_P].get(mode="promise_in_bounds")
        return Permuted(ranks_L, positions_P, targets_P, used_P.astype(jnp.float32))

    return jax.vmap(permute_row)(
        span_keys_B, order_keys_B, tokens_BL, batch["mask"], batch["word_starts"] > 0, functional_BL, backward_B
    )


def _runs(key: Key, real_L: Array, starts_L: Array, goal: int, spec: Permutation) -> Array:
    """Choose the targets of one part, in reading order: chosen_L."""
    L = real_L.shape[0]
    index_L = jnp.arange(L)
    wanted = -(-goal * real_L.sum() // L)
    run_key, fill_key = jax.random.split(key)
    weights = 1 / np.arange(1, spec.longest + 1)
    upto = jnp.asarray(np.cumsum(weights / weights.sum())[:-1], jnp.float32)
    next_start_L = jax.lax.cummin(jnp.where(starts_L, index_L, L), reverse=True)
    next_start_L = jnp.append(next_start_L, L)

    def run(carry: tuple[Array, Array], bits: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        at, count = carry
        n = jnp.minimum(1 + (unit_interval(bits[0]) >= upto).sum(), wanted - count)
        context = spec.context * n
        before = jnp.floor(unit_interval(bits[1]) * context).astype(jnp.int32)
        begin = next_start_L[jnp.minimum(at + before, L)]
        end = begin + n
        fits = (n > 0) & (end < L)
        # A run that does not fit ends the search, as in the original: `at` is then L, where no run fits.
        at, count = jnp.where(fits, end + context - before, L), count + jnp.where(fits, n, 0)
        return (at, count), (begin, jnp.where(fits, end, begin))

    most = -(-L // (1 + spec.context))
    carry = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    _, (begin_T, end_T) = jax.lax.scan(run, carry, jax.random.bits(run_key, (most, 2)))
    chosen_L = ((index_L[None] >= begin_T[:, None]) & (index_L[None] < end_T[:, None])).any(0) & real_L
    free_L = real_L & ~chosen_L
    order_L = jnp.where(free_L, jax.random.bits(fill_key, (L,)) >> 1, jnp.uint32(2**32 - 1))
    return chosen_L | (free_L & (jnp.argsort(jnp.argsort(order_L)) < wanted - chosen_L.sum()))
