"""Read the lines, tables and JSON of labelled data, each thing with the place where it stands.

What cannot be read is an InputError with file and line. What has a known treatment gets it, and is counted in `notes`,
for the user to see: a byte order mark is removed, CRLF ends a line as LF does, quotes in a TSV are text (GLUE has
unbalanced ones).
"""

import csv
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zstandard

from bertjax.data.corpus import open_bytes
from bertjax.errors import InputError

Notes = Counter[str]
"""What was treated, in words -> how often."""


def lines(path: Path, notes: Notes) -> Iterator[tuple[int, str]]:
    """Number the lines of a file, checked: UTF-8 without NUL."""
    number = 0
    try:
        with open_bytes(path) as file:
            for number, raw in enumerate(file, 1):
                if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                    notes["byte order marks, removed"] += 1
                    raw = raw[3:]
                if raw.endswith(b"\r\n"):
                    notes["lines that end in CRLF, read like any"] += 1
                try:
                    text = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    bad = raw[error.start]
                    raise InputError(f"{path}:{number}: not UTF-8 (byte {bad:#04x}): convert it with iconv") from error
                if "\0" in text:
                    raise InputError(f"{path}:{number}: a NUL byte: is this a text file?")
                yield number, text.rstrip("\r\n")
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{path}:{number}: cannot be read on: {error}") from error


def whole_text(path: Path, notes: Notes) -> str:
    """Read a whole file."""
    return "\n".join(line for _, line in lines(path, notes))


def cells_of(path: Path, delimiter: str, *, quoted: bool, notes: Notes) -> Iterator[tuple[int, list[str]]]:
    """Split the lines of a table into cells, each row with the number of its first line; blank ones are passed over."""
    if not quoted:
        for number, line in lines(path, notes):
            if not line.strip(" "):
                continue
            notes["lines with unbalanced quotes, kept as text"] += line.count('"') % 2
            yield number, line.split(delimiter)
        return
    reader = csv.reader((f"{line}\n" for _, line in lines(path, notes)), delimiter=delimiter, strict=True)
    number = 1
    try:
        for cells in reader:
            if cells:
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{number}: {error}: quotes open and close a cell, and are doubled inside") from error


def table(
    path: Path, columns: tuple[str, ...], delimiter: str, *, quoted: bool, notes: Notes
) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Read a table row by row, as (file:line, column -> cell); a cell that a row lacks is None."""
    rows = cells_of(path, delimiter, quoted=quoted, notes=notes)
    names = list(columns)
    for number, cells in rows:
        if not names:
            names = [name.strip() for name in cells]
            twice = next((name for place, name in enumerate(names) if name and name in names[:place]), "")
            if twice:
                raise InputError(f"{path}:{number}: two columns are named {twice!r}")
            continue
        if not columns and [cell.strip() for cell in cells] == names:
            raise InputError(f"{path}:{number}: the header again ({', '.join(cells)[:60]}): delete the line")
        if columns and number == 1 and {cell.strip().lower() for cell in cells} & {*columns, "index", "text"}:
            raise InputError(f"{path}:1: a header where none belongs ({', '.join(cells)[:60]}): delete the line")
        row: dict[str, str | None] = dict.fromkeys(names)
        row.update(zip(names, cells, strict=False))
        if len(cells) > len(names):
            row[f"column {len(cells)}"] = None  # more than the header names: nobody can say which is which
        yield f"{path}:{number}", row
    if not names:
        raise InputError(f"{path} is empty")


def what_lacks(row: Mapping[str, str | None], texts: tuple[str, ...]) -> str:
    """Say what a row of a table lacks: the text of a column, or a cell."""
    empty = next((name for name in texts if row.get(name) is not None and not (row[name] or "").strip()), "")
    if empty:
        return f"no text in column {empty!r}: fill it, or leave the row out"
    missing = next(name for name, cell in row.items() if cell is None)
    return f"another number of cells than the header ({missing!r}): a tab inside a text, or a row cut short?"


def need_columns(origin: str, row: Any, names: tuple[str, ...]) -> None:
    """Raise InputError where a record lacks one of `names`; empty ones are not needed."""
    if not isinstance(row, Mapping):
        raise InputError(f"{origin}: not an object with names")
    missing = [name for name in names if name and name not in row]
    if missing:
        raise InputError(
            f"{origin}: no column {missing[0]!r} among {', '.join(map(str, row))[:200]}: is this a file of another "
            "task, or without its header?"
        )


def json_lines(path: Path, notes: Notes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read objects, one a line, as (file:line, object)."""
    for number, line in lines(path, notes):
        if not line.strip():
            continue
        try:
            record = _whole_characters(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: not an object with names: one `{{…}}` a line")
        yield f"{path}:{number}", record


def json_file(path: Path, notes: Notes) -> dict[str, Any]:
    """Read the object of a file."""
    try:
        content = _whole_characters(json.loads(whole_text(path, notes)))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # numbers of too many digits, brackets in too many brackets
        raise InputError(f"{path}:1: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not an object with names: is this a file of another task?")
    return content


def _whole_characters(content: Any) -> Any:
    """Return what JSON held. Raises ValueError where an escape is half a character, which a cut text may end with."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        raise ValueError(f"{half} is half a character: a text was cut inside of one") from error
    return content


def entries(path: Path, record: Any, name: str) -> list[Any]:
    """Return the list of that name."""
    if not isinstance(record, Mapping) or not isinstance(record.get(name), list):
        raise InputError(f"{path}: no list {name!r}: is this a file of another task?")
    return record[name]


def text_of(origin: str, record: Mapping[str, Any], name: str) -> str:
    """Return the text of that name; raise InputError where there is none."""
    if not isinstance(record.get(name), str) or not record[name].strip():
        raise InputError(f"{origin}: no text in {name!r}: fill it, or leave it out")
    return record[name]


def texts_of(origin: str, record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return the list of texts of that name."""
    if not isinstance(record.get(name), list) or not all(isinstance(item, str) for item in record[name]):
        raise InputError(f"{origin}: {name!r} is no list of texts")
    return tuple(record[name])


def files_of(path: Path, pattern: str) -> list[Path]:
    """List a file, or the files below a folder in a fixed order."""
    files = sorted(path.rglob(pattern)) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} has no file {pattern}")
    return files
