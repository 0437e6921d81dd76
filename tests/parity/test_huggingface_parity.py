"""Folders of transformers, each of its classes: what we compute, and that they come back byte by byte.

make_huggingface_golden.py made the arrays.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import read_cases, write_folder
from safetensors.numpy import load_file

from bertjax.checkpoints.export import save_hf
from bertjax.checkpoints.trained import load
from bertjax.errors import InputError
from bertjax.models.layers import apply
from bertjax.models.positions import Rotary

CASES = read_cases("huggingface") | read_cases("variants")


def outputs_of(model, case):
    """Compute all that transformers gave, by its names."""
    batch = {name: jnp.asarray(case[name]) for name in ("tokens", "mask", "types")}
    out = {}
    if "last_hidden_state" in case:
        out["last_hidden_state"] = model.encode(batch)
    if "pooler_output" in case:
        head = model.objective.heads["pair"]
        out["pooler_output"] = apply(head, model.params["head"]["pair"], model.encode(batch))
    heads = set(model.params.get("head", {}))
    words = [name for name in ("logits", "prediction_logits") if name in case]
    if heads & {"mlm", "plm"}:
        out[words[0]] = model.mlm_logits(batch)
        heads -= {"mlm", "plm"}
    if "span" in heads:
        out["start_logits"], out["end_logits"] = jnp.moveaxis(model.logits(batch), -1, 0)
    elif heads and "pooler_output" not in case:
        names = [name for name in ("seq_relationship_logits", "sop_logits", "logits") if name in case]
        out[names[0]] = model.logits(batch)
    return out


EXPECTED = {"last_hidden_state", "pooler_output", "logits", "prediction_logits", "seq_relationship_logits",
            "sop_logits", "start_logits", "end_logits"}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_class_computes_what_transformers_does_and_comes_back_byte_by_byte(name, tmp_path):
    case = CASES[name]
    model = load(write_folder(case, tmp_path / "theirs"))
    unread = {tensor for tensor in case["tensors"] if tensor.endswith("pos_key_proj.bias")}  # it changes nothing
    ignored = {tensor.removeprefix("deberta.") for tensor in model.config["huggingface"]["ignored"]}  # by full names
    assert model.tokenizer is None and ignored == {tensor.removeprefix("deberta.") for tensor in unread}
    with jax.disable_jit():  # the small steps are the same in all cases, and compiled once
        found = outputs_of(model, case)
    assert found.keys() == EXPECTED & case.keys()
    for what, ours in found.items():
        expected, mask = case[what], case["mask"]
        assert ours.shape == expected.shape
        real = mask > 0 if expected.shape[: mask.ndim] == mask.shape else np.ones(len(expected), bool)
        np.testing.assert_allclose(np.asarray(ours)[real], expected[real], rtol=0, atol=1e-5, err_msg=what)
    save_hf(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == case["tensors"].keys()
    for tensor, array in case["tensors"].items():
        array = np.zeros_like(array) if tensor in unread else array
        assert again[tensor].shape == array.shape and again[tensor].tobytes() == array.tobytes(), tensor
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(str(case["config"]))


@pytest.mark.parametrize("keys", [{"same_length": True}, {"untie_r": False}])
def test_keys_of_xlnet_that_transformers_does_not_read_in_both_directions_change_nothing(keys, tmp_path):
    case = CASES["XLNetModel"]
    config = json.loads(str(case["config"])) | keys
    model = load(write_folder(case | {"config": json.dumps(config)}, tmp_path / "theirs"))
    with jax.disable_jit():
        states = outputs_of(model, case)["last_hidden_state"]
    real = case["mask"] > 0
    np.testing.assert_allclose(states[real], case["last_hidden_state"][real], rtol=0, atol=1e-5)
    save_hf(model, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


def test_bi_data_of_xlnet_is_read_forwards_with_a_note(tmp_path):
    case = CASES["XLNetModel"]
    config = json.loads(str(case["config"])) | {"bi_data": True}
    model = load(write_folder(case | {"config": json.dumps(config)}, tmp_path / "theirs"))
    with jax.disable_jit():
        states = outputs_of(model, case)["last_hidden_state"]
    np.testing.assert_allclose(states[0], case["last_hidden_state"][0], rtol=0, atol=1e-5)
    (note,) = model.config["huggingface"]["reported"]
    assert "bi_data=true" in note and "transformers reads the second half of a batch backwards" in note


def test_modernbert_without_thetas_has_those_of_transformers(tmp_path):
    case = CASES["ModernBertModel"]
    config = json.loads(str(case["config"])) | {"rope_parameters": None}
    model = load(write_folder(case | {"config": json.dumps(config)}, tmp_path / "none"))
    assert model.encoder.positions == Rotary(160_000.0, 10_000.0)
    one = {"rope_parameters": {"full_attention": {"rope_theta": 50.0}}, "local_rope_theta": 20.0}
    model = load(write_folder(case | {"config": json.dumps(config | one)}, tmp_path / "one"))
    assert model.encoder.positions == Rotary(50.0, 20.0)
    scaled = {"rope_parameters": {"full_attention": {"type": "linear", "factor": 2.0, "rope_theta": 50.0}}}
    with pytest.raises(InputError, match=r"rope_parameters: .*'linear'.* only rope_type=default"):
        load(write_folder(case | {"config": json.dumps(config | scaled)}, tmp_path / "scaled"))
    odd = {"layer_types": ["full_attention", "chunked_attention"], "num_hidden_layers": 2}
    with pytest.raises(
        InputError, match=r"layer_types: .* is not one of full_attention, sliding_attention for each of"
    ):
        load(write_folder(case | {"config": json.dumps(config | odd)}, tmp_path / "odd"))


def test_older_configs_of_modernbert_are_read_as_todays(tmp_path):
    case = CASES["ModernBertForMaskedLM"]
    config = json.loads(str(case["config"]))
    rope = config.pop("rope_parameters")
    types = config.pop("layer_types")
    whole = [n for n, kind in enumerate(types) if kind == "full_attention"]
    old = {
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        "global_attn_every_n_layers": whole[1] if len(whole) > 1 else len(types),
    }
    new = load(write_folder(case, tmp_path / "new"))
    again = load(write_folder(case | {"config": json.dumps(config | old)}, tmp_path / "old"))
    assert again.encoder.positions == new.encoder.positions
    assert again.encoder.N == new.encoder.N and again.config["huggingface"]["config"]["layer_types"] == types
