import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bertjax.finetuning.layerwise import layerwise
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule
from bertjax.rules import match, partition

CONSTANT = Schedule(1.0, 0, 100, decay=0)


def tree(N=3):
    ones = jnp.ones((N, 2, 2))
    return {
        "encoder": {
            "embeddings": {"word": {"table": jnp.ones((5, 2))}},
            "layers": {"kernel": ones, "attention_norm": {"scale": ones[1:, 0]}},
            "final_norm": {"scale": jnp.ones(2)},
        },
        "head": {"classify": {"kernel": jnp.ones((2, 3))}},
    }


def steps(optimizer, params, gradients, count=1):
    tx, (params, frozen) = optimizer.transform(), partition(optimizer.trained, params)
    gradients, state = partition(optimizer.trained, gradients)[0], tx.init(params)

    @jax.jit
    def step(gradients, state, params):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(count):
        params, state = step(gradients, state, params)
    return params, frozen


def test_each_layer_has_its_own_rate_and_electras_last_one_is_squared():
    """By Adam's first step, which is as long as the rate: by hand from model/optimization.py, depth 0 to N + 2."""
    N, d = 3, 0.8
    for skipped, published in ((1, [d ** (N + 2 - depth) for depth in range(N + 1)]), (0, [d**4, d**3, d**2, d])):
        optimizer = Optimizer(CONSTANT, weight_decay=0.0, clip=0.0, eps=0.0, rates=layerwise(N, d, skipped=skipped))
        moved, _ = steps(optimizer, tree(), tree())
        length = jax.tree.map(lambda x: 1 - x, moved)
        np.testing.assert_allclose(length["encoder"]["embeddings"]["word"]["table"], published[0], rtol=1e-5)
        for layer in range(N):
            np.testing.assert_allclose(length["encoder"]["layers"]["kernel"][layer], published[layer + 1], rtol=1e-5)
        # A stack without the first layer: its slices belong to the upper ones.
        norms = length["encoder"]["layers"]["attention_norm"]["scale"]
        np.testing.assert_allclose(norms[:, 0], published[2:], rtol=1e-5)
        np.testing.assert_allclose(length["encoder"]["final_norm"]["scale"], published[-1], rtol=1e-5)
        np.testing.assert_allclose(length["head"]["classify"]["kernel"], 1, rtol=1e-5)


def test_frozen_layers_stay_bit_equal_and_count_in_no_norm():
    params = tree()
    gradients = jax.tree.map(lambda x: 100 * x, params)
    quiet = {**gradients, "encoder": {**gradients["encoder"]}}
    quiet["encoder"]["layers"] = {
        "kernel": gradients["encoder"]["layers"]["kernel"].at[:2].set(0),
        "attention_norm": {"scale": gradients["encoder"]["layers"]["attention_norm"]["scale"].at[0].set(0)},
    }
    optimizer = Optimizer(CONSTANT, weight_decay=0.1, clip=1.0, eps=1.0, rates=layerwise(3, frozen=2))
    loud, frozen = steps(optimizer, params, gradients, 3)
    assert (frozen["encoder"]["embeddings"]["word"]["table"] == 1).all()
    assert loud["encoder"]["embeddings"]["word"]["table"] is None
    np.testing.assert_array_equal(loud["encoder"]["layers"]["kernel"][:2], params["encoder"]["layers"]["kernel"][:2])
    assert (loud["encoder"]["layers"]["kernel"][2] != 1).all()
    for a, b in zip(jax.tree.leaves(loud), jax.tree.leaves(steps(optimizer, params, quiet, 3)[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shared_layers_have_the_rate_of_the_last_layer():
    rates = match(layerwise(12, 0.5), {"encoder": {"layer": {"kernel": 0}, "project": {"kernel": 0}}})
    assert rates["encoder"]["layer"]["kernel"] == 0.5 and rates["encoder"]["project"]["kernel"] == 0.5**13


def test_groups_of_layers_that_share_parameters_have_the_last_ones_rate():
    groups = {"encoder": {"layers": {"kernel": 0}, "project": {"kernel": 0}}}
    rates = match(layerwise(12, 0.5, shared=True), groups)
    assert rates["encoder"]["layers"]["kernel"] == 0.5 and rates["encoder"]["project"]["kernel"] == 0.5**13
    assert match(layerwise(12, frozen=12, shared=True), groups)["encoder"]["layers"]["kernel"] == 0.0


def test_shared_layers_are_frozen_together_or_refused():
    shared = {"encoder": {"layer": {"kernel": 0}, "final_norm": {"scale": 0}}, "head": {"classify": {"kernel": 0}}}
    rates = match(layerwise(3, frozen=3), shared)
    assert rates == {
        "encoder": {"layer": {"kernel": 0.0}, "final_norm": {"scale": 1.0}},
        "head": {"classify": {"kernel": 1.0}},
    }
    with pytest.raises(ValueError, match="no rule covers encoder/layer/kernel"):
        match(layerwise(3, frozen=2), shared)


def test_rates_that_are_none_are_refused():
    with pytest.raises(ValueError, match="decay=0"):
        layerwise(3, 0)
    with pytest.raises(ValueError, match="frozen=4"):
        layerwise(3, frozen=4)
    with pytest.raises(ValueError, match=r"4 rates for (1 layer|2 layers):"):
        steps(Optimizer(CONSTANT, rates=layerwise(4, 0.9)), tree(2), tree(2))
