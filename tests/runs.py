"""Share what is compiled among the runs of a module: steps, evaluations, initial states."""

import os
from contextlib import contextmanager
from functools import cache

import jax
import numpy as np
import pytest

from bertjax import train
from bertjax.flops import row_shapes
from bertjax.run import state


@contextmanager
def shared_programs():
    """Let `fit` compile a program once for all runs that differ in nothing which it depends on."""
    steps, states = {}, {}
    make_step, initialise = train.sharded_step, state._initialise

    def program(experiment, phase, mesh):
        shapes = tuple(row_shapes(phase.rows, phase.batch_size).items())
        faults = os.environ.get("BERTJAX_FAULT")  # those of the loss are traced into the step
        return experiment.objective, experiment.optimizer, shapes, phase.accumulate, mesh, faults

    def made_once(experiment, phase, mesh):
        key = (*program(experiment, phase, mesh), program(experiment, experiment.phases[0], mesh))
        if key not in steps:
            steps[key] = make_step(experiment, phase, mesh)
        return steps[key]

    def initialised_once(experiment, mesh, like):
        key = (*program(experiment, experiment.phases[0], mesh), experiment.seed)
        if key not in states:
            states[key] = jax.device_get(initialise(experiment, mesh, like))
        # Copies: the step that takes a state overwrites it.
        return jax.tree.map(lambda x, leaf: jax.device_put(np.array(x), leaf.sharding), states[key], like)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.fit.__kwdefaults__, "make_step", made_once)
        patch.setattr(train, "evaluator", cache(train.evaluator))
        patch.setattr(state, "_initialise", initialised_once)
        yield
