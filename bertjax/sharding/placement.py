"""Choose the partition spec of a parameter from its name and shape: how it is stored, and how it is used.

Pure functions: nothing here moves an array.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from bertjax.rules import Rules, name_of

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


def compute_spec(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...]) -> PartitionSpec:
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


def storage_spec(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Say where a parameter is kept between its uses: as it is used, and its largest other axis split over `fsdp`.

    What is small is kept by every device. Of two axes as large the last one is split.
    """
    spec: list[str | None] = [*compute_spec(mesh, name, shape), *([None] * len(shape))][: len(shape)]
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


def storage_shardings(mesh: Mesh, params: Any) -> Any:
    """Say of every parameter in a tree where it is kept; shapes are enough."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, storage_spec(mesh, name_of(path), leaf.shape)), params
    )
