"""Lay arrays out over devices: which axis of what is split over which axis of the mesh.

    slice    data, over the slow network between slices      data    rows of a batch
    fsdp     rows too; parameters and optimiser state are stored split over it, and gathered where they are used
    tensor   attention heads, feed-forward width and the vocabulary: matrix products are split over it

The compiler lays out whatever is not said here. What is said: where parameters are stored (`stored`), how matrix
products meet them (`used`), and where rows go. Told only where parameters are stored, the compiler moves activations
instead of parameters, a hundred times the bytes; so each use says how it meets them (`gathered` and those beside it).
The mesh reaches them as JAX's own ambient mesh (`jax.set_mesh`); without one they do nothing.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import linear_call
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from bertjax.errors import InputError
from bertjax.rules import Rules, name_of
from bertjax.types import Array, Key, Params

AXES = ("slice", "data", "fsdp", "tensor")
ROWS = ("slice", "data", "fsdp")

COPIES = ("slice", "data")
"""The axes over which each parameter has copies, and its gradient is summed."""

SMALLEST = 2**14
"""Elements of a tensor, of one layer, that is worth splitting: below, a gather costs more than the memory it saves."""

SPLIT_OVER_TENSOR: Rules = (
    (r"(query|key|value|position_key|position_query)/(kernel|bias)$", -2),  # [D, H, K], [H, K]: heads
    (r"position_kernel$", -2),
    (r"attention/output/kernel$", -3),  # [H, K, D]
    (r"feedforward/(widen|gate)/(kernel|bias)$", -1),  # [D, F], [F]
    (r"feedforward/narrow/kernel$", -2),  # [F, D]
    (r"word/table$", -2),  # [V, E]
    (r"(mlm|plm)/(bias|decoder/kernel|decoder/bias)$", -1),  # [V], [D, V]
    (r"(mlm|plm)/decoder$", -2),  # [V, E]
    (r".*", None),
)
"""Which axis is split over `tensor`, counted from the last, so that a stack of layers has the same."""

STACKED = re.compile(r"(^|/)layers/")
"""Parameters with a leading axis of layers, which is never split: a scan takes slices of it."""

TABLES = re.compile(r"(embeddings/(word|position|type)|decoder_positions)/table$")
"""Parameters that are gathered as tables: a word table has two uses, rows looked up and a product with all of it."""

IN_LAYERS = re.compile(r"(^|/)layers?/")
"""Parameters that the layers gather themselves, one layer at a time."""


@dataclass(frozen=True)
class Layout:
    """Say how devices share the work, as sizes of the axes of the mesh; data=0 takes all devices that are left.

    Raises ValueError for a size that is not a number of devices.
    """

    slices: int = 1
    data: int = 0
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        if min(self.slices, self.fsdp, self.tensor) < 1 or self.data < 0:
            raise ValueError(f"a mesh of {self}: every axis has 1 device or more (data=0: all that are left)")

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Read `fsdp:8,tensor:2`. Raises InputError for what is no axis."""
        sizes = {}
        for part in filter(None, text.split(",")):
            name, _, size = part.partition(":")
            if name not in (known := [field.name for field in fields(cls)]) or not size.isdigit() or name in sizes:
                raise InputError(f"mesh={text}: {part!r} is no axis and size such as fsdp:8, of {', '.join(known)}")
            sizes[name] = int(size)
        try:
            return cls(**sizes)
        except ValueError as error:
            raise InputError(f"mesh={text}: {error}") from error

    def __str__(self) -> str:
        return ",".join(f"{field.name}:{getattr(self, field.name)}" for field in fields(self))

    def mesh(self, rows: int, devices: Sequence[Any] | None = None) -> Mesh:
        """Make the mesh of `devices`, all there are by default, for (micro-)batches of `rows`.

        Raises InputError where the sizes do not multiply to the number of devices, or the rows do not divide.
        """
        devices = jax.devices() if devices is None else list(devices)
        rest, left = divmod(len(devices), self.slices * self.fsdp * self.tensor)
        data = self.data or rest
        if left or data != rest:
            raise InputError(f"a mesh of {self} does not fit {len(devices)} devices: its sizes must multiply to that")
        over = self.slices * data * self.fsdp
        if rows % over:
            raise InputError(f"a batch of {rows} rows does not divide over {over} devices: use a multiple of {over}")
        # Plain Linen needs the compiler to choose intermediate layouts; JAX's new default, Explicit, breaks it.
        auto = (AxisType.Auto,) * len(AXES)
        found = {getattr(device, "slice_index", 0) for device in devices}
        if len(found) > 1 and len(found) != self.slices:
            raise InputError(f"mesh=slices:{self.slices}, but the devices are of {len(found)} slices: say slices")

        def grid(**how: bool) -> np.ndarray:
            within = (data, self.fsdp, self.tensor)
            if len(found) > 1:
                return mesh_utils.create_hybrid_device_mesh((1, *within), (self.slices, 1, 1, 1), devices, **how)
            return mesh_utils.create_device_mesh((self.slices, *within), devices, **how)

        try:
            placed = grid()
        except NotImplementedError:  # no axis of the mesh is whole axes of the chips: neighbours as far as it goes
            placed = grid(allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=auto)


ROWS_ALONE = Layout()
"""Split rows over all devices, and keep all of the state on each: pure data parallelism."""


def used(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Say how a matrix product meets a parameter: whole, or split over `tensor`.

    A vocabulary is split also where it does not divide, and padded for it (`products_with_words`). Heads are not.
    """
    axis = next(axis for pattern, axis in SPLIT_OVER_TENSOR if re.search(pattern, name))
    size = mesh.shape["tensor"]
    if axis is None or size == 1 or (shape[axis] % size and not re.search(r"word/table$|(mlm|plm)/", name)):
        return PartitionSpec()
    spec: list[str | None] = [None] * len(shape)
    spec[axis] = "tensor"
    return PartitionSpec(*spec)


def stored(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Say where a parameter is kept between its uses: as it is used, and its largest other axis split over `fsdp`.

    What is small is kept by every device. Of two axes as large the last one is split.
    """
    spec: list[str | None] = [*used(mesh, name, shape), *([None] * len(shape))][: len(shape)]
    wanted = ["fsdp"]
    if "tensor" in spec and shape[spec.index("tensor")] % mesh.shape["tensor"]:
        spec, wanted = [None] * len(shape), ["tensor", "fsdp"]  # arrays at rest must divide
    first = 1 if STACKED.search(name) else 0
    if math.prod(shape[first:]) >= SMALLEST:
        for over in wanted:
            size = mesh.shape[over]
            free = [axis for axis in range(first, len(shape)) if spec[axis] is None and shape[axis] % size == 0]
            if size > 1 and free:
                spec[max(free, key=lambda axis: (shape[axis], axis))] = over
    return PartitionSpec(*spec) if any(spec) else PartitionSpec()


def replicated(mesh: Mesh) -> NamedSharding:
    """Keep a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """Split the leading axis over all axes of the mesh that rows go over."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def stored_shardings(mesh: Mesh, params: Any) -> Any:
    """Say of every parameter in a tree where it is kept; shapes are enough."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, stored(mesh, name_of(path), leaf.shape)), params
    )


def ambient_mesh() -> AbstractMesh | None:
    """Find the mesh that a step is traced for."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.axis_names != AXES else mesh


def _ambient() -> AbstractMesh | None:
    """Find the mesh that a step is traced for, where it splits parameters."""
    mesh = ambient_mesh()
    return None if mesh is None or mesh.shape["fsdp"] * mesh.shape["tensor"] == 1 else mesh


def splits_parameters() -> bool:
    """Tell whether the ambient mesh splits parameters."""
    return _ambient() is not None


def summed_first(x: Array) -> Array:
    """Return x; the gradients of what reads it here are added to each other before those of what reads it elsewhere.

    Where devices split heads, the gradient of each projection is a part of a sum over them. In this order the compiler
    adds the projections' parts and moves one sum, in the order in which JAX adds them by itself, each.
    """
    return x if _devices("tensor") == 1 else _summed_first(x)


@jax.custom_vjp
def _summed_first(x: Array) -> Array:
    return x


_summed_first.defvjp(lambda x: (x, None), lambda _, gradient: (gradient,))


def by_copy(function: Callable[[Params, Any, Key], Any]) -> Callable[[Params, Any, Key], Any]:
    """Run a function (params, batch, rng) beside each copy of the parameters, on the rows of the batch that are there.

    What it returns has to be the same everywhere: `added_up` does that. So sums over several steps move once, where the
    compiler, which sees one whole batch, moves them in each step.
    """
    return _beside_copies(function, PartitionSpec()) if _copies() > 1 else function


def sums_by_copy(function: Callable[[Params, Any, Key], tuple[Any, Any]]) -> Callable[[Params, Any, Key], Any]:
    """Do so with a function that returns sums over rows, and arrays of rows; can be differentiated.

    The sums are added up over all copies, and so is the gradient, once: of a function that uses the parameters in a
    loop the compiler would move each turn's. Within `by_copy` whoever runs that adds up. Not where products are split:
    beside copies the compiler would split states too, and move them again and again.
    """
    if _copies() == 1 or _within_copy() or _devices("tensor") > 1:
        return function

    def beside(params: Params, batch: Any, rng: Key) -> tuple[Any, Any]:
        sums, of_rows = function(params, batch, rng)
        return jax.lax.psum(sums, COPIES), of_rows

    return _beside_copies(beside, (PartitionSpec(), PartitionSpec(COPIES)))


def _copies() -> int:
    return math.prod(map(_devices, COPIES))


def _devices(axis: str) -> int:
    """Say how many devices an axis of the ambient mesh has."""
    mesh = ambient_mesh()
    return 1 if mesh is None else int(mesh.shape[axis])


def _beside_copies(function: Callable[..., Any], results: Any) -> Callable[..., Any]:
    given = PartitionSpec(), PartitionSpec(COPIES), PartitionSpec()
    return jax.shard_map(function, in_specs=given, out_specs=results, axis_names=set(COPIES), check_vma=False)


def added_up(tree: Any) -> Any:
    """Add up over all copies, within `by_copy`; elsewhere nothing is left to add."""
    return jax.lax.psum(tree, COPIES) if _within_copy() else tree


def first_row(rows: int) -> Array | int:
    """Number, in the batch, the first of the `rows` that the code sees: 0, but within `by_copy`."""
    return jax.lax.axis_index(COPIES) * rows if _within_copy() else 0


def _within_copy() -> bool:
    mesh = ambient_mesh()
    return mesh is not None and set(COPIES) <= set(mesh.manual_axes)


def gathered_layer(params: Params, dtype: str) -> Params:
    """Bring the parameters of one layer to where matrix products use them, in `dtype`.

    Their gradients are summed over rows straight to where they are stored. Does nothing, like all that follow, without
    an ambient mesh that splits parameters.
    """
    return _gathered(params, lambda name: True, dtype)


def gathered(params: Params) -> Params:
    """Bring parameters to where they are used, but for those of layers and what is gathered as a table."""
    return _gathered(params, lambda name: not (IN_LAYERS.search(name) or TABLES.search(name)))


def looked_up(table: Array, ids: Array, name: str, dtype: str) -> Array:
    """Look rows of a table of this name up, in `dtype`; the leading axis of `ids` is the batch's.

    The table is gathered over `fsdp`. Every device adds the gradient up for its own rows of the batch, in float32, and
    sends each other one, in `dtype`, its part of the table, which that one adds up in float32. The compiler by itself
    splits the first addition over the width, and for this moves all states; a `psum_scatter` it writes, where devices
    are a grid, as the sum of the whole table on all of them.
    """
    mesh = _ambient()
    if mesh is None:
        return table.at[ids].get(mode="promise_in_bounds").astype(dtype)
    kept = (*stored(mesh, name, table.shape), None, None)[:2]
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
    words, missing = table.shape[0], -table.shape[0] % _devices("tensor")
    if missing:
        table = jax.lax.with_sharding_constraint(jnp.pad(table, ((0, missing), (0, 0))), PartitionSpec("tensor", None))
    return jnp.einsum("...E,VE->...V", x, table)[..., :words]


def gathered_columns(table: Array, name: str) -> Array:
    """Bring a table of this name to where a matrix product uses it."""
    return cast(Array, _gathered({name: table}, lambda name: True)[name])


def _gathered(params: Params, chosen: Callable[[str], bool], dtype: str | None = None) -> Params:
    mesh = _ambient()
    if mesh is None:
        return params

    def gather(path: tuple[Any, ...], leaf: Array) -> Array:
        name = name_of(path)
        kept, wanted = stored(mesh, name, leaf.shape), used(mesh, name, leaf.shape)
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


def held_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Number the rows of a global batch that the devices of this process hold, in order."""
    held = by_row(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held if index is not None]))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh, rows: int) -> dict[str, Array]:
    """Make a global batch of `rows` of what this process holds of it: the rows that `held_rows` numbers."""
    if jax.process_count() == 1:
        return cast(dict[str, Array], jax.device_put(batch, by_row(mesh)))
    held = held_rows(mesh, rows)

    def place(x: np.ndarray) -> Array:
        def of_device(index: Any) -> np.ndarray:
            return x[np.searchsorted(held, np.arange(rows)[index[0]])]

        return jax.make_array_from_callback((rows, *x.shape[1:]), by_row(mesh), of_device)

    return {name: place(x) for name, x in batch.items()}
