import jax
import jax.numpy as jnp
import numpy as np
from contract import small_bert

from bertjax.models import layers
from bertjax.models.heads import (
    MaskedLMHead,
    PairHead,
    ReplacedInContextHead,
    TiedHead,
    TransformedHead,
    UntiedHead,
)
from bertjax.models.layers import Normal, gelu
from bertjax.models.span_heads import electra_span_head

KEY = jax.random.key(0)


def test_the_masked_lm_head_is_transform_activation_norm_tied_table_and_bias():
    rng = np.random.default_rng(0)
    x, table = rng.normal(size=(2, 3, 6)), rng.normal(size=(9, 4))
    head = MaskedLMHead(V=9, D=6, E=4, activation=layers.gelu, norm_eps=1e-5, initializer=Normal(), dtype="float32")
    shapes = jax.eval_shape(head.init, KEY, x, table)["params"]
    p = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    assert jax.tree.map(np.shape, p) == {
        "transform": {"kernel": (6, 4), "bias": (4,)}, "norm": {"scale": (4,), "bias": (4,)}, "bias": (9,)
    }  # fmt: skip
    y = np.asarray(layers.gelu(jnp.asarray(x @ p["transform"]["kernel"] + p["transform"]["bias"])))
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    expected = (y * p["norm"]["scale"] + p["norm"]["bias"]) @ table.T + p["bias"]
    np.testing.assert_allclose(head.apply({"params": p}, x, jnp.asarray(table)), expected, rtol=1e-5, atol=1e-5)


def test_heads_may_lack_biases_or_the_table():
    x, table = jax.random.normal(KEY, (2, 3, 6)), jax.random.normal(KEY, (9, 6))
    unbiased = MaskedLMHead(
        9, 6, 6, layers.gelu, 1e-5, Normal(), "float32", transform_bias=False, norm_bias=False
    ).init(KEY, x, table)["params"]  # fmt: skip
    assert jax.tree.map(jnp.shape, unbiased) == {"transform": {"kernel": (6, 6)}, "norm": {"scale": (6,)}, "bias": (9,)}
    bare = TiedHead(9, "float32", use_bias=False)
    assert bare.init(KEY, x, table) == {}
    np.testing.assert_allclose(bare.apply({"params": {}}, x, table), x @ table.T, rtol=1e-5, atol=1e-5)
    own = MaskedLMHead(9, 6, 6, layers.gelu, 1e-5, Normal(), "float32", tied=False)
    logits, params = own.init_with_output(KEY, x, table)
    assert params["params"]["decoder"].shape == (9, 6) and not jnp.array_equal(
        logits, own.clone(tied=True).apply({"params": params["params"]}, x, table)
    )
    np.testing.assert_array_equal(logits, own.apply(params, x, 2 * table))
    untied = UntiedHead(9, 6, Normal(), "float32")
    logits, params = untied.init_with_output(KEY, x, table)
    assert jax.tree.map(jnp.shape, params["params"]) == {"decoder": {"kernel": (6, 9), "bias": (9,)}}
    np.testing.assert_array_equal(logits, untied.apply(params, x, 2 * table))


def test_the_pair_head_reads_the_first_position_alone():
    head = PairHead(D=6, C=3, initializer=Normal(1.0), dtype="float32")
    x = jax.random.normal(KEY, (2, 5, 6))
    logits, params = head.init_with_output(KEY, x)
    p = params["params"]
    pooled = np.tanh(x[:, 0] @ p["pooler"]["kernel"])
    np.testing.assert_allclose(logits, pooled @ p["classifier"]["kernel"], rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda x: head.apply(params, x).sum())(x)
    assert slope[:, 0].any() and not slope[:, 1:].any()


def test_in_bfloat16_masked_lm_logits_are_bfloat16_but_pair_logits_and_all_parameters_float32():
    x, table = jnp.ones((1, 2, 6)), jnp.ones((9, 4))
    heads = MaskedLMHead(9, 6, 4, layers.gelu, 1e-5, Normal(), "bfloat16"), PairHead(6, 2, Normal(), "bfloat16")
    (mlm, mlm_params), (pair, pair_params) = (
        head.init_with_output(KEY, x, *more) for head, more in zip(heads, [(table,), ()], strict=True)
    )
    assert mlm.dtype == jnp.bfloat16 and pair.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((mlm_params, pair_params))} == {jnp.dtype("float32")}


def test_the_head_in_context_adds_the_first_token_of_each_document():
    """By hand, in a packed row; padding is a document of its own."""
    head = ReplacedInContextHead(4, gelu, 1e-7, Normal(1.0), "float32")
    x, mask = jax.random.normal(jax.random.key(0), (1, 7, 4)), jnp.array([[1, 1, 1, 2, 2, 0, 0]])
    params = head.init(jax.random.key(1), x, mask)["params"]
    params = jax.tree.map(lambda p: p + 0.3, params)
    logits = head.apply({"params": params}, x, mask)
    assert logits.dtype == jnp.float32
    for at, first in enumerate([0, 0, 0, 3, 3, 5, 5]):
        y = np.asarray(x)[0, at] + np.asarray(x)[0, first]
        y = (y - y.mean()) / y.std() * params["norm"]["scale"] + params["norm"]["bias"]
        y = gelu(y @ params["transform"]["kernel"] + params["transform"]["bias"])
        y = y @ params["classifier"]["kernel"] + params["classifier"]["bias"]
        np.testing.assert_allclose(logits[0, at], y[0], atol=1e-4)


def relative_error(one, other):
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return np.linalg.norm(one - other) / np.linalg.norm(other)


def test_in_bfloat16_the_gradient_of_a_state_that_a_whole_row_reads_is_summed_in_float32():
    """[CLS] of the head in context, and the start of an answer, which every end reads, at 512 positions."""
    L, D = 512, 64
    mask, starts = jnp.ones((1, L), jnp.int32), jnp.array([7])
    x, target = (jax.random.normal(key, (1, L, D)).astype(jnp.bfloat16) for key in jax.random.split(KEY))
    in_context = ReplacedInContextHead(D, gelu, 1e-7, Normal(1.0), "bfloat16")
    spans = electra_span_head(small_bert(D=D, dtype="bfloat16"), 0)

    def of_context(head, params, x):
        return (head.apply(params, x, mask) * target[..., 0].astype(jnp.float32)).sum()

    def of_ends(head, params, x):
        return (head.apply(params, x, mask, starts).end_BL * target[..., 0].astype(jnp.float32)).sum()

    for head, more, loss, position in ((in_context, (), of_context, 0), (spans, (starts,), of_ends, 7)):
        params = head.init(KEY, x, mask, *more)
        slopes = [
            jax.grad(loss, argnums=2)(head.clone(dtype=dtype), params, x.astype(dtype))
            for dtype in ("bfloat16", "float32")
        ]
        assert relative_error(*(slope[0, position] for slope in slopes)) < 0.02


def test_in_bfloat16_a_mean_over_a_row_is_rounded_once():
    """Of 301 tokens, which is no bfloat16 number: with sum and count rounded it was off by another rounding."""
    D = 64
    x = (1 + jax.random.uniform(KEY, (1, 320, D))).astype(jnp.bfloat16)
    mask = (jnp.arange(320) < 301)[None].astype(jnp.int32)
    head = TransformedHead(D, 2, "mean", lambda x: x, 1e-5, Normal(), "bfloat16")
    params = head.init(KEY, x, mask)
    mean_D = np.asarray(x[0, :301], np.float64).mean(0)
    _, found = head.apply(params, x, mask, capture_intermediates=lambda module, _: module.name == "transform")
    (transformed,) = found["intermediates"]["transform"]["__call__"]
    expected = jnp.asarray(mean_D[None], jnp.bfloat16) @ params["params"]["transform"]["kernel"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(transformed, expected)
