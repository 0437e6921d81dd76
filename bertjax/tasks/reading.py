"""Read lines, tables and JSON of labelled data, each item with its place in the file.

Unreadable data raise an InputError with file and line. A byte order mark is left out, and CRLF ends a line as LF does;
other defects are repaired and counted in `notes`, which are printed: quotes in a TSV are text (GLUE has unbalanced
ones).
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from bertjax.data.text_files import Unreadable, open_bytes
from bertjax.errors import InputError
from bertjax.nearest import did_you_mean
from bertjax.serialization.bounded_json import Limits, parse_object
from bertjax.storage.files import files_below

Notes = Counter[str]
"""Numbers of repaired, truncated or dropped items, by description."""


_LINE = Limits(2**24, 64, 2**18)
"""Of a line: a record, a row of a table, a word with its tag."""

_FILE = Limits(2**26, 64, 2**21)
"""Of a file that is one JSON object; SQuAD's largest has 42 million bytes."""

_MOST_COLUMNS, _MOST_CELLS = 10_000, 100_000


def lines(path: Path, notes: Notes, longest: int = _LINE.bytes, most: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a file.

    Raises InputError unless they are UTF-8 without NUL, of at most `longest` bytes each, and `most` bytes together.
    """
    number = 0
    try:
        with open_bytes(path, most) as file:
            while raw := file.readline(longest + 1):
                number += 1
                if len(raw) > longest:
                    raise InputError(f"{path}:{number}: a line of over {longest:,} bytes: is this a text file?")
                if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                    raw = raw[3:]
                try:
                    text = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    bad, hint = raw[error.start], "" if number > 1 else _encoding(raw)
                    raise InputError(
                        f"{path}:{number}: not UTF-8 (byte {bad:#04x}): convert it with iconv{hint}"
                    ) from error
                if "\0" in text:
                    raise InputError(f"{path}:{number}: a NUL byte: is this a text file?")
                yield number, text.rstrip("\r\n")
    except Unreadable as error:
        raise InputError(f"{path}:{number}: the rest cannot be read: {error}") from error


def _encoding(raw: bytes) -> str:
    """Return the option of iconv for a file that begins so, as spreadsheets export "Unicode text"."""
    return " -f UTF-16 -t UTF-8" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""


def whole_text(path: Path, notes: Notes) -> str:
    """Read a whole file as text. Raises InputError where it has over 64 MiB, and as `lines`."""
    gathered = []
    for number, line in lines(path, notes, _FILE.bytes, _FILE.bytes):
        if number > _FILE.values:
            raise InputError(f"{path}:{number}: over {_FILE.values:,} lines in one text: use JSON lines instead")
        gathered.append(line)
    return "\n".join(gathered)


def cells_of(
    path: Path, delimiter: str, *, quoted: bool, notes: Notes, needed: tuple[str, ...] = ()
) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row of a table, with the number of its first line.

    Blank lines are skipped, but those inside a table of one column, where spreadsheets write a blank cell so. needed:
    names in the header. Where they are not separated by the delimiter, but by another one that spreadsheets export,
    that is the delimiter of a quoted table.
    """
    width, blank = 0, list[int]()
    for number, cells in _cells(path, delimiter, quoted=quoted, notes=notes, needed=needed):
        if not cells:
            blank.append(number)
            continue
        if width == 1:
            yield from ((of_blank, [""]) for of_blank in blank)
        blank.clear()
        width = width or len(cells)
        yield number, cells


def _cells(
    path: Path, delimiter: str, *, quoted: bool, notes: Notes, needed: tuple[str, ...]
) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row as `cells_of`, and none for a blank line."""
    if not quoted:
        for number, line in lines(path, notes):
            if not line.strip(" "):
                yield number, []
                continue
            notes["lines with unbalanced quotes, kept as text"] += line.count('"') % 2
            yield number, _bounded(path, number, line, delimiter).split(delimiter)
        return
    found = lines(path, notes)
    first = next(found, (1, ""))
    declared = declared_delimiter(first[1])
    header = next(found, (2, "")) if declared else first
    delimiter = declared or delimiter_of(header[1], delimiter, needed)
    checked = (_bounded(path, number, line, delimiter) for number, line in chain([header], found))
    reader = csv.reader((f"{line}\n" for line in checked), delimiter=delimiter, strict=True)
    before = bool(declared)  # lines that the reader does not see
    number = 1 + before
    try:
        for cells in reader:
            yield number, cells
            number = reader.line_num + 1 + before
    except csv.Error as error:
        raise InputError(f"{path}:{number}: {error}: quotes must enclose a cell, and be doubled inside") from error


def declared_delimiter(line: str) -> str:
    """Return what separates columns by Excel's own line before a header, `sep=;`; "" for any other line."""
    found = re.fullmatch(r'"?sep=(.)"?', line)
    return found[1] if found else ""


def delimiter_of(header: str, usual: str, needed: tuple[str, ...]) -> str:
    """Return what separates the columns in a header: of the usual delimiters the one that gives most needed names."""

    def fits(delimiter: str) -> tuple[int, bool, int]:
        cells = [cell.strip() for cell in next(csv.reader([header], delimiter=delimiter), [])]
        return len({*cells} & {*needed}), delimiter == usual and len(cells) > 1, len(cells)

    try:
        return max(dict.fromkeys((usual, ";", "\t", ",", "|")), key=fits) if needed else usual
    except csv.Error:
        return usual


def _bounded(path: Path, number: int, line: str, delimiter: str) -> str:
    """Return the line. Raises InputError for more cells than any table has."""
    if line.count(delimiter) > _MOST_CELLS:
        raise InputError(f"{path}:{number}: a row of over {_MOST_CELLS:,} cells: is this a table?")
    return line


def table(
    path: Path,
    columns: tuple[str, ...],
    delimiter: str,
    *,
    quoted: bool,
    notes: Notes,
    needed: tuple[str, ...] = (),
) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield the rows of a table as (file:line, cells by column); a missing cell is None.

    columns: the names of all columns of a table without a header. needed: those that a header must have, "" for none.
    """
    # One function, despite its branches: each of them is one way in which a header or a row can be wrong.
    needed = tuple(filter(None, needed))
    rows = cells_of(path, delimiter, quoted=quoted, notes=notes, needed=needed)
    names = list(columns)
    for number, cells in rows:
        if not names:
            names = [name.strip() for name in cells]
            twice = next((name for name, count in Counter(names).items() if name and count > 1), "")
            if twice:
                raise InputError(f"{path}:{number}: two columns are named {twice!r:.100}")
            if len(names) > _MOST_COLUMNS:
                raise InputError(f"{path}:{number}: {len(names):,} columns: the most are {_MOST_COLUMNS:,}")
            _require_header(path, number, names, delimiter, needed)
            continue
        if not columns and [cell.strip() for cell in cells] == names:
            raise InputError(f"{path}:{number}: a second header ({', '.join(cells)[:60]}): delete the line")
        if columns and number == 1 and {cell.strip().lower() for cell in cells} & {*columns, "index", "text"}:
            raise InputError(f"{path}:1: a header in a file without one ({', '.join(cells)[:60]}): delete the line")
        row: dict[str, str | None] = dict.fromkeys(names)
        row.update(zip(names, cells, strict=False))
        if len(cells) > len(names):
            row[f"column {len(cells)}"] = None  # more cells than columns, so their columns are ambiguous
        yield f"{path}:{number}", row
    if not names:
        raise InputError(f"{path} is empty")


def _require_header(path: Path, number: int, names: list[str], delimiter: str, needed: tuple[str, ...]) -> None:
    """Raise InputError if a header lacks a needed column, or has them with another delimiter."""
    other = delimiter_of(delimiter.join(names), delimiter, needed)
    if other != delimiter and len(names) == 1:
        raise InputError(
            f"{path}:{number}: its columns are separated by {other!r}, not by tabs: name it .csv instead of .tsv"
        )
    require_columns(f"{path}:{number}", dict.fromkeys(names), needed)


def describe_defect(row: Mapping[str, str | None], texts: tuple[str, ...]) -> str:
    """Describe why a row of a table is incomplete: an empty text, or a missing cell."""
    empty = next((name for name in texts if row.get(name) is not None and not (row[name] or "").strip()), "")
    if empty:
        return f"no text in column {empty!r}: fill it in, or delete the row"
    missing = next(name for name, cell in row.items() if cell is None)
    return f"not as many cells as the header ({missing!r}): does a text contain a tab, or is the row truncated?"


def require_columns(origin: str, row: Any, names: tuple[str, ...]) -> None:
    """Raise InputError if a record lacks one of `names`; empty names are ignored."""
    if not isinstance(row, Mapping):
        raise InputError(f"{origin}: not a JSON object")
    missing = [name for name in names if name and name not in row]
    if missing:
        raise InputError(
            f"{origin}: no column {missing[0]!r} among {', '.join(map(str, [*row][:20]))[:200]}: "
            + (did_you_mean(missing[0], map(str, row)) or "is this a file of another task, or without its header?")
        )


def json_lines(path: Path, notes: Notes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the JSON objects of a file, one per line, as (file:line, object)."""
    for number, line in lines(path, notes):
        if not line.strip():
            continue
        record = parse_object(line, f"{path}", _LINE, first_line=number, constants=True)
        yield f"{path}:{number}", _without_surrogates(record, f"{path}:{number}")


def json_file(path: Path, notes: Notes) -> dict[str, Any]:
    """Read a file with one JSON object."""
    return _without_surrogates(parse_object(whole_text(path, notes), f"{path}", _FILE, constants=True), f"{path}:1")


def _without_surrogates(content: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return the content. Raises InputError for a lone surrogate, with which a truncated text may end."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        raise InputError(
            f"{origin}: cannot be read as JSON: {half} is a lone surrogate: a text was truncated inside a character"
        ) from error
    return content


def entries(path: Path, record: Any, name: str) -> list[Any]:
    """Return the list in a field. Raises InputError if there is none."""
    if not isinstance(record, Mapping) or not isinstance(record.get(name), list):
        raise InputError(f"{path}: no list {name!r}: is this a file of another task?")
    return record[name]


def text_of(origin: str, record: Any, name: str) -> str:
    """Return the text in a field. Raises InputError if there is none."""
    if not isinstance(record, Mapping) or not isinstance(record.get(name), str) or not record[name].strip():
        raise InputError(f"{origin}: no text in {name!r}: fill it in, or delete the record")
    text: str = record[name]
    return text


def texts_of(origin: str, record: Any, name: str) -> tuple[str, ...]:
    """Return the list of texts in a field. Raises InputError if there is none."""
    found = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise InputError(f"{origin}: {name!r} is not a list of texts")
    return tuple(found)


def files_of(path: Path, pattern: str) -> list[Path]:
    """Return a file, or the files below a folder in a fixed order."""
    files = files_below(path, pattern) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} contains no file {pattern}")
    return files
