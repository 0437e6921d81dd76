"""Match the labels of a task with those of a model, which may have other capitals, another order or other names."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bertjax.errors import InputError
from bertjax.tasks.cells import label_of
from bertjax.tasks.tags import IOB, Scheme, scheme_of
from bertjax.tasks.task import Task


def parse_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """Parse pairs `label:LABEL` of a label of the task and one of the model. Raises InputError for any other text."""
    found = {}
    for pair in pairs:
        ours, _, theirs = (each.strip() for each in pair.rpartition(":"))
        if not ours or not theirs or ours in found:
            raise InputError(f"labels: {pair!r} is no pair: write label:LABEL, first the data's, then the model's")
        found[ours] = theirs
    if len(set(found.values())) < len(found):
        raise InputError(f"labels: two labels become one of {', '.join(found.values())}: each needs its own")
    return found


def match_labels(ours: Sequence[str], theirs: Sequence[str], pairs: Mapping[str, str]) -> dict[str, str] | None:
    """Map each label of a task to one of a model: by `pairs`, else by equal names, else by equal letters and digits.

    Returns None unless each has a partner of its own. Raises InputError for a pair with a label that is unknown.
    """
    for label, partner in pairs.items():
        for name, known, whose in ((label, ours, "task"), (partner, theirs, "model")):
            if name not in known:
                raise InputError(f"labels: {label}:{partner}, but the {whose}'s labels are {', '.join(known)}")
    paired = set(pairs.values())
    free = dict.fromkeys(label for label in theirs if label not in paired)
    alike: dict[str, list[str]] = {}
    for label in free:
        alike.setdefault(_letters(label), []).append(label)
    found = dict(pairs)
    for label in ours:
        if label in found:
            continue
        if label in free:
            found[label] = label
        elif _letters(label) and len(alike.get(_letters(label), ())) == 1:
            found[label] = alike[_letters(label)][0]
        else:
            return None
    return found if len(set(found.values())) == len(found) else None


def _letters(label: str) -> str:
    return re.sub(r"[\W_]", "", label_of(label)).casefold()


class Matched(NamedTuple):
    """A task with the labels of a model, in their order, and a note if names or order differ."""

    task: Task
    note: str


def with_labels(task: Task, labels: tuple[str, ...], pairs: Mapping[str, str]) -> Matched | None:
    """Give a task the labels of a model: predictions are of these, and the data are read by their own spelling.

    A model may have labels that the task lacks. Of tags with marks, types of entities are matched, and the model needs
    B and I for each of them. Returns None if the labels do not match. Raises InputError as match_labels.
    """
    if task.kind == "tag" and task.scheme.marks in ("first", "last"):
        theirs = iob2_of(labels)
        partners = theirs and match_types(task, scheme_of(labels), labels, pairs)
        if not partners or len(set(theirs)) < len(labels):
            return None
        back = {partner: kind for kind, partner in partners.items()}
        names = tuple(f"{tag[:2]}{back.get(tag[2:], tag[2:])}" for tag in theirs)
        if not set(task.labels) <= set(names):
            return None
        spelled = dict(zip(names, labels, strict=True))
    else:
        found = match_labels(task.labels, labels, pairs)
        if found is None:
            return None
        spelled = {label: found[label] for label in task.labels}
    # The model's labels in their order, each with its spelling in the data; one that the data lack has its own.
    by_partner = {partner: name for name, partner in spelled.items()}
    files = dict(zip(task.labels, task.spelled or task.labels, strict=True))
    read = tuple(files.get(by_partner.get(label, label), by_partner.get(label, label)) for label in labels)
    note = "" if labels == task.labels else _note(task, spelled, labels)
    if len(set(read)) < len(read):  # a label that the data lack is spelled as another one in the data
        return None
    return Matched(dataclasses.replace(task, labels=labels, spelled=() if read == labels else read), note)


def _note(task: Task, spelled: Mapping[str, str], labels: tuple[str, ...]) -> str:
    renamed = [f"{name} is {spelled[name]}" for name in task.labels if spelled[name] != name]
    extra = [label for label in labels if label not in spelled.values()]
    order = [label for label in labels if label not in extra] != [spelled[name] for name in task.labels]
    parts = renamed + (["in the model's order"] if order else [])
    parts += [f"{', '.join(extra)} of the model never occur in the data"] if extra else []
    return f"labels of task {task.name} are matched with the model's: {'; '.join(parts)}"


def match_types(task: Task, scheme: Scheme, labels: Sequence[str], pairs: Mapping[str, str]) -> dict[str, str] | None:
    """Map the types of entities of a task to those of a model whose labels are of this scheme; see match_labels."""
    own = (
        IOB if task.scheme.marks in ("first", "last") else task.scheme
    )  # labels with marks are IOB2, whatever the data
    return match_labels(own.types_of(task.labels), scheme.types_of(labels), pairs)


def iob2_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Write labels of entities as IOB2, () if they have other marks, or none."""
    scheme = scheme_of(labels)
    parsed = [scheme.parse(label) for label in labels]
    if scheme.marks not in ("first", "last") or any(mark not in "BIO" for mark, _ in parsed):
        return ()
    return tuple(f"{mark}-{kind}" if kind else mark for mark, kind in parsed)
