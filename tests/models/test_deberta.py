import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import V, make_batch, small_deberta, small_deberta_v2
from jaxprs import primitives

from bertjax.config import load_experiment
from bertjax.models import layers
from bertjax.models.deberta import Convolution, DeBERTa, DeBERTaLayer, DisentangledAttention, DistanceRows, View
from bertjax.plan.step import plan

KEY = jax.random.key(0)
PUBLISHED = {
    "v1-base": 138_601_728,
    "v1-large": 405_163_008,
    "v1-xlarge": 757_804_032,
    "v2-xlarge": 884_593_152,
    "v2-xxlarge": 1_564_549_632,
    "v3-xsmall": 70_682_112,
    "v3-small": 141_304_320,
    "v3-base": 183_831_552,
    "v3-large": 434_012_160,
    "mdeberta": 278_218_752,
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_encoders_have_as_many_parameters_as_published(size):
    """With embeddings and the table of distances, without heads and the decoder's positions."""
    tokens = jnp.ones((1, 8), jnp.int32)
    encoder = load_experiment("experiments/deberta.py", [f"size={size}"]).objective.encoder
    params = jax.eval_shape(encoder.init, KEY, tokens, tokens)["params"]
    positions = params.pop("decoder_positions", None)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == PUBLISHED[size]
    assert positions is None or positions["table"].shape == (512, encoder.D)


@pytest.mark.parametrize("size", ["v1-base", "v2-xlarge", "v3-base", "v3-large"])
def test_plan_counts_the_published_number_of_parameters(size):
    """Of version 3 the discriminator, which is what was published."""
    groups = plan(load_experiment("experiments/deberta.py", [f"size={size}"]))["params_by_group"]
    parts = {name: count for name, count in groups.items() if name.split("/")[0] in ("encoder", "discriminator")}
    parts.pop("encoder/decoder_positions", None)
    parts.pop("discriminator/head", None)
    assert sum(parts.values()) == PUBLISHED[size]


def init(encoder, seed=0):
    batch = make_batch(rows=2)
    params = jax.jit(encoder.init)(jax.random.key(seed), batch["tokens"], batch["mask"])["params"]
    # Norms and biases begin alike: tell them apart.
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), params)


def run(encoder, params, tokens, mask, positions=None, **options):
    run = jax.jit(partial(encoder.apply, method="hidden", **options))
    return run({"params": params}, tokens, mask, None, positions)


DECODED = small_deberta_v2(decoder=2)


@pytest.fixture(scope="module")
def params():
    return init(DECODED)


def test_the_decoder_computes_the_rows_that_are_asked_for(params):
    batch = make_batch(rows=2)
    places = jnp.array([[3, 9, 0, 14], [5, 5, 1, 2]])
    states, rows = run(DECODED, params, batch["tokens"], batch["mask"], places)
    whole, every = run(DECODED, params, batch["tokens"], batch["mask"])
    np.testing.assert_allclose(rows, jnp.take_along_axis(every, places[..., None], axis=1), atol=1e-5)
    np.testing.assert_array_equal(states, whole)
    assert jnp.abs(every - whole).max() > 0.1
    # Without the decoder the states are the same, and words are guessed from them.
    without = {name: part for name, part in params.items() if name != "decoder_positions"}
    plain, guessed = run(dataclasses.replace(DECODED, decoder=0), without, batch["tokens"], batch["mask"], places)
    np.testing.assert_allclose(plain, whole, atol=1e-6)
    np.testing.assert_array_equal(guessed, jnp.take_along_axis(plain, places[..., None], axis=1))


def test_a_decoder_counts_positions_in_each_document_of_a_packed_row(params):
    tokens = jax.random.randint(KEY, (1, 12), 4, V)
    mask = jnp.array([[1] * 7 + [2] * 5])
    _, group_size = run(DECODED, params, tokens, mask, jnp.array([[2, 8, 11]]))
    _, first = run(DECODED, params, tokens[:, :7], mask[:, :7], jnp.array([[2]]))
    _, second = run(DECODED, params, tokens[:, 7:], mask[:, 7:], jnp.array([[1, 4]]))
    np.testing.assert_allclose(group_size, jnp.concatenate([first, second], axis=1), atol=1e-5)


def test_the_decoder_is_the_last_layer_again_reading_the_states_before_it(params):
    """By its parts: a layer of its own, and as what it reads the states of an encoder without the last layer."""
    batch = make_batch(rows=2)
    tokens, mask = batch["tokens"], batch["mask"]
    others = {name: part for name, part in params.items() if name != "decoder_positions"}
    short = others | {"layers": jax.tree.map(lambda x: x[:-1], params["layers"])}
    before, _ = run(dataclasses.replace(DECODED, N=1, decoder=0), short, tokens, mask)
    layer = DeBERTaLayer(
        DECODED.D, DECODED.H, DECODED.F, DistanceRows(6, 24), DECODED.terms, True, True, 0.0, 0.0,
        DECODED.activation, DECODED.norm_eps, DECODED.initializer, "float32", False,
    )  # fmt: skip
    table = params["relative"]["table"]
    table = layers.layer_norm(table, *(params["relative"]["norm"][x] for x in ("scale", "bias")), DECODED.norm_eps)
    view = View(layers.same_document(mask), None)
    last = {"params": jax.tree.map(lambda x: x[-1], params["layers"])}
    query = before + params["decoder_positions"]["table"][None, : tokens.shape[1]]
    for _ in range(2):
        query = layer.apply(last, query, view, table, before, method="rows")
    real = mask > 0
    np.testing.assert_allclose(run(DECODED, params, tokens, mask)[1][real], query[real], atol=1e-4)


def test_the_decoder_has_the_rows_of_its_positions_and_no_more():
    B, L, P = 2, 24, 5
    tokens = jnp.ones((B, L), jnp.int32)

    def shapes(encoder):
        params = jax.eval_shape(encoder.init, KEY, tokens, tokens)["params"]
        decode = partial(encoder.apply, method="hidden", positions_BP=tokens[:, :P])
        traced = jax.make_jaxpr(lambda params: decode({"params": params}, tokens, tokens))(params)
        return [shape for name, found in primitives(traced.jaxpr) if name == "exp" for shape in found]

    without, decoded = shapes(small_deberta()), shapes(small_deberta(decoder=2))
    assert decoded.count((B, 2, L, L)) == without.count((B, 2, L, L))
    assert decoded.count((B, 2, P, L)) > 0 == without.count((B, 2, P, L))


def test_the_convolution_joins_the_first_layer_and_no_other():
    """With a norm of scale 0 the first layer's states are its bias in all places, and so are all that follow."""
    encoder, batch = small_deberta_v2(N=3), make_batch(rows=2)
    params = init(encoder)
    branch = params["convolution"]
    flat = params | {"convolution": branch | {"norm": branch["norm"] | {"scale": jnp.zeros(encoder.D)}}}
    states, _ = run(encoder, flat, batch["tokens"], batch["mask"])
    np.testing.assert_allclose(states, jnp.broadcast_to(states[:1, :1], states.shape), atol=1e-5)
    # Where only later layers differ, what they make of the same states differs: none of them is joined again.
    other = flat | {"layers": jax.tree.map(lambda x: x.at[1].multiply(1.2), flat["layers"])}
    assert jnp.abs(run(encoder, other, batch["tokens"], batch["mask"])[0] - states).max() > 1e-2
    first = flat | {"layers": jax.tree.map(lambda x: x.at[0].multiply(1.2), flat["layers"])}
    np.testing.assert_allclose(run(encoder, first, batch["tokens"], batch["mask"])[0], states, atol=1e-5)


def test_the_convolution_stays_within_documents():
    """By hand, of one document in a packed row."""
    D, width = 6, 3
    x, mask = jax.random.normal(KEY, (1, 7, D)), jnp.array([[1, 1, 2, 2, 2, 0, 0]])
    module = Convolution(D, width, 0.0, layers.gelu, layers.Normal(0.5), "float32")
    params = module.init(KEY, x, mask, train=False)["params"]
    found = module.apply({"params": params}, x, mask, train=False).x_BLD
    kernel = np.asarray(params["mix"]["kernel"])
    for at in range(2, 5):
        y = sum(np.asarray(x)[0, at + i - 1] @ kernel[i] for i in range(3) if 2 <= at + i - 1 < 5)
        np.testing.assert_allclose(found[0, at], layers.gelu(jnp.asarray(y)), atol=1e-5)


@pytest.mark.slow
def test_remat_changes_no_gradient(params):
    batch = make_batch(rows=2)

    def gradient(encoder):
        def loss(params):
            states, rows = encoder.apply(
                {"params": params}, batch["tokens"], batch["mask"], positions_BP=jnp.array([[1, 4], [2, 2]]),
                train=True, rngs={"dropout": KEY}, method="hidden",
            )  # fmt: skip
            return jnp.square(rows).sum() + states[:, 3].sum()

        return jax.jit(jax.grad(loss))(params)

    for a, b in zip(
        jax.tree.leaves(gradient(DECODED)), jax.tree.leaves(gradient(dataclasses.replace(DECODED, remat="full"))),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max()) + 1e-6)


def test_the_table_of_distances_is_dropped():
    """With no content in attention and no other dropout, what remains of it is the table's."""
    layer = DisentangledAttention(
        4, 1, DistanceRows(3), ("c2p",), False, False, 0.5, 0.0, layers.Normal(1.0), "float32", True
    )
    x, table = jax.random.normal(KEY, (1, 5, 4)), jax.random.normal(jax.random.key(1), (6, 4))
    inputs = x, View(jnp.ones((1, 5, 5), bool), None), table
    params = layer.init({"params": KEY, "dropout": KEY}, *inputs)
    one, other = (layer.apply(params, *inputs, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert jnp.abs(one - other).max() > 1e-3
    inputs = *inputs[:2], 0 * table
    one, other = (layer.apply(params, *inputs, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    np.testing.assert_array_equal(one, other)


def test_bfloat16_stays_near_float32(params):
    batch, places = make_batch(rows=2), jnp.array([[1, 4], [2, 2]])
    found = [
        run(dataclasses.replace(DECODED, dtype=dtype), params, batch["tokens"], batch["mask"], places)[1]
        for dtype in ("float32", "bfloat16")
    ]
    assert found[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(found[0], found[1].astype(jnp.float32), atol=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"H": 5}, "H=5 heads"),
        ({"N": 0}, "N=0"),
        ({"distances": 0}, "distances=0"),
        ({"buckets": 1100}, "buckets=1100"),
        ({"buckets": 2}, "buckets=2"),
        ({"convolution": 4}, "convolution=4"),
        ({"terms": ("p2p",)}, "p2p"),
        ({"terms": ("c2p", "c2p")}, "each once"),
        ({"decoder": -1}, "decoder=-1"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"remat": "some"}, "remat='some'"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_contradictions_are_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        DeBERTa(**({"V": 10, "D": 32, "N": 1, "H": 2, "F": 8} | fields))


def test_only_a_decoder_limits_the_length_of_rows():
    tokens = jnp.ones((1, 20), jnp.int32)
    with pytest.raises(ValueError, match="length 20 exceed the 16 positions"):
        jax.eval_shape(small_deberta(decoder=2, positions=16).init, KEY, tokens, tokens)
    assert small_deberta(positions=16).max_length is None
    jax.eval_shape(small_deberta(positions=16).init, KEY, tokens, tokens)
