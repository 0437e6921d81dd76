"""Attend by kernels written for one platform, each beside the plain form that it must equal.

Splash attention (jax.experimental.pallas.ops.tpu.splash_attention) keeps no array over pairs of positions: it reads
queries, keys and values block by block, and computes the probabilities again for the backward pass. It cannot drop
probabilities, so an encoder that uses it has no attention dropout: see benchmarks/README.md for what both cost.
"""

from functools import partial

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from bertjax.layers import Drop, attend
from bertjax.sharding import AXES, ROWS, ambient_mesh
from bertjax.types import Array

SHORTEST = 512
"""Positions from which the kernel is worth its overhead: in rows of 128 the plain form is quicker."""

BLOCKS = (512, 384, 256, 128)
"""How many positions a block has: the most that divides a row."""


def splash(q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, mask_BL: Array, dropout: Drop) -> Array:
    """Attend within documents, as `layers.attend` without dropout: on TPU by the kernel, elsewhere by that.

    So are rows shorter than 512, and those that are no multiple of 128 long, which the kernel does not take.
    """
    plain = partial(attend, dropout=dropout)
    if q_BLHK.shape[1] < SHORTEST or q_BLHK.shape[1] % 128:
        return plain(q_BLHK, k_BLHK, v_BLHK, mask_BL)
    return jax.lax.platform_dependent(q_BLHK, k_BLHK, v_BLHK, mask_BL, tpu=on_devices, default=plain)


def on_devices(q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, mask_BL: Array) -> Array:
    """Run the kernel on each device for its rows and heads: the compiler cannot split a kernel."""
    mesh = ambient_mesh()
    if mesh is None or mesh.size == 1:
        return of_device(q_BLHK, k_BLHK, v_BLHK, mask_BL)
    heads = None if q_BLHK.shape[2] % mesh.shape["tensor"] else "tensor"
    left = set(AXES) - set(mesh.manual_axes)  # within `by_copy` some are taken apart already
    over = tuple(axis for axis in ROWS if axis in left)
    each, rows = PartitionSpec(over, None, heads, None), PartitionSpec(over, None)
    specs = (each, each, each, rows)
    run = jax.shard_map(of_device, in_specs=specs, out_specs=each, axis_names=left, check_vma=False)
    return run(q_BLHK, k_BLHK, v_BLHK, mask_BL)


def of_device(q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, mask_BL: Array, *, interpret: bool = False) -> Array:
    """Run the kernel on rows as they are; `interpret` runs it anywhere, slowly."""
    L, H, K = q_BLHK.shape[1:]
    block = next(size for size in BLOCKS if L % size == 0)
    # Positions, not the 64 elements of a head, in the 128 lanes of a register: half of them would be empty.
    sizes = kernel.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, use_fused_bwd_kernel=True,
        q_layout=kernel.QKVLayout.SEQ_MINOR, k_layout=kernel.QKVLayout.SEQ_MINOR, v_layout=kernel.QKVLayout.SEQ_MINOR,
    )  # fmt: skip
    full = masks.MultiHeadMask([masks.FullMask((L, L))] * H)
    run = kernel.make_splash_mha(full, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)

    def row(q_LHK: Array, k_LHK: Array, v_LHK: Array, mask_L: Array) -> Array:
        heads_first = (x.swapaxes(0, 1) for x in (q_LHK * K**-0.5, k_LHK, v_LHK))
        return run(*heads_first, segment_ids=kernel.SegmentIds(mask_L, mask_L)).swapaxes(0, 1)

    return jax.vmap(row)(q_BLHK, k_BLHK, v_BLHK, mask_BL)
