"""Evaluate an objective on a split: every row once, the same masks every time."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from bertjax.random import stream
from bertjax.sharding.collectives import gather_params
from bertjax.sharding.mesh import held_rows, place_batch, replicated
from bertjax.sharding.placement import storage_shardings
from bertjax.types import Array, Batch, Metrics, Objective, Params

HostBatch = dict[str, np.ndarray]

Evaluate = Callable[[Params, Iterable[HostBatch]], dict[str, float]]


def place_params(params: Params, mesh: Mesh) -> Params:
    """Place parameters on a mesh as a run stores them, from those that every process holds whole or on this mesh."""

    def place(leaf: Array, sharding: NamedSharding) -> Array:
        if sharding.is_fully_addressable or not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, params, storage_shardings(mesh, params))


def logits_on_mesh(logits: Callable[[Params, Batch], Any], mesh: Mesh) -> Callable[[Params, HostBatch], Any]:
    """Return a function (params, batch) -> logits, compiled once, with rows split over the devices of the mesh.

    Every process passes the whole batch and its parameters on the mesh, and receives the logits of all rows.
    """
    compute = jax.jit(lambda params, batch: logits(gather_params(params), batch), out_shardings=replicated(mesh))

    def computed(params: Params, batch: HostBatch) -> Any:
        rows = len(batch["tokens"])
        held = held_rows(mesh, rows)
        with jax.set_mesh(mesh):
            return compute(params, place_batch({name: x[held] for name, x in batch.items()}, mesh, rows))

    return computed


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

    def evaluate(params: Params, batches: Iterable[HostBatch]) -> dict[str, float]:
        params = place_params(params, mesh)
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
