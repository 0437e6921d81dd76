import jax
import numpy as np
import pytest
from contract import OBJECTIVES, make_batch

from bertjax.evaluate import evaluator, roc_auc
from bertjax.random import stream
from bertjax.sharding.mesh import DATA_PARALLEL


@pytest.fixture
def objective():
    return OBJECTIVES["bert"]


def test_metrics_are_those_of_all_rows_at_once_however_they_are_batched(objective):
    batch = {name: np.asarray(array) for name, array in make_batch(rows=32).items()}
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    evaluate = evaluator(objective, DATA_PARALLEL.mesh(8), 8)
    parts = [{name: array[i : i + 8] for name, array in batch.items()} for i in range(0, 32, 8)]
    group_size, apart = evaluate(params, [batch]), evaluate(params, parts)
    assert group_size.keys() == apart.keys() >= {"loss", "loss/mlm", "loss/pair", "unigram_entropy/mlm", "tokens/real"}
    for name, value in group_size.items():
        np.testing.assert_allclose(apart[name], value, rtol=1e-5, err_msg=name)
    _, metrics = objective.loss(params, batch, stream(0, "evaluate"), train=False)
    counts = np.asarray(metrics["targets/mlm"].sum)
    share = counts[counts > 0] / counts.sum()
    np.testing.assert_allclose(group_size["unigram_entropy/mlm"], -(share * np.log(share)).sum(), rtol=1e-5)
    random = batch["pair"].mean()
    entropy = -(random * np.log(random) + (1 - random) * np.log(1 - random))
    np.testing.assert_allclose(group_size["unigram_entropy/pair"], entropy, rtol=1e-5)
    np.testing.assert_allclose(group_size["loss"], group_size["loss/mlm"] + group_size["loss/pair"], rtol=1e-6)


def test_nothing_to_evaluate_is_zero_not_nan(objective):
    batch = {name: np.asarray(array) for name, array in make_batch(rows=8).items()}
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    values = evaluator(objective, DATA_PARALLEL.mesh(8), 8)(params, [batch | {"mask": np.zeros_like(batch["mask"])}])
    assert values["loss"] == values["unigram_entropy/mlm"] == 0


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    negatives, positives = rng.integers(0, 5, (2, 12)), rng.integers(0, 3, 12)
    scores = [np.repeat(np.arange(12), counts) for counts in (negatives[0], positives)]
    above = (scores[1][:, None] > scores[0]).mean() + (scores[1][:, None] == scores[0]).mean() / 2
    np.testing.assert_allclose(roc_auc(negatives[0], positives), above)
    assert roc_auc(np.array([3, 0]), np.array([0, 2])) == 1.0


def test_discriminators_are_evaluated_by_how_they_rank_all_tokens():
    objective = OBJECTIVES["electra"]
    batch = {name: np.asarray(array) for name, array in make_batch(rows=32).items()}
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    evaluate = evaluator(objective, DATA_PARALLEL.mesh(8), 8)
    parts = [{name: array[i : i + 8] for name, array in batch.items()} for i in range(0, 32, 8)]
    group_size, apart = evaluate(params, [batch]), evaluate(params, parts)
    assert 0 < group_size["roc_auc/rtd"] < 1 and "scores/rtd" not in group_size
    np.testing.assert_allclose(group_size["roc_auc/rtd"], apart["roc_auc/rtd"], atol=1e-3)
    original = batch | {"mask": np.zeros_like(batch["mask"])}
    assert "roc_auc/rtd" not in evaluate(params, [original])  # nothing was replaced: there is no such number
