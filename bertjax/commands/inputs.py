"""The texts that `predict` reads: arguments, lines of standard input or of a .txt, rows of a .csv, .tsv or .jsonl.

A file is read once before the model is used, so that what is wrong with it is told before work is lost.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.errors import InputError
from bertjax.storage.paths import path_of
from bertjax.tasks.own import ending_of
from bertjax.tasks.reading import (
    Notes,
    declared_delimiter,
    delimiter_of,
    describe_defect,
    json_lines,
    lines,
    require_columns,
    table,
)
from bertjax.wording import counted

LONGEST_LINE = 2**22
"""Maximum characters of a text on a line of its own."""

TABLES = (".csv", ".tsv", ".jsonl")


class Expected(NamedTuple):
    """The texts that a prediction takes: `least` to `most` of them, in these words for people.

    columns: where they are in a table, unless the user says. names: of the columns that hold texts that came as lines;
    the last one is for all that are left. lists: a column may hold a list of texts. blank: a text may be blank.
    """

    least: int
    most: int
    words: str
    columns: tuple[str, ...]
    names: tuple[str, ...]
    lists: bool = False
    blank: bool = False


class Row(NamedTuple):
    """What is predicted on: its place, its texts, () where one of them is blank, and the columns that it came with."""

    origin: str
    texts: tuple[str, ...]
    record: Mapping[str, Any]


class Input(NamedTuple):
    """All rows, once. total: their number, 0 if not known. columns: the names of all columns. delimiter: of a .csv."""

    rows: Iterator[Row]
    total: int
    columns: tuple[str, ...]
    delimiter: str = ","


def open_input(texts: list[str], file: str | None, columns: tuple[str, ...], expected: Expected, notes: Notes) -> Input:
    """Open the texts of a command: arguments, else a file, else standard input. Raises InputError if it is wrong.

    columns: those of a table that hold the texts, () for the usual ones. notes: counts repairs, once they are read.
    """
    if texts and file:
        raise InputError("give texts either as arguments or with --input, not both")
    ending = ending_of(path_of(file)) if file else ""
    if columns and ending not in TABLES:
        raise InputError(f"--columns is for tables: give one with --input, a file {', '.join(TABLES)}")
    if file and ending not in (*TABLES, ".txt"):
        raise InputError(
            f"{file}: is it a table, or lines? Tables are named {', '.join(TABLES)}, files with one text on each line "
            ".txt (each also .gz or .zst); other lines can be read from standard input"
        )
    if not file or ending == ".txt":
        return _open_lines(texts, file, expected, notes)
    path = path_of(file)
    columns = _checked_columns(columns or expected.columns, expected, file)
    seen: dict[str, None] = {}
    total = 0
    for row in _rows(path, ending, columns, expected, Notes()):
        total += 1
        seen.update(dict.fromkeys(row.record))
    delimiter = _delimiter(path, columns) if ending == ".csv" else ","
    return Input(_rows(path, ending, columns, expected, notes), total, tuple(seen), delimiter)


def _checked_columns(columns: tuple[str, ...], expected: Expected, file: str) -> tuple[str, ...]:
    if not columns:
        raise InputError(f"{file}: --columns must name the columns of {expected.words}")
    if len({*columns}) < len(columns):
        raise InputError(f"--columns {','.join(columns)}: a column is named twice")
    if not expected.least <= len(columns) <= expected.most and not (expected.lists and len(columns) > 1):
        named = counted(len(columns), "columns")
        raise InputError(f"--columns {','.join(columns)} names {named}: give {expected.words}")
    return columns


def _rows(path: Path, ending: str, columns: tuple[str, ...], expected: Expected, notes: Notes) -> Iterator[Row]:
    """Yield the rows of a table."""
    if ending == ".jsonl":
        found: Iterator[tuple[str, Mapping[str, Any]]] = json_lines(path, notes)
    else:
        delimiter = "," if ending == ".csv" else "\t"
        found = table(path, (), delimiter, quoted=ending == ".csv", notes=notes, needed=columns)
    try:
        for origin, record in found:
            require_columns(origin, record, columns)
            if None in record.values() and ending != ".jsonl":
                raise InputError(f"{origin}: {describe_defect(record, ())}")
            yield Row(origin, _texts_of(origin, record, columns, expected), record)
    except InputError as error:
        if ": no column " in str(error):
            error.add_note(f"--columns names those of {expected.words}")
        raise


def _texts_of(origin: str, record: Mapping[str, Any], columns: tuple[str, ...], expected: Expected) -> tuple[str, ...]:
    """Return the texts of a row, () where one is blank; endings that the last columns lack are left out."""
    texts: list[str] = []
    for name in columns:
        value = record[name]
        if expected.lists and isinstance(value, list) and all(isinstance(item, str) for item in value):
            texts += value
        elif isinstance(value, str | None):
            texts.append(value or "")
        else:
            remedy = "join its words with spaces" if isinstance(value, list) else "write it as a text"
            raise InputError(f"{origin}: {name!r} is {value!r:.40}, not a text: {remedy}")
    while len(texts) > expected.least and expected.lists and not texts[-1].strip():
        texts.pop()
    if not expected.least <= len(texts) <= expected.most:
        raise InputError(f"{origin}: {counted(len(texts), 'texts')}: give {expected.words}")
    return tuple(texts) if expected.blank or all(text.strip() for text in texts) else ()


def _delimiter(path: Path, columns: tuple[str, ...]) -> str:
    """Return what separates the columns of a .csv."""
    first = next(lines(path, Notes()), (1, ""))[1]
    return declared_delimiter(first) or delimiter_of(first, ",", columns)


def _open_lines(texts: list[str], file: str | None, expected: Expected, notes: Notes) -> Input:
    names = expected.names
    if texts:
        given = [(f"argument {n}", _checked_utf8(f"argument {n}", text)) for n, text in enumerate(texts, 1)]
        return Input((_of_line(*each, expected) for each in given), len(given), names)
    if not file:
        return Input((_of_line(*each, expected) for each in _standard_input()), 0, names)
    path = path_of(file)
    sizes = [len(_of_line(*each, expected).texts) for each in _lines_of(path, Notes())]
    if max(sizes, default=0) == 1:
        expected = expected._replace(names=names[:1])  # lines of one text have one column
    rows = (_of_line(*each, expected) for each in _lines_of(path, notes))
    return Input(rows, len(sizes), expected.names)


def _lines_of(path: Path, notes: Notes) -> Iterator[tuple[str, str]]:
    for number, line in lines(path, notes, LONGEST_LINE):
        if number == 1:
            _refuse_table(f"{path}:1", line)
        yield f"{path}:{number}", line


def _standard_input() -> Iterator[tuple[str, str]]:
    where = "standard input"
    try:
        for number, line in enumerate(_bounded_lines(sys.stdin), 1):
            if len(line) > LONGEST_LINE:
                raise InputError(f"{where}:{number}: a line of over {LONGEST_LINE:,} characters: split it")
            text = (line.removeprefix("\ufeff") if number == 1 else line).rstrip("\r\n")
            if number == 1:
                _refuse_table(f"{where}:1", text)
            yield f"{where}:{number}", _checked_utf8(f"{where}:{number}", text)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: convert it with iconv") from error


def _bounded_lines(file: Any) -> Iterator[str]:
    """Yield lines, of which no more is read than shows that one is too long; standard input may be any iterable."""
    readline: Callable[[int], str] | None = getattr(file, "readline", None)
    return iter(partial(readline, LONGEST_LINE + 1), "") if readline else iter(file)


def _checked_utf8(origin: str, text: str) -> str:
    """Return the text. Raises InputError for lone surrogates, as which Python keeps bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{origin} is not UTF-8: convert it with iconv") from error
    return text


_OF_HEADERS = {"text", "texts", "label", "labels", "sentence", "sentence1", "id", "index", "question", "context"}


def _refuse_table(origin: str, first: str) -> None:
    """Raise InputError if the first line is the header of a table, or JSON: each line would be one text."""
    cells = [cell.strip(' "').lower() for cell in re.split(r"[,;\t|](?! )", first)]
    names = len({*cells} & _OF_HEADERS)
    header = len(cells) > 1 and names and all(re.fullmatch(r"[\w .#-]{0,40}", cell) for cell in cells)
    if (header and names == len([cell for cell in cells if cell])) or (header and "text" in cells):
        raise InputError(
            f"{origin}: {first[:60]!r} is the header of a table: give the table with --input, as .csv or .tsv, or "
            "delete this line"
        )
    if re.fullmatch(r'\{\s*".*\}\s*', first):
        raise InputError(f"{origin}: {first[:60]!r} is JSON: give it with --input, as .jsonl")


def _of_line(origin: str, line: str, expected: Expected) -> Row:
    """Return the row of a line, whose texts are separated by tabs if there may be several."""
    if not line.strip():
        texts = (line,) if expected.blank else ()
        return Row(origin, texts, dict.fromkeys(expected.names, "") | {expected.names[0]: line})
    parts = line.split("\t") if expected.most > 1 else [line]
    if not expected.least <= len(parts) <= expected.most:
        number = len([part for part in parts if part.strip()])
        raise InputError(f"{origin}: {counted(number, 'texts')}, separated by tabs: give {expected.words}")
    *names, last = expected.names
    record: dict[str, Any] = dict.fromkeys(expected.names, "") | dict(zip(names, parts, strict=False))
    rest = parts[len(names) :]
    record[last] = rest if expected.lists else "".join(rest)
    return Row(origin, tuple(parts) if all(part.strip() for part in parts) else (), record)
