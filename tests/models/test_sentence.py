"""Each pooling, derived in numpy row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.models import layers
from bertjax.models.sentence import (
    Projection,
    SentenceEmbedding,
    UnitLength,
    cls_token,
    last_token,
    max_tokens,
    mean_sqrt_length,
    mean_tokens,
    weighted_mean,
)
from bertjax.serialization.description import from_json, to_json

# The tokens of one row [n, D], and their numbers in it [n] -> [D].
IN_NUMPY = {
    cls_token: lambda x, n: x[0],
    last_token: lambda x, n: x[-1],
    max_tokens: lambda x, n: x.max(0),
    mean_tokens: lambda x, n: x.mean(0),
    mean_sqrt_length: lambda x, n: x.sum(0) / np.sqrt(len(x)),
    weighted_mean: lambda x, n: (x * n[:, None]).sum(0) / n.sum(),
}
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])  # padding on either side
X_BLD = np.where(MASK[..., None], np.random.default_rng(0).normal(size=(3, 5, 4)), np.inf).astype(np.float32)


@pytest.mark.parametrize("skipped", [0, 1])
@pytest.mark.parametrize("pool", IN_NUMPY, ids=lambda pool: pool.__name__)
def test_a_pooling_reads_the_tokens_of_a_row_and_neither_padding_nor_prompt(pool, skipped):
    head = SentenceEmbedding((pool,), (), include_prompt=False)
    got = head.apply({}, jnp.asarray(X_BLD), jnp.asarray(MASK), skipped)
    for row, x_LD, mask in zip(got, X_BLD, MASK, strict=True):
        own = x_LD[mask > 0]
        np.testing.assert_allclose(
            row, IN_NUMPY[pool](own[skipped:], np.arange(1, len(own) + 1)[skipped:]), rtol=1e-6, atol=1e-6
        )


def test_a_prompt_is_pooled_unless_it_is_to_be_left_out():
    whole, told = (SentenceEmbedding((mean_tokens,), ()).apply({}, X_BLD, MASK, n) for n in (0, 1))
    np.testing.assert_array_equal(whole, told)


def test_a_row_of_padding_is_zeros():
    np.testing.assert_array_equal(SentenceEmbedding().apply({}, jnp.ones((1, 3, 2)), jnp.zeros((1, 3), int)), [[0, 0]])


def test_several_poolings_are_concatenated_and_layers_follow_in_order():
    head = SentenceEmbedding((cls_token, max_tokens), (Projection(8, 3, layers.tanh), UnitLength()), width=2)
    params = head.init(jax.random.key(0), jnp.asarray(X_BLD), jnp.asarray(MASK))["params"]
    params = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32), params)
    got = head.apply({"params": params}, jnp.asarray(X_BLD), jnp.asarray(MASK))
    own = [x[mask > 0] for x, mask in zip(X_BLD, MASK, strict=True)]
    pooled = np.stack([np.concatenate([x[0], x.max(0)]) for x in own])
    dense = params["transforms_0"]["dense"]
    y = np.tanh(pooled @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]))
    np.testing.assert_allclose(got, (y / np.linalg.norm(y, axis=1, keepdims=True))[:, :2], atol=1e-6)


def test_it_is_rebuilt_from_its_description():
    projection = Projection(8, 3, layers.gelu, use_bias=False, residual=True)
    head = SentenceEmbedding(
        (max_tokens,), (projection, UnitLength()), 2, 64, True, (("query", "q: "),), "query", False
    )
    assert from_json(to_json(head)) == head
