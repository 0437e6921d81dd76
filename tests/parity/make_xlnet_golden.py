"""Make the golden arrays of test_xlnet_parity.py: what `transformers` computes for tiny random XLNets.

    pip install '.[parity]'
    python tests/parity/make_xlnet_golden.py

As make_golden.py, but a case has consecutive windows: inputs are [C, B, L], a memory of given states stands before the
first window, and outputs are those of all windows, at real positions (content), at targets (query) and at labels
(logits). `memory` holds what each window leaves. The loss is the sum of the windows'; no gradient passes from one to
the next.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from make_golden import IGNORED, entries, randomised, rng_of, save
from transformers import XLNetConfig, XLNetLMHeadModel
from transformers.models.xlnet.modeling_xlnet import XLNetSequenceSummary

B, L, P = 2, 8, 3
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new"}


@dataclass
class Case:
    """The differences from XLNet as published, and the inputs."""

    model: dict = field(default_factory=dict)  # fields of our XLNet
    order: str = "random"  # with two streams; "left to right", or "none"
    windows: int = 1
    memory: int = 0
    reuse: int = 0
    segments: bool = True
    two_directions: bool = False
    padding: tuple[int, int] = (0, 0)  # on the left of each row
    summary: bool = False


BASE = {"V": 24, "D": 12, "N": 2, "H": 3, "F": 14, "norm_eps": 1e-12, "activation": "gelu_tanh"}
CASES = {
    "as_published": Case(),
    "memory_over_two_windows": Case(windows=2, memory=6, reuse=4),
    "two_directions": Case(two_directions=True),
    "two_directions_clamped_with_memory": Case({"clamp": 4}, windows=2, memory=5, reuse=3, two_directions=True),
    "clamped_without_segments": Case({"clamp": 3}, segments=False),
    "left_to_right_of_the_same_length_with_memory": Case(
        {"same_length": True}, "left to right", windows=2, memory=3, reuse=3
    ),
    "padded_on_the_left_and_summarised": Case({"norm_eps": 0.5}, "none", padding=(0, 3), summary=True),
    "erf_gelu_five_heads_and_one_layer": Case({"D": 10, "H": 5, "N": 1, "activation": "gelu"}),
}


def make_model(case, config, rng):
    directions = "uni" if case.order == "left to right" else "bi"
    settings = XLNetConfig(
        vocab_size=config["V"], d_model=config["D"], n_layer=config["N"], n_head=config["H"], d_inner=config["F"],
        ff_activation=ACTIVATIONS[config["activation"]], layer_norm_eps=config["norm_eps"], attn_type=directions,
        clamp_len=config.get("clamp", -1), same_length=config.get("same_length", False), bi_data=case.two_directions,
        mem_len=case.memory or None, reuse_len=case.reuse or None,
    )  # fmt: skip
    model = XLNetLMHeadModel(settings)
    if case.summary:
        model.summary = XLNetSequenceSummary(settings)
    return randomised(model, rng)


def make_inputs(case, config, rng):
    """Make what our XLNet is given; absent is what the case does without."""
    shape = (case.windows, B, L)
    real = np.broadcast_to(np.arange(L) >= np.array(case.padding)[:, None], shape)
    inputs = {"tokens": rng.integers(0, config["V"], shape), "mask": real.astype(int)}
    if case.segments:
        inputs["types"] = rng.integers(0, 2, shape)
    if case.order == "random":
        # Some see each other (rank -1), the rest has an order; the last of it are targets.
        ranks = rng.permuted(np.broadcast_to(np.arange(L), shape), axis=-1) - L // 2
        inputs["ranks"] = np.maximum(ranks, -1)
        inputs["positions"] = np.sort(np.argsort(ranks, axis=-1)[..., -P:], axis=-1)
        inputs["labels"] = np.take_along_axis(inputs["tokens"], inputs["positions"], axis=-1)
    else:
        inputs["labels"] = np.where(real & (rng.random(shape) < 0.5), rng.integers(0, config["V"], shape), IGNORED)
    if case.order == "left to right":
        inputs["ranks"] = np.broadcast_to(np.arange(L), shape)
    if case.two_directions:
        inputs["sign"] = np.repeat([1, -1], B // 2)
    inputs = {key: array.astype(np.int32) for key, array in inputs.items()}
    if case.memory:
        size = (config["N"], B, case.memory, config["D"])
        inputs["given"] = rng.normal(size=size).astype(np.float16).astype(np.float32)
    return inputs


def run_window(model, case, inputs, mems):
    """Run one window by torch, with the arguments of transformers."""
    tensors = {key: torch.tensor(array).long() for key, array in inputs.items()}
    arguments = {"labels": tensors["labels"], "token_type_ids": tensors.get("types")}
    if case.order == "random":
        ranks = tensors["ranks"]
        # All that is of lower or the same rank, but not itself: torch lets the content stream see itself.
        seen = (ranks[:, :, None] >= ranks[:, None, :]) & ~torch.eye(L, dtype=torch.bool)
        arguments["perm_mask"] = (~seen).float()
        arguments["target_mapping"] = torch.nn.functional.one_hot(tensors["positions"], L).float()
    if any(case.padding):
        arguments["attention_mask"] = tensors["mask"].float()
    return model(tensors["tokens"], mems=mems, use_mems=case.memory > 0, output_hidden_states=True, **arguments)


def run_case(name, case):
    rng, config = rng_of("xlnet", name), BASE | case.model
    model, inputs = make_model(case, config, rng), make_inputs(case, config, rng)
    mems = [torch.tensor(states).transpose(0, 1) for states in inputs["given"]] if case.memory else None
    loss, found = 0, {}
    for number in range(case.windows):
        window = {key: array[number] for key, array in inputs.items() if key not in ("sign", "given")}
        out = run_window(model, case, window, mems)
        loss, mems, two = loss + out.loss, out.mems, case.order == "random"
        outputs = {"content": out.hidden_states[-2 if two else -1][window["mask"] > 0]}
        outputs |= {"query": out.hidden_states[-1]} if two else {}
        outputs["logits"] = out.logits[window["labels"] != IGNORED]
        if case.memory:
            outputs["memory"] = torch.stack(mems).transpose(1, 2)
        if case.summary:
            outputs["summary"] = model.summary(out.hidden_states[-1])
            loss = loss + outputs["summary"].sum()
        for key, tensor in outputs.items():
            found.setdefault(key, []).append(tensor.detach().numpy())
    loss.backward()
    arrays = inputs | {"loss": loss.detach().numpy()}
    arrays |= {key: (np.stack if key == "memory" else np.concatenate)(each) for key, each in found.items()}
    params = converted({key: p.detach().numpy() for key, p in model.named_parameters()})
    zeros = {key: torch.zeros_like(p) for key, p in model.named_parameters() if p.grad is None}
    grads = converted({key: zeros.get(key, p.grad).numpy() for key, p in model.named_parameters()})
    return entries(config | {"reuse": case.reuse}, arrays, params, grads)


ATTENTION = {
    "q": "query/kernel",
    "k": "key/kernel",
    "v": "value/kernel",
    "o": "output/kernel",
    "r": "position_kernel",
    "r_w_bias": "content_bias",
    "r_r_bias": "position_bias",
    "r_s_bias": "segment_bias",
    "seg_embed": "segment_table",
}
MODULES = {
    "rel_attn.layer_norm": "attention_norm",
    "ff.layer_norm": "feedforward_norm",
    "ff.layer_1": "feedforward/widen",
    "ff.layer_2": "feedforward/narrow",
}
ROOTS = {
    "transformer.word_embedding.weight": "encoder/embeddings/word/table",
    "transformer.mask_emb": "encoder/mask_embedding",
    "lm_loss.bias": "head/plm/bias",
    "summary.summary.weight": "head/summary/summary/kernel",
    "summary.summary.bias": "head/summary/summary/bias",
}


def converted(named):
    """Rename torch's arrays into our tree: kernels of dense layers transposed, layers stacked."""
    found, stacked = {}, {}
    for name, array in named.items():
        if name in ROOTS:
            array = array.T if name.endswith("summary.weight") else array
            found[ROOTS[name]] = array[0, 0] if name.endswith("mask_emb") else array
            continue
        number, module = name.removeprefix("transformer.layer.").split(".", 1)
        module, kind = module.rsplit(".", 1)
        if module == "rel_attn":
            ours, array = f"attention/{ATTENTION[kind]}", array.transpose(1, 2, 0) if kind == "o" else array
        else:
            weight, array = ("scale", array) if "norm" in module else ("kernel", array.T)
            ours = f"{MODULES[module]}/{weight if kind == 'weight' else kind}"
        stacked.setdefault(f"encoder/layers/{ours}", {})[int(number)] = array
    return found | {name: np.stack([layers[n] for n in sorted(layers)]) for name, layers in stacked.items()}


if __name__ == "__main__":
    save("xlnet", {name: run_case(name, case) for name, case in CASES.items()})
