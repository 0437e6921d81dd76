"""Initialise parameters in one compiled program."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax

from bertjax.inputs import check_key, inputs_of
from bertjax.types import Batch, Key, Params


def one_program(init: Callable[[Any, Key, Batch], Params]) -> Callable[[Any, Key, Batch], Params]:
    """Decorate a method `init(self, rng, batch)`, so that it is compiled as a whole where no program is being traced.

    Each draw by itself would be compiled by itself, and the forward pass that finds the shapes would run. The program
    is kept for equal models and shapes. Raises InputError where `rng` is no key, and as `inputs_of`.
    """
    compiled = jax.jit(init, static_argnums=0)

    @wraps(init)
    def checked(self: Any, rng: Key, batch: Batch) -> Params:
        check_key(rng)
        inputs_of(self.encoder, batch)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((rng, batch))) or not _is_hashable(self):
            return init(self, rng, batch)
        return compiled(self, rng, dict(batch))

    return checked


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:  # a model of the user's with a list or an array in a field
        return False
    return True
