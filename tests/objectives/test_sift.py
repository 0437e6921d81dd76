import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import (
    MASKING,
    OBJECTIVES,
    SPECIALS,
    B,
    make_batch,
    small_bert,
    small_generator,
    small_xlnet,
    supervised,
    without_dropout,
)

from bertjax.config import Experiment, Phase
from bertjax.data.rows import FullSentences
from bertjax.objectives.distil import FROZEN_TEACHER, Distillation
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.plm import PermutationLM
from bertjax.objectives.rtd import ReplacedTokenDetection
from bertjax.objectives.sift import SiFT, divergence
from bertjax.objectives.supervised import options
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import BertLinear
from bertjax.permutation import Permutation

KEY = jax.random.key(0)
PLAIN = MaskedLM(small_bert(N=1), MASKING, pair=True)
SIFT = SiFT(PLAIN)


@pytest.fixture(scope="module")
def params():
    """Parameters large enough that predictions differ."""
    return jax.tree.map(lambda x: 4 * x, jax.jit(SIFT.init)(KEY, make_batch()))


def losses(params, objective, **options):
    return jax.jit(partial(objective.loss, train=False, **options))(params, make_batch(), KEY)


def test_the_first_change_is_noise_of_bounded_size_named_by_the_example():
    batch = make_batch()
    delta = SIFT.initial(KEY, batch, (B, 32, 16))
    assert jnp.abs(delta).max() == pytest.approx(2e-2) and 0.8e-2 < delta.std() < 1e-2 and abs(delta.mean()) < 1e-3
    order = np.random.default_rng(0).permutation(B)
    shuffled = {name: array[order] for name, array in batch.items()}
    np.testing.assert_array_equal(SIFT.initial(KEY, shuffled, delta.shape), delta[order])
    assert SIFT.initial(KEY, batch, (2 * B, 16, 16)).shape == (2 * B, 16, 16)  # two rows to an example


def test_the_ascent_step_has_equal_length_in_every_token_and_is_skipped_for_nonfinite_gradients():
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


def test_numbers_diverge_by_their_squared_difference():
    a, b = jax.random.normal(KEY, (2, 3, 1))
    weights = jnp.array([1.0, 0.0, 1.0])
    found = divergence({"score": (a, weights)}, {"score": (b, weights)})
    np.testing.assert_allclose(found.sum, np.square(a - b)[[0, 2]].sum(), rtol=1e-6)
    # Half of its gradient to each side, as of two normals around the numbers.
    gradient = jax.grad(lambda a: divergence({"score": (a, weights)}, {"score": (b, weights)}).sum)(a)
    np.testing.assert_allclose(gradient, weights[:, None] * (a - b), atol=1e-6)


def uphill(monkeypatch, sift, params, batch, *, train):
    """Return the metrics of a loss, the first δ, the gradient that it climbs, and the objective's own metrics."""
    seen = []
    monkeypatch.setattr(SiFT, "ascend", lambda self, *arrays: seen.append(arrays) or arrays[0])

    @jax.jit
    def run(params):
        seen.clear()
        metrics = sift.loss(params, batch, KEY, train=train)[1]
        return metrics, *seen[0], sift.objective.loss(params, batch, jax.random.split(KEY)[0], train=train)[1]

    return run(params)


def test_delta_ascends_the_divergence_from_the_clean_predictions(monkeypatch, params):
    _, delta, gradient, _ = uphill(monkeypatch, SIFT, params, make_batch(), train=False)
    key = jax.random.split(KEY)[0]
    outputs = jax.jit(lambda delta: PLAIN.outputs(params, make_batch(), key, train=False, delta=delta)[1])
    clean = outputs(jnp.zeros_like(delta))

    def numpy_divergence(delta):
        total = 0.0
        for name, (logits, weights) in outputs(delta).items():
            x, y = (np.asarray(each, np.float64) for each in (logits, clean[name][0]))
            p, q = (np.exp(each) / np.exp(each).sum(-1, keepdims=True) for each in (x, y))
            total += (np.asarray(weights) * ((p - q) * (np.log(p) - np.log(q))).sum(-1)).sum()
        return total

    rng = np.random.default_rng(0)
    token = np.zeros_like(delta)
    token[0, 5] = gradient[0, 5]
    for direction in (np.asarray(gradient), token, rng.normal(size=delta.shape) * np.sign(gradient)):
        direction = 0.02 * direction / np.abs(direction).max()
        difference = (numpy_divergence(delta + direction) - numpy_divergence(delta - direction)) / 2
        # Twice: what is climbed lets each of the two divergences move one side only.
        assert difference == pytest.approx(2 * float((gradient * direction).sum()), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "scored"),
    [
        (ReplacedTokenDetection(small_generator(N=1), small_bert(N=1), MASKING), "cross_entropy/rtd"),
        (
            PermutationLM(small_xlnet(N=1), Permutation(functional=SPECIALS, parts=(10, 6), targets=4), memory=7),
            "loss/plm",
        ),
        (Distillation(small_bert(N=1, types=0), small_bert(N=1), MASKING), "divergence/soft"),
        (supervised(small_bert(N=1), options, "choice", PLAIN.pair_head.clone(C=1)), "loss/choice"),
    ],
    ids=["electra", "xlnet", "distillation", "choice"],
)
def test_every_objective_is_wrapped_and_only_its_embeddings_are_changed(monkeypatch, objective, scored):
    rows = batch = make_batch()
    if scored == "loss/choice":  # four questions of two options
        batch = {name: batch[name].reshape(B // 2, 2, -1) for name in ("tokens", "mask", "types")}
        batch |= {"labels": jnp.arange(B // 2) % 2, "example": rows["example"][: B // 2]}
    params = jax.tree.map(lambda x: 4 * x, jax.jit(objective.init)(KEY, batch))
    metrics, _, gradient, plain = uphill(monkeypatch, SiFT(objective), params, batch, train=True)
    for each, mean in plain.items():
        np.testing.assert_allclose(metrics[each].sum, mean.sum, rtol=1e-5, err_msg=each)
    # Were other elements dropped, other tokens masked, sampled or put in order, this would be far larger.
    assert 0 < metrics["loss/sift"].sum / metrics["loss/sift"].weight < 0.02
    assert metrics["loss/sift"].weight == plain[scored].weight
    size_BL = jnp.abs(gradient).max(-1)
    real_BL = rows["mask"] > 0
    assert size_BL.shape == real_BL.shape and not size_BL[~real_BL].any() and (size_BL[real_BL] > 0).mean() > 0.8


def test_frozen_parameters_of_the_wrapped_objective_stay_frozen():
    sift = SiFT(OBJECTIVES["distillation"])
    assert sift.frozen == FROZEN_TEACHER and SIFT.frozen == ()
    with pytest.raises(ValueError, match="SiFT does not train"):
        Experiment(sift, Optimizer(BertLinear(1e-3, 0, 1)), (Phase(1, 1, FullSentences("", 8)),))


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


def test_with_weight_zero_the_gradient_equals_that_of_the_objective(params):
    none, own = without_dropout(dataclasses.replace(SIFT, weight=0.0)), without_dropout(PLAIN)
    found, expected = (
        jax.jit(jax.grad(lambda params, each=each, key=key: each.loss(params, make_batch(), key, train=True)[0]))(
            params
        )
        for each, key in ((none, KEY), (own, jax.random.split(KEY)[0]))
    )
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()) + 1e-7)


def test_an_objective_without_outputs_is_refused():
    with pytest.raises(ValueError, match="Discriminator has no methods `outputs`"):
        SiFT(OBJECTIVES["electra"].discriminator_alone)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"weight": -1.0}, "weight=-1.0"), ({"noise": 0.0}, "noise=0.0"), ({"step": 0.0}, "step=0.0")],
)
def test_contradictions_are_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SIFT, **fields)
