"""List the tasks that models are fine-tuned on: columns, label names, metrics and quirks of each, a row a task."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classify", "regress", "tag", "span", "choice"]


@dataclass(frozen=True)
class Task:
    """Describe a task.

    labels: the names of the classes or tags, in the order of their numbers. spelled: how the data write them, where
    otherwise. metrics: names in bertjax.metrics, the first of them chooses the best checkpoint.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...] = ()
    spelled: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
