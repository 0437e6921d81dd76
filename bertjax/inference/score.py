"""Score a model on labelled data of a task."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax

from bertjax.checkpoints.checkpoint import checksums
from bertjax.checkpoints.trained import Model
from bertjax.errors import InputError
from bertjax.evaluate import logits_on_mesh, place_params
from bertjax.inference.as_trained import (
    Say,
    encoded_as_trained,
    fitting_batch,
    head_of,
    labels_of,
    prediction_task,
    predicts_of,
    thresholds_of,
)
from bertjax.models.published import Published
from bertjax.run.processes import assert_equal_on_all, raising_on_all
from bertjax.sharding.mesh import DATA_PARALLEL
from bertjax.tasks.examples import Example, Words
from bertjax.tasks.labels import Matched, match_types, parse_pairs, with_labels
from bertjax.tasks.loading import load_examples
from bertjax.tasks.rows import Encoded
from bertjax.tasks.scoring import (
    Evaluated,
    Logits,
    evaluate_rows,
    logits_of_words,
    require_labels,
    score_tags,
    tags_of,
)
from bertjax.tasks.tags import Scheme, scheme_of, to_iob2
from bertjax.tasks.task import Task
from bertjax.wording import counted


def score(
    model: Model,
    task: Task,
    data: str,
    split: str = "validation",
    *,
    threshold: float | Mapping[str, float] | None = None,
    labels: Sequence[str] = (),
    scheme: Scheme | None = None,
    batch_size: int = 32,
    max_length: int = 0,
    say: Say = print,
) -> Evaluated:
    """Evaluate a model on a labelled split of the task that it was trained on, or of one with the same labels.

    Labels may differ in their order and capitals; else `labels` has pairs label:LABEL, of the task and of the model (of
    entities, types). threshold: as for classify. scheme: as for tag. So AX, which has no training split, is evaluated
    with a model of MNLI. data: as for loading.load_examples. Rows are split over all devices; several processes that
    have joined each return the same. Raises InputError if the model has another head or other labels, and if the split
    is not labelled.
    """
    with raising_on_all():
        encoded, evaluate = _to_score(
            model, task, data, split, threshold=threshold, labels=labels, scheme=scheme, max_length=max_length, say=say
        )
        batch_size = -(-fitting_batch(encoded, batch_size) // jax.device_count()) * jax.device_count()
        mesh = DATA_PARALLEL.mesh(batch_size)
    assert isinstance(model.objective, Published)
    if jax.process_count() > 1:
        assert_equal_on_all({"the model": checksums(model.params), "the data": repr(encoded.examples)})
    logits = partial(logits_on_mesh(model.objective.task_logits, mesh), place_params(model.params, mesh))
    return evaluate(encoded, logits, batch_size)


def _to_score(
    model: Model,
    task: Task,
    data: str,
    split: str,
    *,
    threshold: float | Mapping[str, float] | None,
    labels: Sequence[str],
    scheme: Scheme | None,
    max_length: int,
    say: Say,
) -> tuple[Encoded, Callable[[Encoded, Logits, int], Evaluated]]:
    """Return the encoded split, and the function that evaluates it."""
    head = head_of(model, task.kind)
    thresholds = thresholds_of(model, threshold) if task.kind == "multilabel" or threshold is not None else ()
    wanted = {"classify": "single_label_classification", "multilabel": "multi_label_classification"}.get(task.kind)
    if wanted and head.C > 1 and predicts_of(model) != wanted:
        raise InputError(
            f"the model's problem_type is {predicts_of(model)}, but task {task.name} is of kind {task.kind}: fine-tune "
            "a model on it"
        )
    pairs = parse_pairs(labels)
    if task.kind in ("classify", "multilabel"):
        task = _matched(model, task, with_labels(task, labels_of(model, head.C), pairs), say)
    elif task.kind == "regress" and head.C != 1:
        raise InputError(
            f"the model has {counted(head.C, 'classes')}, but task {task.name} predicts a number: fine-tune a model on "
            "it"
        )
    loaded = load_examples(task, data, split)
    for note, count in loaded.notes.items():
        say(f"{task.name}, {split}: {counted(count, note)}")
    if task.kind == "tag":
        return _to_score_tags(model, task, loaded.examples, pairs, scheme, max_length, say)
    encoded = encoded_as_trained(model, task, loaded.examples, max_length, say)
    require_labels(encoded.examples)
    return encoded, partial(evaluate_rows, thresholds=thresholds)


def _matched(model: Model, task: Task, found: Matched | None, say: Say) -> Task:
    """Return the task with the model's labels. Raises InputError if they do not match."""
    if found is None:
        labels = labels_of(model, head_of(model, task.kind).C)
        raise InputError(
            f"the model's labels are {', '.join(labels)}, those of task {task.name} {', '.join(task.labels)}: evaluate "
            f"the model on a task with its own labels, or name which is which: labels={task.labels[-1]}:{labels[-1]},…"
        )
    if found.note:
        say(found.note)
    return found.task


def _to_score_tags(
    model: Model,
    task: Task,
    examples: list[Example],
    pairs: Mapping[str, str],
    scheme: Scheme | None,
    max_length: int,
    say: Say,
) -> tuple[Encoded, Callable[[Encoded, Logits, int], Evaluated]]:
    """Prepare to score tags: entities by type and place, in whatever scheme model and data have; others by name."""
    require_labels(examples)
    labels = labels_of(model, head_of(model, "tag").C)
    scheme = scheme or scheme_of(labels)
    if (scheme.marks == "words") != (task.scheme.marks == "words"):
        raise InputError(
            f"the model's labels are {', '.join(labels)}, read as {scheme.name}, those of task {task.name} as "
            f"{task.scheme.name}: entities and tags of words are scored differently, so say which they are with scheme"
        )
    unlabelled = [example._replace(tags=()) for example in examples if isinstance(example, Words)]
    encoded = encoded_as_trained(model, prediction_task("tag", labels), unlabelled, max_length, say)
    if task.scheme.marks == "words":
        task_here = _matched(model, task, with_labels(task, labels, pairs), say)
        return encoded, partial(_score_tags, task, examples, task_here, list)
    partners = match_types(task, scheme, labels, pairs)
    if partners is None:
        _matched(model, task, None, say)
    names = {partner: kind for kind, partner in (partners or {}).items()}
    if any(kind != partner for partner, kind in names.items()):
        say(f"types of entities are matched with the model's: {', '.join(f'{b} is {a}' for a, b in names.items())}")

    def renamed(tags: list[list[str]]) -> list[list[str]]:
        return [[tag[:2] + names.get(tag[2:], tag[2:]) for tag in to_iob2(each, scheme)] for each in tags]

    return encoded, partial(_score_tags, task, examples, encoded.spec.task, renamed)


def _score_tags(
    task: Task,
    examples: list[Example],
    predicted: Task,
    renamed: Callable[[list[list[str]]], list[list[str]]],
    encoded: Encoded,
    logits: Logits,
    batch_size: int,
) -> Evaluated:
    """Score the tags of the task that the model predicts, which `renamed` turns into those of the data."""
    tags = renamed(tags_of(predicted, logits_of_words(logits, encoded, batch_size)))
    return Evaluated(score_tags(task, examples, tags), tags, task, examples)
