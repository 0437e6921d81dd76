"""Samplers draw from the distribution of a model that knows its posterior, and never touch what is no hole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from toy_language import MASK, WORDS, V, language, posterior

from bertjax.diffusion import (
    Ancestral,
    Canvas,
    Confident,
    Draw,
    EveryStep,
    FirstHitting,
    InBlocks,
    Proposal,
    Randomly,
    Remasking,
    WhenChanged,
    categorical,
    evenly,
    exponential,
    guided,
    highest,
    sample,
    sureness_of_draw,
)
from bertjax.noise import Cosine, Linear

KEY = jax.random.key(0)


def drawn(sampler, length, count, *, draw=Draw(), ask=EveryStep(), seed=0):  # noqa: B008 frozen
    """Sample texts by the model that knows the posterior: their number in the order of `language`, and the result."""
    table = jnp.asarray(posterior(length), jnp.float32)
    weights_P = V ** jnp.arange(length)[::-1]

    def predict(values_BP):
        return table[(values_BP * weights_P[None]).sum(1)]

    @jax.jit
    def run(key):
        holes_BP = jnp.ones((count, length), bool)
        return sample(predict, holes_BP, key, mask_id=MASK, sampler=sampler, draw=draw, ask=ask)

    found = jax.device_get(run(jax.random.key(seed)))
    assert (found.values_BP < WORDS).all() and (found.values_BP == found.states_TBP[-1]).all()
    return (found.values_BP * WORDS ** np.arange(length)[::-1]).sum(1), found


def p_value(numbers, length):
    """Test the distribution of texts by chi-square; texts of which fewer than 5 are expected count as one."""
    expected = language(length).ravel() * len(numbers)
    counts = np.bincount(numbers, minlength=len(expected))
    rare = expected < 5
    pooled = [np.append(each[~rare], each[rare].sum()) if rare.any() else each for each in (counts, expected)]
    return scipy.stats.chisquare(*pooled).pvalue


ONE_AT_A_TIME = {
    "first hitting": FirstHitting(),
    "randomly": Randomly(),
    "confident": Confident(),
    "in blocks": InBlocks(2, Confident()),
    "in blocks, randomly": InBlocks(3, Randomly()),
    "ancestral, evenly": Ancestral(unmask=evenly),
}
MANY_STEPS = {
    "ancestral": (Ancestral(1000), EveryStep()),
    "ancestral, cosine": (Ancestral(1000, Cosine()), WhenChanged()),
    "cached": (Ancestral(1000), WhenChanged()),
    "remasking": (Remasking(1000, sigma=5e-4), WhenChanged()),
}
BIASED = {
    "one step": Randomly(1),
    "half the steps": Randomly(2),
    "ancestral at as many steps as tokens, which may fill two at once": Ancestral(4),
}


@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_one_hole_at_a_time_draws_from_the_model(name):
    numbers, found = drawn(ONE_AT_A_TIME[name], 3, 8000)
    assert p_value(numbers, 3) > 1e-3
    assert len(found.states_TBP) == 3 == found.asked
    np.testing.assert_array_equal((found.states_TBP != MASK).sum(2), np.arange(1, 4)[:, None].repeat(8000, 1))


def test_many_steps_draw_from_the_model():
    for sampler in (Ancestral(300), Remasking(300, sigma=0.02)):
        assert p_value(drawn(sampler, 3, 3000, ask=WhenChanged())[0], 3) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "length"),
    [*((name, length) for name in ONE_AT_A_TIME for length in (4, 6)), *((name, 4) for name in MANY_STEPS)],
)  # of a thousand steps gigabytes of states are kept, so at one length
def test_a_hundred_thousand_texts_are_distributed_as_the_language(name, length):
    sampler, ask = MANY_STEPS.get(name) or (ONE_AT_A_TIME[name], EveryStep())
    assert p_value(drawn(sampler, length, 100_000, ask=ask, seed=length)[0], length) > 1e-3


@pytest.mark.parametrize("name", BIASED)
def test_fewer_steps_are_biased(name):
    assert p_value(drawn(BIASED[name], 4, 20_000)[0], 4) < 1e-6


def test_the_confidence_of_what_was_drawn_is_biased_and_the_models_own_is_not():
    of_draw = drawn(Confident(), 3, 20_000, draw=Draw(confidence=sureness_of_draw))[0]
    assert p_value(of_draw, 3) < 1e-6
    likeliest = (Draw(0), Draw(0, confidence=sureness_of_draw))
    one, other = (drawn(Confident(), 3, 50, draw=draw)[0] for draw in likeliest)
    np.testing.assert_array_equal(one, other)


def test_logits_that_are_kept_give_the_same_texts_by_fewer_calls():
    every, found = drawn(Ancestral(200), 3, 4)
    cached, kept = drawn(Ancestral(200), 3, 4, ask=WhenChanged())
    np.testing.assert_array_equal(every, cached)
    assert found.asked == 200 and kept.asked <= 1 + 4 * 3


def test_what_was_filled_stays_but_for_remasking():
    for sampler, stays in ((Ancestral(20), True), (Confident(), True), (Remasking(20, sigma=0.3), False)):
        states = drawn(sampler, 4, 200)[1].states_TBP
        changed = (states[:-1] != MASK) & (states[1:] != states[:-1])
        assert changed.any() != stays
        assert (states[-1] != MASK).all()


def test_remasking_keeps_the_share_of_masks_of_each_time():
    """From time t to s of ReMDM's posterior, with sigma as it is and at its largest, where every hole is filled."""
    count, sampler = 200_000, Remasking(10, sigma=0.3)
    step = jax.jit(lambda index, key, canvas: sampler.step(index, 10, key, canvas, Proposal(0, None), MASK))
    for index, t, s, sigma in ((2, 0.8, 0.7, 0.3), (6, 0.4, 0.3, 0.3), (8, 0.2, 0.1, 0.1 / 0.8)):
        open_BP = jax.random.uniform(KEY, (1, count)) < t
        before_BP = jnp.where(open_BP, MASK, 1)  # what is filled now is 0
        after = step(jnp.int32(index), jax.random.key(index), Canvas(before_BP, jnp.ones_like(open_BP), open_BP))
        after, filled = np.asarray(after), ~np.asarray(open_BP)
        assert abs((after == MASK).mean() - s) < 0.006
        assert abs((after[filled] == MASK).mean() - sigma) < 0.01 and set(after[filled]) == {1, MASK}


def test_rows_with_fewer_holes_and_steps_fewer_than_holes():
    holes_BP = jnp.array([[True] * 5, [True] * 2 + [False] * 3, [False] * 5])

    def predict(values_BP):
        return jnp.zeros((*values_BP.shape, V))

    for sampler in (Confident(2), Randomly(3, Cosine()), InBlocks(2), Remasking(9)):
        found = jax.jit(
            lambda key, sampler=sampler: sample(
                predict, holes_BP, key, mask_id=MASK, sampler=sampler, draw=Draw(), ask=EveryStep()
            )
        )(KEY)
        np.testing.assert_array_equal(found.values_BP != MASK, holes_BP)
        assert len(found.states_TBP) == sampler.steps_for(5)
    assert InBlocks(2, Confident(1)).steps_for(5) == 3 and InBlocks(8).steps_for(5) == 5 == InBlocks(2).steps_for(5)


def test_an_equal_number_is_filled_at_each_step():
    canvas = Canvas(jnp.full((1, 8), MASK), jnp.ones((1, 8), bool), jnp.ones((1, 8), bool))
    proposal = Proposal(jnp.zeros((1, 8), jnp.int32), jnp.arange(8.0)[None])
    left = []
    for index in range(3):
        values_BP = Confident(3).step(jnp.int32(index), 3, KEY, canvas, proposal, MASK)
        canvas = Canvas(values_BP, canvas.holes_BP, values_BP == MASK)
        left.append(values_BP[0].tolist())
    assert left == [[MASK] * 5 + [0] * 3, [MASK] * 2 + [0] * 6, [0] * 8]  # 3, 3 and 2 of 8, the surest first
    assert highest(jnp.zeros((1, 4)), jnp.array([[False, True, True, True]]), jnp.array([2]))[0].tolist() == [
        False, True, True, False]  # fmt: skip


@pytest.mark.parametrize(
    ("draw", "allowed"),
    [
        (Draw(top_k=2), [0, 1]),
        (Draw(top_p=0.6), [0, 1]),
        (Draw(top_p=0.5), [0]),
        (Draw(temperature=0), [0]),
        (Draw(temperature=10.0, top_k=3), [0, 1, 2]),
        (Draw(top_k=3, top_p=0.6), [0, 1]),
        (Draw(top_k=9), [0, 1, 2, 3]),
    ],
)
def test_unlikely_ids_are_not_drawn(draw, allowed):
    p = np.array([0.5, 0.2, 0.18, 0.12])
    proposal = jax.jit(draw)(KEY, jnp.broadcast_to(jnp.log(p), (300, 4, 4)))
    assert sorted(set(np.asarray(proposal.ids_BP).ravel().tolist())) == allowed
    np.testing.assert_allclose(proposal.confidence_BP, np.log(0.5), rtol=1e-5)


def test_the_temperature_is_that_which_is_asked_for_in_a_large_vocabulary():
    """The entropy of 500 draws is that of float64; numbers near 0 are far finer than 2^-23."""
    logits = np.random.default_rng(0).normal(0, 3, 20_000)
    ids = jax.jit(lambda key: categorical(key, jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (500, 20_000))))(KEY)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    surprise = -np.log(p)
    entropy, deviation = (p * surprise).sum(), np.sqrt((p * surprise**2).sum() - (p * surprise).sum() ** 2)
    assert abs(surprise[np.asarray(ids)].mean() - entropy) < 4 * deviation / 500**0.5
    numbers = np.asarray(jax.jit(lambda key: exponential(key, (1 << 22,)))(KEY), np.float64)
    assert numbers.min() > 0 and np.isfinite(numbers).all()
    assert 0 < (numbers < 2.0**-18).sum() < 40  # 16 are expected
    near = numbers[numbers < 2.0**-12]  # about 1,024
    assert len(np.unique(near)) > len(near) - 3
    assert abs(numbers.mean() - 1) < 0.005 and abs(numbers.var() - 1) < 0.01


def test_guidance_moves_logits_away_from_those_without_the_prompt():
    logits = guided(lambda values: values + 1.0, lambda values: values * 0.0, 2.0)(jnp.ones((1, 2)))
    np.testing.assert_array_equal(logits, [[6.0, 6.0]])
    np.testing.assert_array_equal(guided(lambda v: v, lambda v: 0 * v, 0.0)(jnp.ones((1, 2))), [[1.0, 1.0]])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Draw(-1.0), "temperature=-1.0 must be 0"),
        (lambda: Draw(float("nan")), "temperature=nan"),
        (lambda: Draw(top_k=0), "top_k=0 must be 1"),
        (lambda: Draw(top_p=0.0), "top_p=0.0 is not"),
        (lambda: Remasking(sigma=2.0), "sigma=2.0 is not"),
        (lambda: InBlocks(0), "blocks of 0 holes"),
        *((lambda of=of: of(0), "steps=0 must be 1") for of in (Ancestral, Remasking, Randomly, Confident)),
    ],
)
def test_what_cannot_be_is_refused(make, problem):
    with pytest.raises(ValueError, match=problem):
        make()
    assert Linear().rate(0.5) == 0.5
