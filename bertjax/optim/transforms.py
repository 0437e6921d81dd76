"""Gradient transformations that optax lacks: the moments and the trust ratio of the published optimisers."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bertjax.rules import STACKED, Rules, match
from bertjax.types import Array
from bertjax.wording import counted


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without bias correction, as in BERT, ALBERT and ELECTRA.

    google-research/bert optimization.py AdamWeightDecayOptimizer; eps is added outside the root.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=zeros)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=optax.safe_increment(state.count), mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def scale_by_stable_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam, with the update of each tensor divided by the root mean square of g / √v where that is above 1.

    StableAdamW (Wortsman et al. 2023; warner-benjamin/optimi stableadamw.py) needs no gradient clipping: it scales the
    update of a tensor down while its gradients outgrow v. Each slice of stacked layers is a tensor. Where we
    deviate: optimi scales weight decay down as well.
    """
    adam = optax.scale_by_adam(b1, b2, eps)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(gradients, state, params)
        corrected = 1 - b2 ** state.count.astype(jnp.float32)

        def clip_update(update: Array, g: Array, v: Array, stacked: bool) -> Array:
            squares = jnp.square(g) / jnp.maximum(v / corrected, eps**2)
            return update / jnp.maximum(1.0, jnp.sqrt(squares.mean(_axes(g, stacked), keepdims=True)))

        return jax.tree.map(clip_update, updates, gradients, state.nu, match(STACKED, gradients)), state

    return optax.GradientTransformation(adam.init, update)


def _axes(tensor: Array, stacked: bool) -> tuple[int, ...]:
    """Return the axes of one tensor, in a stack of layers all but the first."""
    return tuple(range(1 if stacked else 0, tensor.ndim))


def scale_by_trust_ratio(adapted: Rules) -> optax.GradientTransformation:
    """Scale the update of each tensor by ‖w‖ / ‖u‖, 1 where either is 0 (google-research/albert lamb_optimizer.py).

    In a stack of layers the norms are taken per slice of the leading axis. The update of parameters whose rule is False
    is not scaled.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scale(update: Array, param: Array, adapt: bool, stacked: bool) -> Array:
            if not adapt:
                return update
            axes = _axes(param, stacked)
            param_norm = jnp.sqrt(jnp.square(param).sum(axes, keepdims=True))
            update_norm = jnp.sqrt(jnp.square(update).sum(axes, keepdims=True))
            ratio = jnp.where((param_norm == 0) | (update_norm == 0), 1.0, param_norm / update_norm)
            return update * ratio

        return jax.tree.map(scale, updates, params, match(adapted, params), match(STACKED, params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_rules(rates: Rules) -> optax.GradientTransformation:
    """Multiply each update by the value of its parameter's rule; a tuple has a value for each slice of stacked layers.

    A stack may lack the first layer (ModernBERT's attention norm). Raises ValueError if the numbers differ otherwise.
    """

    def scale(update: Array, rate: float | tuple[float, ...]) -> Array:
        if not isinstance(rate, tuple):
            return update * rate
        if update.shape[0] not in (len(rate), len(rate) - 1):
            raise ValueError(
                f"{counted(len(rate), 'rates')} for {counted(update.shape[0], 'layers')}: give one for each"
            )
        each = jnp.array(rate[len(rate) - update.shape[0] :], update.dtype)
        return update * each.reshape(-1, *(1,) * (update.ndim - 1))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(scale, updates, match(rates, updates)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
