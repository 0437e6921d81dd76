"""Masks of diffusion: how many, which, at which times, and their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import make_batch

from bertjax.noise import Cosine, ExactCount, Linear, LogLinear, RandomTime, bound, slots_of, uniform
from bertjax.random import antithetic, with_global_rows

KEY = jax.random.key(0)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 50, 99, 4096])
def test_pairs_of_rows_have_times_that_add_up_to_one_and_each_stratum_has_two(size):
    time_B = np.asarray(antithetic(KEY, {"tokens": jnp.zeros((size, 1), jnp.int32)}))
    assert ((time_B >= 0) & (time_B < 1)).all()
    np.testing.assert_allclose(time_B[0 : size - 1 : 2] + time_B[1::2], 1, atol=1e-6)
    strata = (size + 1) // 2
    shift = time_B[0]
    place = np.sort(np.round((time_B[::2] - shift) % 1 * strata) % strata)
    np.testing.assert_array_equal(place, np.arange(strata))


def test_the_rows_of_a_replica_and_of_a_micro_batch_are_spread_as_the_batch_is():
    time_B = np.asarray(antithetic(KEY, {"tokens": jnp.zeros((512, 1), jnp.int32)}))
    for parts in (2, 4, 8):
        micro = time_B.reshape(-1, parts)  # every parts-th row
        assert (abs(micro.mean(0) - 0.5) < 0.02).all()
        replicas = time_B.reshape(parts, -1)  # runs of rows
        assert (abs(replicas.mean(1) - 0.5) < 1e-3).all()
        assert (abs(np.sort(replicas, axis=1) - np.linspace(0, 1, 512 // parts)[None]) < 0.1).all()


def test_times_are_those_of_the_step_in_every_micro_batch_and_change_with_its_key():
    batch = make_batch(rows=6)
    whole = np.asarray(antithetic(KEY, batch))
    part = {name: array[1::2] for name, array in with_global_rows(KEY, batch).items()}
    np.testing.assert_array_equal(antithetic(jax.random.key(9), part), whole[1::2])
    assert (antithetic(jax.random.key(9), batch) != whole).all()


@pytest.mark.parametrize("schedule", [Linear(), LogLinear(), Cosine()], ids=lambda s: type(s).__name__)
def test_the_weight_is_the_derivative_of_the_logarithm_of_the_rate(schedule):
    t = jnp.linspace(0.01, 0.99, 50)
    slope = jax.vmap(jax.grad(schedule.rate))(t)
    np.testing.assert_allclose(schedule.weight(t), slope / schedule.rate(t), rtol=1e-5)
    assert abs(schedule.rate(jnp.float32(0))) < 1e-6 and abs(schedule.rate(jnp.float32(1)) - 1) < 2e-3
    np.testing.assert_array_equal(bound(schedule, t), schedule.weight(t))
    if not isinstance(schedule, Cosine):
        np.testing.assert_array_equal(schedule.weight(t), 1 / t)


def drawn(noise, time, candidates=None, groups=None, rows=4000, L=8):
    bits_BL = jax.random.bits(KEY, (rows, L))
    time_BL = jnp.broadcast_to(jnp.float32(time), (rows, L))
    candidates_BL = jnp.ones((rows, L), bool) if candidates is None else jnp.tile(jnp.asarray(candidates), (rows, 1))
    groups_BL = jnp.zeros((rows, L), jnp.int32) if groups is None else jnp.tile(jnp.asarray(groups), (rows, 1))
    return [np.asarray(x) for x in jax.jit(noise)(bits_BL, time_BL, candidates_BL, groups_BL)]


def test_a_random_time_masks_candidates_at_its_rate():
    candidates = [True] * 6 + [False] * 2
    masked, weights = drawn(RandomTime(LogLinear()), 0.4, candidates)
    t = 1e-3 + 0.999 * 0.4
    assert not masked[:, 6:].any() and abs(masked[:, :6].mean() - 0.999 * t) < 0.01
    np.testing.assert_allclose(weights, masked / t, rtol=1e-6)
    weights = drawn(RandomTime(LogLinear(), uniform), 0.4, candidates)[1]
    np.testing.assert_array_equal(weights, masked.astype(np.float32))


def test_an_exact_count_masks_k_of_n_each_subset_as_often_and_weighs_them_n_over_k():
    candidates = [True, False, True, True, True, False, True, False]
    for time, k in ((0.0, 1), (0.5, 3), (0.59, 3), (0.999, 5)):
        masked, weights = drawn(ExactCount(), time, candidates)
        assert (masked.sum(1) == k).all() and not masked[:, ~np.array(candidates)].any()
        np.testing.assert_allclose(weights, masked * 5 / k, rtol=1e-6)
        assert (abs(masked[:, candidates].mean(0) - k / 5) < 0.03).all()
    # In blocks each has its own number of candidates; one has none.
    masked, weights = drawn(ExactCount(), 0.5, [True] * 4 + [False, False] + [True] * 2, [0, 0, 0, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(masked[:, :3].sum(1), 2)
    np.testing.assert_array_equal(masked[:, 3], True)
    np.testing.assert_array_equal(masked[:, 4:6], False)
    np.testing.assert_array_equal(masked[:, 6:].sum(1), 2)
    np.testing.assert_allclose(weights[:, :3].sum(1), 3)


def test_slots_go_to_the_chosen_positions_of_a_group_and_what_is_left_over_is_counted():
    chosen_BL = jax.random.uniform(KEY, (6, 10)) < 0.4
    bits_BL = jax.random.bits(KEY, (6, 10))
    slots = slots_of(chosen_BL, bits_BL, 2, 20)
    for group, index, used, dropped in zip(np.asarray(chosen_BL).reshape(2, 30), *map(np.asarray, slots), strict=True):
        assert sorted(index[used]) == list(np.flatnonzero(group)) and dropped == 0
        assert not group[index[~used]].any()
    few = slots_of(chosen_BL, bits_BL, 1, 5)
    assert few.used_GS.all() and int(few.dropped_G[0]) == int(chosen_BL.sum()) - 5
    assert np.asarray(chosen_BL).reshape(-1)[np.asarray(few.index_GS[0])].all()
