"""Our encoder, heads and losses against torch's; make_golden.py says what the arrays are and how they were made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import build, compare, fill, golden

from bertjax.masking import Masking
from bertjax.models.encoder import Encoder
from bertjax.models.language import word_table
from bertjax.objectives.losses import negative_log_likelihood
from bertjax.objectives.mlm import MaskedLM

CASES = golden("bert", "roberta", "albert")


def objective_of(case):
    encoder = build(Encoder, case["config"])
    return MaskedLM(encoder, Masking(mask_id=0, random_ids=(0, encoder.V)), pair="pair_logits" in case)


def batch_of(case, rows):
    """Return the inputs as torch had them, one document a row, or all documents side by side in one row."""
    batch = {name: jnp.asarray(case[name]) for name in ("tokens", "mask", "types")}
    if rows == "padded":
        return batch
    number = np.arange(1, len(case["mask"]) + 1)[:, None] * case["mask"]
    return {name: array[case["mask"] > 0][None] for name, array in (batch | {"mask": jnp.asarray(number)}).items()}


def forward(objective, params, batch, first_T):
    """Return hidden_TD, logits_TV and pair logits of all real positions, where documents start at first_T."""
    x_BLD = objective.encoder.apply({"params": params["encoder"]}, batch["tokens"], batch["mask"], batch["types"])
    x_TD = x_BLD[np.asarray(batch["mask"]) > 0]
    logits_BTV = objective.head.apply({"params": params["head"]["mlm"]}, x_TD[None], word_table(params["encoder"]))
    out = {"hidden": x_TD, "logits": logits_BTV[0]}
    if objective.pair:
        out["pair_logits"] = objective.pair_head.apply({"params": params["head"]["pair"]}, x_TD[first_T, None])
    return out


@pytest.mark.parametrize(
    ("name", "rows"), [(name, "padded") for name in CASES] + [(name, "packed") for name in CASES if "published" in name]
)
def test_hidden_states_logits_and_gradients_are_those_of_transformers(name, rows):
    case = CASES[name]
    objective, batch, real = objective_of(case), batch_of(case, rows), case["mask"] > 0
    params = fill(jax.eval_shape(objective.init, jax.random.key(0), batch | {"pair": jnp.zeros(1)}), case)
    labels_T = case["labels"][real]
    chosen = np.flatnonzero(labels_T >= 0)
    first_T = np.cumsum(real.sum(1)) - real.sum(1)

    def loss(params):
        out = forward(objective, params, batch, first_T)
        mean = negative_log_likelihood(out["logits"][chosen], jnp.asarray(labels_T[chosen])).mean()
        if objective.pair:
            mean += negative_log_likelihood(out["pair_logits"], jnp.asarray(case["pair"])).mean()
        return mean, out

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    compare(case, out | {"loss": value}, grads)
