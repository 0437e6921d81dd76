"""Make the golden folders of test_huggingface_parity.py: what `transformers` saves and computes, class by class.

    pip install '.[parity]'
    python tests/parity/make_huggingface_golden.py

One entry per class, with a random tiny configuration: `config` (its config.json), the tensors that transformers saves
(`tensors`: a JSON list of names and shapes; `values`: all their values one after another, exactly as float16), inputs
and outputs. All classes have the same sizes, so that the test compiles little. A new family is one line of FAMILIES;
VARIANTS are written to a file of their own.
"""

import inspect
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from make_golden import randomised, rng_of, save
from safetensors.numpy import load_file


class Sizes(NamedTuple):
    """The sizes and options that all families have."""

    D: int
    N: int
    H: int
    F: int
    activation: str
    eps: float


class Golden(NamedTuple):
    """A family of transformers: its classes without a task, and the keys of its config beyond those of all families."""

    classes: tuple[str, ...]
    keys: Callable[[Sizes, np.random.Generator], dict[str, Any]]
    pad_left: bool = False


def bert(s, rng):
    """Return BERT's keys without those of segments."""
    return {
        "hidden_size": s.D, "num_hidden_layers": s.N, "num_attention_heads": s.H, "intermediate_size": s.F,
        "hidden_act": s.activation, "layer_norm_eps": s.eps, "max_position_embeddings": 9,
    }  # fmt: skip


def with_segments(s, rng):
    return bert(s, rng) | {"type_vocab_size": int(rng.integers(1, 3))}


def with_narrow_embeddings(s, rng):
    width = int(rng.choice([s.D, s.D - 1, 3]))
    return with_segments(s, rng) | {"embedding_size": width}


def distilbert(s, rng):
    return {
        "dim": s.D, "n_layers": s.N, "n_heads": s.H, "hidden_dim": s.F, "activation": s.activation,
        "max_position_embeddings": 9,
    }  # fmt: skip


def xlnet(s, rng):
    return {
        "d_model": s.D, "n_layer": s.N, "n_head": s.H, "d_inner": s.F, "ff_activation": s.activation,
        "layer_norm_eps": s.eps, "clamp_len": int(rng.choice([-1, 3])),
    }  # fmt: skip


def modernbert(s, rng):
    flags = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")
    return {flag: bool(rng.integers(2)) for flag in flags} | {
        "hidden_size": s.D, "num_hidden_layers": s.N, "num_attention_heads": s.H, "intermediate_size": s.F,
        "norm_eps": s.eps, "hidden_activation": s.activation,
        "classifier_activation": str(rng.choice(["gelu", "silu"])),
        "classifier_pooling": str(rng.choice(["cls", "mean"])), "local_attention": 2 * int(rng.integers(1, 3)),
        "global_attn_every_n_layers": int(rng.integers(1, 3)), "global_rope_theta": 160.0, "local_rope_theta": 10.0,
        "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 1, "bos_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip


def of_both_debertas(s, rng):
    terms = [["c2p", "p2c"], "p2c|c2p", ["c2p"], ["p2c"]]
    return bert(s, rng) | {
        "relative_attention": True, "position_biased_input": False, "type_vocab_size": 0,
        "pos_att_type": terms[rng.integers(len(terms))], "max_relative_positions": int(rng.choice([-1, 7])),
        "pooler_hidden_act": str(rng.choice(["gelu", "tanh"])),
    }  # fmt: skip


# Of the two heads for words each version has one.
def deberta(s, rng):
    return of_both_debertas(s, rng) | {"legacy": True, "embedding_size": int(rng.choice([s.D, 3]))}


def deberta_v2(s, rng):
    return of_both_debertas(s, rng) | {
        "legacy": False, "position_buckets": int(rng.choice([-1, 4])), "share_att_key": bool(rng.integers(2)),
        "norm_rel_ebd": str(rng.choice(["none", "layer_norm"])), "conv_kernel_size": int(rng.choice([0, 3])),
        "conv_act": str(rng.choice(["tanh", "mish"])),
    }  # fmt: skip


FAMILIES = {
    "Bert": Golden(("Model", "ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction"), with_segments),
    "Roberta": Golden(("Model", "ForMaskedLM"), with_segments),
    "XLMRoberta": Golden(("Model", "ForMaskedLM"), with_segments),
    "Camembert": Golden(("Model", "ForMaskedLM"), with_segments),
    "DistilBert": Golden(("Model", "ForMaskedLM"), distilbert),
    "Albert": Golden(("Model", "ForPreTraining", "ForMaskedLM"), with_narrow_embeddings),
    "Electra": Golden(("Model", "ForPreTraining", "ForMaskedLM"), with_narrow_embeddings),
    "XLNet": Golden(("Model", "LMHeadModel"), xlnet, pad_left=True),  # so that the last position is real
    "ModernBert": Golden(("Model", "ForMaskedLM"), modernbert),
    "Deberta": Golden(("Model", "ForMaskedLM"), deberta),
    "DebertaV2": Golden(("Model", "ForMaskedLM"), deberta_v2),
}
# Values of keys that the configs above do not draw, by the class and a name for them.
VARIANTS = {
    "AlbertForMaskedLM groups": {"num_hidden_layers": 4, "num_hidden_groups": 3},
    "AlbertModel inner layers": {"num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2},
    "XLMRobertaForMaskedLM padding that texts have": {"pad_token_id": 5, "max_position_embeddings": 16},
    "ModernBertForMaskedLM no decoder_bias": {"decoder_bias": False},
    "ModernBertForMaskedLM untied, no decoder_bias": {"decoder_bias": False, "tie_word_embeddings": False},
    "ModernBertModel layer_types": {
        "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "local_attention": 3,
    },
}  # fmt: skip
HEADS = (
    "ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification", "ForQuestionAnswering",
    "ForQuestionAnsweringSimple",
)  # fmt: skip
LENGTHS = (6, 4)
FIRST_ID = 4  # below it are the specials, among them the padding


def names(family):
    """List the classes of a family; where it has a simple head for questions, its other one is left out."""
    heads = [family + head for head in HEADS if hasattr(transformers, family + head)]
    of_tasks = [name for name in heads if f"{name}Simple" not in heads]
    return [family + name for name in FAMILIES[family].classes] + of_tasks


def make_config(family, name, rng, variant):
    """Draw a configuration: every option that we read takes several values, but for those of `variant`."""
    sizes = rng_of("huggingface", "sizes")
    H, K, N = int(sizes.integers(2, 4)), 2 * int(sizes.integers(1, 3)), int(sizes.integers(2, 4))
    F, V = int(sizes.integers(3, 12)), int(sizes.integers(12, 24))
    activation = str(rng.choice(["gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh"]))
    labels = 2 if "QuestionAnswering" in name else int(rng.integers(1, 5))
    eps = float(rng.choice([1e-12, 1e-5, 0.25]))
    keys = FAMILIES[family].keys(Sizes(H * K, N, H, F, activation, eps), rng) | variant
    config = getattr(transformers, f"{family}Config")
    return config(num_labels=labels, vocab_size=V, attn_implementation="eager", **keys)


def make_inputs(family, name, config, rng):
    """Draw a batch."""
    shape = (2, len(LENGTHS)) if "MultipleChoice" in name else (len(LENGTHS),)
    L = max(LENGTHS)
    mask = np.broadcast_to(np.arange(L) < np.array(LENGTHS)[:, None], (*shape, L))
    if FAMILIES[family].pad_left:
        mask = mask[..., ::-1]
    tokens = np.where(mask, rng.integers(FIRST_ID, config.vocab_size, mask.shape), config.pad_token_id)
    types = np.where(mask, rng.integers(0, getattr(config, "type_vocab_size", 2) or 1, mask.shape), 0)
    inputs = {"tokens": tokens, "mask": mask, "types": types}
    return {key: np.ascontiguousarray(array, np.int32) for key, array in inputs.items()}


def run(model, inputs):
    """Run a model on a batch, with segments where it has them."""
    tensors = {key: torch.tensor(array).long() for key, array in inputs.items()}
    has_segments = "token_type_ids" in inspect.signature(model.forward).parameters
    segments = {"token_type_ids": tensors["types"]} if has_segments else {}
    return model(tensors["tokens"], attention_mask=tensors["mask"], **segments)


def run_case(family, name, variant=None):
    """Save a random model and run it."""
    rng = rng_of("huggingface", name)
    config = make_config(family, name, rng, variant or {})
    model, inputs = randomised(getattr(transformers, name)(config), rng), make_inputs(family, name, config, rng)
    with torch.no_grad():
        out = run(model, inputs)
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
    save("huggingface", {name: run_case(family, name) for family in FAMILIES for name in names(family)})
    of_families = {name: family for family in FAMILIES for name in names(family)}
    variants = {what: (what.split(" ")[0], keys) for what, keys in VARIANTS.items()}
    save("variants", {what: run_case(of_families[name], name, keys) for what, (name, keys) in variants.items()})
