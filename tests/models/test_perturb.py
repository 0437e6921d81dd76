import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ENCODERS, small_bert, small_deberta_v2

from bertjax.models.layers import Table, TruncatedNormal
from bertjax.models.perturb import embedding_shape, perturbed_embeddings

KEY = jax.random.key(0)
TOKENS, MASK = jnp.arange(10, 18)[None], jnp.ones((1, 8), jnp.int32)


@pytest.mark.parametrize("name", ["bert", "xlnet", "neobert"])
def test_delta_perturbs_the_sum_of_embeddings_in_units_of_its_standard_deviation(name):
    """By hand: the same change made in the word table, in which every token of the row has a vector of its own."""
    encoder = ENCODERS[name](N=1)
    params = jax.jit(encoder.init)(KEY, TOKENS, MASK)["params"]
    embeddings, delta = params["embeddings"], 0.1 * np.asarray(jax.random.normal(KEY, (8, 32)))
    word = np.array(embeddings["word"]["table"])
    summed = word[TOKENS[0]]
    if name == "bert":
        summed = summed + embeddings["position"]["table"][:8] + embeddings["type"]["table"][:1]
    word[TOKENS[0]] += delta * np.asarray(summed).std(-1, keepdims=True)
    by_hand = params | {"embeddings": embeddings | {"word": {"table": jnp.asarray(word)}}}

    @jax.jit
    def run(params, delta):
        with perturbed_embeddings(delta):
            return encoder.apply({"params": params}, TOKENS, MASK)

    expected, plain = run(by_hand, jnp.zeros((1, 8, 32))), run(params, jnp.zeros((1, 8, 32)))
    np.testing.assert_allclose(run(params, delta[None]), expected, atol=1e-3)
    assert jnp.abs(expected - plain).max() > 0.05


def test_the_shape_of_embeddings_is_found_in_front_of_their_norm():
    def shape(encoder):
        return embedding_shape(encoder.apply, jax.eval_shape(encoder.init, KEY, TOKENS, MASK), TOKENS, MASK)

    assert shape(small_bert(E=16)) == (1, 8, 16)
    assert shape(small_deberta_v2()) == (1, 8, 32)  # wider than its tables


def test_perturbing_no_encoder_or_several_is_refused():
    encoder = small_bert(N=1)
    params = jax.eval_shape(encoder.init, KEY, TOKENS, MASK)
    with pytest.raises(ValueError, match="but 2 run"):
        embedding_shape(lambda params: [encoder.apply(params, TOKENS, MASK) for _ in range(2)], params)
    table = Table(20, 4, TruncatedNormal(), "float32")
    with pytest.raises(ValueError, match="but 0 run"):
        embedding_shape(table.apply, table.init(KEY, TOKENS), TOKENS)
