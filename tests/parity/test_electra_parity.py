"""Our ELECTRA against torch's, generator and discriminator trained together; make_golden.py made the arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import build, compare, fill, golden

from bertjax.masking import Masked, Masking
from bertjax.models.encoder import Encoder
from bertjax.models.language import word_table
from bertjax.models.layers import apply
from bertjax.objectives import rtd

CASES = golden("electra")
MASK = 1


def objective_of(case):
    """Return an objective without randomness: labels are the masked tokens, the likeliest token replaces each."""
    generator, discriminator = (build(Encoder, case["config"][part]) for part in ("generator", "discriminator"))
    chosen_BL = case["labels"] >= 0
    positions_BP = np.argsort(~chosen_BL, axis=1, kind="stable")[:, : chosen_BL.sum(1).max()]
    weights_BP = np.take_along_axis(chosen_BL, positions_BP, axis=1)

    def corrupt(rng, batch, spec):
        return Masked(
            jnp.where(chosen_BL, MASK, batch["tokens"]),
            jnp.asarray(positions_BP),
            jnp.take_along_axis(batch["tokens"], positions_BP, axis=1),
            jnp.asarray(weights_BP, jnp.float32),
        )

    sharing = getattr(rtd, case["config"]["sharing"])()
    masking = Masking(mask_id=MASK, random_ids=(0, generator.V))
    return rtd.ReplacedTokenDetection(generator, discriminator, masking, sharing, corrupt, temperature=1e-9)


def states_and_logits(objective, params, case):
    """Return what both encoders and heads make of real positions, by the names of the golden arrays."""
    mask, types, real = jnp.asarray(case["mask"]), jnp.asarray(case["types"]), case["mask"] > 0

    def encode(encoder, params, tokens):
        return apply(encoder, params["encoder"], jnp.asarray(tokens), mask, types)[real]

    generator, discriminator = objective.complete(params).values()
    x_TD = encode(objective.generator, generator, np.where(case["labels"] >= 0, MASK, case["tokens"]))
    y_TD = encode(objective.discriminator, discriminator, case["filled"])
    words, heads = word_table(generator["encoder"]), (objective.generator_objective.head, objective.head)
    return {
        "generator_hidden": x_TD,
        "generator_logits": apply(heads[0], generator["head"]["mlm"], x_TD[None], words)[0],
        "discriminator_hidden": y_TD,
        "discriminator_logits": apply(heads[1], discriminator["head"]["rtd"], y_TD[None])[0],
    }


@pytest.mark.parametrize("name", CASES)
def test_both_models_their_loss_and_its_gradients_are_those_of_transformers(name):
    case = CASES[name]
    objective = objective_of(case)
    batch = {name: jnp.asarray(case[name]) for name in ("tokens", "mask", "types")}
    params = fill(jax.eval_shape(objective.init, jax.random.key(0), batch), case)

    @jax.jit
    def run(params):
        def loss(params):
            return objective.loss(params, batch, jax.random.key(0), train=False)

        value_and_metrics, grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value_and_metrics, grads, states_and_logits(objective, params, case)

    (value, metrics), grads, out = run(params)
    means = {"mlm": "loss/mlm", "rtd": "cross_entropy/rtd", "replaced": "replaced/rtd"}
    out |= {what: metrics[mean].sum / metrics[mean].weight for what, mean in means.items()}
    assert 0 < case["replaced"] < (case["labels"] >= 0).sum() / case["mask"].sum()  # a sample that was right
    compare(case, out | {"loss": value}, grads)
