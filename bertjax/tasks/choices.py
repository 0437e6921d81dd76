"""Readers of formats of multiple choice: RACE, SWAG, ARC, COPA, JSON lines. See formats.py."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

from bertjax.errors import InputError
from bertjax.tasks.cells import label_of
from bertjax.tasks.examples import Choice, Example
from bertjax.tasks.reading import (
    Notes,
    cells_of,
    describe_defect,
    entries,
    files_of,
    json_file,
    json_lines,
    require_columns,
    table,
    text_of,
    texts_of,
    whole_text,
)
from bertjax.wording import counted

LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Race:
    """Read RACE: one JSON object per file in folders, or all in the `data` of one file. Answers are letters.

    If a question has a gap, `_`, the option replaces it, else it follows. google-research/albert race_utils.py.
    """

    def files(self, path: Path) -> list[Path]:
        """Return all files that are read, in a fixed order."""
        return files_of(path, "*.txt")

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        for file in self.files(path):
            content = json_file(file, notes)
            for entry in entries(file, content, "data") if "data" in content else [content]:
                require_columns(f"{file}", entry, ("article", "questions", "options"))
                yield from race_questions(f"{file}", entry, notes)


def race_questions(origin: str, entry: Mapping[str, Any], notes: Notes) -> Iterator[Choice]:
    """Yield the choices of one article, with the fields article, questions, options and optionally answers.

    The published files have empty options, which were in Chinese: the question alone is encoded for those, and they are
    counted, since scores are over all questions.
    """
    questions, answers = texts_of(origin, entry, "questions"), entry.get("answers")
    options = entry["options"]
    if not isinstance(options, list) or not isinstance(answers, list | None):
        raise InputError(f"{origin}: 'options' must be a list of lists, 'answers' a list of letters")
    if len(questions) != len(options) or (answers is not None and len(answers) != len(questions)):
        raise InputError(f"{origin}: its questions, options and answers differ in number")
    name = entry.get("id") or entry.get("example_id", "")
    for number, (question, endings) in enumerate(zip(questions, options, strict=True), 1):
        place = f"{origin}: question {number} of article {name}"
        endings = texts_of(place, {"options": endings}, "options")
        notes["options without a text"] += sum(not ending.strip() for ending in endings)
        filled = (question.replace("_", x, 1) if "_" in question else f"{question} {x}" for x in endings)
        label = "" if answers is None else answers[number - 1]
        if not isinstance(label, str):
            raise InputError(f"{place}: the answer is {label!r}, not the letter of an option")
        yield chosen(place, text_of(place, entry, "article"), tuple(filled), label)


@dataclass(frozen=True)
class Options:
    """Read choices from the columns of a CSV or TSV.

    context: the context. beginning: the common beginning of all endings. endings: the endings. label: the number of the
    correct one, from 0, or empty for unlabelled data.
    """

    context: str
    beginning: str
    endings: tuple[str, ...]
    label: str = ""
    delimiter: str = ","
    quoted: bool = True

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        needed = (self.context, self.beginning, *self.endings, self.label)
        for origin, row in table(path, (), self.delimiter, quoted=self.quoted, notes=notes, needed=needed):
            if None in row.values():
                raise InputError(f"{origin}: {describe_defect(row, self.endings)}")
            begun = f"{row[self.beginning]} " if self.beginning else ""
            require_endings(origin, tuple(row[name] or "" for name in self.endings))
            endings = tuple(f"{begun}{row[name]}" for name in self.endings)
            yield chosen(origin, row[self.context] or "", endings, label_of(row[self.label]) if self.label else "")


@dataclass(frozen=True)
class JsonChoices:
    """Read choices from JSON lines. context, endings, label: fields with a text, a list of texts, a number from 0.

    context may be empty, for endings without one, and label, for unlabelled data.
    """

    context: str
    endings: str
    label: str = ""

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        for origin, record in json_lines(path, notes):
            require_columns(origin, record, (self.context, self.endings, self.label))
            context = text_of(origin, record, self.context) if self.context else ""
            label = label_of(record[self.label]) if self.label else ""
            yield chosen(origin, context, texts_of(origin, record, self.endings), label)


@dataclass(frozen=True)
class Arc:
    """Read ARC: JSON lines as published, or a CSV without header: a question, its options, the letter of the answer.

    Some answers are numbers from 1. Rows of such CSVs that lack the correct option are dropped and counted.
    """

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        if path.suffix == ".csv":
            yield from self._csv(path, notes)
            return
        for origin, record in json_lines(path, notes):
            try:
                asked, choices = record["question"], record["question"]["choices"]
                texts = {"text": [choice["text"] for choice in choices]}
                names, key = [choice["label"] for choice in choices], record.get("answerKey", "")
            except (KeyError, TypeError) as error:
                raise InputError(
                    f"{origin}: no `question` with `stem` and `choices`: is this a file of ARC?"
                ) from error
            question, endings = text_of(origin, asked, "stem"), texts_of(origin, texts, "text")
            if key and key not in names:
                raise InputError(f"{origin}: the answer {key!r} is none of {', '.join(map(str, names))}")
            yield chosen(origin, question, endings, str(names.index(key)) if key else "")

    def _csv(self, path: Path, notes: Notes) -> Iterator[Choice]:
        for number, cells in cells_of(path, ",", quoted=True, notes=notes):
            if len(cells) < 4:
                raise InputError(
                    f"{path}:{number}: {counted(len(cells), 'cells')}: a question, its options and a letter are needed"
                )
            key = LETTERS.find(cells[-1]) if not cells[-1].isdecimal() else int(cells[-1]) - 1
            if len(cells[-1]) != 1 or key < 0:
                where = "a header in a file without one, or " if number == 1 else ""
                raise InputError(f"{path}:{number}: {where}{cells[-1]!r} is not the letter or number of an option")
            endings = tuple(cells[1:-1])
            while endings and not endings[-1].strip():  # rows are padded to the most options
                endings = endings[:-1]
            blank = next((place for place, cell in enumerate(endings, 1) if not cell.strip()), 0)
            if blank:
                raise InputError(f"{path}:{number}: option {blank} is empty and others follow: fill it in")
            if key >= len(endings):
                notes["questions dropped for lack of the correct option"] += 1
                continue
            yield chosen(f"{path}:{number}", cells[0], endings, str(key))


_COPA_ASKS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


@dataclass(frozen=True)
class Copa:
    """Read COPA's XML, or the JSON lines of SuperGLUE. The question follows the premise in the context."""

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        if path.suffix != ".jsonl":
            yield from self._xml(path, notes)
            return
        for origin, record in json_lines(path, notes):
            require_columns(origin, record, ("premise", "question", "choice1", "choice2"))
            premise, *endings = (text_of(origin, record, name) for name in ("premise", "choice1", "choice2"))
            label = record.get("label", -1)
            if not isinstance(label, int):
                raise InputError(f"{origin}: the label is {label!r}, not 0 or 1")
            yield copa_choice(origin, premise, record["question"], tuple(endings), label)

    def _xml(self, path: Path, notes: Notes) -> Iterator[Choice]:
        for number, item in _copa_items(path, notes):
            origin = f"{path}:{number}"
            require_columns(origin, item, ("asks-for", "p", "a1", "a2"))
            right = item.get("most-plausible-alternative", "")
            if right not in ("", "1", "2"):
                raise InputError(f"{origin}: most-plausible-alternative is {right!r}, not 1 or 2")
            yield copa_choice(origin, item["p"], item["asks-for"], (item["a1"], item["a2"]), int(right or 0) - 1)


def _copa_items(path: Path, notes: Notes) -> list[tuple[int, dict[str, str]]]:
    """Return the items of COPA's XML with their lines: attributes, and the texts of p, a1 and a2."""
    content = f"{whole_text(path, notes)}\n".encode()
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

    def entity(name: str, *_: Any) -> None:
        raise InputError(f"{path}: it declares an entity {name!r:.60}, which no file of COPA does")

    parser = expat.ParserCreate()
    parser.buffer_text, parser.EntityDeclHandler = True, entity
    parser.StartElementHandler, parser.CharacterDataHandler, parser.EndElementHandler = begin, text, end
    try:
        parser.Parse(content, True)
    except LookupError as error:
        raise InputError(f"{path}:1: {error}") from error
    except expat.ExpatError as error:
        raise InputError(f"{path}:{error.lineno}: not XML: {error}") from error
    if not found:
        raise InputError(f"{path} has no <item>: is this a file of COPA?")
    return found


def copa_choice(origin: str, premise: str, asks: str, endings: tuple[str, ...], label: int) -> Choice:
    """Build a choice of COPA; `asks` is cause or effect, label -1 if unknown."""
    if not isinstance(asks, str) or asks not in _COPA_ASKS:
        raise InputError(f"{origin} asks for {asks!r}: expected cause or effect")
    return chosen(origin, f"{premise} {_COPA_ASKS[asks]}", endings, str(label) if label >= 0 else "")


def chosen(origin: str, context: str, endings: tuple[str, ...], label: str) -> Choice:
    """Build a choice; label is a number from 0, a letter from A, or empty."""
    number = (
        -1 if label == "" else LETTERS.find(label) if label in [*LETTERS] else int(label) if label.isdecimal() else 99
    )
    require_endings(origin, endings)
    if number >= len(endings):
        raise InputError(f"{origin}: the correct option is {label!r}, but there are {len(endings)}")
    return Choice(origin, context.strip(), tuple(ending.strip() for ending in endings), number)


def require_endings(origin: str, endings: tuple[str, ...]) -> None:
    """Raise InputError if there are fewer than two endings, or one is empty."""
    if len(endings) < 2 or not all(ending.strip() for ending in endings):
        raise InputError(
            f"{origin}: {counted(len(endings), 'options')}, or an empty one: give at least two, each with a text"
        )
