"""Say how the texts of a model are laid out: where its specials stand, which segments it knows."""

import dataclasses
from typing import Any, cast

from bertjax.data.layout import Layout, layout_for
from bertjax.model import LanguageModel, Model


def layout_of(model: Model) -> Layout:
    """Choose the layout of a model's texts; where it knows one segment, all of them are that."""
    layout = layout_for(model.text, cls_last=is_cls_last(model))
    if getattr(model.encoder, "types", 2) != 1:
        return layout
    templates = {
        field.name: tuple((part, 0) for part, _ in getattr(layout, field.name))
        for field in dataclasses.fields(layout)
        if field.name != "left"
    }
    return dataclasses.replace(layout, **cast(Any, templates))


def is_cls_last(model: Model) -> bool:
    """Tell whether a model's texts end with the classification token."""
    objective = model.objective
    return isinstance(objective, LanguageModel) and not objective.around(model.text.vocabulary)[0]
