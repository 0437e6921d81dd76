"""Estimate how long a compiled step takes on a slice, from what the program says of itself. No hardware is asked.

    step = max(scheduled, traffic, products, hidden) + waited

    scheduled   the compiler's cycles of each fusion, as often as it runs, and a model of what it gives none for
    traffic     bytes to and from HBM over its rate          products  FLOPs over the peak
    hidden      collectives that run beside other work       waited    those that everything waits for

The compiler's cycles know no waiting for HBM that others use, no latency of collectives and nothing of the host, so a
chip is slower. Two programs whose estimates are near each other are not ranked by them.
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

# Bundles of final schedules, counted on v3 and v5e, where the compiler estimates nothing: for one slice of a gather or
# scatter, for 1024 words drawn, for 1024 keys sorted (rows of 512; on v3 twice as many).
PER_SLICE, PER_1024_BITS, PER_1024_SORTED = 15, 5.5, 305

# The same of a kernel, by what it says that it does: a sum of these two gives what the schedules of attention's kernel
# have on v5e, 1,592 thousand bundles forward and back for 16 heads of 16 rows of 512, 674 thousand for 64 rows of 128.
PER_1024_EXPONENTIALS, PER_1024_BYTES = 9.34, 2.04

_SAID = re.compile(r'"(flops|transcendentals|bytes_accessed)":"?(\d+)')


def estimate(program: Program, on: Slice, slices: int = 1) -> dict[str, Any]:
    """Estimate the seconds of one run of a program on one of `slices` slices, with every number that enters."""
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
    computed += sum(_said(step).get("flops", 0) * step.times for step in program.schedule)
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


def _said(step: Step) -> dict[str, int]:
    """Read what a kernel says that it does; empty of all else."""
    if call_target(step.op) != "tpu_custom_call":
        return {}
    return {name: int(number) for name, number in _SAID.findall(step.op.attributes)}


def moved_by_kind(program: Program) -> dict[str, dict[str, float]]:
    """Count the collectives of one run by kind, and the bytes of the arrays that they move."""
    found: dict[str, dict[str, float]] = {}
    for one in collectives(program):
        counted = found.setdefault(one.kind, {"count": 0.0, "bytes": 0.0})
        counted["count"] += one.times
        counted["bytes"] += one.bytes * one.times
    return dict(sorted(found.items()))


def _modelled(program: Program, step: Step, on: Slice) -> tuple[str, float]:
    """Name the kind of a step that has no estimate but does work, and the fewest cycles that it takes; else ""."""
    op = step.op
    if cycles(op) or op.opcode in FREE or is_free_call(op) or op.opcode.removesuffix("-start") in COLLECTIVES:
        return "", 0.0
    if op.opcode.endswith("-start"):  # copies beside other work: traffic, no time of their own
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
        said = _said(step)
        if "flops" not in said:
            return "kernel without an estimate", 0.0
        bundles = PER_1024_EXPONENTIALS * said["transcendentals"] + PER_1024_BYTES * said["bytes_accessed"]
        return "kernel", max(said["flops"] / on.chip.cycle, bundles / 1024)
    flops = sum(product.flops for product in products_of(program, step))
    return ("others", flops / on.chip.cycle) if flops or elements >= 1024 else ("", 0.0)


def _collective_seconds(program: Program, on: Slice, slices: int, *, hidden: bool) -> float:
    return sum(one.times * _seconds(one, on, slices) for one in collectives(program) if one.hidden is hidden)


def _seconds(one: Collective, on: Slice, slices: int) -> float:
    """Divide what a chip must send by what its links carry; between slices, by its share of the network."""
    if one.kind.endswith(BETWEEN):
        parts, rate = slices, on.chip.dcn_rate * 1e9 / on.chip.devices
    else:
        parts, rate = len(one.group), on.link_rate(len(one.group))
    turns = 2.0 if one.kind.startswith("all-reduce") else 1.0
    whole = one.kind == "collective-permute"
    return turns * one.bytes * (1.0 if whole else (parts - 1) / parts) / rate
