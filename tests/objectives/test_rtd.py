import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import MASKING, OBJECTIVES, B, L, V, make_batch, small_bert, small_generator, without_dropout

from bertjax.config import load_experiment
from bertjax.masking import mask_tokens
from bertjax.models.encoder import Encoder
from bertjax.models.heads import ReplacedInContextHead
from bertjax.objectives import rtd
from bertjax.objectives.rtd import DisentangledEmbeddings, ReplacedTokenDetection, SeparateEmbeddings, SharedEmbeddings
from bertjax.plan.step import plan
from bertjax.rules import name_of

KEY = jax.random.key(0)
SHARED = without_dropout(ReplacedTokenDetection(small_generator(), small_bert(), MASKING))
MODES = {
    "shared": SHARED,
    "separate": dataclasses.replace(SHARED, sharing=SeparateEmbeddings()),
    "disentangled": dataclasses.replace(SHARED, sharing=DisentangledEmbeddings()),
}


def named(tree):
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def touched(objective, term):
    """Name the parameters that a term of the loss has a gradient for."""
    batch = make_batch()
    params = objective.init(KEY, batch)
    gradient = jax.jit(jax.grad(lambda params: objective.loss(params, batch, KEY, train=True)[1][term].sum))(params)
    return {name for name, leaf in named(gradient).items() if leaf.any()}, set(named(params))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_each_loss_trains_its_own_model_and_the_tables_as_the_mode_says(mode):
    by_mlm, names = touched(MODES[mode], "loss/mlm")
    by_rtd, _ = touched(MODES[mode], "loss/rtd")
    generator = {name for name in names if name.startswith("generator/")}
    tables = {name for name in names if name.startswith("discriminator/encoder/embeddings/")}
    assert by_mlm == generator | (tables if mode == "shared" else set())
    assert by_rtd == names - generator


@pytest.mark.parametrize("mode", MODES)
def test_each_sharing_keeps_and_uses_its_tables(mode):
    objective, batch = MODES[mode], make_batch()
    params = objective.init(KEY, batch)
    whole = objective.complete(params)
    ours, theirs = (whole[part]["encoder"]["embeddings"] for part in ("generator", "discriminator"))
    equal = {name: bool((leaf == named(theirs)[name]).all()) for name, leaf in named(ours).items()}
    tables = {"word/table", "position/table", "type/table"}
    assert set(equal) == tables | {"norm/scale", "norm/bias"}
    if mode == "shared":
        assert "embeddings" not in params["generator"]["encoder"] and all(equal.values())
    elif mode == "separate":
        assert not any(equal[name] for name in tables)
    else:
        assert all(equal.values())
        deltas = named(params["discriminator"]["encoder"]["embeddings"])
        assert not any(deltas[name].any() for name in tables) and (deltas["norm/scale"] == 1).all()
        moved = jax.tree.map(lambda x: x + 1.0, params)
        whole = objective.complete(moved)
        ours, theirs = (named(whole[part]["encoder"]["embeddings"]) for part in ("generator", "discriminator"))
        assert all(np.allclose(theirs[name], ours[name] + 1) for name in tables)
        assert (theirs["norm/bias"] == ours["norm/bias"]).all()


def watched_loss(monkeypatch, objective, batch, *, sampled=None, **options):
    """Compute the loss; return its metrics and the tokens that the generator and the discriminator were given."""
    given = []

    def watch(run, inputs, options, context):
        if isinstance(context.module, Encoder) and context.method_name == "__call__":
            given.append(inputs[0])
        return run(*inputs, **options)

    if sampled is not None:
        monkeypatch.setattr(rtd, "sample", sampled)
    params = objective.init(KEY, batch)
    with nn.intercept_methods(watch):
        return objective.loss(params, batch, KEY, train=False, **options)[1], *given


def test_samples_go_into_the_original_at_masked_positions_only(monkeypatch):
    batch, objective = make_batch(), OBJECTIVES["electra"]
    _, masked, judged = watched_loss(monkeypatch, objective, batch)
    mask_key = jax.random.split(KEY, 4)[0]
    expected = objective.corrupt(mask_key, batch, objective.masking)
    np.testing.assert_array_equal(masked, expected.tokens_BL)
    chosen = np.zeros((B, L), bool)
    for row in range(B):
        chosen[row, expected.positions_BP[row][expected.weights_BP[row] > 0]] = True
    np.testing.assert_array_equal(judged[~chosen], batch["tokens"][~chosen])
    # A random generator is nearly always wrong, also where the mask recipe left the original in place.
    assert (judged[chosen] != batch["tokens"][chosen]).mean() > 0.9
    assert (masked[chosen] == batch["tokens"][chosen]).any()


def test_a_correct_sample_counts_as_original(monkeypatch):
    batch = make_batch()
    masked = mask_tokens(jax.random.split(KEY, 4)[0], batch, MASKING)

    def half_right(*_):
        wrong = jnp.where(masked.targets_BP == 50, 51, 50)
        return jnp.where(jnp.arange(masked.targets_BP.shape[1])[None] % 2 == 0, masked.targets_BP, wrong)

    metrics, _, judged = watched_loss(monkeypatch, SHARED, batch, sampled=half_right)
    wrong = (masked.weights_BP * (jnp.arange(masked.weights_BP.shape[1])[None] % 2)).sum()
    assert metrics["replaced/rtd"].sum == wrong == (judged != batch["tokens"]).sum()
    metrics, *_ = watched_loss(monkeypatch, SHARED, batch, sampled=lambda *_: masked.targets_BP)
    assert metrics["replaced/rtd"].sum == 0


def test_the_loss_is_the_cross_entropy_over_all_real_tokens_fifty_times():
    batch = make_batch()
    params = SHARED.init(KEY, batch)
    # A head that gives every token the same logit.
    head = params["discriminator"]["head"]["rtd"]
    head["classifier"] = {"kernel": head["classifier"]["kernel"] * 0, "bias": jnp.array([0.3])}
    loss, metrics = SHARED.loss(params, batch, KEY, train=False)
    real, replaced = float((batch["mask"] > 0).sum()), float(metrics["replaced/rtd"].sum)
    assert metrics["loss/rtd"].weight == metrics["replaced/rtd"].weight == real and 0 < replaced < real
    expected = (replaced * -np.log(1 / (1 + np.exp(-0.3))) + (real - replaced) * -np.log(1 / (1 + np.exp(0.3)))) / real
    np.testing.assert_allclose(metrics["cross_entropy/rtd"].sum / real, expected, rtol=1e-5)
    mlm = metrics["loss/mlm"].sum / metrics["loss/mlm"].weight
    np.testing.assert_allclose(loss, mlm + 50 * expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy/rtd"].sum, replaced)
    other = dataclasses.replace(SHARED, generator_weight=2.0, discriminator_weight=10.0)
    np.testing.assert_allclose(other.loss(params, batch, KEY, train=False)[0], 2 * mlm + 10 * expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_samples_follow_the_softmax_at_its_temperature(temperature):
    logits_V = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.07, 0.03]))
    rows, P = 400, 200
    batch = {"tokens": jnp.zeros((rows, 4), jnp.int32)}
    drawn = rtd.sample(KEY, batch, jnp.broadcast_to(logits_V, (rows, P, 5)), temperature)
    counts = np.bincount(np.asarray(drawn).reshape(-1), minlength=5)
    expected = np.asarray(jax.nn.softmax(logits_V / temperature)) * rows * P
    assert ((counts - expected) ** 2 / expected).sum() < 23.5  # χ² of 4 degrees of freedom: 1 in 10,000
    assert len(np.unique(np.asarray(drawn), axis=0)) == rows


def test_draws_are_named_by_the_example_and_pass_no_gradient():
    logits = jax.random.normal(KEY, (B, 6, V))
    batch = make_batch()
    drawn = rtd.sample(KEY, batch, logits, 1.0)
    order = np.random.default_rng(0).permutation(B)
    shuffled = {name: array[order] for name, array in batch.items()}
    np.testing.assert_array_equal(rtd.sample(KEY, shuffled, logits[order], 1.0), drawn[order])
    assert (drawn != rtd.sample(jax.random.key(1), batch, logits, 1.0)).any()
    gradient = jax.grad(lambda x: rtd.sample(KEY, batch, x, 1.0).astype(jnp.float32).sum())(logits)
    assert not gradient.any()


def test_the_scores_of_the_evaluation_are_those_of_the_discriminator():
    batch = make_batch()
    params = SHARED.init(KEY, batch)
    metrics = jax.jit(partial(SHARED.loss, train=False))(params, batch, KEY)[1]
    negatives, positives = metrics["scores/rtd"].sum
    assert positives.sum() == metrics["replaced/rtd"].sum
    assert negatives.sum() + positives.sum() == metrics["replaced/rtd"].weight
    assert "scores/rtd" not in SHARED.loss(params, batch, KEY, train=True)[1]


COUNTS = [
    ("size=small", 13_549_057, 647_162),
    ("size=small released=true", 13_549_057, 9_573_818),
    ("size=base", 109_483_009, 9_903_418),
    ("size=large", 335_142_913, 19_512_378),
]


@pytest.mark.parametrize(("overrides", "discriminator", "generator"), COUNTS)
def test_parameters_are_as_many_as_published(overrides, discriminator, generator):
    groups = plan(load_experiment("experiments/electra.py", overrides.split()))["params_by_group"]
    found = [sum(n for name, n in groups.items() if name.startswith(part)) for part in ("discriminator", "generator")]
    assert found == [discriminator, generator]


@pytest.mark.parametrize(("size", "length", "count"), [("small", 128, 19), ("base", 512, 77), ("large", 512, 128)])
def test_as_many_positions_are_masked_as_published(size, length, count):
    """The original has 19, 79 and 130 slots, of which a full row uses round(rate · length)."""
    experiment = load_experiment("experiments/electra.py", [f"size={size}"])
    batch = {"tokens": jnp.full((1, length), 7), "mask": jnp.ones((1, length), jnp.int32)}
    masked = experiment.objective.corrupt(KEY, batch, experiment.objective.masking)
    assert experiment.phases[0].rows.length == length
    assert masked.weights_BP.shape == (1, count) and masked.weights_BP.all()


def test_overrides_select_the_published_ways_to_share():
    for name, sharing in (("shared", SharedEmbeddings()), ("separate", SeparateEmbeddings())):
        assert load_experiment("experiments/electra.py", [f"sharing={name}"]).objective.sharing == sharing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generator": small_generator(V=V + 1)}, f"vocabulary of V={V + 1} ids, the discriminator of V={V}"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"discriminator_weight": -1.0}, "discriminator_weight=-1.0"),
        ({"generator": small_bert(D=16)}, "embedding_width=16, the discriminator embedding_width=32"),
        ({"generator": dataclasses.replace(small_generator(), positions=40)}, "positions=40"),
        ({"generator": dataclasses.replace(small_generator(), types=0)}, "types=0"),
        ({"masking": dataclasses.replace(MASKING, mask_id=V)}, f"id {V}"),
    ],
)
@pytest.mark.parametrize("sharing", [SharedEmbeddings(), DisentangledEmbeddings()])
def test_contradictions_are_refused_at_construction(sharing, fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SHARED, sharing=sharing, **fields)


def test_encoders_that_share_nothing_may_differ():
    dataclasses.replace(SHARED, sharing=SeparateEmbeddings(), generator=small_bert(D=16, types=0))


@pytest.mark.parametrize("size", ["v3-xsmall", "v3-large", "mdeberta"])
def test_version_3_of_deberta_is_built_as_published(size):
    objective = load_experiment("experiments/deberta.py", [f"size={size}"]).objective
    generator, discriminator = objective.generator, objective.discriminator
    assert dataclasses.replace(generator, N=discriminator.N, decoder=0) == discriminator
    assert generator.N * 2 == discriminator.N and generator.decoder == 2
    assert objective.sharing == DisentangledEmbeddings() and objective.discriminator_weight == 10
    assert (objective.masking.masked, objective.masking.rate) == (1.0, 0.15)
    assert isinstance(objective.head, ReplacedInContextHead)


def test_of_deberta_tables_are_disentangled_and_the_rest_is_each_ones_own():
    objective = OBJECTIVES["deberta v2, replaced tokens, remat dots"]
    made = objective.init(KEY, make_batch())
    deltas = named(made["discriminator"]["encoder"]["embeddings"])
    assert set(deltas) == {"word/table", "project/kernel", "norm/scale", "norm/bias"}
    assert not deltas["word/table"].any() and deltas["project/kernel"].any()
    whole = objective.complete(made)
    ours, theirs = (named(whole[part]["encoder"]["embeddings"]) for part in ("generator", "discriminator"))
    assert (ours["word/table"] == theirs["word/table"]).all()
    assert not (ours["project/kernel"] == theirs["project/kernel"]).all()
    with pytest.raises(ValueError, match="embedding_width=32, the discriminator embedding_width=16"):
        dataclasses.replace(objective, generator=dataclasses.replace(objective.generator, E=None))
