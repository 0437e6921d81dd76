"""Find the family whose published hyper-parameters a model is fine-tuned with."""

from collections.abc import Container
from pathlib import Path

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.export import architecture_of
from bertjax.checkpoints.newest import read_newest
from bertjax.checkpoints.protocols import Wrapping, served
from bertjax.checkpoints.trained import Model, part_of
from bertjax.huggingface import configuration
from bertjax.huggingface.folder import is_huggingface, read_config
from bertjax.huggingface.table import Family
from bertjax.serialization.closed_set import ENCODERS, TRAINED, Names
from bertjax.serialization.description import from_json, own_names


def family_of(path: str | Path, among: Container[str]) -> str:
    """Return the narrowest of the families `among` that the model in a folder belongs to; "" if none.

    A published model of its shape (Family.published) is narrower than its `model_type`; an encoder of the user's own
    belongs to none. The weights are not read.
    """
    found = _family(path)
    if found is None:
        return ""
    family, published = found
    return next((name for name in (published, family.model_type) if name and name in among), "")


def _family(path: str | Path) -> tuple[Family, str] | None:
    folder, part = part_of(path)
    if is_huggingface(folder):
        config = read_config(folder)
        family = configuration.family_of(config, folder)
        return family, family.published(configuration.make_encoder(family, config, folder))
    described = read_newest(folder, checkpoint.read_info, say=lambda text: None)[0]["experiment"]
    if own_names(described["objective"]):
        if own_names(encoder := described["objective"].get("encoder")) or not encoder:
            return None
        encoder = from_json(encoder, Names(types=ENCODERS), "objective.encoder")
        family = configuration.family_for(encoder, {}, "")
        return family, family.published(encoder)
    objective = from_json(described["objective"], TRAINED, "objective")
    if isinstance(objective, Wrapping):
        objective = served(objective)
    encoder = getattr(objective, part, None) or objective.encoder
    heads, architecture = getattr(objective, "heads", {}), architecture_of(Model(objective, {}, None, described))
    family = configuration.family_for(encoder, heads, architecture)
    return family, family.published(encoder)
