from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import MASKING, small_bert
from jax.sharding import AxisType, Mesh

from bertjax.flops import batch_shapes, model_flops
from bertjax.models import kernels
from bertjax.models.layers import Drop, attend
from bertjax.objectives.mlm import MaskedLM
from bertjax.sharding.mesh import AXES


@pytest.mark.parametrize(("K", "rate"), [(64, 0.0), (32, 0.1), (128, 0.1)])
def test_the_kernel_equals_the_plain_form_in_value_and_gradient_and_in_what_it_drops(K, rate, monkeypatch):
    """Two documents and padding in a row; steps of two rows; interpreted, since there is no TPU here."""
    monkeypatch.setattr(kernels, "AT_ONCE", 2 * 128**2)
    q, k, v, weights = jax.random.normal(jax.random.key(0), (4, 4, 128, 256 // K, K))
    mask = jnp.asarray([[1] * 50 + [2] * 50 + [0] * 28, [1] * 128, [0] * 4 + [1] * 124, [1] * 128], jnp.int32)
    drop = Drop(rate, jax.random.key(7)) if rate else Drop()

    def both(run):
        def loss(q, k, v):
            return (run(q, k, v, mask, drop) * weights * (mask > 0)[..., None, None]).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)

    plain, ours = both(attend), both(partial(kernels.on_devices, interpret=True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-5)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
def test_split_over_devices_the_kernel_drops_the_same():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(1, 2, 1, 2), AXES, axis_types=(AxisType.Auto,) * 4)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 128, 4, 64))
    mask, drop = jnp.ones((2, 128), jnp.int32), Drop(0.5, jax.random.key(7))
    with jax.set_mesh(mesh):
        split = jax.jit(partial(kernels.on_devices, drop=drop, interpret=True))(q, k, v, mask)
    np.testing.assert_allclose(split, attend(q, k, v, mask, drop), rtol=1e-5, atol=5e-5)


def test_on_other_platforms_fused_attention_is_the_plain_form():
    tokens, mask = jnp.ones((1, 128), jnp.int32), jnp.ones((1, 128), jnp.int32)
    plain = small_bert(N=1, D=128, positions=128)
    with_kernel = small_bert(N=1, D=128, positions=128, attend=kernels.fused_attend)
    params = plain.init(jax.random.key(0), tokens, mask)
    rngs = {"dropout": jax.random.key(1)}
    a, b = (encoder.apply(params, tokens, mask, train=True, rngs=rngs) for encoder in (plain, with_kernel))
    np.testing.assert_array_equal(a, b)
    batch = batch_shapes(2, 128, ("types", "pair"))
    counts = [model_flops(MaskedLM(encoder, MASKING), batch) for encoder in (plain, with_kernel)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("kind", "there"), [("TPU v3", False), ("TPU v4", True)])
def test_tpu_v2_and_v3_have_no_attention_kernel(kind, there, monkeypatch):
    monkeypatch.setattr(kernels, "_device_kind", lambda: kind)
    states, mask = jax.ShapeDtypeStruct((1, 128, 2, 64), jnp.bfloat16), jax.ShapeDtypeStruct((1, 128), jnp.int32)
    traced = jax.make_jaxpr(lambda *given: kernels.fused_attend(*given, Drop()))(states, states, states, mask)
    assert ("pallas_call" in str(traced)) is there


def test_which_shapes_the_kernel_takes():
    assert kernels.fits(512, 16, 64) and kernels.fits(128, 1, 128) and kernels.fits(256, 6, 128)
    assert not kernels.fits(640, 16, 64)  # longer than the chip holds
    assert not kernels.fits(100, 16, 64)  # not whole registers
    assert not kernels.fits(128, 3, 64) and not kernels.fits(128, 12, 48)  # heads that do not fill them
