"""Schedules equal the six of version 0.1 at every step, as those computed in float32, and their descriptions load."""

import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.optim.schedules import (
    BertLinear,
    ElectraLinear,
    Power,
    Restarting,
    Schedule,
    cosine,
    linear,
    one_minus_sqrt,
)
from bertjax.serialization.description import from_json, to_json

PEAK, END, START, WARMUP, TOTAL, DECAY = 6e-4, 2e-5, 1.5e-4, 13, 140, 80
STEPS = np.arange(TOTAL, dtype=np.int32)


def warmed_up(rates, warmup=WARMUP, start=0.0):
    rising = np.float32(start) + np.float32(PEAK - start) * STEPS.astype(np.float32) / np.float32(max(1, warmup))
    return np.where(warmup > STEPS, rising, rates)


def share(numerator, length):
    return np.clip(numerator.astype(np.float32) / np.float32(max(1, length)), 0, 1)


def polynomial(warmup=WARMUP, power=1.0, end=0.0):
    left = share(TOTAL - STEPS, TOTAL - warmup)
    return warmed_up(np.float32(PEAK - end) * left ** np.float32(power) + np.float32(end), warmup)


def stable(decay, fall, end=0.0):
    progress = share(STEPS - (TOTAL - decay), decay)
    return warmed_up(np.float32(PEAK - end) * fall(progress) + np.float32(end))


def half_cosine(bottom, end):
    progress = share(STEPS - WARMUP, bottom - WARMUP)
    return warmed_up(np.float32(end) + np.float32(PEAK - end) * (1 + np.cos(np.float32(np.pi) * progress)) / 2)


def bert_line():
    return np.float32(PEAK) * np.maximum(0, 1 - STEPS.astype(np.float32) / np.float32(TOTAL))


def electra_rise(warmup):
    return np.where(warmup > STEPS, STEPS.astype(np.float32) / np.float32(max(1, warmup)), np.float32(1))


def triangle():
    return warmed_up(np.float32(PEAK) * share(TOTAL - STEPS, TOTAL - WARMUP), start=START)


def named(name, **fields):
    """Describe a schedule as version 0.1 did."""
    return {"type": f"bertjax.optim.{name}", "peak": PEAK, "total": TOTAL, **fields}


def fall(name):
    return {"function": f"bertjax.optim.{name}"}


LINEAR = Schedule(PEAK, WARMUP, TOTAL)
STABLE = Schedule(PEAK, WARMUP, TOTAL, one_minus_sqrt, DECAY, end=END)
HOLD = Schedule(PEAK, WARMUP, TOTAL, decay=0)
CASES = {
    "linear": (LINEAR, polynomial(), named("Polynomial", warmup=WARMUP, power=1.0, end=0.0)),
    "no warm-up": (
        Schedule(PEAK, 0, TOTAL), polynomial(warmup=0), named("Polynomial", warmup=0, power=1.0, end=0.0),
    ),
    "power": (
        Schedule(PEAK, WARMUP, TOTAL, Power(0.5), end=END), polynomial(power=0.5, end=END),
        named("Polynomial", warmup=WARMUP, power=0.5, end=END),
    ),
    "hold": (HOLD, polynomial(end=PEAK), named("Polynomial", warmup=WARMUP, power=1.0, end=PEAK)),
    "stable": (
        STABLE, stable(DECAY, lambda done: 1 - np.sqrt(done), END),
        named("WarmupStableDecay", warmup=WARMUP, decay=DECAY, fall=fall("one_minus_sqrt"), end=END),
    ),
    "trapezoid": (
        Schedule(PEAK, WARMUP, TOTAL, decay=DECAY), stable(DECAY, lambda done: 1 - done),
        named("WarmupStableDecay", warmup=WARMUP, decay=DECAY, fall=fall("linear"), end=0.0),
    ),
    "stable without decay": (
        HOLD, stable(0, lambda done: 1 - done),
        named("WarmupStableDecay", warmup=WARMUP, decay=0, fall=fall("linear"), end=0.0),
    ),
    "cosine": (
        Schedule(PEAK, WARMUP, TOTAL, cosine, tail=TOTAL - 110, end=END), half_cosine(110, END),
        named("Cosine", warmup=WARMUP, bottom=110, end=END),
    ),
    "triangle": (
        Schedule(PEAK, WARMUP, TOTAL, start=START), triangle(), named("Triangle", start=START, rise=WARMUP),
    ),
    "BERT": (
        BertLinear(PEAK, WARMUP, TOTAL), warmed_up(bert_line()), named("BertLinear", warmup=WARMUP),
    ),
    "BERT without warm-up": (BertLinear(PEAK, 0, TOTAL), bert_line(), named("BertLinear", warmup=0)),
    "ELECTRA": (
        ElectraLinear(PEAK, WARMUP, TOTAL), bert_line() * electra_rise(WARMUP),
        named("ElectraLinear", warmup=WARMUP),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rates_are_those_of_version_0_1_at_every_step(name):
    schedule, expected, _ = CASES[name]
    # XLA divides by a constant by multiplying: 1 in 2^23, of the peak where a difference from 1 is taken.
    np.testing.assert_allclose(schedule(jnp.asarray(STEPS)), expected, rtol=3e-7, atol=2e-7 * PEAK)


@pytest.mark.parametrize("name", CASES)
def test_a_description_of_version_0_1_becomes_the_schedule(name):
    schedule, _, former = CASES[name]
    assert from_json(former) == schedule == from_json(to_json(schedule))


def test_restarting_runs_each_schedule_from_its_own_start():
    schedule = Restarting((BertLinear(1.0, 10, 100), BertLinear(0.5, 4, 20)))
    rates = [float(schedule(jnp.int32(step))) for step in (0, 50, 99, 100, 102, 110)]
    np.testing.assert_allclose(rates, [0, 0.5, 0.01, 0, 0.25, 0.25], atol=1e-6)
    former = {"type": "bertjax.optim.Restarting", "schedules": [CASES["linear"][2], CASES["BERT"][2]]}
    assert from_json(former) == Restarting((LINEAR, CASES["BERT"][0])) and schedule.total == 120


@pytest.mark.parametrize("shape", [linear, cosine, one_minus_sqrt, Power(2.0)])
def test_every_shape_falls_from_the_peak_to_the_end(shape):
    schedule = Schedule(1.0, 10, 120, shape, decay=80, tail=20, start=0.5, end=0.1)
    rates = [float(schedule(jnp.int32(step))) for step in (0, 5, 10, 19, 20, 100, 110, 120)]
    np.testing.assert_allclose(rates, [0.5, 0.75, 1, 1, 1, 0.1, 0.1, 0.1], atol=1e-6)
    falling = np.asarray(schedule(jnp.arange(20, 101)))
    assert (np.diff(falling) < 0).all()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda: BertLinear(1.0, 11, 10), "10 steps cannot spend 11 on warm-up"),
        (lambda: ElectraLinear(1.0, 11, 10), "spend 11 on warm-up"),
        (lambda: Schedule(1.0, 6, 10, decay=5), "10 steps cannot spend 11"),
        (lambda: Schedule(1.0, 6, 10, decay=2, tail=3), "spend 11"),
        (lambda: Schedule(1.0, 6, 10, decay=-1), "0 steps or more, not -1"),
        (lambda: Schedule(1.0, -1, 10), "0 steps or more, not -1"),
    ],
)
def test_a_schedule_whose_parts_do_not_fit_is_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        schedule()
