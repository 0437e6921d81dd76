import dataclasses
import math
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ENCODERS, make_batch, random_params, small_albert, small_bert, small_roberta

from bertjax.config import load_experiment
from bertjax.models import layers
from bertjax.plan.step import plan
from bertjax.rules import name_of

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
KEY = jax.random.key(0)
PUBLISHED = {
    "bert size=tiny": 4_433_468,
    "bert size=mini": 11_267_900,
    "bert size=small": 29_058_876,
    "bert size=medium": 41_668_412,
    "bert size=base": 110_106_428,
    "bert size=large": 336_226_108,
    "bert size=base cased=true": 108_932_934,
    "bert size=large cased=true": 334_661_958,
    "roberta size=base": 124_696_665,
    "roberta size=large": 355_411_033,
    "albert size=base": 11_813_810,
    "albert size=large": 17_847_474,
    "albert size=xlarge": 59_021_490,
    "albert size=xxlarge": 223_158_450,
}

# How often each layer drops, if not 3 times, and how often the rest does, besides the embeddings.
SITES = {"xlnet": 4, "deberta": 4, "deberta v2": 4, "modernbert": 2, "neobert": 2, "mosaicbert": 2, "crammed": 2}
ONCE = {"xlnet": 1, "deberta v2": 1}


def init(encoder, seed=0):
    batch = make_batch()
    return jax.jit(encoder.init)(jax.random.key(seed), batch["tokens"], batch["mask"])["params"]


def named(tree):
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_sizes_have_the_published_number_of_parameters(model):
    family, *overrides = model.split()
    assert plan(load_experiment(EXPERIMENTS / f"{family}.py", overrides))["params"] == PUBLISHED[model]


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_parameters_are_initialised_as_published(family):
    """Truncated at two sigma (BERT, ALBERT) or not (RoBERTa), norms one and zero, biases zero; layers differ."""
    spread = 0.02 if family == "roberta" else 0.02 * 0.8796  # of a normal cut at ±2 sigma
    for name, leaf in named(jax.device_get(init(ENCODERS[family](D=128, F=512)))).items():
        if name.endswith("scale"):
            assert (leaf == 1).all()
        elif name.endswith("bias"):
            assert not leaf.any()
        else:
            assert abs(leaf.std() / spread - 1) < 5 / math.sqrt(2 * leaf.size), name
            assert (np.abs(leaf).max() <= 0.04) == (family != "roberta") or leaf.size < 1000
            assert not name.startswith("layers/") or not (leaf[0] == leaf[1]).any()


@cache
def gradient_of(encoder, *, rows=8, train):
    """Differentiate a loss that asks something of every seventh position."""
    batch = make_batch(rows=rows)
    wish_BLD = jax.random.normal(KEY, (*batch["tokens"].shape, encoder.D)) + 0.5
    chosen_BL1 = (jnp.arange(wish_BLD.shape[1]) % 7 == 1)[None, :, None]

    @jax.jit
    @jax.grad
    def gradient(params):
        inputs = batch["tokens"], batch["mask"], batch["types"]
        x_BLD = encoder.apply({"params": params}, *inputs, train=train, rngs={"dropout": KEY})
        return (x_BLD.astype(jnp.float32) * wish_BLD * chosen_BL1).sum()

    return named(jax.device_get(gradient(random_params(encoder))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("bert", {"remat": "dots"}),
        ("bert", {"remat": "full"}),
        ("bert", {"remat": "full", "unroll": True}),
        ("albert", {"remat": "full"}),
        ("xlnet", {"remat": "dots", "unroll": True}),
    ],
)
def test_recomputation_and_unrolling_change_no_gradient(family, fields):
    plain, changed = (gradient_of(ENCODERS[family](**each, N=3), train=True) for each in ({}, fields))
    for name, leaf in plain.items():
        atol = 1e-5 * np.abs(leaf).max() + 1e-5  # the latter for the biases of keys, which are 0 but for rounding
        np.testing.assert_allclose(changed[name], leaf, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("family", ENCODERS)
def test_every_dropout_of_an_encoder_has_a_key_of_its_own(family, monkeypatch):
    """One after the embeddings, three in each layer, whether or not the layers share their parameters.

    XLNet has one more within each feed-forward, and one at the end; the modern ones drop no probabilities, and have one
    within each feed-forward instead of the one behind it.
    """
    keys, make_rng = [], layers.Dropout.make_rng

    def record(words):
        keys.append(tuple(words.tolist()))
        return words

    def watched(self, name):
        words = jax.random.key_data(make_rng(self, name))
        shape = jax.ShapeDtypeStruct(words.shape, words.dtype)
        return jax.random.wrap_key_data(jax.pure_callback(record, shape, words))

    monkeypatch.setattr(layers.Dropout, "make_rng", watched)
    encoder, batch = ENCODERS[family](N=4, dropout=0.1), make_batch()
    apply = jax.jit(partial(encoder.apply, train=True))
    params, rngs = {"params": random_params(encoder)}, {"dropout": KEY}
    apply(params, batch["tokens"], batch["mask"], rngs=rngs).block_until_ready()
    assert len(keys) == len(set(keys)) == 1 + SITES.get(family, 3) * 4 + ONCE.get(family, 0)


def test_shared_layers_are_one_set_of_parameters_whatever_their_number():
    shapes = [jax.tree.map(jnp.shape, random_params(small_albert(N=N))) for N in (1, 5)]
    assert shapes[0] == shapes[1] and set(shapes[0]) == {"embeddings", "project", "layer"}
    apart = random_params(small_bert(N=5))["layers"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(apart)} == {5}
    assert jax.tree.map(lambda leaf: leaf.shape[1:], apart) == shapes[0]["layer"]


@pytest.mark.parametrize("family", ENCODERS)
def test_bfloat16_stays_close_to_float32_and_its_parameters_are_float32(family):
    batch, encoder = make_batch(), ENCODERS[family]()
    half = dataclasses.replace(encoder, dtype="bfloat16")
    shapes = [jax.eval_shape(each.init, KEY, batch["tokens"], batch["mask"]) for each in (encoder, half)]
    assert shapes[0] == shapes[1] and {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    params = random_params(encoder)
    whole, rounded = (
        jax.jit(each.apply)({"params": params}, batch["tokens"], batch["mask"]) for each in (encoder, half)
    )
    assert whole.dtype == jnp.float32 and rounded.dtype == jnp.bfloat16
    error = np.asarray(rounded, np.float32) - whole
    assert np.abs(error).max() < 0.06 and error.std() < 0.01  # the hidden states have standard deviation 1


def test_gradients_in_bfloat16_stay_close_to_float32():
    rounded = gradient_of(small_bert(dtype="bfloat16"), rows=128, train=False)
    errors = {
        name: float(np.linalg.norm(leaf - rounded[name]) / np.linalg.norm(leaf))
        for name, leaf in gradient_of(small_bert(), rows=128, train=False).items()
        if "key/bias" not in name  # 0 but for rounding
    }
    assert max(errors.values()) < 0.02, errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"D": 32, "H": 5}, "width D=32 does not divide into H=5 heads: choose H among its divisors"),
        ({"positions": 2, "first_position": 2}, "first_position=2 is beyond the 2 positions"),
        ({"unnumbered": 0, "first_position": -1}, "first_position=-1 must be 0 or more"),
        ({"N": 2, "shared": True, "groups": 3}, "groups=3 must be 1 to N=2, inner=1 1 or more"),
        ({"inner": 2}, "groups=1, inner=2 are of shared layers: set shared=true"),
        ({"remat": "some"}, "remat='some' is none of none, dots, full"),
        ({"dropout": 1.0}, "dropout=1.0 is not a share in [0, 1)"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1 is not a share in [0, 1)"),
        ({"dtype": "float16"}, "dtype='float16' is neither float32 nor bfloat16"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError) as error:
        small_bert(**fields)
    assert str(error.value) == message


def test_a_count_restarts_in_each_document():
    counted, mask = jnp.array([[1, 0, 1, 1, 1, 0, 1]]), jnp.array([[1, 1, 1, 2, 2, 2, 0]])
    np.testing.assert_array_equal(layers.restarting_count(counted, mask), [[1, 1, 2, 1, 2, 2, 1]])


def test_rows_may_be_as_long_as_the_position_table_but_no_longer():
    encoder = small_roberta(positions=20)
    assert encoder.max_length == 18
    tokens = np.ones((1, 19), np.int32)
    params = {"params": random_params(encoder)}
    assert jax.eval_shape(encoder.apply, params, tokens[:, :18], tokens[:, :18]).shape == (1, 18, encoder.D)
    message = "rows of length 19 exceed the 18 positions of the encoder: shorten the rows or raise `positions`"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(encoder.apply, params, tokens, tokens)


def test_without_types_all_tokens_are_of_the_first_segment():
    encoder, batch = small_bert(), make_batch()
    params, apply = {"params": random_params(encoder)}, jax.jit(encoder.apply)
    zeros = jnp.zeros_like(batch["types"])
    ours = apply(params, batch["tokens"], batch["mask"])
    np.testing.assert_array_equal(ours, apply(params, batch["tokens"], batch["mask"], zeros))
    assert (ours != apply(params, batch["tokens"], batch["mask"], batch["types"])).any()
