"""The layers that encoders share: pure functions, and thin Linen modules that hold their parameters.

Numerics, whatever the compute dtype: parameters, norm statistics, softmax and attention scores are float32; every
module casts its own parameters. Element-wise steps are rematerialised in the backward pass (`recomputed`): that costs
less than reading saved results.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from bertjax.random import hash_bits
from bertjax.sharding.collectives import first_row, gather_layer, sum_cotangents_first
from bertjax.sharding.lookup import sharded_embedding_lookup
from bertjax.sharding.mesh import splits_parameters
from bertjax.types import Array, Key, Params

Activation = Callable[[Array], Array]

Normalise = Callable[[Array, Array, Array | None, float], Array]
"""(x, scale_D, bias_D or None, eps) -> x, normalised over its last axis: `layer_norm` or `rms_norm`."""

recomputed = partial(jax.checkpoint, prevent_cse=False)
"""Rematerialise in the backward pass, from the inputs: for steps that cost less than reading saved results."""


@dataclass(frozen=True)
class TruncatedNormal:
    """Draw from a normal truncated at two standard deviations, not rescaled: BERT's initialiser (modeling.py)."""

    stddev: float = 0.02

    def __call__(self, rng: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.nn.initializers.truncated_normal(self.stddev)(rng, shape, dtype)


@dataclass(frozen=True)
class Normal:
    """Draw from a normal: the initialiser of RoBERTa, XLNet and DeBERTa."""

    stddev: float = 0.02

    def __call__(self, rng: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.nn.initializers.normal(self.stddev)(rng, shape, dtype)


@dataclass(frozen=True)
class GlorotUniform:
    """Draw uniformly, scaled by fan-in and fan-out: TensorFlow's default, in parts of ELECTRA."""

    def __call__(self, rng: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.nn.initializers.glorot_uniform()(rng, shape, dtype)


@dataclass(frozen=True)
class Uniform:
    """Draw uniformly between -limit and limit: NeoBERT's initialiser."""

    limit: float = 0.02

    def __call__(self, rng: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(rng, shape, dtype, -self.limit, self.limit)


Initializer = TruncatedNormal | Normal | GlorotUniform | Uniform


@recomputed
def gelu(x: Array) -> Array:
    """Apply the exact GELU, x Φ(x), of the published BERT, RoBERTa and ELECTRA weights.

    Computed by erf in float32; `jax.nn.gelu` uses erfc, at twice the cost, whose digits matter only below -5.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


@recomputed
def gelu_tanh(x: Array) -> Array:
    """Apply the tanh approximation of GELU: ALBERT, XLNet, and BERT's code after its weights were trained."""
    return jax.nn.gelu(x, approximate=True)


@recomputed
def relu(x: Array) -> Array:
    """Apply max(x, 0): DistilBERT's classifier."""
    return jax.nn.relu(x)


@recomputed
def tanh(x: Array) -> Array:
    """Apply the hyperbolic tangent: BERT's pooler."""
    return jnp.tanh(x)


@recomputed
def silu(x: Array) -> Array:
    """Apply x σ(x), also called Swish: the activation of SwiGLU."""
    return jax.nn.silu(x)


@recomputed
def gelu_10(x: Array) -> Array:
    """Apply the exact GELU, clipped to [-10, 10]: quantised models (Wu et al. 2020)."""
    return jnp.clip(gelu(x), -10, 10)


@recomputed
def quick_gelu(x: Array) -> Array:
    """Apply x σ(1.702 x), an approximation of GELU (Hendrycks and Gimpel 2016)."""
    return x * jax.nn.sigmoid(1.702 * x)


@recomputed
def mish(x: Array) -> Array:
    """Apply x tanh(softplus(x)) (Misra 2019)."""
    return x * jnp.tanh(jax.nn.softplus(x))


@partial(recomputed, static_argnums=(2,))
def gated(h: Array, gate: Array, activation: Activation) -> Array:
    """Multiply the activated `h` by `gate`: a gated linear unit."""
    return activation(h) * gate


_statistic = partial(checkpoint_name, name="statistic")
"""Marks per-row norm statistics, which are saved rather than rematerialised."""

_norm = partial(recomputed, static_argnums=(3,), policy=jax.checkpoint_policies.save_only_these_names("statistic"))


@_norm
def layer_norm(x: Array, scale_D: Array, bias_D: Array | None, eps: float) -> Array:
    """Apply layer norm over the last axis, in float32 (an eps of 1e-12 needs it); return the dtype of `x`."""
    y = x.astype(jnp.float32)
    mean = _statistic(y.mean(-1, keepdims=True))
    # The gradient through the mean in the variance is 0, but XLA would compute it in a pass of its own.
    variance = jnp.square(y - jax.lax.stop_gradient(mean)).mean(-1, keepdims=True)
    return _rescaled(y - mean, variance, scale_D, bias_D, eps).astype(x.dtype)


@_norm
def rms_norm(x: Array, scale_D: Array, bias_D: Array | None, eps: float) -> Array:
    """Divide the last axis by its root mean square, in float32: a layer norm without centring."""
    y = x.astype(jnp.float32)
    return _rescaled(y, jnp.square(y).mean(-1, keepdims=True), scale_D, bias_D, eps).astype(x.dtype)


def _rescaled(y: Array, variance: Array, scale_D: Array, bias_D: Array | None, eps: float) -> Array:
    y = y * _statistic(jax.lax.rsqrt(variance + eps)) * aligned(scale_D, y)
    return y if bias_D is None else y + aligned(bias_D, y)


@partial(recomputed, static_argnums=(1,))
def _dropout(x: Array, rate: float, rng: Key, first: Array | int) -> Array:
    keep = hash_bits(rng, x.shape, first=first) >= jnp.uint32(int(rate * 2**32))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def aligned(last_axes: Array, like: Array) -> Array:
    """Left-pad `last_axes` with axes of size 1 to the rank of `like`, so that broadcasting is explicit."""
    return jax.lax.broadcast_to_rank(last_axes, like.ndim)


def add_bias(y: Array, bias: Array) -> Array:
    """Add a float32 bias to the last axes of `y`, in float32, so that its gradient is summed in float32 too."""
    return (y.astype(jnp.float32) + aligned(bias, y)).astype(y.dtype)


def apply(module: Any, params: Params, *inputs: Any, **options: Any) -> Array:
    """Apply a module with its parameters: `module.apply` for modules that return one array."""
    return cast(Array, module.apply({"params": params}, *inputs, **options))


@dataclass(frozen=True)
class Drop:
    """Dropout at `rate` with the key `rng`; the identity where `rng` is None."""

    rate: float = 0.0
    rng: Key | None = None
    by_row: bool = True  # the leading axis is the batch's; else all rows share the array

    def __call__(self, x: Array) -> Array:
        return x if self.rng is None else _dropout(x, self.rate, self.rng, first_row(len(x)) if self.by_row else 0)


class Dropout(nn.Module):
    """Dropout in training, from the module's own stream of the `dropout` key; else the identity."""

    rate: float
    by_row: bool = True  # the leading axis of `x` is the batch's; else all rows share `x`

    def __call__(self, x: Array, *, train: bool) -> Array:
        return self.drawn(train=train)(x)

    def drawn(self, *, train: bool) -> Drop:
        """Return the dropout of one use with its key, for a kernel that fuses it."""
        return Drop(self.rate, self.make_rng("dropout"), self.by_row) if train and self.rate else Drop()


Attend = Callable[[Array, Array, Array, Array, Drop], Array]
"""(q_BLHK, k_BLHK, v_BLHK, mask_BL, drop) -> mixed_BLHK: `attend`, or a kernel that equals it."""


def same_document(mask_BL: Array, keys_mask_BM: Array | None = None) -> Array:
    """Return the attention mask visible_BLM: true within one packed document.

    keys_mask_BM: of the keys, where they are not the queries. Padding (0) is a document of its own, so that no row of
    the softmax is empty and no token sees padding.
    """
    keys_mask_BM = mask_BL if keys_mask_BM is None else keys_mask_BM
    return mask_BL[:, :, None] == keys_mask_BM[:, None, :]


RECORDED = "intermediates"
"""The collection of what `record` keeps: Linen initialises a module without it."""


def record(module: nn.Module, **values: Callable[[], Any]) -> None:
    """Keep arrays under these names for a caller of `apply` that asks for the collection RECORDED; else do nothing.

    An array, or a tree of arrays, is computed only where it is kept, so that nothing is added to any other program.
    """
    if module.is_mutable_collection(RECORDED):
        for name, value in values.items():
            module.sow(RECORDED, name, value(), init_fn=lambda: None, reduce_fn=lambda _, new: new)


def apply_recorded(parent: nn.Module, layer: Any, params: Params, *inputs: Any, **options: Any) -> tuple[Array, Any]:
    """Apply a layer that is no submodule of `parent`; return its output and what it recorded, {} if nothing is kept."""
    kept = [RECORDED] if parent.is_mutable_collection(RECORDED) else []
    y, collections = layer.apply({"params": params}, *inputs, mutable=kept, **options)
    return y, collections.get(RECORDED, {})


def restarting_positions(mask_BL: Array) -> Array:
    """Count positions from the start of each document of a packed row: i32 [B, L], from 0."""
    index_BL = jnp.broadcast_to(jnp.arange(mask_BL.shape[1]), mask_BL.shape)
    return index_BL - jax.lax.cummax(jnp.where(_starts(mask_BL), index_BL, 0), axis=1)


def restarting_count(counted_BL: Array, mask_BL: Array) -> Array:
    """Sum i32 [B, L] of zeros and ones from the start of each document of a packed row, each token included."""
    sums_BL = jnp.cumsum(counted_BL, axis=1)
    return sums_BL - jax.lax.cummax(jnp.where(_starts(mask_BL), sums_BL - counted_BL, 0), axis=1)


def _starts(mask_BL: Array) -> Array:
    """Return whether a document begins at each token."""
    return jnp.concatenate([jnp.ones_like(mask_BL[:, :1], bool), mask_BL[:, 1:] != mask_BL[:, :-1]], axis=1)


def states_at(x_BLD: Array, positions_BP: Array | None) -> Array:
    """Gather the states at `positions_BP` of each row, x_BPD, or return all of them if None.

    The gradient of a state is summed in the dtype of `x_BLD`: pass float32 where many positions of a row are one.
    """
    if positions_BP is None:
        return x_BLD
    return jnp.take_along_axis(x_BLD, positions_BP[..., None], axis=1, mode="promise_in_bounds")


def attention(
    q_BLHK: Array,
    k_BMHK: Array,
    v_BMHK: Array,
    visible_BLM: Array,
    dropout: Callable[[Array], Array],
    added_BHLM: Array | None = None,
    terms: int = 1,
) -> Array:
    """Compute softmax((q k + added) / √(terms·K)) v over the visible keys, with `dropout` on the probabilities.

    terms: number of terms that a score sums (DeBERTa).
    """
    probabilities_BHLM = probabilities(q_BLHK, k_BMHK, visible_BLM, added_BHLM, terms)
    probabilities_BHLM = dropout(probabilities_BHLM.astype(v_BMHK.dtype))
    return jnp.einsum("BHLM,BMHK->BLHK", probabilities_BHLM, v_BMHK)


def probabilities(
    q_BLHK: Array, k_BMHK: Array, visible_BLM: Array, added_BHLM: Array | None = None, terms: int = 1
) -> Array:
    """Compute softmax((q k + added) / √(terms·K)) over the visible keys: f32 [B, H, L, M].

    Scores and softmax are float32; a masked key gets a large negative finite score, so that no sum becomes NaN.
    """
    scores_BHLM = jnp.einsum("BLHK,BMHK->BHLM", q_BLHK, k_BMHK, preferred_element_type=jnp.float32)
    if added_BHLM is not None:
        # Fused with its producers and consumers, this sum overflows the stack of the TPU compiler (libtpu 0.0.42).
        scores_BHLM += jax.lax.optimization_barrier(added_BHLM)
    scores_BHLM = scores_BHLM * (terms * q_BLHK.shape[-1]) ** -0.5
    return jax.nn.softmax(jnp.where(visible_BLM[:, None], scores_BHLM, -1e9), axis=-1)


def attend(q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, mask_BL: Array, drop: Drop) -> Array:
    """Compute global attention within documents."""
    return attention(q_BLHK, k_BLHK, v_BLHK, same_document(mask_BL), drop)


def nearby(mask_BL: Array, reach: int) -> Array:
    """Return the attention mask visible_BLM of a sliding window: `reach` keys of the document to each side."""
    L = mask_BL.shape[1]
    index_L = np.arange(L) if isinstance(L, int) else jnp.arange(L)
    near_LM = abs(index_L[:, None] - index_L[None]) <= reach
    return same_document(mask_BL) & near_LM[None]


def local_attention(q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, mask_BL: Array, reach: int) -> Array:
    """Compute sliding-window attention within documents, over `reach` keys to each side and the token itself.

    In long rows each block of 2·reach queries attends to the 4·reach keys around it, so that work and memory are linear
    in L; in short ones that saves nothing, and all scores are computed.
    """
    B, L = mask_BL.shape
    T = 2 * reach
    if not isinstance(L, int) or L <= 4 * T:  # a length that an exported program leaves open is no number
        return attention(q_BLHK, k_BLHK, v_BLHK, nearby(mask_BL, reach), lambda p: p)
    blocks = -(-L // T)

    def padded(x: Array, before: int, after: int) -> Array:
        # The padding is a document of its own, -1: it sees only itself, and no token sees it.
        widths = ((0, 0), (before, blocks * T - L + after), *((0, 0) for _ in x.shape[2:]))
        return jnp.pad(x, widths, constant_values=-1)

    def queries(x: Array) -> Array:
        return padded(x, 0, 0).reshape(B * blocks, T, *x.shape[2:])

    def keys(x: Array) -> Array:
        pieces = padded(x, reach, reach).reshape(B, 2 * blocks + 2, reach, *x.shape[2:])
        parts = [pieces[:, first : first + 2 * blocks - 1 : 2] for first in range(4)]
        return jnp.concatenate(parts, axis=2).reshape(B * blocks, 2 * T, *x.shape[2:])

    near_TU = np.abs(np.arange(T)[:, None] - (np.arange(2 * T)[None] - reach)) <= reach
    visible = same_document(queries(mask_BL), keys(mask_BL)) & near_TU[None]
    mixed = attention(queries(q_BLHK), keys(k_BLHK), keys(v_BLHK), visible, lambda p: p)
    return mixed.reshape(B, blocks * T, *mixed.shape[2:])[:, :L]


class Dense(nn.Module):
    """Dense layer over the last `len(inputs)` axes: a kernel [*inputs, *outputs] and a bias [*outputs], if any."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    initializer: Initializer
    dtype: str
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.initializer, (*self.inputs, *self.outputs))
        # Flatten to one axis each: else the compiler lays out heads, half as wide as a register, along the lanes.
        width, leading = math.prod(self.inputs), x.shape[: x.ndim - len(self.inputs)]
        y = x.reshape(*leading, width).astype(self.dtype) @ kernel.reshape(width, -1).astype(self.dtype)
        if self.use_bias:
            y = add_bias(y, self.param("bias", nn.initializers.zeros_init(), self.outputs).reshape(-1))
        return y.reshape(*leading, *self.outputs)


class Norm(nn.Module):
    """A norm over a last axis of `width`, with a scale and, if `use_bias`, a bias."""

    width: int
    eps: float
    normalise: Normalise = layer_norm
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones_init(), (self.width,))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.width,)) if self.use_bias else None
        return self.normalise(x, scale, bias, self.eps)


class Table(nn.Module):
    """Embedding table of `rows` vectors of `width`. Ids must be in range: nothing checks them here."""

    rows: int
    width: int
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        table = self.param("table", self.initializer, (self.rows, self.width))
        return sharded_embedding_lookup(table, ids, "/".join((*self.path, "table")), self.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention within documents."""

    D: int
    H: int
    dropout: float
    initializer: Initializer
    dtype: str
    attend: Attend = attend

    @nn.compact
    def __call__(self, x_BLD: Array, mask_BL: Array, visible_BLM: Array | None = None, *, train: bool) -> Array:
        """Return states [B, L, D]. visible_BLM: an attention mask instead of the documents'; not for `attend`."""
        heads = (self.H, self.D // self.H)
        x_BLD = sum_cotangents_first(x_BLD)
        q_BLHK, k_BLHK, v_BLHK = (
            Dense((self.D,), heads, self.initializer, self.dtype, name=name)(x_BLD)
            for name in ("query", "key", "value")
        )
        drop = Dropout(self.dropout).drawn(train=train)

        def seen_BLM() -> Array:
            return same_document(mask_BL) if visible_BLM is None else visible_BLM

        record(self, attention=lambda: probabilities(q_BLHK, k_BLHK, seen_BLM()))
        if visible_BLM is None:
            mixed_BLHK = self.attend(q_BLHK, k_BLHK, v_BLHK, mask_BL, drop)
        else:
            mixed_BLHK = attention(q_BLHK, k_BLHK, v_BLHK, visible_BLM, drop)
        return Dense(heads, (self.D,), self.initializer, self.dtype, name="output")(mixed_BLHK)


class FeedForward(nn.Module):
    """Feed-forward: dense D to F, activation, dropout if any (XLNet), dense F to D."""

    D: int
    F: int
    activation: Activation
    initializer: Initializer
    dtype: str
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BLD: Array, *, train: bool = False) -> Array:
        # Preceding operations, fused into this product in the backward pass, would leave no room for large tiles.
        x_BLD = jax.lax.optimization_barrier(x_BLD)
        h_BLF = self.activation(Dense((self.D,), (self.F,), self.initializer, self.dtype, name="widen")(x_BLD))
        h_BLF = Dropout(self.dropout)(h_BLF, train=train)
        return Dense((self.F,), (self.D,), self.initializer, self.dtype, name="narrow")(h_BLF)


REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""Policies for the residuals of a layer: save all, only the results of matrix products with parameters, or none.

"none" also saves gathered parameters, 2 bytes each: a policy that saves all but these would override `recomputed`, and
save six arrays [B, L, D] of a layer instead.
"""


def check_encoder(encoder: Any, *sizes: str) -> None:
    """Raise ValueError where a field that all encoders have is out of its range.

    sizes: names of the fields that must be at least 1, or None.
    """
    for name in sizes:
        if getattr(encoder, name) is not None and getattr(encoder, name) < 1:
            raise ValueError(f"{name}={getattr(encoder, name)} must be 1 or more")
    if encoder.D % encoder.H:
        raise ValueError(f"width D={encoder.D} does not divide into H={encoder.H} heads: choose H among its divisors")
    if encoder.remat not in REMAT:
        raise ValueError(f"remat={encoder.remat!r} is none of {', '.join(REMAT)}")
    for name in ("dropout", "attention_dropout"):
        if not 0 <= getattr(encoder, name) < 1:
            raise ValueError(f"{name}={getattr(encoder, name)} is not a share in [0, 1)")
    if encoder.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={encoder.dtype!r} is neither float32 nor bfloat16")


def stack(
    layer: type[nn.Module],
    length: int,
    *,
    remat: str,
    shared: bool,
    dtype: str,
    initializing: bool,
    unroll: bool = False,
    in_axes: Any = nn.broadcast,
    repeated: Sequence[int] | None = None,
) -> Callable[..., nn.Module]:
    """Scan `layer` over `length` layers: parameters gain a leading axis N, or are one set where `shared`.

    The layer is called as `layer(carry, *inputs) -> (carry, output)`; outputs are stacked. in_axes: which inputs have
    an axis of layers, as in `nn.scan`; by default all layers get the same. Every layer draws dropout of its own, shared
    or not. unroll: unroll the loop, which would copy its residuals into arrays over layers and out of them: faster, but
    slower to compile. repeated: for each layer its row of the stack of parameters, where several take the same one;
    every row is taken.
    """
    if splits_parameters():
        layer = nn.map_variables(layer, "params", partial(gather_layer, dtype=dtype), init=initializing)
    if (policy := REMAT[remat]) is not None:
        layer = nn.remat(layer, policy=policy, prevent_cse=unroll)
    scanned = nn.scan(
        layer,
        variable_axes={RECORDED: 0} if shared else {RECORDED: 0, "params": 0},
        variable_broadcast="params" if shared else False,
        split_rngs={"params": not shared, "dropout": True},
        in_axes=in_axes,
        length=length,
        unroll=length if unroll else 1,
    )
    if repeated is None:
        return scanned
    rows, firsts = np.asarray(repeated), np.unique(repeated, return_index=True)[1]
    return nn.map_variables(
        scanned, "params", lambda params: jax.tree.map(lambda stack: stack[rows], params),
        lambda params: jax.tree.map(lambda stack: stack[firsts], params), init=initializing,
    )  # fmt: skip
