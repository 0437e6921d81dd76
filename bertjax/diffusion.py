"""Sample from a masked diffusion model: fill holes step by step, as pure functions under `jit`.

`sample` runs a model, draws a proposal for every hole, and lets a sampler decide which of them to take. Samplers are
frozen dataclasses and differ in that decision alone:

    Ancestral     each hole by its chance at this time: MDLM's ancestral sampler
    FirstHitting  one hole at a time, each as likely (Zheng et al. 2024, arXiv 2409.02908)
    Randomly      an equal number at each step, each hole as likely: LLaDA's random remasking
    Confident     an equal number at each step, the surest ones: MaskGIT, LLaDA's low-confidence remasking
    Remasking     as Ancestral, and some that were filled are masked again: ReMDM-cap (Wang et al. 2025)
    InBlocks      another sampler in one block of holes after the other: LLaDA's semi-autoregressive sampling

Holes that are filled in one step are drawn independently of each other. So a sampler draws from the model's own
distribution where it takes one hole at a step and its choice does not depend on what was drawn; fewer steps, or the
confidence of what was drawn (`sureness_of_draw`), are biased.

[MASK] is never drawn, and what is no hole never changes. The model is not told the time, so its logits are of use
until a hole changes (`WhenChanged`), and FirstHitting needs no times.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from bertjax.noise import Cosine, Linear, LogLinear
from bertjax.random import hash_bits
from bertjax.types import Array, Key

Steps = Array | int

Predict = Callable[[Array], Array]
"""values_BP -> logits_BPV: ids at the holes of each row, mask_id where there is none yet, to logits at the holes."""


class Proposal(NamedTuple):
    """An id for each hole, i32 [B, P], and how sure the model is there, f32 [B, P]."""

    ids_BP: Array
    confidence_BP: Array


class Canvas(NamedTuple):
    """The state of sampling that a sampler sees.

    values_BP: i32, ids at the holes. holes_BP: bool, false in unused places. open_BP: bool, holes without an id.
    """

    values_BP: Array
    holes_BP: Array
    open_BP: Array


# Draws ---------------------------------------------------------------------------------------------------------------

Confidence = Callable[[Array, Array], Array]
"""(log_probabilities_BPV, ids_BP) -> confidence_BP: `sureness`, or `sureness_of_draw`."""


def sureness(log_p_BPV: Array, ids_BP: Array) -> Array:
    """Return the largest log probability: it does not depend on what was drawn."""
    return log_p_BPV.max(-1)


def sureness_of_draw(log_p_BPV: Array, ids_BP: Array) -> Array:
    """Return the log probability of what was drawn: LLaDA's. It prefers likely draws, so it is biased."""
    return jnp.take_along_axis(log_p_BPV, ids_BP[..., None], axis=-1)[..., 0]


@dataclass(frozen=True)
class Draw:
    """Draw ids from logits, as transformers does: temperature, then the `top_k` likeliest, then `top_p` of the rest.

    temperature: 0 for the likeliest id. confidence: of the model's own distribution, before these.
    Raises ValueError for values out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    confidence: Confidence = sureness

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be 0, for the likeliest, or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be 1 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not a share in (0, 1]")

    def __call__(self, rng: Key, logits_BPV: Array) -> Proposal:
        """Return a proposal for each hole."""
        log_p_BPV = jax.nn.log_softmax(logits_BPV.astype(jnp.float32), axis=-1)
        if self.temperature == 0:
            ids_BP = jnp.argmax(log_p_BPV, axis=-1)
        else:
            ids_BP = categorical(rng, self._likely(log_p_BPV / self.temperature))
        return Proposal(ids_BP, self.confidence(log_p_BPV, ids_BP))

    def _likely(self, logits_BPV: Array) -> Array:
        """Set the logits of unlikely ids to -inf."""
        if self.top_k is not None and self.top_k < logits_BPV.shape[-1]:
            least_BP1 = jax.lax.top_k(logits_BPV, self.top_k)[0][..., -1:]
            logits_BPV = jnp.where(logits_BPV < least_BP1, -jnp.inf, logits_BPV)
        if self.top_p < 1:
            falling_BPV = -jnp.sort(-jax.nn.softmax(logits_BPV, axis=-1), axis=-1)
            before_BPV = jnp.cumsum(falling_BPV, axis=-1) - falling_BPV
            least_BP1 = jnp.where(before_BPV < self.top_p, falling_BPV, jnp.inf).min(-1, keepdims=True)
            logits_BPV = jnp.where(jax.nn.softmax(logits_BPV, axis=-1) < least_BP1, -jnp.inf, logits_BPV)
        return logits_BPV


def categorical(rng: Key, logits: Array) -> Array:
    """Draw an index of the last axis: argmax of p / E with E exponential, which is Gumbel-max without its logarithms.

    E comes from 64 random bits, exact near 0, where the argmax falls. With 23 bits, as `jax.random.categorical` has,
    one in 8 million is 0, and any id wins by it, however unlikely; over a large vocabulary that, and the cut tail,
    change the temperature (arXiv 2409.02908).
    """
    p = jnp.exp(logits - logits.max(-1, keepdims=True))
    return jnp.argmax(p / exponential(rng, logits.shape), axis=-1)


def exponential(rng: Key, shape: tuple[int, ...]) -> Array:
    """Draw exponential numbers, f32 and above 0, with a relative precision of float32 down to 2^-65."""
    high_key, low_key = jax.random.split(rng)
    high, low = (hash_bits(key, shape).astype(jnp.float32) for key in (high_key, low_key))
    u = (high + (low + 0.5) * 2.0**-32) * 2.0**-32
    return -jnp.log1p(-jnp.minimum(u, 1 - 2.0**-24))


# Which holes to fill -------------------------------------------------------------------------------------------------


class Sampler(Protocol):
    """Protocol for a sampler: which proposals are taken at a step."""

    def steps_for(self, holes: int) -> int:
        """Return the number of steps for rows with at most this many holes."""
        ...

    def step(self, index: Array, steps: Steps, rng: Key, canvas: Canvas, proposal: Proposal, mask_id: int) -> Array:
        """Return the next values_BP, at step `index` of `steps`; after the last one no hole is open."""
        ...


def highest(score_BP: Array, open_BP: Array, count_B: Array) -> Array:
    """Return the `count_B` open places of each row with the highest scores, the first of equal ones: bool [B, P]."""
    place_BP = jax.lax.broadcasted_iota(jnp.int32, score_BP.shape, 1)
    falling_BP = jnp.where(open_BP, -score_BP.astype(jnp.float32), jnp.inf)
    _, order_BP = jax.lax.sort((falling_BP, place_BP), dimension=1, num_keys=2)
    _, rank_BP = jax.lax.sort((order_BP, place_BP), dimension=1, num_keys=1)
    return open_BP & (rank_BP < count_B[:, None])


Unmask = Callable[[Key, Array, Array], Array]
"""(rng, open_BP, chance) -> bool [B, P], the places to fill where each has this chance: `independently` or `evenly`."""


def independently(rng: Key, open_BP: Array, chance: Array) -> Array:
    """Fill each place by itself, so that the number varies: as published."""
    return open_BP & (jax.random.uniform(rng, open_BP.shape) < chance)


def evenly(rng: Key, open_BP: Array, chance: Array) -> Array:
    """Fill the expected number, rounded at random, each place as likely: one at a step where steps are holes."""
    count_key, order_key = jax.random.split(rng)
    expected_B = open_BP.sum(1) * chance
    count_B = jnp.floor(expected_B + jax.random.uniform(count_key, expected_B.shape) * (1 - 1e-6))
    return highest(jax.random.uniform(order_key, open_BP.shape), open_BP, count_B.astype(jnp.int32))


def _times(index: Array, steps: Steps) -> tuple[Array, Array]:
    """Return the time before and after a step: from 1 to 0."""
    return 1 - index / steps, 1 - (index + 1) / steps


def _check_steps(steps: int | None) -> None:
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps} must be 1 or more, or none for one for each hole")


@dataclass(frozen=True)
class Ancestral:
    """Fill each hole with the chance (rate(t) - rate(s)) / rate(t) of a step from time t to s.

    steps: None for as many as holes. More steps than holes are of use: fewer holes are filled at once, and the model
    need not be asked again where nothing changed.
    """

    steps: int | None = None
    schedule: Linear | LogLinear | Cosine = Linear()  # noqa: RUF009 frozen
    unmask: Unmask = independently

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def steps_for(self, holes: int) -> int:
        """See Sampler.steps_for."""
        return self.steps or holes

    def step(self, index: Array, steps: Steps, rng: Key, canvas: Canvas, proposal: Proposal, mask_id: int) -> Array:
        """See Sampler.step."""
        t, s = _times(index, steps)
        chance = 1 - self.schedule.rate(s) / self.schedule.rate(t)
        taken_BP = self.unmask(rng, canvas.open_BP, chance) | (canvas.open_BP & (index == steps - 1))
        return jnp.where(taken_BP, proposal.ids_BP, canvas.values_BP)


@dataclass(frozen=True)
class Remasking:
    """As Ancestral, but each filled hole is masked again with a chance of at most `sigma`, so that errors are mended.

    The chance to fill a hole is larger for it: as many holes are filled at each time as without. With 1 - rate as the
    paper's alpha: sigma is at most (1 - alpha_s) / alpha_t, and the chance (alpha_s - (1 - sigma) alpha_t) / (1 -
    alpha_t). Once the rate is below about sigma, every hole is filled at each step, so that the bias of filling several
    at once vanishes with more steps only slowly; for samples of the model's distribution sigma has to be small.
    """

    steps: int | None = None
    sigma: float = 0.1
    schedule: Linear | LogLinear | Cosine = Linear()  # noqa: RUF009 frozen

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        if not 0 <= self.sigma <= 1:
            raise ValueError(f"sigma={self.sigma} is not a share in [0, 1]")

    def steps_for(self, holes: int) -> int:
        """See Sampler.steps_for."""
        return self.steps or holes

    def step(self, index: Array, steps: Steps, rng: Key, canvas: Canvas, proposal: Proposal, mask_id: int) -> Array:
        """See Sampler.step."""
        t, s = _times(index, steps)
        rate_t, rate_s = self.schedule.rate(t), self.schedule.rate(s)
        last = index == steps - 1
        sigma = jnp.where(last, 0, jnp.minimum(self.sigma, rate_s / jnp.maximum(1 - rate_t, 1e-9)))
        chance = (rate_t - rate_s + sigma * (1 - rate_t)) / rate_t
        fill_key, mask_key = jax.random.split(rng)
        filled_BP = independently(fill_key, canvas.open_BP, chance) | (canvas.open_BP & last)
        again_BP = independently(mask_key, canvas.holes_BP & ~canvas.open_BP, sigma)
        values_BP = jnp.where(filled_BP, proposal.ids_BP, canvas.values_BP)
        return jnp.where(again_BP, mask_id, values_BP)


@dataclass(frozen=True)
class FirstHitting:
    """Fill one hole of each row at a step: the holes of Ancestral in the limit of many steps, in a step for each."""

    def steps_for(self, holes: int) -> int:
        """See Sampler.steps_for."""
        return holes

    def step(self, index: Array, steps: Steps, rng: Key, canvas: Canvas, proposal: Proposal, mask_id: int) -> Array:
        """See Sampler.step."""
        one_B = jnp.ones(len(canvas.open_BP), jnp.int32)
        taken_BP = highest(jax.random.uniform(rng, canvas.open_BP.shape), canvas.open_BP, one_B)
        return jnp.where(taken_BP, proposal.ids_BP, canvas.values_BP)


def _count(index: Array, steps: Steps, canvas: Canvas, schedule: Linear | LogLinear | Cosine) -> Array:
    """Return how many holes of each row to fill at a step: at least one, and all at the last."""
    left_B = jnp.floor(canvas.holes_BP.sum(1) * schedule.rate(_times(index, steps)[1]) + 1e-3).astype(jnp.int32)
    left_B = jnp.where(index == steps - 1, 0, left_B)
    return jnp.maximum(canvas.open_BP.sum(1) - left_B, 1)


@dataclass(frozen=True)
class Randomly:
    """Fill an equal number of holes at each step, or by another schedule, each hole as likely."""

    steps: int | None = None
    schedule: Linear | LogLinear | Cosine = Linear()  # noqa: RUF009 frozen

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def steps_for(self, holes: int) -> int:
        """See Sampler.steps_for."""
        return self.steps or holes

    def step(self, index: Array, steps: Steps, rng: Key, canvas: Canvas, proposal: Proposal, mask_id: int) -> Array:
        """See Sampler.step."""
        score_BP = jax.random.uniform(rng, canvas.open_BP.shape)
        taken_BP = highest(score_BP, canvas.open_BP, _count(index, steps, canvas, self.schedule))
        return jnp.where(taken_BP, proposal.ids_BP, canvas.values_BP)


@dataclass(frozen=True)
class Confident:
    """Fill an equal number of holes at each step, or by another schedule: those of the highest confidence."""

    steps: int | None = None
    schedule: Linear | LogLinear | Cosine = Linear()  # noqa: RUF009 frozen

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def steps_for(self, holes: int) -> int:
        """See Sampler.steps_for."""
        return self.steps or holes

    def step(self, index: Array, steps: Steps, rng: Key, canvas: Canvas, proposal: Proposal, mask_id: int) -> Array:
        """See Sampler.step."""
        count_B = _count(index, steps, canvas, self.schedule)
        taken_BP = highest(proposal.confidence_BP, canvas.open_BP, count_B)
        return jnp.where(taken_BP, proposal.ids_BP, canvas.values_BP)


@dataclass(frozen=True)
class InBlocks:
    """Fill the holes in blocks of `length` holes, from left to right, each by `inner` and its number of steps."""

    length: int
    inner: Ancestral | Remasking | FirstHitting | Randomly | Confident = Confident()

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"blocks of {self.length} holes: use 1 or more")

    def steps_for(self, holes: int) -> int:
        """See Sampler.steps_for."""
        whole, rest = divmod(holes, self.length)
        return whole * self.inner.steps_for(self.length) + (self.inner.steps_for(rest) if rest else 0)

    def step(self, index: Array, steps: Steps, rng: Key, canvas: Canvas, proposal: Proposal, mask_id: int) -> Array:
        """See Sampler.step."""
        whole, rest = divmod(canvas.holes_BP.shape[1], self.length)
        each, last = self.inner.steps_for(self.length), self.inner.steps_for(rest or self.length)
        block_BP = (jnp.cumsum(canvas.holes_BP, axis=1) - 1) // self.length
        here_BP = block_BP == index // each
        inner = Canvas(canvas.values_BP, canvas.holes_BP & here_BP, canvas.open_BP & here_BP)
        steps = jnp.where(index // each == whole, last, each)
        return self.inner.step(index % each, steps, rng, inner, proposal, mask_id)


# Sampling ------------------------------------------------------------------------------------------------------------


class Ask(Protocol):
    """Protocol for when a model is asked: `EveryStep` or `WhenChanged`."""

    def before(self, predict: Predict, values_BP: Array) -> Any:
        """Return what is kept before the first step."""
        ...

    def __call__(self, predict: Predict, values_BP: Array, kept: Any, changed: Array) -> tuple[Array, Any, Array]:
        """Return the logits of this step, what to keep of them, and whether the model was asked."""
        ...


@dataclass(frozen=True)
class EveryStep:
    """Ask the model at every step."""

    def before(self, predict: Predict, values_BP: Array) -> tuple[()]:
        """See Ask.before."""
        return ()

    def __call__(self, predict: Predict, values_BP: Array, kept: Any, changed: Array) -> tuple[Array, Any, Array]:
        """See Ask."""
        return predict(values_BP), (), jnp.ones_like(changed)


@dataclass(frozen=True)
class WhenChanged:
    """Keep the logits while no hole of any row has changed: MDLM's ddpm_cache. For many more steps than holes."""

    def before(self, predict: Predict, values_BP: Array) -> Array:
        """See Ask.before."""
        shape = jax.eval_shape(predict, values_BP)
        return jnp.zeros(shape.shape, shape.dtype)

    def __call__(self, predict: Predict, values_BP: Array, kept: Any, changed: Array) -> tuple[Array, Any, Array]:
        """See Ask."""
        logits_BPV: Array = jax.lax.cond(changed, predict, lambda _: kept, values_BP)
        return logits_BPV, logits_BPV, changed


class Sampled(NamedTuple):
    """The ids at the holes, those after each step, i32 [steps, B, P], and how often the model was asked."""

    values_BP: Array
    states_TBP: Array
    asked: Array


def sample(
    predict: Predict,
    holes_BP: Array,
    rng: Key,
    *,
    mask_id: int,
    sampler: Sampler,
    draw: Draw,
    ask: Ask,
) -> Sampled:
    """Fill the holes of rows of text by a model, [MASK] excluded. Everything but `holes_BP` and `rng` is static.

    predict: puts the values where the holes are, and returns logits there. holes_BP: bool, the places in use; P is the
    number of holes of the row with most of them.
    """
    steps = sampler.steps_for(holes_BP.shape[1])
    values_BP = jnp.full(holes_BP.shape, mask_id, jnp.int32)

    def one(carry: tuple[Array, Any, Array, Array], index: Array) -> tuple[tuple[Array, Any, Array, Array], Array]:
        values_BP, kept, changed, asked = carry
        logits_BPV, kept, now = ask(predict, values_BP, kept, changed)
        is_mask_V = jnp.arange(logits_BPV.shape[-1]) == mask_id
        logits_BPV = jnp.where(jax.lax.broadcast_to_rank(is_mask_V, 3), -jnp.inf, logits_BPV)
        draw_key, step_key = jax.random.split(jax.random.fold_in(rng, index))
        canvas = Canvas(values_BP, holes_BP, holes_BP & (values_BP == mask_id))
        after_BP = sampler.step(index, steps, step_key, canvas, draw(draw_key, logits_BPV), mask_id)
        after_BP = jnp.where(holes_BP, after_BP, mask_id)
        return (after_BP, kept, (after_BP != values_BP).any(), asked + now), after_BP

    begin = (values_BP, ask.before(predict, values_BP), jnp.bool_(True), jnp.int32(0))
    (values_BP, _, _, asked), states_TBP = jax.lax.scan(one, begin, jnp.arange(steps))
    return Sampled(values_BP, states_TBP, asked)


def guided(predict: Predict, unconditional: Predict, scale: float) -> Predict:
    """Guide a model away from what it predicts without the prompt: logits u + (1 + scale) (c - u), as LLaDA.

    unconditional: the same model, with the prompt masked too.
    """

    def both(values_BP: Array) -> Array:
        conditional_BPV, unconditional_BPV = predict(values_BP), unconditional(values_BP)
        return unconditional_BPV + (1 + scale) * (conditional_BPV - unconditional_BPV)

    return both
