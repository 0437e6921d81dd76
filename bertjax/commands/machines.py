"""The commands about machines and model folders: plan, doctor, convert."""

import argparse
from pathlib import Path
from typing import Any

from bertjax import exits
from bertjax.commands.arguments import command, print_result, takes_code, takes_experiment, takes_json, tell
from bertjax.errors import InputError
from bertjax.storage.paths import path_of
from bertjax.terminal import show, show_json


def add(commands: Any) -> None:
    """Add these commands."""
    convert = command(commands, "convert", _convert, "write a model, or one part of it, to a new folder",
                       "bertjax convert runs/electra:discriminator discriminator/")  # fmt: skip
    convert.add_argument(
        "source", metavar="SRC", help="a work directory, a checkpoint, `folder:part`, or a Hugging Face folder"
    )
    convert.add_argument("destination", metavar="DST", help="a new folder")
    takes_code(convert)
    convert.add_argument("--to", choices=("bertjax", "huggingface", "sentence-transformers"),
                         default="bertjax",
                         help="huggingface: config.json, model.safetensors and tokenizer files for transformers; "
                         "sentence-transformers: and its modules beside them (default: %(default)s)")  # fmt: skip

    plan = command(commands, "plan", _plan, "count parameters and FLOPs, or compile the step for a TPU slice",
                    "bertjax plan experiments/bert.py size=large dtype=bfloat16 --topology v5e:4x4")  # fmt: skip
    takes_experiment(plan)
    plan.add_argument(
        "--topology", metavar="SLICE", help="compile the step for a TPU slice, such as v5e:4x4: its memory and time;"
        " exit code 3 if it does not fit. Needs no TPU, but libtpu: pip install '.[plan]'",
    )  # fmt: skip
    plan.add_argument("--search", action="store_true",
                      help="find the largest batch of a device that fits, for each remat policy")  # fmt: skip
    plan.add_argument("--picture", type=Path, metavar="FILE", help="draw the memory of a device as an SVG file")
    takes_json(plan)

    doctor = command(commands, "doctor", _doctor, "diagnose this machine, and print a fix for each problem",
                      "bertjax doctor --workdir runs/base")  # fmt: skip
    doctor.add_argument(
        "--workdir", default=".", metavar="DIR", help="check its disk, or bucket (default: the current folder)"
    )
    doctor.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="time limit for devices to respond (default: %(default)g)",
    )
    takes_json(doctor)


def _convert(options: argparse.Namespace) -> None:
    from bertjax.checkpoints.export import convert

    for line in convert(options.source, options.destination, to=options.to, experiment=options.experiment):
        tell(line)
    tell(_written(path_of(options.destination)))


def _written(folder: Path) -> str:
    """Name what was written into a new folder, and its size."""
    from bertjax.storage import files

    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    return f"{folder}: written, {files.size_below(folder) / 1e6:,.1f} MB: {', '.join(names)}"


def _check_plan(options: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together, or a picture without a folder."""
    if not options.topology and (options.search or options.picture):
        raise InputError("--search and --picture need a slice: give one with --topology, such as v5e:4x4")
    if options.picture and not options.picture.parent.is_dir():
        raise InputError(f"--picture {options.picture}: no folder {options.picture.parent}: create it first")


def _plan(options: argparse.Namespace) -> None:
    from bertjax.machine.xla_flags import deep_stacks

    if options.topology and options.own_process:
        deep_stacks()

    import jax

    from bertjax.config import load_experiment
    from bertjax.machine.topology import parse_slice
    from bertjax.plan.explained import explained, pictured, searched
    from bertjax.plan.step import plan, plan_on, search
    from bertjax.run.writers import Progress

    _check_plan(options)
    jax.config.update("jax_platforms", "cpu")  # nothing runs, so leave a TPU of this machine to others
    experiment = load_experiment(options.experiment, options.override)
    if not options.topology:
        print_result(options, plan(experiment))
        return
    on, say = parse_slice(options.topology), Progress().say
    planned = search(experiment, on, say) if options.search else plan_on(experiment, on, say)
    if options.picture:
        options.picture.write_text(pictured(planned, on))
    if options.json:
        show_json(planned)
    else:
        show("\n".join(searched(planned, on) if options.search else explained(planned, on)))
    options.exit_code = exits.DONE if planned["fits"] else exits.NOT_FITTING


def _doctor(options: argparse.Namespace) -> None:
    from bertjax.machine.doctor import as_json, collect, diagnose, report

    facts = collect(path_of(options.workdir), seconds=options.seconds)
    findings = diagnose(facts)
    show_json(as_json(facts, findings)) if options.json else show(report(facts, findings).rstrip("\n"))
    options.exit_code = exits.MISTAKE if any(finding.stops for finding in findings) else exits.DONE
