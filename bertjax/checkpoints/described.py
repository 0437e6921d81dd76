"""Read what a trained model is from its description alone, without its weights: the sizes that a start from it takes.

An experiment is built with them where `init` is given, so that nobody has to repeat the sizes of a folder.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.newest import read_newest
from bertjax.checkpoints.protocols import wrapped
from bertjax.checkpoints.trained import ENCODER, part_of
from bertjax.errors import InputError
from bertjax.huggingface.configuration import family_of, make_encoder
from bertjax.huggingface.folder import is_huggingface, read_config
from bertjax.huggingface.sentence_transformers import transformer_folder
from bertjax.nearest import nearest
from bertjax.serialization.description import field_names, to_json

SIZES = ("V", "D", "N", "H", "F", "E", "positions", "groups", "inner")
"""The fields of encoders that are sizes, and that a start from a model takes from it."""

_WIDTHS = ("D", "N", "H", "F")

Described = Mapping[str, Any]


class Init(NamedTuple):
    """What `init` asks for: a model, and whether the state of its optimiser is taken over too."""

    source: str
    optimizer: bool = False

    @staticmethod
    def parse(text: str) -> "Init":
        """Parse FOLDER, FOLDER:PART or FOLDER,optimizer. Raises InputError for a last word that is nearly that."""
        source, comma, last = text.rpartition(",")
        if comma and last.strip() == "optimizer":
            return Init(source, True)
        if comma and nearest(last.strip(), ["optimizer"]):
            raise InputError(f"init={text}: did you mean {source},optimizer?")
        return Init(text)


def size_of(size: str, published: Mapping[str, Mapping[str, Any]], init: str, default: str) -> str:
    """Return the name of a published size: `size`, or for "auto" that of the model in `init`, else `default`.

    published: by name the fields of the encoder that is kept. A model that has none of these sizes goes by the recipe
    of `default`. Raises InputError where there is no model in `init`, where it has other sizes than `size`, and where
    several names but the default fit it.
    """
    if not init:
        return default if size == "auto" else size
    found = _kept(encoders_in(init))
    if size != "auto":
        different = _different(found, published[size])
        if different:
            raise InputError(f"size={size} contradicts init={init}: {different}; leave out size, or give size=auto")
        return size
    names = [name for name, fields in published.items() if not _different(found, fields)]
    if default in names or not names:
        return default
    if len(names) > 1:
        choices = " or ".join(f"size={name}" for name in names)
        raise InputError(f"init={init} has the sizes of several recipes: choose one, {choices}")
    return names[0]


Objective = TypeVar("Objective")


def sized_as(init: str, objective: Objective) -> Objective:
    """Return an objective whose encoders have the sizes of those in `init`; without `init` the objective itself.

    Encoders are matched by the field that holds them, or where each of the two has only one. A vocabulary is only
    enlarged: published tables are often padded. Raises InputError where there is no model in `init`, where none of its
    encoders matches, where one is of another class, and as the encoders for sizes that contradict their other fields.
    """
    if not init:
        return objective
    *_, inner = wrapped(objective)
    theirs = encoders_in(init)
    ours = {name: getattr(inner, name) for name in _encoder_fields(to_json(inner))}
    changed = {}
    for name, encoder in ours.items():
        same = theirs.get(name) or (next(iter(theirs.values())) if len(theirs) == len(ours) == 1 else None)
        if same is not None:
            changed[name] = _resized(init, encoder, same)
    if not changed:
        parts = " or ".join(f"init={Init.parse(init).source}:{part}" for part in theirs)
        remedy = f"choose one of them, {parts}" if len(theirs) > 1 else "start from a run that has trained these"
        raise InputError(
            f"init={init} has {' and '.join(theirs)}, this experiment trains {' and '.join(ours)}: {remedy}"
        )
    return _with_encoders(objective, changed)


def encoders_in(init: str) -> dict[str, Described]:
    """Return the descriptions of the encoders of the model in `init`, by the fields that hold them.

    Raises InputError if there is no model.
    """
    folder, part = part_of(Init.parse(init).source)
    if is_huggingface(folder):
        inner = transformer_folder(folder)
        config = read_config(inner)
        family = family_of(config, inner)
        return {ENCODER: to_json(make_encoder(family, dict(family.modernise(config)), inner))}
    info = read_newest(folder, checkpoint.read_info, say=lambda text: None)[0]
    described = info["experiment"]["objective"]
    while not (found := {name: described[name] for name in _encoder_fields(described)}):
        if not isinstance(described.get("objective"), Mapping):
            raise InputError(f"init={init} does not describe its encoder: give the sizes of the model yourself")
        described = described["objective"]
    if part == ENCODER:
        return {ENCODER: _kept(found)}
    return {ENCODER: found[part]} if part in found else found


def other_fields(ours: Any, theirs: Any) -> list[str]:
    """Return fields in which two encoders of a class compute differently although their parameters fit, with values.

    Not those that a stage of training may change on purpose: dropout, initialisation, positions.
    """
    free = ("dropout", "initializer", "positions", "remat", "dtype", "attend", "unroll", "types", "decoder")
    names = [name for name in field_names(ours) if not any(word in name for word in free) and name not in SIZES]
    here, there = to_json(ours), to_json(theirs)
    if here["type"] != there["type"]:
        return []
    shown = [(name, _plain(there[name]), _plain(here[name])) for name in names if here[name] != there[name]]
    return [f"{name} {a} there, {b} here" for name, a, b in shown]


def _plain(value: Any) -> str:
    name = value.get("function", value.get("type", "")) if isinstance(value, dict) else ""
    return name.rpartition(".")[2] if name else str(value)


def _encoder_fields(described: Described) -> Iterator[str]:
    """Yield the fields of a described objective that hold an encoder: it has widths."""
    for name, value in described.items():
        if isinstance(value, Mapping) and value.keys() >= set(_WIDTHS):
            yield name


def _kept(encoders: Mapping[str, Described]) -> Described:
    """Return the encoder that is meant for other tasks."""
    kept = (encoders.get(name) for name in (ENCODER, "discriminator", "student"))
    return next((each for each in kept if each), next(iter(encoders.values())))


def _different(found: Described, fields: Mapping[str, Any]) -> str:
    pairs = [(name, found.get(name), value) for name, value in fields.items()]
    return ", ".join(f"{name} is {there} there, {here} here" for name, there, here in pairs if there != here)


def _resized(init: str, encoder: Any, theirs: Described) -> Any:
    described = to_json(encoder)
    if described["type"] != theirs.get("type"):
        names = [each.rpartition(".")[2] for each in (str(theirs.get("type")), described["type"])]
        raise InputError(
            f"the encoder of init={init} is of class {names[0]}, that of this experiment {names[1]}: use an experiment "
            "of its family"
        )
    names = [name for name in SIZES if name in described.keys() & theirs.keys() and _is_size(described[name])]
    sizes = {name: theirs[name] for name in names if name != "V"}
    sizes["V"] = max(theirs.get("V", 0), encoder.V)
    try:
        return dataclasses.replace(encoder, **sizes)
    except ValueError as error:
        raise InputError(f"with the sizes of init={init}: {error}") from error


def _is_size(value: Any) -> bool:
    return value is None or isinstance(value, int)  # positions may be an object


def _with_encoders(objective: Any, changed: Mapping[str, Any]) -> Any:
    if not changed.keys() <= set(field_names(objective)):
        return dataclasses.replace(objective, objective=_with_encoders(objective.objective, changed))
    return dataclasses.replace(objective, **changed)
