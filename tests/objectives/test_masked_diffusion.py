"""The loss of masked diffusion bounds the likelihood, exactly for a model that knows the posterior of a language."""

import dataclasses
import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import SPECIALS, make_batch, small_bert, small_deberta, small_modernbert, small_mosaicbert, small_xlnet
from toy_language import MASK, WORDS, Oracle, V, language, number_of, posterior, texts

from bertjax.noise import Cosine, ExactCount, Linear, LogLinear, RandomTime, uniform
from bertjax.objectives.diffusion import MaskedDiffusion, per_row, two_copies
from bertjax.random import with_global_rows
from bertjax.types import average

KEY = jax.random.key(0)
LENGTH = 4


def losses_by_count(text, length):
    """Return for k = 0 … length the mean over all sets of k masks of the summed losses of the masked words."""
    found = np.zeros(length + 1)
    for k in range(1, length + 1):
        sets = list(itertools.combinations(range(length), k))
        masked = np.tile(text, (len(sets), 1))
        for row, places in zip(masked, sets, strict=True):
            row[list(places)] = MASK
        log_p = posterior(length)[number_of(masked)]
        found[k] = np.mean([-log_p[i, list(s), text[list(s)]].sum() for i, s in enumerate(sets)])
    return found


@pytest.mark.parametrize("length", [LENGTH, 6])
@pytest.mark.parametrize("schedule", [Linear(), LogLinear(1e-7), Cosine()], ids=["linear", "log-linear", "cosine"])
def test_the_bound_of_every_schedule_is_the_likelihood_where_the_model_knows_the_posterior(schedule, length):
    """∫ weight(t) Σ_k P(k masks | rate(t)) · loss(k) dt by Gauss-Legendre, with the package's rates and weights."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    t = (nodes + 1) / 2
    rate, weight = (np.asarray(f(jnp.asarray(t)), np.float64) for f in (schedule.rate, schedule.weight))
    k = np.arange(length + 1)
    ways = np.array([len(list(itertools.combinations(range(length), i))) for i in k])
    chance = ways * rate[:, None] ** k * (1 - rate[:, None]) ** (length - k)
    for text in texts(length)[:: 5**length // 7]:
        exact = -np.log(language(length)[tuple(text)])
        by_count = losses_by_count(text, length)
        np.testing.assert_allclose((weights / 2 * weight) @ (chance @ by_count), exact, rtol=1e-5)
        # Exactly k of n, with weight n/k, and n values of k as likely.
        np.testing.assert_allclose(sum(by_count[1:] / k[1:]), exact, rtol=1e-9)


def test_what_mdlm_cuts_off_is_small_and_known():
    """With eps, the rates end at 1 - eps: what is missing is about eps times the loss where all is masked."""
    text = texts(LENGTH)[77]
    by_count = losses_by_count(text, LENGTH)
    t = (np.polynomial.legendre.leggauss(40)[0] + 1) / 2
    weights = np.polynomial.legendre.leggauss(40)[1] / 2
    k, ways = np.arange(LENGTH + 1), np.array([1, 4, 6, 4, 1])
    rate = 0.999 * t
    found = (weights / t) @ ((ways * rate[:, None] ** k * (1 - rate[:, None]) ** (LENGTH - k)) @ by_count)
    missing = -np.log(language(LENGTH)[tuple(text)]) - found
    np.testing.assert_allclose(missing, 1e-3 * by_count[-1], rtol=1e-2)


def rows_of_texts(count, seed=0):
    """Draw texts of the language: a batch."""
    index = np.random.default_rng(seed).choice(5**LENGTH, count, p=language(LENGTH).ravel())
    tokens = jnp.asarray(texts(LENGTH)[index])
    batch = {"tokens": tokens, "mask": jnp.ones_like(tokens), "example": jnp.arange(count, dtype=jnp.uint32)}
    return batch, -np.log(language(LENGTH).ravel()[index])


def estimates(noise, batch, keys):
    """Return the losses per token of a batch under each key."""
    objective = MaskedDiffusion(Oracle(LENGTH), MASK, noise=noise, slots=1.0)
    params = objective.init(KEY, batch)
    return np.asarray(jax.lax.map(lambda key: objective.loss(params, batch, key, train=True)[0], keys))


def test_both_estimators_agree_with_the_likelihood_and_the_exact_count_varies_less():
    """And both vary less with times spread over the batch than with independent ones: figures in docs/diffusion.md."""
    batch, exact = rows_of_texts(64)
    keys = jax.random.split(KEY, 2000)
    found = {name: estimates(noise, batch, keys) for name, noise in
             {"time": RandomTime(lowest=1e-4), "count": ExactCount()}.items()}  # fmt: skip
    expected = exact.mean() / LENGTH
    for name, values in found.items():
        error = values.std() / len(keys) ** 0.5
        assert abs(values.mean() - expected) < 4 * error < 0.02 * expected, name
    independent = {name: independently(noise, batch, keys) for name, noise in
                   {"time": RandomTime(lowest=1e-4), "count": ExactCount()}.items()}  # fmt: skip
    variances = {name: values.var() for name, values in found.items()}
    apart = {name: values.var() for name, values in independent.items()}
    print({"spread": variances, "independent": apart})
    assert variances["count"] < 0.5 * variances["time"]
    assert variances["count"] < 0.9 * apart["count"] and variances["time"] < apart["time"]


def independently(noise, batch, keys):
    """Estimate as `estimates`, but each row has a time of its own, drawn without the others."""
    objective = MaskedDiffusion(Oracle(LENGTH), MASK, noise=noise, slots=1.0)
    params = objective.init(KEY, batch)
    rows = {name: array[:, None] for name, array in batch.items()}

    def loss(key):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(batch["tokens"])))
        return jax.vmap(lambda row, key: objective.loss(params, row, key, train=True)[0])(rows, keys).mean()

    return np.asarray(jax.lax.map(loss, keys))


def test_with_uniform_weights_the_loss_is_that_of_masked_lm_at_every_rate():
    batch, _ = rows_of_texts(64)
    objective = MaskedDiffusion(Oracle(LENGTH), MASK, noise=RandomTime(weigh=uniform), slots=1.0)
    metrics = objective.loss(objective.init(KEY, batch), batch, KEY, train=True)[1]
    loss, mean = metrics["loss/diffusion"], metrics["cross_entropy/diffusion"]
    np.testing.assert_allclose(loss.sum, mean.sum, rtol=1e-5)
    assert loss.weight == 64 * LENGTH > mean.weight == metrics["masked/diffusion"].sum


def bert(**fields):
    return MaskedDiffusion(small_bert(), 3, SPECIALS, **fields)


@cache
def bert_params():
    return jax.jit(bert().init)(KEY, make_batch())


def test_a_mask_has_no_probability_and_what_is_not_masked_costs_nothing():
    batch, objective = make_batch(), bert(slots=1.0)
    params = bert_params()
    tokens = batch["tokens"].at[:, 5:8].set(3)  # masks in the text are no targets
    logits = objective.language_logits(params, batch | {"tokens": tokens})
    assert (np.asarray(logits)[..., 3] == -np.inf).all() and np.isfinite(np.delete(np.asarray(logits), 3, -1)).all()
    two = objective.language_logits(params, batch | {"tokens": tokens}, jnp.array([[5, 7]] * len(tokens)))
    np.testing.assert_allclose(two[..., :3], logits[:, [5, 7], :3], atol=1e-6)
    candidates = np.asarray(objective.candidates(batch | {"tokens": tokens}))
    assert not candidates[:, 5:8].any() and not candidates[np.isin(tokens, SPECIALS)].any()
    given = objective.candidates(batch | {"given": (jnp.arange(32)[None] < 20) * jnp.ones_like(tokens)})
    assert not given[:, :20].any() and given[:, 20:].any()


def test_few_slots_leave_the_loss_as_it_is_on_average_and_count_what_they_drop():
    batch, objective = make_batch(rows=16), bert(noise=ExactCount(), slots=1.0)
    params = jax.tree.map(lambda leaf: 10 * leaf, bert_params())

    def mean_loss(objective):
        keys = jax.random.split(KEY, 100)
        run = jax.jit(lambda key: objective.loss(params, batch, key, train=False)[1])
        found = [run(key) for key in keys]
        return found[0], [float(average(each["loss/diffusion"])) for each in found]

    (_, whole), (metrics, part) = mean_loss(objective), mean_loss(dataclasses.replace(objective, slots=0.25))
    assert abs(np.mean(part) / np.mean(whole) - 1) < 0.03
    overflow = metrics["overflow/diffusion"]
    assert 0 < overflow.sum == overflow.weight - np.ceil(0.25 * batch["tokens"].size)


def test_masks_and_loss_are_those_of_the_step_in_every_micro_batch():
    batch, objective = make_batch(), bert(slots=1.0)
    params = bert_params()
    evaluate = jax.jit(lambda batch, key: objective.loss(params, batch, key, train=False)[1])
    whole = evaluate(batch, KEY)
    numbered = with_global_rows(KEY, batch)
    parts = [
        evaluate({name: array[part::2] for name, array in numbered.items()}, jax.random.fold_in(KEY, part))
        for part in range(2)
    ]
    for name, mean in whole.items():
        np.testing.assert_allclose(parts[0][name].sum + parts[1][name].sum, mean.sum, rtol=1e-5, err_msg=name)
    assert (evaluate(batch, jax.random.key(5))["targets/diffusion"].sum != whole["targets/diffusion"].sum).any()


def test_rows_are_cut_at_random_lengths_and_weigh_alike_where_it_is_asked():
    batch = make_batch(rows=64)
    params = bert_params()
    objectives = {"whole": bert(), "cut": bert(cut=1.0), "rows": bert(share=per_row)}
    metrics = {
        name: jax.jit(lambda key, o=objective: o.loss(params, batch, key, train=False)[1])(KEY)
        for name, objective in objectives.items()
    }
    real = {name: float(each["tokens/real"].sum) for name, each in metrics.items()}
    assert real["whole"] == real["rows"] == float(batch["mask"].sum()) and 0.3 < real["cut"] / real["whole"] < 0.8
    assert metrics["rows"]["loss/diffusion"].weight == 64


@pytest.mark.parametrize(
    "make", [small_modernbert, *(pytest.param(make, marks=pytest.mark.slow) for make in (small_bert, small_mosaicbert))]
)
def test_in_blocks_a_token_sees_its_noised_block_and_the_text_before_it(make):
    """As many runs of the plain model, one for each block, where what comes after it is cut off."""
    encoder = make()
    objective = MaskedDiffusion(encoder, 3, SPECIALS, block=4, slots=1.0)
    batch = make_batch(rows=2, length=12)
    batch["mask"] = jnp.array([[1] * 7 + [2] * 5, [1] * 10 + [0] * 2])
    params = jax.jit(objective.init)(KEY, batch)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(KEY, leaf.shape), params)
    masked_BL = objective.candidates(batch) & (jax.random.uniform(KEY, (2, 12)) < 0.5)
    found = jax.jit(objective.states)(params, batch, masked_BL)
    blocks = np.asarray(objective.blocks(batch))
    assert blocks.tolist() == [[0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 0, 0]]
    alone = jax.jit(lambda tokens: objective.encode(params, batch | {"tokens": tokens}))
    for block in range(3):
        here = blocks == block
        states = alone(jnp.where(masked_BL & here, 3, batch["tokens"]))
        real = here & (np.asarray(batch["mask"]) > 0)
        np.testing.assert_allclose(np.asarray(found)[real], np.asarray(states)[real], atol=2e-4)
    visible = two_copies(batch["mask"], objective.blocks(batch))
    assert visible.shape == (2, 24, 24) and visible.any(2).all()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: MaskedDiffusion(small_xlnet(), 3, block=4), "an attention mask that XLNet does not take"),
        (lambda: MaskedDiffusion(small_deberta(), 3, block=4), "an attention mask that DeBERTa does not take"),
        (lambda: bert(block=0), "block=0 must be 1 or more"),
        (lambda: bert(slots=0), r"slots=0 is not a share"),
        (lambda: bert(cut=2), r"cut=2 is not a share"),
        (lambda: MaskedDiffusion(small_bert(), 200), "id 200, but the encoder's vocabulary has V=200"),
        (lambda: RandomTime(lowest=0), "lowest=0 must be in"),
        (lambda: LogLinear(1.0), r"eps=1.0 is not a share"),
    ],
)
def test_what_cannot_be_is_refused(make, problem):
    with pytest.raises(ValueError, match=problem):
        make()


def test_rows_in_blocks_are_no_longer_than_the_positions():
    objective = MaskedDiffusion(small_bert(positions=16), 3, block=4)
    with pytest.raises(ValueError, match="rows of length 32 exceed the 16 positions"):
        jax.eval_shape(lambda batch: objective.loss(objective.init(KEY, batch), batch, KEY, train=False), make_batch())


@pytest.mark.parametrize("make", [small_xlnet, small_deberta])
def test_other_encoders_are_trained_by_their_content_stream_and_all_their_positions(make):
    objective = MaskedDiffusion(make(), 3, SPECIALS)
    batch = make_batch(rows=4)
    shapes = jax.eval_shape(objective.init, KEY, batch)
    metrics = jax.eval_shape(lambda p: objective.loss(p, batch, KEY, train=False)[1], shapes)
    assert metrics["loss/diffusion"].sum.shape == () and V == WORDS + 1
