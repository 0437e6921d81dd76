import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import MASKING, small_bert

from bertjax import kernels
from bertjax.flops import batch_shapes, model_flops
from bertjax.layers import attend
from bertjax.objectives.mlm import MaskedLM


def test_splash_equals_the_plain_form_in_value_and_gradient(monkeypatch):
    """Two documents and padding in a row; two blocks of queries and keys; interpreted, since there is no TPU here."""
    q, k, v, weights = jax.random.normal(jax.random.key(0), (4, 2, 256, 2, 32))
    mask = jnp.asarray([[1] * 100 + [2] * 100 + [0] * 56, [1] * 256], jnp.int32)

    def loss(run, q, k, v):
        return (run(q, k, v) * weights * (mask > 0)[..., None, None]).sum()

    def both(run):
        return jax.value_and_grad(loss, argnums=(1, 2, 3))(run, q, k, v)

    plain = both(lambda q, k, v: attend(q, k, v, mask, lambda p: p))
    monkeypatch.setattr(kernels, "BLOCKS", (128,))
    ours = both(lambda q, k, v: kernels.of_device(q, k, v, mask, interpret=True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_elsewhere_it_is_the_plain_form_and_an_encoder_with_it_has_no_attention_dropout():
    tokens, mask = jnp.ones((1, 512), jnp.int32), jnp.ones((1, 512), jnp.int32)
    plain = small_bert(N=1, positions=512, attention_dropout=0.0)
    with_kernel = small_bert(N=1, positions=512, attention_dropout=0.0, attend=kernels.splash)
    params = plain.init(jax.random.key(0), tokens, mask)
    np.testing.assert_array_equal(plain.apply(params, tokens, mask), with_kernel.apply(params, tokens, mask))
    batch = batch_shapes(2, 512, ("types", "pair"))
    counts = [model_flops(MaskedLM(encoder, MASKING), batch) for encoder in (plain, with_kernel)]
    assert counts[0] == counts[1]
    with pytest.raises(
        ValueError, match="attend=splash cannot drop attention's probabilities: set attention_dropout=0"
    ):
        small_bert(attend=kernels.splash)
