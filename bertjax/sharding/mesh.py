"""Arrange devices in a mesh, and place batches on it.

    slice    rows of a batch, over the slow network between slices
    data     rows of a batch
    fsdp     rows too; parameters and optimiser state are stored split over it, and gathered for computation
    tensor   attention heads, feed-forward width and the vocabulary: matrix products are split over it

Code inside a step reads the mesh from JAX's ambient mesh (`jax.set_mesh`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from bertjax.errors import InputError
from bertjax.types import Array
from bertjax.wording import counted

AXES = ("slice", "data", "fsdp", "tensor")

BATCH_AXES = ("slice", "data", "fsdp")
"""The axes that split the rows of a batch."""

REPLICA_AXES = ("slice", "data")
"""The axes over which parameters are replicated, and their gradients reduced."""


@dataclass(frozen=True)
class MeshShape:
    """Sizes of the axes of a mesh; data=0 takes all devices that the other axes leave.

    Raises ValueError for a negative size, and for a size of 0 other than data=0.
    """

    slices: int = 1
    data: int = 0
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        if min(self.slices, self.fsdp, self.tensor) < 1 or self.data < 0:
            raise ValueError(f"a mesh of {self}: every axis needs 1 device or more (data=0: all remaining devices)")

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """Parse `fsdp:8,tensor:2`. Raises InputError for an unknown or repeated axis, and for a size that is wrong."""
        sizes = {}
        for part in filter(None, text.split(",")):
            name, _, size = part.partition(":")
            if name not in (known := [field.name for field in fields(cls)]) or not size.isdecimal() or name in sizes:
                raise InputError(f"mesh={text}: {part!r} is no axis and size such as fsdp:8, of {', '.join(known)}")
            sizes[name] = int(size)
        try:
            return cls(**sizes)
        except ValueError as error:
            raise InputError(f"mesh={text}: {error}") from error

    def __str__(self) -> str:
        return ",".join(f"{field.name}:{getattr(self, field.name)}" for field in fields(self))

    def mesh(self, rows: int, devices: Sequence[Any] | None = None) -> Mesh:
        """Build the mesh of `devices`, by default all of JAX's, for (micro-)batches of `rows`.

        Raises InputError if the sizes do not multiply to the number of devices, or do not divide the rows.
        """
        devices = jax.devices() if devices is None else list(devices)
        rest, left = divmod(len(devices), self.slices * self.fsdp * self.tensor)
        data = self.data or rest
        if left or data != rest:
            raise InputError(
                f"a mesh of {self} does not fit {counted(len(devices), 'devices')}: its sizes must multiply to that"
            )
        shards = self.slices * data * self.fsdp
        if rows % shards:
            raise InputError(
                f"a batch of {counted(rows, 'rows')} does not divide over {shards} devices: use a multiple of {shards}"
            )
        # Plain Linen needs the compiler to choose intermediate layouts; JAX's new default, Explicit, breaks it.
        auto = (AxisType.Auto,) * len(AXES)
        found = {getattr(device, "slice_index", 0) for device in devices}
        if len(found) > 1 and len(found) != self.slices:
            count = len(found)
            raise InputError(f"mesh=slices:{self.slices}, but the devices are of {count} slices: set slices:{count}")

        def grid(**how: bool) -> np.ndarray:
            within = (data, self.fsdp, self.tensor)
            if len(found) > 1:
                return mesh_utils.create_hybrid_device_mesh((1, *within), (self.slices, 1, 1, 1), devices, **how)
            return mesh_utils.create_device_mesh((self.slices, *within), devices, **how)

        try:
            placed = grid()
        except NotImplementedError:  # no axis of the mesh is a product of whole axes of chips
            placed = grid(allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=auto)


DATA_PARALLEL = MeshShape()
"""Rows split over all devices, the state replicated on each."""


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the leading axis over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def ambient_mesh() -> AbstractMesh | None:
    """Return the ambient mesh; None where none is set, or one that is not ours."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.axis_names != AXES else mesh


def splitting_mesh() -> AbstractMesh | None:
    """Return the ambient mesh if it splits parameters, over `fsdp` or `tensor`; else None."""
    mesh = ambient_mesh()
    return None if mesh is None or mesh.shape["fsdp"] * mesh.shape["tensor"] == 1 else mesh


def splits_parameters() -> bool:
    """Return whether the ambient mesh splits parameters."""
    return splitting_mesh() is not None


def axis_size(axis: str) -> int:
    """Return the size of an axis of the ambient mesh; 1 without one."""
    mesh = ambient_mesh()
    return 1 if mesh is None else int(mesh.shape[axis])


def held_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Return the indices of the rows of a global batch that the devices of this process hold, in order."""
    held = by_row(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held if index is not None]))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh, rows: int) -> dict[str, Array]:
    """Assemble a global batch of `rows` from the rows that this process holds: those of `held_rows`."""
    if jax.process_count() == 1:
        return cast(dict[str, Array], jax.device_put(batch, by_row(mesh)))
    held = held_rows(mesh, rows)

    def place(x: np.ndarray) -> Array:
        def of_device(index: Any) -> np.ndarray:
            return x[np.searchsorted(held, np.arange(rows)[index[0]])]

        return jax.make_array_from_callback((rows, *x.shape[1:]), by_row(mesh), of_device)

    return {name: place(x) for name, x in batch.items()}
