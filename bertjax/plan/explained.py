"""Format the plan for a slice as text and as a picture, with the arithmetic of its estimate."""

from collections.abc import Iterator, Mapping
from typing import Any

from bertjax.errors import InputError
from bertjax.machine.topology import Slice
from bertjax.plan.picture import memory_picture
from bertjax.wording import counted

CAVEAT = (
    "An estimate from the compiler's cycles and the vendor's peaks, not a measurement: a chip is slower. It has no "
    "latency of collectives, no contention for memory, and nothing of the host."
)


def explained(planned: Mapping[str, Any], on: Slice) -> list[str]:
    """Format a plan of `plan_on` as lines."""
    chip = on.chip
    lines = [
        f"parameters       {planned['params']:,}, {planned['trained']:,} of them trained",
        f"slice            {planned['topology']}, mesh {planned['mesh']}: {counted(planned['devices'], 'devices')} of "
        f"{chip.tflops / chip.devices:,.1f} bfloat16 TFLOP/s, {chip.available:g} GiB of HBM at "
        f"{chip.hbm_rate / chip.devices:,.0f} GB/s",
    ]
    if planned["flags"]:
        lines.append("flags            " + ", ".join(f"{name}={value}" for name, value in planned["flags"].items()))
    for name, place in planned["split"].items():
        lines.append(f"  {name} {place['shape']}: stored: {place['stored']}; in computation: {place['used']}")
    for phase in planned["phases"]:
        lines += [
            "",
            f"{counted(phase['steps'], 'steps')} of {counted(phase['batch_size'], 'rows')} of {phase['length']}",
        ]
        lines += [f"  {line}" for line in _of_phase(phase, on)]
    return [*lines, "", CAVEAT]


def _of_phase(phase: Mapping[str, Any], on: Slice) -> Iterator[str]:
    memory = phase["bytes_per_device"]
    yield f"rows             {_rows(phase)} a device, in each micro-batch"
    yield "memory           " + _memory(memory)
    if not phase["fits"]:
        yield f"DOES NOT FIT     {phase['refused']}"
        yield "                 use smaller micro-batches (phases.0.accumulate), remat=dots or full, or --search"
        return
    left = (memory["capacity"] - memory["peak"]) / 2**30
    yield f"fits             {left:.2f} GiB free"
    yield (
        f"FLOPs per token  {phase['flops_per_token']:.4e} of the model, {phase['compiled_flops_per_token']:.4e} "
        f"compiled: ratio {phase['flops_ratio']:.3f}"
    )
    for kind, found in phase["collectives"].items():
        yield f"{kind:<16} {found['count']:,.0f} per step, {found['bytes'] / 1e6:,.1f} MB"
    if not phase["collectives"]:
        yield "collectives      none"
    yield f"compiled in      {phase['compile_seconds']} s"
    yield from _arithmetic(phase["estimate"], on)
    yield (
        f"estimate         {1e3 * phase['estimated_step_seconds']:.2f} ms per step, "
        f"{phase['estimated_tokens_per_second']:,.0f} tokens/s, {phase['estimated_utilisation']:.1%} of "
        f"{phase['estimate']['peak_tflops']:g} TFLOP/s per device"
    )


def _memory(memory: Mapping[str, float | None]) -> str:
    sizes = {name: "unknown" if size is None else f"{size / 2**30:.2f}" for name, size in memory.items()}
    parts = " + ".join(f"{sizes[name]} {name}" for name in ("params", "optimizer", "batch", "activations"))
    return f"{parts} = {sizes['peak']} of {sizes['capacity']} GiB (activations include gradients and 16-bit copies)"


def _arithmetic(found: Mapping[str, Any], on: Slice) -> Iterator[str]:
    part = {name: f"{1e3 * seconds:.2f} ms" for name, seconds in found["of_which"].items()}
    clock = f"{found['clock_ghz']:.3f} GHz"
    yield f"cycles           {found['cycles']:.4e} of fusions, loops × rounds / {clock} = {part['cycles']}"
    kinds = ", ".join(
        f"{one['count']:,.0f} {kind} {1e3 * one['seconds']:.2f}" for kind, one in sorted(found["modelled"].items())
    )
    yield f"modelled         operations without cycles, in ms: {kinds or 'none'} = {part['modelled']}"
    yield f"HBM              {found['hbm_bytes']:.4e} B / {found['hbm_gb_per_second']:,.0f} GB/s = {part['traffic']}"
    yield f"matrix products  {found['flops']:.4e} FLOPs / {found['peak_tflops']:g} TFLOP/s = {part['products']}"
    yield (
        f"collectives      over links of {found['link_gb_per_second']:,.0f} GB/s per chip: {part['waited']} exposed, "
        f"{part['hidden']} overlapped with computation"
    )
    if "kernel without an estimate" in found["modelled"]:
        yield "kernels          without a cost estimate: counted by the bytes that they move, so too low"
    for loop in dict.fromkeys(found["unknown_loops"]):
        yield f"counted once     the loop {loop}, whose trip count depends on data"
    yield "step             max(cycles + modelled, HBM, matrix products, overlapped collectives) + exposed collectives"


def searched(found: Mapping[str, Any], on: Slice) -> list[str]:
    """Format the result of `search` as lines."""
    lines = [f"largest batches of {on} for rows of {found['length']}"]
    for one in found["found"]:
        lines.append(
            f"  remat={one['remat']:<5} {_rows(one)} a device (batch_size={one['batch_size']}), "
            f"{one['bytes_per_device']['peak'] / 2**30:.2f} GiB, FLOPs × {one['flops_ratio']:.2f}, "
            f"estimate {one['estimated_tokens_per_second']:,.0f} tokens/s, {one['estimated_utilisation']:.1%}"
        )
    if not found["found"]:
        return [*lines, "  none: not even the fewest rows fit; split parameters over more devices (mesh=fsdp:N)"]
    lines.append(f"highest throughput: remat={found['best']['remat']}")
    cheapest = found["cheapest"]
    lines.append(
        f"least rematerialisation with the rows of the experiment: remat={cheapest['remat']}"
        if cheapest
        else "the rows of the experiment do not fit: use smaller micro-batches (phases.0.accumulate)"
    )
    return [*lines, "", CAVEAT]


def _rows(one: Mapping[str, Any]) -> str:
    rows = one["rows_per_device"]
    return counted(int(rows), "rows") if rows == int(rows) else f"{rows:g} rows"


def pictured(planned: Mapping[str, Any], on: Slice) -> str:
    """Draw the memory of a device, for each phase of a plan or each remat policy of a search."""
    if "found" in planned:
        if not planned["found"]:
            raise InputError("--picture: no remat policy fits, so there is nothing to draw")
        named = [(f"remat={one['remat']}, {_rows(one)} a device", one) for one in planned["found"]]
    else:
        named = [(f"{_rows(one)} of {one['length']} a device", one) for one in planned["phases"]]
    return memory_picture([(name, one["bytes_per_device"]) for name, one in named], f"Memory of a device of {on}")
