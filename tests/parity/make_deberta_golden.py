"""Make the golden arrays of test_deberta_parity.py: what `transformers` computes for tiny random DeBERTas.

    pip install '.[parity]'
    python tests/parity/make_deberta_golden.py

As make_golden.py, but of the encoder alone: outputs are its hidden states and, of version 2, those of the mask decoder,
which `transformers` lacks and which is put together here from its layers. The loss is their product with given arrays.
A bias of position keys, which version 2 may have, is left out: it changes nothing.
"""

import numpy as np
import torch
from make_golden import entries, randomised, rng_of, save
from transformers import DebertaConfig, DebertaModel, DebertaV2Config, DebertaV2Model

LENGTHS = (9, 6, 4)
BASE = {
    "V": 24, "D": 12, "N": 2, "H": 3, "F": 14, "distances": 16, "buckets": None, "table_norm": False,
    "terms": ["c2p", "p2c"], "shared_projections": False, "key_bias": True, "convolution": None, "decoder": 0,
    "positions": 19, "norm_eps": 1e-7, "activation": "gelu",
}  # fmt: skip
V1 = BASE | {"key_bias": False}
V3 = BASE | {"buckets": 4, "table_norm": True, "shared_projections": True}
CASES = {
    "v1_as_published": V1,
    "v1_with_fewer_distances_than_tokens_narrow_embeddings_and_no_keys_by_distance": V1
    | {"distances": 5, "norm_eps": 0.5, "D": 10, "H": 5, "E": 6, "terms": ["c2p"], "activation": "gelu_tanh"},
    "v1_keys_by_distance_alone_in_one_layer_of_one_head": V1 | {"terms": ["p2c"], "N": 1, "H": 1},
    "v2_as_published_with_convolution_and_decoder": V3 | {"convolution": 3, "decoder": 2},
    "v2_wide_convolution_and_content_alone": V3
    | {"convolution": 5, "activation": "gelu_tanh", "N": 1, "terms": [], "shared_projections": False},
    "v3_few_distances_and_narrow_embeddings_decoded_once": V3
    | {"distances": 7, "buckets": 6, "E": 6, "norm_eps": 0.5, "decoder": 1, "N": 1},
    "v2_without_buckets": V3 | {"buckets": None, "distances": 6, "N": 1},
    "v2_own_projections_and_decoder": V3 | {"shared_projections": False, "decoder": 2, "D": 10, "H": 5, "N": 1},
}


def as_it_is(array, heads):
    return array


def transposed(array, heads):
    return array.T


def to_heads(array, heads):
    """Go from [H·K, …] to […, H, K]: kernels of queries, keys and values, and their biases."""
    return np.moveaxis(array.reshape(heads, -1, *array.shape[1:]), (0, 1), (-2, -1))


def from_heads(array, heads):
    """Go from [D, H·K] to [H, K, D]."""
    return array.T.reshape(heads, -1, array.shape[0])


def widths_first(array, heads):
    """Go from [out, in, width] to [width, in, out]: a convolution."""
    return array.transpose(2, 1, 0)


def third(number):
    """Take the queries (0), keys (1) or values (2) of [3·H·K, D], where each head has its three side by side."""

    def take(array, heads):
        return to_heads(array.reshape(heads, 3, -1, array.shape[1])[:, number].reshape(-1, array.shape[1]), heads)

    return take


# (torch's name, our name, how to get from torch's array to ours); {n}: the number of a layer, an axis of ours.
# Of torch's names those of the encoder are without the leading "deberta."; ours are those of the encoder, or of "head".
BOTH = (
    ("embeddings.word_embeddings.weight", "embeddings/word/table", as_it_is),
    ("embeddings.embed_proj.weight", "embeddings/project/kernel", transposed),
    ("embeddings.LayerNorm.weight", "embeddings/norm/scale", as_it_is),
    ("embeddings.LayerNorm.bias", "embeddings/norm/bias", as_it_is),
    ("embeddings.position_embeddings.weight", "decoder_positions/table", as_it_is),
    ("encoder.rel_embeddings.weight", "relative/table", as_it_is),
    ("encoder.layer.{n}.attention.output.dense.weight", "layers/attention/output/kernel", from_heads),
    ("encoder.layer.{n}.attention.output.dense.bias", "layers/attention/output/bias", as_it_is),
    ("encoder.layer.{n}.attention.output.LayerNorm.weight", "layers/attention_norm/scale", as_it_is),
    ("encoder.layer.{n}.attention.output.LayerNorm.bias", "layers/attention_norm/bias", as_it_is),
    ("encoder.layer.{n}.intermediate.dense.weight", "layers/feedforward/widen/kernel", transposed),
    ("encoder.layer.{n}.intermediate.dense.bias", "layers/feedforward/widen/bias", as_it_is),
    ("encoder.layer.{n}.output.dense.weight", "layers/feedforward/narrow/kernel", transposed),
    ("encoder.layer.{n}.output.dense.bias", "layers/feedforward/narrow/bias", as_it_is),
    ("encoder.layer.{n}.output.LayerNorm.weight", "layers/feedforward_norm/scale", as_it_is),
    ("encoder.layer.{n}.output.LayerNorm.bias", "layers/feedforward_norm/bias", as_it_is),
)
VERSION_1 = (
    *BOTH,
    ("encoder.layer.{n}.attention.self.in_proj.weight", "layers/attention/query/kernel", third(0)),
    ("encoder.layer.{n}.attention.self.in_proj.weight", "layers/attention/key/kernel", third(1)),
    ("encoder.layer.{n}.attention.self.in_proj.weight", "layers/attention/value/kernel", third(2)),
    ("encoder.layer.{n}.attention.self.q_bias", "layers/attention/query/bias", to_heads),
    ("encoder.layer.{n}.attention.self.v_bias", "layers/attention/value/bias", to_heads),
    ("encoder.layer.{n}.attention.self.pos_proj.weight", "layers/attention/position_key/kernel", to_heads),
    ("encoder.layer.{n}.attention.self.pos_q_proj.weight", "layers/attention/position_query/kernel", to_heads),
    ("encoder.layer.{n}.attention.self.pos_q_proj.bias", "layers/attention/position_query/bias", to_heads),
)
VERSION_2 = (
    *BOTH,
    ("encoder.LayerNorm.weight", "relative/norm/scale", as_it_is),
    ("encoder.LayerNorm.bias", "relative/norm/bias", as_it_is),
    ("encoder.conv.conv.weight", "convolution/mix/kernel", widths_first),
    ("encoder.conv.conv.bias", "convolution/mix/bias", as_it_is),
    ("encoder.conv.LayerNorm.weight", "convolution/norm/scale", as_it_is),
    ("encoder.conv.LayerNorm.bias", "convolution/norm/bias", as_it_is),
    ("encoder.layer.{n}.attention.self.query_proj.weight", "layers/attention/query/kernel", to_heads),
    ("encoder.layer.{n}.attention.self.query_proj.bias", "layers/attention/query/bias", to_heads),
    ("encoder.layer.{n}.attention.self.key_proj.weight", "layers/attention/key/kernel", to_heads),
    ("encoder.layer.{n}.attention.self.key_proj.bias", "layers/attention/key/bias", to_heads),
    ("encoder.layer.{n}.attention.self.value_proj.weight", "layers/attention/value/kernel", to_heads),
    ("encoder.layer.{n}.attention.self.value_proj.bias", "layers/attention/value/bias", to_heads),
    ("encoder.layer.{n}.attention.self.pos_key_proj.weight", "layers/attention/position_key/kernel", to_heads),
    ("encoder.layer.{n}.attention.self.pos_query_proj.weight", "layers/attention/position_query/kernel", to_heads),
    ("encoder.layer.{n}.attention.self.pos_query_proj.bias", "layers/attention/position_query/bias", to_heads),
)


def converted(named, rows, case):
    """Rename torch's arrays into our tree, layers stacked."""
    found, used = {}, {f"encoder.layer.{n}.attention.self.pos_key_proj.bias" for n in range(case["N"])}
    for theirs, ours, change in rows:
        names = [theirs.format(n=n) for n in range(case["N"])] if "{n}" in theirs else [theirs]
        if all(name in named for name in names):
            arrays = [change(named[name], case["H"]) for name in names]
            found[ours] = np.stack(arrays) if "{n}" in theirs else arrays[0]
            used.update(names)
    assert set(named) <= used, set(named) - used
    return found


def make_model(name, case, rng):
    config_class, model_class = (DebertaConfig, DebertaModel) if name[1] == "1" else (DebertaV2Config, DebertaV2Model)
    settings = config_class(
        vocab_size=case["V"], hidden_size=case["D"], num_hidden_layers=case["N"], num_attention_heads=case["H"],
        intermediate_size=case["F"], max_position_embeddings=case["positions"], type_vocab_size=0, pad_token_id=0,
        hidden_act={"gelu": "gelu", "gelu_tanh": "gelu_new"}[case["activation"]], layer_norm_eps=case["norm_eps"],
        relative_attention=True, max_relative_positions=case["distances"], position_biased_input=False,
        pos_att_type=case["terms"], position_buckets=case["buckets"] or -1, share_att_key=case["shared_projections"],
        norm_rel_ebd="layer_norm" if case["table_norm"] else "none", conv_kernel_size=case["convolution"] or 0,
        conv_act={"gelu": "gelu", "gelu_tanh": "gelu_new"}[case["activation"]],
        embedding_size=case.get("E", case["D"]),
    )  # fmt: skip
    model = model_class(settings)
    if case["decoder"]:
        model.embeddings.position_embeddings = torch.nn.Embedding(case["positions"], case["D"])
        model.embeddings.position_biased_input = False
    return randomised(model, rng)


def decoded(model, case, states, mask):
    """Apply the last layer again: queries begin as the states before it and their positions, it reads these states."""
    encoder, seen = model.encoder, states[-2]
    query = seen + model.embeddings.position_embeddings.weight[: seen.shape[1]]
    for _ in range(case["decoder"]):
        query, _ = encoder.layer[-1](
            seen, encoder.get_attention_mask(mask), query_states=query, relative_pos=encoder.get_rel_pos(seen),
            rel_embeddings=encoder.get_rel_embedding(),
        )  # fmt: skip
    return query


def run_case(name, case):
    rng, L = rng_of("deberta", name), max(LENGTHS)
    model = make_model(name, case, rng)
    mask = (np.arange(L) < np.array(LENGTHS)[:, None]).astype(np.int32)
    tokens = (rng.integers(1, case["V"], mask.shape) * mask).astype(np.int32)
    # The position table is read by the decoder alone.
    table, model.embeddings.position_embeddings = model.embeddings.position_embeddings, None
    out = model(torch.tensor(tokens).long(), attention_mask=torch.tensor(mask), output_hidden_states=True)
    model.embeddings.position_embeddings = table
    outputs = {"hidden": out.last_hidden_state}
    if case["decoder"]:
        outputs["decoded"] = decoded(model, case, out.hidden_states, torch.tensor(mask))
    outputs = {key: states[mask > 0] for key, states in outputs.items()}
    wishes = {
        f"{key}_wish": rng.normal(size=tuple(x.shape)).astype(np.float16).astype(np.float32)
        for key, x in outputs.items()
    }
    loss = sum((x * torch.tensor(wishes[f"{key}_wish"])).sum() for key, x in outputs.items())
    loss.backward()
    rows = VERSION_1 if name[1] == "1" else VERSION_2
    named = dict(model.named_parameters())
    unread = {key for key, p in named.items() if p.grad is None}
    assert not unread or case["terms"] == [], unread
    params = converted({key: p.detach().numpy() for key, p in named.items()}, rows, case)
    grads = {key: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for key, p in named.items()}
    arrays = {"tokens": tokens, "mask": mask, "loss": loss.detach().numpy()} | wishes
    arrays |= {key: x.detach().numpy() for key, x in outputs.items()}
    return entries(case, arrays, params, converted(grads, rows, case))


if __name__ == "__main__":
    save("deberta", {name: run_case(name, case) for name, case in CASES.items()})
