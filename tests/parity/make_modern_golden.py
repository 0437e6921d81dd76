"""Make the golden arrays of test_modern_parity.py: what `transformers` computes for tiny random ModernBERTs.

    pip install '.[parity]'
    python tests/parity/make_modern_golden.py

As make_golden.py. `config` has the fields of our Modern, those of its dataclasses by the dataclass's name. ROWS says
which of torch's arrays becomes which of ours; layer 0 has no `attn_norm`, so that our stack of it begins with layer 1.
"""

import numpy as np
import torch
from make_golden import IGNORED, entries, randomised, rng_of, save
from transformers import ModernBertConfig, ModernBertForMaskedLM

LENGTHS = (12, 7, 3)  # longer than eight times a reach of 1, where our windows are computed in blocks
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu"}
BASE = {
    "V": 32, "D": 12, "N": 4, "H": 3, "F": 10, "global_every": 3, "reach": 2, "activation": "gelu",
    "positions": {"theta": 160.0, "local_theta": 10.0}, "norms": {"eps": 1e-5, "bias": False},
    "biases": {"attention": False, "widen": False, "narrow": False, "head": False},
}  # fmt: skip
CASES = {
    "as_published_after_context_extension": BASE,
    "one_theta_and_windows_of_three": BASE | {"positions": {"theta": 50.0, "local_theta": 50.0}, "reach": 1},
    "every_second_layer_global_and_a_rest": BASE | {"N": 3, "global_every": 2, "D": 8, "H": 2, "F": 6, "reach": 1},
    "all_layers_global_and_silu": BASE | {"N": 2, "global_every": 1, "activation": "silu", "D": 16, "H": 4},
    "fewer_layers_than_a_group_and_tanh_gelu": BASE | {"N": 2, "activation": "gelu_tanh"},
    "biases_everywhere_and_eps_as_large_as_variances": BASE
    | {"norms": {"eps": 0.5, "bias": True}, "biases": dict.fromkeys(BASE["biases"], True)},
    "biases_of_attention_and_norms": BASE
    | {"N": 2, "norms": {"eps": 1e-5, "bias": True}, "biases": BASE["biases"] | {"attention": True}},
}


def make_model(case, rng):
    activation, biases = ACTIVATIONS[case["activation"]], case["biases"]
    config = ModernBertConfig(
        vocab_size=case["V"], hidden_size=case["D"], num_hidden_layers=case["N"], num_attention_heads=case["H"],
        intermediate_size=case["F"], hidden_activation=activation, classifier_activation=activation,
        global_attn_every_n_layers=case["global_every"], local_attention=2 * case["reach"],
        global_rope_theta=case["positions"]["theta"], local_rope_theta=case["positions"]["local_theta"],
        norm_eps=case["norms"]["eps"], norm_bias=case["norms"]["bias"], attention_bias=biases["attention"],
        mlp_bias=biases["widen"], classifier_bias=biases["head"], pad_token_id=0, bos_token_id=1, eos_token_id=1,
        cls_token_id=1, sep_token_id=1, attn_implementation="eager",
    )  # fmt: skip
    thetas = {kind: each["rope_theta"] for kind, each in config.rope_parameters.items()}
    assert thetas == dict(zip(("full_attention", "sliding_attention"), case["positions"].values(), strict=True))
    return randomised(ModernBertForMaskedLM(config), rng)


def make_inputs(case, rng):
    shape = (len(LENGTHS), max(LENGTHS))
    mask = np.arange(shape[1]) < np.array(LENGTHS)[:, None]
    labelled = (rng.random(shape) < 0.3) & mask
    labelled[0, 0] = labelled[1, LENGTHS[1] - 1] = True
    inputs = {
        "tokens": np.where(mask, rng.integers(2, case["V"], shape), 0),
        "mask": mask,
        "labels": np.where(labelled, rng.integers(2, case["V"], shape), IGNORED),
    }
    return {key: array.astype(np.int32) for key, array in inputs.items()}


def same(array, heads):
    return array


def transposed(array, heads):
    return array.T


def part(index, of, then=transposed):
    """Take one of the parts that torch keeps in one array."""
    return lambda array, heads: then(np.split(array, of)[index], heads)


def to_heads(array, heads):
    return array.T.reshape(*array.shape[1:], heads, -1)


def from_heads(array, heads):
    return array.T.reshape(heads, -1, array.shape[0])


def in_heads(array, heads):
    return array.reshape(heads, -1)


# Torch's name, ours, and how the array (of a layer) changes, given the number of heads.
ROWS = [
    ("model.embeddings.tok_embeddings.weight", "encoder/embeddings/word/table", same),
    ("model.embeddings.norm.weight", "encoder/embeddings/norm/scale", same),
    ("model.embeddings.norm.bias", "encoder/embeddings/norm/bias", same),
    ("model.layers.{n}.attn_norm.weight", "encoder/layers/attention_norm/scale", same),
    ("model.layers.{n}.attn_norm.bias", "encoder/layers/attention_norm/bias", same),
    ("model.layers.{n}.attn.Wqkv.weight", "encoder/layers/attention/query/kernel", part(0, 3, to_heads)),
    ("model.layers.{n}.attn.Wqkv.weight", "encoder/layers/attention/key/kernel", part(1, 3, to_heads)),
    ("model.layers.{n}.attn.Wqkv.weight", "encoder/layers/attention/value/kernel", part(2, 3, to_heads)),
    ("model.layers.{n}.attn.Wqkv.bias", "encoder/layers/attention/query/bias", part(0, 3, in_heads)),
    ("model.layers.{n}.attn.Wqkv.bias", "encoder/layers/attention/key/bias", part(1, 3, in_heads)),
    ("model.layers.{n}.attn.Wqkv.bias", "encoder/layers/attention/value/bias", part(2, 3, in_heads)),
    ("model.layers.{n}.attn.Wo.weight", "encoder/layers/attention/output/kernel", from_heads),
    ("model.layers.{n}.attn.Wo.bias", "encoder/layers/attention/output/bias", same),
    ("model.layers.{n}.mlp_norm.weight", "encoder/layers/feedforward_norm/scale", same),
    ("model.layers.{n}.mlp_norm.bias", "encoder/layers/feedforward_norm/bias", same),
    ("model.layers.{n}.mlp.Wi.weight", "encoder/layers/feedforward/widen/kernel", part(0, 2)),
    ("model.layers.{n}.mlp.Wi.weight", "encoder/layers/feedforward/gate/kernel", part(1, 2)),
    ("model.layers.{n}.mlp.Wi.bias", "encoder/layers/feedforward/widen/bias", part(0, 2, same)),
    ("model.layers.{n}.mlp.Wi.bias", "encoder/layers/feedforward/gate/bias", part(1, 2, same)),
    ("model.layers.{n}.mlp.Wo.weight", "encoder/layers/feedforward/narrow/kernel", transposed),
    ("model.layers.{n}.mlp.Wo.bias", "encoder/layers/feedforward/narrow/bias", same),
    ("model.final_norm.weight", "encoder/final_norm/scale", same),
    ("model.final_norm.bias", "encoder/final_norm/bias", same),
    ("head.dense.weight", "head/mlm/transform/kernel", transposed),
    ("head.dense.bias", "head/mlm/transform/bias", same),
    ("head.norm.weight", "head/mlm/norm/scale", same),
    ("head.norm.bias", "head/mlm/norm/bias", same),
    ("decoder.bias", "head/mlm/bias", same),
]


def converted(named, case):
    """Rename torch's arrays into our tree: what has {n} is stacked over the layers that have it."""
    found, used = {}, set()
    for theirs, ours, change in ROWS:
        numbers = range(case["N"]) if "{n}" in theirs else [None]
        names = [name for name in (theirs.format(n=n) for n in numbers) if name in named]
        arrays = [change(named[name], case["H"]) for name in names]
        if arrays:
            found[ours] = np.stack(arrays) if "{n}" in theirs else arrays[0]
        used |= set(names)
    assert used == set(named)
    return found


def run_case(name, case):
    rng = rng_of("modernbert", name)
    model, inputs = make_model(case, rng), make_inputs(case, rng)
    tensors = {key: torch.tensor(array).long() for key, array in inputs.items()}
    out = model(
        tensors["tokens"], attention_mask=tensors["mask"], labels=tensors["labels"], output_hidden_states=True
    )  # fmt: skip
    out.loss.backward()
    params = converted({key: p.detach().numpy() for key, p in model.named_parameters()}, case)
    grads = converted({key: p.grad.numpy() for key, p in model.named_parameters()}, case)
    real = inputs["mask"] > 0
    hidden = model.model(tensors["tokens"], attention_mask=tensors["mask"]).last_hidden_state
    outputs = {"hidden": hidden.detach().numpy()[real], "logits": out.logits.detach().numpy()[real]}
    return entries(case, inputs | outputs | {"loss": out.loss.detach().numpy()}, params, grads)


if __name__ == "__main__":
    save("modern", {name: run_case(name, case) for name, case in CASES.items()})
