"""Evaluate an objective on a split: every row once, the same masks every time."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bertjax.random import stream
from bertjax.sharding.collectives import gather_params
from bertjax.sharding.mesh import place_batch, replicated
from bertjax.sharding.placement import storage_shardings
from bertjax.types import Batch, Metrics, Objective, Params

Evaluate = Callable[[Params, Iterable[dict[str, np.ndarray]]], dict[str, float]]


def evaluator(objective: Objective, mesh: Mesh, rows: int) -> Evaluate:
    """Return a function (params, batches) -> metrics, compiled once. rows: of a global batch.

    Sums and weights are added up over all batches before they are divided. A metric `targets/x`, a histogram, becomes
    `unigram_entropy/x`: the loss in nats of the best prediction that ignores the context, on the same targets. A metric
    `scores/x`, histograms of the scores of negatives and positives, becomes `roc_auc/x`.
    """
    rng = stream(0, "evaluate")

    def metrics(params: Params, batch: Batch) -> Metrics:
        return objective.loss(gather_params(params), batch, rng, train=False)[1]

    score = jax.jit(metrics, out_shardings=replicated(mesh))

    def evaluate(params: Params, batches: Iterable[dict[str, np.ndarray]]) -> dict[str, float]:
        params = jax.device_put(params, storage_shardings(mesh, params))
        sums: dict[str, Any] = {}
        weights: dict[str, float] = {}
        for batch in batches:
            with jax.set_mesh(mesh):
                found = score(params, place_batch(batch, mesh, rows))
            for name, mean in jax.device_get(found).items():
                sums[name] = sums.get(name, 0) + mean.sum.astype(np.float64)
                weights[name] = weights.get(name, 0) + float(mean.weight)
        return dict(_finished(sums, weights))

    return evaluate


def _finished(sums: dict[str, Any], weights: dict[str, float]) -> Iterable[tuple[str, float]]:
    yield "loss", sum(float(sums[name]) / (weights[name] or 1) for name in sums if name.startswith("loss/"))
    for name, value in sums.items():
        mean = value / (weights[name] or 1)
        if name.startswith("targets/"):
            yield name.replace("targets", "unigram_entropy"), float(-np.sum(mean * np.log(np.where(mean > 0, mean, 1))))
        elif name.startswith("scores/"):
            if value.sum(1).all():
                yield name.replace("scores", "roc_auc"), roc_auc(*value)
        else:
            yield name, float(mean)


def roc_auc(negatives: np.ndarray, positives: np.ndarray) -> float:
    """Compute the area under the ROC curve from histograms of scores; ties, within a bin, count half."""
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum()))
