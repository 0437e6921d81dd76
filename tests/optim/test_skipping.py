import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bertjax.optim.skipping import LARGEST_LOSS, Skips, Spikes, judge, total_loss
from bertjax.run.state import State
from bertjax.train import train_step
from bertjax.types import Mean

START = Skips(np.int32(3), np.int32(2), np.int32(200), np.float32(1.5), np.float32(8.0))


@pytest.mark.parametrize(
    ("loss", "norm", "spikes", "usable"),
    [
        (2.0, 1.0, None, True),
        (math.nan, 1.0, None, False),
        (2.0, math.inf, None, False),
        (-math.inf, 1.0, None, False),
        (8 * LARGEST_LOSS, 1.0, None, True),
        (4e25, 1.0, None, False),
        (-4e25, 1.0, None, False),
        (2.0, 16.0, None, True),
        (2.0, 16.0, Spikes(10, 100), False),
        (2.0, 14.0, Spikes(10, 100), True),
        (2.0, 16.0, Spikes(10, 300), True),  # not yet
    ],
)
def test_which_steps_are_skipped(loss, norm, spikes, usable):
    found, after = judge(START, jnp.float32(loss), jnp.float32(norm), jnp.float32(1), spikes)
    assert bool(found) == usable
    assert (int(after.total), int(after.in_a_row)) == ((3, 0) if usable else (4, 3))
    assert int(after.updates) == 200 + usable and np.isfinite(after.norm)
    if not usable:
        assert after.norm == START.norm and after.first_loss == START.first_loss


def test_the_first_loss_of_an_update_is_the_measure():
    for loss, usable in ((1e12, True), (math.nan, False), (math.inf, False), (-math.inf, False)):
        found, after = judge(Skips(), jnp.float32(loss), jnp.float32(1), jnp.float32(1))
        assert bool(found) == usable and after.first_loss == (loss if usable else 0)
    assert not judge(Skips(first_loss=np.float32(0.001)), jnp.float32(2e3), jnp.float32(1), jnp.float32(1))[0]


def test_the_running_mean_is_that_of_all_norms_until_the_window_is_full():
    skips = Skips()
    for norm in (1.0, 2.0, 6.0):
        _, skips = judge(skips, jnp.float32(1), jnp.float32(norm), jnp.float32(1), Spikes(10, 3))
    assert skips.norm == 3
    _, skips = judge(skips, jnp.float32(1), jnp.float32(9), jnp.float32(1), Spikes(10, 3))
    assert skips.norm == 5


def test_spikes_that_are_turned_on_on_the_way_judge_by_the_mean_of_the_updates_before():
    skips = Skips()
    for norm in (1.0, 1.0, 1.0, 1.0, 1.0, 0.01):  # the last one alone would make a spike of each after it
        _, skips = judge(skips, jnp.float32(1), jnp.float32(norm), jnp.float32(1))
    np.testing.assert_allclose(skips.norm, 5.01 / 6, rtol=1e-6)
    assert judge(skips._replace(updates=np.int32(200)), jnp.float32(1), jnp.float32(1), jnp.float32(1), Spikes(10))[0]


def test_counters_are_kept_exactly_and_those_of_earlier_versions_begin_at_zero():
    skips = START._replace(norm=np.float32(0.1), first_loss=np.float32(1 / 3))
    assert Skips.of(skips.described()) == skips
    assert Skips.of({}) == Skips()


def test_the_loss_is_the_sum_of_its_terms():
    metrics = {"loss/a": Mean(6.0, 2.0), "loss/b": Mean(0.0, 0.0), "accuracy/a": Mean(5.0, 1.0)}
    assert total_loss(metrics) == 3


@pytest.mark.parametrize("text", ["1", "x", "10,0", "10,x", ""])
def test_spikes_out_of_range_are_refused(text):
    with pytest.raises(ValueError):
        Spikes.parse(text)
    assert Spikes.parse("6,50") == Spikes(6.0, 50)


@pytest.mark.parametrize("what", ["gradient", "update"])
@pytest.mark.parametrize("bad", [True, False])
def test_a_bad_batch_leaves_parameters_and_optimiser_as_if_it_were_not_there(bad, what, monkeypatch):
    """Without the protection, tried too, they are lost."""
    if not bad:
        monkeypatch.setattr("bertjax.train.judge", lambda skips, *_: (jnp.bool_(True), skips))

    def loss(params, batch, rng):
        value = jnp.sum(params["w"] * batch["x"])
        return value, {"loss/x": Mean(value, jnp.float32(1))}

    def overflowing(updates, state, params=None):
        return jax.tree.map(lambda x: jnp.where(x == 7, jnp.inf, x), updates), state

    tx = optax.chain(optax.GradientTransformation(lambda params: (), overflowing), optax.adam(0.1))
    step = jax.jit(lambda state, x: train_step(state, {"x": x}, loss=loss, tx=tx, key=jax.random.key(0)))
    params = {"w": jnp.ones(3)}
    first, _ = step(State(jnp.int32(0), params, tx.init(params)), jnp.arange(3.0))
    second, metrics = step(first, jnp.array([1, jnp.nan if what == "gradient" else 7, 1]))
    third, _ = step(second, jnp.arange(3.0))
    alone, _ = step(first, jnp.arange(3.0))
    assert int(second.step) == 2
    same = jax.tree.map(lambda a, b: bool((a == b).all()), (first.params, first.opt), (second.params, second.opt))
    assert all(jax.tree.leaves(same)) == bad
    same = jax.tree.map(lambda a, b: bool((a == b).all()), (third.params, third.opt), (alone.params, alone.opt))
    assert all(jax.tree.leaves(same)) == bad
    if bad:
        assert (second.skips.total, second.skips.in_a_row, third.skips.in_a_row) == (1, 1, 0)
        assert metrics["norm/update"].sum == 0 if what == "gradient" else not jnp.isfinite(metrics["norm/update"].sum)
