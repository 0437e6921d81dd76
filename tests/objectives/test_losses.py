"""Losses against NumPy and plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.objectives.losses import is_first_best, negative_log_likelihood, scores
from bertjax.types import average

KEY = jax.random.key(0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_negative_log_likelihood_and_its_gradient_are_those_of_log_softmax(scale, dtype):
    logits = (scale * jax.random.normal(KEY, (4, 5, 11))).astype(dtype)
    labels = jax.random.randint(KEY, (4, 5), 0, 11)

    def slow(logits):
        chances = jax.nn.log_softmax(logits.astype(jnp.float32))
        return -jnp.take_along_axis(chances, labels[..., None], -1)[..., 0]

    ours, pull = jax.vjp(lambda logits: negative_log_likelihood(logits, labels), logits)
    theirs, slow_pull = jax.vjp(slow, logits)
    assert ours.dtype == jnp.float32 and pull(ours)[0].dtype == dtype
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * scale)
    ones = jnp.ones_like(ours)
    np.testing.assert_allclose(
        pull(ones)[0].astype(jnp.float32), slow_pull(ones)[0].astype(jnp.float32), rtol=1e-2, atol=1e-6
    )


def test_the_loss_of_uniform_logits_is_the_logarithm_of_the_number_of_classes():
    found = negative_log_likelihood(jnp.full((3, 7), 123.0), jnp.array([0, 3, 6], jnp.uint32))
    np.testing.assert_allclose(found, np.log(7), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_accuracy_counts_the_first_argmax_as_numpy_does(dtype):
    numbers = np.random.default_rng(0)
    logits = numbers.integers(-3, 3, (500, 7)).astype(np.float32)
    logits[:50] = 0
    logits[50:100, 3] = -np.inf
    labels = numbers.integers(0, 7, 500, dtype=np.uint32)
    found = is_first_best(jnp.asarray(logits, dtype), jnp.asarray(labels))
    np.testing.assert_array_equal(found, logits.argmax(-1) == labels)
    assert 0 < found.sum() < 250


def test_no_prediction_is_correct_if_logits_are_nan():
    assert not is_first_best(jnp.array([[jnp.nan, 1.0, 0.0]] * 3), jnp.arange(3)).any()


def test_weights_scale_the_loss_and_a_normaliser_of_its_own_divides_it():
    """As in masked diffusion: Σ over masked positions of nll / t, divided by the number of all positions."""
    logits, labels = jax.random.normal(KEY, (2, 4, 5)), jax.random.randint(KEY, (2, 4), 0, 5)
    t_B, masked_BL = np.array([0.5, 0.25]), np.array([[1, 0, 1, 0], [0, 0, 0, 1]])
    weights_BL = jnp.asarray(masked_BL / t_B[:, None], jnp.float32)
    nll_BL = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(labels)[..., None], -1)[..., 0]
    right_BL = np.asarray(logits).argmax(-1) == labels
    found = scores("x", logits, labels, weights_BL, normaliser=jnp.ones((2, 4)))
    assert found["loss/x"].weight == 8
    np.testing.assert_allclose(average(found["loss/x"]), (weights_BL * nll_BL).sum() / 8, rtol=1e-6)
    np.testing.assert_allclose(
        average(found["accuracy/x"]), (weights_BL * right_BL).sum() / weights_BL.sum(), rtol=1e-6
    )
    plain = scores("x", logits, labels, weights_BL)
    np.testing.assert_allclose(average(plain["loss/x"]), (weights_BL * nll_BL).sum() / weights_BL.sum(), rtol=1e-6)
