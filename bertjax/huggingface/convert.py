"""Convert a Hugging Face folder to a model of ours, and a model of ours to such a folder.

Strict both ways: every tensor is used once, or listed with the reason why it is ignored; shapes and dtypes are those
that config.json implies; before a model is written its config.json is read back and compared with it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.data.tokenizer import Tokenizer
from bertjax.data.tokenizer_classes import CONFIG as TOKENIZER_CONFIG
from bertjax.errors import InputError
from bertjax.huggingface.configuration import (
    all_heads,
    check_round_trip,
    class_for,
    code_notes,
    family_for,
    family_of,
    heads_of_folder,
    label_notes,
    labels_of,
    make_config,
    make_encoder,
    make_head,
    problem_type_of,
)
from bertjax.huggingface.families import FAMILIES, find_family
from bertjax.huggingface.folder import Tensor, find_tensors, read_config, write_folder
from bertjax.huggingface.table import TIE, Family, Head
from bertjax.huggingface.tensors import (
    Shapes,
    check_tensors,
    encoder_tensors,
    finds_untied,
    modern_names,
    read_params,
    set_aside,
    slots_of,
    without_copies,
    write_tensors,
)
from bertjax.huggingface.tokens import read_tokenizer, write_tokenizer
from bertjax.models.heads import LanguageHead, Pooler
from bertjax.models.published import LABELLED, ProblemType, Published
from bertjax.rules import name_of
from bertjax.serialization.bounded_json import parse_object
from bertjax.serialization.closed_set import LARGEST
from bertjax.types import Params
from bertjax.wording import counted


@runtime_checkable
class Headed(Protocol):
    """Protocol for a model that can be written: an encoder, and heads by name."""

    @property
    def encoder(self) -> Any:
        """The encoder."""
        ...

    @property
    def heads(self) -> dict[str, nn.Module]:
        """Its heads by their names among the parameters."""
        ...


MOST_LAYERS = LARGEST["N"]
"""Real models have at most 48; layers that share parameters need no tensors, so a config may claim any number."""


class Found(NamedTuple):
    """A folder read as a model. notes: further data for a round trip, and notes to report, as JSON types."""

    model: Published
    params: Params
    tokenizer: Tokenizer | None
    notes: dict[str, Any]


class _Opened(NamedTuple):
    """A folder before its tensors are read. prefixed: whether tensors had the prefix of the encoder, as here all do."""

    config: dict[str, Any]
    family: Family
    tensors: dict[str, Tensor]
    prefixed: bool


def _open(folder: Path) -> _Opened:
    config = read_config(folder)
    family = family_of(config, folder)
    tensors = modern_names(find_tensors(folder))
    prefixed = any(name.startswith(f"{family.prefix}.") for name in tensors)
    if not prefixed:
        tensors = {f"{family.prefix}.{name}": tensor for name, tensor in tensors.items()}
    return _Opened(dict(family.modernise(config)), family, tensors, prefixed)


def read_folder(folder: Path) -> Found:
    """Read a model. Raises InputError, naming the file or tensor, for anything broken, missing or unknown."""
    opened = _open(folder)
    config, family = opened.config, opened.family
    tensors, ignored = set_aside(family, config, opened.tensors, folder)
    heads = heads_of_folder(family, config, tensors)
    untied, reported = finds_untied(family, config, heads, tensors, folder)
    if untied:
        config[TIE] = False
    tensors, copies = without_copies(family, untied, tensors, folder)
    found = _read(folder, opened._replace(tensors=tensors), heads, ignored | copies)
    return found._replace(notes=found.notes | {"reported": reported + found.notes["reported"]})


def read_encoder(folder: Path) -> Found:
    """Read the encoder of a folder, whatever heads it has; tensors outside of the encoder are listed as ignored.

    Raises InputError as `read_folder`.
    """
    opened = _open(folder)
    tensors, left = encoder_tensors(opened.family, opened.tensors)
    tensors, ignored = set_aside(opened.family, opened.config, tensors, folder)
    return _read(folder, opened._replace(tensors=tensors), [], left | ignored)


def _read(folder: Path, opened: _Opened, heads: list[Head], ignored: dict[str, str]) -> Found:
    config, family, tensors, prefixed = opened
    encoder = make_encoder(family, config, folder, heads)
    stacked = encoder.groups * encoder.inner if getattr(encoder, "shared", False) else encoder.N
    if len(tensors) < stacked or encoder.N > MOST_LAYERS:
        raise InputError(
            f"{folder}: config.json says {counted(encoder.N, 'layers')}, the weights have "
            f"{counted(len(tensors), 'tensors')}"
        )
    modules = tuple((head.name, make_head(head, encoder, config, folder)) for head in heads)
    labels = labels_of(config) if {head.name for head in heads} & LABELLED else ()
    problem_type, unstated = _problem_type(heads, config, folder)
    model = Published(encoder, modules, family.cls_last, labels, problem_type)
    shapes = parameter_shapes(model, folder)
    slots = [
        slot
        for slot in slots_of(family, encoder, heads, shapes)
        if slot.tensor in tensors or slot.tensor not in ignored
    ]
    check_tensors(slots, shapes, tensors, folder)
    params = read_params(slots, shapes, tensors)
    dtypes = {slot.tensor: tensors[slot.tensor].dtype for slot in slots if tensors[slot.tensor].dtype != "F32"}
    tokenizer = read_tokenizer(folder, config, encoder.V)
    reported = unstated + _padding_notes(family, encoder, tokenizer, folder)
    reported += [
        *family.notes(config),
        *code_notes(config),
        *label_notes(config, heads),
        *(tokenizer.reading.notes if tokenizer else ()),
    ]
    notes = {"config": config, "prefixed": prefixed, "dtypes": dtypes, "ignored": ignored, "reported": reported}
    return Found(model, params, tokenizer, notes)


def _problem_type(heads: list[Head], config: Mapping[str, Any], folder: Path) -> tuple[ProblemType, list[str]]:
    """Return what a head `classify` predicts, "" without one, and a note if that is an unstated default."""
    if "classify" not in {head.name for head in heads}:
        return "", []
    try:
        found = problem_type_of(config)
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from error
    if found != "multi_label_classification" or config.get("problem_type"):
        return found, []
    return found, [
        "one label and no problem_type: predictions are sigmoids of its logit, as in transformers' pipeline; "
        '"problem_type": "regression" in config.json makes them numbers'
    ]


def _padding_notes(family: Family, encoder: Any, tokenizer: Tokenizer | None, folder: Path) -> list[str]:
    """Return a note if the ids of padding differ where positions are numbered after it, as in RoBERTa.

    Raises InputError if padding is on the left, since positions would then depend on the length of other rows.
    """
    given = getattr(encoder, "unnumbered", None)
    if given is None or tokenizer is None or tokenizer.vocabulary.pad == given:
        return []
    ids = f"config.json has pad_token_id={given}, its tokenizer pads with {tokenizer.vocabulary.pad}"
    if parse_object(tokenizer.files.get(TOKENIZER_CONFIG, b"{}"), TOKENIZER_CONFIG).get("padding_side") == "left":
        raise InputError(
            f"{folder}: {ids} on the left: {family.model_type} would number texts by the length of their padding. Set "
            "padding_side=right in tokenizer_config.json, or put the model's own vocabulary into the folder"
        )
    piece = repr(tokenizer.piece(given)) if 0 <= given < tokenizer.vocabulary.size else "no piece"
    return [f"{ids}: as in transformers, positions are numbered from {given + 1}, and {piece} is not counted"]


def write_model(
    model: Any, params: Params, tokenizer: Tokenizer | None, notes: Mapping[str, Any], folder: Path, architecture: str
) -> list[str]:
    """Write an encoder and its heads to a new folder. Returns notes to report: what no class of transformers has.

    notes: of the folder that the model came from, or empty. architecture: a `model_type`, or empty to choose by the
    encoder. Raises InputError where no class of transformers computes what this model computes.
    """
    if not isinstance(model, Headed):
        raise _not_one_encoder(model, params)
    original: dict[str, Any] = dict(notes.get("config", {}))
    family = FAMILIES[original["model_type"]] if original else family_for(model.encoder, model.heads, architecture)
    given, params, renamed = _with_table_names(family, original, model, params)
    encoder, params, idle = _without_idle_parameters(family, model.encoder, given, params)
    reported = renamed + idle
    encoder, canonical = family.canonical(encoder, params["encoder"])
    params = {**params, "encoder": canonical}
    heads = _heads_to_write(family, original, encoder, given)
    class_name = class_for(family, original, given, heads)
    labels, predicts = (model.labels, model.predicts) if isinstance(model, Published) else ((), "")
    config = make_config(family, encoder, original, class_name, given, tokenizer, labels, predicts)
    check_round_trip(family, config, encoder, given, heads, folder)
    tensors = write_tensors(family, encoder, heads, params, dict(notes.get("dtypes", {})))
    classless = [head for head in heads if head.classless]
    reported += [
        f"wrote head/{head.name} by the names of the released weights: transformers has no class with it, and lists "
        f"{head.tensors[0].tensor.split('.')[0]}.* as unexpected; FOLDER:encoder is the encoder alone"
        for head in classless
    ]
    prefixed = notes.get("prefixed", class_name != family.base_class or bool(classless))
    if not prefixed:
        tensors = {name.removeprefix(f"{family.prefix}."): array for name, array in tensors.items()}
    write_folder(folder, config, tensors)
    if tokenizer is not None:
        segments = getattr(encoder, "types", 2) > 1
        reported += write_tokenizer(tokenizer, family, folder, longest=encoder.max_length, segments=segments)
    return reported


def _not_one_encoder(model: Any, params: Params) -> InputError:
    parts = [f"folder:{name}" for name in params] if hasattr(model, "part") else []
    hint = f": name one of its parts, {' or '.join(parts)}" if parts else ""
    return InputError(f"a {type(model).__name__} is not one encoder with heads{hint}")


def _heads_to_write(
    family: Family, original: Mapping[str, Any], encoder: Any, given: Mapping[str, nn.Module]
) -> list[Head]:
    """List the heads of the family that a model has; its pooler alone where the model has no more than that."""
    heads = [head for head in all_heads(family, original) if head.name in given and head.fits(encoder)]
    heads = [head for head in heads if not isinstance(given[head.name], Pooler)]
    pooler = family.pooler
    alone = pooler is not None and isinstance(given.get(pooler.name), Pooler)
    return [*heads, pooler] if pooler is not None and alone else heads


def parameter_shapes(model: Published, folder: Path) -> Shapes:
    """Return the shapes of all parameters by name, without initialising them."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    batch = {"tokens": tokens, "mask": tokens, "types": tokens}
    try:
        params = jax.eval_shape(model.init, jax.random.key(0), batch)
    except (ValueError, TypeError, OverflowError) as error:  # sizes that no array can have
        raise InputError(f"{folder / 'config.json'} describes no model: {str(error)[:200]}") from error
    return {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def without_heads(encoder: Any, params: Params) -> tuple[Any, Params]:
    """Remove the parts of an encoder that only a language-model head uses, such as a mask decoder, with parameters."""
    family = find_family(encoder)
    return family.headless(encoder, params) if family is not None else (encoder, params)


def _without_idle_parameters(
    family: Family, encoder: Any, heads: Mapping[str, nn.Module], params: Params
) -> tuple[Any, Params, list[str]]:
    """As `without_heads` if there is no language head, with a note: a folder shows them by its head alone."""
    if any(isinstance(module, LanguageHead) for module in heads.values()):
        return encoder, params, []
    alone, own = family.headless(encoder, params["encoder"])
    idle = [name for name in params["encoder"] if name not in own]
    left = [f"left out encoder/{name}: there is no language head to use it" for name in idle]
    return alone, {**params, "encoder": own}, left


def _with_table_names(
    family: Family, config: Mapping[str, Any], model: Headed, params: Params
) -> tuple[dict[str, nn.Module], Params, list[str]]:
    """Rename a language head that has another name than in the family's table: (heads, parameters, notes).

    What the table does not have stays, and is refused by name (`class_for`).
    """
    heads, encoder = model.heads, model.encoder
    config = config or family.stated(encoder)
    known = {head.name for head in family.heads}
    foreign = [name for name, module in heads.items() if isinstance(module, LanguageHead) and name not in known]
    candidates = (head for head in family.heads if head.when(config) and head.fits(encoder)) if foreign else ()
    name = next((head.name for head in candidates if isinstance(head.make(encoder, config, 2), LanguageHead)), None)
    if len(foreign) != 1 or name is None or name in heads:
        return heads, params, []
    renamed = {foreign[0]: name}
    head = {renamed.get(old, old): part for old, part in params["head"].items()}
    given = {renamed.get(old, old): module for old, module in heads.items()}
    return given, {**params, "head": head}, [f"wrote head/{foreign[0]} as head/{name}, the name it is read back by"]
