"""Describe dataclasses and functions of bertjax as JSON, and rebuild them.

A description names classes and functions by module. Descriptions written before a module moved, or before a class or
a field was renamed, are updated as they are read: see `up_to_date`.
"""

import dataclasses
import importlib
import inspect
import json
from collections.abc import Callable
from typing import Any

from bertjax.errors import InputError

FORMER_MODULES = {
    "bertjax.data.choices": "bertjax.tasks.choices",
    "bertjax.data.formats": "bertjax.tasks.formats",
    "bertjax.data.layout": "bertjax.data.templates",
    "bertjax.data.supervised": "bertjax.tasks.rows",
    "bertjax.data.tasks": "bertjax.tasks.task",
    "bertjax.data.tfds": "bertjax.tasks.tfds",
    "bertjax.heads": "bertjax.models.heads",
    "bertjax.kernels": "bertjax.models.kernels",
    "bertjax.layers": "bertjax.models.layers",
    "bertjax.positions": "bertjax.models.positions",
    "bertjax.published": "bertjax.models.published",
    "bertjax.recipe": "bertjax.finetuning.recipe",
    "bertjax.sharding": "bertjax.sharding.mesh",
    "bertjax.spans": "bertjax.models.span_heads",
}
"""Today's modules of the classes and functions that descriptions named until version 0.1."""

FORMER_NAMES = {
    "bertjax.data.layout.Layout": "bertjax.data.templates.Templates",
    "bertjax.masking.Permutation": "bertjax.permutation.Permutation",
    "bertjax.objectives.rtd.judged_alone": "bertjax.objectives.rtd.electra_discriminator_head",
    "bertjax.objectives.rtd.judged_in_context": "bertjax.objectives.rtd.deberta_discriminator_head",
    "bertjax.optim.Optimizer": "bertjax.optim.optimizer.Optimizer",
    "bertjax.optim.scale_by_stable_adam": "bertjax.optim.transforms.scale_by_stable_adam",
    "bertjax.optim.scale_by_uncorrected_adam": "bertjax.optim.transforms.scale_by_uncorrected_adam",
    "bertjax.optim.Polynomial": "bertjax.optim.schedules.Schedule",
    "bertjax.sharding.Layout": "bertjax.sharding.mesh.MeshShape",
} | {
    f"bertjax.optim.{name}": f"bertjax.optim.schedules.{name}"
    for name in ("BertLinear", "ElectraLinear", "Restarting", "linear", "one_minus_sqrt")
}
"""Today's names of classes and functions that did not move with their module, or were renamed."""

FORMER_FIELDS = {
    "bertjax.data.supervised.TaskRows": {"layout": "templates"},
    "bertjax.objectives.rtd.Discriminator": {"judge": "discriminator_head"},
    "bertjax.objectives.rtd.ReplacedTokenDetection": {"judge": "discriminator_head"},
}
"""By the former name of a class: today's names of its fields that were renamed."""


def _schedule(former: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Describe a former schedule as a `Schedule` with these fields; one that ended at its peak holds it."""
    held = former.get("end") == former["peak"]
    fields = {"decay": 0} if held else {"end": former.get("end", 0.0)} | fields
    same = {"peak": former["peak"], "warmup": former.get("warmup"), "total": former["total"]}
    rest = {"shape": {"function": "bertjax.optim.linear"}, "decay": None, "tail": 0, "start": 0.0, "end": 0.0}
    return {"type": "bertjax.optim.schedules.Schedule"} | same | rest | fields


def _schedule_of_polynomial(former: dict[str, Any]) -> dict[str, Any]:
    power = former["power"]
    shape = {"type": "bertjax.optim.schedules.Power", "exponent": power}
    return _schedule(former) if power == 1 else _schedule(former, shape=shape)


def _schedule_of_cosine(former: dict[str, Any]) -> dict[str, Any]:
    shape = {"function": "bertjax.optim.schedules.cosine"}
    return _schedule(former, shape=shape, tail=former["total"] - former["bottom"])


_MASK_TOKENS = {"function": "bertjax.masking.mask_tokens"}
_IOB = {"type": "bertjax.tasks.tags.Scheme", "marks": "first", "separator": "-", "types": []}
ADDED_FIELDS: dict[str, dict[str, Any]] = {
    "bertjax.data.formats.JsonLines": {"many": False},
    "bertjax.data.formats.Table": {"separator": ""},
    "bertjax.data.tasks.Task": {"scheme": _IOB},
    "bertjax.config.Experiment": {"counters": {"type": "bertjax.counters.Restarted"}},
    "bertjax.heads.MaskedLMHead": {"decoder_bias": True},
    "bertjax.models.deberta.DeBERTa": {"convolution_activation": None},
    "bertjax.models.encoder.Encoder": {"groups": 1, "inner": 1, "unnumbered": None},
    "bertjax.models.modern.Biases": {"decoder": True},
    "bertjax.models.modern.Modern": {"local": None},
    "bertjax.objectives.distil.Distillation": {"corrupt": _MASK_TOKENS},
    "bertjax.objectives.mlm.MaskedLM": {"corrupt": _MASK_TOKENS},
    "bertjax.published.Published": {"problem_type": ""},
}
"""By the former name of a class: fields added since, with the values that its former descriptions imply."""

CONVERSIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "bertjax.optim.Polynomial": _schedule_of_polynomial,
    "bertjax.optim.WarmupStableDecay": lambda former: _schedule(former, shape=former["fall"], decay=former["decay"]),
    "bertjax.optim.Cosine": _schedule_of_cosine,
    "bertjax.optim.Triangle": lambda former: _schedule(former, warmup=former["rise"], start=former["start"]),
}
"""By the former name of a class: the function that converts its descriptions, where renaming is not enough."""


def up_to_date(value: Any) -> Any:
    """Convert a description, as JSON types, of an earlier version to this one; others are returned unchanged."""
    if isinstance(value, list):
        return [up_to_date(item) for item in value]
    if not isinstance(value, dict):
        return value
    name = value.get("type")
    if name in CONVERSIONS:
        return up_to_date(CONVERSIONS[name](value))
    renamed, added = (fields.get(name, {}) if isinstance(name, str) else {} for fields in (FORMER_FIELDS, ADDED_FIELDS))
    new = added | {renamed.get(key, key): up_to_date(item) for key, item in value.items()}
    return new | {key: _todays_name(value[key]) for key in ("type", "function") if isinstance(value.get(key), str)}


def _todays_name(name: str) -> str:
    if name in FORMER_NAMES:
        return FORMER_NAMES[name]
    module, _, attribute = name.rpartition(".")
    return f"{FORMER_MODULES[module]}.{attribute}" if module in FORMER_MODULES else name


def field_names(value: Any) -> list[str]:
    """Return the names of the fields of a dataclass that describe it: all but the parent and name of a Linen module."""
    names = [field.name for field in dataclasses.fields(value)]
    return [name for name in names if name not in ("parent", "name")] if "parent" in names else names


def to_json(value: Any) -> Any:
    """Describe `value` with JSON types: dataclasses and functions by their names, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"type": name} | {field: to_json(getattr(value, field)) for field in field_names(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    if callable(value) and hasattr(value, "__qualname__"):
        return {"function": f"{value.__module__}.{value.__qualname__}"}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"{value!r} in an experiment cannot be described: use dataclasses, functions, numbers and texts")


def from_json(value: Any) -> Any:
    """Rebuild a value from its description by `to_json`, in this version or an earlier one.

    Raises InputError for anything but dataclasses and functions of bertjax.
    """
    return _rebuilt(up_to_date(value))


def _rebuilt(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_rebuilt(item) for item in value)
    if not isinstance(value, dict):
        return value
    name = value.get("type") or value.get("function") or ""
    module, _, attribute = name.rpartition(".")
    if not name.startswith("bertjax."):
        raise InputError(
            f"cannot rebuild {name!r}: only classes and functions of bertjax can be, so load it with its own code"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"this version of bertjax has no {name!r}") from error
    described = inspect.isfunction if "function" in value else _is_description
    if not described(found) or found.__module__ != module:
        raise InputError(f"{name!r} is no dataclass or function that a description may name")
    if "function" in value:
        return found
    return found(**{key: _rebuilt(item) for key, item in value.items() if key != "type"})


def _is_description(found: Any) -> bool:
    return isinstance(found, type) and dataclasses.is_dataclass(found)


def dump(value: Any) -> str:
    """Format `to_json(value)` as indented text."""
    return json.dumps(to_json(value), indent=1)
