"""Hold the maths that every encoder shares, as pure functions, and the thin Linen modules that own its parameters.

Numerics, whatever the compute dtype: parameters, norm statistics, softmax and attention scores are float32; every
module casts its own parameters. Element-wise steps are recomputed in the backward pass from their inputs
(`_recomputed`): they cost less than reading what they would have kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.random import hash_bits
from bertjax.types import Array, Key, Params

Activation = Callable[[Array], Array]

_recomputed = partial(jax.checkpoint, prevent_cse=False)


@dataclass(frozen=True)
class TruncatedNormal:
    """Draw from a normal cut at two standard deviations, not rescaled: BERT's initialiser (modeling.py)."""

    stddev: float = 0.02

    def __call__(self, rng: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.nn.initializers.truncated_normal(self.stddev)(rng, shape, dtype)


@dataclass(frozen=True)
class Normal:
    """Draw from a normal: the initialiser of RoBERTa, XLNet and DeBERTa."""

    stddev: float = 0.02

    def __call__(self, rng: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.nn.initializers.normal(self.stddev)(rng, shape, dtype)


Initializer = TruncatedNormal | Normal


@_recomputed
def gelu(x: Array) -> Array:
    """Apply the exact GELU, x Φ(x): the published BERT, RoBERTa and ELECTRA weights want this one."""
    return jax.nn.gelu(x, approximate=False)


@_recomputed
def gelu_tanh(x: Array) -> Array:
    """Apply the tanh approximation of GELU: ALBERT, XLNet, and BERT's code after its weights were trained."""
    return jax.nn.gelu(x, approximate=True)


@partial(_recomputed, static_argnums=(3,))
def layer_norm(x: Array, scale_D: Array, bias_D: Array, eps: float) -> Array:
    """Normalise the last axis; float32 inside (a variance below eps 1e-12 needs it), the dtype of `x` outside."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return (y * aligned(scale_D, y) + aligned(bias_D, y)).astype(x.dtype)


@partial(_recomputed, static_argnums=(1,))
def _dropout(x: Array, rate: float, rng: Key) -> Array:
    keep = hash_bits(rng, x.shape) >= jnp.uint32(int(rate * 2**32))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def aligned(last_axes: Array, like: Array) -> Array:
    """Put leading axes of 1 before `last_axes`, to the rank of `like`: says aloud that a broadcast is meant."""
    return jax.lax.broadcast_to_rank(last_axes, like.ndim)


def add_bias(y: Array, bias: Array) -> Array:
    """Add a float32 bias to the last axes of `y`, in float32, so that its gradient is a sum in float32 too."""
    return (y.astype(jnp.float32) + aligned(bias, y)).astype(y.dtype)


def apply(module: nn.Module, params: Params, *inputs: Any, **options: Any) -> Array:
    """Apply a module with its parameters: `module.apply` for modules that return one array."""
    return cast(Array, module.apply({"params": params}, *inputs, **options))


class Dropout(nn.Module):
    """Zero a share `rate` of `x` in training, from the module's own stream of the `dropout` key; else pass `x` on."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        if not train or self.rate == 0:
            return x
        return _dropout(x, self.rate, self.make_rng("dropout"))


def same_document(mask_BL: Array) -> Array:
    """Say who may see whom: visible_BLM, true where query and key are of one document of the row.

    Padding (0) is a document of its own, so that no row of the softmax is ever empty and nothing real sees it.
    """
    return mask_BL[:, :, None] == mask_BL[:, None, :]


def restarting_positions(mask_BL: Array) -> Array:
    """Count positions from the start of each document of a packed row: i32 [B, L], from 0."""
    index_BL = jnp.broadcast_to(jnp.arange(mask_BL.shape[1]), mask_BL.shape)
    starts_BL = jnp.concatenate([jnp.ones_like(mask_BL[:, :1], bool), mask_BL[:, 1:] != mask_BL[:, :-1]], axis=1)
    return index_BL - jax.lax.cummax(jnp.where(starts_BL, index_BL, 0), axis=1)


def attention(
    q_BLHK: Array, k_BMHK: Array, v_BMHK: Array, visible_BLM: Array, dropout: Callable[[Array], Array]
) -> Array:
    """Attend: softmax(q k / √K) v over the visible keys, `dropout` on the probabilities.

    Scores and softmax are float32; a hidden key gets a large negative finite score, so that no sum becomes NaN.
    """
    scores_BHLM = jnp.einsum("BLHK,BMHK->BHLM", q_BLHK, k_BMHK, preferred_element_type=jnp.float32)
    scores_BHLM = scores_BHLM * q_BLHK.shape[-1] ** -0.5
    probabilities_BHLM = jax.nn.softmax(jnp.where(visible_BLM[:, None], scores_BHLM, -1e9), axis=-1)
    probabilities_BHLM = dropout(probabilities_BHLM.astype(v_BMHK.dtype))
    return jnp.einsum("BHLM,BMHK->BLHK", probabilities_BHLM, v_BMHK)


class Dense(nn.Module):
    """Multiply the last `len(inputs)` axes by a kernel [*inputs, *outputs] and add a bias [*outputs]."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.initializer, (*self.inputs, *self.outputs))
        bias = self.param("bias", nn.initializers.zeros_init(), self.outputs)
        y = jnp.tensordot(x.astype(self.dtype), kernel.astype(self.dtype), axes=len(self.inputs))
        return add_bias(y, bias)


class LayerNorm(nn.Module):
    """Own the scale and bias of `layer_norm` over a last axis of `width`."""

    width: int
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones_init(), (self.width,))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
        return layer_norm(x, scale, bias, self.eps)


class Table(nn.Module):
    """Own a table of `rows` vectors of `width`; look rows up by id. Ids must be in range: nothing checks them here."""

    rows: int
    width: int
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        table = self.param("table", self.initializer, (self.rows, self.width))
        return table.at[ids].get(mode="promise_in_bounds").astype(self.dtype)


class SelfAttention(nn.Module):
    """Project to queries, keys and values of H heads, attend within documents, project back to width D."""

    D: int
    H: int
    dropout: float
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, x_BLD: Array, mask_BL: Array, *, train: bool) -> Array:
        heads = (self.H, self.D // self.H)
        q_BLHK, k_BLHK, v_BLHK = (
            Dense((self.D,), heads, self.initializer, self.dtype, name=name)(x_BLD)
            for name in ("query", "key", "value")
        )
        drop = partial(Dropout(self.dropout), train=train)
        mixed_BLHK = attention(q_BLHK, k_BLHK, v_BLHK, same_document(mask_BL), drop)
        return Dense(heads, (self.D,), self.initializer, self.dtype, name="output")(mixed_BLHK)


class FeedForward(nn.Module):
    """Widen D to F, activate, narrow back to D."""

    D: int
    F: int
    activation: Activation
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        h_BLF = self.activation(Dense((self.D,), (self.F,), self.initializer, self.dtype, name="widen")(x_BLD))
        return Dense((self.F,), (self.D,), self.initializer, self.dtype, name="narrow")(h_BLF)


REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What a layer keeps for the backward pass: everything, the results of its matrix products with parameters, nothing."""


def stack(layer: type[nn.Module], length: int, *, remat: str, shared: bool) -> Callable[..., nn.Module]:
    """Scan `layer` over `length` layers: parameters gain a leading axis N, or are one set where `shared`.

    The layer is called as `layer(carry, *broadcast) -> (carry, None)`. Every layer draws dropout of its own, shared or
    not.
    """
    if REMAT[remat] is not None:
        layer = nn.remat(layer, policy=REMAT[remat], prevent_cse=False)
    return nn.scan(
        layer,
        variable_axes={} if shared else {"params": 0},
        variable_broadcast="params" if shared else False,
        split_rngs={"params": not shared, "dropout": True},
        in_axes=nn.broadcast,
        length=length,
    )
