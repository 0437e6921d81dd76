"""Mask tokens for absorbing-state diffusion: pure functions, with no parameters.

At time t, from 0 (text) to 1 (masks alone), each token is masked with probability `rate(t)`. Whatever the schedule, a
model p of the masked tokens has a bound on the likelihood of a text x of n tokens, the NELBO:

    -log p(x) ≤ ∫ rate'(t) / rate(t) · E[Σ over masked tokens of -log p(token | unmasked)] dt
              = Σ over k = 1 … n of 1/k · E[the same sum, exactly k of n tokens masked]

which is an equality where p is the true posterior. A `Noise` draws one term of the integral (`RandomTime`) or of the
sum (`ExactCount`), and its weight.

Sources: Sahoo et al. 2024 (kuleshov-group/mdlm diffusion.py, noise_schedule.py); Shi et al. 2024 (MD4); Nie et al. 2025
(ML-GSAI/LLaDA GUIDELINES.md, get_log_likelihood.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from bertjax.random import unit_interval
from bertjax.types import Array


class Schedule(Protocol):
    """Protocol for a schedule: the probability that a token is masked at a time, and the weight of that time."""

    def rate(self, t: Array) -> Array:
        """Return the share of tokens that are masked at time t in [0, 1], increasing from 0."""
        ...

    def weight(self, t: Array) -> Array:
        """Return rate'(t) / rate(t)."""
        ...


@dataclass(frozen=True)
class Linear:
    """rate t and weight 1/t: LLaDA; the linear schedule of MD4."""

    def rate(self, t: Array) -> Array:
        """See Schedule.rate."""
        return t

    def weight(self, t: Array) -> Array:
        """See Schedule.weight."""
        return 1 / t


@dataclass(frozen=True)
class LogLinear:
    """rate (1 - eps) t and weight 1/t: MDLM, whose log(1 - rate) it names.

    Its last rate is 1 - eps, so its bound lacks what lies between that and 1: about eps times the loss of the best
    prediction without context, summed over the tokens.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps={self.eps} is not a share in [0, 1)")

    def rate(self, t: Array) -> Array:
        """See Schedule.rate."""
        return (1 - self.eps) * t

    def weight(self, t: Array) -> Array:
        """See Schedule.weight."""
        return 1 / t


@dataclass(frozen=True)
class Cosine:
    """rate sin(πt/2) and weight π/2 · cot(πt/2), of MD4 and MaskGIT: more time where most tokens are masked."""

    def rate(self, t: Array) -> Array:
        """See Schedule.rate."""
        return jnp.sin(jnp.pi / 2 * t)

    def weight(self, t: Array) -> Array:
        """See Schedule.weight."""
        return jnp.pi / 2 / jnp.tan(jnp.pi / 2 * t)


Weigh = Callable[[Schedule, Array], Array]
"""(schedule, t) -> the weight of the loss at time t: `bound` or `uniform`."""


def bound(schedule: Schedule, t: Array) -> Array:
    """Weigh a time by its schedule, so that the loss is the NELBO."""
    return schedule.weight(t)


def uniform(schedule: Schedule, t: Array) -> Array:
    """Weigh all times alike: masked LM at every rate, no bound."""
    return jnp.ones_like(t)


class Noised(NamedTuple):
    """The masked positions of a batch, bool [B, L], and their weights, f32 [B, L], 0 elsewhere."""

    masked_BL: Array
    weights_BL: Array


class Noise(Protocol):
    """Protocol for what draws the masks of a batch."""

    def __call__(self, bits_BL: Array, uniform_BL: Array, candidates_BL: Array, groups_BL: Array) -> Noised:
        """Mask some candidates, those of each group by a draw of its own.

        bits_BL: u32, random. uniform_BL: f32 in [0, 1), the same throughout a group: its time. candidates_BL: bool,
        which tokens may be masked. groups_BL: i32, the group of each token within its row: 0, or its block.
        """
        ...


@dataclass(frozen=True)
class RandomTime:
    """Mask each token with the probability of its group's time, uniform over [lowest, 1).

    lowest: as MDLM and LLaDA; it bounds the weights, and cuts what lies below it off the bound.
    """

    schedule: Linear | LogLinear | Cosine = Linear()
    weigh: Weigh = bound
    lowest: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.lowest < 1:
            raise ValueError(f"lowest={self.lowest} must be in (0, 1): the loss is divided by the time")

    def __call__(self, bits_BL: Array, uniform_BL: Array, candidates_BL: Array, groups_BL: Array) -> Noised:
        """See Noise."""
        time_BL = self.lowest + (1 - self.lowest) * uniform_BL
        masked_BL = candidates_BL & (unit_interval(bits_BL) < self.schedule.rate(time_BL))
        return Noised(masked_BL, jnp.where(masked_BL, self.weigh(self.schedule, time_BL), 0))


@dataclass(frozen=True)
class ExactCount:
    """Mask exactly k of the n candidates of a group, k uniform over 1 … n, with weight n/k: the whole of the bound.

    Its variance is less than that of a random time, by that of the number of masks. LLaDA's and dLLM's likelihood.
    """

    def __call__(self, bits_BL: Array, uniform_BL: Array, candidates_BL: Array, groups_BL: Array) -> Noised:
        """See Noise."""
        return Noised(*jax.vmap(_exactly)(bits_BL, uniform_BL, candidates_BL, groups_BL))


def _exactly(bits_L: Array, uniform_L: Array, candidates_L: Array, groups_L: Array) -> tuple[Array, Array]:
    """Choose in one row: sort by group, and the candidates of a group at random, so that the first k are its masks."""
    L = bits_L.shape[0]
    index_L = jnp.arange(L)
    last = jnp.uint32(2**32 - 1)
    keys_L = jnp.where(candidates_L, bits_L >> 1, last)
    group_L, key_L, place_L, uniform_L = jax.lax.sort((groups_L, keys_L, index_L, uniform_L), num_keys=3)
    begins_L = jnp.concatenate([jnp.ones(1, bool), group_L[1:] != group_L[:-1]])
    first_L = jax.lax.cummax(jnp.where(begins_L, index_L, 0))
    next_L = jax.lax.cummin(jnp.where(begins_L, index_L, L), reverse=True)
    next_L = jnp.concatenate([next_L[1:], jnp.full(1, L)])
    upto = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(key_L != last)])
    n_L = upto.at[next_L].get(mode="promise_in_bounds") - upto.at[first_L].get(mode="promise_in_bounds")
    k_L = jnp.minimum(1 + jnp.floor(uniform_L * n_L).astype(jnp.int32), n_L)
    masked_L = index_L - first_L < k_L  # the candidates come first, and k is at most their number
    weights_L = jnp.where(masked_L, n_L / jnp.maximum(k_L, 1), 0.0).astype(jnp.float32)
    _, masked_L, weights_L = jax.lax.sort((place_L, masked_L, weights_L), num_keys=1)
    return masked_L, weights_L


class Slots(NamedTuple):
    """Some positions of all rows together, of which only the used ones count.

    With an axis G of groups of rows and one of S slots. index_GS: positions within the rows of the group, one after
    another. used_GS: bool. dropped_G: i32, chosen positions for which there was no slot.
    """

    index_GS: Array
    used_GS: Array
    dropped_G: Array


def slots_of(chosen_BL: Array, bits_BL: Array, groups: int, slots: int) -> Slots:
    """Assign slots to the chosen positions of each group of rows; where they are too few, to a random part of them.

    bits_BL: u32, random. slots: for each group. The order of slots is random.
    """
    chosen_GN, bits_GN = chosen_BL.reshape(groups, -1), bits_BL.reshape(groups, -1)
    index_GN = jax.lax.broadcasted_iota(jnp.int32, chosen_GN.shape, 1)
    order_GN = jnp.where(chosen_GN, bits_GN >> 1, jnp.uint32(2**32 - 1))
    _, index_GN = jax.lax.sort((order_GN, index_GN), dimension=1, num_keys=1)
    count_G = chosen_GN.sum(1)
    used_GS = jnp.arange(slots)[None] < count_G[:, None]
    return Slots(index_GN[:, :slots], used_GS, jnp.maximum(count_G - slots, 0))
