"""Probabilities of attention and hidden states are those of the forward pass, and nobody else pays for them."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import (
    ENCODERS,
    make_batch,
    random_params,
    small_albert,
    small_bert,
    small_deberta,
    small_modernbert,
    small_xlnet,
)

from bertjax.errors import InputError
from bertjax.models import layers
from bertjax.models.recorded import attention, attention_terms, hidden_states, query_attention

BATCH = make_batch(rows=2, length=24)
POSITIONS = jnp.array([[1, 5, 7], [2, 3, 9]])
MORE = {
    "an albert in groups": partial(small_albert, N=3, groups=2, inner=2),
    "modern layers that are no whole number of periods": partial(small_modernbert, N=3),
    "windows much shorter than rows": partial(small_modernbert, reach=1),
    "a decoder": partial(small_deberta, decoder=2),
    "rematerialised": partial(small_bert, remat="full"),
}


def values_and_mixtures(encoder, params, batch, **options):
    """Run an encoder operation by operation: the values of each attention, and what it makes of them."""
    values, mixtures = [], []

    def note(run, inputs, given, context):
        result = run(*inputs, **given)
        is_run = result.shape[:1] == (2,) if isinstance(result, jax.Array) else False  # Linen checks shapes on 1 row
        if is_run and not isinstance(result, jax.core.Tracer) and isinstance(context.module, layers.Dense):
            if context.module.path[-2:] == ("attention", "value"):
                values.append(result)
            if context.module.path[-2:] == ("attention", "output"):
                mixtures.append(inputs[0])
        return result

    with jax.disable_jit(), nn.intercept_methods(note):
        encoder.apply({"params": params}, batch["tokens"], batch["mask"], batch["types"], **options)
    return values, mixtures


@pytest.mark.parametrize("name", [*ENCODERS, *MORE])
def test_probabilities_times_values_are_what_attention_returns(name):
    encoder = (ENCODERS | MORE)[name]()
    params = random_params(encoder, noise=0.1)
    probabilities_NBHLM = attention(encoder, params, BATCH)
    layers_run = encoder.N * getattr(encoder, "inner", 1)
    assert probabilities_NBHLM.shape == (layers_run, 2, encoder.H, 24, 24)
    np.testing.assert_allclose(probabilities_NBHLM.sum(-1), 1, atol=1e-5)
    real_BLM = BATCH["mask"][:, :, None] * BATCH["mask"][:, None]
    assert not (probabilities_NBHLM * (1 - real_BLM)[None, :, None] * BATCH["mask"][None, :, None, :, None]).any()
    # Within a rematerialised layer nothing is concrete.
    values, mixtures = values_and_mixtures(encoder.clone(remat="none"), params, BATCH)
    again = getattr(encoder, "decoder", 0)
    assert len(values) == len(mixtures) == layers_run + again
    for p_BHLM, v_BMHK, mixed_BLHK in zip(probabilities_NBHLM, values[:layers_run], mixtures[:layers_run], strict=True):
        np.testing.assert_allclose(jnp.einsum("BHLM,BMHK->BLHK", p_BHLM, v_BMHK), mixed_BLHK, atol=1e-5)


@pytest.mark.parametrize("encoder", [small_xlnet(), small_deberta(decoder=2)], ids=["xlnet", "deberta"])
def test_probabilities_of_the_rows_that_predict_times_values_are_what_their_attention_returns(encoder):
    params = random_params(encoder, noise=0.1)
    probabilities_NBHPL = query_attention(encoder, params, BATCH, POSITIONS)
    assert probabilities_NBHPL.shape == (2, 2, encoder.H, 3, 24)
    values, mixtures = values_and_mixtures(encoder, params, BATCH, positions_BP=POSITIONS, method="hidden")
    if "decoder" in encoder.__dataclass_fields__:
        values, mixtures = values[2:], mixtures[2:]
    else:  # both streams share the values; the second mixture of a layer is the query stream's
        mixtures = mixtures[1::2]
    for p_BHPM, v_BMHK, mixed_BPHK in zip(probabilities_NBHPL, values, mixtures, strict=True):
        np.testing.assert_allclose(jnp.einsum("BHPM,BMHK->BPHK", p_BHPM, v_BMHK), mixed_BPHK, atol=1e-5)


@pytest.mark.parametrize("terms", [("c2p", "p2c"), ("p2c",), ()])
def test_the_softmax_of_the_sum_of_the_terms_is_the_attention_of_deberta(terms):
    encoder = small_deberta(terms=terms)
    params = random_params(encoder, noise=0.1)
    found = attention_terms(encoder, params, BATCH)
    assert set(found) == {"c2c", *terms}
    visible_BLM = BATCH["mask"][:, :, None] == BATCH["mask"][:, None]
    expected = jax.nn.softmax(jnp.where(visible_BLM[None, :, None], sum(found.values()), -1e9), axis=-1)
    np.testing.assert_allclose(attention(encoder, params, BATCH), expected, atol=1e-6)


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_are_the_inputs_of_layers_and_end_in_those_of_the_encoder(name):
    encoder = ENCODERS[name]()
    params = random_params(encoder, noise=0.1)
    states = hidden_states(encoder, {"encoder": params}, BATCH)  # of a model
    assert states.shape == (encoder.N + 1, 2, 24, encoder.D)
    last = encoder.apply({"params": params}, BATCH["tokens"], BATCH["mask"], BATCH["types"])
    np.testing.assert_array_equal(states[-1], last)
    assert len({array.tobytes() for array in np.asarray(states)}) == len(states)


@pytest.mark.parametrize("make", [small_bert, small_albert, small_modernbert, small_xlnet, small_deberta])
def test_a_program_that_asks_for_nothing_computes_nothing_more(make, monkeypatch):
    encoder = make(remat="full")
    params = random_params(encoder)

    def lowered():
        def gradient(params, key):
            def total(params):
                inputs = (BATCH["tokens"], BATCH["mask"], BATCH["types"], POSITIONS)
                options = {"train": True, "rngs": {"dropout": key}, "method": "hidden"}
                x_BLD, x_BPD = encoder.apply({"params": params}, *inputs, **options)
                return x_BLD.sum() + x_BPD.sum()

            return jax.grad(total)(params)

        return jax.jit(gradient).lower(params, jax.random.key(0)).as_text()

    as_it_is = lowered()
    monkeypatch.setattr(layers, "record", lambda module, **values: None)
    assert lowered() == as_it_is


def test_what_an_encoder_does_not_have_is_refused():
    encoder = small_bert()
    params = random_params(encoder)
    with pytest.raises(InputError, match="Encoder record no query_attention"):
        query_attention(encoder, params, BATCH, POSITIONS)
    with pytest.raises(InputError, match="Encoder record no c2c"):
        attention_terms(encoder, params, BATCH)
    with pytest.raises(InputError, match="positions holds 26: rows have 24 tokens"):
        query_attention(small_xlnet(), params, BATCH, POSITIONS + 17)
    for wrong in (object(), params):  # not a model, nor the arguments in another order
        with pytest.raises(InputError, match="not an encoder: give the field `encoder` of a model"):
            attention(wrong, params, BATCH)
    for wrong in ({}, random_params(small_bert(D=64)), random_params(small_xlnet())):
        with pytest.raises(InputError, match="params are not those of this encoder"):
            hidden_states(encoder, wrong, BATCH)
