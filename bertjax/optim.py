"""Build optax transforms from small dataclasses: the published optimisers are compositions of a few parts.

    clip global norm → moments → + weight decay · w → trust ratio per tensor → × learning rate

AdamW takes optax's moments, BERT's Adam uncorrected ones, StableAdamW clips each tensor's, LAMB adds the trust ratio.
What is decayed, scaled or adapted is said by `Rules` on parameter names.

Weight decay is multiplied by the learning rate. Fully decoupled decay, as Composer and optimi have it, shrinks weights
by decay · rate / peak a step: that is `weight_decay = decay / peak` here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bertjax.rules import Rules, match, matcher
from bertjax.types import Array

NOT_NORM_NOR_BIAS: Rules = ((r"(^|/)(scale|bias)$", False), (r".*", True))
"""True for kernels and tables: BERT's set of decayed parameters, and what LAMB adapts."""

EVERYTHING: Rules = ((r".*", True),)

STACKED: Rules = ((r"(^|/)layers/", True), (r".*", False))
"""True for parameters with a leading axis of layers: each slice of it is a tensor of its own."""


@dataclass(frozen=True)
class BertLinear:
    """Warm up, then follow the line that falls from `peak` at step 0 to 0 at `total`.

    As BERT computes it (optimization.py): warm-up replaces the line, so the rate jumps down a little where it ends.
    """

    peak: float
    warmup: int
    total: int

    def __post_init__(self) -> None:
        _check(self.warmup, self.total)

    def __call__(self, step: Array) -> Array:
        line = self.peak * jnp.maximum(0.0, 1 - step / self.total)
        return jnp.where(step < self.warmup, self.peak * step / max(1, self.warmup), line)


@dataclass(frozen=True)
class ElectraLinear:
    """Multiply warm-up and the falling line (google-research/electra, model/optimization.py)."""

    peak: float
    warmup: int
    total: int

    def __post_init__(self) -> None:
        _check(self.warmup, self.total)

    def __call__(self, step: Array) -> Array:
        line = self.peak * jnp.maximum(0.0, 1 - step / self.total)
        return line * jnp.where(step < self.warmup, step / max(1, self.warmup), 1.0)


@dataclass(frozen=True)
class Polynomial:
    """Warm up to `peak`, then fall from there to `end` at `total` with the given power (fairseq, LAMB recipes)."""

    peak: float
    warmup: int
    total: int
    power: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup, self.total)

    def __call__(self, step: Array) -> Array:
        left = jnp.clip((self.total - step) / max(1, self.total - self.warmup), 0, 1)
        fall = (self.peak - self.end) * left**self.power + self.end
        return jnp.where(step < self.warmup, self.peak * step / max(1, self.warmup), fall)


def linear(progress: Array) -> Array:
    """Fall from 1 to 0 in a straight line."""
    return 1 - progress


def one_minus_sqrt(progress: Array) -> Array:
    """Fall from 1 to 0 as 1 − √progress, steeply at first (Hägele et al. 2024): ModernBERT's last stage."""
    return 1 - jnp.sqrt(progress)


@dataclass(frozen=True)
class WarmupStableDecay:
    """Warm up, hold `peak`, then fall to `end` over the last `decay` steps: a trapezoid, where `fall` is linear."""

    peak: float
    warmup: int
    total: int
    decay: int
    fall: Callable[[Array], Array] = linear  # of the share of the decay that is over
    end: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup + self.decay, self.total)

    def __call__(self, step: Array) -> Array:
        progress = jnp.clip((step - (self.total - self.decay)) / max(1, self.decay), 0, 1)
        rate = (self.peak - self.end) * self.fall(progress) + self.end
        return jnp.where(step < self.warmup, self.peak * step / max(1, self.warmup), rate)


@dataclass(frozen=True)
class Cosine:
    """Warm up to `peak`, fall along half a cosine to `end` at step `bottom`, and stay there until `total`: NeoBERT."""

    peak: float
    warmup: int
    total: int
    bottom: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup, self.bottom)
        _check(self.bottom, self.total)

    def __call__(self, step: Array) -> Array:
        progress = jnp.clip((step - self.warmup) / max(1, self.bottom - self.warmup), 0, 1)
        rate = self.end + (self.peak - self.end) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.where(step < self.warmup, self.peak * step / max(1, self.warmup), rate)


@dataclass(frozen=True)
class Triangle:
    """Rise in a line from `start` to `peak` over `rise` steps, then fall in a line to 0 at `total`.

    JonasGeiping/cramming backend/optimizers/schedulers.py get_budget_triangle, in steps instead of hours.
    """

    peak: float
    start: float
    rise: int
    total: int

    def __post_init__(self) -> None:
        _check(self.rise, self.total)

    def __call__(self, step: Array) -> Array:
        rising = self.start + (self.peak - self.start) * step / max(1, self.rise)
        left = jnp.clip((self.total - step) / max(1, self.total - self.rise), 0, 1)
        return jnp.where(step < self.rise, rising, self.peak * left)


def _check(warmup: int, total: int) -> None:
    if not 0 <= warmup <= total:
        raise ValueError(f"a schedule of {total} steps cannot spend {warmup} on warm-up and decay: use fewer")


Schedule = BertLinear | ElectraLinear | Polynomial | WarmupStableDecay | Cosine | Triangle


@dataclass(frozen=True)
class Restarting:
    """Run one schedule after another, each from its own step 0: two-phase training with a warm-up for each phase.

    schedules: each runs for its `total` steps.
    """

    schedules: tuple[Schedule, ...]

    @property
    def total(self) -> int:
        """The steps of all schedules."""
        return sum(schedule.total for schedule in self.schedules)

    def __call__(self, step: Array) -> Array:
        start, rate = 0, self.schedules[0](step)
        for before, schedule in zip(self.schedules, self.schedules[1:], strict=False):
            start += before.total
            rate = jnp.where(step < start, rate, schedule(step - start))
        return rate


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Divide the mean gradient by its root mean square without Adam's bias correction, as BERT, ALBERT and ELECTRA.

    google-research/bert optimization.py AdamWeightDecayOptimizer; eps is added outside the root.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=zeros)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=optax.safe_increment(state.count), mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def scale_by_stable_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam, but divide the update of each tensor by the root mean square of g / √v where that is above 1.

    StableAdamW (Wortsman et al. 2023; warner-benjamin/optimi stableadamw.py), which needs no clipping of gradients: it
    holds a tensor back while its gradients outgrow what v remembers. Each slice of stacked layers is a tensor. Where we
    deviate: optimi holds weight decay back as well.
    """
    adam = optax.scale_by_adam(b1, b2, eps)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(gradients, state, params)
        corrected = 1 - b2 ** state.count.astype(jnp.float32)

        def hold_back(update: Array, g: Array, v: Array, stacked: bool) -> Array:
            squares = jnp.square(g) / jnp.maximum(v / corrected, eps**2)
            return update / jnp.maximum(1.0, jnp.sqrt(squares.mean(_axes(g, stacked), keepdims=True)))

        return jax.tree.map(hold_back, updates, gradients, state.nu, match(STACKED, gradients)), state

    return optax.GradientTransformation(adam.init, update)


def _axes(tensor: Array, stacked: bool) -> tuple[int, ...]:
    """Name the axes of one tensor, in a stack of layers all but the first."""
    return tuple(range(1 if stacked else 0, tensor.ndim))


def scale_by_trust_ratio(adapted: Rules) -> optax.GradientTransformation:
    """Scale the update of each tensor by ‖w‖ / ‖u‖, 1 where either is 0 (google-research/albert lamb_optimizer.py).

    The tensors of a stack of layers are told apart: the norms are taken over each slice of the leading axis. Parameters
    whose rule is False keep their update as it is.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scale(update: Array, param: Array, adapt: bool, stacked: bool) -> Array:
            if not adapt:
                return update
            axes = _axes(param, stacked)
            param_norm = jnp.sqrt(jnp.square(param).sum(axes, keepdims=True))
            update_norm = jnp.sqrt(jnp.square(update).sum(axes, keepdims=True))
            ratio = jnp.where((param_norm == 0) | (update_norm == 0), 1.0, param_norm / update_norm)
            return update * ratio

        return jax.tree.map(scale, updates, params, match(adapted, params), match(STACKED, params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@dataclass(frozen=True)
class Optimizer:
    """Compose an optimiser: AdamW as it stands; see `bert_adam` and `lamb` for the other published ones.

    clip: largest global norm of the gradient; 0 turns clipping off. decayed: rules, True where weight decay applies.
    rates: rules that multiply the learning rate; 0 freezes: then neither gradient nor moments are made. A tuple has a
    rate for each slice of stacked layers (depth.py); a slice of rate 0 stays as it is, and its gradient does not count
    in the clipping. adapted: rules, True where LAMB's trust ratio applies.
    """

    learning_rate: Schedule | Restarting
    moments: Callable[[float, float, float], optax.GradientTransformation] = optax.scale_by_adam
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip: float = 1.0
    decayed: Rules = NOT_NORM_NOR_BIAS
    rates: Rules = ((r".*", 1.0),)
    adapted: Rules = ((r".*", False),)

    def __post_init__(self) -> None:
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a share in [0, 1)")
        for name in ("eps", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} is not a number of 0 or more")

    @property
    def trained(self) -> Rules:
        """True for what is trained, False for what is frozen."""
        return tuple((pattern, any(_each(rate))) for pattern, rate in self.rates)

    def transform(self) -> optax.GradientTransformation:
        """Build the optax transform of what is trained (`rules.split`)."""
        whole = all(all(_each(rate)) or not any(_each(rate)) for _, rate in self.rates)
        return optax.chain(
            optax.identity() if whole else scale_by_rules(_ones_and_zeros(self.rates)),
            optax.clip_by_global_norm(self.clip) if self.clip else optax.identity(),
            self.moments(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=matcher(self.decayed)),
            scale_by_trust_ratio(self.adapted),
            scale_by_rules(self.rates),
            optax.scale_by_learning_rate(self.learning_rate),
        )


def _each(rate: float | tuple[float, ...]) -> tuple[float, ...]:
    return rate if isinstance(rate, tuple) else (rate,)


def scale_by_rules(rates: Rules) -> optax.GradientTransformation:
    """Multiply each update by the value of its parameter's rule; a tuple has one for each slice of stacked layers.

    A stack may lack the first layer (ModernBERT's attention norm). Raises ValueError for another number of slices.
    """

    def scale(update: Array, rate: float | tuple[float, ...]) -> Array:
        if not isinstance(rate, tuple):
            return update * rate
        if update.shape[0] not in (len(rate), len(rate) - 1):
            raise ValueError(f"{len(rate)} rates for {update.shape[0]} layers: give one for each")
        each = jnp.array(rate[len(rate) - update.shape[0] :], update.dtype)
        return update * each.reshape(-1, *(1,) * (update.ndim - 1))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(scale, updates, match(rates, updates)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _ones_and_zeros(rates: Rules) -> Rules:
    """Say what is trained by numbers, slice by slice."""
    return tuple(
        (pattern, tuple(float(each != 0) for each in rate) if isinstance(rate, tuple) else 1.0)
        for pattern, rate in rates
    )


bert_adam = partial(Optimizer, moments=scale_by_uncorrected_adam)
"""Adam as BERT, ALBERT and ELECTRA pre-train with it: no bias correction."""

stable_adamw = partial(Optimizer, moments=scale_by_stable_adam, clip=0.0)
"""StableAdamW as ModernBERT pre-trains with it: update clipping for each tensor, none of the gradient."""

lamb = partial(Optimizer, moments=scale_by_uncorrected_adam, adapted=NOT_NORM_NOR_BIAS)
"""LAMB as ALBERT uses it: uncorrected moments, a trust ratio per tensor except norms and biases, no clamp."""
