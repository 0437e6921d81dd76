"""Weights of classes in the loss, for data in which some classes are rare."""

import numpy as np

from bertjax.errors import InputError
from bertjax.tasks.task import Task

BALANCED = ("balanced",)


def class_weights(given: tuple[str, ...], task: Task, labels_R: np.ndarray) -> tuple[float, ...]:
    """Return a weight for each class of a task.

    given: pairs label:weight, 1 for those not named; or `balanced`: rows / (classes · rows of the class), as
    scikit-learn's compute_class_weight, 1 for a class without rows. labels_R: the classes of the training rows. Raises
    InputError for another kind of task, and for what is no pair of a label and a positive number.
    """
    if task.kind != "classify":
        raise InputError(f"class_weights are for kind=classify, not for {task.kind}: leave them out")
    counts_C = np.bincount(labels_R, minlength=len(task.labels))
    if given == BALANCED:
        kinds = int((counts_C > 0).sum())
        return tuple(len(labels_R) / (kinds * count) if count else 1.0 for count in counts_C.tolist())
    found = dict.fromkeys(task.labels, 1.0)
    spelled = dict(zip(task.spelled or task.labels, task.labels, strict=True))
    for pair in given:
        name, _, number = (each.strip() for each in pair.rpartition(":"))
        label = name if name in found else spelled.get(name, "")
        if not label:
            known = ", ".join(task.labels)
            raise InputError(f"class_weights: {pair!r} is no label:weight of {known}: write these, or `balanced`")
        try:
            found[label] = float(number)
        except ValueError as error:
            raise InputError(f"class_weights: {number!r} of {name} is not a number") from error
        if not 0 < found[label] < 1e6:
            raise InputError(f"class_weights: {number} of {name} must be above 0 and below a million")
    return tuple(found.values())
