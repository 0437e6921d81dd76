"""What a task is: its kind, labels, metrics and splits."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from bertjax.errors import InputError
from bertjax.tasks.tags import IOB, Scheme, to_iob2
from bertjax.wording import counted

Kind = Literal["classify", "multilabel", "regress", "tag", "span", "choice"]
Metric = Callable[[Any, Any], float]
"""(labels [R], predictions [R]) -> a score; larger is better. Of several labels a row both are booleans [R, C]."""

_LARGEST = 3.4e38


@dataclass(frozen=True)
class Part:
    """A split: the names of its file, of which the first that exists is read, its format, and its name in TFDS."""

    split: str
    files: tuple[str, ...]
    format: Any  # a Format: see formats.py
    tfds: str = ""


@dataclass(frozen=True)
class Task:
    """Define a task.

    labels: class or tag names, in the order of their numbers. spelled: their spelling in the files, if different.
    kind: multilabel is any number of labels for each text, classify one.
    metrics: names from bertjax.tasks.metrics, or functions, for a kind that predicts a class or a number for each row;
    the first selects the best checkpoint. parts: the splits; training reads
    train, evaluation validation. folders: names of the task's own folder below `data`. tfds: names of its data sets in
    TFDS, whose records `records` converts. scale: the range of a regression target, if bounded. unanswerable: questions
    may have no answer. options: maximum number of options of a choice. scheme: how the data write tags; those with
    marks are converted to IOB2.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...] | tuple[str | Metric, ...]  # an override can set names
    parts: tuple[Part, ...]
    spelled: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    tfds: tuple[str, ...] = ()
    records: Any = None
    scale: tuple[float, float] | None = None
    unanswerable: bool = False
    options: int = 0
    scheme: Scheme = IOB

    def __post_init__(self) -> None:
        if self.kind in ("classify", "tag") and len(set(self.labels)) < 2:
            raise ValueError(f"task {self.name} has the labels {self.labels}: it needs at least two different ones")
        if self.kind == "multilabel" and not len(self.labels) == len(set(self.labels)) > 0:
            raise ValueError(f"task {self.name} has the labels {self.labels}: it needs at least one, each once")
        if self.kind == "choice" and self.options < 2:
            raise ValueError(f"task {self.name} has options={self.options}: a choice needs at least two")
        if self.spelled and len(self.spelled) != len(self.labels):
            raise ValueError(
                f"task {self.name} has {counted(len(self.labels), 'labels')}, but spellings of {len(self.spelled)}"
            )
        if self.kind == "tag" and (self.scheme.marks == "words") != ("accuracy" in self.metric_names):
            raise ValueError(
                f"task {self.name} has the metrics {', '.join(self.metric_names)}: entities are scored by entity_f1, "
                "other tags of words by accuracy"
            )
        own = [name for name, metric in zip(self.metric_names, self.metrics, strict=True) if callable(metric)]
        if own and self.kind in ("tag", "span"):
            raise ValueError(f"task {self.name} is of kind {self.kind}, which has metrics by name only, not {own[0]}()")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names by which metrics are reported: of a function its own."""
        return tuple(metric if isinstance(metric, str) else metric.__name__ for metric in self.metrics)

    def part(self, split: str) -> Part:
        """Return a split by name. Raises InputError if the task has no such split."""
        for part in self.parts:
            if part.split == split:
                return part
        raise InputError(f"task {self.name} has no split {split!r}: it has {', '.join(p.split for p in self.parts)}")

    def number(self, origin: str, label: str) -> int:
        """Return the number of a label as spelled in the files. Raises InputError for an unknown label."""
        names = self.spelled or self.labels
        if label in names:
            return names.index(label)
        known = ", ".join(names)
        raise InputError(f"{origin}: unknown label {label!r}, task {self.name} has {known}: a file of another task?")

    def tags(self, origin: str, tags: tuple[str, ...]) -> tuple[str, ...]:
        """Return the tags of a sentence as the labels are: in IOB2, or as they are if the scheme has no marks.

        Raises InputError for a tag without the mark that the scheme has.
        """
        if self.scheme.marks in ("none", "words"):
            return tags
        for place, tag in enumerate(tags, 1):
            if not self.scheme.has_mark(tag):
                where = f"{origin}, word {place}"
                raise InputError(
                    f"{where}: {tag!r} is not a tag: use O, or B-, I-, E-, S-, L- or U- and an entity type"
                )
        return to_iob2(tags, self.scheme)

    def value(self, origin: str, label: str) -> float:
        """Parse a regression target. Raises InputError if it is not a number, or outside the task's range."""
        try:
            value = float(label)
        except ValueError as error:
            point = f": write {label.replace(',', '.')}, with a point" if re.fullmatch(r"[+-]?\d+,\d+", label) else ""
            raise InputError(f"{origin}: {label!r} is not a number, which task {self.name} predicts{point}") from error
        low, high = self.scale or (-math.inf, math.inf)
        if not (math.isfinite(value) and abs(value) < _LARGEST):
            raise InputError(f"{origin}: {label} is not a finite float32")
        if not low <= value <= high:
            raise InputError(f"{origin}: {label} is outside {low:g} to {high:g}, the range of task {self.name}")
        return value
