"""Match the labels of a task with those of the model that is fine-tuned, so that its head is continued."""

import re
from collections.abc import Callable
from dataclasses import replace

from bertjax.checkpoints.trained import Model
from bertjax.errors import InputError
from bertjax.finetuning.recipe import FineTuning
from bertjax.nearest import did_you_mean
from bertjax.tasks.labels import parse_pairs, with_labels
from bertjax.tasks.tags import IOB
from bertjax.tasks.task import Task

_HEADS = {"classify": "classify", "multilabel": "classify", "tag": "tags"}
NEW = ("new",)
"""Labels of a fine-tuning whose head is freshly initialised, whatever labels the model has."""


def with_labels_of(tuning: FineTuning, source: Model, say: Callable[[str], None]) -> FineTuning:
    """Give the task the labels of the model if it has a head for them, in the model's order and spelling.

    Labels that are the same but for order and capitals are matched, with a note; others by `tuning.labels`. Raises
    InputError if the model has as many labels of other names: is its head to be continued or not?
    """
    task, head = tuning.task, _HEADS.get(tuning.task.kind)
    if task.kind == "tag" and task.scheme != IOB:
        say(f"tags are read as {task.scheme.name}, scored by {task.metric_names[0]}; tags=entities or words decides")
    if head is None or tuning.labels == NEW:
        if tuning.labels not in ((), NEW):
            raise InputError(f"labels={','.join(tuning.labels)}: task {task.name} has no labels, so leave it out")
        return tuning
    pairs = parse_pairs(tuning.labels)
    theirs: tuple[str, ...] = getattr(source.objective, "labels", ())
    if head not in getattr(source.objective, "heads", {}) or all(re.fullmatch(r"LABEL_\d+", name) for name in theirs):
        return replace(tuning, task=_renamed(task, pairs))
    matched = with_labels(task, theirs, pairs)
    if matched is not None and (pairs or len(theirs) == len(task.labels)):
        if matched.note:
            say(matched.note)
        return replace(tuning, task=matched.task)
    if not pairs and len(theirs) != len(task.labels):
        return tuning
    raise InputError(
        f"{tuning.init} has a head for the labels {', '.join(theirs)}, task {task.name} has {', '.join(task.labels)}: "
        f"name which is which, labels={task.labels[-1]}:{theirs[-1]},… (of entities, types), or labels=new for a fresh "
        "head"
    )


def _renamed(task: Task, pairs: dict[str, str]) -> Task:
    """Rename labels of a task, or its types of entities; the data are read by their own spelling."""
    if not pairs:
        return task
    with_marks = task.kind == "tag" and task.scheme.marks in ("first", "last")
    known = IOB.types_of(task.labels) if with_marks else task.labels
    unknown = [name for name in pairs if name not in known]
    if unknown:
        meant = did_you_mean(unknown[0], known, "; ")
        raise InputError(f"labels: {unknown[0]!r} is no label of task {task.name}: it has {', '.join(known)}{meant}")

    def renamed(label: str) -> str:
        if not with_marks:
            return pairs.get(label, label)
        mark, kind = IOB.parse(label)
        return f"{mark}-{pairs.get(kind, kind)}" if kind else label

    labels = tuple(map(renamed, task.labels))
    return replace(task, labels=labels, spelled=task.spelled or task.labels)
