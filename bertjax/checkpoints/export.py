"""Write a trained model to a new folder: as a checkpoint, for transformers, or for sentence-transformers."""

from pathlib import Path
from typing import Literal

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.trained import Model, encoder_alone, load, load_notes, without_sentence_head
from bertjax.errors import InputError
from bertjax.fields import check_kind
from bertjax.huggingface.convert import write_model
from bertjax.huggingface.families import find_family
from bertjax.huggingface.sentence_transformers import write_modules
from bertjax.models.heads import Pooler
from bertjax.models.published import Published
from bertjax.models.sentence import SENTENCE, sentence_head
from bertjax.storage import files
from bertjax.storage.paths import path_of

Format = Literal["bertjax", "huggingface", "sentence-transformers"]


def convert(
    source: str | Path, folder: str | Path, *, to: Format = "bertjax", experiment: str | Path = ""
) -> list[str]:
    """Write a model, or one part of it, to a new folder: without optimiser state, and without the other part.

    experiment: as for `load`. Returns notes to report: tensors ignored in a Hugging Face folder, and parts that the
    other formats leave out. Raises InputError if the folder is not empty, and as `load` and the functions for these
    formats.
    """
    folder = path_of(folder)
    model = load(source, experiment)
    notes = load_notes(source, model)
    if to == "huggingface":
        return notes + save_hf(model, folder)
    if to == "sentence-transformers":
        return notes + save_sentence_transformers(model, folder)
    with files.new_folder(folder) as new:
        checkpoint.export(new, model.params, experiment=model.config, tokenizer=model.tokenizer)
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
    check_kind("model", model, Model, ", such as bertjax.load returns")
    architecture, plain = architecture or architecture_of(model), without_sentence_head(model)
    notes = model.config.get("huggingface", {})
    left = [] if plain is model else [f"left out head/{SENTENCE}, which `convert --to sentence-transformers` writes"]
    with files.new_folder(path_of(folder)) as new:
        return left + write_model(plain.objective, plain.params, plain.tokenizer, notes, new, architecture)


def save_sentence_transformers(model: Model, folder: str | Path) -> list[str]:
    """Write a model to a new folder that `SentenceTransformer(folder)` loads: it computes the vectors of `embed`.

    The modules of the folder that the model came from, or else the mean of all tokens, scaled to length 1. Texts that
    are longer than the model's positions are truncated there. Heads other than the pooler are left out. Returns notes
    to report. Raises InputError if the folder is not empty, or the modules or the encoder cannot be described.
    """
    origin = model.config.get("huggingface", {})
    if reason := origin.get("no_embedding"):
        raise InputError(reason)
    head, params = sentence_head(model.objective, model.params)
    heads = getattr(without_sentence_head(model).objective, "heads", {})
    if isinstance(model.objective, Published) and all(isinstance(module, Pooler) for module in heads.values()):
        alone, left = without_sentence_head(model), []
    else:
        alone = encoder_alone(model)
        left = [f"left out {', '.join(f'head/{name}' for name in heads) or 'all heads'}: embeddings do not read them"]
    with files.new_folder(path_of(folder)) as new:
        notes = save_hf(alone, new)
        head = head if head.max_length else head.clone(max_length=alone.encoder.max_length or 0)
        write_modules(new, head, params, alone.encoder, origin.get("similarity", ""))
    return left + notes


def architecture_of(model: Model) -> str:
    """Return the `model_type` that a model was built like, if its encoder and heads alone do not show it; else ""."""
    stated: str = model.config.get("architecture", "")
    whole = model.config.get("part_of", "").rpartition(".")[2]
    family = find_family(model.encoder, (), whole) if whole and not stated else None
    return stated if family is None else family.model_type
