"""Name the family whose published numbers a model is fine-tuned by."""

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.export import architecture_of
from bertjax.checkpoints.trained import Model, Wrapping, part_of, served
from bertjax.description import from_json
from bertjax.huggingface import configuration
from bertjax.huggingface.folder import is_huggingface, read_config
from bertjax.models.layers import rms_norm
from bertjax.models.modern import Modern
from bertjax.models.positions import Alibi, ScaledSinusoids

_SIZES = {
    ("electra", 1024, 24): "electra-large",
    ("deberta", 1024, 24): "deberta-large",
    ("deberta", 1024, 48): "deberta-xlarge",
    ("deberta-v2", 1536, 24): "deberta-v2-xlarge",
    ("deberta-v2", 1536, 48): "deberta-v2-xxlarge",
    ("deberta-v2", 384, 12): "deberta-v3-xsmall",
    ("deberta-v2", 768, 6): "deberta-v3-small",
    ("deberta-v2", 768, 12): "deberta-v3-base",
    ("deberta-v2", 1024, 24): "deberta-v3-large",
}
"""(model_type, width, layers) -> the name of a published size that was fine-tuned by numbers of its own."""
_MODERN: tuple[tuple[Callable[[Modern], bool], str], ...] = (
    (lambda encoder: isinstance(encoder.positions, Alibi), "mosaicbert"),
    (lambda encoder: isinstance(encoder.positions, ScaledSinusoids), "crammed"),
    (lambda encoder: encoder.norms.normalise is rms_norm, "neobert"),
)
"""What tells the modern encoders apart, of which transformers has ModernBERT's class alone."""


def family_of(path: str | Path, among: Container[str]) -> str:
    """Name the narrowest of the families `among` that the model in a folder belongs to; "" if to none.

    By its size and what else tells published models apart; else its `model_type`. The weights are not read.
    """
    model_type, encoder = _described(path)
    names = [_SIZES.get((model_type, encoder.D, encoder.N), "")]
    names += [name for holds, name in _MODERN if isinstance(encoder, Modern) and holds(encoder)]
    return next((name for name in (*names, model_type) if name and name in among), "")


def _described(path: str | Path) -> tuple[str, Any]:
    """Read the model_type of transformers and the encoder of a folder."""
    folder, part = part_of(path)
    if is_huggingface(folder):
        config = read_config(folder)
        family = configuration.family_of(config, folder)
        return family.model_type, configuration.make_encoder(family, config, folder)
    described = checkpoint.read_info(checkpoint.latest_step(folder))["experiment"]
    objective = from_json(described["objective"])
    if isinstance(objective, Wrapping):
        objective = served(objective)
    encoder = getattr(objective, part, None) or objective.encoder
    heads, architecture = getattr(objective, "heads", {}), architecture_of(Model(objective, {}, None, described))
    return configuration.family_for(encoder, heads, architecture).model_type, encoder
