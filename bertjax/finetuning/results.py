"""Summarise the results of several seeds.

A result of a seed has `seed`, `best` (step and metrics of its best evaluation), `last` (metrics of its last one),
`failed` (the reason, if it diverged or learned nothing), `ended` (the step, if patience ended it), and the time of a
step.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from bertjax.errors import InputError
from bertjax.serialization.bounded_json import parse_object
from bertjax.serialization.typed_json import typed
from bertjax.storage import files
from bertjax.wording import counted

Result = dict[str, Any]


class Best(TypedDict):
    """best.json: the best evaluation of a seed."""

    step: int
    metrics: dict[str, float]


class _Result(TypedDict):
    """result.json; `best` is empty where nothing was evaluated."""

    seed: int
    last: dict[str, float]
    best: Best | dict[str, None]
    failed: NotRequired[str]
    ended: NotRequired[int]
    step_ms: NotRequired[float]
    data_wait: NotRequired[float]


def summarise(results: Sequence[Result], first: str) -> Result:
    """Return median and quartiles of the last evaluation over the seeds that did not fail, the best seed, and failures.

    first: the metric that selects the best seed; if all failed, the best of those.
    """
    learned = [result for result in results if "failed" not in result]
    metrics = {}
    for name in learned[0]["last"] if learned else ():
        q1, median, q3 = np.quantile([result["last"][name] for result in learned], (0.25, 0.5, 0.75)).tolist()
        best = max(result["best"]["metrics"][name] for result in learned)
        metrics[name] = {"median": median, "q1": q1, "q3": q3, "best": best}
    candidates = learned or [result for result in results if result["best"]]
    chosen = max(candidates, key=lambda result: result["best"]["metrics"][first], default=None)
    return {
        "chosen_by": first,
        "metrics": metrics,
        "best_seed": chosen["seed"] if chosen else None,
        "failed": {result["seed"]: result["failed"] for result in results if "failed" in result},
        "seeds": list(results),
    }


def table(summary: Mapping[str, Any]) -> str:
    """Format a summary, with its task and init, as a table in Markdown."""
    first = summary["chosen_by"]
    names = next((list(result["last"]) for result in summary["seeds"] if result["last"]), [])
    names.sort(key=lambda name: name != first)
    lines = [
        f"# {summary['task']} from {summary['init']}",
        "",
        f"| seed | {' | '.join(names)} | best {first} | step | note |",
        f"|---|{'---:|' * (len(names) + 2)}---|",
    ]
    for result in summary["seeds"]:
        last, best = result["last"], result["best"]
        cells = [f"{last[name]:.4f}" if name in last else "–" for name in names]
        at_best = f"{best['metrics'][first]:.4f} | {best['step']}" if best else "– | –"
        early = f"ended early, at step {result['ended']}" if "ended" in result else ""
        note = "; ".join(filter(None, (result.get("failed"), early)))
        lines.append(f"| {result['seed']} | {' | '.join(cells)} | {at_best} | {note} |")
    for what in ("median", "q1", "q3"):
        cells = [f"{summary['metrics'][name][what]:.4f}" if name in summary["metrics"] else "–" for name in names]
        lines.append(f"| {what} | {' | '.join(cells)} | | | |")
    lines += [
        "",
        f"{counted(len(summary['seeds']), 'seeds')}, {len(summary['failed'])} failed; metrics of the last evaluation.",
    ]
    lengths = ", ".join(f"{split} {count}" for split, count in summary["programs"].items())
    lines += [f"Row lengths, each with a compiled program of its own: {lengths}."]
    return "\n".join(lines) + "\n"


_TIMES = ("step_ms", "data_wait_ms")


def timing(folder: Path) -> dict[str, float]:
    """Return a run's mean milliseconds per step, and the fraction of them spent waiting for data."""
    path = folder / "timing.jsonl"
    lines = list(_readable(path)) if path.exists() else []
    if not lines:  # the run was too short to be timed
        return {}
    times = {name: [typed(line.get(name), float, f"{path}: {name}") for line in lines] for name in _TIMES}
    step_ms, wait_ms = (float(np.mean(times[name])) for name in _TIMES)
    return {"step_ms": round(step_ms, 2), "data_wait": round(wait_ms / step_ms, 4)}


def evaluations(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Return step and metric of all evaluations in the log of a run, [] if it has none."""
    path, name = folder / "log.jsonl", f"validation/{metric}"
    found = [[line["step"], line[name]] for line in _lines(path) if name in line] if path.exists() else []
    return typed(found, list[tuple[int, float]], f"{path}")


def is_enough(history: Sequence[tuple[int, float]], patience: int) -> bool:
    """Return whether the last `patience` evaluations are no better than the best one before them; 0 is without end."""
    values = [value for _, value in history]
    return bool(patience and values) and len(values) - 1 - values.index(max(values)) >= patience


def last_metrics(folder: Path) -> dict[str, float]:
    """Return the metrics of the last evaluation in the log of a run, {} if it has none."""
    lines = _lines(folder / "log.jsonl")
    found = [line for line in lines if any(name.startswith("validation/") for name in line)]
    named = found[-1].items() if found else ()
    metrics = {name.removeprefix("validation/"): value for name, value in named if name != "step"}
    return typed(metrics, dict[str, float], f"{folder / 'log.jsonl'}")


def read_result(path: Path, metric: str) -> Result:
    """Load the result of a seed, which names the folder that it is in.

    Raises InputError where it is damaged, or lacks the metric that selects the best seed.
    """
    found = read_json(path, _again(path))
    try:
        result: Result = {**typed(found, _Result, path.name)}
        if path.parent.name != f"seed-{result['seed']}":
            raise InputError(f"it is of seed {result['seed']}")
        if any(
            metric not in metrics
            for metrics in (result["last"], result["best"].get("metrics", ()))
            if "failed" not in result
        ):
            raise InputError(f"it has no {metric}")
    except InputError as error:
        raise InputError(f"{path} is damaged: {_again(path)} ({error})") from error
    return result


def _again(path: Path) -> str:
    """Return the remedy for a damaged file of a seed: without its folder it is run again, as if it had not been run."""
    return f"delete the folder {path.parent}, and the same command runs this seed again"


def read_best(path: Path) -> Best | None:
    """Load best.json, None if it does not exist. Raises InputError where it is damaged."""
    found = read_json(path, _again(path))
    try:
        return typed(found, Best, path.name) if found else None
    except InputError as error:
        raise InputError(f"{path} is damaged: {_again(path)} ({error})") from error


def read_json(path: Path, remedy: str) -> Result:
    """Load a JSON file of results, {} if it does not exist. remedy: for the InputError that is raised if damaged."""
    if not path.exists():
        return {}
    content = files.read_inside(path.parent, path.name)
    try:
        return parse_object(content, f"{path}", constants=True)
    except InputError as error:
        raise InputError(f"{path} is damaged: {remedy} ({error})") from error


def _readable(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines that can be read: a kill leaves parts of lines, and a mean does not need all."""
    for line in files.read_inside(path.parent, path.name, _LARGEST_LOG).splitlines():
        with suppress(InputError):
            yield parse_object(line, f"{path}", constants=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read the JSON lines of a log."""
    content = files.read_inside(path.parent, path.name, _LARGEST_LOG)
    return [parse_object(line, f"{path}", constants=True) for line in content.splitlines()]


_LARGEST_LOG = 2**28  # bytes; a line of a log has some hundred


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file of results atomically."""
    files.write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
