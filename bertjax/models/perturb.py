"""Perturb the embeddings of an encoder from outside, by intercepting its modules: no encoder knows of it.

Every encoder has a module `embeddings`: a sum of vectors, a norm in most models, and dropout. The sum is perturbed: the
input of the norm, or without one that of the dropout (XLNet, NeoBERT).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.models.layers import Dropout, Norm
from bertjax.types import Array


def perturbed_embeddings(delta: Array | None) -> AbstractContextManager[None]:
    """Add `delta` to the embeddings of the encoder that runs in this context; None adds nothing.

    delta: float32 of their shape, in standard deviations of each token's vector, so that it means the same in all
    models: x + σ(x) · δ standardises x, adds δ, and undoes the standardisation. The embeddings get no gradient.
    """
    if delta is None:
        return nullcontext()

    def change(x: Array) -> Array:
        y = jax.lax.stop_gradient(x).astype(jnp.float32)
        return (y + jnp.sqrt(y.var(-1, keepdims=True) + 1e-7) * delta).astype(x.dtype)

    return _intercepted(change)


def embedding_shape(encode: Callable[..., Any], *inputs: Any) -> tuple[int, ...]:
    """Return the shape of the embeddings, [rows, L, width], of the encoder in `encode(*inputs)`, by tracing it.

    Raises ValueError where it runs no module of that name, or several.
    """
    shapes: list[tuple[int, ...]] = []

    def record(x: Array) -> Array:
        shapes.append(x.shape)
        return x

    with _intercepted(record):
        jax.eval_shape(encode, *inputs)
    if len(shapes) != 1:
        raise ValueError(
            f"one encoder with a module `embeddings` is needed to perturb them, but {len(shapes)} run: the "
            "module must end in bertjax.models.layers.Dropout, with a norm before it or none"
        )
    return shapes[0]


def _intercepted(change: Callable[[Array], Array]) -> AbstractContextManager[None]:
    def intercept(run: Any, inputs: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "__call__" and _takes_the_sum(context.module):
            inputs = (change(inputs[0]), *inputs[1:])
        return run(*inputs, **options)

    manager: AbstractContextManager[None] = nn.intercept_methods(intercept)
    return manager


def _takes_the_sum(module: Any) -> bool:
    if module.path[-2:-1] != ("embeddings",):
        return False
    has_norm = module.parent.has_variable("params", "norm")
    return isinstance(module, Norm) or (isinstance(module, Dropout) and not has_norm)
