"""Count the work of a compiled program: collectives, matrix products, lookups, bytes to and from HBM.

Of the operands of a fusion, those that it slices are read in part, and those that it updates in place not at all.
Arrays in on-chip memory cause no traffic. XLA:TPU writes batches of matrix products as dilated convolutions, most of
whose window positions fall on holes.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bertjax.plan.hlo import Computation, Op, Program, Shape, Step, called, parameter, root, shapes, source


class Collective(NamedTuple):
    """A collective: its kind, the bytes of the whole array, the devices of one group, and how often it runs.

    bytes: the input of an all-reduce, all-to-all or reduce-scatter, the output of an all-gather.
    hidden: it overlaps with computation. Between slices, over the network, the group is unknown: empty.
    """

    kind: str
    bytes: float
    group: tuple[int, ...]
    times: float
    hidden: bool
    source: str


class Product(NamedTuple):
    """A matrix product or a convolution: its FLOPs, the dtypes of its two inputs, and how often it runs."""

    flops: float
    dtypes: tuple[str, str]
    times: float
    source: str


class Lookup(NamedTuple):
    """A gather or a scatter: the slices that it moves one by one, the elements of each, and how often it runs."""

    kind: str
    slices: int
    elements: int
    times: float
    source: str


COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

BETWEEN = " between slices"
"""The suffix of the kind of a collective over the network."""

# Operations without work of their own: bookkeeping, ends of asynchronous operations, calls of other computations.
FREE = frozenset({
    "send", "send-done", "recv", "recv-done",
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "add-dependency", "copy-done", "slice-done", "async-done",
    "async-update", *(f"{kind}-done" for kind in COLLECTIVES),
})  # fmt: skip
FREE_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "GatherScatterIndicesBitpacked")


_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = ("dynamic-update-slice", "scatter")


def collectives(program: Program) -> tuple[Collective, ...]:
    """Find all collectives.

    One that overlaps with a fusion is written three times, where it starts, in the fusion, and where it is done, and
    counted once. A reduce-scatter is written as an all-reduce of which each device slices its part. Between slices the
    hosts communicate: the program sends to its own host and receives from it.
    """
    found = []
    for step in program.schedule:
        for op, scope, times, within in program.inside(step):
            between = re.search(r'_xla_megascale_transfer_type="(\w+)"', op.attributes)
            if op.opcode == "send" and between:
                kind = between[1].lower().replace("_", "-") + BETWEEN
                sent = shapes(scope[op.operands[0]].shape)[0].bytes
                found.append(Collective(kind, sent, (), times, False, source(op)))
                continue
            kind = op.opcode.removesuffix("-start")
            beside = "chain_id=" in op.attributes
            if kind not in COLLECTIVES or (beside and not _starts(scope)):
                continue
            size = _input_bytes(op, scope)
            if within is not None and called(within, "calls").startswith("all-reduce-scatter"):
                kind, size = "reduce-scatter", _input_bytes(step.op, step.scope)
            group = _group(op.attributes)
            size *= len(group) if kind == "all-gather" else 1
            hidden = beside or op.opcode.endswith("-start") or (within is not None and within.opcode == "async-start")
            found.append(Collective(kind, size, group, times, hidden, source(op)))
    return tuple(found)


def _starts(scope: Computation) -> bool:
    return any(call_target(op) == "AsyncCollectiveStart" for op in scope.values())


def _input_bytes(op: Op, scope: Computation) -> float:
    return sum(shape.bytes for name in op.operands for shape in shapes(scope[name].shape))


def products(program: Program) -> tuple[Product, ...]:
    """Find all matrix products and convolutions outside of kernels."""
    return tuple(found for step in program.schedule for found in products_of(program, step))


def products_of(program: Program, step: Step) -> Iterator[Product]:
    """Find the matrix products of a step."""
    for op, scope, times, _ in program.inside(step):
        if op.opcode in ("dot", "convolution"):
            left, right = (shapes(scope[name].shape)[0] for name in op.operands)
            flops = _dot_flops(op, left) if op.opcode == "dot" else _convolution_flops(op, left, right)
            yield Product(flops, (left.dtype, right.dtype), times, source(op))


def lookups(program: Program) -> tuple[Lookup, ...]:
    """Find all gathers and scatters."""
    return tuple(found for step in program.schedule for found in lookups_of(program, step))


def lookups_of(program: Program, step: Step) -> Iterator[Lookup]:
    """Find the gathers and scatters of a step."""
    for op, scope, times, _ in program.inside(step):
        if op.opcode == "gather":
            slices, one = shapes(op.shape)[0].elements, math.prod(_numbers(op, "slice_sizes"))
        elif op.opcode == "scatter":
            updates = shapes(scope[op.operands[-1]].shape)[0]
            slices = updates.elements
            one = math.prod(updates.sizes[axis] for axis in _numbers(op, "update_window_dims"))
        else:
            continue
        yield Lookup(op.opcode, slices // max(one, 1), one, times, source(op))


def _numbers(op: Op, attribute: str) -> list[int]:
    """Read a list of numbers; empty if the attribute is missing."""
    found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", op.attributes)
    return [int(number) for number in found[1].split(",") if number] if found else []


def traffic(program: Program, step: Step) -> float:
    """Count the bytes that one run of a step reads from HBM and writes to it."""
    op, scope, *_ = step
    if op.opcode in FREE or is_free_call(op):
        return 0.0
    if op.opcode.endswith("-start"):  # (operands, results, context): the layout of each has its memory space
        moved = shapes(op.shape)
        smallest = min((shape.bytes for shape in moved[:2]), default=0.0)
        return smallest * sum(shape.in_hbm for shape in moved[:2])
    inner = program.computations[called(op, "calls")] if op.opcode == "fusion" else None
    read = sum(_operand_bytes(program, step, inner, number) for number in range(len(op.operands)))
    return read + (_written(op, scope) if inner is None else _written_by_fusion(op, inner))


def _operand_bytes(program: Program, step: Step, inner: Computation | None, number: int) -> float:
    """Count the bytes of an operand that a step reads from HBM. inner: the computation of a fusion."""
    op, scope, *_ = step
    whole = sum(shape.bytes for shape in shapes(scope[op.operands[number]].shape) if shape.in_hbm)
    if whole and inner is not None:
        return min(whole, _read(program, inner, parameter(inner, number)))
    if whole and op.opcode in _SLICES and number == 0:
        return min(whole, sum(shape.bytes for shape in shapes(op.shape)))
    return 0.0 if op.opcode in _UPDATES and number == 0 else whole


def _read(program: Program, scope: Computation, op: Op | None) -> float:
    """Count the bytes of an op that other ops of its fused computation read."""
    if op is None:
        return 0.0
    read = 0.0
    for user in scope.values():
        if op.name not in user.operands:
            continue
        if user.opcode in _SLICES and user.operands[0] == op.name:
            read += sum(shape.bytes for shape in shapes(user.shape))
        elif user.opcode in _UPDATES and user.operands[0] == op.name:
            continue
        elif user.opcode == "bitcast":
            read += _read(program, scope, user)
        elif user.opcode == "fusion":
            inner = program.computations[called(user, "calls")]
            read += _read(program, inner, parameter(inner, user.operands.index(op.name)))
        else:
            return math.inf
    return read


def _written(op: Op, scope: Computation) -> float:
    if op.opcode in _UPDATES:
        return sum(shape.bytes for shape in shapes(scope[op.operands[-1 if op.opcode == "scatter" else 1]].shape))
    return sum(shape.bytes for shape in shapes(op.shape) if shape.in_hbm)


def _written_by_fusion(op: Op, inner: Computation) -> float:
    last = root(inner)
    roots = [inner[name] for name in last.operands] if last.opcode == "tuple" else [last]
    written = 0.0
    for result, part in zip(shapes(op.shape), roots, strict=False):
        while part.opcode == "bitcast" and part.operands:
            part = inner[part.operands[0]]
        if result.in_hbm and part.opcode == "dynamic-update-slice":
            written += min(result.bytes, sum(shape.bytes for shape in shapes(inner[part.operands[1]].shape)))
        elif result.in_hbm:
            written += result.bytes
    return written


def is_free_call(op: Op) -> bool:
    """Return whether an op is a custom call that the compiler removes."""
    return op.opcode == "custom-call" and call_target(op) in FREE_CALLS


def call_target(op: Op) -> str:
    """Return the target of a custom call; "" for other ops."""
    found = re.search(r'custom_call_target="([^"]*)"', op.attributes)
    return found[1] if found else ""


def _group(attributes: str) -> tuple[int, ...]:
    """Return the devices of the first group of a collective, in any of the three notations for groups."""
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]*)\](.*?)\))?\s*\{([^}]*)\}", attributes
    )
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", named[1])}
        devices = _counted(named[2] or str(math.prod(sizes.values())), named[3] or "").reshape(tuple(sizes.values()))
        within = re.findall(r"'([^']*)'", named[4])
        group = devices[tuple(slice(None) if name in within else 0 for name in sizes)]
        return tuple(int(device) for device in group.ravel())
    counted = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]*)\](T\([\d,]*\))?", attributes)
    if counted:
        devices = _counted(counted[3], counted[4] or "").reshape(int(counted[1]), int(counted[2]))
        return tuple(int(device) for device in devices[0])
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}", attributes)
    return tuple(int(device) for device in listed[1].split(",") if device) if listed else (0,)


def _counted(sizes: str, order: str) -> np.ndarray:
    """Number the cells of a grid of `sizes`, with its axes transposed by `order`, such as `T(1,0)`."""
    shape = [int(size) for size in sizes.split(",")]
    grid = np.arange(math.prod(shape)).reshape(shape)
    axes = [int(axis) for axis in re.findall(r"\d+", order)]
    return grid.transpose(axes) if axes else grid


def _dot_flops(op: Op, left: Shape) -> float:
    contracted = math.prod(left.sizes[axis] for axis in _numbers(op, "lhs_contracting_dims"))
    return 2.0 * shapes(op.shape)[0].elements * contracted


def _convolution_flops(op: Op, left: Shape, right: Shape) -> float:
    """Count products with an element of the input: XLA:TPU writes batches as dilation and padding of a convolution."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes)
    if not labels:
        raise ValueError(f"{op.name}: a convolution without dim_labels")
    result = shapes(op.shape)[0]
    size = dict(zip(labels[3], result.sizes, strict=True))
    window = re.search(r"window=\{([^}]*)\}", op.attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    flops = 2.0 * size["b"] * size["f"] * right.sizes[labels[2].index("i")]
    spatial = sorted(set(labels[1]) - set("bf"))
    for number, axis in enumerate(spatial):

        def field(name: str, default: str, number: int = number) -> str:
            return fields[name].split("x")[number] if name in fields else default

        low = int(field("pad", "0_0").split("_")[0])
        stride, hole, apart = (int(field(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
        place = np.arange(size[axis])[:, None] * stride + np.arange(right.sizes[labels[2].index(axis)]) * apart - low
        end = (left.sizes[labels[1].index(axis)] - 1) * hole
        flops *= np.count_nonzero((place >= 0) & (place <= end) & (place % hole == 0))
    batches = re.search(r"batch_group_count=(\d+)", op.attributes)
    return float(flops) / (int(batches[1]) if batches else 1)
