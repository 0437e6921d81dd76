"""Losses and metrics that objectives share: pure functions of logits, labels and weights, each a sum and its weight."""

import jax
import jax.numpy as jnp

from bertjax.types import Array, Mean, Metrics


def negative_log_likelihood(logits: Array, labels: Array) -> Array:
    """Return -log p of labels [...] under logits [..., C], in nats: float32 [...]."""
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - picked(logits, labels)


def picked(logits: Array, labels: Array) -> Array:
    """Return the logits of the labels [...] among logits [..., C].

    A compare and a sum instead of a gather: it fuses with the reading of the logits, which are large.
    """
    return jnp.sum(jnp.where(_classes(logits, labels) == labels[..., None], logits, 0), axis=-1)


def is_first_best(logits: Array, labels: Array) -> Array:
    """Return where labels [...] are the argmax of logits [..., C], the first of equal ones: bool [...].

    All compares instead of an argmax, which CPUs do not vectorise: it took a sixth of a step of BERT tiny with a
    vocabulary of 8,000. Where a logit is NaN no label is best.
    """
    label = labels[..., None]
    best = picked(logits, labels)[..., None]
    return jnp.all((logits < best) | ((logits == best) & (_classes(logits, labels) >= label)), axis=-1)


def _classes(logits: Array, labels: Array) -> Array:
    return jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)


def weighted_mean(values: Array, weights: Array) -> Mean:
    """Return the mean of values [...] with weights [...], undivided."""
    return Mean((weights * values).sum(), weights.sum())


def scaled(mean: Mean, factor: float) -> Mean:
    """Multiply a mean by a factor; its weight stays."""
    return Mean(factor * mean.sum, mean.weight)


def scores(name: str, logits: Array, labels: Array, weights: Array, normaliser: Array | None = None) -> Metrics:
    """Return `loss/name` and `accuracy/name` of labels [...] under logits [..., C].

    loss = Σ weights·nll / Σ normaliser, accuracy = Σ weights·right / Σ weights. normaliser: an array of any shape, or
    the weights if None. For weights other than 0 and 1, such as 1/t in masked diffusion: the loss is then a weighted
    sum over positions, divided by the number of all.
    """
    loss = weighted_mean(negative_log_likelihood(logits, labels), weights)
    if normaliser is not None:
        loss = Mean(loss.sum, normaliser.sum())
    right = is_first_best(logits, labels).astype(jnp.float32)
    return {f"loss/{name}": loss, f"accuracy/{name}": weighted_mean(right, weights)}


def histogram(V: int, targets: Array, weights: Array) -> Mean:
    """Count how often each id is a target, f32 [V]: its entropy is the loss of the best prediction without context."""
    return Mean(jnp.zeros(V).at[targets].add(weights), weights.sum())


def real_tokens(mask: Array) -> Mean:
    """Return the fraction of positions of a batch that are not padding: the metric `tokens/real`."""
    return Mean((mask > 0).sum(dtype=jnp.float32), jnp.float32(mask.size))
