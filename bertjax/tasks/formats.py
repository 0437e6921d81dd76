"""Readers of file formats of labelled data: tables, JSON lines, CoNLL columns, SQuAD, folders.

A format is a frozen dataclass that reads one file, or a folder, into examples. Those of choices are in choices.py.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bertjax.errors import InputError
from bertjax.storage.files import real_path
from bertjax.tasks.cells import MISSING, label_of
from bertjax.tasks.examples import Answer, Example, Question, Texts, Words
from bertjax.tasks.reading import (
    Notes,
    cells_of,
    describe_defect,
    entries,
    files_of,
    json_file,
    json_lines,
    lines,
    require_columns,
    table,
    text_of,
    texts_of,
    whole_text,
)
from bertjax.wording import counted

INCOMPLETE = "rows dropped for lack of a text"


class Format(Protocol):
    """Protocol for readers of a file, or a folder, of a task."""

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """Yield the examples. Raises InputError with file and line."""
        ...


@runtime_checkable
class ManyFiles(Protocol):
    """Protocol for formats that may read other files than the given one."""

    def files(self, path: Path) -> list[Path]:
        """Return all files that are read, in a fixed order."""
        ...


@dataclass(frozen=True)
class Table:
    """Read texts for classification or regression from the columns of a TSV or CSV.

    texts, label: columns; label is empty for unlabelled data. separator: between the labels of a text that may have any
    number of them, none where the cell is empty; by default there is one. columns: names of all columns if the file has
    no header. quoted: quotes enclose cells, as in a CSV; else they are text. skip_incomplete: drop and count rows with
    a wrong number of cells, or an empty text.
    """

    texts: tuple[str, ...]
    label: str = ""
    columns: tuple[str, ...] = ()
    delimiter: str = "\t"
    quoted: bool = False
    skip_incomplete: bool = False
    separator: str = ""

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        needed = () if self.columns else (*self.texts, self.label)
        rows = table(path, self.columns, self.delimiter, quoted=self.quoted, notes=notes, needed=needed)
        for origin, row in rows:
            yield from self.texts_of_row(origin, row, notes)

    def texts_of_row(self, origin: str, row: Mapping[str, str | None], notes: Notes) -> Iterator[Texts]:
        """Yield the example of a row, or nothing if it is dropped."""
        require_columns(origin, row, (*self.texts, self.label))
        texts = tuple((row[name] or "").strip() for name in self.texts)
        complete = None not in row.values() and all(texts)
        cell = (row[self.label] or "").strip() if self.label else ""
        label = label_of(cell, notes)
        if complete and self.separator:
            given = [label_of(each) for each in label.split(self.separator)]
            known = self.label and cell not in MISSING
            yield Texts(origin, texts, labels=tuple(filter(None, given)) if known else None)
        elif complete:
            yield Texts(origin, texts, label)
        elif self.skip_incomplete:
            notes[INCOMPLETE] += 1
        else:
            raise InputError(f"{origin}: {describe_defect(row, self.texts)}")


@dataclass(frozen=True)
class Paraphrases:
    """Read MRPC: GLUE's TSV, or Microsoft's own file, which contains both training and development set.

    dev: read the pairs whose ids are listed in (mrpc_)dev_ids.tsv in the same folder, else all others.
    """

    dev: bool

    def files(self, path: Path) -> list[Path]:
        """Return all files that are read. Raises InputError if the list of ids is missing."""
        return [path, _dev_ids(path)] if path.name == "msr_paraphrase_train.txt" else [path]

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        pairs = Table(("#1 String", "#2 String"), "Quality")
        if path.name != "msr_paraphrase_train.txt":
            yield from pairs.read(path, notes)
            return
        listed = {tuple(cells) for _, cells in cells_of(_dev_ids(path), "\t", quoted=False, notes=notes)}
        for origin, row in table(path, (), "\t", quoted=False, notes=notes):
            require_columns(origin, row, ("#1 ID", "#2 ID"))
            if ((row["#1 ID"], row["#2 ID"]) in listed) == self.dev:
                yield from pairs.texts_of_row(origin, row, notes)


def _dev_ids(path: Path) -> Path:
    lists = [path.with_name(name) for name in ("dev_ids.tsv", "mrpc_dev_ids.tsv")]
    found = next((file for file in lists if file.is_file()), None)
    if found is not None:
        real_path(found.parent, found.name)
    else:
        raise InputError(f"no dev_ids.tsv beside {path}: add GLUE's list of the pairs of its development set")
    return found


@dataclass(frozen=True)
class JsonLines:
    """Read texts for classification or regression from JSON lines.

    texts, label: fields; label may be empty. many: the label is a list, of any number of labels.
    """

    texts: tuple[str, ...]
    label: str = ""
    many: bool = False

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        for origin, record in json_lines(path, notes):
            require_columns(origin, record, (*self.texts, self.label))
            texts = tuple(text_of(origin, record, name) for name in self.texts)
            if self.many:
                yield Texts(origin, texts, labels=self._labels(origin, record))
                continue
            label = record[self.label] if self.label else ""
            if isinstance(label, list | dict):
                raise InputError(f"{origin}: {self.label!r} is {label!r}: a label must be a text or a number")
            yield Texts(origin, texts, label_of(label, notes))

    def _labels(self, origin: str, record: Mapping[str, Any]) -> tuple[str, ...] | None:
        if not self.label:
            return None
        given = record[self.label]
        if not isinstance(given, list) or any(isinstance(label, list | dict | None) for label in given):
            raise InputError(
                f"{origin}: {self.label!r} is {given!r}: write a list of texts or numbers, [] for no label"
            )
        return tuple(filter(None, map(label_of, given)))


@dataclass(frozen=True)
class JsonWords:
    """Read tagged sentences from JSON lines. words, tags: fields with lists of texts; tags may be empty."""

    words: str
    tags: str = ""

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        for number, (origin, record) in enumerate(json_lines(path, notes)):
            require_columns(origin, record, (self.words, self.tags))
            given = record[self.tags] if self.tags else ()
            if isinstance(given, list) and any(isinstance(tag, int) for tag in given):
                raise InputError(
                    f"{origin}: {self.tags!r} holds numbers: write the names of the tags (of a data set of Hugging "
                    "Face its features' int2str gives them)"
                )
            words, tags = (texts_of(origin, record, name) if name else () for name in (self.words, self.tags))
            yield tagged(origin, words, tags, number)


@dataclass(frozen=True)
class Conll:
    """Read CoNLL columns: one word per line with its tag in the last column, a blank line after each sentence.

    A line with the word -DOCSTART- starts a document; without such lines every sentence is a document.
    """

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        words: list[str] = []
        tags: list[str] = []
        first, document, marked = 0, 0, False
        last = 0
        for last, line in lines(path, notes):
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
                raise InputError(
                    f"{path}:{last}: no tag beside {line.strip()[:40]!r}: write one word and its tag per line"
                )
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

    Answers that do not occur at `answer_start` are counted: they are not trained on, but predictions are scored against
    them, as in the official script.
    """

    unanswerable: bool

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        seen: set[str] = set()
        for article in entries(path, _articles(path, notes), "data"):
            for paragraph in entries(path, article, "paragraphs"):
                context = text_of(f"{path}", paragraph, "context")
                for entry in entries(path, paragraph, "qas"):
                    yield unique(self._question(path, context, entry, notes), seen)

    def _question(self, path: Path, context: str, entry: Any, notes: Notes) -> Question:
        require_columns(f"{path}", entry, ("id",))
        origin = f"{path}: question {entry['id']}"
        question = text_of(origin, entry, "question")
        labelled = "answers" in entry or "is_impossible" in entry
        given = [] if entry.get("is_impossible") else entry.get("answers", [])
        try:
            answers = tuple(Answer(answer["text"], int(answer["answer_start"])) for answer in given)
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise InputError(f"{origin}: an answer needs `text` and `answer_start`") from error
        if not all(isinstance(answer.text, str) for answer in answers):
            raise InputError(f"{origin}: an answer needs `text` and `answer_start`: its text is not a string")
        return self.checked(Question(origin, str(entry["id"]), question, context, answers, labelled), notes)

    def checked(self, question: Question, notes: Notes) -> Question:
        """Mark answers that are not in the context. Raises InputError if there is none where one is required."""
        if question.labelled and not question.answers and not self.unanswerable:
            raise InputError(f"{question.origin} has no answer: give one, or use the task of version 2, squad2")
        answers = tuple(
            a if a.text and question.context.startswith(a.text, a.start) else a._replace(start=-1)
            for a in question.answers
        )
        lost = sum(answer.start < 0 for answer in answers)
        notes["answers not at their place in the context, not trained on"] += lost
        return question._replace(answers=answers, labelled=question.labelled and (lost < len(answers) or not answers))


def _articles(path: Path, notes: Notes) -> dict[str, Any]:
    """Read SQuAD's JSON. Raises InputError for JSON lines, as Hugging Face writes them also to files named .json."""
    by_line = f"{path}: questions as JSON lines, as Hugging Face writes them: name the file .jsonl"
    try:
        content = json_file(path, notes)
    except InputError as error:
        raise InputError(by_line) if _begins_with_a_question(path, notes) else error from None
    if "question" in content and "data" not in content:
        raise InputError(by_line)
    return content


def _begins_with_a_question(path: Path, notes: Notes) -> bool:
    """Return whether the first line is a record of a question, no longer than such records are."""
    try:
        first = next((line for _, line in lines(path, notes)), "")
    except InputError:
        return False
    return re.fullmatch(r'\{.*"question".*\}\s*', first) is not None and '"data"' not in first


@dataclass(frozen=True)
class JsonQuestions:
    """Read questions from JSON lines. question, context, answer: fields; answer may be empty for unlabelled data.

    An answer is a text, whose first occurrence in the context counts; null or empty for none; or an object with lists
    `text` and `answer_start`, as in data sets on the Hub. An `id` is optional.
    """

    question: str
    context: str
    answer: str = ""

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        seen: set[str] = set()
        for number, (origin, record) in enumerate(json_lines(path, notes), 1):
            require_columns(origin, record, (self.question, self.context, self.answer))
            context = text_of(origin, record, self.context)
            answers = self._answers(origin, record[self.answer], context) if self.answer else ()
            name = str(record.get("id", number))
            question = text_of(origin, record, self.question)
            labelled = bool(self.answer)
            given = Question(origin, name, question, context, answers, labelled)
            yield unique(Squad(True).checked(given, notes), seen)

    def _answers(self, origin: str, given: Any, context: str) -> tuple[Answer, ...]:
        match given:
            case None:
                return ()
            case str() if not given.strip():
                return ()
            case str():
                return (Answer(given, context.find(given)),)
            case {"text": [*texts], "answer_start": [*starts]} if len(texts) == len(starts):
                if all(isinstance(x, str) for x in texts) and all(isinstance(x, int) for x in starts):
                    return tuple(Answer(text, start) for text, start in zip(texts, starts, strict=True))
        raise InputError(
            f"{origin}: {self.answer!r} is neither a text nor lists `text` and `answer_start` of equal length"
        )


@dataclass(frozen=True)
class LabelledFolders:
    """Read one text per file, from one folder per label. IMDB: pos and neg; its <br /> are line breaks."""

    labels: tuple[str, ...]

    def read(self, path: Path, notes: Notes) -> Iterator[Example]:
        """See Format.read."""
        for label, file in self._labelled(path):
            text = text_of(f"{file}", {"text": without_breaks(whole_text(file, notes))}, "text")
            yield Texts(f"{file}", (text,), label)

    def files(self, path: Path) -> list[Path]:
        """Return all files that are read. Raises InputError if a folder is missing."""
        return [file for _, file in self._labelled(path)]

    def _labelled(self, path: Path) -> list[tuple[str, Path]]:
        missing = [label for label in self.labels if not (path / label).is_dir()]
        if missing:
            raise InputError(f"{path} has no folder {missing[0]}: one is needed for each of {', '.join(self.labels)}")
        return [(label, file) for label in self.labels for file in files_of(path / label, "*.txt")]


def unique(question: Question, seen: set[str]) -> Question:
    """Return the question and add its id to `seen`. Raises InputError if the id was seen before."""
    if question.id in seen:
        raise InputError(f"{question.origin}: another question has the id {question.id!r}: ids must be unique")
    seen.add(question.id)
    return question


def without_breaks(text: str) -> str:
    """Replace HTML line breaks by spaces."""
    return text.replace("<br />", " ").strip()


def tagged(origin: str, words: tuple[str, ...], tags: tuple[str, ...], document: int) -> Words:
    """Build a tagged sentence. Raises InputError if words and tags differ in number, or there is no word."""
    if not words:
        raise InputError(f"{origin}: the sentence has no words")
    if tags and len(tags) != len(words):
        raise InputError(
            f"{origin}: {counted(len(words), 'words')} but {counted(len(tags), 'tags')}: give one tag for each word"
        )
    return Words(origin, words, tags, document)
