"""Turn a Hugging Face folder into a model of ours, and a model of ours into such a folder.

Strict both ways: every tensor is used once, or listed with the reason why it is not; shapes and dtypes are those that
config.json asks for; what is written is first read back from its own config.json and compared with the model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.data.tokenizer import Tokenizer
from bertjax.errors import InputError
from bertjax.huggingface.configuration import (
    all_heads,
    check_alike,
    class_for,
    family_for,
    family_of,
    heads_of_folder,
    labels_of,
    make_config,
    make_encoder,
    make_head,
)
from bertjax.huggingface.families import FAMILIES
from bertjax.huggingface.folder import find_tensors, read_config, write_folder
from bertjax.huggingface.table import TIE, Family
from bertjax.huggingface.tensors import (
    Shapes,
    check_tensors,
    finds_untied,
    modern_names,
    read_params,
    set_aside,
    slots_of,
    without_copies,
    write_tensors,
)
from bertjax.huggingface.tokens import read_tokenizer, write_tokenizer
from bertjax.models.deberta import DeBERTa
from bertjax.models.encoder import Encoder
from bertjax.models.heads import Pooler
from bertjax.models.published import LABELLED, Published
from bertjax.rules import name_of
from bertjax.types import Params


@runtime_checkable
class Headed(Protocol):
    """What a model offers that can be written: an encoder, and heads by name."""

    @property
    def encoder(self) -> Any:
        """The encoder."""
        ...

    @property
    def heads(self) -> dict[str, nn.Module]:
        """Its heads by their names among the parameters."""
        ...


class Found(NamedTuple):
    """A folder as a model of ours. notes: what a round trip needs besides, and what is to be said, as JSON types."""

    model: Published
    params: Params
    tokenizer: Tokenizer | None
    notes: dict[str, Any]


def read_folder(folder: Path) -> Found:
    """Read a model. Raises InputError, naming the file or the tensor, for all that is broken, missing or unknown."""
    config = read_config(folder)
    family = family_of(config, folder)
    config = dict(family.modernise(config))
    tensors = modern_names(find_tensors(folder))
    prefixed = any(name.startswith(f"{family.prefix}.") for name in tensors)
    if not prefixed:
        tensors = {f"{family.prefix}.{name}": tensor for name, tensor in tensors.items()}
    tensors, ignored = set_aside(family, config, tensors, folder)
    heads = heads_of_folder(family, config, tensors)
    untied, said = finds_untied(family, config, heads, tensors, folder)
    if untied:
        config[TIE] = False
    tensors, copies = without_copies(family, untied, tensors, folder)
    ignored |= copies
    encoder = make_encoder(family, config, folder, heads)
    if len(tensors) < encoder.N:
        raise InputError(f"{folder}: config.json says {encoder.N:,} layers, the weights have {len(tensors)} tensors")
    modules = tuple((head.name, make_head(head, encoder, config, folder)) for head in heads)
    labels = labels_of(config) if {head.name for head in heads} & LABELLED else ()
    model = Published(encoder, modules, family.cls_last, labels)
    shapes = parameter_shapes(model, folder)
    slots = [slot for slot in slots_of(family, heads, shapes) if slot.theirs in tensors or slot.theirs not in ignored]
    check_tensors(slots, shapes, tensors, folder)
    params = read_params(slots, shapes, tensors)
    dtypes = {slot.theirs: tensors[slot.theirs].dtype for slot in slots if tensors[slot.theirs].dtype != "F32"}
    notes = {"config": config, "prefixed": prefixed, "dtypes": dtypes, "ignored": ignored, "said": said}
    return Found(model, params, read_tokenizer(folder, config, encoder.V), notes)


def write_model(
    model: Any, params: Params, tokenizer: Tokenizer | None, notes: Mapping[str, Any], folder: Path, architecture: str
) -> list[str]:
    """Write an encoder and its heads to a new folder. Return what transformers has no class for, as sentences.

    notes: of the folder that the model came from, or empty. architecture: a `model_type`, or empty to choose by the
    encoder. Raises InputError where no class there computes what this model computes.
    """
    if not isinstance(model, Headed):
        parts = [f"folder:{name}" for name in params] if hasattr(model, "part") else []
        hint = f": name one of its parts, {' or '.join(parts)}" if parts else ""
        raise InputError(f"a {type(model).__name__} has no one encoder and heads{hint}")
    original: dict[str, Any] = dict(notes.get("config", {}))
    family = FAMILIES[original["model_type"]] if original else family_for(model.encoder, model.heads, architecture)
    given = model.heads
    encoder, params, said = _without_idle_decoder(model.encoder, given, params)
    encoder, params = _with_segments(family, family.normal(encoder), params)
    heads = [
        head
        for head in (*all_heads(family, original), *([family.pooler] if family.pooler else []))
        if head.name in given and isinstance(given[head.name], Pooler) == (head is family.pooler) and head.fits(encoder)
    ]
    class_name = class_for(family, original, given, heads)
    labels = model.labels if isinstance(model, Published) else ()
    config = make_config(family, encoder, original, class_name, given, tokenizer, labels)
    check_alike(family, config, encoder, given, heads, folder)
    tensors = write_tensors(family, heads, params, dict(notes.get("dtypes", {})))
    classless = [head for head in heads if head.classless]
    said += [
        f"wrote head/{head.name} by the names of the released weights: transformers has no class with it, and lists "
        f"{head.rows[0].theirs.split('.')[0]}.* as unexpected; FOLDER:encoder is the encoder alone"
        for head in classless
    ]
    prefixed = notes.get("prefixed", class_name != family.base_class or bool(classless))
    if not prefixed:
        tensors = {name.removeprefix(f"{family.prefix}."): array for name, array in tensors.items()}
    write_folder(folder, config, tensors)
    if tokenizer is not None:
        write_tokenizer(tokenizer, family, folder)
    return said


def parameter_shapes(model: Published, folder: Path) -> Shapes:
    """Work out the shapes of all parameters by their names, without making them."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    batch = {"tokens": tokens, "mask": tokens, "types": tokens}
    try:
        params = jax.eval_shape(model.init, jax.random.key(0), batch)
    except (ValueError, TypeError, OverflowError) as error:  # sizes that no array can have
        raise InputError(f"{folder / 'config.json'} describes no model: {str(error)[:200]}") from error
    return {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def without_decoder(encoder: Any, params: Params) -> tuple[Any, Params]:
    """Take the mask decoder off a DeBERTa; other encoders have none. params: those of the encoder."""
    if not isinstance(encoder, DeBERTa) or not encoder.decoder:
        return encoder, params
    return encoder.clone(decoder=0), {name: part for name, part in params.items() if name != "decoder_positions"}


def _without_idle_decoder(
    encoder: Any, heads: Mapping[str, nn.Module], params: Params
) -> tuple[Any, Params, list[str]]:
    """Take off a mask decoder after which no head stands, and say so: a folder says by the head that it is there."""
    if not isinstance(encoder, DeBERTa) or not encoder.decoder or "mlm" in heads:
        return encoder, params, []
    encoder, own = without_decoder(encoder, params["encoder"])
    return encoder, {**params, "encoder": own}, ["left out encoder/decoder_positions: there is no head/mlm to use it"]


def _with_segments(family: Family, encoder: Any, params: Params) -> tuple[Any, Params]:
    """Give an encoder without segments the one segment of zeros that the family's classes cannot be without."""
    if not isinstance(encoder, Encoder) or encoder.types or "types" not in {field.ours for field in family.fields}:
        return encoder, params
    zeros = jnp.zeros((1, encoder.embedding_width))
    embeddings = {**params["encoder"]["embeddings"], "type": {"table": zeros}}
    return encoder.clone(types=1), {**params, "encoder": {**params["encoder"], "embeddings": embeddings}}
