import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import MASKING, OBJECTIVES, B, make_batch, small_bert, without_dropout

from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.sift import SiFT, divergence

KEY = jax.random.key(0)
PLAIN = MaskedLM(small_bert(N=1), MASKING, pair=True)
SIFT = SiFT(PLAIN)


@pytest.fixture(scope="module")
def params():
    """Parameters large enough that predictions differ."""
    return jax.tree.map(lambda x: 4 * x, SIFT.init(KEY, make_batch()))


def losses(params, objective, **options):
    return jax.jit(partial(objective.loss, train=False, **options))(params, make_batch(), KEY)


def test_the_first_change_is_noise_of_bounded_size_named_by_the_example():
    batch = make_batch()
    delta = SIFT.first(KEY, batch, (B, 32, 16))
    assert jnp.abs(delta).max() == pytest.approx(2e-2) and 0.8e-2 < delta.std() < 1e-2 and abs(delta.mean()) < 1e-3
    order = np.random.default_rng(0).permutation(B)
    shuffled = {name: array[order] for name, array in batch.items()}
    np.testing.assert_array_equal(SIFT.first(KEY, shuffled, delta.shape), delta[order])
    assert SIFT.first(KEY, batch, (2 * B, 16, 16)).shape == (2 * B, 16, 16)  # two rows to an example


def test_a_step_uphill_is_as_long_in_every_token_and_left_out_where_the_gradient_is_not_finite():
    delta, gradient = jax.random.normal(KEY, (2, 2, 3, 8))
    gradient = gradient.at[0, 0].multiply(1e-3).at[1, 2].set(0)
    moved = SIFT.ascend(delta, gradient) - delta
    size = jnp.abs(moved).max(-1)
    np.testing.assert_allclose(size.at[1, 2].set(1e-4), 1e-4, rtol=0.01)
    assert size[1, 2] == 0 and (jnp.sign(moved) == jnp.sign(gradient)).mean() > 0.9
    for bad in (jnp.nan, jnp.inf):
        np.testing.assert_array_equal(SIFT.ascend(delta, gradient.at[1, 1, 1].set(bad)), delta)


def test_the_divergence_is_the_symmetric_one_over_what_counts():
    a, b = jax.random.normal(KEY, (2, 3, 4, 5))
    weights = jnp.ones((3, 4)).at[1].set(0)
    p, q = np.asarray(jax.nn.softmax(a)), np.asarray(jax.nn.softmax(b))
    each = (p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)
    found = divergence({"x": (a, weights)}, {"x": (b, weights)})
    np.testing.assert_allclose(found.sum, each[[0, 2]].sum(), rtol=1e-5)
    assert found.weight == 8
    # Each direction moves the distribution that is compared, not the one that is averaged over.
    gradient = jax.grad(lambda a: divergence({"x": (a, weights)}, {"x": (b, weights)}).sum)(a)
    np.testing.assert_allclose(gradient, np.asarray(weights)[..., None] * (p - q), atol=1e-5)


def test_a_step_uphill_raises_the_divergence(params):
    small, large = (losses(params, dataclasses.replace(SIFT, step=step))[1]["loss/sift"] for step in (1e-9, 1e-2))
    assert small.weight == large.weight > 0
    assert large.sum > 1.05 * small.sum > 0


def test_the_loss_is_that_of_the_objective_and_the_weighted_divergence(params):
    loss, metrics = losses(params, SIFT)
    plain, expected = jax.jit(partial(PLAIN.loss, train=False))(params, make_batch(), jax.random.split(KEY)[0])
    mean = metrics["loss/sift"].sum / metrics["loss/sift"].weight
    assert mean > 0
    np.testing.assert_allclose(loss, plain + mean, rtol=1e-6)
    for name, found in expected.items():
        np.testing.assert_allclose(metrics[name].sum, found.sum, rtol=1e-6)
    weight = expected["loss/mlm"].weight + expected["loss/pair"].weight
    assert metrics["loss/sift"].weight == weight
    twice = losses(params, dataclasses.replace(SIFT, weight=10.0))[1]["loss/sift"].sum
    np.testing.assert_allclose(twice, 2 * metrics["loss/sift"].sum, rtol=1e-5)
    assert losses(params, dataclasses.replace(SIFT, weight=0.0))[0] == pytest.approx(float(plain), rel=1e-6)


def test_without_weight_the_gradient_is_that_of_the_objective(params):
    none, own = without_dropout(dataclasses.replace(SIFT, weight=0.0)), without_dropout(PLAIN)
    found, expected = (
        jax.jit(jax.grad(lambda params, each=each, key=key: each.loss(params, make_batch(), key, train=True)[0]))(
            params
        )
        for each, key in ((none, KEY), (own, jax.random.split(KEY)[0]))
    )
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()) + 1e-7)


@dataclasses.dataclass(frozen=True)
class WithoutEmbeddings:
    """An objective whose encoder norms no embeddings."""

    def init(self, rng, batch):
        return {}

    def loss(self, params, batch, rng, *, train):
        return jnp.float32(0), {}

    def outputs(self, params, batch, rng, *, train):
        return {}, {}


def test_an_objective_that_norms_no_embeddings_is_refused():
    with pytest.raises(ValueError, match="the objective runs 0: wrap one with a single encoder"):
        SiFT(WithoutEmbeddings()).loss({}, make_batch(), KEY, train=True)


def test_an_objective_that_offers_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="a ReplacedTokenDetection offers no `outputs` to compare"):
        SiFT(OBJECTIVES["electra"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"weight": -1.0}, "weight=-1.0"), ({"noise": 0.0}, "noise=0.0"), ({"step": 0.0}, "step=0.0")],
)
def test_contradictions_are_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SIFT, **fields)
