"""Our XLNet and its heads against torch's; make_xlnet_golden.py says what the arrays are and how they were made."""

import jax
import jax.numpy as jnp
import pytest
from golden import build, compare, fill, golden

from bertjax.models.heads import SequenceSummary, TiedHead
from bertjax.models.language import word_table
from bertjax.models.layers import Normal, apply
from bertjax.models.xlnet import Memory, XLNet
from bertjax.objectives.losses import negative_log_likelihood

CASES = golden("xlnet")


def models_of(case):
    """Return the encoder, the heads that the case has, and how many tokens a window leaves to memory."""
    config = dict(case["config"])
    reuse = config.pop("reuse")
    encoder = build(XLNet, config)
    heads = {"plm": TiedHead(encoder.V, encoder.dtype)}
    if "summary" in case:
        heads["summary"] = SequenceSummary(encoder.D, 0.1, Normal(), encoder.dtype)
    return encoder, heads, reuse


def shapes_of(case, encoder, heads):
    def init(key):
        params = encoder.init(key, case["tokens"][0], case["mask"][0])["params"]
        x_BLD = jnp.zeros((*case["mask"][0].shape, encoder.D))
        inputs = {"plm": (x_BLD, word_table(params)), "summary": (x_BLD,)}
        return {
            "encoder": params,
            "head": {name: head.init(key, *inputs[name])["params"] for name, head in heads.items()},
        }

    return jax.eval_shape(init, jax.random.key(0))


def windows_of(case):
    """Return the inputs of each window by the argument's name, and its labels."""
    arguments = {
        "tokens_BL": "tokens",
        "mask_BL": "mask",
        "types_BL": "types",
        "ranks_BL": "ranks",
        "targets_BP": "positions",
    }
    for number, labels in enumerate(case["labels"]):
        yield {name: case[what][number] for name, what in arguments.items() if what in case}, labels


def forward(case, params, encoder, heads, reuse):
    """Run all windows; return the sum of their losses, and all outputs by the names of the golden arrays."""
    memory, loss, found = None, 0.0, {}
    if "given" in case:
        memory = Memory(jnp.asarray(case["given"]), jnp.ones(case["given"].shape[1:3], jnp.int32))
    sign = jnp.asarray(case["sign"]) if "sign" in case else None
    for inputs, labels in windows_of(case):
        content, query, memory = encoder.apply(
            {"params": params["encoder"]}, **jax.tree.map(jnp.asarray, inputs), sign_B=sign, memory=memory,
            reuse=reuse, method="streams",
        )  # fmt: skip
        memory = jax.lax.stop_gradient(memory)
        chosen = (content if query is None else query)[labels >= 0]
        logits = apply(heads["plm"], params["head"]["plm"], chosen[None], word_table(params["encoder"]))[0]
        loss += negative_log_likelihood(logits, jnp.asarray(labels[labels >= 0])).mean()
        outputs = {"content": content[inputs["mask_BL"] > 0], "logits": logits}
        if query is not None:
            outputs["query"] = query
        if memory is not None:
            outputs["memory"] = memory.states_NBMD[None]
        if "summary" in heads:
            outputs["summary"] = apply(heads["summary"], params["head"]["summary"], content)
            loss += outputs["summary"].sum()
        for what, array in outputs.items():
            found.setdefault(what, []).append(array)
    return loss, {what: jnp.concatenate(each) for what, each in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_both_streams_memory_logits_and_gradients_are_those_of_transformers(name):
    case = CASES[name]
    encoder, heads, reuse = models_of(case)
    params = fill(shapes_of(case, encoder, heads), case)

    @jax.jit
    def run(params):
        return jax.value_and_grad(lambda params: forward(case, params, encoder, heads, reuse), has_aux=True)(params)

    (value, out), grads = run(params)
    assert set(out) == {"content", "query", "logits", "memory", "summary"} & set(case)
    compare(case, out | {"loss": value}, grads)
