"""Plan a run without running it: count parameters and work from shapes alone."""

import math
from typing import Any

import jax

from bertjax.config import Experiment
from bertjax.flops import abstract_params, model_flops, row_shapes
from bertjax.rules import split


def plan(experiment: Experiment) -> dict[str, Any]:
    """Count parameters, all of them and by group, and model FLOPs per token of a training step, for each phase.

    `trained` are those that are not frozen; `flops_per_token` is that of the first phase.
    """
    phases, trained = [], experiment.optimizer.trained
    for phase in experiment.phases:
        shapes = row_shapes(phase.rows, phase.batch_size)
        tokens = phase.batch_size * phase.rows.length
        phases.append(
            {
                "steps": phase.steps,
                "batch_size": phase.batch_size,
                "length": phase.rows.length,
                "tokens": phase.steps * tokens,
                "flops_per_token": model_flops(experiment.objective, shapes, trained) / tokens,
            }
        )
    params = abstract_params(experiment.objective, shapes)
    groups = {
        f"{top}/{name}": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
        for top, parts in params.items()
        for name, part in parts.items()
    }
    return {
        "params": sum(groups.values()),
        "trained": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(split(trained, params)[0])),
        "params_by_group": groups,
        "flops_per_token": phases[0]["flops_per_token"],
        "phases": phases,
    }
