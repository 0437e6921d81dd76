"""Describe a user's own task by the files and columns of its folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bertjax.errors import InputError
from bertjax.tasks.choices import JsonChoices, Options
from bertjax.tasks.examples import Choice, Example, Texts, Words
from bertjax.tasks.formats import Conll, JsonLines, JsonQuestions, JsonWords, Squad, Table
from bertjax.tasks.reading import Notes
from bertjax.tasks.tags import iob2_labels
from bertjax.tasks.task import Kind, Part, Task


def own_task(kind: Kind, data: str, columns: tuple[str, ...], label: str) -> Task:
    """Build a task from files train, validation (or dev) and test in the folder `data`.

    classify, regress: .tsv, .csv or .jsonl; `columns` names one text or two. tag: .conll, or .jsonl with a list of
    words in the column of `columns` and a list of tags in `label`. span: SQuAD's .json, or .jsonl with `columns` naming
    question and context, and an answer in `label`. choice: .jsonl with `columns` naming a context and a list of
    endings, or the endings alone; or .tsv or .csv with `columns` naming a context and each ending; `label` is the
    number of the correct ending, from 0. Label names are those of the training split, sorted; the test split may be
    unlabelled. Raises InputError if there is nothing to train on.
    """
    if len({*columns, label}) <= len(columns):
        raise InputError(f"columns {', '.join(columns)} and label {label}: each column may be named only once")
    formats_of = _own_formats(kind, columns, label)
    endings = [ending for ending in formats_of if (Path(data) / f"train{ending}").is_file()]
    if not endings:
        names = ", ".join(f"train{ending}" for ending in formats_of)
        raise InputError(f"no {names} in {data}: a task of kind {kind} needs one, so check the folder")
    ending = endings[0]
    labelled = formats_of[ending]
    parts = (
        Part("train", (f"train{ending}",), labelled),
        Part("validation", (f"validation{ending}", f"dev{ending}"), labelled),
        Part("test", (f"test{ending}",), _own_formats(kind, columns, "")[ending]),
    )
    metrics = {"classify": ("accuracy",), "regress": ("pearson", "spearman"), "tag": ("entity_f1",)}
    metrics |= {"span": ("f1", "exact"), "choice": ("accuracy",)}
    path = Path(data) / f"train{ending}"
    examples = [] if kind in ("regress", "span") else list(labelled.read(path, Notes()))
    labels = _own_labels(kind, examples, path)
    options = max((len(example.endings) for example in examples if isinstance(example, Choice)), default=0)
    return Task("own", kind, labels, metrics[kind], parts, unanswerable=kind == "span", options=options)


_UNNAMED = ((), ("text",))
"""No columns given (or the default of experiments/own.py): read the formats whose fields are fixed."""


def _own_formats(kind: Kind, columns: tuple[str, ...], label: str) -> dict[str, Any]:
    """Return the formats for a kind of task, by file extension."""
    if kind in ("classify", "regress"):
        if not 1 <= len(columns) <= 2:
            raise InputError(f"{len(columns)} columns of text ({', '.join(columns)}): name one or two")
        csv = Table(columns, label, delimiter=",", quoted=True)
        return {".tsv": Table(columns, label), ".csv": csv, ".jsonl": JsonLines(columns, label)}
    if kind == "tag":
        lists = {".jsonl": JsonWords(columns[0] if columns else "words", label)}
        return lists if columns not in _UNNAMED else {".conll": Conll()} | lists
    if kind == "span":
        if len(columns) == 2:
            return {".jsonl": JsonQuestions(*columns, label)}
        if columns not in _UNNAMED:
            raise InputError(f"{len(columns)} columns ({', '.join(columns)}): name two, the question and its context")
        return {".json": Squad(True)}
    if not columns:
        raise InputError("no columns: name the context and the endings")
    if len(columns) > 2:
        context, *endings = columns
        choices = Options(context, "", tuple(endings), label)
        return {".tsv": replace(choices, delimiter="\t", quoted=False), ".csv": choices}
    return {".jsonl": JsonChoices(columns[0] if len(columns) == 2 else "", columns[-1], label)}


def _own_labels(kind: Kind, examples: list[Example], path: Path) -> tuple[str, ...]:
    if kind == "tag":
        tags = {tag for example in examples if isinstance(example, Words) for tag in example.tags}
        return iob2_labels(tuple(sorted({tag.partition("-")[2] for tag in tags - {"O"}})))
    labels = tuple(sorted({example.label for example in examples if isinstance(example, Texts)} - {""}))
    if kind == "classify" and not 2 <= len(labels) <= 1000:
        raise InputError(f"{path} has {len(labels)} labels ({', '.join(labels)[:60]}): expected 2 to 1000")
    return labels
