"""Describe a user's own task by the files and columns of its folder, or by one file."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from bertjax.errors import InputError
from bertjax.storage.files import real_path
from bertjax.storage.paths import path_of
from bertjax.tasks.choices import JsonChoices, Options
from bertjax.tasks.examples import Choice, Example, Texts, Words
from bertjax.tasks.formats import Conll, JsonLines, JsonQuestions, JsonWords, Squad, Table
from bertjax.tasks.reading import Notes
from bertjax.tasks.tags import IOB, OUTSIDE, PLAIN, WORDS, Scheme, iob2_labels, scheme_of
from bertjax.tasks.task import Kind, Part, Task
from bertjax.wording import counted

Tags = Literal["", "entities", "words"]

PACKED = (".gz", ".zst")
"""Endings of compressed files, after those of formats."""


def own_task(
    kind: Kind,
    data: str,
    columns: tuple[str, ...],
    label: str,
    *,
    separator: str = ",",
    tags: Tags = "",
    split: str = "train",
) -> Task:
    """Build a task from files train, validation (or dev) and test in the folder `data`.

    classify, multilabel, regress: .tsv, .csv or .jsonl; `columns` names one text or two. multilabel: `label` is a list
    in .jsonl, else a cell with any number of labels and `separator` between them. tag: .conll, or .jsonl with a list of
    words in the column of `columns` and a list of tags in `label`. span: SQuAD's .json, or .jsonl with `columns` naming
    question and context, and an answer in `label`; by default those that data sets on the Hub have. choice: .jsonl with
    `columns` naming a context and a list of endings, or the endings alone; or .tsv or .csv with `columns` naming a
    context and each ending; `label` is the number of the correct ending, from 0. All of them may be compressed (.gz,
    .zst). Label names are those of the training split, sorted; the test split may be unlabelled. tags: whether tags are
    entities, or of words each by itself; by default entities if they have marks or one is O: see tags.scheme_of. split:
    the labelled split from which labels are read. Raises InputError if there is no such split.
    """
    formats_of = own_formats(kind, columns, label, separator)
    names = ("validation", "dev") if split == "validation" else (split,)
    path, ending, packed = _find(path_of(data), names, formats_of, kind)
    real_path(path_of(data), path.name)
    labelled, unlabelled = formats_of[ending], own_formats(kind, columns, "", separator)[ending]
    endings = (ending, ending + packed) if packed else (ending,)

    def part(split: str, names: tuple[str, ...], read: Any) -> Part:
        return Part(split, tuple(f"{name}{ending}" for ending in endings for name in names), read)

    parts = (
        part("train", ("train",), labelled),
        part("validation", ("validation", "dev"), labelled),
        part("test", ("test",), labelled if split == "test" else unlabelled),
    )
    return _task(kind, path, labelled, tags, parts)


def ending_of(path: Path) -> str:
    """Return the ending of a file, in small letters, without that of its compression."""
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix.lower()


def task_of_file(
    kind: Kind,
    file: str,
    columns: tuple[str, ...],
    label: str,
    *,
    separator: str = ",",
    tags: Tags = "",
    known: tuple[str, ...] = (),
) -> Task:
    """Build a task whose only split, `file`, is one labelled file; its folder is the data. See own_task.

    known: labels of the model that is to be scored, which complete those of a file with one label alone.
    """
    path = path_of(file)
    formats_of = own_formats(kind, columns, label, separator)
    if ending_of(path) not in formats_of:
        raise InputError(f"{file}: a task of kind {kind} is read from {', '.join(formats_of)}: convert the file")
    labelled = formats_of[ending_of(path)]
    return _task(kind, path, labelled, tags, (Part("file", (path.name,), labelled),), known)


def _find(folder: Path, names: tuple[str, ...], formats_of: dict[str, Any], kind: str) -> tuple[Path, str, str]:
    """Return the file of a split, its format's ending, and that of its compression, if any."""
    for ending in formats_of:
        for packed in ("", *PACKED):
            for name in names:
                if (folder / f"{name}{ending}{packed}").is_file():
                    return folder / f"{name}{ending}{packed}", ending, packed
    missing = ", ".join(f"{names[0]}{ending}" for ending in formats_of)
    there = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    seen = f"; it has {', '.join(there[:6])}{', …' if len(there) > 6 else ''}" if there else ""
    hint = ": JSON lines are named .jsonl" if any(f"{name}.json" in there for name in names) else ""
    raise InputError(f"no {missing} in {folder}{seen}{hint}: a task of kind {kind} needs one, so check the folder")


def _task(
    kind: Kind, path: Path, labelled: Any, tags: Tags, parts: tuple[Part, ...], known: tuple[str, ...] = ()
) -> Task:
    """Build a task with the labels of a file."""
    metrics = {"classify": ("accuracy",), "regress": ("pearson", "spearman"), "tag": ("entity_f1",)}
    metrics |= {"multilabel": ("micro_f1", "macro_f1", "ranking_average_precision")}
    metrics |= {"span": ("f1", "exact"), "choice": ("accuracy",)}
    examples = [] if kind in ("regress", "span") else list(labelled.read(path, Notes()))
    scheme, labels = (
        _own_tags(examples, tags, path) if kind == "tag" else (IOB, _own_labels(kind, examples, path, known))
    )
    if scheme.marks == "words":
        metrics["tag"] = ("accuracy",)
    options = max((len(example.endings) for example in examples if isinstance(example, Choice)), default=0)
    return Task("own", kind, labels, metrics[kind], parts, unanswerable=kind == "span", options=options,
                scheme=scheme)  # fmt: skip


_UNNAMED = ((), ("text",))
"""No columns given (or the default of experiments/own.py): read the formats whose fields are fixed."""


def own_formats(kind: Kind, columns: tuple[str, ...], label: str, separator: str) -> dict[str, Any]:
    """Return the formats for a kind of task, by file extension. label: "" for unlabelled data."""
    if label and len({*columns, label}) <= len(columns):
        raise InputError(f"columns {', '.join(columns)} and label {label}: each column may be named only once")
    if kind in ("classify", "multilabel", "regress"):
        return _text_formats(columns, label, separator if kind == "multilabel" else None)
    if kind == "tag":
        lists = {".jsonl": JsonWords(columns[0] if columns else "words", label)}
        # CoNLL's columns are fixed, whatever their names: files of them come first where none is named.
        return {".conll": Conll()} | lists if columns in _UNNAMED else lists | {".conll": Conll()}
    return _span_formats(columns, label) if kind == "span" else _choice_formats(columns, label)


def _text_formats(columns: tuple[str, ...], label: str, separator: str | None) -> dict[str, Any]:
    """Return the formats of texts. separator: between labels, None where a text has one."""
    if not 1 <= len(columns) <= 2:
        raise InputError(f"{counted(len(columns), 'columns')} of text ({', '.join(columns)}): name one or two")
    if separator in ("", "\t"):
        raise InputError(f"separator={separator!r} cannot stand between labels: choose a text such as , or ;")
    tsv = Table(columns, label, separator=separator or "")
    csv = replace(tsv, delimiter=",", quoted=True)
    return {".tsv": tsv, ".csv": csv, ".jsonl": JsonLines(columns, label, separator is not None)}


def _span_formats(columns: tuple[str, ...], label: str) -> dict[str, Any]:
    if columns in _UNNAMED:
        answers = "answers" if label == "label" else label
        return {".json": Squad(True), ".jsonl": JsonQuestions("question", "context", answers)}
    if len(columns) != 2:
        raise InputError(
            f"{counted(len(columns), 'columns')} ({', '.join(columns)}): name two, the question and its context"
        )
    return {".jsonl": JsonQuestions(*columns, label), ".json": Squad(True)}


def _choice_formats(columns: tuple[str, ...], label: str) -> dict[str, Any]:
    if not columns:
        raise InputError("no columns: name the context and the endings")
    if len(columns) > 2:
        context, *endings = columns
        choices = Options(context, "", tuple(endings), label)
        return {".tsv": replace(choices, delimiter="\t", quoted=False), ".csv": choices}
    return {".jsonl": JsonChoices(columns[0] if len(columns) == 2 else "", columns[-1], label)}


def _own_labels(kind: Kind, examples: list[Example], path: Path, known: tuple[str, ...]) -> tuple[str, ...]:
    texts = [example for example in examples if isinstance(example, Texts)]
    labels = tuple(sorted({label for text in texts for label in (text.label, *(text.labels or ()))} - {""}))
    if len(labels) == 1:
        labels += tuple(label for label in known if label.casefold() != labels[0].casefold())
    least = {"classify": 2, "multilabel": 1}.get(kind, 0)
    if least and not least <= len(labels) <= 1000:
        raise InputError(
            f"{path} has {counted(len(labels), 'labels')} ({', '.join(labels)[:60]}): expected {least} to 1000"
        )
    return labels


def _own_tags(examples: list[Example], wanted: Tags, path: Path) -> tuple[Scheme, tuple[str, ...]]:
    """Return how the tags of the data name entities, and the labels of a model: IOB2 if they have marks."""
    found = {tag for example in examples if isinstance(example, Words) for tag in example.tags}
    scheme = scheme_of(sorted(found))
    if wanted == "words" or (wanted == "entities" and scheme == WORDS):
        scheme = WORDS if wanted == "words" else PLAIN
    if scheme.marks in ("first", "last"):
        scheme = replace(scheme, types=())  # other splits may have other types, which are named
        return scheme, iob2_labels(scheme.types_of(sorted(found)))
    if not 2 <= len(found) <= 1000:
        raise InputError(
            f"{path} has {counted(len(found), 'tags')} ({', '.join(sorted(found))[:60]}): expected 2 to 1000"
        )
    return scheme, tuple(sorted(found, key=lambda tag: (tag != OUTSIDE, tag)))
