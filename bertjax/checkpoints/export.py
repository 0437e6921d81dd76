"""Write a trained model to a new folder, in bertjax's format or in that of transformers."""

from pathlib import Path
from typing import Literal

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.trained import Model, load, load_notes
from bertjax.errors import InputError
from bertjax.huggingface.convert import write_model
from bertjax.huggingface.families import find_family


def convert(source: str | Path, folder: str | Path, *, to: Literal["bertjax", "huggingface"] = "bertjax") -> list[str]:
    """Write a model, or one part of it, to a new folder: without optimiser state, and without the other part.

    Returns notes to report: what was ignored in a Hugging Face folder, and what `save_hf` leaves out. Raises InputError
    if the folder is not empty, and as `load` and `save_hf`.
    """
    model = load(source)
    notes = load_notes(source, model)
    if to == "huggingface":
        return notes + save_hf(model, folder)
    folder = _new_folder(folder)
    checkpoint.export(folder, model.params, experiment=model.config, tokenizer=model.tokenizer)
    return notes


def save_hf(model: Model, folder: str | Path, architecture: str = "") -> list[str]:
    """Write a model to a new folder that `AutoModel…from_pretrained` of transformers loads, with its tokenizer.

    With no missing and no unexpected key, but for a DeBERTa's head for replaced tokens, or for its mask decoder's head:
    no class of transformers has these. They are written by the names of the released weights (`lm_predictions`,
    `mask_predictions`), so that the folder is the whole model again for `load`; transformers' classes read the encoder
    and list the rest as unexpected. A folder without such keys is that of the encoder: `save_hf(load("run:encoder"),
    folder)`. Returns a note for each such head.

    architecture: a `model_type` of transformers, where several compute the same; by default that which the model came
    from, or was built like. Raises InputError if the folder is not empty, or no class of transformers computes what
    this model does.
    """
    architecture = architecture or architecture_of(model)
    new = _new_folder(folder)
    notes = model.config.get("huggingface", {})
    return write_model(model.objective, model.params, model.tokenizer, notes, new, architecture)


def architecture_of(model: Model) -> str:
    """Return the `model_type` that a model was built like, if its encoder and heads alone do not show it; else ""."""
    stated: str = model.config.get("architecture", "")
    whole = model.config.get("part_of", "").rpartition(".")[2]
    family = find_family(model.encoder, (), whole) if whole and not stated else None
    return stated if family is None else family.model_type


def _new_folder(folder: str | Path) -> Path:
    """Check that a folder is new or empty; an empty one is removed, because writers create it."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: choose a new folder")
    if folder.exists():
        folder.rmdir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
