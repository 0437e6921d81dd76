"""Look at the batch on which a run diverged: its loss and gradient once more, from the state that was kept.

On one device, so that sums are rounded in another order; what is not finite stays so, and what has diverged too.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bertjax.checkpoints import checkpoint
from bertjax.config import own_code
from bertjax.optim.skipping import total_loss
from bertjax.rules import name_of
from bertjax.run.bad_batch import FOLDER, read_bad_batch
from bertjax.serialization.closed_set import OBJECTIVES
from bertjax.serialization.description import NO_CODE, from_json
from bertjax.sharding.mesh import DATA_PARALLEL
from bertjax.storage.paths import path_of
from bertjax.train import accumulated_gradient
from bertjax.types import Array, Batch, Key, Metrics, Params

_SHOWN = 5


def inspect_batch(run: str | Path, experiment: str | Path = "") -> dict[str, Any]:
    """Return what the batch that a run has kept gives: losses, norms of the gradient, and its worst rows with texts.

    run: its work folder, or the folder `diverged` in it. Rows are told apart by the loss of each alone, with the random
    draws that it had in the batch. experiment: the file of its own classes and functions; it is executed. Raises
    InputError where a run has kept none.
    """
    folder = path_of(run)
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    why, rows = read_bad_batch(folder)
    info = checkpoint.read_info(folder / "state")
    code = own_code(experiment) if experiment else NO_CODE
    objective: Any = from_json(info["experiment"]["objective"], OBJECTIVES, "objective", code)
    rng = jax.random.fold_in(jax.random.wrap_key_data(jnp.array(why["key"], jnp.uint32)), why["step"] - 1)
    batch = {name: jnp.asarray(array) for name, array in rows.items()}
    phase = _phase_of(info["experiment"]["phases"], why["step"])
    parts, group = phase.get("accumulate", 1), 2 if "backward" in rows else 1
    device = jax.local_devices()[0]
    with jax.set_mesh(DATA_PARALLEL.mesh(len(rows["tokens"]), [device])):
        here = jax.sharding.SingleDeviceSharding(device)
        shapes = jax.eval_shape(objective.init, rng, batch)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
        params = checkpoint.restore(folder / "state", "params", like, info)
        loss = partial(objective.loss, train=True)
        gradient, metrics = jax.jit(partial(_gradient, loss, parts))(params, batch, rng)
        alone = np.asarray(jax.jit(partial(_losses, loss, parts, group))(params, batch, rng))
    norms = {
        name_of(path): float(optax.tree.norm(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }
    worst = sorted(norms, key=lambda name: np.nan_to_num(-norms[name], nan=-np.inf))
    tokenizer = checkpoint.saved_tokenizer(folder / "state", info)

    def described(index: int) -> dict[str, Any]:
        tokens = rows["tokens"][index][rows["mask"][index] > 0].tolist()
        text = "" if tokenizer is None else tokenizer.decode(tokens[:120])
        return {
            "row": index,
            "example": int(rows["example"][index]),
            "loss": float(alone[index // group]),
            "text": text,
        }

    order = np.argsort(np.nan_to_num(-alone, nan=-np.inf), kind="stable") * group
    return {
        "step": why["step"],
        "loss": float(total_loss(metrics)),
        "losses": {name: float(mean.sum / (mean.weight or 1)) for name, mean in metrics.items() if "loss/" in name},
        "norm_gradient": float(np.sqrt(sum(np.square(list(norms.values()))))),
        "gradients_not_finite": [name for name in worst if not np.isfinite(norms[name])],
        "largest_gradients": {name: norms[name] for name in worst[:_SHOWN]},
        "parameters_not_finite": [name for name, found in _finite(params).items() if not found],
        "rows_not_finite": int((~np.isfinite(alone)).sum()) * group,
        "worst_rows": [described(int(index)) for index in order[:_SHOWN]],
    }


def _phase_of(phases: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """Return the description of the phase of a step, which counts from 1 over all phases."""
    for phase in phases:
        if step <= phase["steps"]:
            return phase
        step -= phase["steps"]
    return phases[-1]


def _gradient(loss: Any, parts: int, params: Params, batch: Batch, rng: Key) -> tuple[Params, Metrics]:
    """Compute gradient and metrics as `train_step` does."""
    if parts > 1:
        return accumulated_gradient(loss, params, batch, rng, parts)
    found: tuple[Params, Metrics] = jax.grad(loss, has_aux=True)(params, batch, rng)
    return found


def _losses(loss: Any, parts: int, group: int, params: Params, batch: Batch, rng: Key) -> Array:
    """Return the loss of each group of rows alone: f32 [B / group]."""

    def alone(inputs: tuple[Array, Batch]) -> Array:
        first, rows = inputs
        # `accumulated_gradient` takes every parts-th row into a micro-batch, which has a key of its own.
        key = jax.random.fold_in(rng, first % parts) if parts > 1 else rng
        return total_loss(loss(params, rows, key)[1])

    count = len(batch["tokens"]) // group
    groups = {name: array.reshape(count, group, *array.shape[1:]) for name, array in batch.items()}
    found: Array = jax.lax.map(alone, (jnp.arange(count) * group, groups))
    return found


def _finite(params: Params) -> dict[str, bool]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {name_of(path): bool(jnp.isfinite(leaf).all()) for path, leaf in leaves}
