"""Language heads with a table of their own, and the heads of released DeBERTas: outputs, gradients, the way back.

make_heads_golden.py made the arrays.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import read_cases, write_folder
from safetensors.numpy import load_file

from bertjax.checkpoints.export import save_hf
from bertjax.checkpoints.trained import load

CASES = read_cases("heads")


def not_read(case):
    """Return what replaces tensors that are not read: zeros, or the bias that is read instead."""
    tensors = case["tensors"]
    zeros = {name: np.zeros_like(array) for name, array in tensors.items() if name.endswith("pos_key_proj.bias")}
    biases = {"cls.predictions": "cls.predictions", "lm_head": "lm_head", "predictions": "predictions"}
    pairs = {f"{name}.bias": f"{name}.decoder.bias" for name in biases}
    return zeros | {name: tensors[other] for name, other in pairs.items() if other in tensors}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_those_of_transformers_and_folders_come_back_byte_by_byte(name, tmp_path):
    case = CASES[name]
    model = load(write_folder(case, tmp_path / "theirs"))
    expected = case["tensors"] | not_read(case)
    different = {tensor for tensor, array in case["tensors"].items() if (array != expected[tensor]).any()}
    assert {re.sub(r"^deberta\.", "", name) for name in model.config["huggingface"]["ignored"]} == {
        re.sub(r"^deberta\.", "", name) for name in different
    }
    batch = {key: jnp.asarray(case[key]) for key in ("tokens", "mask", "types")}
    real = case["mask"] > 0

    def run(params):
        out = {"logits": model.objective.language_logits(params, batch)}
        if "replaced" in case:
            out |= {"replaced": model.objective.task_logits(params, batch)}
            out |= {"last_hidden_state": model.objective.encode(params, batch)}
        loss = (out["logits"] * case["wish"]).sum()
        return loss + ((out["replaced"] * case["replaced_wish"]).sum() if "replaced" in case else 0), out

    with jax.disable_jit():  # the small steps are the same in all cases, and compiled once
        grads, out = jax.grad(run, has_aux=True)(model.params)
    for what, ours in out.items():
        np.testing.assert_allclose(np.asarray(ours)[real], case[what][real], rtol=0, atol=1e-5, err_msg=what)

    save_hf(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == expected.keys()
    for tensor, array in expected.items():
        assert again[tensor].shape == array.shape and again[tensor].tobytes() == array.tobytes(), tensor
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config.items() >= json.loads(str(case["config"])).items()
    assert "released" in name or config["tie_word_embeddings"] is False

    # Gradients are laid out as the parameters are. That of a key's bias is 0 but for rounding: see golden.compare. A
    # random head of few ReLUs may let nothing through to what is before it.
    save_hf(dataclasses.replace(model, params=grads), tmp_path / "grads")
    written = load_file(tmp_path / "grads" / "model.safetensors")
    theirs = case["gradients"]
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for tensor in written.keys() - not_read(case).keys():
        query = re.sub(r"key(_proj)?\.bias$", r"query\1.bias", tensor).replace("k_lin.bias", "q_lin.bias")
        bound = max(1e-4 * np.abs(theirs[query]).max(), 1e-6 * largest)
        np.testing.assert_allclose(written[tensor], theirs[tensor], rtol=0, atol=bound, err_msg=tensor)
