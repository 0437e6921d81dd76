"""Plan a run without running it: count parameters and FLOPs, compile the real step for a slice, check that it fits.

The compiled step is the one that `fit` runs (`train.sharded_step`), for devices that need not exist here. Memory and
collectives are the compiler's; the time is an estimate (`roofline.py`).
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from bertjax.config import Experiment, Phase
from bertjax.flops import abstract_params, model_flops, row_shapes
from bertjax.machine.compile_seconds import remember, roughly, usual
from bertjax.machine.topology import Slice, slice_devices
from bertjax.machine.xla_flags import SLICES_FLAGS, TPU_FLAGS
from bertjax.models.layers import REMAT
from bertjax.plan.hlo import Program
from bertjax.plan.roofline import estimate, moved_by_kind
from bertjax.rules import name_of, partition
from bertjax.run.state import state_shapes
from bertjax.sharding.mesh import BATCH_AXES, by_row, replicated
from bertjax.sharding.placement import compute_spec, storage_spec
from bertjax.train import sharded_step
from bertjax.wording import counted

Say = Callable[[str], None]

OF_A_PHASE = (
    "rows_per_device", "bytes_per_device", "fits", "collectives", "flops_ratio", "estimated_step_seconds",
    "estimated_utilisation",
)  # fmt: skip
"""The results that `plan_on` returns for each phase, and at the top level for the phase that needs most memory."""


def plan(experiment: Experiment) -> dict[str, Any]:
    """Count parameters, in all and by group, and the model FLOPs per token of a training step, for each phase.

    `trained` counts parameters that are not frozen; `flops_per_token` is that of the first phase.
    """
    phases, trained = [], experiment.optimizer.trained
    for phase in experiment.phases:
        shapes = row_shapes(phase.rows, phase.batch_size)
        tokens = phase.batch_size * phase.rows.length
        phases.append(
            {
                "steps": phase.steps,
                "batch_size": phase.batch_size,
                "length": phase.rows.length,
                "tokens": phase.steps * tokens,
                "flops_per_token": model_flops(experiment.objective, shapes, trained) / tokens,
            }
        )
    params = abstract_params(experiment.objective, shapes)
    groups = {
        f"{top}/{name}": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
        for top, parts in params.items()
        for name, part in parts.items()
    }
    return {
        "params": sum(groups.values()),
        "trained": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(partition(trained, params)[0])),
        "params_by_group": groups,
        "flops_per_token": phases[0]["flops_per_token"],
        "phases": phases,
    }


def plan_on(experiment: Experiment, on: Slice, say: Say = lambda line: None) -> dict[str, Any]:
    """Extend `plan` by the step of each phase on a slice: memory, collectives, FLOPs, an estimate of its time.

    Those of the phase that needs most memory are at the top level as well; `fits` is true if all phases fit. Where the
    compiler refuses a program that is too large, the results that need a program are None. say: called with a line
    before each compilation.
    Raises InputError without a compiler for TPUs.
    """
    planned = plan(experiment)
    count = len(planned["phases"])
    say(f"{counted(count, 'programs')} to compile for {on}: {usual(_kind(on), 'programs') or UNKNOWN}")
    for number, phase in enumerate(planned["phases"]):
        say(f"compiling {counted(phase['batch_size'], 'rows')} of {phase['length']}, program {number + 1} of {count}")
        phase |= compiled_phase(experiment, experiment.phases[number], on, phase["flops_per_token"])
        say(_outcome(phase))
    most = max(planned["phases"], key=lambda phase: phase["bytes_per_device"]["peak"] or math.inf)
    whole = {name: most[name] for name in OF_A_PHASE} | {"fits": all(phase["fits"] for phase in planned["phases"])}
    placed = {"topology": str(on), "devices": on.devices * experiment.mesh.slices, "mesh": str(experiment.mesh)}
    placed |= {"flags": flags_for(experiment, on), "split": split_parameters(experiment, on)}
    return planned | placed | whole


UNKNOWN = "each takes from seconds to minutes, by the depth of the model and this machine"


def _kind(on: Slice) -> str:
    """Return what compilations for a slice are remembered under."""
    return f"plan for {on.generation}"


def _outcome(phase: Mapping[str, Any]) -> str:
    """Say what a compilation has found."""
    needed = phase["bytes_per_device"]["peak"]
    size = "size unknown" if needed is None else f"{needed / 2**30:.2f} GiB"
    return f"{'fits' if phase['fits'] else 'does not fit'}, {size}, compiled in {roughly(phase['compile_seconds'])}"


def compiled_phase(experiment: Experiment, phase: Phase, on: Slice, flops_per_token: float) -> dict[str, Any]:
    """Compile the step of one phase for a slice, and describe it.

    In `bytes_per_device`, `activations` are all arrays that live within a step only, gradients and 16-bit copies too.
    """
    compiled = compile_step(experiment, phase, on)
    remember(_kind(on), compiled.seconds)
    tokens = phase.batch_size * phase.rows.length
    slices, shards = experiment.mesh.slices, _batch_shards(experiment, phase, on)
    devices = on.devices * slices
    described: dict[str, Any] = {
        "rows_per_device": phase.batch_size / phase.accumulate / shards,
        "bytes_per_device": compiled.memory,
        "fits": not compiled.refused,
        "refused": compiled.refused,
        "compile_seconds": round(compiled.seconds, 1),
    }
    if compiled.text is None:
        missing = ("flops_ratio", "collectives", "estimated_step_seconds", "estimated_utilisation", "estimate")
        return described | dict.fromkeys(missing)
    program = Program(compiled.text)
    found = estimate(program, on, slices)
    model = flops_per_token * tokens / devices
    return described | {
        "compiled_flops_per_token": found["flops"] * devices / tokens,
        "flops_ratio": found["flops"] / model,
        "collectives": moved_by_kind(program),
        "estimated_step_seconds": found["seconds"],
        "estimated_tokens_per_second": tokens / found["seconds"],
        "estimated_utilisation": model / found["seconds"] / (found["peak_tflops"] * 1e12),
        "estimate": found,
    }


def _batch_shards(experiment: Experiment, phase: Phase, on: Slice) -> int:
    """Return the number of shards of a batch."""
    mesh = mesh_on(experiment, phase, on)
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def split_parameters(experiment: Experiment, on: Slice) -> dict[str, dict[str, str]]:
    """Return the partition specs of every parameter that is split: `stored` between steps, `used` in computation."""
    phase = experiment.phases[0]
    mesh = mesh_on(experiment, phase, on)
    params = abstract_params(experiment.objective, row_shapes(phase.rows, phase.batch_size))
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = name_of(path)
        storage, compute = (spec(mesh, name, leaf.shape) for spec in (storage_spec, compute_spec))
        if any(storage) or any(compute):
            found[name] = {"shape": str(list(leaf.shape)), "stored": _axes(storage), "used": _axes(compute)}
    return found


def _axes(spec: Iterable[Any]) -> str:
    return ", ".join(f"axis {axis} over {over}" for axis, over in enumerate(spec) if over) or "whole"


class Compiled(NamedTuple):
    """A step compiled for a slice: its text, None if it was refused, its memory, the seconds of compilation."""

    text: str | None
    memory: dict[str, float | None]
    seconds: float
    refused: str  # why it does not fit; "" where it does


def compile_step(experiment: Experiment, phase: Phase, on: Slice) -> Compiled:
    """Compile the training step of a phase for a slice, or for as many slices as the experiment's mesh has.

    Raises InputError if the mesh does not fit the devices, or the rows do not divide over them.
    """
    mesh = mesh_on(experiment, phase, on)
    state = state_shapes(experiment, mesh)
    rows = row_shapes(phase.rows, phase.batch_size)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_row(mesh)), rows)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=replicated(mesh))
    step: Any = sharded_step(experiment, phase, mesh)
    with jax.set_mesh(mesh):
        lowered = step.lower(state, batch, key)
    memory: dict[str, float | None] = {
        "params": _bytes_on_device(state.params),
        "optimizer": _bytes_on_device(state.opt),
        "batch": _bytes_on_device(batch),
    }
    capacity = on.chip.available * 2**30
    begun = time.perf_counter()
    try:
        executable = lowered.compile(compiler_options=flags_for(experiment, on))
    except jax.errors.JaxRuntimeError as error:
        refused = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" not in refused or "hbm" not in refused.lower():
            raise
        held = sum(size for size in memory.values() if size)
        within, available = _refusal(str(error), held)
        peak = None if within is None else held + within
        memory |= {"activations": within, "peak": peak, "capacity": available or capacity}
        return Compiled(None, memory, time.perf_counter() - begun, refused)
    seconds = time.perf_counter() - begun
    stats = executable.memory_analysis()
    # Not the sum of arguments and `temp_size_in_bytes`, which counts fragmentation twice: up to a quarter too much.
    peak = float(stats.peak_memory_in_bytes + stats.generated_code_size_in_bytes)
    memory |= {"activations": peak - stats.argument_size_in_bytes, "peak": peak, "capacity": capacity}
    # The compiler refuses by the memory within a step alone: together with the state it may still be too much.
    refused = f"{peak / 2**30:.2f} GiB are needed, {on.chip.available} are there" if peak > capacity else ""
    return Compiled(executable.as_text(), memory, seconds, refused)


def mesh_on(experiment: Experiment, phase: Phase, on: Slice) -> Mesh:
    """Build the mesh of an experiment from the devices of a slice."""
    devices = slice_devices(on, experiment.mesh.slices)
    return experiment.mesh.mesh(phase.batch_size // phase.accumulate, devices)


def flags_for(experiment: Experiment, on: Slice) -> dict[str, str]:
    """Return the flags that training on a slice would run with; none if the user sets LIBTPU_INIT_ARGS."""
    if "LIBTPU_INIT_ARGS" in os.environ:
        return {}
    multislice = SLICES_FLAGS if experiment.mesh.slices > 1 else ()
    return {flag.name: flag.value for flag in (*TPU_FLAGS[on.generation], *multislice)}


def _bytes_on_device(tree: Any) -> float:
    sizes = (math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return float(sum(sizes))


def _refusal(message: str, held: float) -> tuple[float | None, float | None]:
    """Parse the bytes that a step needs besides those `held` between steps, and the bytes available, from an error."""
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number = r"([\d.]+)([KMGT])"
    temporaries = re.search(rf"temporaries \({number}\) exceeds available HBM \({number}\)", message)
    total = re.search(rf"[Uu]sed {number} of {number} hbm", message)
    found = temporaries or total
    if not found:
        return None, None
    needed, available = (float(found[n]) * unit[found[n + 1]] for n in (1, 3))
    return (needed if temporaries else needed - held), available


def with_remat(value: Any, policy: str) -> Any:
    """Copy an objective with the policy `remat` in all of its encoders."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    changed = {name: with_remat(part, policy) for name, part in fields.items() if name not in ("parent", "name")}
    changed = {name: part for name, part in changed.items() if part is not fields[name]}
    if "remat" in fields:
        changed["remat"] = policy
    return dataclasses.replace(value, **changed) if changed else value


_ATTEMPTS = 4
"""Programs that a search usually compiles for a policy: two for the line, one or two to confirm."""


def search(experiment: Experiment, on: Slice, say: Say = lambda line: None) -> dict[str, Any]:
    """Find the largest batch per device that fits, for each remat policy, in the phase with the longest rows.

    Memory is linear in the rows: two compilations find the line, one more confirms; programs that do not fit are
    refused within seconds. `best` has the highest estimated throughput; `cheapest` rematerialises least of those that
    fit the batch of the experiment, None if none does.
    """
    phase = max(experiment.phases, key=lambda phase: phase.rows.length)
    shapes = row_shapes(phase.rows, phase.batch_size)
    flops = model_flops(experiment.objective, shapes, experiment.optimizer.trained)
    shards = _batch_shards(experiment, phase, on)
    plain = with_remat(experiment.objective, "none")
    policies = {policy: with_remat(experiment.objective, policy) for policy in REMAT}
    policies = {policy: objective for policy, objective in policies.items() if policy == "none" or objective != plain}
    say(
        f"searching {counted(len(policies), 'remat policies')} with about {_ATTEMPTS} programs each for {on}: "
        f"{usual(_kind(on), 'programs') or UNKNOWN}"
    )
    begun, found = time.perf_counter(), []
    for done, (policy, objective) in enumerate(policies.items()):

        def attempt(rows: int, objective: Any = objective, policy: str = policy) -> dict[str, Any]:
            say(f"remat={policy}: compiling {counted(rows, 'rows')} of {phase.rows.length} a device")
            batch_size = rows * shards * phase.accumulate
            trial = dataclasses.replace(phase, batch_size=batch_size)
            changed = dataclasses.replace(experiment, objective=objective, phases=(trial,))
            per_token = flops / phase.batch_size / phase.rows.length
            result = {"remat": policy, "batch_size": batch_size} | compiled_phase(changed, trial, on, per_token)
            say(f"remat={policy}: {_outcome(result)}")
            return result

        largest = _largest(attempt, phase.rows.group_size)
        most = f"at most {counted(int(largest['rows_per_device']), 'rows')} a device" if largest else "none fit"
        left, each = len(policies) - done - 1, (time.perf_counter() - begun) / (done + 1)
        more = f"; {counted(left, 'policies')} left, about {roughly(left * each)}" if left else ""
        say(f"remat={policy}: {most}{more}")
        if largest is not None:
            found.append(largest)
    rows = phase.batch_size / phase.accumulate / shards
    return {
        "topology": str(on),
        "length": phase.rows.length,
        "fits": bool(found),
        "found": found,
        "best": max(found, key=lambda one: one["estimated_tokens_per_second"], default=None),
        "cheapest": next((one for one in found if one["rows_per_device"] >= rows), None),
    }


def _largest(attempt: Callable[[int], dict[str, Any]], unit: int) -> dict[str, Any] | None:
    """Return the most rows that fit, a multiple of `unit`, to 2%; None if not even `unit` rows do."""
    tried: dict[int, dict[str, Any]] = {}
    rows = 8 * unit
    while True:
        tried[rows] = attempt(rows)
        best = max((rows for rows, result in tried.items() if result["fits"]), default=0)
        refused = min((rows for rows, result in tried.items() if not result["fits"]), default=None)
        lower, upper = best + unit, math.inf if refused is None else refused - unit
        if lower > upper or (best and upper < best * 1.02):
            return tried[best] if best else None
        rows = int(min(max(_expected(tried) // unit * unit, lower), upper))
        if len(tried) > 5 and refused is not None:
            rows = (lower + refused - unit) // (2 * unit) * unit  # memory is not linear: bisect


def _expected(tried: dict[int, dict[str, Any]]) -> float:
    """Extrapolate the most rows from the memory of two programs: of two that fit, if there are two.

    Of a program that it refuses the compiler reports an early, larger estimate.
    """
    sized = {
        rows: one["bytes_per_device"] for rows, one in tried.items() if one["bytes_per_device"]["peak"] is not None
    }
    fitting = sorted(rows for rows in sized if tried[rows]["fits"])
    known = fitting[-2:] if len(fitting) > 1 else sorted(sized)[:2]
    if len(known) < 2:
        return known[0] * (4 if fitting else 0.25) if known else min(tried) / 4
    n, m = known
    slope = max((sized[m]["peak"] - sized[n]["peak"]) / (m - n), 1.0)
    capacity = min(of["capacity"] for of in sized.values())
    return n + (capacity - sized[n]["peak"]) / slope
