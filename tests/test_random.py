from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.random import hash_bits, row_keys, stream, unit_interval

KEY = jax.random.fold_in(jax.random.key(0), 0)
N = 2**20
SIGMA = N**-0.5  # of the mean of N values of variance 1
bits = jax.jit(hash_bits, static_argnums=1)


def pairs_of(draws):
    """Join neighbours on the last axis into one number each."""
    draws = np.asarray(draws).astype(np.uint64)
    return (draws[..., :-1] << np.uint64(32) | draws[..., 1:]).reshape(-1)


def test_hash_bits_are_fair_and_pairwise_independent_bit_by_bit():
    draws = np.asarray(bits(KEY, (8, N // 128))).reshape(-1)
    found = np.float32(1) - 2 * ((draws >> np.arange(32, dtype=np.uint32)[:, None]) & 1).astype(np.float32)
    assert np.abs(found.mean(1)).max() < 4.5 * len(draws) ** -0.5
    assert np.abs(found @ found.T / len(draws) - np.eye(32)).max() < 5.5 * len(draws) ** -0.5


@pytest.mark.parametrize("axis", range(4))
def test_hash_bits_are_uncorrelated_at_every_lag_of_every_axis(axis):
    shape = (16, 16, 64, 64)
    found = 2 * np.asarray(unit_interval(bits(KEY, shape)), np.float64) - 1
    found = np.moveaxis(found, axis, 0) * 3**0.5
    for lag in range(1, shape[axis]):
        pairs = found[lag:] * found[:-lag]
        assert abs(pairs.mean()) < 5 * pairs.size**-0.5, lag


def test_hash_bits_are_uniform():
    counts = np.bincount(np.asarray(bits(KEY, (N,))) >> 22, minlength=1024)
    chi_squared = ((counts - N / 1024) ** 2 / (N / 1024)).sum()
    assert abs(chi_squared - 1023) < 5 * (2 * 1023) ** 0.5


def test_neighbouring_keys_draw_uncorrelated_bits():
    draws = np.asarray(jax.jit(jax.vmap(partial(hash_bits, shape=(N // 16,))))(jax.random.split(KEY, 8)))
    near = jax.random.wrap_key_data(jnp.array([[5, 7], [5, 8], [6, 7], [7, 5]], jnp.uint32))
    draws = np.concatenate([draws, jax.jit(jax.vmap(partial(hash_bits, shape=(N // 16,))))(near)])
    found = draws / 2.0**31 - 1
    correlation = np.corrcoef(found) - np.eye(len(found))
    assert np.abs(correlation).max() < 5 * 4 * SIGMA


def test_hash_bits_are_a_bijection_of_their_data():
    draw = jax.jit(lambda data: hash_bits(KEY, data.shape[:1], data))
    same_place = jax.jit(jax.vmap(lambda data: hash_bits(KEY, (1,), data)[0]))(jnp.arange(N, dtype=jnp.uint32))
    assert len(np.unique(same_place)) == N
    np.testing.assert_array_equal(draw(jnp.zeros(64, jnp.uint32)), bits(KEY, (64,)))


def test_rows_2_to_the_32_elements_apart_draw_other_bits():
    """By slices: the first elements of a row do not depend on how many rows or, on the last axis, elements follow."""
    np.testing.assert_array_equal(bits(KEY, (8, 64))[:3, :16], bits(KEY, (3, 16)))
    first = pairs_of(bits(KEY, (2**18, 2)))
    assert len(np.unique(first)) == 2**18


def test_no_run_of_a_row_recurs_in_another_row():
    rows, length = 2**15, 2**20
    starts, long = pairs_of(bits(KEY, (rows, 2))), pairs_of(bits(KEY, (1, length)))
    assert starts[0] == long[0] and not np.isin(starts[1:], long).any()


def test_unit_interval_is_uniform_over_0_to_below_1():
    ends = unit_interval(jnp.array([0, 2**31, 2**32 - 1], jnp.uint32))
    assert ends.dtype == jnp.float32 and ends[0] == 0 and ends[1] == 0.5 and 0.9999999 < ends[2] < 1


def test_streams_of_other_seeds_or_purposes_have_other_keys_at_every_step():
    purposes = ("init", "train", "trial", "evaluate", "static masks")
    streams = [stream(seed, purpose) for seed in range(20) for purpose in purposes]
    keys = jax.vmap(lambda rng: jax.vmap(partial(jax.random.fold_in, rng))(jnp.arange(100)))(jnp.stack(streams))
    assert len(np.unique(jax.random.key_data(keys).reshape(-1, 2), axis=0)) == len(streams) * 100
    assert (jax.random.key_data(stream(3, "train")) == jax.random.key_data(stream(3, "train"))).all()


def test_the_key_of_a_row_is_named_by_its_example_else_by_its_place():
    batch = {"tokens": jnp.zeros((4, 2), jnp.int32)}
    by_place = jax.random.key_data(row_keys(KEY, batch))
    by_example = jax.random.key_data(row_keys(KEY, batch | {"example": jnp.array([3, 1, 900, 1], jnp.uint32)}))
    np.testing.assert_array_equal(by_example[jnp.array([0, 1, 3])], by_place[jnp.array([3, 1, 1])])
    assert len(np.unique(np.concatenate([by_place, by_example]), axis=0)) == 5
