"""SiFT: fine-tune so that predictions withstand small changes of the embeddings (virtual adversarial training).

    loss = loss of the objective  +  weight · mean over its predictions of KL(clean ‖ changed) + KL(changed ‖ clean)

He et al. 2020 (DeBERTa), section 5; microsoft/DeBERTa sift/sift.py. The sum of embeddings is normed without scale and
bias, so that a change means the same in all models, then changed by δ: first noise, then one step uphill on the
divergence. The embeddings get no gradient through the changed pass, and in each divergence the distribution that is
averaged over gets none.

Where we deviate: all passes drop the same elements and mask the same tokens, where the original draws dropout anew in
each, so that what is measured is δ alone. The clean pass is not normed twice: a norm of what is normed changes nothing.
The divergence is reported as such, where the original leaves out the entropies, which have no gradient there.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.layers import Norm, layer_norm
from bertjax.random import row_keys
from bertjax.types import Array, Batch, Key, Mean, Metrics, Objective, Params, Predictions, total


@runtime_checkable
class Predicts(Objective, Protocol):
    """What SiFT asks of an objective besides."""

    def outputs(self, params: Params, batch: Batch, rng: Key, *, train: bool) -> tuple[Metrics, Predictions]:
        """Return the metrics of `loss`, and the logits that they are computed from."""
        ...


@dataclass(frozen=True)
class SiFT:
    """Train what `objective` trains, adversarially.

    Raises ValueError where a number is out of its range, or the objective does not offer what SiFT compares.

    Costs two more passes forward and back. Its encoder must norm its embeddings (XLNet does not).
    """

    objective: Predicts
    weight: float = 5.0  # of the divergence; 3 for the smallest published model
    noise: float = 1e-2  # standard deviation of the first δ, which is cut at twice this
    step: float = 1e-4  # the largest element of δ's one step, in each token

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Predicts):
            raise ValueError(
                f"a {type(self.objective).__name__} offers no `outputs` to compare: SiFT wraps objectives that do, "
                "such as MaskedLM"
            )
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} is negative: the divergence would be made large")
        if min(self.noise, self.step) <= 0:
            raise ValueError(f"noise={self.noise} and step={self.step} must be above 0")

    def init(self, rng: Key, batch: Batch) -> Params:
        """Make the parameters of the objective."""
        return self.objective.init(rng, batch)

    def loss(self, params: Params, batch: Batch, rng: Key, *, train: bool) -> tuple[Array, Metrics]:
        """Return the loss and its metrics: those of the objective, and `loss/sift`.

        Raises ValueError where the objective runs no embeddings with a norm, or several.
        """
        objective_key, noise_key = jax.random.split(rng)

        def run(params: Params, change: Callable[[Array], Array]) -> tuple[Metrics, Predictions]:
            with _normed_embeddings(change):
                return self.objective.outputs(params, batch, objective_key, train=train)

        shapes: list[tuple[int, ...]] = []

        def look(x: Array) -> Array:
            shapes.append(x.shape)
            return x

        metrics, clean = run(params, look)
        if len(shapes) != 1:
            raise ValueError(
                f"SiFT needs one embedding layer with a norm, but the objective runs {len(shapes)}: wrap one with a "
                "single encoder that norms its embeddings, as all do but XLNet and NeoBERT"
            )

        def changed(params: Params, delta: Array) -> Predictions:
            return run(params, lambda x: (jax.lax.stop_gradient(_standardised(x)) + delta).astype(x.dtype))[1]

        fixed_params, fixed_clean = jax.lax.stop_gradient((params, clean))
        uphill = jax.grad(lambda delta: divergence(changed(fixed_params, delta), fixed_clean).sum)
        delta = self.first(noise_key, batch, shapes[0])
        delta = self.ascend(delta, uphill(delta))
        mean = divergence(changed(params, delta), clean)
        metrics["loss/sift"] = Mean(self.weight * mean.sum, mean.weight)
        return total(metrics), metrics

    def first(self, rng: Key, batch: Batch, shape: tuple[int, ...]) -> Array:
        """Draw the first δ, of this shape; a row's draws are named by its example."""
        keys_B = row_keys(rng, batch)
        size = (shape[0] // len(keys_B), *shape[1:])  # a row may be several: the choices of a question
        noise = jax.vmap(lambda key: jax.random.normal(key, size))(keys_B).reshape(shape)
        return jnp.clip(self.noise * noise, -2 * self.noise, 2 * self.noise)

    def ascend(self, delta: Array, gradient: Array) -> Array:
        """Take one step uphill, as long in every token that has a gradient; none where any of it is not finite."""
        largest = jnp.abs(gradient).max(-1, keepdims=True)
        moved = delta + self.step * gradient / (1e-6 + largest)
        return jax.lax.stop_gradient(jnp.where(jnp.isfinite(gradient).all(), moved, delta))


def divergence(one: Predictions, other: Predictions) -> Mean:
    """Sum the symmetric KL divergence of the distributions in two sets of predictions."""

    def one_way(p: Array, q: Array) -> Array:
        p = jax.lax.stop_gradient(p)
        return (jnp.exp(p) * (p - q)).sum(-1)

    total, weight = jnp.float32(0), jnp.float32(0)
    for name, (logits, weights) in one.items():
        p, q = (jax.nn.log_softmax(x.astype(jnp.float32), axis=-1) for x in (logits, other[name][0]))
        total += (weights * (one_way(p, q) + one_way(q, p))).sum()
        weight += weights.sum()
    return Mean(total, weight)


def _standardised(x: Array) -> Array:
    """Norm without scale and bias, in float32."""
    x = x.astype(jnp.float32)
    return layer_norm(x, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]), 1e-7)


def _normed_embeddings(change: Callable[[Array], Array]) -> AbstractContextManager[None]:
    """Change what goes into the norm of embeddings, in every encoder that runs inside."""

    def intercept(run: Any, inputs: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, Norm) and context.module.path[-2:] == ("embeddings", "norm"):
            inputs = (change(inputs[0]), *inputs[1:])
        return run(*inputs, **options)

    manager: AbstractContextManager[None] = nn.intercept_methods(intercept)
    return manager
