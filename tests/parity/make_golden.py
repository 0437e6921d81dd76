"""Make the golden arrays of test_parity.py: what `transformers` computes for tiny random encoders.

    pip install '.[parity]'
    python tests/parity/make_golden.py

One `.npz` per architecture, beside this script. An entry is named `case/what`: `config` (a JSON of the fields of our
Encoder), inputs, outputs at real positions only (row after row, [T, ...]), and `params/…` and `grads/…` by our names.
All parameters are small multiples of a power of two, so that float16 stores them exactly. Where Encoder has `types=0`,
torch's only segment row is added to every row of our position table; it must not go to the word table, which is tied.

ELECTRA's generator and discriminator are trained together, as in objectives/rtd.py, but what is put in is the likeliest
token, so that nothing is random. make_xlnet_golden.py does the same for XLNet.
"""

import json
import os
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AlbertConfig,
    AlbertForPreTraining,
    BertConfig,
    BertForPreTraining,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    RobertaConfig,
    RobertaForMaskedLM,
)

MODELS = {
    "bert": (BertConfig, BertForPreTraining, "next_sentence_label", "seq_relationship_logits"),
    "roberta": (RobertaConfig, RobertaForMaskedLM, None, None),
    "albert": (AlbertConfig, AlbertForPreTraining, "sentence_order_label", "sop_logits"),
}
BASE = {"V": 32, "D": 12, "N": 2, "H": 3, "F": 20, "positions": 16, "types": 2, "norm_eps": 1e-12, "activation": "gelu"}
ROBERTA = BASE | {"positions": 18, "first_position": 2, "types": 0, "norm_eps": 1e-5}
ALBERT = BASE | {"E": 6, "N": 3, "shared": True, "activation": "gelu_tanh"}
SMALL = {"table_scale": 2.0**-9}  # the variance of the embeddings is then about an eps of 1e-5
CASES = {
    "bert": {
        "as_published": BASE,
        "tanh_gelu_and_eps_as_large_as_variances": BASE | {"activation": "gelu_tanh", "norm_eps": 0.5, "D": 14, "H": 2},
        "one_segment_row_and_five_heads": BASE | {"types": 0, "D": 15, "H": 5, "F": 12},
        "one_layer_of_one_head": BASE | {"H": 1, "N": 1},
    },
    "roberta": {
        "as_published_with_embeddings_as_small_as_eps": ROBERTA | SMALL,
        "two_segments_and_three_layers": ROBERTA | {"types": 2, "N": 3, "D": 10, "H": 5, "F": 14},
    },
    "albert": {
        "as_published": ALBERT,
        "erf_gelu_and_tables_wider_than_the_model": ALBERT | {"E": 20, "activation": "gelu", "N": 2},
        "one_segment_row_and_tables_as_wide_as_the_model": ALBERT | {"E": 12, "types": 0, "norm_eps": 0.5},
    },
}
ELECTRA = {"generator": BASE | {"E": 12, "D": 8, "H": 2}, "discriminator": BASE, "sharing": "SharedEmbeddings"}
ELECTRA_CASES = {
    "base_as_published_with_a_narrow_generator": ELECTRA,
    "small_as_released_with_one_width_and_narrow_tables": ELECTRA
    | {"generator": BASE | {"E": 6}, "discriminator": BASE | {"E": 6, "N": 3}},
    "one_width_without_projection": ELECTRA | {"generator": BASE | {"N": 1}},
    "nothing_shared_and_a_tanh_gelu": ELECTRA  # transformers always gives the generator's head the exact one
    | {"discriminator": BASE | {"D": 10, "H": 5, "activation": "gelu_tanh"}, "sharing": "SeparateEmbeddings"},
}
# `make parity` makes the arrays elsewhere, and from another seed.
FOLDER = Path(os.environ.get("BERTJAX_GOLDEN") or Path(__file__).parent)
SEED = os.environ.get("BERTJAX_GOLDEN_SEED", "")
LENGTHS, IGNORED = (8, 5, 3), -100  # 16 real positions in all, which packed fill our position table
MASK, DISCRIMINATOR_WEIGHT = 1, 50  # ids of inputs are larger
ROOTS = {
    "embeddings.word_embeddings": "encoder/embeddings/word",
    "embeddings.position_embeddings": "encoder/embeddings/position",
    "embeddings.token_type_embeddings": "encoder/embeddings/type",
    "embeddings.LayerNorm": "encoder/embeddings/norm",
    "encoder.embedding_hidden_mapping_in": "encoder/project",
    "embeddings_project": "encoder/project",
    "pooler.dense": "head/pair/pooler",
    "pooler": "head/pair/pooler",
    "cls.predictions.transform.dense": "head/mlm/transform",
    "cls.predictions.transform.LayerNorm": "head/mlm/norm",
    "cls.predictions": "head/mlm",
    "cls.seq_relationship": "head/pair/classifier",
    "lm_head.dense": "head/mlm/transform",
    "lm_head.layer_norm": "head/mlm/norm",
    "lm_head": "head/mlm",
    "predictions.dense": "head/mlm/transform",
    "predictions.LayerNorm": "head/mlm/norm",
    "predictions": "head/mlm",
    "sop_classifier.classifier": "head/pair/classifier",
    "generator_predictions.dense": "head/mlm/transform",
    "generator_predictions.LayerNorm": "head/mlm/norm",
    "generator_lm_head": "head/mlm",
    "discriminator_predictions.dense": "head/rtd/transform",
    "discriminator_predictions.dense_prediction": "head/rtd/classifier",
}
LAYERS = {
    "attention.self.query": "attention/query",
    "attention.self.key": "attention/key",
    "attention.self.value": "attention/value",
    "attention.output.dense": "attention/output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feedforward/widen",
    "output.dense": "feedforward/narrow",
    "output.LayerNorm": "feedforward_norm",
    "attention.query": "attention/query",
    "attention.key": "attention/key",
    "attention.value": "attention/value",
    "attention.dense": "attention/output",
    "attention.LayerNorm": "attention_norm",
    "ffn": "feedforward/widen",
    "ffn_output": "feedforward/narrow",
    "full_layer_layer_norm": "feedforward_norm",
}
LAYER = re.compile(r"encoder\.(layer\.(?P<number>\d+)|albert_layer_groups\.0\.albert_layers\.0)\.(?P<module>.*)")


def make_model(config_class, model_class, case, rng):
    config = config_class(
        vocab_size=case["V"], hidden_size=case["D"], num_hidden_layers=case["N"], num_attention_heads=case["H"],
        intermediate_size=case["F"], max_position_embeddings=case["positions"], type_vocab_size=case["types"] or 1,
        layer_norm_eps=case["norm_eps"], hidden_act={"gelu": "gelu", "gelu_tanh": "gelu_new"}[case["activation"]],
        embedding_size=case.get("E", case["D"]), attn_implementation="eager",
    )  # fmt: skip
    return randomised(model_class(config), rng, case.get("table_scale", 0.25))


def randomised(model, rng, table_scale=0.25):
    """Fill a model with values that float16 stores exactly."""
    for name, parameter in model.eval().named_parameters():
        scale = table_scale if "_embeddings." in name else 0.25
        values = np.round(rng.normal(size=tuple(parameter.shape)) * 64) / 64 * scale
        is_norm = name.endswith("weight") and parameter.ndim == 1
        parameter.data = torch.tensor(is_norm + values, dtype=torch.float32)
    return model


def rng_of(architecture, name):
    return np.random.default_rng(zlib.crc32(f"{SEED}{architecture} {name}".encode()))


def make_inputs(architecture, case, rng):
    L, pad = max(LENGTHS), {"roberta": 1}.get(architecture, 0)
    mask = (np.arange(L) < np.array(LENGTHS)[:, None]).astype(np.int32)
    types = ((np.arange(L) >= np.array(LENGTHS)[:, None] // 2) & (mask > 0)).astype(np.int32) * (case["types"] > 1)
    labelled = (rng.random(mask.shape) < 0.3) & (mask > 0)
    labelled[0, 0] = labelled[1, LENGTHS[1] - 1] = True
    return {
        "tokens": np.where(mask, rng.integers(2, case["V"], mask.shape), pad).astype(np.int32),
        "mask": mask,
        "types": types.astype(np.int32),
        "labels": np.where(labelled, rng.integers(2, case["V"], mask.shape), IGNORED).astype(np.int32),
        "pair": np.array([0, 1, 1], np.int32),
    }


def our_name(architecture, name):
    """Return our name of a parameter, and the number of its layer where layers have parameters of their own."""
    module, kind = name.removeprefix(f"{architecture}.").rsplit(".", 1)
    if kind == "weight":
        kind = "table" if "_embeddings" in module else "scale" if "norm" in module.lower() else "kernel"
    if layer := LAYER.match(module):
        number = layer["number"]
        return f"encoder/{'layers' if number else 'layer'}/{LAYERS[layer['module']]}/{kind}", number and int(number)
    return f"{ROOTS[module]}/{kind}", None


def converted(architecture, named, case):
    """Rename torch's arrays into our tree: kernels transposed, split in heads, stacked over layers."""
    found = {}
    for name, array in named.items():
        ours, number = our_name(architecture, name)
        if ours.endswith("kernel"):
            array = array.T
        heads = (case["H"], case["D"] // case["H"])
        if any(f"attention/{part}/" in ours for part in ("query", "key", "value")):
            array = array.reshape(*array.shape[:-1], *heads)
        elif "attention/output/kernel" in ours:
            array = array.reshape(*heads, -1)
        found.setdefault(ours, {})[number] = array
    return {
        name: np.stack([layers[n] for n in sorted(layers)]) if None not in layers else layers[None]
        for name, layers in found.items()
    }


def run_case(architecture, name, case):
    rng = rng_of(architecture, name)
    config_class, model_class, pair_argument, pair_logits = MODELS[architecture]
    model, inputs = make_model(config_class, model_class, case, rng), make_inputs(architecture, case, rng)
    tensors = {key: torch.tensor(array, dtype=torch.long) for key, array in inputs.items()}
    out = model(
        tensors["tokens"], attention_mask=tensors["mask"], token_type_ids=tensors["types"], labels=tensors["labels"],
        output_hidden_states=True, **({pair_argument: tensors["pair"]} if pair_argument else {}),
    )  # fmt: skip
    out.loss.backward()
    params = converted(architecture, {key: p.detach().numpy() for key, p in model.named_parameters()}, case)
    grads = converted(architecture, {key: p.grad.numpy() for key, p in model.named_parameters()}, case)
    if not case["types"]:
        del grads["encoder/embeddings/type/table"]
        params["encoder/embeddings/position/table"] += params.pop("encoder/embeddings/type/table")
    real = inputs["mask"] > 0
    logits = out.get("prediction_logits", out.get("logits"))
    outputs = {"hidden": out.hidden_states[-1].detach().numpy()[real], "logits": logits.detach().numpy()[real]}
    outputs["loss"] = out.loss.detach().numpy()
    if pair_logits:
        outputs["pair_logits"] = out[pair_logits].detach().numpy()
    config = {key: value for key, value in case.items() if key != "table_scale"}
    return entries(config, inputs | outputs, params, grads)


def run_electra(name, case, attempt=""):
    rng = rng_of("electra", name + attempt)
    generator = make_model(ElectraConfig, ElectraForMaskedLM, case["generator"], rng)
    discriminator = make_model(ElectraConfig, ElectraForPreTraining, case["discriminator"], rng)
    for model in (generator, discriminator):
        # A sample may be id 0, whose look-ups have no gradient in torch otherwise.
        model.electra.embeddings.word_embeddings.padding_idx = None
    shared = case["sharing"] == "SharedEmbeddings"
    if shared:
        generator.electra.embeddings = discriminator.electra.embeddings
        generator.generator_lm_head.weight = generator.electra.embeddings.word_embeddings.weight
    inputs = make_inputs("electra", case["discriminator"], rng)
    real, chosen = inputs["mask"] > 0, inputs["labels"] != IGNORED
    masked = torch.tensor(np.where(chosen, MASK, inputs["tokens"])).long()
    tensors = {"attention_mask": torch.tensor(inputs["mask"]), "token_type_ids": torch.tensor(inputs["types"])}
    with torch.no_grad():
        best, sampled = generator(masked, **tensors).logits.topk(2, dim=-1)
    if (best[..., 0] - best[..., 1])[chosen].min() <= 1e-2:  # so that the likeliest is that on all machines
        return run_electra(name, case, f"{attempt} again")
    sampled = sampled[..., 0].numpy()
    inputs["labels"][0, 0] = sampled[0, 0]  # a sample that happens to be right
    inputs["tokens"] = np.where(chosen, inputs["labels"], inputs["tokens"])
    filled = np.where(chosen, sampled, inputs["tokens"])
    found = {
        "generator": generator(
            masked, labels=torch.tensor(inputs["labels"]).long(), output_hidden_states=True, **tensors
        ),
        "discriminator": discriminator(
            torch.tensor(filled).long(), labels=torch.tensor(filled != inputs["tokens"]), output_hidden_states=True,
            **tensors,
        ),
    }  # fmt: skip
    losses = {"mlm": found["generator"].loss, "rtd": found["discriminator"].loss}
    losses["loss"] = losses["mlm"] + DISCRIMINATOR_WEIGHT * losses["rtd"]
    losses["loss"].backward()
    outputs, params, grads = {key: loss.detach().numpy() for key, loss in losses.items()}, {}, {}
    outputs |= {"filled": filled.astype(np.int32), "replaced": (filled != inputs["tokens"])[real].mean()}
    for part, model in (("generator", generator), ("discriminator", discriminator)):
        outputs[f"{part}_hidden"] = found[part].hidden_states[-1].detach().numpy()[real]
        outputs[f"{part}_logits"] = found[part].logits.detach().numpy()[real]
        left_out = shared and model is generator
        own = {key: p for key, p in model.named_parameters() if not (left_out and "embeddings." in key)}
        for tree, array_of in ((params, lambda p: p.detach().numpy()), (grads, lambda p: p.grad.numpy())):
            arrays = converted("electra", {key: array_of(p) for key, p in own.items()}, case[part])
            tree |= {f"{part}/{key}": array for key, array in arrays.items()}
    return entries(case, inputs | outputs, params, grads)


def entries(config, arrays, params, grads):
    """Name all that belongs to one case."""
    assert all((array == array.astype(np.float16)).all() for array in params.values())
    return (
        {"config": json.dumps(config)}
        | arrays
        | {f"params/{key}": array.astype(np.float16) for key, array in params.items()}
        | {f"grads/{key}": array for key, array in grads.items()}
    )


def save(architecture, found):
    """Write {case: entries} into the folder of the arrays."""
    path = FOLDER / f"{architecture}.npz"
    np.savez_compressed(path, **{f"{name}/{key}": array for name, case in found.items() for key, array in case.items()})
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    for architecture, cases in CASES.items():
        save(architecture, {name: run_case(architecture, name, case) for name, case in cases.items()})
    save("electra", {name: run_electra(name, case) for name, case in ELECTRA_CASES.items()})
