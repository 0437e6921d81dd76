"""Arrange devices in a mesh, and lay the rows of batches out over it.

    slice    data, over the slow network between slices      data    rows of a batch
    fsdp     rows too; parameters and optimiser state are stored split over it, and gathered where they are used
    tensor   attention heads, feed-forward width and the vocabulary: matrix products are split over it

The mesh reaches the code of a step as JAX's own ambient mesh (`jax.set_mesh`).
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

AXES = ("slice", "data", "fsdp", "tensor")

ROWS = ("slice", "data", "fsdp")

COPIES = ("slice", "data")
"""The axes over which each parameter has copies, and its gradient is summed."""


@dataclass(frozen=True)
class MeshShape:
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
    def parse(cls, text: str) -> "MeshShape":
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


DATA_PARALLEL = MeshShape()
"""Split rows over all devices, and keep all of the state on each: pure data parallelism."""


def replicated(mesh: Mesh) -> NamedSharding:
    """Keep a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """Split the leading axis over all axes of the mesh that rows go over."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def ambient_mesh() -> AbstractMesh | None:
    """Find the mesh that a step is traced for."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.axis_names != AXES else mesh


def splitting_mesh() -> AbstractMesh | None:
    """Find the mesh that a step is traced for, where it splits parameters."""
    mesh = ambient_mesh()
    return None if mesh is None or mesh.shape["fsdp"] * mesh.shape["tensor"] == 1 else mesh


def splits_parameters() -> bool:
    """Tell whether the ambient mesh splits parameters."""
    return splitting_mesh() is not None


def axis_size(axis: str) -> int:
    """Say how many devices an axis of the ambient mesh has."""
    mesh = ambient_mesh()
    return 1 if mesh is None else int(mesh.shape[axis])


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
