"""Read the formats that labelled data come in: tables, JSON lines, CoNLL columns, SQuAD, and those of choices.

A format is a frozen dataclass that reads one file into examples. What cannot be read is an InputError with file and
line. What has a known treatment gets it, and is counted in `notes`, for the user to see: a byte order mark is removed,
CRLF ends a line as LF does, quotes in a TSV are text (GLUE has unbalanced ones).
"""

import csv
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from xml.parsers import expat

import zstandard

from bertjax.data.corpus import open_bytes
from bertjax.data.examples import Answer, Choice, Example, Question, Texts, Words
from bertjax.errors import InputError

Notes = Counter[str]
"""What was treated, in words -> how often."""

LETTERS = "ABCDEFGH"
INCOMPLETE = "rows without all of their texts, left out"


class Format(Protocol):
    """How to read a file, or a folder, of a task."""

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """Yield its examples. Raises InputError with file and line."""
        ...


@dataclass(frozen=True)
class Table:
    """Read texts to classify or score from a TSV or CSV, its columns by name.

    texts, label: columns; label is empty where the data have none. columns: names where the file has no header.
    quoted: quotes enclose cells, as in a CSV; else they are text. skip_incomplete: leave out rows with other than the
    right number of cells, or an empty one, and count them.
    """

    texts: tuple[str, ...]
    label: str = ""
    columns: tuple[str, ...] = ()
    delimiter: str = "\t"
    quoted: bool = False
    skip_incomplete: bool = False

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        for origin, row in _table(path, self.columns, self.delimiter, quoted=self.quoted, notes=notes):
            _has_columns(origin, row, (*self.texts, self.label))
            texts = tuple((row[name] or "").strip() for name in self.texts)
            complete = None not in row.values() and all(texts)
            if not complete and self.skip_incomplete:
                notes[INCOMPLETE] += 1
                continue
            if not complete:
                raise InputError(f"{origin}: {_incomplete(row, self.texts)}")
            yield Texts(origin, texts, (row[self.label] or "").strip() if self.label else "")


@dataclass(frozen=True)
class JsonLines:
    """Read texts to classify or score from JSON lines. texts, label: fields; label is empty where there is none."""

    texts: tuple[str, ...]
    label: str = ""

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        for origin, record in _json_lines(path, notes):
            _has_columns(origin, record, (*self.texts, self.label))
            texts = tuple(_text(origin, record, name) for name in self.texts)
            label = record[self.label] if self.label else ""
            if isinstance(label, list | dict | None):
                raise InputError(f"{origin}: {self.label!r} is {label!r}: a label is a text or a number")
            yield Texts(origin, texts, label if isinstance(label, str) else json.dumps(label))


@dataclass(frozen=True)
class JsonWords:
    """Read tagged sentences from JSON lines. words, tags: fields with lists of texts; tags is empty where none are."""

    words: str
    tags: str = ""

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        for number, (origin, record) in enumerate(_json_lines(path, notes)):
            _has_columns(origin, record, (self.words, self.tags))
            words, tags = (_texts(origin, record, name) if name else () for name in (self.words, self.tags))
            yield tagged(origin, words, tags, number)


@dataclass(frozen=True)
class Conll:
    """Read tagged sentences: a word a line with its tag in the last column, a blank line after each sentence.

    A line whose word is -DOCSTART- begins a document; without such lines every sentence is one by itself.
    """

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        words: list[str] = []
        tags: list[str] = []
        first, document, marked = 0, 0, False
        last = 0
        for last, line in _lines(path, notes):
            cells = re.split(r"[ \t]+", line.strip(" \t"))
            if cells == [""] or cells[0] == "-DOCSTART-":
                if words:
                    yield tagged(f"{path}:{first}", tuple(words), tuple(tags), document)
                    document += not marked
                words, tags = [], []
                marked |= cells[0] == "-DOCSTART-"
                document += cells[0] == "-DOCSTART-"
                continue
            if len(cells) < 2:
                raise InputError(f"{path}:{last}: no tag beside {line.strip()[:40]!r}: a word and its tag a line")
            first = first if words else last
            words.append(cells[0])
            tags.append(cells[-1])
        if words:
            yield tagged(f"{path}:{first}", tuple(words), tuple(tags), document)
        if not last:
            raise InputError(f"{path} is empty")


@dataclass(frozen=True)
class Squad:
    """Read SQuAD's JSON. unanswerable: questions may have no answer (version 2).

    Of a question whose answers do not stand where `answer_start` says, those are left out and counted.
    """

    unanswerable: bool

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        for article in _entries(path, _json_file(path, notes), "data"):
            for paragraph in _entries(path, article, "paragraphs"):
                context = _text(f"{path}", paragraph, "context")
                for entry in _entries(path, paragraph, "qas"):
                    yield self._question(path, context, entry, notes)

    def _question(self, path: Path, context: str, entry: Any, notes: Notes) -> Question:
        _has_columns(f"{path}", entry, ("id", "question"))
        origin = f"{path}: question {entry['id']}"
        question = _text(origin, entry, "question")
        labelled = "answers" in entry or "is_impossible" in entry
        given = [] if entry.get("is_impossible") else entry.get("answers", [])
        try:
            answers = tuple(Answer(answer["text"], int(answer["answer_start"])) for answer in given)
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{origin}: an answer needs `text` and `answer_start`") from error
        return self.checked(Question(origin, str(entry["id"]), question, context, answers, labelled), notes)

    def checked(self, question: Question, notes: Notes) -> Question:
        """Leave out answers that are not in the context; raise InputError where one was needed and none was given."""
        if question.labelled and not question.answers and not self.unanswerable:
            raise InputError(f"{question.origin} has no answer: give one, or use the task of version 2, squad2")
        found = tuple(a for a in question.answers if a.text and question.context.startswith(a.text, a.start))
        if lost := len(question.answers) - len(found):
            notes["answers that are not in their context where they should be, left out"] += lost
        return question._replace(
            answers=found, labelled=question.labelled and len(found) >= min(1, len(question.answers))
        )


@dataclass(frozen=True)
class Race:
    """Read RACE: a JSON object a file in folders, or all in the `data` of one file. Letters name the right options.

    Where a question has a gap, `_`, the option goes there, else behind it. google-research/albert race_utils.py.
    """

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        for file in _files(path, "*.txt"):
            content = _json_file(file, notes)
            for entry in _entries(file, content, "data") if "data" in content else [content]:
                _has_columns(f"{file}", entry, ("article", "questions", "options"))
                yield from race_questions(f"{file}", entry)


def race_questions(origin: str, entry: Mapping[str, Any]) -> Iterator[Choice]:
    """Make the choices of one article: its fields are article, questions, options and, where known, answers."""
    questions, options, answers = entry["questions"], entry["options"], entry.get("answers")
    if len(questions) != len(options) or (answers is not None and len(answers) != len(questions)):
        raise InputError(f"{origin}: its questions, options and answers differ in number")
    for number, (question, endings) in enumerate(zip(questions, options, strict=True), 1):
        place = f"{origin}: question {number} of article {entry.get('id', '')}"
        filled = (question.replace("_", x, 1) if "_" in question else f"{question} {x}" for x in endings)
        label = "" if answers is None else answers[number - 1]
        yield chosen(place, _text(place, entry, "article"), tuple(filled), label)


@dataclass(frozen=True)
class Options:
    """Read choices from a CSV or TSV. context, beginning: columns whose texts stand before an ending, in either part.

    endings: columns. label: the column with the number of the right one, from 0; empty where there is none.
    """

    context: str
    beginning: str
    endings: tuple[str, ...]
    label: str = ""
    delimiter: str = ","
    quoted: bool = True

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        for origin, row in _table(path, (), self.delimiter, quoted=self.quoted, notes=notes):
            _has_columns(origin, row, (self.context, self.beginning, *self.endings, self.label))
            if None in row.values():
                raise InputError(f"{origin}: {_incomplete(row, self.endings)}")
            begun = f"{row[self.beginning]} " if self.beginning else ""
            endings = tuple(f"{begun}{row[name]}" for name in self.endings)
            yield chosen(origin, row[self.context] or "", endings, row[self.label] or "" if self.label else "")


@dataclass(frozen=True)
class JsonChoices:
    """Read choices from JSON lines. context, endings, label: fields, of a text, a list of texts, and a number from 0.

    context may be empty: then the endings stand alone; so may label, where the right one is not known.
    """

    context: str
    endings: str
    label: str = ""

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        for origin, record in _json_lines(path, notes):
            _has_columns(origin, record, (self.context, self.endings, self.label))
            context = _text(origin, record, self.context) if self.context else ""
            label = str(record[self.label]) if self.label else ""
            yield chosen(origin, context, _texts(origin, record, self.endings), label)


@dataclass(frozen=True)
class Arc:
    """Read ARC: JSON lines as published, or a CSV without header: the question, its options, the letter of one.

    Some keys are numbers from 1; rows of such CSVs that have lost their right option are left out and counted.
    """

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        if path.suffix == ".csv":
            for number, cells in _cells(path, ",", quoted=True, notes=notes):
                if len(cells) < 4:
                    raise InputError(f"{path}:{number}: {len(cells)} cells: a question, its options, and a letter")
                key = LETTERS.find(cells[-1]) if not cells[-1].isdigit() else int(cells[-1]) - 1
                if len(cells[-1]) != 1 or key < 0:
                    where = "a header where none belongs, or " if number == 1 else ""
                    raise InputError(f"{path}:{number}: {where}{cells[-1]!r} is no letter or number of an option")
                endings = tuple(cell for cell in cells[1:-1] if cell.strip())
                if key >= len(endings):
                    notes["questions without their right option, left out"] += 1
                    continue
                yield chosen(f"{path}:{number}", cells[0], endings, str(key))
            return
        for origin, record in _json_lines(path, notes):
            try:
                question, choices = record["question"]["stem"], record["question"]["choices"]
                endings = tuple(choice["text"] for choice in choices)
                names, key = [choice["label"] for choice in choices], record.get("answerKey", "")
            except (KeyError, TypeError) as error:
                raise InputError(
                    f"{origin}: no `question` with `stem` and `choices`: is this a file of ARC?"
                ) from error
            if key and key not in names:
                raise InputError(f"{origin}: the answer {key!r} is none of {', '.join(names)}")
            yield chosen(origin, question, endings, str(names.index(key)) if key else "")


_COPA_ASKS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


@dataclass(frozen=True)
class Copa:
    """Read COPA's XML, or the JSON lines of SuperGLUE. The question that is asked of the premise stands behind it."""

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        if path.suffix != ".jsonl":
            yield from self._xml(path, notes)
            return
        for origin, record in _json_lines(path, notes):
            _has_columns(origin, record, ("premise", "question", "choice1", "choice2"))
            endings = (record["choice1"], record["choice2"])
            yield copa_choice(origin, record["premise"], record["question"], endings, record.get("label", -1))

    def _xml(self, path: Path, notes: Notes) -> Iterator[Choice]:
        content = b"".join(f"{line}\n".encode() for _, line in _lines(path, notes))
        found: list[tuple[int, dict[str, str]]] = []
        inside = ""

        def begin(name: str, attributes: dict[str, str]) -> None:
            nonlocal inside
            inside = name
            if name == "item":
                found.append((parser.CurrentLineNumber, dict(attributes)))

        def text(data: str) -> None:
            if found and inside in ("p", "a1", "a2"):
                found[-1][1][inside] = found[-1][1].get(inside, "") + data

        def end(name: str) -> None:
            nonlocal inside
            inside = ""

        parser = expat.ParserCreate()
        parser.StartElementHandler, parser.CharacterDataHandler, parser.EndElementHandler = begin, text, end
        try:
            parser.Parse(content, True)
        except expat.ExpatError as error:
            raise InputError(f"{path}:{error.lineno}: not XML: {error}") from error
        if not found:
            raise InputError(f"{path} has no <item>: is this a file of COPA?")
        for number, item in found:
            origin = f"{path}:{number}"
            _has_columns(origin, item, ("asks-for", "p", "a1", "a2"))
            right = item.get("most-plausible-alternative", "")
            if right not in ("", "1", "2"):
                raise InputError(f"{origin}: most-plausible-alternative is {right!r}, not 1 or 2")
            yield copa_choice(origin, item["p"], item["asks-for"], (item["a1"], item["a2"]), int(right or 0) - 1)


def copa_choice(origin: str, premise: str, asks: str, endings: tuple[str, ...], label: int) -> Choice:
    """Make a choice of COPA; `asks` is cause or effect, label -1 where it is not known."""
    if asks not in _COPA_ASKS:
        raise InputError(f"{origin} asks for {asks!r}, not for a cause or an effect")
    return chosen(origin, f"{premise} {_COPA_ASKS[asks]}", endings, str(label) if label >= 0 else "")


@dataclass(frozen=True)
class LabelledFolders:
    """Read a text a file, from one folder for each label. IMDB: pos and neg; its <br /> are line breaks."""

    labels: tuple[str, ...]

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        missing = [label for label in self.labels if not (path / label).is_dir()]
        if missing:
            raise InputError(f"{path} has no folder {missing[0]}: it needs one for each of {', '.join(self.labels)}")
        for label in self.labels:
            for file in _files(path / label, "*.txt"):
                yield Texts(
                    f"{file}", (_text(f"{file}", {"text": without_breaks(_whole(file, notes))}, "text"),), label
                )


def without_breaks(text: str) -> str:
    """Replace HTML's line breaks by spaces."""
    return text.replace("<br />", " ").strip()


def tagged(origin: str, words: tuple[str, ...], tags: tuple[str, ...], document: int) -> Words:
    """Make a tagged sentence. Raises InputError where words and tags differ in number, or there is no word."""
    if not words:
        raise InputError(f"{origin}: a sentence without words")
    if tags and len(tags) != len(words):
        raise InputError(f"{origin}: {len(words)} words but {len(tags)} tags: a tag for each word")
    return Words(origin, words, tags, document)


def chosen(origin: str, context: str, endings: tuple[str, ...], label: str) -> Choice:
    """Make a choice; label is a number from 0, a letter from A, or empty."""
    number = (
        -1 if label == "" else LETTERS.find(label) if label in [*LETTERS] else int(label) if label.isdigit() else 99
    )
    if len(endings) < 2 or not all(ending.strip() for ending in endings):
        raise InputError(f"{origin}: {len(endings)} options, or an empty one: give two or more, each with a text")
    if number >= len(endings):
        raise InputError(f"{origin}: the right option is {label!r}, but there are {len(endings)}")
    return Choice(origin, context.strip(), tuple(ending.strip() for ending in endings), number)


def _lines(path: Path, notes: Notes) -> Iterator[tuple[int, str]]:
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


def _whole(path: Path, notes: Notes) -> str:
    return "\n".join(line for _, line in _lines(path, notes))


def _cells(path: Path, delimiter: str, *, quoted: bool, notes: Notes) -> Iterator[tuple[int, list[str]]]:
    """Split the lines of a table into cells, each row with the number of its first line; blank ones are passed over."""
    if not quoted:
        for number, line in _lines(path, notes):
            if not line.strip(" "):
                continue
            notes["lines with unbalanced quotes, kept as text"] += line.count('"') % 2
            yield number, line.split(delimiter)
        return
    reader = csv.reader((f"{line}\n" for _, line in _lines(path, notes)), delimiter=delimiter, strict=True)
    number = 1
    try:
        for cells in reader:
            if cells:
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{number}: {error}: quotes open and close a cell, and are doubled inside") from error


def _table(
    path: Path, columns: tuple[str, ...], delimiter: str, *, quoted: bool, notes: Notes
) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Read a table row by row, as (file:line, column -> cell); a cell that a row lacks is None."""
    rows = _cells(path, delimiter, quoted=quoted, notes=notes)
    names = list(columns)
    for number, cells in rows:
        if not names:
            names = [name.strip() for name in cells]
            twice = next((name for place, name in enumerate(names) if name and name in names[:place]), "")
            if twice:
                raise InputError(f"{path}:{number}: two columns are named {twice!r}")
            continue
        if columns and number == 1 and {cell.strip().lower() for cell in cells} & {*columns, "index", "text"}:
            raise InputError(f"{path}:1: a header where none belongs ({', '.join(cells)[:60]}): delete the line")
        row: dict[str, str | None] = dict.fromkeys(names)
        row.update(zip(names, cells, strict=False))
        if len(cells) > len(names):
            row[f"column {len(cells)}"] = None  # more than the header names: nobody can say which is which
        yield f"{path}:{number}", row
    if not names:
        raise InputError(f"{path} is empty")


def _incomplete(row: Mapping[str, str | None], texts: tuple[str, ...]) -> str:
    empty = next((name for name in texts if row.get(name) is not None and not (row[name] or "").strip()), "")
    if empty:
        return f"no text in column {empty!r}: fill it, or leave the row out"
    missing = next(name for name, cell in row.items() if cell is None)
    return f"another number of cells than the header ({missing!r}): a tab inside a text, or a row cut short?"


def _has_columns(origin: str, row: Any, names: tuple[str, ...]) -> None:
    if not isinstance(row, Mapping):
        raise InputError(f"{origin}: not an object with names")
    missing = [name for name in names if name and name not in row]
    if missing:
        raise InputError(
            f"{origin}: no column {missing[0]!r} among {', '.join(map(str, row))[:200]}: is this a file of another "
            "task, or without its header?"
        )


def _json_lines(path: Path, notes: Notes) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in _lines(path, notes):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: not an object with names: one `{{…}}` a line")
        yield f"{path}:{number}", record


def _json_file(path: Path, notes: Notes) -> dict[str, Any]:
    try:
        content = json.loads(_whole(path, notes))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not an object with names: is this a file of another task?")
    return content


def _entries(path: Path, record: Any, name: str) -> list[Any]:
    if not isinstance(record, Mapping) or not isinstance(record.get(name), list):
        raise InputError(f"{path}: no list {name!r}: is this a file of another task?")
    return record[name]


def _text(origin: str, record: Mapping[str, Any], name: str) -> str:
    if not isinstance(record[name], str) or not record[name].strip():
        raise InputError(f"{origin}: no text in {name!r}: fill it, or leave it out")
    return record[name]


def _texts(origin: str, record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    if not isinstance(record[name], list) or not all(isinstance(item, str) for item in record[name]):
        raise InputError(f"{origin}: {name!r} is no list of texts")
    return tuple(record[name])


def _files(path: Path, pattern: str) -> list[Path]:
    """List a file, or the files below a folder in a fixed order."""
    files = sorted(path.rglob(pattern)) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} has no file {pattern}")
    return files
