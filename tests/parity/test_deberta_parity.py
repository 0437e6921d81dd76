"""Our DeBERTa against torch's; make_deberta_golden.py says what the arrays are and how they were made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import build, compare, fill, golden

from bertjax.models.deberta import DeBERTa

CASES = golden("deberta")


def inputs_of(case, rows):
    """Return tokens and mask as torch had them, one document a row, or all documents side by side in one row."""
    tokens, mask = case["tokens"], case["mask"]
    if rows == "packed":
        tokens, mask = (x[case["mask"] > 0][None] for x in (tokens, np.arange(1, len(mask) + 1)[:, None] * mask))
    return jnp.asarray(tokens), jnp.asarray(mask)


@pytest.mark.parametrize(
    ("name", "rows"), [(name, "padded") for name in CASES] + [(name, "packed") for name in CASES if "published" in name]
)
def test_hidden_states_decoded_states_and_gradients_are_those_of_transformers(name, rows):
    case = CASES[name]
    encoder = build(DeBERTa, case["config"], terms=tuple(case["config"]["terms"]))
    tokens, mask = inputs_of(case, rows)
    real = np.asarray(mask) > 0
    params = fill(jax.eval_shape(encoder.init, jax.random.key(0), tokens, mask)["params"], case)

    def run(params):
        hidden, decoded = encoder.apply({"params": params}, tokens, mask, method="hidden")
        out = {"hidden": hidden[real]} | ({"decoded": decoded[real]} if encoder.decoder else {})
        return sum((x * case[f"{key}_wish"]).sum() for key, x in out.items()), out

    (_, out), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    assert set(out) == {"hidden", "decoded"} & set(case)
    compare(case, out, grads)
