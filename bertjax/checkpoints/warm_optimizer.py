"""Start with the state that the optimiser of a trained model has kept: its moments, of the parameters taken over.

What counts updates for the moments goes with them, as Adam's correction needs it. The learning-rate schedule does not:
it is that of the new experiment, and begins at its step 0.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.newest import read_newest
from bertjax.checkpoints.protocols import RemapsWarmStart, wrapped
from bertjax.checkpoints.trained import on_one_device, param_shapes, part_of
from bertjax.errors import InputError
from bertjax.huggingface.folder import is_huggingface
from bertjax.optim.optimizer import Optimizer
from bertjax.rules import name_of, partition
from bertjax.serialization.closed_set import TRAINED, Names
from bertjax.serialization.description import Code, from_json, to_json
from bertjax.types import Array, Objective, Params

_OPTIMIZER = Names(types=frozenset({f"{Optimizer.__module__}.{Optimizer.__qualname__}"}))


class Kept(NamedTuple):
    """Arrays of an optimiser's state by name, and a note to report."""

    arrays: Mapping[str, Any]
    note: str = ""


def newest_checkpoint(source: str) -> Path:
    """Return the newest checkpoint of a run, for its parameters and the state of its optimiser.

    Raises InputError where there is no run, and for a part of one: the state is that of the whole run.
    """
    folder, part = part_of(source)
    if part:
        raise InputError(
            f"init={source},optimizer: the state of the optimiser is that of the whole run: give {folder},optimizer, "
            f"or {source} without it"
        )
    info: Mapping[str, Any] = {}
    if not is_huggingface(folder):
        info, folder, _ = read_newest(folder, checkpoint.read_info, say=lambda text: None)
    if "optimizer" not in info.get("checksums", {}):
        raise InputError(
            f"init={source},optimizer: {folder} has no state of an optimiser, which the work directories of runs have: "
            f"give one, or init={source}"
        )
    return folder


def warm_optimizer(
    step: Path, taken: Mapping[str, Array], objective: Objective, like: Params, optimizer: Optimizer, code: Code
) -> Kept:
    """Load the state of the optimiser in a checkpoint that `optimizer` has under the same names, of parameters `taken`.

    like: shapes of the parameters of `objective`. Raises InputError where parameters change their names, and where the
    state of the other optimiser lacks what this one keeps.
    """
    if any(isinstance(each, RemapsWarmStart) for each in wrapped(objective)):
        raise InputError(
            f"init={step},optimizer: {type(objective).__name__} takes parameters over under other names, for which "
            "there are no moments: leave out `,optimizer`"
        )
    info = checkpoint.read_info(step)
    theirs = from_json(info["experiment"]["optimizer"], _OPTIMIZER, "optimizer", code)
    model = from_json(info["experiment"]["objective"], TRAINED, "objective", code)
    trained, _ = partition(theirs.trained, param_shapes(model, info["experiment"], step, code))
    state = checkpoint.restore(step, "optimizer", on_one_device(jax.eval_shape(theirs.transform().init, trained)), info)
    found = {name: np.asarray(leaf) for name, leaf in _by_name(_without_schedule(state)).items()}
    wanted = _of_parameters(optimizer, like)
    lacking = [name for name, of in wanted.items() if of in taken and of in _by_name(trained) and name not in found]
    if lacking:
        raise InputError(f"init={step},optimizer: its optimiser keeps no {lacking[0]}: use the same `moments`")
    kept = {name: found[name] for name, of in wanted.items() if name in found and (not of or of in taken)}
    return Kept(kept, _note(wanted, kept, theirs, optimizer))


def _note(wanted: Mapping[str, str], kept: Mapping[str, Any], theirs: Optimizer, ours: Optimizer) -> str:
    updates = max((int(array) for name, array in kept.items() if not wanted[name]), default=0)
    of = {wanted[name] for name in kept} - {""}
    fresh = sorted(set(wanted.values()) - of - {""})
    there, here = to_json(theirs), to_json(ours)
    names = [name for name in ("moments", "b1", "b2", "eps") if there[name] != here[name]]
    return (
        f"moments of {len(of)} parameters after {updates:,} updates, with their count; of the others fresh: "
        f"{', '.join(fresh) or 'none'}; the learning-rate schedule is this experiment's and begins at its step 0"
        + (f"; {', '.join(names)} of the optimiser differ" if names else "")
    )


def _of_parameters(optimizer: Optimizer, like: Params) -> dict[str, str]:
    """Return by the name of each array of an optimiser's state the name of its parameter, "" where it has none."""
    tx, (params, _) = optimizer.transform(), partition(optimizer.trained, like)
    names = jax.tree_util.tree_map_with_path(lambda path, _: name_of(path), params)
    state = jax.eval_shape(tx.init, params)
    marked = optax.tree.map_params(tx, lambda _, name: name, state, names, transform_non_params=lambda _: "")
    return _by_name(_without_schedule(marked))


def _by_name(tree: Any) -> dict[str, Any]:
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _without_schedule(state: Any) -> Any:
    def of_schedule(part: Any) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    return jax.tree.map(lambda part: None if of_schedule(part) else part, state, is_leaf=of_schedule)
