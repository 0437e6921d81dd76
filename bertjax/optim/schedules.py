"""Learning-rate schedules: functions of the step, described by small dataclasses.

`Schedule` covers warm-up, hold and decay along a `Shape`; `BertLinear` and `ElectraLinear` are two published
combinations of warm-up and linear decay that it cannot express.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from bertjax.types import Array

Shape = Callable[[Array, Array], Array]
"""The shape of a decay: (done, left) -> the fraction of `peak` - `end` that remains.

done, left: fractions of the decay's steps. They sum to 1; both are given so that neither is rounded twice.
"""


def linear(done: Array, left: Array) -> Array:
    """Decay linearly."""
    return left


def cosine(done: Array, left: Array) -> Array:
    """Decay along half a period of a cosine."""
    return (1 + jnp.cos(jnp.pi * done)) / 2


def one_minus_sqrt(done: Array, left: Array) -> Array:
    """Decay as 1 − √done, steeply at first (Hägele et al. 2024): ModernBERT's last stage."""
    return 1 - jnp.sqrt(done)


@dataclass(frozen=True)
class Power:
    """Decay as left^exponent: polynomial decay, 0.5 in NVIDIA's recipes."""

    exponent: float

    def __call__(self, done: Array, left: Array) -> Array:
        return left**self.exponent


@dataclass(frozen=True)
class Schedule:
    """Warm up from `start` to `peak`, hold `peak`, decay to `end` along `shape`, and stay there for the tail.

        steps   0 ──warm-up── warmup ──hold── total - tail - decay ──decay── total - tail ──tail── total
        rate    start         peak            peak                           end                   end

    decay, tail: counted in steps; decay=None decays from the end of warm-up on, decay=0 holds the peak.
    Raises ValueError for lengths that are negative or sum to more than `total`.
    """

    peak: float
    warmup: int
    total: int
    shape: Shape = linear
    decay: int | None = None
    tail: int = 0
    start: float = 0.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _check(self.total, self.warmup, self.decay or 0, self.tail)

    def __call__(self, step: Array) -> Array:
        decay = self.total - self.tail - self.warmup if self.decay is None else self.decay
        first, length = self.total - self.tail - decay, max(1, decay)
        done = jnp.clip((step - first) / length, 0, 1)
        left = jnp.clip((first + length - step) / length, 0, 1)
        rate = (self.peak - self.end) * self.shape(done, left) + self.end
        return _warmed_up(step, self.warmup, rate, self.peak, self.start)


@dataclass(frozen=True)
class BertLinear:
    """Warm up, then decay along the line from `peak` at step 0 to 0 at `total`.

    As in BERT (optimization.py): warm-up replaces the line, so the rate drops a little where warm-up ends.
    """

    peak: float
    warmup: int
    total: int

    def __post_init__(self) -> None:
        _check(self.total, self.warmup)

    def __call__(self, step: Array) -> Array:
        return _warmed_up(step, self.warmup, _line(step, self.peak, self.total), self.peak)


@dataclass(frozen=True)
class ElectraLinear:
    """Multiply warm-up by the linear decay from `peak` at step 0 to 0 at `total`.

    google-research/electra model/optimization.py.
    """

    peak: float
    warmup: int
    total: int

    def __post_init__(self) -> None:
        _check(self.total, self.warmup)

    def __call__(self, step: Array) -> Array:
        return _line(step, self.peak, self.total) * _warmed_up(step, self.warmup, 1.0, 1.0)


def _warmed_up(step: Array, warmup: int, rate: Array | float, peak: float, start: float = 0.0) -> Array:
    """Return `rate`, and during warm-up the line from `start` to `peak`."""
    return jnp.where(step < warmup, start + (peak - start) * step / max(1, warmup), rate)


def _line(step: Array, peak: float, total: int) -> Array:
    return peak * jnp.maximum(0.0, 1 - step / total)


def _check(total: int, *parts: int) -> None:
    if min(parts) < 0:
        raise ValueError(f"warm-up, decay and tail of a schedule must be 0 steps or more, not {min(parts)}")
    if sum(parts) > total:
        raise ValueError(
            f"a schedule of {total} steps cannot spend {sum(parts)} on warm-up, decay and tail: shorten them, or raise "
            "its `total`"
        )


@dataclass(frozen=True)
class Restarting:
    """Run one schedule after another, each from its own step 0: two-phase training with a warm-up for each phase.

    schedules: each runs for its `total` steps.
    """

    schedules: tuple[Schedule | BertLinear | ElectraLinear, ...]

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


def lengthened(schedule: "LearningRate", steps: int) -> "LearningRate":
    """Return a schedule that ends `steps` steps later; of several in a row the last one. Its warm-up and tail stay.

    Raises ValueError for a schedule of the user's own without a field `total`.
    """
    if isinstance(schedule, Restarting):
        *before, last = schedule.schedules
        return Restarting((*before, dataclasses.replace(last, total=last.total + steps)))
    if "total" not in (field.name for field in dataclasses.fields(schedule)):
        raise ValueError(
            f"{type(schedule).__name__} has no field `total`, so a run cannot be made longer by it: add it"
        )
    return dataclasses.replace(schedule, total=schedule.total + steps)


LearningRate = Schedule | BertLinear | ElectraLinear | Restarting
"""A learning-rate schedule: a function of the step, with its number of steps as `total`."""
