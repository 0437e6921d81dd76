"""Results of `predict` as a file: .csv or .jsonl with the columns of the input, or .npy of vectors."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bertjax.errors import InputError
from bertjax.storage import files
from bertjax.storage.paths import in_cloud, path_of
from bertjax.tasks.reading import Notes

Write = Callable[[Mapping[str, Any], Mapping[str, Any] | None], None]
"""(the columns of a row, its results or None where its text is blank): writes one row."""

FORMULAS = "cells that a spreadsheet may run as a formula (they begin with = + - or @): open the file as text there"


def check_out(out: str, given: str | None, *, vectors: bool) -> Path:
    """Return the path of a file of results. Raises InputError where it cannot be written."""
    path = path_of(out)
    known = (".csv", ".jsonl", *([".npy"] if vectors else []))
    if path.suffix not in known:
        raise InputError(f"--out {out}: results are written as {', '.join(known)}: choose one of these endings")
    if given and (path == path_of(given) or (not in_cloud(path) and path.exists() and path.samefile(given))):
        raise InputError(f"--out {out} is the input: choose another file")
    if not in_cloud(path) and not path.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {path.parent}: create it")
    if path.is_dir():
        raise InputError(f"--out {out} is a folder: name a file in it")
    return path


@contextmanager
def results_file(path: Path, columns: Sequence[str], delimiter: str, notes: Notes) -> Iterator[Write]:
    """Yield a function that writes one row; the file is there, whole, when the block ends without an error.

    columns: of the input. delimiter: of a .csv. notes: counts cells that a spreadsheet may run.
    """
    with files.writing(path) as file:
        if path.suffix == ".npy":
            with _vectors(file) as write:
                yield write
        elif path.suffix == ".jsonl":
            with _json_lines(file) as write:
                yield write
        else:
            with _table(file, columns, delimiter, notes) as write:
                yield write


@contextmanager
def _json_lines(file: BinaryIO) -> Iterator[Write]:
    """Write JSON lines. Rows without results have the names of the last ones, as null; rows before the first wait."""
    waiting: list[Mapping[str, Any]] = []
    names: dict[str, None] = {}

    def line(record: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        _refuse_twice(record, results)
        named = dict(record) | {name: _as_json(value) for name, value in results.items()}
        file.write(json.dumps(named, ensure_ascii=False).encode() + b"\n")

    def release() -> None:
        for record in waiting:
            line(record, names)
        waiting.clear()

    def write(record: Mapping[str, Any], results: Mapping[str, Any] | None) -> None:
        nonlocal names
        if results is None and not names:
            waiting.append(record)
            return
        if results is not None:
            names = dict.fromkeys(results)
            release()
        line(record, names if results is None else results)

    yield write
    names = names or {"predicted": None}
    release()


def _as_json(value: Any) -> Any:
    return [round(float(number), 7) for number in value] if isinstance(value, np.ndarray) else value


def _refuse_twice(columns: Sequence[str] | Mapping[str, Any], results: Sequence[str] | Mapping[str, Any]) -> None:
    if twice := next((name for name in results if name in columns), ""):
        raise InputError(f"the input has a column {twice!r} already, which is a result here: rename it")


@contextmanager
def _table(file: BinaryIO, columns: Sequence[str], delimiter: str, notes: Notes) -> Iterator[Write]:
    """Write a table; the names of results are known with the first of them, and rows before it wait."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    rows = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    waiting: list[Mapping[str, Any]] = []
    names: list[str] = []

    def begin(found: Sequence[str]) -> None:
        names.extend(found)
        _refuse_twice(columns, names)
        rows.writerow([*columns, *names])
        for record in waiting:
            line(record, {})
        waiting.clear()

    def line(record: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        cells = [*(record.get(name) for name in columns), *(found.get(name) for name in names)]
        texts = [_cell(cell) for cell in cells]
        notes[FORMULAS] += sum(map(_is_formula, texts))
        rows.writerow(texts)

    def write(record: Mapping[str, Any], results: Mapping[str, Any] | None) -> None:
        flat = {} if results is None else dict(_flat(results))
        if not names:
            if results is None:
                waiting.append(record)
                return
            begin(list(flat))
        line(record, flat)

    yield write
    if not names:
        begin(["predicted"])
    text.detach()


def _flat(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the cells of results: of a dict and of a vector each number has a column of its own."""
    for name, value in results.items():
        if isinstance(value, dict | np.ndarray):
            named = value.items() if isinstance(value, dict) else enumerate(map(float, value))
            yield from ((f"{name}.{part}", item) for part, item in named)
        else:
            yield name, value


def _cell(value: Any) -> str:
    """Return a value as the text of a cell: texts of a list with commas between, other lists as JSON."""
    match value:
        case None:
            return ""
        case str():
            return value
        case [*texts] if texts and all(isinstance(text, str) for text in texts):
            return ",".join(texts)
        case list() | dict() | bool():
            return json.dumps(value, ensure_ascii=False) if value or value is False else ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _is_formula(cell: str) -> bool:
    return cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not re.fullmatch(r"[+-]?[\d.,]+(e[+-]?\d+)?%?", cell)


@contextmanager
def _vectors(file: BinaryIO) -> Iterator[Write]:
    """Write an array f32 [rows, D]; its header, which states the number of rows, is written again at the end."""
    shape = [0, 0]

    def header() -> None:
        described = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, described)

    def write(record: Mapping[str, Any], results: Mapping[str, Any] | None) -> None:
        vector = np.asarray((results or {})["embedding"], "<f4")
        if not shape[0]:
            shape[1] = len(vector)
            header()
        file.write(vector.tobytes())
        shape[0] += 1

    yield write
    file.seek(0)
    header()
