"""Look up embeddings in a table that is sharded over devices.

The table is gathered over `fsdp`. In the backward pass every device sums the gradient of its own rows of the batch, in
float32; each part of the table is then sent to its device in the compute dtype (`all_to_all`), and summed there in
float32. By itself XLA splits the first sum over the width, which moves all hidden states; it compiles `psum_scatter`,
where devices form a grid, to an all-reduce of the whole table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from bertjax.sharding.mesh import BATCH_AXES, splitting_mesh
from bertjax.sharding.placement import storage_spec
from bertjax.types import Array


def sharded_embedding_lookup(table: Array, ids: Array, name: str, dtype: str) -> Array:
    """Return the embeddings of `ids` [B, ...] in the table [V, E] of this name, cast to `dtype`: [B, ..., E]."""
    mesh = splitting_mesh()
    if mesh is None:
        return table.at[ids].get(mode="promise_in_bounds").astype(dtype)
    return _look_up(_split_table(mesh, name, table, dtype), table, ids)


@dataclass(frozen=True)
class _SplitTable:
    """The sharding of one table on a mesh: the static argument of its lookup.

    `stored` has the axis of the mesh that splits each axis of the table; `part` is the shape of a device's part once it
    is gathered over `fsdp`. `reduced` are the axes over which the gradient of a part is summed.
    """

    mesh: AbstractMesh
    stored: tuple[str | None, str | None]
    part: tuple[int, int]
    batch: tuple[str, ...]
    reduced: tuple[str, ...]
    storage_dtype: Any
    dtype: str

    @property
    def table_spec(self) -> PartitionSpec:
        return PartitionSpec(*self.stored)

    @property
    def batch_spec(self) -> PartitionSpec:
        return PartitionSpec(self.batch)

    def map_devices(self, function: Callable[..., Array], in_specs: Any, out_specs: Any) -> Callable[..., Array]:
        axes = {*self.batch, "tensor"}
        mapped = jax.shard_map(
            partial(function, self), in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False
        )
        return cast(Callable[..., Array], mapped)


def _split_table(mesh: AbstractMesh, name: str, table: Array, dtype: str) -> _SplitTable:
    stored = (*storage_spec(mesh, name, table.shape), None, None)[:2]
    batch = tuple(axis for axis in BATCH_AXES if axis not in mesh.manual_axes)
    rows, width = (
        size // mesh.shape[axis] if axis == "tensor" else size for size, axis in zip(table.shape, stored, strict=True)
    )
    reduced = tuple(axis for axis in batch if mesh.shape[axis] > 1 and axis not in stored)
    return _SplitTable(mesh, stored, (rows, width), batch, reduced, table.dtype, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(split: _SplitTable, table: Array, ids: Array) -> Array:
    return split.map_devices(_device_lookup, (split.table_spec, split.batch_spec), split.batch_spec)(table, ids)


def _look_up_forward(split: _SplitTable, table: Array, ids: Array) -> tuple[Array, Array]:
    return _look_up(split, table, ids), ids


def _look_up_backward(split: _SplitTable, ids: Array, gradient: Array) -> tuple[Array, None]:
    specs = split.batch_spec, split.batch_spec
    return split.map_devices(_device_gradient, specs, split.table_spec)(ids, gradient), None


_look_up.defvjp(_look_up_forward, _look_up_backward)


def _device_lookup(split: _SplitTable, part: Array, ids: Array) -> Array:
    """Look the device's ids up in its part, and combine the parts that `tensor` splits."""
    part = part.astype(split.dtype)
    if "fsdp" in split.stored:
        part = jax.lax.all_gather(part, "fsdp", axis=split.stored.index("fsdp"), tiled=True)
    ids, own = _own_rows(split, ids)
    found = jnp.where(own[..., None], part.at[ids].get(mode="promise_in_bounds"), 0)
    if split.stored[1] == "tensor":  # left split, the compiler would split all hidden states in the same way
        return cast(Array, jax.lax.all_gather(found, "tensor", axis=found.ndim - 1, tiled=True))
    return jax.lax.psum(found, "tensor") if split.stored[0] == "tensor" else found


def _device_gradient(split: _SplitTable, ids: Array, gradient: Array) -> Array:
    """Sum the gradient of the looked-up embeddings into the device's stored part of the table."""
    ids, own = _own_rows(split, ids)
    gradient = _own_columns(gradient, split.part[1]) if split.stored[1] == "tensor" else gradient
    gradient = jnp.where(own[..., None], gradient.astype(split.storage_dtype), 0)
    part = jnp.zeros(split.part, split.storage_dtype).at[ids].add(gradient, mode="promise_in_bounds")
    if "fsdp" in split.stored:
        parts = jnp.split(part.astype(split.dtype), split.mesh.shape["fsdp"], axis=split.stored.index("fsdp"))
        received = jax.lax.all_to_all(jnp.stack(parts), "fsdp", split_axis=0, concat_axis=0, tiled=True)
        part = received.astype(split.storage_dtype).sum(0)
    return cast(Array, jax.lax.psum(part, split.reduced))


def _own_rows(split: _SplitTable, ids: Array) -> tuple[Array, Array]:
    """Return ids as row numbers of the device's part, clipped to it, and whether each is in the part."""
    if split.stored[0] != "tensor":
        return ids, jnp.ones_like(ids, bool)
    rows = split.part[0]
    ids = ids - jax.lax.axis_index("tensor") * rows
    return jnp.clip(ids, 0, rows - 1), (ids >= 0) & (ids < rows)


def _own_columns(x: Array, width: int) -> Array:
    """Slice the device's columns of a last axis that `tensor` splits."""
    first = jax.lax.axis_index("tensor") * width
    return jax.lax.dynamic_slice_in_dim(x, first, width, axis=x.ndim - 1)
