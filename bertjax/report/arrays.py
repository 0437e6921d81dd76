"""Read the logs of runs as arrays, by steps, tokens and FLOPs.

What is in a work directory may come from others: lines that cannot be read are counted and left out.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from bertjax.config import own_code
from bertjax.errors import InputError
from bertjax.flops import abstract_params, model_flops, row_shapes
from bertjax.optim.optimizer import Optimizer
from bertjax.run.workdir import recorded
from bertjax.serialization.bounded_json import parse_object
from bertjax.serialization.closed_set import OBJECTIVES, ROWS, Names
from bertjax.serialization.description import NO_CODE, Code, from_json
from bertjax.storage import files
from bertjax.storage.paths import path_of
from bertjax.wording import counted

Table: TypeAlias = dict[str, np.ndarray]
"""Columns of equal length, float64: step, tokens, flops, and values by name, NaN where a line has none."""

LARGEST_LOG = 2**28  # bytes; a line of a log has some hundred
_MOST_COLUMNS = 500

_OPTIMIZER = Names(types=frozenset({f"{Optimizer.__module__}.{Optimizer.__qualname__}"}))


class Run(NamedTuple):
    """A run as it has logged itself so far.

    train: metrics of batches. validation: of the validation split, by their names without "validation/". timing: the
    speed, with `time` in seconds since 1970. tokens: positions of all rows so far, padding included; flops: model FLOPs
    so far; both NaN where they are not known, as `notes` say. parameters: their number, 0 where it is not known.
    events: (step, text) of amendments, skipped steps and lost lines.
    """

    name: str
    folder: str
    experiment: Mapping[str, Any]
    steps: int
    parameters: int
    train: Table
    validation: Table
    timing: Table
    events: tuple[tuple[int, str], ...]
    notes: tuple[str, ...]


def read(runs: str | Path | Sequence[str | Path], experiment: str | Path = "") -> list[Run]:
    """Read one run or several from their work directories, on a disk or in Cloud Storage; of a fine-tuning its seeds.

    experiment: the file of runs with classes or functions of your own, for their FLOPs; it is executed. A run may still
    be going on. Raises InputError where a folder is no work directory.
    """
    code = own_code(experiment) if experiment else NO_CODE
    given = [runs] if isinstance(runs, str | Path) else list(runs)
    if not given:
        raise InputError("there are no runs to read: give work directories")
    folders = [folder for run in given for folder in _work_folders(path_of(run))]
    names = _names(folders)
    return [_read(name, folder, code) for name, folder in zip(names, folders, strict=True)]


def _work_folders(folder: Path) -> list[Path]:
    if (folder / "log.jsonl").exists():
        return [folder]
    seeds = sorted(folder.glob("seed-*"), key=lambda path: (len(path.name), path.name))
    found = [path for path in seeds if (path / "log.jsonl").exists()]
    if not found:
        reason = "it has no log.jsonl" if folder.is_dir() else "there is no such folder"
        raise InputError(f"{folder} is no work directory of a run: {reason}")
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, as many as tell them apart; equal paths are numbered."""
    parts = [[part for part in folder.parts if part not in ("/", "gs:")] or [str(folder)] for folder in folders]
    names = [own[-1] for own in parts]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _read(name: str, folder: Path, code: Code) -> Run:
    notes: list[str] = []
    lines, events = list[tuple[int, Mapping[str, Any]]](), list[tuple[int, str]]()
    for step, line in _lines(folder, "log.jsonl", notes):
        event = _event(line)
        if event:
            events.append((step, event))
        else:
            lines.append((step, line))
    timing = dict(_lines(folder, "timing.jsonl", notes))  # of a step that a resumed run repeated the last time counts
    experiment = _experiment(folder, notes)
    work = _Work(experiment, code, notes)
    held_out = [(step, _held_out(line)) for step, line in lines if _held_out(line)]
    trained = [(step, line) for step, line in lines if not _held_out(line)]
    return Run(
        name=name,
        folder=str(folder),
        experiment=experiment,
        steps=max([step for step, _ in lines], default=0),
        parameters=work.parameters,
        train=work.table(trained, notes),
        validation=work.table(held_out, notes),
        timing=work.table(sorted(timing.items()), notes),
        events=tuple(events),
        notes=tuple(dict.fromkeys(notes)),
    )


def _lines(folder: Path, name: str, notes: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the lines of a log with their steps; a last one that is being written is left out."""
    if not (folder / name).exists():
        return
    unread = 0
    *whole, last = files.read_inside(folder, name, LARGEST_LOG).split(b"\n")
    for line in whole if not last else [*whole, last]:
        try:
            found = parse_object(line, name, constants=True)
            step = found["step"]
            if type(step) is not int or not 0 <= step < 2**53:
                raise InputError(f"{step!r:.20} is no step")
        except (InputError, KeyError):
            unread += bool(line.strip(b"\0\r\n ")) and line is not last
            continue
        yield step, found
    if unread:
        notes.append(f"{name}: {counted(unread, 'lines')} could not be read")


def _event(line: Mapping[str, Any]) -> str:
    if "amend" in line:
        return f"amended: {line['amend']}"
    if "lost" in line:
        return f"lost: {line['lost']}"
    if "skipped" in line:
        return f"skipped, its loss was {line.get('loss')}"
    return ""


def _held_out(line: Mapping[str, Any]) -> dict[str, Any]:
    prefix = "validation/"
    return {name.removeprefix(prefix): value for name, value in line.items() if name.startswith(prefix)}


def _experiment(folder: Path, notes: list[str]) -> Mapping[str, Any]:
    try:
        found = recorded(folder)
    except InputError as error:
        notes.append(str(error))
        return {}
    if found is None:
        notes.append(f"{folder} has no experiment.json: neither tokens nor FLOPs nor its settings are known")
    return found or {}


class _Work:
    """The tokens and FLOPs of the first steps of a run, by its phases."""

    def __init__(self, experiment: Mapping[str, Any], code: Code, notes: list[str]) -> None:
        phases = experiment.get("phases", [])
        self._ends = np.cumsum([0.0, *(float(phase.get("steps", 0)) for phase in phases)])
        self._tokens, self._flops, self.parameters = [math.nan], [math.nan], 0
        if not phases:
            return
        if any(str(phase["rows"].get("type", "")).endswith(".TaskRows") for phase in phases):
            notes.append("rows in buckets of length: tokens and FLOPs by step are not known")
            return
        try:
            self._tokens, self._flops, self.parameters = self._count(experiment, phases, code)
        except Exception as error:  # noqa: BLE001 the description may be anybody's, and tracing raises anything
            text = str(error).strip().splitlines() or [type(error).__name__]
            notes.append(f"tokens and FLOPs are not known: {text[0]}")

    @staticmethod
    def _count(
        experiment: Mapping[str, Any], phases: Sequence[Mapping[str, Any]], code: Code
    ) -> tuple[list[float], list[float], int]:
        """Return the tokens and FLOPs of a step of each phase, and the number of parameters."""
        objective = from_json(experiment["objective"], OBJECTIVES, "objective", code)
        trained = from_json(experiment["optimizer"], _OPTIMIZER, "optimizer", code).trained
        tokens, flops, params = list[float](), list[float](), 0
        for phase in phases:
            rows = from_json(phase["rows"], ROWS, "rows", code)
            shapes = row_shapes(rows, phase["batch_size"])
            tokens.append(float(math.prod(shapes["tokens"].shape)))
            flops.append(model_flops(objective, shapes, trained))
            params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(objective, shapes)))
        return tokens, flops, params

    def table(self, lines: Sequence[tuple[int, Mapping[str, Any]]], notes: list[str]) -> Table:
        """Return lines as columns."""
        step = np.array([step for step, _ in lines], np.float64)
        names = dict.fromkeys(name for _, line in lines for name in line if name != "step")
        if len(names) > _MOST_COLUMNS:
            notes.append(f"{len(names):,} names of values: the first {_MOST_COLUMNS} are read")
        columns = {name: np.array([_number(line.get(name)) for _, line in lines]) for name in [*names][:_MOST_COLUMNS]}
        kept = {name: column for name, column in columns.items() if np.isfinite(column).any()}
        return {"step": step, "tokens": self._until(step, self._tokens), "flops": self._until(step, self._flops)} | kept

    def _until(self, step: np.ndarray, each: Sequence[float]) -> np.ndarray:
        """Return what the steps up to `step` took; a run that was made longer goes on as its last phase."""
        begins = self._ends[: len(each)]
        within = [
            np.clip(step - begin, 0, end - begin) for begin, end in zip(begins, [*begins[1:], np.inf], strict=True)
        ]
        return sum((steps * one for steps, one in zip(within, each, strict=True)), np.zeros_like(step))


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) and abs(value) < 1e300 else math.nan


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the settings in which runs differ, by dotted names: the value of each run as JSON, "" if it has none."""
    flat = [dict(_flat(run.experiment)) for run in runs]
    names = dict.fromkeys(name for each in flat for name in each)
    found = {name: [each.get(name, "") for each in flat] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if not inner or not value:
        yield name, json.dumps(value)
        return
    for key, each in inner:
        yield from _flat(each, f"{name}.{key}".lstrip("."))
