"""Lay arrays out over devices: rows of a batch over the mesh axis `data`, everything else on every device."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bertjax.errors import InputError


def data_mesh(rows: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh of devices, all local ones by default, for batches of `rows`.

    Raises InputError where the rows do not divide.
    """
    devices = jax.local_devices() if devices is None else devices
    size = len(devices)
    if rows % size:
        raise InputError(f"a batch of {rows} rows does not divide over {size} devices: use a multiple of {size}")
    # Plain Linen needs the compiler to choose intermediate layouts; JAX's new default, Explicit, breaks it.
    return jax.make_mesh((size,), ("data",), devices=devices, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Keep a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_rows(mesh: Mesh) -> NamedSharding:
    """Split the leading axis over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Put a host batch on the devices, rows split."""
    return jax.device_put(batch, over_rows(mesh))
