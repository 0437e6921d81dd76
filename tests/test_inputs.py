"""Mistakes in batches, parameters and keys are sentences, wherever a model reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import CONTRACT, ENCODERS, MASKING, SPECIALS, V, make_batch, random_params, small_bert

from bertjax.errors import InputError
from bertjax.inputs import check_ids
from bertjax.masking import mask_tokens, mask_with_replacement
from bertjax.models.layers import apply
from bertjax.objectives.mlm import MaskedLM
from bertjax.permutation import Permutation, permute

KEY = jax.random.key(0)
TOKENS = np.full((2, 8), 7, np.int32)
GOOD = {"tokens": TOKENS, "mask": np.ones_like(TOKENS)}
BAD = {
    "one row": ({"tokens": TOKENS[0], "mask": TOKENS[0]}, r"shape \(8,\), not two axes.*tokens\[None\]"),
    "three axes": ({"tokens": TOKENS[None], "mask": TOKENS[None]}, r"shape \(1, 2, 8\), not two axes"),
    "no mask": ({"tokens": TOKENS}, r"no mask, only 'tokens': jnp.ones_like\(tokens\)"),
    "no batch": (None, "the batch is None: give a dict"),
    "an array": (TOKENS, "the batch is an array: give a dict"),
    "nothing": ({}, "has no tokens, it is empty"),
    "transformers' names": ({"input_ids": TOKENS, "attention_mask": TOKENS}, "no tokens: give it its 'input_ids'"),
    "a list": ({"tokens": [[1, 2]], "mask": [[1, 1]]}, "tokens is a list, not an array"),
    "mask of None": ({"tokens": TOKENS, "mask": None}, "mask is None, not an array"),
    "floats": ({**GOOD, "tokens": TOKENS * 1.0}, r"dtype float64, not int32: give tokens.astype"),
    "mask of floats": ({**GOOD, "mask": TOKENS * 1.0}, r"mask has dtype float64, not int32"),
    "shorter mask": ({**GOOD, "mask": TOKENS[:, :4]}, r"mask has shape \(2, 4\), tokens \(2, 8\)"),
    "beyond the vocabulary": ({**GOOD, "tokens": TOKENS + V}, f"tokens holds {V + 7}: .*V={V} ids"),
    "a negative id": ({**GOOD, "tokens": TOKENS - 8}, "tokens holds -1: "),
    "a negative mask": ({**GOOD, "mask": TOKENS - 8}, "mask holds -1: "),
    "beyond the segments": ({**GOOD, "types": TOKENS}, "types holds 7: .* has 2 rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_batch_that_does_not_fit_is_refused_with_a_sentence_by_init_loss_and_encode(name):
    batch, message = BAD[name]
    objective = MaskedLM(small_bert(), MASKING)
    params = {"encoder": random_params(objective.encoder), "head": {"mlm": {}}}
    for call in (
        lambda: objective.init(KEY, batch),
        lambda: objective.loss(params, batch, KEY, train=True),
        lambda: objective.encode(params, batch),
        lambda: objective.language_logits(params, batch),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("name", CONTRACT)
def test_every_objective_refuses_ids_beyond_its_vocabulary(name):
    row = CONTRACT[name]
    batch = dict(row.batch(rows=2))
    batch["tokens"] = batch["tokens"].at[-1].set(V)
    shapes = jax.eval_shape(row.objective.init, KEY, row.batch(rows=2))
    with pytest.raises(InputError, match=f"tokens holds {V}"):
        row.objective.init(KEY, batch)
    with pytest.raises(InputError, match=f"tokens holds {V}"):
        row.objective.loss(shapes, batch, KEY, train=True)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_refuses_them_by_itself_outside_jit_alone(name):
    encoder = ENCODERS[name]()
    params = random_params(encoder)
    beyond = TOKENS + V
    with pytest.raises(InputError, match="tokens holds"):
        apply(encoder, params, beyond, GOOD["mask"])
    jax.jit(lambda tokens: apply(encoder, params, tokens, GOOD["mask"])).lower(beyond)  # nothing looks at values
    with pytest.raises(InputError, match="not two axes"):
        jax.eval_shape(lambda tokens: apply(encoder, params, tokens, tokens), TOKENS[0])


def test_corruptions_refuse_what_they_cannot_read():
    permutation = Permutation(functional=SPECIALS, parts=(8,), targets=2)
    for corrupt, spec in ((mask_tokens, MASKING), (mask_with_replacement, MASKING), (permute, permutation)):
        with pytest.raises(InputError, match="not two axes"):
            corrupt(KEY, BAD["one row"][0], spec)
        with pytest.raises(InputError, match="rng is a dict, not a random key"):
            corrupt(GOOD, KEY, spec)
        with pytest.raises(InputError, match="spec is 'x': a"):
            corrupt(KEY, GOOD, "x")


def test_keys_parameters_positions_and_labels_are_checked():
    objective = MaskedLM(small_bert(), MASKING, pair=True)
    encoder = random_params(objective.encoder)
    with pytest.raises(InputError, match=r"rng is 3, not a random key: give jax.random.key\(3\)"):
        objective.init(3, GOOD)
    for keys in (jax.random.split(KEY, 2), jax.random.split(jax.random.PRNGKey(0), 2)):
        with pytest.raises(InputError, match="not one key: give one of them"):
            objective.init(keys, GOOD)
    with pytest.raises(InputError, match="params has no 'encoder', only 'embeddings', 'layers'"):
        objective.loss(encoder, GOOD, KEY, train=True)
    with pytest.raises(InputError, match="params is None"):
        objective.encode(None, GOOD)
    with pytest.raises(InputError, match="pair holds 2"):
        objective.loss({"encoder": encoder, "head": {}}, {**GOOD, "pair": np.array([0, 2])}, KEY, train=True)
    with pytest.raises(InputError, match="positions holds 8: rows have 8 tokens"):
        objective.language_logits({"encoder": encoder, "head": {"mlm": {}}}, GOOD, np.array([[8], [0]]))
    with pytest.raises(InputError, match=r"labels holds -2: they are -1 to 4"):
        check_ids("labels", np.array([-2]), 5, "they are -1 to 4", lowest=-1)


def test_init_as_one_program_draws_what_a_run_draws():
    objective, batch = MaskedLM(small_bert(), MASKING, pair=True), make_batch(rows=2)
    expected = jax.jit(objective.init)(KEY, batch)
    jax.tree.map(np.testing.assert_array_equal, objective.init(KEY, batch), expected)
    assert jnp.isfinite(objective.init(jax.random.PRNGKey(0), batch)["encoder"]["embeddings"]["word"]["table"]).all()
