import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bertjax.models import layers
from bertjax.models.layers import Dense, Dropout, Norm, Normal, Table, TruncatedNormal
from bertjax.sharding.mesh import DATA_PARALLEL, by_row

KEY = jax.random.key(0)
document_numbers = arrays(np.int32, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=st.integers(0, 3))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Attention


def slow_attention(q, k, v, visible, keep):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    B, L, H, K = q.shape
    out = np.zeros((B, L, H, K))
    for b, i, h in np.ndindex(B, L, H):
        seen = np.flatnonzero(visible[b, i])
        scores = np.array([q[b, i, h] @ k[b, j, h] / math.sqrt(K) for j in seen])
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        out[b, i, h] = sum(share * v[b, j, h] * keep[b, h, i, j] for share, j in zip(shares, seen, strict=True))
    return out


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_attention_equals_a_loop_in_float64(scale):
    q, k, v = normal(0, 2, 5, 3, 4) * scale, normal(1, 2, 7, 3, 4), normal(2, 2, 7, 3, 4)
    visible = np.random.default_rng(3).random((2, 5, 7)) < 0.5
    visible[..., 0] = True
    keep = np.random.default_rng(4).integers(0, 3, (2, 3, 5, 7)).astype(np.float32)
    ours = jax.jit(layers.attention, static_argnums=4)(q, k, v, visible, lambda shares: shares * keep)
    np.testing.assert_allclose(ours, slow_attention(q, k, v, visible, keep), rtol=0, atol=2e-6 * scale)


def test_masked_keys_get_no_weight_and_a_fully_masked_query_stays_finite():
    q, k, visible = (
        jnp.full((1, 2, 1, 4), -3e3),
        jnp.full((1, 2, 1, 4), 3e3),
        jnp.array([[[True, False], [False, False]]]),
    )
    v = jnp.array([1.0, 2.0]).reshape(1, 2, 1, 1)
    out, pull = jax.vjp(lambda v: layers.attention(q, k, v, visible, lambda shares: shares), v)
    np.testing.assert_array_equal(out[0, :, 0, 0], [1, 1.5])
    assert np.isfinite(pull(jnp.ones_like(out))[0]).all()


def test_attention_scores_and_softmax_are_float32_whatever_the_inputs():
    q, k, v = (jnp.asarray(normal(seed, 1, 64, 2, 8) * 4, jnp.bfloat16) for seed in range(3))
    shares = []
    out = layers.attention(q, k, v, jnp.ones((1, 64, 64), bool), lambda x: shares.append(x) or x)
    scores = np.einsum("blhk,bmhk->bhlm", *(np.asarray(x, np.float64) for x in (q, k))) / 8**0.5
    expected = np.exp(scores - scores.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    assert out.dtype == shares[0].dtype == jnp.bfloat16
    # The shares are rounded once, by 2^-8 at most; in bfloat16 scores as large as these would be off by 0.1.
    np.testing.assert_allclose(shares[0].astype(jnp.float32), expected, rtol=1.01 * 2**-8, atol=1e-30)


@given(document_numbers)
@settings(deadline=None, max_examples=25)
def test_tokens_see_their_document_and_positions_restart_in_it(mask):
    visible, positions = layers.same_document(jnp.asarray(mask)), layers.restarting_positions(jnp.asarray(mask))
    for b, row in enumerate(mask):
        start = 0
        for i, number in enumerate(row):
            start = i if i and number != row[i - 1] else start
            assert positions[b, i] == i - start
            np.testing.assert_array_equal(visible[b, i], row == number)


# Norms and activations


def slow_layer_norm(x, scale, bias, eps):
    x = np.asarray(x).astype(np.float64)
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale + bias


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
@pytest.mark.parametrize("spread", [1e-6, 3e-3, 1.0, 1e6])
def test_layer_norm_is_that_of_float64_from_variances_as_small_as_eps_to_large(eps, spread):
    x, scale, bias = spread * normal(0, 2, 5, 24), normal(1, 24), normal(2, 24)
    ours = jax.jit(layers.layer_norm, static_argnums=3)(x, scale, bias, eps)
    np.testing.assert_allclose(ours, slow_layer_norm(x, scale, bias, eps), rtol=0, atol=3e-6)


def test_layer_norm_of_bfloat16_with_a_large_mean_loses_only_the_rounding_of_its_output():
    x = jnp.asarray(500 + 10 * normal(0, 64, 48), jnp.bfloat16)
    ours = layers.layer_norm(x, normal(1, 48), normal(2, 48), 1e-12)
    exact = slow_layer_norm(x.astype(jnp.float32), normal(1, 48), normal(2, 48), 1e-12)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


def test_gelus_are_their_formulas_and_differ_by_half_a_thousandth():
    x = np.linspace(-8, 8, 4001).astype(np.float32)
    exact = np.array([0.5 * v * (1 + math.erf(v / 2**0.5)) for v in x.tolist()])
    tanh = np.array([0.5 * v * (1 + math.tanh((2 / math.pi) ** 0.5 * (v + 0.044715 * v**3))) for v in x.tolist()])
    np.testing.assert_allclose(layers.gelu(x), exact, rtol=1e-6, atol=1e-6)  # that of torch is 9e-7 away
    np.testing.assert_allclose(layers.gelu_tanh(x), tanh, rtol=1e-6, atol=7e-7)
    assert 4.5e-4 < np.abs(layers.gelu(x) - layers.gelu_tanh(x)).max() < 5e-4


# Dropout


class Drops(nn.Module):
    """A layer of two sites that returns what they make of ones: stacked, [N, 2, rows, 64]."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x):
        masks = [Dropout(self.rate)(jnp.ones((x.shape[0], 64)), train=True) for _ in range(2)]
        return x + nn.Dense(1)(masks[0]), jnp.stack(masks)


def drops(rng, shared=False, remat="none", rows=8):
    stack = layers.stack(Drops, 3, remat=remat, shared=shared, dtype="float32", initializing=False)()
    x = jnp.zeros((rows, 1))
    return stack.init_with_output({"params": KEY, "dropout": rng}, x)[0][1]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    x = jnp.ones((64, 4096))
    out = Dropout(rate).apply({}, x, train=True, rngs={"dropout": KEY})
    sigma = (rate * (1 - rate) / x.size) ** 0.5
    assert abs((out == 0).mean() - rate) < 4 * sigma
    np.testing.assert_allclose(out[out > 0], 1 / (1 - rate), rtol=1e-6)
    assert abs(np.asarray(out, np.float64).mean() - 1) < 4 * sigma / (1 - rate)
    np.testing.assert_array_equal(Dropout(rate).apply({}, x, train=False), x)


@pytest.mark.parametrize("shared", [False, True])
def test_every_layer_site_row_and_step_drops_independently(shared):
    draw = jax.jit(partial(drops, shared=shared))
    steps = jnp.stack([draw(jax.random.fold_in(KEY, step)) for step in range(2)]) > 0
    masks = np.asarray(steps).reshape(-1, 64)  # steps · layers · sites · rows
    agreement = (masks[:, None] == masks).mean(-1) - np.eye(len(masks)) / 2
    assert len(masks) == 2 * 3 * 2 * 8 and np.abs(agreement - 0.5).max() < 5 * 0.5 / 8


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputation_leaves_the_masks_as_they_are(remat):
    np.testing.assert_array_equal(jax.jit(drops)(KEY), jax.jit(partial(drops, remat=remat))(KEY))


def test_the_recomputed_mask_is_the_forward_mask():
    x = jnp.asarray(normal(0, 16, 32, 8))

    @partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
    def twice_dropped(x):
        return Dropout(0.3).apply({}, jnp.sin(x) + 2, train=True, rngs={"dropout": KEY})

    out = jax.jit(twice_dropped)(x)
    slope = jax.jit(jax.grad(lambda x: twice_dropped(x).sum()))(x)
    np.testing.assert_array_equal(slope == 0, out == 0)
    np.testing.assert_allclose(slope, jnp.where(out == 0, 0, jnp.cos(x) / 0.7), rtol=1e-5)


def test_masks_are_the_same_on_one_and_eight_devices():
    x = jnp.asarray(normal(0, 16, 4, 8, 8))
    drop = jax.jit(lambda x: Dropout(0.5).apply({}, x, train=True, rngs={"dropout": KEY}))
    spread = drop(jax.device_put(x, by_row(DATA_PARALLEL.mesh(16))))
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_array_equal(drop(x), spread)


# Parameters


def test_dense_sums_over_its_inputs_and_adds_its_bias():
    x, kernel, bias = normal(0, 2, 5, 3, 4), normal(1, 3, 4, 2, 6), normal(2, 2, 6)
    dense = Dense((3, 4), (2, 6), Normal(), "float32")
    shapes = jax.tree.map(jnp.shape, dense.init(KEY, x)["params"])
    assert shapes == {"kernel": kernel.shape, "bias": bias.shape}
    ours = dense.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(ours, np.einsum("blhk,hkoe->bloe", x, kernel) + bias, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_bias_is_summed_in_float32():
    x, cotangent = jnp.zeros((65536, 4)), jnp.asarray(1 + 0.3 * normal(0, 65536, 4))
    dense = Dense((4,), (4,), Normal(), "bfloat16")
    params = dense.init(KEY, x)
    found = jax.jit(jax.grad(lambda params: (dense.apply(params, x).astype(jnp.float32) * cotangent).sum()))(params)
    np.testing.assert_allclose(found["params"]["bias"], cotangent.sum(0), rtol=2**-8)


def test_a_table_looks_up_rows_and_sums_their_gradients_in_float32():
    params = {"params": {"table": jnp.asarray(normal(0, 6, 3))}}
    module, ids = Table(6, 3, Normal(), "bfloat16"), jnp.array([[0, 5, 5], [2, 0, 5]])
    np.testing.assert_array_equal(module.apply(params, ids), params["params"]["table"][ids].astype(jnp.bfloat16))
    slope = jax.grad(lambda params: module.apply(params, jnp.full((1, 5000), 2)).astype(jnp.float32).sum())(params)
    np.testing.assert_array_equal(slope["params"]["table"], 5000 * (np.arange(6)[:, None] == [2, 2, 2]))


def test_initialisers_have_their_spread_and_only_one_is_cut_at_two_sigma():
    cut, whole = (initializer(KEY, (1000, 200)) / 0.02 for initializer in (TruncatedNormal(), Normal()))
    assert 1.99 < jnp.abs(cut).max() <= 2.0 < 4 < jnp.abs(whole).max()
    assert cut.dtype == whole.dtype == jnp.float32
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    cut_stddev = math.sqrt(1 - 4 * density / math.erf(math.sqrt(2)))  # of a normal cut at ±2, not rescaled: 0.880
    for values, stddev in ((cut, cut_stddev), (whole, 1.0)):
        assert abs(values.std() / stddev - 1) < 5 / math.sqrt(2 * values.size)
        assert abs(values.mean()) < 5 * stddev / math.sqrt(values.size)


def test_norms_are_initialised_to_one_and_zero():
    params = Norm(5, 1e-5).init(KEY, jnp.ones((2, 5)))["params"]
    np.testing.assert_array_equal(params["scale"], np.ones(5))
    np.testing.assert_array_equal(params["bias"], np.zeros(5))
