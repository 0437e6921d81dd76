"""Count the work of an objective, and what devices can do at most."""

import math
from functools import partial
from typing import Any

import jax
import numpy as np

from bertjax.data.source import feature_shape
from bertjax.errors import InputError
from bertjax.types import Objective, Params

# Dense bfloat16 TFLOP/s of one JAX device, by `device_kind`. TPU figures are the vendor's per chip (cloud.google.com/
# tpu/docs), halved where a chip shows as two devices (v2, v3, 7x); GPU figures from the vendor's data sheets.
PEAK_TFLOPS = {
    "TPU v2": 23.0,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
    "TPU7x": 1153.5,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
}


def model_flops(objective: Objective, batch: Any) -> float:
    """Count the FLOPs of a training step that the model asks for: three times the matrix products of a forward pass.

    batch: shapes and dtypes are enough. Recomputation is not counted, nor anything that is not a matrix product. Where
    a platform chooses between forms of the same computation, the one with the fewest counts.
    """
    params = abstract_params(objective, batch)
    forward = jax.make_jaxpr(lambda params, batch: objective.loss(params, batch, jax.random.key(0), train=False)[0])
    return 3 * _matmul_flops(forward(params, batch).jaxpr)


def abstract_params(objective: Objective, batch: Any) -> Params:
    """Trace `init` and `loss` on the shapes of a batch, without computing; return the shapes of the parameters.

    Raises InputError with what the model or the objective says of rows that it cannot take.
    """
    key = jax.random.key(0)
    try:
        params = jax.eval_shape(objective.init, key, batch)
        jax.eval_shape(partial(objective.loss, train=True), params, batch, key)
    except ValueError as error:
        raise InputError(str(error).splitlines()[0]) from error
    return params


def _matmul_flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        if equation.primitive.name == "cond":
            total += min(_matmul_flops(branch.jaxpr) for branch in equation.params["branches"])
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * _matmul_flops(inner)
    return total


def batch_shapes(batch_size: int, length: int, features: tuple[str, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe the batches that a source of these features makes, without one at hand."""
    shapes = {name: jax.ShapeDtypeStruct((batch_size, length), np.int32) for name in ("tokens", "mask", "word_starts")}
    shapes["example"] = jax.ShapeDtypeStruct((batch_size,), np.uint32)
    for name in features:
        shapes[name] = jax.ShapeDtypeStruct(feature_shape(name, batch_size, length), np.int32)
    return shapes
