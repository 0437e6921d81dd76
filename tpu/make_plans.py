"""Plan the published models on TPU slices and write tpu/plans.md: `python tpu/make_plans.py`, hours on a small CPU.

Every plan is one `bertjax plan … --json` in a process of its own, one at a time. Its output is kept in tpu/.plans/, so
that the same command resumes where it was stopped. `--fresh` discards those plans, `--only TEXT` makes the plans whose
name contains TEXT, `--write` only writes the table.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.machine.topology import Slice, parse_slice
from bertjax.plan.explained import CAVEAT

HERE = Path(__file__).parent
CACHE, TABLE = HERE / ".plans", HERE / "plans.md"
SLICES = ("v3-8", "v5e-16", "v5p-64", "v6e-64", "v4-64", "v3-128", "v5e-256")
POLICIES = ("none", "dots", "full")


class Model(NamedTuple):
    """A model: its experiment and overrides, the tokens per row of its `batch_size`, its encoders and slices."""

    name: str
    experiment: str
    overrides: tuple[str, ...]
    length: int
    encoders: tuple[str, ...] = ("encoder",)
    slices: tuple[str, ...] = SLICES


BOTH = ("generator", "discriminator")
MODELS = (
    Model("BERT-large, L 128", "bert", ("size=large", "long=0", "kernel=true"), 128),
    Model("BERT-large, L 512", "bert", ("size=large", "long=1", "kernel=true"), 512),
    Model("RoBERTa-large", "roberta", ("size=large", "kernel=true"), 512),
    Model("ELECTRA-large", "electra", ("size=large",), 512, BOTH),
    Model("XLNet-large", "xlnet", ("size=large",), 512, slices=(*SLICES, "v3:16x16")),
    Model("DeBERTa-v3-large", "deberta", ("size=v3-large",), 512, BOTH),
    Model("ModernBERT-large", "modernbert", ("size=large",), 1024),
)


def commands(model: Model, on: Slice) -> Iterator[list[str]]:
    """Yield the commands that plan a model, the one with the least rematerialisation first.

    A device computes 512 tokens at a time per GiB of its memory, rounded down to a power of two.
    """
    tokens = 2 ** (int(512 * on.chip.hbm / on.chip.devices).bit_length() - 1)
    rows = tokens // model.length
    fewest = 16 if model.experiment == "xlnet" else 1  # both directions of a row of eight windows
    batch_size = max(rows // fewest, 1) * fewest * on.devices
    for policy in POLICIES:
        remat = [f"objective.{encoder}.remat={policy}" for encoder in model.encoders]
        yield [
            "plan", f"experiments/{model.experiment}.py", *model.overrides, f"batch_size={batch_size}",
            "dtype=bfloat16", *remat, "--topology", str(on),
        ]  # fmt: skip


def planned(model: Model, slice_name: str, fresh: bool) -> dict[str, Any] | None:
    """Plan a model on a slice with the remat policy that recomputes least of those that fit, and keep the plan."""
    if not fresh and (found := kept(model, slice_name)):
        return found
    found = None
    for command in commands(model, parse_slice(slice_name)):
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "bertjax", *command, "--json"], cwd=HERE.parent, capture_output=True, text=True
        )
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(
            f"{' '.join(command)}: exit {done.returncode}, {time.monotonic() - begun:.0f} s, "
            f"at most {largest:.1f} GiB so far",
            flush=True,
        )
        if done.returncode not in (0, 3):
            print(done.stderr[-2000:], flush=True)
            return None
        found = json.loads(done.stdout) | {"command": command}
        if found["fits"]:
            break
    CACHE.mkdir(exist_ok=True)
    _place(model, slice_name).write_text(json.dumps(found))
    return found


def kept(model: Model, slice_name: str) -> dict[str, Any] | None:
    """Return the plan of an earlier run, if one of today's commands made it."""
    path = _place(model, slice_name)
    found = json.loads(path.read_text()) if path.is_file() else None
    return found if found and found["command"] in commands(model, parse_slice(slice_name)) else None


def _place(model: Model, slice_name: str) -> Path:
    return CACHE / f"{model.name.replace(', ', ' ').replace(' ', '-')}.{slice_name.replace(':', '-')}.json"


def row(model: Model, slice_name: str, plan: dict[str, Any]) -> str:
    """Format a plan as a row of the table."""
    phase, memory = plan["phases"][0], plan["bytes_per_device"]
    remat = next(word.partition("remat=")[2] for word in plan["command"] if "remat=" in word)
    rows = f"{phase['rows_per_device']:g} × {phase['length']}"
    peak = "?" if memory["peak"] is None else f"{memory['peak'] / 2**30:.1f}"
    cells = [model.name, f"{slice_name}, {plan['devices']}", rows, remat, f"{peak} of {memory['capacity'] / 2**30:.4g}"]
    if not plan["fits"]:
        return " | ".join(["", *cells, "does not fit", "", "", "", "", "", ""]).strip()
    moved = ", ".join(f"{kind} {one['bytes'] / 1e6:,.0f}" for kind, one in plan["collectives"].items()) or "none"
    parts = phase["estimate"]["of_which"]
    cells += [
        f"{plan['flops_ratio']:.2f}",
        moved,
        f"{1e3 * (parts['cycles'] + parts['modelled']):,.1f}",
        f"{1e3 * parts['waited']:,.1f}",
        f"{1e3 * plan['estimated_step_seconds']:,.1f}",
        f"{phase['estimated_tokens_per_second'] / 1e3:,.0f}",
        f"{plan['estimated_utilisation']:.0%}",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "model", "slice, devices", "rows a device", "remat", "GiB a device", "FLOPs ratio", "collectives, MB a step",
    "scheduled ms", "waited ms", "step ms", "thousand tokens/s", "utilisation",
)  # fmt: skip


def main() -> None:
    """Make the missing plans, BERT-large first, and write the table."""
    parser = argparse.ArgumentParser(description="Plan the published models on TPU slices and write tpu/plans.md.")
    parser.add_argument("--fresh", action="store_true", help="make every plan again")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="make the plans whose name contains TEXT, such as XLNet or v5e-16"
    )
    parser.add_argument("--write", action="store_true", help="make no plan, write the table of those that exist")
    options = parser.parse_args()
    lines, missing = [], []
    for model in MODELS:
        for slice_name in model.slices:
            wanted = options.only in f"{model.name} {slice_name}" and not options.write
            plan = planned(model, slice_name, options.fresh) if wanted else None
            plan = plan or kept(model, slice_name)
            if plan is None:
                missing.append(f"{model.name} on {slice_name}")
            else:
                lines.append(row(model, slice_name, plan))
            _write(lines, missing)


def _write(lines: list[str], missing: list[str]) -> None:
    text = [
        "# Plans of the published models",
        "",
        f"Made by `python tpu/make_plans.py` on a CPU. {CAVEAT} Every row is `bertjax plan EXPERIMENT … --topology "
        "SLICE` in bfloat16 with the dropout of the recipe and all parameters on every device; attention of BERT and "
        "RoBERTa is the kernel on chips that have it, and layers are a loop. The batch is chosen to fill memory (512 "
        "tokens per device and GiB, a power of two), remat is the first of none, dots, full that fits. "
        "*Scheduled* is the compiler's cycles and the model of operations without cycles, *waited* the collectives "
        "that do not overlap with computation, *FLOPs ratio* compiled FLOPs over model FLOPs.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---" * len(HEAD) + "|",
        *lines,
        "",
    ]
    text += ["Not made: " + ", ".join(missing) + ".", ""] if missing else []
    TABLE.write_text("\n".join(text))


if __name__ == "__main__":
    main()
