"""Make the golden folders of test_heads_parity.py: heads that do not share the word table, and DeBERTa's own heads.

    pip install '.[parity]'
    python tests/parity/make_heads_golden.py

Entries are as those of make_huggingface_golden.py, with `gradients` besides: of the sum of `logits` times `wish` at
real tokens (and of `replaced` times `replaced_wish`), tensor after tensor as `values`, 0 where none is read.

`… untied` are classes of `transformers` with tie_word_embeddings=false. `… released` are folders as that of
microsoft/deberta-base and its like: an encoder of `transformers`, and the mask decoder with its head and the head for
replaced tokens, which it lacks; they are put together here from its layers after microsoft/DeBERTa, apps/models.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from make_deberta_golden import decoded
from make_golden import randomised, rng_of, save
from make_huggingface_golden import FAMILIES, make_config, make_inputs, run
from transformers.activations import ACT2FN

UNTIED = {
    family: next(family + name for name in ("ForMaskedLM", "LMHeadModel") if name in golden.classes)
    for family, golden in FAMILIES.items()
}
RELEASED = ("Deberta", "DebertaV2")
TIMES = 2  # the last layer is applied again to guess words


def apply_layer(model, query, seen, mask):
    """Apply the last layer of a DeBERTa of version 1 to a query stream, which transformers' own code cannot do."""
    config, layer = model.config, model.encoder.layer[-1]
    own, H = layer.attention.self, config.num_attention_heads
    K = config.hidden_size // H
    table, names = model.encoder.rel_embeddings.weight, config.pos_att_type
    names = names.split("|") if isinstance(names, str) else names
    of_q, of_k, of_v = own.in_proj.weight.reshape(H, 3, K, -1).unbind(1)  # each head has its three side by side

    def heads(x):
        return x.reshape(*x.shape[:-1], H, K)

    q = torch.einsum("bid,hkd->bihk", query, of_q) + own.q_bias.reshape(H, K)
    k = torch.einsum("bjd,hkd->bjhk", seen, of_k)
    v = torch.einsum("bjd,hkd->bjhk", seen, of_v) + own.v_bias.reshape(H, K)
    scores = torch.einsum("bihk,bjhk->bhij", q, k)
    places, span = torch.arange(seen.shape[1]), len(table) // 2
    rows = (places[:, None] - places[None] + span).clamp(0, 2 * span - 1)
    if "c2p" in names:
        scores = scores + torch.einsum("bihk,ijhk->bhij", q, heads(own.pos_proj(table))[rows])
    if "p2c" in names:
        scores = scores + torch.einsum("bjhk,ijhk->bhij", k, heads(own.pos_q_proj(table))[rows])
    scores = scores / (K * (1 + len(names))) ** 0.5
    scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
    mixed = torch.einsum("bhij,bjhk->bihk", scores.softmax(-1), v).flatten(2)
    x = layer.attention.output(mixed, query)
    return layer.output(layer.intermediate(x), x)


def decoded_by_hand(model, states, mask):
    """See make_deberta_golden.decoded; here of version 1."""
    seen, real = states[-2], mask > 0
    torch.testing.assert_close(apply_layer(model, seen, seen, mask)[real], states[-1][real], rtol=0, atol=1e-5)
    query = seen + model.embeddings.position_embeddings.weight[: seen.shape[1]]
    for _ in range(TIMES):
        query = apply_layer(model, query, seen, mask)
    return query


class Released(torch.nn.Module):
    """Compute what a released DeBERTa does; parameters have the names of its folder."""

    def __init__(self, family, config):
        super().__init__()
        D, self.activation = config.hidden_size, ACT2FN[config.hidden_act]
        self.deberta = getattr(transformers, f"{family}Model")(config)
        self.deberta.embeddings.position_embeddings = torch.nn.Embedding(config.max_position_embeddings, D)
        head = torch.nn.ModuleDict({"dense": torch.nn.Linear(D, D), "LayerNorm": self.norm(config)})
        head.register_parameter("bias", torch.nn.Parameter(torch.zeros(config.vocab_size)))
        self.lm_predictions = torch.nn.ModuleDict({"lm_head": head})
        self.mask_predictions = torch.nn.ModuleDict(
            {"LayerNorm": self.norm(config), "dense": torch.nn.Linear(D, D), "classifier": torch.nn.Linear(D, 1)}
        )

    @staticmethod
    def norm(config):
        return torch.nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, tokens, attention_mask):
        # The position table is read by the decoder alone.
        embeddings = self.deberta.embeddings
        table, embeddings.position_embeddings = embeddings.position_embeddings, None
        out = self.deberta(tokens, attention_mask=attention_mask, output_hidden_states=True)
        embeddings.position_embeddings = table
        head, judge = self.lm_predictions["lm_head"], self.mask_predictions
        if hasattr(self.deberta.encoder.layer[-1].attention.self, "in_proj"):
            x = decoded_by_hand(self.deberta, out.hidden_states, attention_mask)
        else:
            x = decoded(self.deberta, {"decoder": TIMES}, out.hidden_states, attention_mask)
        x = head["LayerNorm"](self.activation(head["dense"](x)))
        y = judge["LayerNorm"](out.last_hidden_state[:, :1] + out.last_hidden_state)
        return {
            "last_hidden_state": out.last_hidden_state,
            "logits": x @ embeddings.word_embeddings.weight.T + head.bias,
            "replaced": judge["classifier"](self.activation(judge["dense"](y)))[..., 0],
        }


def finish(model, inputs, out, described):
    """Take the gradients, and name all that belongs to one case."""
    rng, real = rng_of("heads wish", described["model_type"]), inputs["mask"] > 0
    wishes = {}
    for key, name in (("logits", "wish"), ("replaced", "replaced_wish")):
        if key in out:
            shape = tuple(out[key].shape)
            wish = rng.normal(size=shape) * real.reshape(real.shape + (1,) * (len(shape) - 2))
            wishes[name] = (key, wish.astype(np.float16).astype(np.float32))
    sum((out[key] * torch.tensor(wish)).sum() for key, wish in wishes.values()).backward()
    named = dict(model.named_parameters())
    assert all((p == p.half()).all() for p in named.values())
    gradients = [np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy() for p in named.values()]
    found = {key: out[key].detach().numpy() for key in ("last_hidden_state", "logits", "replaced") if key in out}
    return inputs | found | {name: wish for name, (_, wish) in wishes.items()} | {
        "values": np.concatenate([p.detach().numpy().ravel() for p in named.values()]).astype(np.float16),
        "gradients": np.concatenate([gradient.ravel() for gradient in gradients]),
        "tensors": np.array(json.dumps([[key, p.shape] for key, p in named.items()])),
        "config": np.array(json.dumps(described)),
    }  # fmt: skip


def described_by(model):
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        return json.loads((Path(folder) / "config.json").read_text())


def run_untied(family, name):
    rng = rng_of("heads", name)
    config = make_config(family, name, rng)
    config.tie_word_embeddings, config.legacy, config.architectures = False, True, [name]
    model, inputs = randomised(getattr(transformers, name)(config), rng), make_inputs(family, name, config, rng)
    return finish(model, inputs, run(model, inputs), described_by(model))


def run_released(family):
    name = f"{family} released"
    rng = rng_of("heads", name)
    config = make_config(family, name, rng)
    config.embedding_size = config.hidden_size
    model, inputs = randomised(Released(family, config), rng), make_inputs(family, name, config, rng)
    out = model(torch.tensor(inputs["tokens"]).long(), torch.tensor(inputs["mask"]))
    described = described_by(model.deberta)
    return finish(
        model,
        inputs,
        out,
        {k: v for k, v in described.items() if k not in ("architectures", "legacy", "embedding_size")},
    )


if __name__ == "__main__":
    cases = {f"{name} untied": run_untied(family, name) for family, name in UNTIED.items()}
    save("heads", cases | {f"{family} released": run_released(family) for family in RELEASED})
