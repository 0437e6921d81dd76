"""Move parameters and gradients between devices inside a step.

The compiler lays out whatever is not constrained here. Told only where parameters are stored, it moves activations
instead of parameters, a hundred times the bytes; so each use of a parameter says how it is gathered (`gathered` and
those beside it), and where its gradient is scattered. Without an ambient mesh (`jax.set_mesh`) nothing here acts.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.custom_derivatives import linear_call
from jax.sharding import PartitionSpec

from bertjax.rules import name_of
from bertjax.sharding.mesh import COPIES, ROWS, ambient_mesh, axis_size, splitting_mesh
from bertjax.sharding.placement import IN_LAYERS, TABLES, compute_spec, storage_spec
from bertjax.types import Array, Key, Params


def sum_cotangents_first(x: Array) -> Array:
    """Return x; the gradients of what reads it here are added to each other before those of what reads it elsewhere.

    Where devices split heads, the gradient of each projection is a part of a sum over them. In this order the compiler
    adds the projections' parts and moves one sum, in the order in which JAX adds them by itself, each.
    """
    return x if axis_size("tensor") == 1 else _sum_cotangents_first(x)


@jax.custom_vjp
def _sum_cotangents_first(x: Array) -> Array:
    return x


_sum_cotangents_first.defvjp(lambda x: (x, None), lambda _, gradient: (gradient,))


def per_replica(function: Callable[[Params, Any, Key], Any]) -> Callable[[Params, Any, Key], Any]:
    """Run a function (params, batch, rng) beside each copy of the parameters, on the rows of the batch that are there.

    What it returns has to be the same everywhere: `psum_replicas` does that. So sums over several steps move once,
    where the compiler, which sees one whole batch, moves them in each step.
    """
    return _beside_copies(function, PartitionSpec()) if _copies() > 1 else function


def sums_per_replica(function: Callable[[Params, Any, Key], tuple[Any, Any]]) -> Callable[[Params, Any, Key], Any]:
    """Do so with a function that returns sums over rows, and arrays of rows; can be differentiated.

    The sums are added up over all copies, and so is the gradient, once: of a function that uses the parameters in a
    loop the compiler would move each turn's. Within `per_replica` whoever runs that adds up. Not where products are
    split: beside copies the compiler would split states too, and move them again and again.
    """
    if _copies() == 1 or _within_copy() or axis_size("tensor") > 1:
        return function

    def beside(params: Params, batch: Any, rng: Key) -> tuple[Any, Any]:
        sums, of_rows = function(params, batch, rng)
        return jax.lax.psum(sums, COPIES), of_rows

    return _beside_copies(beside, (PartitionSpec(), PartitionSpec(COPIES)))


def _copies() -> int:
    return math.prod(map(axis_size, COPIES))


def _beside_copies(function: Callable[..., Any], results: Any) -> Callable[..., Any]:
    given = PartitionSpec(), PartitionSpec(COPIES), PartitionSpec()
    return jax.shard_map(function, in_specs=given, out_specs=results, axis_names=set(COPIES), check_vma=False)


def psum_replicas(tree: Any) -> Any:
    """Add up over all copies, within `per_replica`; elsewhere nothing is left to add."""
    return jax.lax.psum(tree, COPIES) if _within_copy() else tree


def first_row(rows: int) -> Array | int:
    """Number, in the batch, the first of the `rows` that the code sees: 0, but within `per_replica`."""
    return jax.lax.axis_index(COPIES) * rows if _within_copy() else 0


def _within_copy() -> bool:
    mesh = ambient_mesh()
    return mesh is not None and set(COPIES) <= set(mesh.manual_axes)


def gather_layer(params: Params, dtype: str) -> Params:
    """Bring the parameters of one layer to where matrix products use them, in `dtype`.

    Their gradients are summed over rows straight to where they are stored. Does nothing, like all that follow, without
    an ambient mesh that splits parameters.
    """
    return _gather(params, lambda name: True, dtype)


def gather_params(params: Params) -> Params:
    """Bring parameters to where they are used, but for those of layers and what is gathered as a table."""
    return _gather(params, lambda name: not (IN_LAYERS.search(name) or TABLES.search(name)))


def sharded_embedding_lookup(table: Array, ids: Array, name: str, dtype: str) -> Array:
    """Look rows of a table of this name up, in `dtype`; the leading axis of `ids` is the batch's.

    The table is gathered over `fsdp`. Every device adds the gradient up for its own rows of the batch, in float32, and
    sends each other one, in `dtype`, its part of the table, which that one adds up in float32. The compiler by itself
    splits the first addition over the width, and for this moves all states; a `psum_scatter` it writes, where devices
    are a grid, as the sum of the whole table on all of them.
    """
    mesh = splitting_mesh()
    if mesh is None:
        return table.at[ids].get(mode="promise_in_bounds").astype(dtype)
    kept = (*storage_spec(mesh, name, table.shape), None, None)[:2]
    over = tuple(axis for axis in ROWS if axis not in mesh.manual_axes)
    summed = tuple(axis for axis in over if mesh.shape[axis] > 1 and axis not in kept)
    held = tuple(
        size // mesh.shape[axis] if axis == "tensor" else size for size, axis in zip(table.shape, kept, strict=True)
    )
    rows = PartitionSpec(over)
    columns = kept[1] == "tensor"
    split = partial(jax.shard_map, axis_names={*over, "tensor"}, check_vma=False)

    def here(ids: Array) -> tuple[Array, Array]:
        """Number the rows that this device has, and say which are its own."""
        if kept[0] != "tensor":
            return ids, jnp.ones_like(ids, bool)
        ids = ids - jax.lax.axis_index("tensor") * held[0]
        return jnp.clip(ids, 0, held[0] - 1), (ids >= 0) & (ids < held[0])

    def of_device(part: Array, ids: Array) -> Array:
        part = part.astype(dtype)
        if "fsdp" in kept:
            part = jax.lax.all_gather(part, "fsdp", axis=kept.index("fsdp"), tiled=True)
        ids, own = here(ids)
        found = jnp.where(own[..., None], part.at[ids].get(mode="promise_in_bounds"), 0)
        if columns:  # left split, the compiler would split all hidden states like this
            return jax.lax.all_gather(found, "tensor", axis=found.ndim - 1, tiled=True)
        return jax.lax.psum(found, "tensor") if kept[0] == "tensor" else found

    def back(ids: Array, gradient: Array) -> Array:
        ids, own = here(ids)
        gradient = _columns(gradient, held[1]) if columns else gradient
        gradient = jnp.where(own[..., None], gradient.astype(table.dtype), 0)
        part = jnp.zeros(held, table.dtype).at[ids].add(gradient, mode="promise_in_bounds")
        if "fsdp" in kept:
            parts = jnp.stack(jnp.split(part.astype(dtype), mesh.shape["fsdp"], axis=kept.index("fsdp")))
            parts = jax.lax.all_to_all(parts, "fsdp", split_axis=0, concat_axis=0, tiled=True)
            part = parts.astype(table.dtype).sum(0)
        return jax.lax.psum(part, summed)

    @jax.custom_vjp
    def look_up(table: Array, ids: Array) -> Array:
        return cast(Array, split(of_device, in_specs=(PartitionSpec(*kept), rows), out_specs=rows)(table, ids))

    look_up.defvjp(
        lambda table, ids: (look_up(table, ids), ids),
        lambda ids, gradient: (
            split(back, in_specs=(rows, rows), out_specs=PartitionSpec(*kept))(ids, gradient),
            None,
        ),
    )
    return look_up(table, ids)


def _columns(x: Array, width: int) -> Array:
    """Take this device's columns of `tensor`."""
    first = jax.lax.axis_index("tensor") * width
    return jax.lax.dynamic_slice_in_dim(x, first, width, axis=x.ndim - 1)


def products_with_words(x: Array, table: Array) -> Array:
    """Multiply x [..., E] by a table [V, E], split by words over `tensor`, also where the words do not divide.

    Then it is padded, and the products with what was added are cut off again. The compiler, which pads too, brings all
    products together to send a gradient back through an uneven table.
    """
    words, missing = table.shape[0], -table.shape[0] % axis_size("tensor")
    if missing:
        table = jax.lax.with_sharding_constraint(jnp.pad(table, ((0, missing), (0, 0))), PartitionSpec("tensor", None))
    return jnp.einsum("...E,VE->...V", x, table)[..., :words]


def gather_table(table: Array, name: str) -> Array:
    """Bring a table of this name to where a matrix product uses it."""
    return cast(Array, _gather({name: table}, lambda name: True)[name])


def _gather(params: Params, chosen: Callable[[str], bool], dtype: str | None = None) -> Params:
    mesh = splitting_mesh()
    if mesh is None:
        return params

    def gather(path: tuple[Any, ...], leaf: Array) -> Array:
        name = name_of(path)
        kept, wanted = storage_spec(mesh, name, leaf.shape), compute_spec(mesh, name, leaf.shape)
        if kept == wanted == PartitionSpec() or not chosen(name):
            return leaf
        return _moved(leaf, kept, wanted, dtype or leaf.dtype)

    return cast(Params, jax.tree_util.tree_map_with_path(gather, params))


def _moved(x: Array, kept: PartitionSpec, wanted: PartitionSpec, dtype: Any) -> Array:
    """Move x in `dtype` from where it is kept to where it is wanted, and its gradient back."""

    def forward(_: tuple[()], x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x.astype(dtype), wanted)

    def backward(_: tuple[()], gradient: Array) -> Array:
        return jax.lax.with_sharding_constraint(gradient, kept).astype(x.dtype)

    return cast(Array, linear_call(forward, backward, (), x))
