"""Count the FLOPs of an objective, and list the peak FLOP/s of devices."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.extend.core import Literal

from bertjax.data.source import Rows, feature_shape
from bertjax.errors import InputError
from bertjax.machine.topology import CHIPS
from bertjax.rules import EVERYTHING, Rules, match
from bertjax.types import Objective, Params

# Dense bfloat16 TFLOP/s of one JAX device, by `device_kind`; of GPUs from the vendor's data sheets.
PEAK_TFLOPS = {chip.kind: chip.tflops / chip.devices for chip in CHIPS.values()} | {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
}

T = TypeVar("T")
Shapes = tuple[tuple[str, jax.ShapeDtypeStruct], ...]
"""The features of a batch by name, as a key."""

NOWHERE = jax.sharding.AbstractMesh((), ())


def _once(function: Callable[..., T]) -> Callable[..., T]:
    """Call a pure function once for equal arguments; or each time, where an objective holds what has no hash."""
    memo = lru_cache(maxsize=64)(function)

    def call(*arguments: Any) -> T:
        try:
            hash(arguments)
        except TypeError:
            return function(*arguments)
        return memo(*arguments)

    return call


def model_flops(objective: Objective, batch: Any, trained: Rules = EVERYTHING) -> float:
    """Count the model FLOPs of a training step: three times the matrix products of a forward pass.

    Products that depend on nothing `trained`, such as a teacher's, count once. batch: shapes and dtypes are enough.
    Rematerialisation is not counted, nor anything but matrix products. Where a platform chooses between
    implementations (`cond`), the one with the fewest FLOPs counts; for a kernel, the plain form beside it.
    """
    return _model_flops(objective, _shapes(batch), tuple(trained), jax.sharding.get_abstract_mesh())


@_once
def _model_flops(objective: Objective, shapes: Shapes, trained: Rules, mesh: jax.sharding.AbstractMesh) -> float:
    batch = dict(shapes)
    params = abstract_params(objective, batch)
    loss = partial(objective.loss, rng=jax.random.key(0), train=False)
    with jax.sharding.use_abstract_mesh(NOWHERE):  # within a shard_map only the rows of one replica would be seen
        forward = jax.make_jaxpr(lambda params, batch: loss(params, batch)[0])(params, batch).jaxpr
    entered = [*jax.tree.leaves(match(trained, params)), *(False for _ in jax.tree.leaves(batch))]
    once, thrice, _ = _matmul_flops(forward, entered)
    return once + 3 * thrice


def abstract_params(objective: Objective, batch: Any) -> Params:
    """Trace `init` and `loss` on the shapes of a batch, without computing; return the shapes of the parameters.

    A run asks several times for the same, so that it is traced once. Raises InputError, with the message of the
    ValueError of a model or an objective that cannot take such rows.
    """
    found = _abstract_params(objective, _shapes(batch), jax.sharding.get_abstract_mesh())
    return jax.tree.map(lambda leaf: leaf, found)


def _shapes(batch: Any) -> Shapes:
    return tuple((name, jax.ShapeDtypeStruct(array.shape, array.dtype)) for name, array in batch.items())


@_once
def _abstract_params(objective: Objective, shapes: Shapes, mesh: jax.sharding.AbstractMesh) -> Params:
    """Trace for the mesh in use, by which rows may not divide."""
    key, batch = jax.random.key(0), dict(shapes)
    try:
        params = jax.eval_shape(objective.init, key, batch)
        jax.eval_shape(partial(objective.loss, train=True), params, batch, key)
    except ValueError as error:
        raise InputError(str(error).splitlines()[0]) from error
    return params


def _matmul_flops(jaxpr: Any, trained: Sequence[bool]) -> tuple[float, float, list[bool]]:
    """Count the FLOPs of matrix products that depend on nothing trained, and of the others.

    trained: for each input, whether it depends on a trained parameter; the third result is the same for each output.
    """
    reached = {variable for variable, into in zip(jaxpr.invars, trained, strict=True) if into}
    once = thrice = 0.0
    for equation in jaxpr.eqns:
        into = [not isinstance(variable, Literal) and variable in reached for variable in equation.invars]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            product = 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
            once, thrice = (once, thrice + product) if any(into) else (once + product, thrice)
        out = [any(into)] * len(equation.outvars)
        bodies = [body for value in equation.params.values() for body in _bodies(value)]
        found = [_body_flops(equation, body, into) for body in bodies]
        if equation.primitive.name == "cond":
            told = [counted for counted, body in zip(found, bodies, strict=True) if not _has_kernel(body)]
            found = [min(told or found, key=lambda counted: counted[0] + counted[1])]
        for inner_once, inner_thrice, inner_out in found:
            once, thrice = once + inner_once, thrice + inner_thrice
            # The outputs of other bodies, such as the condition of a loop, are not those of the equation.
            out = inner_out if len(found) == 1 and len(inner_out) == len(out) else out
        reached.update(variable for variable, reaches in zip(equation.outvars, out, strict=True) if reaches)
    return once, thrice, [not isinstance(variable, Literal) and variable in reached for variable in jaxpr.outvars]


def _has_kernel(jaxpr: Any) -> bool:
    """Return whether a Pallas kernel is called, whose FLOPs cannot be counted."""
    return any(
        equation.primitive.name == "pallas_call"
        or any(_has_kernel(body) for value in equation.params.values() for body in _bodies(value))
        for equation in jaxpr.eqns
    )


def _bodies(value: Any) -> Iterator[Any]:
    for each in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(each, "jaxpr", each)
        if hasattr(inner, "eqns"):
            yield inner


def _body_flops(equation: Any, body: Any, into: list[bool]) -> tuple[float, float, list[bool]]:
    """Count the FLOPs of one body of an equation, times its iterations; a carry stays trained in later iterations."""
    into = into[len(into) - len(body.invars) :] if len(into) >= len(body.invars) else [any(into)] * len(body.invars)
    if equation.primitive.name != "scan":
        return _matmul_flops(body, into)
    # The inputs of a scan are constants, carry and scanned arrays; the latter have one axis less in the body.
    carried = sum(x.aval.ndim == y.aval.ndim for x, y in zip(equation.outvars, body.outvars, strict=True))
    first = sum(x.aval.ndim == y.aval.ndim for x, y in zip(equation.invars, body.invars, strict=True)) - carried
    while True:
        once, thrice, out = _matmul_flops(body, into)
        carry = [a or b for a, b in zip(into[first : first + carried], out[:carried], strict=True)]
        if carry == into[first : first + carried]:
            return once * equation.params["length"], thrice * equation.params["length"], out
        into = into[:first] + carry + into[first + carried :]


def batch_shapes(batch_size: int, length: int, features: tuple[str, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of batches with these features, as of rows cut from a corpus."""
    shapes = {name: jax.ShapeDtypeStruct((batch_size, length), np.int32) for name in ("tokens", "mask", "word_starts")}
    shapes["example"] = jax.ShapeDtypeStruct((batch_size,), np.uint32)
    for name in features:
        shapes[name] = jax.ShapeDtypeStruct(feature_shape(name, batch_size, length), np.int32)
    return shapes


def row_shapes(rows: Rows, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of batches of rows; of rows in buckets, those of the longest."""
    return {
        name: jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype)
        for name, array in rows.padding(1).items()
    }
