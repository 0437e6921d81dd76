"""Choose the templates of a trained model: its special tokens and segments."""

import dataclasses
from typing import Any, cast

from bertjax.checkpoints.protocols import LanguageModel
from bertjax.checkpoints.trained import Model
from bertjax.data.templates import Templates, templates_for


def templates_of(model: Model) -> Templates:
    """Return the templates of a model's texts, with segment 0 throughout if it has a single segment."""
    templates = templates_for(model.text, cls_last=is_cls_last(model))
    if getattr(model.encoder, "types", 2) != 1:
        return templates
    one_segment = {
        field.name: tuple((part, 0) for part, _ in getattr(templates, field.name))
        for field in dataclasses.fields(templates)
        if field.name != "left"
    }
    return dataclasses.replace(templates, **cast(Any, one_segment))


def is_cls_last(model: Model) -> bool:
    """Return whether a model's texts end with the classification token."""
    objective = model.objective
    return isinstance(objective, LanguageModel) and not objective.special_tokens(model.text.vocabulary)[0]
