"""Build the head of a task as the family of an encoder has it, so that a fine-tuned model can be written."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from bertjax.errors import InputError
from bertjax.huggingface.configuration import family_for
from bertjax.huggingface.families import FAMILIES, find_family
from bertjax.huggingface.table import Config, head_of


class TaskHead(NamedTuple):
    """A head to train.

    pooler_of: the head of the pre-trained model that its pooler is initialised from, or "". class_name: of such a model
    in transformers, or "".
    """

    module: nn.Module
    pooler_of: str
    class_name: str


def task_head(
    name: str, encoder: Any, heads: Mapping[str, nn.Module], classes: int, config: Config, architecture: str = ""
) -> TaskHead:
    """Build the head `name` (published.TASKS) with this number of classes, for an encoder that came with `heads`.

    An encoder that no family has, as one of the user's own, takes the head of BERT: a pooler of its first token.
    config: config.json of the folder that the encoder came from, or empty. architecture: as in `save_hf`. Raises
    InputError if the family has no such head.
    """
    if not config and find_family(encoder, heads) is None:  # an encoder of the user's own
        family, config = FAMILIES["bert"], {"model_type": "bert"}
    else:
        family = FAMILIES[config["model_type"]] if config else family_for(encoder, heads, architecture)
        config = config or family.stated(encoder)
    head = next((head for head in family.heads if head.name == name and head.when(config)), None)
    if head is None:
        known = ", ".join(dict.fromkeys(head.name for head in family.heads))
        raise InputError(f"{family.model_type} has no head {name!r}: it has {known}")
    has_pooler = family.pooler is not None and family.pooler_names <= head.tensor_names
    pooler_of = family.pooler.name if family.pooler is not None and has_pooler else ""
    class_name = next((class_name for class_name, names in family.classes.items() if names == (name,)), "")
    return TaskHead(head_of(head, encoder, config, classes), pooler_of, class_name)
