"""SiFT: virtual adversarial training on perturbations of the embeddings.

    loss = loss of the objective  +  weight · mean over its predictions of KL(clean ‖ perturbed) + KL(perturbed ‖ clean)

He et al. 2020 (DeBERTa), section 5; microsoft/DeBERTa sift/sift.py. Each token's embedding, standardised so that a
perturbation means the same in all models, is perturbed by δ: noise, then one step of gradient ascent on the divergence.
The embeddings get no gradient through the perturbed pass, and in each divergence the distribution that is averaged over
gets none. A predicted number stands for a normal distribution around it: then the two divergences sum to the squared
difference.

Of two encoders the one that is kept for other tasks is perturbed, and its predictions are compared: the discriminator,
with the same replaced tokens in all passes, or the student. The original adds SiFT to fine-tuning, where there is one.

Where we deviate: all passes use the same dropout masks and mask and replace the same tokens, where the original
resamples dropout in each, so that the divergence measures δ alone. Embeddings go into their norm at their own scale,
not standardised (`perturbed_embeddings`): a norm undoes that difference, and models without one (XLNet, NeoBERT) are
unchanged. The divergence is reported in full, where the original leaves out the entropies, which have no gradient
there. For regression the original uses the squared difference only in the ascent, and in the loss a softmax over one
class, which is always 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from bertjax.fields import check_fields
from bertjax.models.perturb import embedding_shape
from bertjax.random import row_keys
from bertjax.rules import Rules
from bertjax.types import Array, Batch, Key, Mean, Metrics, Objective, Params, Predictions, total


@runtime_checkable
class Predicts(Objective, Protocol):
    """Protocol for an objective that SiFT can wrap."""

    def encode(self, params: Params, batch: Batch) -> Array:
        """Return hidden states of the encoder whose embeddings are perturbed."""
        ...

    def outputs(
        self, params: Params, batch: Batch, rng: Key, *, train: bool, delta: Array | None = None
    ) -> tuple[Metrics, Predictions]:
        """Return the metrics of `loss`, and the predictions of that encoder, its embeddings perturbed by `delta`."""
        ...


@dataclass(frozen=True)
class SiFT:
    """Train the model of `objective` with an adversarial term.

    Raises ValueError where a number is out of its range, or the objective is not a `Predicts`.

    Costs two more forward and backward passes.

    Attributes:
        objective: the objective whose model is trained
        weight: of the divergence; 3 for the smallest published model
        noise: standard deviation of the initial δ, which is clipped at twice this
        step: largest element of the step of ascent, in each token
    """

    objective: Predicts
    weight: float = 5.0
    noise: float = 1e-2
    step: float = 1e-4

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.objective, Predicts):
            raise ValueError(
                f"{type(self.objective).__name__} has no methods `outputs` and `encode`, which SiFT needs: use an "
                "objective of bertjax, or add them"
            )
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} is negative: training would increase the divergence")
        if min(self.noise, self.step) <= 0:
            raise ValueError(f"noise={self.noise} and step={self.step} must be above 0")

    @property
    def frozen(self) -> Rules:
        """The rules for parameters that the objective never trains: see Experiment."""
        frozen: Rules = getattr(self.objective, "frozen", ())
        return frozen

    def init(self, rng: Key, batch: Batch) -> Params:
        """Initialise the parameters of the objective."""
        return self.objective.init(rng, batch)

    def loss(self, params: Params, batch: Batch, rng: Key, *, train: bool) -> tuple[Array, Metrics]:
        """Return the loss and its metrics: those of the objective, and `loss/sift`.

        Raises ValueError where the objective's encoder has no embeddings that can be perturbed.
        """
        objective_key, noise_key = jax.random.split(rng)
        outputs: Callable[..., Any] = partial(self.objective.outputs, batch=batch, rng=objective_key, train=train)
        metrics, clean = outputs(params)
        fixed_params, fixed_clean = jax.lax.stop_gradient((params, clean))

        def divergence_of(delta: Array) -> Array:
            return divergence(outputs(fixed_params, delta=delta)[1], fixed_clean).sum

        delta = self.initial(noise_key, batch, embedding_shape(self.objective.encode, params, batch))
        delta = self.ascend(delta, jax.grad(divergence_of)(delta))
        mean = divergence(outputs(params, delta=delta)[1], clean)
        metrics["loss/sift"] = Mean(self.weight * mean.sum, mean.weight)
        return total(metrics), metrics

    def initial(self, rng: Key, batch: Batch, shape: tuple[int, ...]) -> Array:
        """Draw the initial δ, of this shape; the key of a row comes from its example."""
        keys_B = row_keys(rng, batch)
        size = (shape[0] // len(keys_B), *shape[1:])  # a row may be several: the choices of a question
        noise = jax.vmap(lambda key: jax.random.normal(key, size))(keys_B).reshape(shape)
        return jnp.clip(self.noise * noise, -2 * self.noise, 2 * self.noise)

    def ascend(self, delta: Array, gradient: Array) -> Array:
        """Take one step of ascent, of the same length in every token with a gradient; no step if any is not finite."""
        largest = jnp.abs(gradient).max(-1, keepdims=True)
        moved = delta + self.step * gradient / (1e-6 + largest)
        return jax.lax.stop_gradient(jnp.where(jnp.isfinite(gradient).all(), moved, delta))


def divergence(one: Predictions, other: Predictions) -> Mean:
    """Return the symmetric KL divergence between two predictions: of distributions, or of normals around numbers."""

    def between_classes(p: Array, q: Array) -> Array:
        p, q = jax.nn.log_softmax(p, axis=-1), jax.nn.log_softmax(q, axis=-1)
        p = jax.lax.stop_gradient(p)
        return (jnp.exp(p) * (p - q)).sum(-1)

    def between_numbers(p: Array, q: Array) -> Array:
        return jnp.square(jax.lax.stop_gradient(p) - q)[..., 0] / 2

    sum_, weight = jnp.float32(0), jnp.float32(0)
    for name, (predicted, weights) in one.items():
        p, q = predicted.astype(jnp.float32), other[name][0].astype(jnp.float32)
        one_way = between_numbers if p.shape[-1] == 1 else between_classes
        sum_ += (weights * (one_way(p, q) + one_way(q, p))).sum()
        weight += weights.sum()
    return Mean(sum_, weight)
