"""Compare the replicas of a state on its devices, which must be equal bit by bit: they are trained on equal gradients.

A bit that flips in the memory or the arithmetic of one device is not seen in the loss, which is a mean over all of
them; from then on its replica differs. Each device hashes what it holds of every array, where it is, and the hashes of
equal parts are compared.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bertjax.errors import ReplicasDiffer
from bertjax.random import hash_bits
from bertjax.rules import name_of
from bertjax.types import Array


def check_replicas(tree: Any) -> None:
    """Raise ReplicasDiffer, on all processes, where copies of a part of an array differ between devices of its mesh."""
    arrays = _placed(tree)
    mesh, described = _described(arrays)
    if mesh is None:
        return
    with _COMPILING:
        program = _program(mesh, described)
    hashes_DN = np.asarray(program(arrays))
    specs = [(each.name, each.spec) for each in described]
    for number, (name, spec) in enumerate(specs):
        odd = _odd_devices(mesh, spec, hashes_DN[:, number])
        if odd:
            raise ReplicasDiffer(
                f"the replicas of {name} differ: that of {', '.join(odd)} is not as the others. Its memory or "
                "arithmetic is at fault, and this state is not saved: run the same command again, without that device"
            )


def prepare_check(tree: Any) -> None:
    """Compile what `check_replicas` runs, on a thread: a run that is preempted has seconds for its first save."""
    mesh, described = _described(_placed(tree))
    if mesh is not None:
        thread = threading.Thread(target=_compile, args=(mesh, described), name="compile the check of replicas")
        thread.start()


def _compile(mesh: Mesh, described: "tuple[_Array, ...]") -> None:
    with _COMPILING, suppress(Exception):  # the save that needs it raises it
        _program(mesh, described)


def check_repeatable(compute: Callable[[], Array], step: int) -> None:
    """Raise ReplicasDiffer, on all processes, where a computation does not give the same array twice, bit by bit."""
    first, second = (np.asarray(compute()).tobytes() for _ in range(2))
    if first != second:
        raise ReplicasDiffer(
            f"the gradient of step {step} was computed twice, with two results: the arithmetic or memory of a device "
            "is at fault (or an operation is not deterministic, as some of GPUs are: run.recompute_every=0)"
        )


def hashes_of(tree: Any) -> Array:
    """Return a hash of each array: u32 [arrays]; to be traced into a program."""
    return jnp.stack([_hash(leaf) for leaf in jax.tree.leaves(tree)])


class _Array(NamedTuple):
    """Name, shape, dtype and place of an array."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    spec: PartitionSpec


def _placed(tree: Any) -> dict[str, Array]:
    found = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {
        name: leaf
        for name, leaf in found.items()
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
    }


def _described(arrays: dict[str, Array]) -> tuple[Mesh | None, tuple[_Array, ...]]:
    """Return the mesh of arrays, and these in the order of their hashes; no mesh on one device, without replicas."""
    places: dict[str, Any] = {name: leaf.sharding for name, leaf in arrays.items()}
    meshes = {place.mesh for place in places.values() if isinstance(place.mesh, Mesh) and place.mesh.size > 1}
    if len(meshes) != 1:
        return None, ()
    described = (_Array(name, leaf.shape, leaf.dtype, places[name].spec) for name, leaf in sorted(arrays.items()))
    return meshes.pop(), tuple(described)


_COMPILING = threading.Lock()
"""Held while the program below is compiled, so that whoever needs it waits for it."""


@lru_cache(maxsize=16)
def _program(mesh: Mesh, arrays: tuple[_Array, ...]) -> Any:
    """Return a compiled function {name: array} -> u32 [devices, arrays]: the hash of what each device holds."""

    def hashes(leaves: dict[str, Array]) -> Array:
        return jnp.stack([_hash(leaves[each.name]) for each in arrays])[None]

    specs = {each.name: each.spec for each in arrays}
    everywhere = jax.shard_map(
        hashes, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec(mesh.axis_names), check_vma=False
    )
    like = {
        each.name: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=NamedSharding(mesh, each.spec))
        for each in arrays
    }
    return jax.jit(everywhere, out_shardings=NamedSharding(mesh, PartitionSpec())).lower(like).compile()


@jax.jit  # so that arrays of one shape are traced once: a run that is preempted saves for the first time then
def _hash(x: Array) -> Array:
    """Hash an array: any single changed element changes the sum, since each hash is a bijection of its bits."""
    x = jnp.atleast_1d(x)
    bits = x if jnp.issubdtype(x.dtype, jnp.integer) else x.view(f"u{x.dtype.itemsize}")
    return hash_bits(jax.random.key(0), x.shape, bits.astype(jnp.uint32)).sum(dtype=jnp.uint32)


def _odd_devices(mesh: Mesh, spec: PartitionSpec, hashes_D: np.ndarray) -> list[str]:
    """Return the devices whose hash is not that of most devices with the same part; of two all that differ."""
    split = {axis for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis is not None}
    places = [number for number, axis in enumerate(mesh.axis_names) if axis in split]
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, index in enumerate(np.ndindex(mesh.devices.shape)):
        groups[tuple(index[place] for place in places)].append(number)
    odd = []
    for members in groups.values():
        (usual, count), *_ = Counter(hashes_D[members].tolist()).most_common(1)
        if count < len(members):
            majority = count > len(members) / 2
            odd += [number for number in members if not majority or hashes_D[number] != usual]
    devices = mesh.devices.flat
    return [f"device {devices[number].id} of process {devices[number].process_index}" for number in odd]
