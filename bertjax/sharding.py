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
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from bertjax.errors import InputError
from bertjax.rules import Rules, name_of
from bertjax.types import Array, Params

AXES = ("slice", "data", "fsdp", "tensor")
ROWS = ("slice", "data", "fsdp")

GATHERED = "gathered"
"""The checkpoint name of parameters that were gathered: a policy that kept them would keep the whole model."""

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
        return cls(**sizes)

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
        if self.slices > 1 and len(found) > 1:
            if len(found) != self.slices:
                raise InputError(f"mesh=slices:{self.slices}, but the devices are of {len(found)} slices")
            shape = (1, data, self.fsdp, self.tensor)
            grid = mesh_utils.create_hybrid_device_mesh(shape, (self.slices, 1, 1, 1), devices)
            return Mesh(grid, AXES, axis_types=auto)
        return jax.make_mesh((self.slices, data, self.fsdp, self.tensor), AXES, devices=devices, axis_types=auto)


ROWS_ALONE = Layout()
"""Split rows over all devices, and keep all of the state on each: pure data parallelism."""


def used(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Say how a matrix product meets a parameter: whole, or split over `tensor`.

    A vocabulary is split also where it does not divide: the compiler pads it. Heads are not.
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


def gathered_layer(params: Params, dtype: str) -> Params:
    """Bring the parameters of one layer to where matrix products use them, in `dtype`.

    Their gradients are summed over rows straight to where they are stored. Does nothing, like all that follow, without
    an ambient mesh that splits parameters.
    """
    return _gathered(params, lambda name: True, lambda leaf, *specs: _to_products(leaf.astype(dtype), *specs))


def gathered(params: Params) -> Params:
    """Bring parameters to where they are used, but for those of layers and what is gathered as a table."""
    return _gathered(params, lambda name: not (IN_LAYERS.search(name) or TABLES.search(name)), _to_products)


def gathered_rows(table: Array, name: str) -> Array:
    """Bring a table of this name to where its rows are looked up.

    The gradient is first added up on every device for its own rows of the batch, then summed to where it is stored:
    the compiler by itself splits that addition over the width, and for this moves all states.
    """
    return cast(Array, _gathered({name: table}, lambda name: True, _to_lookups)[name])


def gathered_columns(table: Array, name: str) -> Array:
    """Bring a table of this name to where a matrix product uses it."""
    return cast(Array, _gathered({name: table}, lambda name: True, _to_products)[name])


def _gathered(params: Params, chosen: Callable[[str], bool], move: Callable[..., Array]) -> Params:
    mesh = _ambient()
    if mesh is None:
        return params

    def gather(path: tuple[Any, ...], leaf: Array) -> Array:
        name = name_of(path)
        kept, wanted = stored(mesh, name, leaf.shape), used(mesh, name, leaf.shape)
        if kept == wanted == PartitionSpec() or not chosen(name):
            return leaf
        return move(leaf, kept, wanted)

    return cast(Params, jax.tree_util.tree_map_with_path(gather, params))


def _mover(back: Callable[[Array, PartitionSpec, PartitionSpec], Array]) -> Callable[..., Array]:
    """Make a function (x, kept, wanted) that moves x forward, and its gradient `back`."""

    @partial(jax.custom_vjp, nondiff_argnums=(1, 2))
    def move(x: Array, kept: PartitionSpec, wanted: PartitionSpec) -> Array:
        return checkpoint_name(jax.lax.with_sharding_constraint(x, wanted), GATHERED)

    def forward(x: Array, kept: PartitionSpec, wanted: PartitionSpec) -> tuple[Array, None]:
        return move(x, kept, wanted), None

    move.defvjp(forward, lambda kept, wanted, _, gradient: (back(gradient, kept, wanted),))
    return move


_to_products = _mover(lambda gradient, kept, wanted: jax.lax.with_sharding_constraint(gradient, kept))
_to_lookups = _mover(
    lambda gradient, kept, wanted: jax.lax.with_sharding_constraint(
        jax.lax.with_sharding_constraint(gradient, wanted), kept
    )
)


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
