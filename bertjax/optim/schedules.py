"""Learning-rate schedules: functions of the step, described by small dataclasses."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from bertjax.types import Array


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
