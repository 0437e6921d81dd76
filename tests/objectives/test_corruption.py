"""A corruption of one's own is a field of the objectives that mask."""

import jax
import jax.numpy as jnp
import pytest
from contract import MASKING, B, make_batch, small_bert, small_generator

from bertjax.masking import Masked, mask_tokens, mask_with_replacement
from bertjax.objectives.distil import Distillation
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.rtd import ReplacedTokenDetection
from bertjax.serialization.description import from_json, to_json

KEY = jax.random.key(0)


def mask_the_second(rng, batch, masking):
    """Choose the second token of each row, with weight 3."""
    tokens_BL = batch["tokens"].at[:, 1].set(masking.mask_id)
    ones_B1 = jnp.ones((len(tokens_BL), 1))
    return Masked(tokens_BL, ones_B1.astype(jnp.int32), batch["tokens"][:, 1:2], 3 * ones_B1)


@pytest.mark.parametrize(
    "make",
    [
        lambda corrupt: MaskedLM(small_bert(N=1), MASKING, corrupt=corrupt),
        lambda corrupt: Distillation(small_bert(N=1), small_bert(N=1), MASKING, corrupt=corrupt),
        lambda corrupt: ReplacedTokenDetection(small_generator(), small_bert(N=1), MASKING, corrupt=corrupt),
        lambda corrupt: (
            ReplacedTokenDetection(small_generator(), small_bert(N=1), MASKING, corrupt=corrupt).generator_objective
        ),
    ],
    ids=["masked LM", "distillation", "replaced tokens", "generator"],
)
def test_an_objective_trains_on_what_its_corruption_chooses(make):
    batch = make_batch()

    def found(objective):
        params = jax.eval_shape(objective.init, KEY, batch)
        params = jax.tree.map(lambda x: jnp.zeros(x.shape), params)
        metrics = jax.jit(lambda params: objective.loss(params, batch, KEY, train=False)[1])(params)
        return metrics["loss/mlm"].weight, metrics["targets/mlm"].sum

    weight, targets = found(make(mask_the_second))
    assert weight == 3 * B
    assert (targets == 3 * jnp.bincount(batch["tokens"][:, 1], length=len(targets))).all()
    assert found(make(mask_tokens))[0] != weight
    objective = make(mask_with_replacement)
    assert from_json(to_json(objective)) == objective != make(mask_tokens)
