"""Make the golden folders of test_huggingface_parity.py: what `transformers` saves and computes, class by class.

    pip install '.[parity]'
    python tests/parity/make_huggingface_golden.py

One entry per class, with a random tiny configuration: `config` (its config.json), the tensors that transformers saves
(`tensors`: a JSON list of names and shapes; `values`: all their values one after another, exactly as float16), inputs
and outputs. All classes have the same sizes, so that the test compiles little.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from make_golden import randomised, rng_of, save
from safetensors.numpy import load_file

HEADS = ("SequenceClassification", "MultipleChoice", "TokenClassification", "QuestionAnswering")
CLASSES = {
    "Bert": ("Model", "ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction"),
    "Roberta": ("Model", "ForMaskedLM"),
    "XLMRoberta": ("Model", "ForMaskedLM"),
    "DistilBert": ("Model", "ForMaskedLM"),
    "Albert": ("Model", "ForPreTraining", "ForMaskedLM"),
    "Electra": ("Model", "ForPreTraining", "ForMaskedLM"),
    "XLNet": ("Model", "LMHeadModel"),
    "ModernBert": ("Model", "ForMaskedLM"),
    "Deberta": ("Model", "ForMaskedLM"),
    "DebertaV2": ("Model", "ForMaskedLM"),
}
LENGTHS = (6, 4)
FIRST_ID = 4  # below it are the specials, among them the padding


def names(family):
    """List the classes of a family."""
    heads = [f"For{head}" for head in HEADS if (family, head) != ("Deberta", "MultipleChoice")]
    if family == "XLNet":
        heads[-1] += "Simple"
    return [family + name for name in (*CLASSES[family], *heads)]


def make_config(family, name, rng):
    """Draw a configuration: every option that we read takes several values."""
    sizes = rng_of("huggingface", "sizes")
    H, K, N = int(sizes.integers(2, 4)), 2 * int(sizes.integers(1, 3)), int(sizes.integers(2, 4))
    D, F, V = H * K, int(sizes.integers(3, 12)), int(sizes.integers(12, 24))
    activation = str(rng.choice(["gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh"]))
    labels = 2 if "QuestionAnswering" in name else int(rng.integers(1, 5))
    given = {"num_labels": labels, "vocab_size": V, "attn_implementation": "eager"}
    eps = float(rng.choice([1e-12, 1e-5, 0.25]))
    config = getattr(transformers, f"{family}Config")
    if family == "DistilBert":
        return config(
            dim=D, n_layers=N, n_heads=H, hidden_dim=F, activation=activation, max_position_embeddings=9, **given
        )
    if family == "XLNet":
        clamp = int(rng.choice([-1, 3]))
        given |= {"layer_norm_eps": eps, "clamp_len": clamp}
        return config(d_model=D, n_layer=N, n_head=H, d_inner=F, ff_activation=activation, **given)
    if family == "ModernBert":
        flags = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")
        given |= {flag: bool(rng.integers(2)) for flag in flags} | dict.fromkeys(("bos_token_id", "eos_token_id"), 1)
        return config(
            hidden_size=D, num_hidden_layers=N, num_attention_heads=H, intermediate_size=F, norm_eps=eps,
            hidden_activation=activation, classifier_activation=str(rng.choice(["gelu", "silu"])),
            classifier_pooling=str(rng.choice(["cls", "mean"])), local_attention=2 * int(rng.integers(1, 3)),
            global_attn_every_n_layers=int(rng.integers(1, 3)), global_rope_theta=160.0, local_rope_theta=10.0,
            pad_token_id=0, cls_token_id=1, sep_token_id=1, **given,
        )  # fmt: skip
    if family in ("Albert", "Electra"):
        given["embedding_size"] = int(rng.choice([D, D - 1, 3]))
    if family.startswith("Deberta"):
        given |= deberta_options(family, D, activation, rng)
    else:
        given["type_vocab_size"] = int(rng.integers(1, 3))
    given |= {"layer_norm_eps": eps, "max_position_embeddings": 9}
    return config(
        hidden_size=D, num_hidden_layers=N, num_attention_heads=H, intermediate_size=F, hidden_act=activation, **given
    )


def deberta_options(family, D, activation, rng):
    """Draw what only DeBERTa has. Of the two heads for words each version has one."""
    terms = [["c2p", "p2c"], "p2c|c2p", ["c2p"], ["p2c"]]
    options = {
        "relative_attention": True, "position_biased_input": False, "type_vocab_size": 0,
        "pos_att_type": terms[rng.integers(len(terms))], "max_relative_positions": int(rng.choice([-1, 7])),
        "pooler_hidden_act": str(rng.choice(["gelu", "tanh"])), "legacy": family == "Deberta",
    }  # fmt: skip
    if family == "Deberta":
        return options | {"embedding_size": int(rng.choice([D, 3]))}
    return options | {
        "position_buckets": int(rng.choice([-1, 4])), "share_att_key": bool(rng.integers(2)),
        "norm_rel_ebd": str(rng.choice(["none", "layer_norm"])), "conv_kernel_size": int(rng.choice([0, 3])),
        "conv_act": activation,
    }  # fmt: skip


def make_inputs(family, name, config, rng):
    """Draw a batch: XLNet's rows are padded on their left, so that the last position is real."""
    shape = (2, len(LENGTHS)) if "MultipleChoice" in name else (len(LENGTHS),)
    L = max(LENGTHS)
    mask = np.broadcast_to(np.arange(L) < np.array(LENGTHS)[:, None], (*shape, L))
    if family == "XLNet":
        mask = mask[..., ::-1]
    tokens = np.where(mask, rng.integers(FIRST_ID, config.vocab_size, mask.shape), config.pad_token_id)
    types = np.where(mask, rng.integers(0, getattr(config, "type_vocab_size", 2) or 1, mask.shape), 0)
    inputs = {"tokens": tokens, "mask": mask, "types": types}
    return {key: np.ascontiguousarray(array, np.int32) for key, array in inputs.items()}


def run_case(family, name):
    """Save a random model and run it."""
    rng = rng_of("huggingface", name)
    config = make_config(family, name, rng)
    model, inputs = randomised(getattr(transformers, name)(config), rng), make_inputs(family, name, config, rng)
    tensors = {key: torch.tensor(array).long() for key, array in inputs.items()}
    segments = {} if family in ("DistilBert", "ModernBert") else {"token_type_ids": tensors["types"]}
    with torch.no_grad():
        out = model(tensors["tokens"], attention_mask=tensors["mask"], **segments)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = load_file(Path(folder) / "model.safetensors")
        described = json.loads((Path(folder) / "config.json").read_text())
    assert all((array == array.astype(np.float16)).all() for array in saved.values())
    found = {key: out[key].numpy() for key in OUTPUTS if out.get(key) is not None}
    shapes = [[key, array.shape] for key, array in saved.items()]
    found["values"] = np.concatenate([array.ravel() for array in saved.values()]).astype(np.float16)
    return inputs | found | {"tensors": np.array(json.dumps(shapes)), "config": np.array(json.dumps(described))}


OUTPUTS = ("last_hidden_state", "pooler_output", "logits", "prediction_logits", "seq_relationship_logits", "sop_logits",
           "start_logits", "end_logits")  # fmt: skip

if __name__ == "__main__":
    save("huggingface", {name: run_case(family, name) for family in CLASSES for name in names(family)})
