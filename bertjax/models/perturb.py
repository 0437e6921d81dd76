"""Change the embeddings of an encoder from outside, so that no encoder need know of it.

Every encoder has a module `embeddings`, which sums up vectors, norms the sum where the model does, and drops. What is
changed is the sum: what goes into the norm, or without one into the dropout (XLNet, NeoBERT).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.models.layers import Dropout, Norm
from bertjax.types import Array


def changed_embeddings(delta: Array | None) -> AbstractContextManager[None]:
    """Add `delta` to the embeddings of the encoder that runs inside; none changes nothing.

    delta: float32 of their shape, in standard deviations of each token's vector, so that it means the same in all
    models: x + σ(x) · δ is to standardise x, add δ, and undo the standardisation. The embeddings get no gradient.
    """
    if delta is None:
        return nullcontext()

    def change(x: Array) -> Array:
        y = jax.lax.stop_gradient(x).astype(jnp.float32)
        return (y + jnp.sqrt(y.var(-1, keepdims=True) + 1e-7) * delta).astype(x.dtype)

    return _intercepted(change)


def embedding_shape(encode: Callable[..., Any], *inputs: Any) -> tuple[int, ...]:
    """Trace `encode(*inputs)`, compute nothing, and return the shape of its encoder's embeddings: [rows, L, width].

    Raises ValueError where it runs no module of that name, or several.
    """
    shapes: list[tuple[int, ...]] = []

    def look(x: Array) -> Array:
        shapes.append(x.shape)
        return x

    with _intercepted(look):
        jax.eval_shape(encode, *inputs)
    if len(shapes) != 1:
        raise ValueError(
            f"one encoder with a module `embeddings` is needed to change what it embeds, but {len(shapes)} run: the "
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
