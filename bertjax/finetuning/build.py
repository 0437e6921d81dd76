"""Build the model and the objective of a fine-tuning: the head of a task on a trained encoder."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from bertjax.checkpoints.export import architecture_of
from bertjax.checkpoints.trained import Model
from bertjax.finetuning.labels import NEW
from bertjax.finetuning.recipe import FineTuning
from bertjax.huggingface.heads import TaskHead, task_head
from bertjax.inference.template_of import is_cls_last
from bertjax.models.published import ProblemType, Published
from bertjax.models.span_heads import xlnet_span_head
from bertjax.models.xlnet import XLNet
from bertjax.objectives import supervised
from bertjax.objectives.sift import SiFT
from bertjax.objectives.supervised import BeamSpans, Score, Supervised, WeightedClasses
from bertjax.rules import Rules
from bertjax.serialization.description import to_json
from bertjax.types import Objective

_SCORES: Mapping[str, tuple[str, Score]] = {
    "classify": ("classify", supervised.classes),
    "multilabel": ("classify", supervised.labels),
    "regress": ("classify", supervised.numbers),
    "tag": ("tags", supervised.tags),
    "span": ("span", supervised.spans),
    "choice": ("choice", supervised.options),
}
"""By the kind of a task: its head among published.TASKS, and the function that computes loss and metrics."""


class Built(NamedTuple):
    """A model with the head of a task, its objective, and the config that is exported with its parameters.

    weights: of its classes in the loss, () where all weigh alike.
    """

    model: Published
    objective: Objective
    config: dict[str, Any]
    weights: tuple[float, ...] = ()


def build(tuning: FineTuning, source: Model, weights: tuple[float, ...] = ()) -> Built:
    """Put the head of the task on the encoder of a trained model, with rules for the parameters that it inherits.

    weights: of the classes in the loss.
    """
    task, recipe = tuning.task, tuning.recipe
    encoder, cls_last = source.encoder.clone(dtype=tuning.dtype), is_cls_last(source)
    if recipe.encoder_dropout is not None:
        encoder = encoder.clone(dropout=recipe.encoder_dropout, attention_dropout=recipe.encoder_dropout)
    name, score = _SCORES[task.kind] if tuning.head is None else ("beams", BeamSpans())
    score = WeightedClasses(weights) if weights else score
    head = _head(tuning, source, encoder, name)
    labels = task.labels if task.kind in ("classify", "multilabel", "tag") else ()
    # Defaults are left out, so that a folder of an earlier version, which had no other problems, resumes.
    problem: ProblemType = "multi_label_classification" if task.kind == "multilabel" else ""
    model = Published(encoder, ((name, head.module),), cls_last, labels, problem)
    inherited: Rules = ((r".*", True),)
    theirs = getattr(source.objective, "heads", {}).get(name)
    fresh = recipe.unit_range or tuning.labels == NEW
    if theirs is not None and (fresh or not _same_classes(source.objective, theirs, head.module, labels)):
        inherited = ((r"^head/\w+/classifier/", False), *inherited)
    if recipe.renewed:
        inherited = ((r"^head/\w+/pooler/", False), *inherited)
    plain = Supervised(model, score, inherited, recipe.renewed, head.pooler_of)
    objective = SiFT(plain, weight=recipe.adversary) if recipe.adversary else plain
    config = {"objective": to_json(model), "architecture": architecture_of(source)}
    if tuning.pool:
        config["windows"] = {"pool": tuning.pool.__name__, "length": recipe.length, "stride": tuning.stride}
    if original := _original(source):
        kept = {key: value for key, value in original.items() if key != "architectures"}
        named: dict[str, Any] = {"architectures": [head.class_name]} if head.class_name else {}
        if model.predicts in ("regression", "multi_label_classification"):  # also where that is a default there
            named["problem_type"] = model.predicts
        config["huggingface"] = {"config": kept | named, "ignored": {}}
    return Built(model, objective, config, weights)


def _original(source: Model) -> dict[str, Any]:
    """Return config.json of the Hugging Face folder that a model was first converted from, {} if from none."""
    return dict(source.config.get("huggingface", {}).get("config", {}))


def _head(tuning: FineTuning, source: Model, encoder: Any, name: str) -> TaskHead:
    """Build the head of the task, with the dropout of the recipe."""
    task, dropout = tuning.task, tuning.recipe.dropout
    if tuning.head is None:
        classes = 2 if task.kind == "span" else max(1, len(task.labels))
        heads = dict(getattr(source.objective, "heads", {}))
        head = task_head(name, encoder, heads, classes, _original(source), architecture_of(source))
    else:
        # XLNet's is the only conditional head that transformers has.
        theirs = isinstance(encoder, XLNet) and tuning.head is xlnet_span_head
        module = tuning.head(encoder, -1 if is_cls_last(source) else 0)
        head = TaskHead(module, "", "XLNetForQuestionAnswering" if theirs else "")
    if dropout is None:
        return head
    others = {field: dropout for field in ("input_dropout",) if getattr(head.module, field, 0)}
    return head._replace(module=head.module.clone(**cast(Any, {"dropout": dropout} | others)))


def _same_classes(objective: Any, theirs: Any, ours: Any, labels: tuple[str, ...]) -> bool:
    """Return whether a trained head has the task's classes: as many and, unless they are unnamed, of the same names."""
    given = getattr(objective, "labels", ())
    named = any(not re.fullmatch(r"LABEL_\d+", label) for label in given)
    return getattr(theirs, "C", 0) == getattr(ours, "C", 0) and (not named or given == labels)
