"""List the tasks that models are fine-tuned on: files, columns, label names, metrics and quirks of each, a row a task.

Columns and quirks after nyu-mll/GLUE-baselines src/tasks.py, google-research/bert run_classifier.py, and the data sets'
own documentation. Data come from a folder in their original format, or from TFDS by name.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bertjax.data.corpus import open_split
from bertjax.errors import InputError
from bertjax.tasks.choices import Arc, Copa, JsonChoices, Options, Race
from bertjax.tasks.examples import Choice, Example, Texts, Words
from bertjax.tasks.formats import (
    Conll,
    JsonLines,
    JsonQuestions,
    JsonWords,
    LabelledFolders,
    ManyFiles,
    Paraphrases,
    Squad,
    Table,
)
from bertjax.tasks.reading import Notes
from bertjax.tasks.tfds import Alternatives, Articles, Columns, Lettered, Questions, Tagged, plain

Kind = Literal["classify", "regress", "tag", "span", "choice"]
_LARGEST = 3.4e38


@dataclass(frozen=True)
class Part:
    """Say where a split is. files: names that it goes by, the first that is there; tfds: its name in TFDS."""

    split: str
    files: tuple[str, ...]
    format: Any  # a Format; Any, since protocols are not described
    tfds: str = ""


@dataclass(frozen=True)
class Task:
    """Describe a task.

    labels: names of classes or tags, in the order of their numbers. spelled: how the files write them, where otherwise.
    metrics: names in bertjax.tasks.metrics, the first of which chooses the best checkpoint. parts: its splits; training
    reads train, evaluation validation. folders: names of the folder that holds them. tfds: the name of its data set
    there. scale: the range of a number to predict, where it has one. unanswerable: questions may have no answer.
    options: how many a choice has at most.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    parts: tuple[Part, ...]
    spelled: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    tfds: tuple[str, ...] = ()
    records: Any = None
    scale: tuple[float, float] | None = None
    unanswerable: bool = False
    options: int = 0

    def __post_init__(self) -> None:
        if self.kind in ("classify", "tag") and len(set(self.labels)) < 2:
            raise ValueError(f"task {self.name} has the labels {self.labels}: two or more different ones")
        if self.kind == "choice" and self.options < 2:
            raise ValueError(f"task {self.name} has {self.options} options to choose from: two or more")
        if self.spelled and len(self.spelled) != len(self.labels):
            raise ValueError(f"task {self.name} spells {len(self.spelled)} of its {len(self.labels)} labels")

    def part(self, split: str) -> Part:
        """Find a split. Raises InputError for one that the task does not have."""
        for part in self.parts:
            if part.split == split:
                return part
        raise InputError(f"task {self.name} has no split {split!r}: it has {', '.join(p.split for p in self.parts)}")

    def number(self, origin: str, label: str) -> int:
        """Number a label as the files spell it. Raises InputError for one that is unknown, or of a task with names."""
        names = self.spelled or self.labels
        if label in names:
            return names.index(label)
        known = ", ".join(names)
        raise InputError(f"{origin}: unknown label {label!r}, task {self.name} has {known}: a file of another task?")

    def value(self, origin: str, label: str) -> float:
        """Read a number to predict. Raises InputError for what is none, or outside the task's range."""
        try:
            value = float(label)
        except ValueError as error:
            raise InputError(f"{origin}: {label!r} is no number, which task {self.name} predicts") from error
        low, high = self.scale or (-math.inf, math.inf)
        if not (math.isfinite(value) and abs(value) < _LARGEST):
            raise InputError(f"{origin}: {label} is not a number that float32 holds")
        if not low <= value <= high:
            raise InputError(f"{origin}: {label} is outside {low:g} to {high:g}, the range of task {self.name}")
        return value


class Loaded(NamedTuple):
    """Examples, and what was treated on the way to them: in words -> how often."""

    examples: list[Example]
    notes: Notes


def load_examples(task: Task, data: str, split: str) -> Loaded:
    """Read a split of a task. data: a folder, or `tfds`, or `tfds:FOLDER` where TFDS keeps its data sets.

    Raises InputError where it is missing, empty or not of this task.
    """
    notes: Notes = Notes()
    part = task.part(split)
    if data.partition(":")[0] == "tfds":
        examples = list(_from_tfds(task, part, data.partition(":")[2] or None, notes))
    else:
        examples = list(part.format.read(find_part(task, data, part), notes))
    if not examples:
        raise InputError(f"the {split} split of task {task.name} in {data} is empty")
    return Loaded(examples, +notes)


def find_part(task: Task, data: str, part: Part) -> Path:
    """Find the file or folder of a split, in `data` or in the task's own folder below it."""
    folders = [Path(data), *(Path(data) / folder for folder in task.folders)]
    for folder in folders:
        for name in part.files:
            if (folder / name).exists():
                return folder / name
    names, inside = " or ".join(part.files), "".join(f" or in {folder}/ of it" for folder in task.folders)
    raise InputError(f"no {names} in {data}{inside}, the {part.split} split of task {task.name}: check data=FOLDER")


def available(task: Task, data: str) -> tuple[str, ...]:
    """Name the splits of a task whose files are there; of TFDS, those that it documents."""
    if data.partition(":")[0] == "tfds":
        return tuple(part.split for part in task.parts if part.tfds)

    def there(part: Part) -> bool:
        folders = [Path(data), *(Path(data) / folder for folder in task.folders)]
        return any((folder / name).exists() for folder in folders for name in part.files)

    return tuple(part.split for part in task.parts if there(part))


def digest(task: Task, data: str) -> str:
    """Identify what training and its evaluation read of a task: the SHA-256 of the files; of TFDS name, version, size.

    The test splits are not counted: no training reads them.
    """
    total = hashlib.sha256(task.name.encode())
    for split in available(task, data):
        if split.startswith("test"):
            continue
        part = task.part(split)
        if data.partition(":")[0] == "tfds":
            for name in task.tfds:
                source, info = open_split(name, part.tfds, data.partition(":")[2] or None)
                total.update(f"{info.full_name} {split} {len(source)}".encode())
            continue
        path = find_part(task, data, part)
        folder = path if path.is_dir() else path.parent
        files = part.format.files(path) if isinstance(part.format, ManyFiles) else [path]
        for file in files:
            name = file.relative_to(folder).as_posix()
            total.update(name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _from_tfds(task: Task, part: Part, data_dir: str | None, notes: Notes) -> Iterator[Example]:
    if not part.tfds:
        raise InputError(f"TFDS has no {part.split} split of task {task.name}: give data=FOLDER in the original format")
    for name in task.tfds:
        source, info = open_split(name, part.tfds, data_dir)
        for index in range(len(source)):
            for example in task.records.examples(f"{name}[{index}]", plain(source[index], info.features), notes):
                if isinstance(example, Texts) and task.spelled and example.label in task.labels:
                    example = example._replace(label=task.spelled[task.labels.index(example.label)])
                if isinstance(example, Words):
                    notes["sentences read without their document, whose beginnings TFDS leaves out"] += 1
                    example = example._replace(document=index)
                yield example


def _glue(
    name: str,
    folder: str,
    texts: tuple[str, ...],
    labels: tuple[str, ...],
    *,
    label: str = "label",
    kind: Kind = "classify",
    metrics: tuple[str, ...] = ("accuracy",),
    spelled: tuple[str, ...] = (),
    scale: tuple[float, float] | None = None,
    skip_incomplete: bool = False,
) -> Task:
    """Describe a task whose three files have headers; that of the test split has no labels."""
    table = Table(texts, label, skip_incomplete=skip_incomplete)
    parts = (
        Part("train", ("train.tsv",), table, "train"),
        Part("validation", ("dev.tsv",), table, "validation"),
        Part("test", ("test.tsv",), Table(texts), "test"),
    )
    records = Columns(texts, skip_incomplete=skip_incomplete)
    return Task(name, kind, labels, metrics, parts, spelled, (folder,), (f"glue/{name}",), records, scale)


def own_task(kind: Kind, data: str, columns: tuple[str, ...], label: str) -> Task:
    """Describe a user's own task: files train, validation (or dev) and test in the folder `data`.

    classify, regress: .tsv, .csv or .jsonl, `columns` of one text or two. tag: .conll, or .jsonl with `columns` of one
    list of words, and of one of tags in `label`. span: SQuAD's .json, or .jsonl with `columns` of a question and its
    context, and an answer in `label`. choice: .jsonl, `columns` of a context and a list of endings, or of endings
    alone; or .tsv, .csv with `columns` of a context and each ending; and the number of the right one in `label`. Names
    of labels are those found in the training split, in order; the test split may lack its labels. Raises InputError
    where there is nothing to learn.
    """
    if len({*columns, label}) <= len(columns):
        raise InputError(f"columns {', '.join(columns)} and label {label}: a column is named twice")
    formats_of = _own_formats(kind, columns, label)
    endings = [ending for ending in formats_of if (Path(data) / f"train{ending}").is_file()]
    if not endings:
        names = ", ".join(f"train{ending}" for ending in formats_of)
        raise InputError(f"no {names} in {data}, to train a task of kind {kind} on: check the folder")
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
"""Columns that nobody named: what names its own fields or has none is read then."""


def _own_formats(kind: Kind, columns: tuple[str, ...], label: str) -> dict[str, Any]:
    """Say how to read a user's files of a kind, by the endings of their names."""
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
            raise InputError(f"{len(columns)} columns ({', '.join(columns)}): name that of questions and of contexts")
        return {".json": Squad(True)}
    if not columns:
        raise InputError("no columns: name that of the context and that of endings")
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
        raise InputError(f"{path} has {len(labels)} labels ({', '.join(labels)[:60]}): 2 to 1000 different ones")
    return labels


_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = ("contradiction", "entailment", "neutral")  # run_classifier.py; others number them otherwise: go by the names
_COLA = Table(("sentence",), "label", columns=("source", "label", "mark", "sentence"))
_PREMISES = Columns(("premise", "hypothesis"))

COLA = Task(
    "cola", "classify", ("unacceptable", "acceptable"), ("matthews", "accuracy"),
    (
        Part("train", ("train.tsv",), _COLA, "train"),
        Part("validation", ("dev.tsv",), _COLA, "validation"),
        Part("test", ("test.tsv",), Table(("sentence",)), "test"),  # the one with a header
    ),
    ("0", "1"), ("CoLA",), ("glue/cola",), Columns(("sentence",)),
)  # fmt: skip
SST2 = _glue("sst2", "SST-2", ("sentence",), ("negative", "positive"), spelled=("0", "1"))
MRPC = Task(
    "mrpc", "classify", ("not_equivalent", "equivalent"), ("f1", "accuracy"),
    (
        Part("train", ("train.tsv", "msr_paraphrase_train.txt"), Paraphrases(dev=False), "train"),
        Part("validation", ("dev.tsv", "msr_paraphrase_train.txt"), Paraphrases(dev=True), "validation"),
        Part("test", ("test.tsv",), Table(("#1 String", "#2 String")), "test"),
    ),
    ("0", "1"), ("MRPC",), ("glue/mrpc",), Columns(("sentence1", "sentence2")),
)  # fmt: skip
STSB = _glue(
    "stsb", "STS-B", ("sentence1", "sentence2"), (), label="score", kind="regress", metrics=("pearson", "spearman"),
    scale=(0.0, 5.0),
)  # fmt: skip
QQP = _glue(
    "qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), label="is_duplicate",
    metrics=("f1", "accuracy"), spelled=("0", "1"), skip_incomplete=True,
)  # fmt: skip
MNLI = Task(
    "mnli", "classify", _MNLI, ("accuracy",),
    (
        # By name: the label is column 11 of train and column 15 of dev.
        Part("train", ("train.tsv",), Table(("sentence1", "sentence2"), "gold_label"), "train"),
        Part("validation", ("dev_matched.tsv",), Table(("sentence1", "sentence2"), "gold_label"), "validation_matched"),
        Part("validation_mismatched", ("dev_mismatched.tsv",), Table(("sentence1", "sentence2"), "gold_label"),
             "validation_mismatched"),
        Part("test", ("test_matched.tsv",), Table(("sentence1", "sentence2")), "test_matched"),
        Part("test_mismatched", ("test_mismatched.tsv",), Table(("sentence1", "sentence2")), "test_mismatched"),
    ),
    (), ("MNLI",), ("glue/mnli",), _PREMISES,
)  # fmt: skip
QNLI = _glue("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT)
RTE = _glue("rte", "RTE", ("sentence1", "sentence2"), _ENTAILMENT)
WNLI = _glue("wnli", "WNLI", ("sentence1", "sentence2"), ("not_entailment", "entailment"), spelled=("0", "1"))
AX = Task(
    "ax", "classify", _MNLI, ("matthews", "accuracy"),
    (
        Part("validation", ("diagnostic-full.tsv",), Table(("Premise", "Hypothesis"), "Label")),
        Part("test", ("diagnostic.tsv", "AX.tsv"), Table(("sentence1", "sentence2")), "test"),
    ),
    (), ("AX", "diagnostic"), ("glue/ax",), _PREMISES,
)  # fmt: skip
GLUE = (COLA, SST2, MRPC, STSB, QQP, MNLI, QNLI, RTE, WNLI)

SQUAD = Task(
    "squad", "span", (), ("f1", "exact"),
    (
        Part("train", ("train-v1.1.json", "train-v1.1.rebuilt.json"), Squad(False), "train"),
        Part("validation", ("dev-v1.1.json", "dev-v1.1.rebuilt.json"), Squad(False), "validation"),
    ),
    (), ("squad", "SQuAD"), ("squad/v1.1",), Questions(False),
)  # fmt: skip
SQUAD2 = Task(
    "squad2", "span", (), ("f1", "exact"),
    (
        Part("train", ("train-v2.0.json",), Squad(True), "train"),
        Part("validation", ("dev-v2.0.json", "dev-v2.0.rebuilt.json"), Squad(True), "validation"),
    ),
    (), ("squad", "SQuAD"), ("squad/v2.0",), Questions(True), unanswerable=True,
)  # fmt: skip


def iob2_labels(types: tuple[str, ...]) -> tuple[str, ...]:
    """Name the tags of entities of these types: O, then one that begins and one that goes on, of each."""
    return ("O", *(f"{mark}-{kind}" for kind in types for mark in "BI"))


CONLL2003 = Task(
    "conll2003", "tag", iob2_labels(("PER", "ORG", "LOC", "MISC")), ("entity_f1",),
    (
        Part("train", ("eng.train", "train.txt"), Conll(), "train"),
        Part("validation", ("eng.testa", "valid.txt"), Conll(), "dev"),
        Part("test", ("eng.testb", "test.txt"), Conll(), "test"),
    ),
    (), ("conll2003", "CoNLL-2003"), ("conll2003",), Tagged(),
)  # fmt: skip
WNUT17 = Task(
    "wnut17", "tag", iob2_labels(("corporation", "creative-work", "group", "location", "person", "product")),
    ("entity_f1",),
    (
        Part("train", ("wnut17train.conll",), Conll()),
        Part("validation", ("emerging.dev.conll",), Conll()),
        Part("test", ("emerging.test.annotated",), Conll()),
    ),
    (), ("wnut17", "WNUT-17"),
)  # fmt: skip
RACE = Task(
    "race", "choice", (), ("accuracy",),
    (
        Part("train", ("train", "train.json"), Race(), "train"),
        Part("validation", ("dev", "dev.json", "expmrc-race-dev.json"), Race(), "dev"),
        Part("test", ("test", "test.json"), Race(), "test"),
    ),
    (), ("RACE", "race", "race_expmrc"), ("race/middle", "race/high"), Articles(), options=4,
)  # fmt: skip
_ENDINGS = ("ending0", "ending1", "ending2", "ending3")
SWAG = Task(
    "swag", "choice", (), ("accuracy",),
    (
        Part("train", ("train.csv",), Options("sent1", "sent2", _ENDINGS, "label")),
        Part("validation", ("val.csv",), Options("sent1", "sent2", _ENDINGS, "label")),
        Part("test", ("test.csv",), Options("sent1", "sent2", _ENDINGS)),
    ),
    (), ("SWAG", "swag"), options=4,
)  # fmt: skip
COPA = Task(
    "copa", "choice", (), ("accuracy",),
    (
        # As SuperGLUE has it, else the XML: its balanced development set trains, its test set evaluates.
        Part("train", ("train.jsonl", "balanced-copa-dev-all.xml", "copa-dev.xml"), Copa(), "train"),
        Part("validation", ("val.jsonl", "copa-test.xml"), Copa(), "validation"),
        Part("test", ("test.jsonl",), Copa(), "test"),
    ),
    (), ("COPA", "copa", "balanced_copa"), ("super_glue/copa",), Alternatives(), options=2,
)  # fmt: skip


def _arc(name: str, subset: str) -> Task:
    short = subset.lower()
    parts = (
        Part("train", (f"ARC-{subset}-Train.jsonl", f"{short}_train.csv"), Arc(), "train"),
        Part("validation", (f"ARC-{subset}-Dev.jsonl", f"{short}_validation.csv"), Arc(), "validation"),
        Part("test", (f"ARC-{subset}-Test.jsonl", f"{short}_test.csv"), Arc(), "test"),
    )
    folders = (f"ARC-{subset}", "arc")
    tfds = (f"ai2_arc/ARC-{subset}",)
    return Task(name, "choice", (), ("accuracy",), parts, (), folders, tfds, Lettered(), options=5)


ARC_EASY, ARC_CHALLENGE = _arc("arc_easy", "Easy"), _arc("arc_challenge", "Challenge")
IMDB = Task(
    "imdb", "classify", ("neg", "pos"), ("accuracy",),
    (
        Part("train", ("train",), LabelledFolders(("neg", "pos")), "train"),
        Part("validation", ("test",), LabelledFolders(("neg", "pos")), "test"),  # it has no other
    ),
    (), ("aclImdb",), ("imdb_reviews",), Columns(("text",)),
)  # fmt: skip

TASKS = (*GLUE, AX, SQUAD, SQUAD2, CONLL2003, WNUT17, RACE, SWAG, COPA, ARC_EASY, ARC_CHALLENGE, IMDB)


def find_task(name: str) -> Task:
    """Find a task of the table by its name. Raises InputError for one that is not in it."""
    for task in TASKS:
        if task.name == name:
            return task
    raise InputError(f"no task {name!r}: the table has {', '.join(task.name for task in TASKS)}")
