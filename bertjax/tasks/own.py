"""Describe a user's own task by the files and columns of its folder."""

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

Tags = Literal["", "entities", "words"]


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
    question and context, and an answer in `label`. choice: .jsonl with `columns` naming a context and a list of
    endings, or the endings alone; or .tsv or .csv with `columns` naming a context and each ending; `label` is the
    number of the correct ending, from 0. Label names are those of the training split, sorted; the test split may be
    unlabelled. tags: whether tags are entities, or of words each by itself; by default entities if they have marks or
    one is O: see tags.scheme_of. split: the labelled split from which labels are read. Raises InputError if there is no
    such split.
    """
    if len({*columns, label}) <= len(columns):
        raise InputError(f"columns {', '.join(columns)} and label {label}: each column may be named only once")
    formats_of = _own_formats(kind, columns, label, separator)
    names = ("validation", "dev") if split == "validation" else (split,)
    found = [
        (path_of(data) / f"{name}{ending}", ending)
        for ending in formats_of
        for name in names
        if (path_of(data) / f"{name}{ending}").is_file()
    ]
    if not found:
        missing = ", ".join(f"{names[0]}{ending}" for ending in formats_of)
        raise InputError(f"no {missing} in {data}: a task of kind {kind} needs one, so check the folder")
    path, ending = found[0]
    real_path(Path(data), path.name)
    labelled = formats_of[ending]
    parts = (
        Part("train", (f"train{ending}",), labelled),
        Part("validation", (f"validation{ending}", f"dev{ending}"), labelled),
        Part(
            "test",
            (f"test{ending}",),
            labelled if split == "test" else _own_formats(kind, columns, "", separator)[ending],
        ),
    )
    metrics = {"classify": ("accuracy",), "regress": ("pearson", "spearman"), "tag": ("entity_f1",)}
    metrics |= {"multilabel": ("micro_f1", "macro_f1", "ranking_average_precision")}
    metrics |= {"span": ("f1", "exact"), "choice": ("accuracy",)}
    examples = [] if kind in ("regress", "span") else list(labelled.read(path, Notes()))
    scheme, labels = _own_tags(examples, tags, path) if kind == "tag" else (IOB, _own_labels(kind, examples, path))
    if scheme.marks == "words":
        metrics["tag"] = ("accuracy",)
    options = max((len(example.endings) for example in examples if isinstance(example, Choice)), default=0)
    return Task("own", kind, labels, metrics[kind], parts, unanswerable=kind == "span", options=options,
                scheme=scheme)  # fmt: skip


_UNNAMED = ((), ("text",))
"""No columns given (or the default of experiments/own.py): read the formats whose fields are fixed."""


def _own_formats(kind: Kind, columns: tuple[str, ...], label: str, separator: str) -> dict[str, Any]:
    """Return the formats for a kind of task, by file extension."""
    if kind in ("classify", "multilabel", "regress"):
        if not 1 <= len(columns) <= 2:
            raise InputError(f"{len(columns)} columns of text ({', '.join(columns)}): name one or two")
        many = kind == "multilabel"
        if many and separator in ("", "\t"):
            raise InputError(f"separator={separator!r} cannot stand between labels: choose a text such as , or ;")
        tsv = Table(columns, label, separator=separator if many else "")
        csv = replace(tsv, delimiter=",", quoted=True)
        return {".tsv": tsv, ".csv": csv, ".jsonl": JsonLines(columns, label, many)}
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
    texts = [example for example in examples if isinstance(example, Texts)]
    labels = tuple(sorted({label for text in texts for label in (text.label, *(text.labels or ()))} - {""}))
    least = {"classify": 2, "multilabel": 1}.get(kind, 0)
    if least and not least <= len(labels) <= 1000:
        raise InputError(f"{path} has {len(labels)} labels ({', '.join(labels)[:60]}): expected {least} to 1000")
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
        raise InputError(f"{path} has {len(found)} tags ({', '.join(sorted(found))[:60]}): expected 2 to 1000")
    return scheme, tuple(sorted(found, key=lambda tag: (tag != OUTSIDE, tag)))
