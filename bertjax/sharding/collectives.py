"""Move parameters and gradients between devices inside a step.

XLA chooses the sharding of whatever is not constrained here. Given only how parameters are stored, it moves activations
instead of parameters, a hundred times the bytes; so each use of a parameter states how it is gathered (`gather_params`,
`gather_layer`, `gather_table`, lookup.py), and where its gradient is scattered. Without an ambient mesh
(`jax.set_mesh`) nothing here has an effect.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.custom_derivatives import linear_call
from jax.sharding import PartitionSpec

from bertjax.rules import name_of
from bertjax.sharding.mesh import REPLICA_AXES, ambient_mesh, axis_size, splitting_mesh
from bertjax.sharding.placement import IN_LAYERS, TABLES, compute_spec, storage_spec
from bertjax.types import Array, Key, Params


def gather_params(params: Params) -> Params:
    """Gather parameters to their compute specs, except those of layers and those that are gathered as tables.

    Their gradients are reduced over rows straight to the storage specs. Returns `params` itself, like all functions
    below, without an ambient mesh that splits parameters.
    """
    return _gather(params, lambda name: not (IN_LAYERS.search(name) or TABLES.search(name)))


def gather_layer(params: Params, dtype: str) -> Params:
    """Gather the parameters of one layer to their compute specs, cast to `dtype` first."""
    return _gather(params, lambda name: True, dtype)


def gather_table(table: Array, name: str) -> Array:
    """Gather the table of this name for a matrix product."""
    return cast(Array, _gather({name: table}, lambda name: True)[name])


def _gather(params: Params, chosen: Callable[[str], bool], dtype: str | None = None) -> Params:
    mesh = splitting_mesh()
    if mesh is None:
        return params

    def gather(path: tuple[Any, ...], leaf: Array) -> Array:
        name = name_of(path)
        storage, compute = storage_spec(mesh, name, leaf.shape), compute_spec(mesh, name, leaf.shape)
        if storage == compute == PartitionSpec() or not chosen(name):
            return leaf
        return _resharded(leaf, storage, compute, dtype or leaf.dtype)

    return cast(Params, jax.tree_util.tree_map_with_path(gather, params))


def _resharded(x: Array, storage: PartitionSpec, compute: PartitionSpec, dtype: Any) -> Array:
    """Cast x to `dtype` and move it from its storage to its compute spec; its gradient moves back in that dtype."""

    def forward(_: tuple[()], x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x.astype(dtype), compute)

    def backward(_: tuple[()], gradient: Array) -> Array:
        return jax.lax.with_sharding_constraint(gradient, storage).astype(x.dtype)

    return cast(Array, linear_call(forward, backward, (), x))


def vocabulary_product(x: Array, table: Array) -> Array:
    """Multiply x [..., E] by a table [V, E] whose words are split over `tensor`: [..., V].

    Where V does not divide, the table is padded, and the products with the padding are dropped. The compiler, which
    pads too, gathers all products to send a gradient back through an uneven table.
    """
    words, missing = table.shape[0], -table.shape[0] % axis_size("tensor")
    if missing:
        table = jax.lax.with_sharding_constraint(jnp.pad(table, ((0, missing), (0, 0))), PartitionSpec("tensor", None))
    return jnp.einsum("...E,VE->...V", x, table)[..., :words]


def sum_cotangents_first(x: Array) -> Array:
    """Identity whose consumers' cotangents are summed first, so that one all-reduce suffices.

    Where `tensor` splits heads, the cotangent of each projection is a partial sum. In this order the compiler adds the
    projections' parts and reduces their sum over devices; in the order in which JAX adds them by itself, each part.
    """
    return x if axis_size("tensor") == 1 else _sum_cotangents_first(x)


@jax.custom_vjp
def _sum_cotangents_first(x: Array) -> Array:
    return x


_sum_cotangents_first.defvjp(lambda x: (x, None), lambda _, gradient: (gradient,))


def per_replica(function: Callable[[Params, Any, Key], Any]) -> Callable[[Params, Any, Key], Any]:
    """Run a function (params, batch, rng) once per replica of the parameters, on the replica's rows of the batch.

    Its results must be the same on all replicas: sum them with `psum_replicas`. So sums over several steps are reduced
    over devices once, where the compiler, given one whole batch, reduces them in each step.
    """
    return _map_replicas(function, PartitionSpec()) if _replicas() > 1 else function


def sums_per_replica(function: Callable[[Params, Any, Key], tuple[Any, Any]]) -> Callable[[Params, Any, Key], Any]:
    """Run a function that returns (sums over rows, arrays of rows) once per replica; it can be differentiated.

    The sums are reduced over replicas, and so is the gradient, once: for a function that uses the parameters in a loop
    the compiler would reduce the gradient of each iteration. Within `per_replica` its caller reduces. Not where
    `tensor` splits products: per replica the compiler would split states too, and move them again and again.
    """
    if _replicas() == 1 or _within_replica() or axis_size("tensor") > 1:
        return function

    def reduced(params: Params, batch: Any, rng: Key) -> tuple[Any, Any]:
        sums, rows = function(params, batch, rng)
        return jax.lax.psum(sums, REPLICA_AXES), rows

    return _map_replicas(reduced, (PartitionSpec(), PartitionSpec(REPLICA_AXES)))


def psum_replicas(tree: Any) -> Any:
    """Sum over replicas within `per_replica`; elsewhere return `tree`, which is summed already."""
    return jax.lax.psum(tree, REPLICA_AXES) if _within_replica() else tree


def first_row(rows: int) -> Array | int:
    """Return the index in the global batch of the first of the `rows` visible here: 0 except within `per_replica`."""
    return jax.lax.axis_index(REPLICA_AXES) * rows if _within_replica() else 0


def all_rows(rows: int) -> int:
    """Return the number of rows of the global batch, of which `rows` are visible here: all but within `per_replica`."""
    return rows * _replicas() if _within_replica() else rows


def replica_groups(rows: int) -> int:
    """Return into how many equal groups the `rows` visible here are split by replicas, 1 where they do not divide.

    For a choice among the rows of a group, which then moves nothing between replicas.
    """
    replicas = 1 if _within_replica() else _replicas()
    return replicas if rows % replicas == 0 else 1


def _replicas() -> int:
    return math.prod(map(axis_size, REPLICA_AXES))


def _map_replicas(function: Callable[..., Any], out_specs: Any) -> Callable[..., Any]:
    specs = PartitionSpec(), PartitionSpec(REPLICA_AXES), PartitionSpec()
    return jax.shard_map(function, in_specs=specs, out_specs=out_specs, axis_names=set(REPLICA_AXES), check_vma=False)


def _within_replica() -> bool:
    mesh = ambient_mesh()
    return mesh is not None and set(REPLICA_AXES) <= set(mesh.manual_axes)
