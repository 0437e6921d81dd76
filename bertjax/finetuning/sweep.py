"""Fine-tune with several learning rates in turn, each in a work directory of its own, and compare them.

<workdir>/learning_rate-1e-05/, …   a work directory of each, see run.py
          sweep.json, sweep.md      a line for each: median and best of the seeds, and the best rate
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bertjax.finetuning.recipe import FineTuning
from bertjax.finetuning.results import write_json
from bertjax.finetuning.run import finetune
from bertjax.run.processes import is_coordinator, raising_on_all
from bertjax.run.stop import StopRequest
from bertjax.run.writers import Progress
from bertjax.storage import files
from bertjax.storage.paths import path_of
from bertjax.wording import counted


def sweep(
    tuning: FineTuning,
    workdir: str | Path,
    *,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
    experiment: str | Path = "",
) -> dict[str, Any]:
    """Run `finetune` with each of `tuning.rates`, and return the content of `sweep.json`.

    Interrupted, the same call goes on where it was. `best` is the rate with the highest median, over the seeds, of
    their best first metric; seeds that failed do not count. Raises what finetune raises.
    """
    progress = progress or Progress(shown=is_coordinator())
    folder = path_of(workdir)
    lines: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for rate in tuning.rates:
        progress.say(f"learning rate {rate:g}")
        one = replace(tuning, recipe=tuning.recipe.changed(learning_rate=rate), rates=())
        name = f"learning_rate-{rate:g}"
        summary = finetune(one, folder / name, progress=progress, stop=stop, experiment=experiment)
        lines.append(_line(rate, name, summary))
    best = max((line for line in lines if line["median"] is not None), key=lambda line: line["median"], default=None)
    content = {
        "task": summary["task"],
        "init": summary["init"],
        "chosen_by": summary["chosen_by"],
        "best": best and best["learning_rate"],
        "rates": lines,
        "failed": all(line["failed"] == line["seeds"] for line in lines),
    }
    with raising_on_all():
        if is_coordinator():
            write_json(folder / "sweep.json", content)
            files.write(folder / "sweep.md", sweep_table(content))
    return content


def _line(rate: float, name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    first, failed = summary["chosen_by"], summary["failed"]
    results = [result for result in summary["seeds"] if result["seed"] not in failed and result["best"]]
    learned = sorted(result["best"]["metrics"][first] for result in results)
    half = len(learned) // 2
    median = (learned[half] + learned[~half]) / 2 if learned else None
    return {
        "learning_rate": rate,
        "folder": name,
        "median": median,
        "best": learned[-1] if learned else None,
        "seeds": len(summary["seeds"]),
        "failed": len(failed),
    }


def sweep_table(content: Mapping[str, Any]) -> str:
    """Format the content of sweep.json as a table in Markdown."""
    first = content["chosen_by"]
    lines = [
        f"# {content['task']} from {content['init']}: {counted(len(content['rates']), 'learning rates')}",
        "",
        f"| learning rate | median best {first} | best {first} | seeds | failed | folder |",
        "|---:|---:|---:|---:|---:|---|",
    ]
    for line in content["rates"]:
        mark = "**" if line["learning_rate"] == content["best"] else ""
        median, best = (f"{line[key]:.4f}" if line[key] is not None else "–" for key in ("median", "best"))
        rate = f"{mark}{line['learning_rate']:g}{mark}"
        lines.append(f"| {rate} | {median} | {best} | {line['seeds']} | {line['failed']} | {line['folder']} |")
    return "\n".join(lines) + "\n"
