"""Choose the templates of a trained model: its special tokens and segments."""

from bertjax.checkpoints.trained import Model
from bertjax.data.templates import Templates


def templates_of(model: Model) -> Templates:
    """Return the templates of a model's texts, with segment 0 throughout if it has a single segment."""
    return model.templates


def is_cls_last(model: Model) -> bool:
    """Return whether a model's texts end with the classification token."""
    return model.cls_last
