"""The bound that is evaluated is the likelihood where the model knows it, and its standard errors are true."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_language import MASK, Oracle, language, texts

from bertjax.errors import InputError
from bertjax.likelihood import bound, only_beside_entropy, row_bounds, unigram_entropy
from bertjax.objectives.diffusion import MaskedDiffusion
from bertjax.sharding.mesh import DATA_PARALLEL

LENGTH, KEY = 4, jax.random.key(0)


def rows_of(count, seed=0):
    index = np.random.default_rng(seed).choice(5**LENGTH, count, p=language(LENGTH).ravel())
    tokens = texts(LENGTH)[index]
    batch = {"tokens": tokens, "mask": np.ones_like(tokens), "example": np.arange(count, dtype=np.uint32)}
    return batch, -np.log(language(LENGTH).ravel()[index])


@pytest.fixture(scope="module")
def objective():
    return MaskedDiffusion(Oracle(LENGTH), MASK)


@pytest.fixture(scope="module")
def params(objective):
    ones = jnp.ones((1, LENGTH), jnp.int32)
    return objective.init(KEY, {"tokens": ones, "mask": ones})


def test_the_estimates_of_each_row_are_its_likelihood_on_average(objective, params):
    batch, exact = rows_of(8)
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    draws = 4000
    found = jax.jit(lambda key: row_bounds(objective, params, batch, key, draws))(KEY)
    error = np.asarray(found.nll_TB).std(0) / math.sqrt(draws)
    assert (abs(np.asarray(found.nll_TB).mean(0) - exact) < 4 * error + 1e-5).all()
    assert found.tokens_B.tolist() == [LENGTH] * 8
    assert found.masked_S.sum() == pytest.approx(draws * 8 * 2.5, rel=0.01)  # k is 1 to 4, each as often
    # 1, 2, 3 and 4 of 4 masked are in the ranges up to 40, 60, 80 and 100 percent.
    np.testing.assert_allclose(found.masked_S, np.array([0, 1, 2, 3, 4]) * draws * 2, rtol=0.01)


def test_the_bound_of_a_split_has_true_standard_errors_and_says_how_right_it_is(objective, params):
    found = []
    for seed in range(40):
        batch, exact = rows_of(50, seed)
        padded = {name: np.concatenate([array, 0 * array[:14]]) for name, array in batch.items()}
        halves = [{name: array[start : start + 32] for name, array in padded.items()} for start in (0, 32)]
        evaluate = EVALUATED.setdefault("it", bound(objective, DATA_PARALLEL.mesh(32), 32, draws=8))
        values = evaluate(params, halves)
        found.append((values["nelbo"], exact.mean() / LENGTH, values))
    nelbo, exact = np.array([each[:2] for each in found]).T
    truth = float(-(language(LENGTH) * np.log(language(LENGTH))).sum()) / LENGTH
    errors = np.array([each[2]["nelbo_standard_error"] for each in found])
    monte_carlo = np.array([each[2]["nelbo_monte_carlo_error"] for each in found])
    assert 0.6 < (nelbo - truth).std() / errors.mean() < 1.5 and abs(nelbo.mean() - truth) < 3 * errors.mean() / 40**0.5
    assert (nelbo - exact).std() < 1.3 * monte_carlo.mean() < errors.mean()
    values = found[0][2]
    assert values["perplexity_bound"] == pytest.approx(math.exp(values["nelbo"]))
    assert values["perplexity_bound_standard_error"] == pytest.approx(math.exp(values["nelbo"]) * errors[0])
    shares = [values[f"accuracy/masked_{share}"] for share in (40, 60, 80, 100)]
    assert 0 < shares[-1] < shares[0] < 1 and "bits_per_byte" not in values


EVALUATED = {}


class Letters:
    """A tokenizer whose ids are letters of two bytes each."""

    def decode(self, ids):
        return "".join("àáâãä"[i] for i in ids)


def test_bits_are_of_bytes_of_text(objective, params):
    batch, _ = rows_of(16)
    values = bound(objective, DATA_PARALLEL.mesh(16), 16, draws=2, tokenizer=Letters())(params, [batch])
    assert values["bits_per_byte"] == pytest.approx(values["nelbo"] / math.log(2) / 2)
    with pytest.raises(InputError, match="no token of this text may be masked"):
        bound(objective, DATA_PARALLEL.mesh(16), 16, draws=1)(params, [batch | {"mask": 0 * batch["mask"]}])


def test_a_generative_perplexity_comes_with_the_entropy_of_its_texts():
    assert unigram_entropy([[1, 2, 3, 4], [7, 7, 7, 7]]) == pytest.approx(math.log(4) / 2)
    values = only_beside_entropy({"nelbo": 1.0, "perplexity_bound": math.e}, 0.5)
    assert values == {"generative_perplexity_bound": math.e, "unigram_entropy": 0.5}
