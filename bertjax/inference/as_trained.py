"""Encode texts for a fine-tuned model as it was trained, and what its head predicts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from bertjax.checkpoints.trained import Model
from bertjax.errors import InputError
from bertjax.inference.template_of import templates_of
from bertjax.models.published import Published
from bertjax.nearest import did_you_mean
from bertjax.tasks.examples import Example
from bertjax.tasks.pooling import POOLS
from bertjax.tasks.reading import Notes
from bertjax.tasks.report import Threshold
from bertjax.tasks.rows import Encoded, TaskRows, encode_examples
from bertjax.tasks.tags import IOB, WORDS
from bertjax.tasks.task import Kind, Task
from bertjax.wording import counted

Say = Callable[[str], None]
"""Takes a note or a warning for the user."""

Thresholds = float | Mapping[str, float] | Literal["chosen"] | None
"""Of all labels, or by their names; what was chosen in fine-tuning; the default."""

_HEADS = {"classify": "classify", "multilabel": "classify", "regress": "classify", "tag": "tags", "span": "span",
          "choice": "choice"}  # fmt: skip
_DEFAULT_LENGTH = 512  # of models that take rows of any length


def predicts_of(model: Model) -> str:
    """Return what the head `classify` of a model predicts. Raises InputError if it has none."""
    head_of(model, "classify")
    predicts: str = getattr(model.objective, "predicts", "")
    return predicts


def thresholds_of(model: Model, threshold: Thresholds) -> tuple[float, ...]:
    """Return the threshold of each label of a model that gives each a probability of its own.

    threshold: of all labels, or by their names; 0.5 where none is given. Raises InputError for a number outside 0 .. 1,
    an unknown label, or a model of another kind.
    """
    labels = labels_of(model, head_of(model, "classify").C)
    if threshold is not None and predicts_of(model) != "multi_label_classification":
        raise InputError("each text has one label of this model, or a number: leave out the threshold")
    if isinstance(threshold, str):
        raise InputError(f"threshold={threshold}: one is chosen for two classes only: give a number, or some by label")
    given = (
        threshold if isinstance(threshold, Mapping) else dict.fromkeys(labels, 0.5 if threshold is None else threshold)
    )
    _check_thresholds(labels, given)
    return tuple(given.get(label, 0.5) for label in labels)


def _check_thresholds(labels: Sequence[str], given: Mapping[str, float]) -> None:
    unknown = [label for label in given if label not in labels]
    if unknown:
        meant = did_you_mean(unknown[0], labels, "; ")
        raise InputError(f"a threshold for {unknown[0]!r}, but the model's labels are {', '.join(labels)}{meant}")
    for label, limit in given.items():
        if not 0 <= limit <= 1:
            raise InputError(f"the threshold of {label} is {limit}: a probability is from 0 to 1")


def threshold_of_two(model: Model, given: Thresholds) -> Threshold | None:
    """Return the threshold of a model with two classes that exclude each other; None for any other model.

    given: of the second label, or of one by its name; "chosen", or None, for what was chosen on the validation split of
    its fine-tuning, None if nothing was. Raises InputError where none was "chosen", and as thresholds_of.
    """
    if not (isinstance(model.objective, Published) and model.objective.task == "classify"):
        return None
    labels = labels_of(model, head_of(model, "classify").C)
    if predicts_of(model) != "single_label_classification" or len(labels) != 2:
        return None
    if isinstance(given, int | float):
        given = {labels[1]: given}
    if isinstance(given, Mapping):
        _check_thresholds(labels, given)
        if len(given) > 1:
            raise InputError(f"thresholds for both of {', '.join(given)}: give one, below which the other is predicted")
        return Threshold(*next(iter(given.items())))
    chosen = model.config.get("threshold")
    if chosen and chosen["label"] in labels:
        return Threshold(**chosen)
    if given == "chosen":
        raise InputError("no threshold was chosen for this model: give a number, or evaluate it with --threshold-from")
    return None


def kind_of(model: Model) -> Kind:
    """Return the kind of task that the model's head is for. Raises InputError if it has none."""
    found = model.objective.task if isinstance(model.objective, Published) else ""
    if found == "classify":
        of: dict[str, Kind] = {"multi_label_classification": "multilabel", "regression": "regress"}
        return of.get(predicts_of(model), "classify")
    kinds: dict[str, Kind] = {"tags": "tag", "span": "span", "beams": "span", "choice": "choice"}
    if found not in kinds:
        raise InputError(f"a {type(model.objective).__name__} has no head for a task: fine-tune it on one first")
    return kinds[found]


def head_of(model: Model, kind: Kind) -> Any:
    """Return the head for a kind of task. Raises InputError if the model has another."""
    wanted = {_HEADS[kind]} | ({"beams"} if kind == "span" else set())
    if not isinstance(model.objective, Published):
        raise InputError(f"a {type(model.objective).__name__} has no head for {kind}: fine-tune it on a task first")
    if model.objective.task not in wanted:
        raise InputError(
            f"this model has a head for {model.objective.task}, not for {kind}: fine-tune a model for {kind}"
        )
    return model.objective.heads[model.objective.task]


def labels_of(model: Model, classes: int) -> tuple[str, ...]:
    """Return the names of a head's classes, LABEL_0, … where it has none."""
    given: tuple[str, ...] = getattr(model.objective, "labels", ())
    return given if len(given) == classes else tuple(f"LABEL_{number}" for number in range(classes))


def prediction_task(kind: Kind, labels: tuple[str, ...], **more: Any) -> Task:
    """Return a task without data, whose examples are to be predicted."""
    scheme = WORDS if kind == "tag" else IOB  # tags are predicted by their names, and not scored
    return Task("prediction", kind, labels, ("accuracy",), (), scheme=scheme, **more)


def rows_of(model: Model, task: Task, max_length: int) -> TaskRows:
    """Describe rows as in training. Raises InputError for a length that the model does not have."""
    positions = model.encoder.max_length
    if positions and max_length > positions:
        raise InputError(f"max_length={max_length}, but the model has {positions} positions: reduce it")
    windows = model.config.get("windows") if task.kind in ("classify", "multilabel", "regress") else None
    length = max_length or (windows["length"] if windows else positions) or _DEFAULT_LENGTH
    quarter = max(1, length // 4)
    stride = min(windows["stride"], length // 2) if windows else min(128, quarter)
    pool = POOLS[windows["pool"]] if windows else None
    try:
        rest = min(64, quarter), min(128, quarter)
        return TaskRows(task, "", "", templates_of(model), length, stride, *rest, pool=pool)
    except ValueError as error:
        raise InputError(f"max_length={length}: {error}") from error


def encoded_as_trained(
    model: Model, task: Task, examples: Sequence[Example], max_length: int, say: Say, notes: Notes | None = None
) -> Encoded:
    """Encode examples as in training, and report truncation: counted in `notes` if given, else said."""
    encoded = encode_examples(rows_of(model, task, max_length), examples, model.text)
    report(encoded.notes, say, notes)
    return encoded


def report(found: Notes, say: Say, notes: Notes | None = None) -> None:
    """Add what was found to `notes` if given, else say it."""
    if notes is not None:
        notes.update(found)
        return
    for note, count in found.items():
        say(counted(count, note))


def fitting_batch(encoded: Encoded, batch_size: int) -> int:
    """Return a batch size without much padding for few texts: a power of two up to `batch_size`."""
    return min(batch_size, 1 << max(0, len(encoded) - 1).bit_length())


def not_empty(place: str, text: str) -> str:
    """Return the text. Raises InputError for a blank one."""
    if not text.strip():
        raise InputError(f"{place}: the text is empty: leave it out")
    return text
