"""Pallas kernels, each equal to a plain form.

Attention on TPU: the plain form writes every array over pairs of positions to HBM and reads it again, several times
forward and backward. The kernel keeps those of one row and head in VMEM, recomputes them in the backward pass, and
draws dropout in place: the same bits as the plain form, since those depend on an element's index alone. It reads and
writes states in the layout of matrix products, [B, L, H·K], with all 128 lanes of a register in use: where a head is
narrower, several share a register, and the lanes of the others are set to 0 before a product.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from bertjax.models.layers import Drop, attend
from bertjax.random import finalise, key_words
from bertjax.sharding.collectives import first_row
from bertjax.sharding.mesh import AXES, BATCH_AXES, ambient_mesh
from bertjax.types import Array

LANES = 128
"""The width of a vector register, and of a matrix unit."""

LONGEST = 512
"""Longest row whose arrays over pairs fit into VMEM, several at a time."""

AT_ONCE = LONGEST**2
"""Pairs of positions in one step of the grid: short rows are grouped, so that the overhead of a step does not count."""

OLDER = ("TPU v2", "TPU v3")
"""Device kinds that the kernel does not support."""

HIDDEN = -1e9
"""The score of a masked pair: finite, so that no sum becomes NaN."""


def fused_attend(q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, mask_BL: Array, drop: Drop) -> Array:
    """Attend within documents: by the kernel on TPU, by `layers.attend` elsewhere.

    Also by `layers.attend` where rows are longer than 512 or no multiple of 128, where heads do not fill registers, and
    on v2 and v3, which have no product with a right-hand side in bfloat16.
    """
    if not fits(*q_BLHK.shape[1:]) or _device_kind() in OLDER:
        return attend(q_BLHK, k_BLHK, v_BLHK, mask_BL, drop)
    return jax.lax.platform_dependent(
        q_BLHK, k_BLHK, v_BLHK, mask_BL, tpu=partial(on_devices, drop=drop), default=partial(attend, drop=drop)
    )


def _device_kind() -> str:
    """Return the kind of device that is compiled for, which need not be attached."""
    mesh = ambient_mesh()
    device = mesh.abstract_device if mesh is not None else None
    return str((device or jax.devices()[0]).device_kind)


def fits(L: int, H: int, K: int) -> bool:
    """Return whether the kernel supports rows of length L with H heads of width K."""
    return L <= LONGEST and L % LANES == 0 and (K % LANES == 0 or LANES % K == 0) and H * K % LANES == 0


def on_devices(
    q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, mask_BL: Array, drop: Drop, *, interpret: bool = False
) -> Array:
    """Run the kernel on each device for its rows and heads, since the partitioner cannot split a kernel.

    interpret: run it on any platform, slowly.
    """
    B, L, H, K = q_BLHK.shape
    word_0, word_1 = jnp.zeros(2, jnp.uint32) if drop.rng is None else key_words(drop.rng)
    rows_B = finalise(jnp.arange(B, dtype=jnp.uint32) + (word_0 + jnp.uint32(first_row(B))))
    heads_H = jnp.arange(H, dtype=jnp.uint32)
    inputs = q_BLHK, k_BLHK, v_BLHK, mask_BL, rows_B, heads_H, word_1
    mesh = ambient_mesh()
    of_device = partial(_of_device, _Run(K, drop.rate, interpret))
    if mesh is None or mesh.size == 1:
        return of_device(*inputs)
    left = set(AXES) - set(mesh.manual_axes)  # within `per_replica` some are taken apart already
    over = tuple(axis for axis in BATCH_AXES if axis in left)
    heads = "tensor" if H % mesh.shape["tensor"] == 0 and fits(L, H // mesh.shape["tensor"], K) else None
    each = PartitionSpec(over, None, heads, None)
    specs = each, each, each, PartitionSpec(over, None), PartitionSpec(over), PartitionSpec(heads), PartitionSpec()
    return jax.shard_map(of_device, in_specs=specs, out_specs=each, axis_names=left, check_vma=False)(*inputs)


def _of_device(
    run: "_Run", q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, mask_BL: Array, rows_B: Array, heads_H: Array, word: Array
) -> Array:
    B, L, H, K = q_BLHK.shape
    flat = (x.reshape(B, L, H * K) for x in (q_BLHK, k_BLHK, v_BLHK))
    return _attend(run, *flat, mask_BL[:, None], rows_B, jnp.stack([word, heads_H[0]])).reshape(B, L, H, K)


class _Run(NamedTuple):
    K: int
    rate: float
    interpret: bool

    def __call__(self, body: Callable[..., None], results: int, products: int, rows_B: Array, words: Array,
                 mask_B1L: Array, *states_BLD: Array) -> list[Array]:  # fmt: skip
        """Run `body` over a grid of (groups of heads that share a register, blocks of rows)."""
        B, L, D = states_BLD[0].shape
        rows = next(rows for rows in range(AT_ONCE // L**2, 0, -1) if B % rows == 0)
        width = max(self.K, LANES)
        states = pl.BlockSpec((rows, L, width), lambda group, block, *_: (block, 0, group))
        mask = pl.BlockSpec((rows, 1, L), lambda group, block, *_: (block, 0, 0))
        pairs = B * D // self.K * L * L
        run = pl.pallas_call(
            partial(body, K=self.K, rate=self.rate),
            out_shape=[jax.ShapeDtypeStruct((B, L, D), states_BLD[0].dtype)] * results,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(D // width, B // rows),
                in_specs=[mask, *[states] * len(states_BLD)],
                out_specs=[states] * results,
                scratch_shapes=[pltpu.VMEM((width // self.K, L, L), jnp.uint32)],
            ),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * pairs * self.K,
                transcendentals=pairs,
                bytes_accessed=(len(states_BLD) + results) * states_BLD[0].nbytes,
            ),
            interpret=self.interpret,
        )
        return cast(list[Array], run(rows_B, words, mask_B1L, *states_BLD))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(run: _Run, q_BLD: Array, k_BLD: Array, v_BLD: Array, mask_B1L: Array, rows_B: Array, words: Array) -> Array:
    return run(_forward, 1, 2, rows_B, words, mask_B1L, q_BLD, k_BLD, v_BLD)[0]


def _attend_forward(run: _Run, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _attend(run, *inputs), inputs


def _attend_backward(run: _Run, inputs: tuple[Array, ...], mixed_BLD: Array) -> tuple[Array | None, ...]:
    q_BLD, k_BLD, v_BLD, mask_B1L, rows_B, words = inputs
    return *run(_backward, 3, 5, rows_B, words, mask_B1L, q_BLD, k_BLD, v_BLD, mixed_BLD), None, None, None


_attend.defvjp(_attend_forward, _attend_backward)

# In the bodies W is the width of a register, or of a head where that is more. Pairs are [M, L], keys first: a reduction
# over keys then adds whole registers, and the values of a query stay in its lane.


def _forward(
    rows_B: Any, words: Any, mask_R1L: Any, q_RLW: Any, k_RLW: Any, v_RLW: Any, mixed_RLW: Any, drawn_GML: Any,
    *, K: int, rate: float,
) -> None:  # fmt: skip
    R, _, W = q_RLW.shape
    _draw_pairs(drawn_GML, words, rate)
    for r in range(R):
        bias_ML, v_WL = _bias(mask_R1L[r]), v_RLW[r].T
        q_LW = q_RLW[r].astype(jnp.float32) * K**-0.5
        mixed = []
        for h in range(W // K):
            p_ML, sums_1L = _exponentials(k_RLW[r], _of_head(q_LW, h, K).astype(k_RLW.dtype), bias_ML)
            if rate:
                p_ML = jnp.where(_kept(drawn_GML[h], _row(rows_B, R, r), rate), p_ML, 0)
            mixed.append(_product(v_WL[h * K : (h + 1) * K], p_ML.astype(v_WL.dtype)) / ((1 - rate) * sums_1L))
        mixed_RLW[r] = jnp.concatenate(mixed).T.astype(mixed_RLW.dtype)


def _backward(
    rows_B: Any, words: Any, mask_R1L: Any, q_RLW: Any, k_RLW: Any, v_RLW: Any, mixed_RLW: Any,
    dq_RLW: Any, dk_RLW: Any, dv_RLW: Any, drawn_GML: Any, *, K: int, rate: float,
) -> None:  # fmt: skip
    R, _, W = q_RLW.shape
    _draw_pairs(drawn_GML, words, rate)
    for r in range(R):
        bias_ML, k_WL = _bias(mask_R1L[r]), k_RLW[r].T
        q_LW = q_RLW[r].astype(jnp.float32) * K**-0.5
        mixed_LW = mixed_RLW[r].astype(jnp.float32) / (1 - rate)
        dq, dk_LW, dv_LW = [], jnp.zeros_like(q_LW), jnp.zeros_like(q_LW)
        for h in range(W // K):
            qh_LW, mh_LW = (_of_head(x, h, K).astype(k_RLW.dtype) for x in (q_LW, mixed_LW))
            p_ML, sums_1L = _exponentials(k_RLW[r], qh_LW, bias_ML)
            p_ML = kept_ML = p_ML / sums_1L
            if rate:  # a product, since the compiler (libtpu 0.0.42) cannot choose between values of a product's input
                kept_ML = p_ML * jnp.where(_kept(drawn_GML[h], _row(rows_B, R, r), rate), 1.0, 0.0)
            dp_ML = kept_ML * _product(v_RLW[r], mh_LW, transposed=True)
            ds_ML = (dp_ML - p_ML * dp_ML.sum(0, keepdims=True)).astype(k_RLW.dtype)
            dv_LW += _product(kept_ML.astype(k_RLW.dtype), mh_LW)
            dk_LW += _product(ds_ML, qh_LW)
            dq.append(_product(k_WL[h * K : (h + 1) * K], ds_ML))
        dq_RLW[r] = (jnp.concatenate(dq) * K**-0.5).T.astype(dq_RLW.dtype)
        dk_RLW[r] = dk_LW.astype(dk_RLW.dtype)
        dv_RLW[r] = dv_LW.astype(dv_RLW.dtype)


def _product(a: Array, b: Array, transposed: bool = False) -> Array:
    axes = (((1,), (1 if transposed else 0,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _exponentials(k_LW: Array, q_LW: Array, bias_ML: Array) -> tuple[Array, Array]:
    scores_ML = _product(k_LW, q_LW, transposed=True) + bias_ML
    p_ML = jnp.exp(scores_ML - scores_ML.max(0, keepdims=True))
    return p_ML, p_ML.sum(0, keepdims=True)


def _bias(mask_1L: Array) -> Array:
    mask_M1 = jnp.broadcast_to(mask_1L, (LANES, mask_1L.shape[1])).T[:, :1]
    return jnp.where(mask_M1 == mask_1L, 0.0, HIDDEN)


def _of_head(x_LW: Array, h: int, K: int) -> Array:
    """Set the lanes of other heads to 0: a product of half the width would take a matrix unit as long."""
    lane = jax.lax.broadcasted_iota(jnp.int32, x_LW.shape, 1)
    return jnp.where((lane >= h * K) & (lane < (h + 1) * K), x_LW, 0)


def _draw_pairs(drawn_GML: Any, words: Any, rate: float) -> None:
    """Compute the part of `hash_bits` that does not depend on the row, once for all rows."""
    G, M, L = drawn_GML.shape

    first_head = words[1] + jnp.uint32(pl.program_id(0) * G)

    def draw() -> None:
        key, query = (jax.lax.broadcasted_iota(jnp.uint32, (M, L), axis) for axis in (0, 1))
        for h in range(G):
            drawn_GML[h] = finalise((((first_head + h) * L + query) * M + key) ^ words[0])

    if rate:
        pl.when(pl.program_id(1) == 0)(draw)


def _kept(drawn_ML: Array, row: Array, rate: float) -> Array:
    return finalise(drawn_ML ^ row) >= jnp.uint32(int(rate * 2**32))


def _row(rows_B: Any, R: int, r: int) -> Array:
    return cast(Array, rows_B[pl.program_id(1) * R + r])
