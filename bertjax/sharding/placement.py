"""Choose the partition specs of a parameter by its name and shape: the spec it is stored in, and that of computation.

Pure functions: nothing here moves an array.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from bertjax.rules import STACKED, VOCABULARY, Rules, first_match, name_of

SMALLEST = 2**14
"""Elements of the smallest tensor, of one layer, that is split for storage: a smaller one is not worth a gather."""

SPLIT_OVER_TENSOR: Rules = (
    (r"(query|key|value|position_key|position_query)/(kernel|bias)$", -2),  # [D, H, K], [H, K]: heads
    (r"position_kernel$", -2),
    (r"attention/output/kernel$", -3),  # [H, K, D]
    (r"feedforward/(widen|gate)/(kernel|bias)$", -1),  # [D, F], [F]
    (r"feedforward/narrow/kernel$", -2),  # [F, D]
    (r"word/table$", -2),  # [V, E]
    (r"(^|/)head/[^/]+/(bias|decoder/kernel|decoder/bias)$", -1),  # [V], [D, V]
    (r"(^|/)head/[^/]+/decoder$", -2),  # [V, E]
    (r".*", None),
)
"""The axis that `tensor` splits, counted from the last, so that it is the same in a stack of layers."""

TABLES = re.compile(r"(embeddings/(word|position|type)|decoder_positions)/table$")
"""Parameters that are gathered as tables: a word table has two uses, lookups and a product with all of it."""

IN_LAYERS = re.compile(r"(^|/)layers?/")
"""Parameters that layers gather themselves, one layer at a time."""


def compute_spec(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Return the partition spec of a parameter in matrix products: replicated, or split over `tensor`.

    A vocabulary is split also where it does not divide, and padded for it (`vocabulary_product`); heads are not.
    """
    axis = first_match(SPLIT_OVER_TENSOR, name)
    size = mesh.shape["tensor"]
    if axis is None or size == 1 or (shape[axis] % size and not re.search(rf"word/table$|{VOCABULARY}", name)):
        return PartitionSpec()
    spec: list[str | None] = [None] * len(shape)
    spec[axis] = "tensor"
    return PartitionSpec(*spec)


def storage_spec(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Return the partition spec that a parameter is stored in: as in computation, its largest other axis over `fsdp`.

    Small parameters are stored on every device. Of two axes of the same size the last is split.
    """
    spec: list[str | None] = [*compute_spec(mesh, name, shape), *([None] * len(shape))][: len(shape)]
    splitting = ["fsdp"]
    if "tensor" in spec and shape[spec.index("tensor")] % mesh.shape["tensor"]:
        spec, splitting = [None] * len(shape), ["tensor", "fsdp"]  # storage must divide
    first = 1 if first_match(STACKED, name) else 0  # a scan takes slices of the axis of layers
    if math.prod(shape[first:]) >= SMALLEST:
        for over in splitting:
            size = mesh.shape[over]
            free = [axis for axis in range(first, len(shape)) if spec[axis] is None and shape[axis] % size == 0]
            if size > 1 and free:
                spec[max(free, key=lambda axis: (shape[axis], axis))] = over
    return PartitionSpec(*spec) if any(spec) else PartitionSpec()


def storage_shardings(mesh: Mesh, params: Any) -> Any:
    """Return the shardings that the parameters of a tree are stored in; their shapes suffice."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, storage_spec(mesh, name_of(path), leaf.shape)), params
    )
