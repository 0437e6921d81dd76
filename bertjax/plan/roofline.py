"""Estimate the time of a compiled step on a slice from the program alone, without hardware.

    step = max(scheduled, traffic, products, hidden) + waited

    scheduled   the compiler's cycles of each fusion, as often as it runs, and a model of operations without cycles
    traffic     bytes to and from HBM over its bandwidth          products  FLOPs over the peak
    hidden      collectives that overlap with computation         waited    those that do not

The compiler's cycles contain no contention for HBM, no latency of collectives and nothing of the host, so a chip is
slower. Estimates that are close do not rank two programs.
"""

import re
from collections import defaultdict
from typing import Any

from bertjax.machine.topology import Slice
from bertjax.plan.costs import (
    BETWEEN,
    COLLECTIVES,
    FREE,
    Collective,
    call_target,
    collectives,
    is_free_call,
    lookups_of,
    products,
    products_of,
    traffic,
)
from bertjax.plan.hlo import Program, Step, cycles, shapes

# VLIW bundles of final schedules, counted on v3 and v5e, of operations that the compiler gives no estimate of: of one
# slice of a gather or scatter, of 1024 random words, of 1024 sorted keys (rows of 512; on v3 twice as many).
PER_SLICE, PER_1024_BITS, PER_1024_SORTED = 15, 5.5, 305

# The same of a kernel, by its cost estimate: the sum of these two gives the bundles in the schedules of the attention
# kernel on v5e, 1,592 thousand forward and backward for 16 heads of 16 rows of 512, 674 thousand for 64 rows of 128.
PER_1024_EXPONENTIALS, PER_1024_BYTES = 9.34, 2.04

_COSTS = re.compile(r'"(flops|transcendentals|bytes_accessed)":"?(\d+)')


def estimate(program: Program, on: Slice, slices: int = 1) -> dict[str, Any]:
    """Estimate the seconds of one run of a program on one of `slices` slices, with every number that enters it."""
    chip = on.chip
    peak, hbm_rate = (rate / chip.devices for rate in (chip.tflops * 1e12, chip.hbm_rate * 1e9))
    counted = sum(cycles(step.op) * step.times for step in program.schedule)
    modelled: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0, "seconds": 0.0})
    for step in program.schedule:
        kind, least = _modelled(program, step, on)
        if kind:
            seconds = max(least / chip.clock, traffic(program, step) / hbm_rate)
            modelled[kind]["count"] += step.times
            modelled[kind]["seconds"] += seconds * step.times
    computed = sum(product.flops * product.times for product in products(program))
    computed += sum(_kernel_costs(step).get("flops", 0) * step.times for step in program.schedule)
    moved = sum(traffic(program, step) * step.times for step in program.schedule)
    of_which = {
        "cycles": counted / chip.clock,
        "modelled": sum(found["seconds"] for found in modelled.values()),
        "traffic": moved / hbm_rate,
        "products": computed / peak,
        "hidden": _collective_seconds(program, on, slices, hidden=True),
        "waited": _collective_seconds(program, on, slices, hidden=False),
    }
    scheduled = of_which["cycles"] + of_which["modelled"]
    beside = max(scheduled, *(of_which[name] for name in ("traffic", "products", "hidden")))
    return {
        "seconds": beside + of_which["waited"],
        "of_which": of_which,
        "cycles": counted,
        "clock_ghz": chip.clock / 1e9,
        "flops": computed,
        "peak_tflops": peak / 1e12,
        "hbm_bytes": moved,
        "hbm_gb_per_second": hbm_rate / 1e9,
        "link_gb_per_second": on.link_rate(on.devices) / 1e9,
        "modelled": dict(modelled),
        "unknown_loops": list(program.unknown_loops),
    }


def _kernel_costs(step: Step) -> dict[str, int]:
    """Return the cost estimate of a kernel; empty for other operations and for kernels without one."""
    if call_target(step.op) != "tpu_custom_call":
        return {}
    return {name: int(number) for name, number in _COSTS.findall(step.op.attributes)}


def moved_by_kind(program: Program) -> dict[str, dict[str, float]]:
    """Return the count of the collectives of one run by kind, and the bytes of the arrays that they move."""
    found: dict[str, dict[str, float]] = {}
    for one in collectives(program):
        counted = found.setdefault(one.kind, {"count": 0.0, "bytes": 0.0})
        counted["count"] += one.times
        counted["bytes"] += one.bytes * one.times
    return dict(sorted(found.items()))


def _modelled(program: Program, step: Step, on: Slice) -> tuple[str, float]:
    """Return the kind of a step that works but has no estimate, and the fewest cycles of it; "" for other steps."""
    op = step.op
    if cycles(op) or op.opcode in FREE or is_free_call(op) or op.opcode.removesuffix("-start") in COLLECTIVES:
        return "", 0.0
    if op.opcode.endswith("-start"):  # asynchronous copies: traffic, no time of their own
        return "", 0.0
    elements = sum(shape.elements for shape in shapes(op.shape))
    lookups = list(lookups_of(program, step))
    if lookups:
        return lookups[0].kind, float(PER_SLICE * sum(found.slices for found in lookups))
    if op.opcode == "rng-bit-generator":
        return op.opcode, PER_1024_BITS * elements / 1024
    if op.opcode == "sort":
        return op.opcode, PER_1024_SORTED * elements / 1024
    if call_target(op) == "tpu_custom_call":
        return _modelled_kernel(_kernel_costs(step), on)
    flops = sum(product.flops for product in products_of(program, step))
    return ("others", flops / on.chip.cycle) if flops or elements >= 1024 else ("", 0.0)


def _modelled_kernel(costs: dict[str, int], on: Slice) -> tuple[str, float]:
    if "flops" not in costs:
        return "kernel without an estimate", 0.0
    bundles = PER_1024_EXPONENTIALS * costs["transcendentals"] + PER_1024_BYTES * costs["bytes_accessed"]
    return "kernel", max(costs["flops"] / on.chip.cycle, bundles / 1024)


def _collective_seconds(program: Program, on: Slice, slices: int, *, hidden: bool) -> float:
    return sum(one.times * _seconds(one, on, slices) for one in collectives(program) if one.hidden is hidden)


def _seconds(one: Collective, on: Slice, slices: int) -> float:
    """Divide the bytes that a chip must send by the rate of its links; between slices, by its share of the network."""
    if one.kind.endswith(BETWEEN):
        parts, rate = slices, on.chip.dcn_rate * 1e9 / on.chip.devices
    else:
        parts, rate = len(one.group), on.link_rate(len(one.group))
    turns = 2.0 if one.kind.startswith("all-reduce") else 1.0
    whole = one.kind == "collective-permute"
    return turns * one.bytes * (1.0 if whole else (parts - 1) / parts) / rate
