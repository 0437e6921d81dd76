"""Our modern encoder and its head against torch's; make_modern_golden.py says what the arrays are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import build, compare, fill, golden

from bertjax.masking import Masking
from bertjax.models.language import word_table
from bertjax.models.modern import Biases, Modern, Norms
from bertjax.models.positions import Rotary
from bertjax.objectives.losses import negative_log_likelihood
from bertjax.objectives.mlm import MaskedLM

CASES = golden("modern")
PARTS = {"positions": Rotary, "norms": Norms, "biases": Biases}


def batch_of(case, rows):
    """Return the inputs as torch had them, one document a row, or all documents side by side in one row."""
    batch = {name: jnp.asarray(case[name]) for name in ("tokens", "mask")}
    if rows == "padded":
        return batch
    number = np.arange(1, len(case["mask"]) + 1)[:, None] * case["mask"]
    return {name: array[case["mask"] > 0][None] for name, array in (batch | {"mask": jnp.asarray(number)}).items()}


@pytest.mark.parametrize(
    ("name", "rows"), [(name, "padded") for name in CASES] + [(name, "packed") for name in CASES if "published" in name]
)
def test_hidden_states_logits_and_gradients_are_those_of_transformers(name, rows):
    case, batch = CASES[name], batch_of(CASES[name], rows)
    parts = {key: kind(**case["config"][key]) for key, kind in PARTS.items()}
    encoder = build(Modern, case["config"], **parts)
    objective = MaskedLM(encoder, Masking(mask_id=0, random_ids=(0, encoder.V)))
    params = fill(jax.eval_shape(objective.init, jax.random.key(0), batch), case)
    labels_T = case["labels"][case["mask"] > 0]
    chosen = np.flatnonzero(labels_T >= 0)

    def loss(params):
        x_BLD = encoder.apply({"params": params["encoder"]}, batch["tokens"], batch["mask"])
        x_TD = x_BLD[np.asarray(batch["mask"]) > 0]
        table = word_table(params["encoder"])
        logits_TV = objective.head.apply({"params": params["head"]["mlm"]}, x_TD[None], table)[0]
        mean = negative_log_likelihood(logits_TV[chosen], jnp.asarray(labels_T[chosen])).mean()
        return mean, {"hidden": x_TD, "logits": logits_TV}

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    compare(case, out | {"loss": value}, grads)
