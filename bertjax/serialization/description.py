"""Describe dataclasses and functions of bertjax as JSON, and rebuild them.

A description names classes and functions by module; those that it may name are in closed_set.py. Descriptions written
before a module moved, or before a class or a field was renamed, are updated as they are read: see `up_to_date`.
"""

import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from bertjax.errors import InputError
from bertjax.serialization.closed_set import (
    ALL,
    FOUND_AT,
    HELD,
    LARGEST,
    LARGEST_OTHER,
    LONGEST,
    LONGEST_OTHER,
    LONGEST_TEXT,
    ONE_OF,
    Names,
)

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
    "bertjax.data.supervised.TaskRows": {"shortest": 0, "pool": None},
    "bertjax.tasks.rows.TaskRows": {"shortest": 0, "pool": None},
    "bertjax.config.Experiment": {"counters": {"type": "bertjax.counters.Restarted"}, "amend": [], "extend": 0},
    "bertjax.config.Run": {"tolerance": 10, "patience": 1800.0, "recompute_every": 0},
    "bertjax.heads.MaskedLMHead": {"decoder_bias": True},
    "bertjax.models.deberta.DeBERTa": {"convolution_activation": None},
    "bertjax.models.encoder.Encoder": {"groups": 1, "inner": 1, "unnumbered": None},
    "bertjax.models.modern.Biases": {"decoder": True},
    "bertjax.models.modern.Modern": {"local": None},
    "bertjax.objectives.distil.Distillation": {"corrupt": _MASK_TOKENS},
    "bertjax.optim.Optimizer": {"spikes": None},
    "bertjax.optim.optimizer.Optimizer": {"spikes": None},
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
    name = value["type"] if isinstance(value.get("type"), str) else ""
    if name in CONVERSIONS:
        try:
            return up_to_date(CONVERSIONS[name](value))
        except (KeyError, TypeError) as error:
            raise InputError(f"a description of {name} is damaged: {error!r:.100}") from error
    renamed, added = FORMER_FIELDS.get(name, {}), ADDED_FIELDS.get(name, {})
    if twice := next((old for old, new in renamed.items() if {old, new} <= value.keys()), ""):
        raise InputError(f"a description of {name} has both {twice} and {renamed[twice]}, which are one field")
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
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise InputError(
        f"{value!r} in an experiment cannot be described: use dataclasses, functions, finite numbers and texts"
    )


Code = Mapping[str, Any]
"""A user's own classes and functions by name, of a file that the user has named: see `config.own_code`."""

NO_CODE: Code = {}


def from_json(value: Any, names: Names = ALL, at: str = "", code: Code = NO_CODE) -> Any:
    """Rebuild a value from its description by `to_json`, in this version or an earlier one.

    names: the classes and functions that may be its root. at: its name, for errors. code: the user's own, which any
    field may hold. Nothing else is imported or called but what `closed_set` lists for the field that names it, and
    every value is checked against the type and the largest size of its field first. Raises InputError for anything
    else, with the path of the value.
    """
    try:
        return _named(up_to_date(value), names, at, code)
    except RecursionError as error:
        raise InputError(f"{at or 'a description'} is nested too deep: no real one is") from error


def own_names(value: Any, code: Code = NO_CODE) -> list[str]:
    """Return the names in a description that are neither of bertjax nor in `code`: of a user's own files."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    named = [value.get(kind) for kind in ("type", "function")] if isinstance(value, dict) else []
    known = ALL.types | ALL.functions
    own = {name for name in named if isinstance(name, str) and name not in known and _own(name, code) is None}
    return sorted(own.union(*(own_names(item, code) for item in inner)))


def _named(value: Any, names: Names, at: str, code: Code) -> Any:
    """Rebuild what `value` names: an instance of one of the types, or one of the functions themselves."""
    kind = "type" if isinstance(value, dict) and "type" in value else "function"
    name = value.get(kind) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(name, str) or (kind == "function" and len(value) > 1):
        raise _refused(value, at, f"the description of {_some(names)}")
    if name not in ALL.types | ALL.functions:
        if (own := _own(name, code)) is not None:
            return own if kind == "function" else _instance(own, value, at, code)
        if not name.startswith("bertjax."):
            raise InputError(
                f"{name!r:.200}{f' ({at})' if at else ''} is not of bertjax, and a model runs no code of its own: name "
                "the experiment file that has it, with --experiment FILE, or in Python load(…, experiment=FILE)"
            )
        raise InputError(
            f"{at or 'a description'} names {name!r:.200}: this version of bertjax has no class or function of this "
            "name that a description may name"
        )
    if name not in (names.types if kind == "type" else names.functions):
        raise _refused(value, at, _some(names))
    found = _find(name)
    return found if kind == "function" else _instance(found, value, at, code)


def _own(name: str, code: Code) -> Any:
    """Return a class or function of the user's own; of an experiment file by its name alone: it may have been moved."""
    if name in code:
        return code[name]
    module, _, attribute = name.rpartition(".")
    same = [each for each in code if each.startswith(EXPERIMENT) and each.rpartition(".")[2] == attribute]
    return code[same[0]] if same and module.startswith(EXPERIMENT) else None


EXPERIMENT = "experiment_"
"""Before the name of an experiment file, in the name of the module that it is imported as."""


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _find(name: str) -> Any:
    """Return the class or function of a name of the closed set."""
    module, _, attribute = FOUND_AT.get(name, name).rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _instance(cls: type[Any], described: dict[str, Any], at: str, code: Code) -> Any:
    """Build a dataclass of its described fields, each checked against its type."""
    name = _name_of(cls)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise InputError(f"{at or 'a description'} names {name}, which is no dataclass")
    fields, hints = field_names(cls), _hints(cls)
    inside = f"{at}." if at else ""
    if unknown := next((key for key in described if key not in (*fields, "type")), None):
        raise InputError(f"{inside}{unknown!r:.100} is no field of {name}: it has {', '.join(fields)}")
    required = {each.name for each in dataclasses.fields(cls) if _is_required(each)}
    if missing := next((field for field in fields if field in required and field not in described), None):
        raise InputError(f"{inside}{missing} is missing: {name} needs it")
    given = {
        field: _checked(described[field], hints[field], _Field(cls, field), f"{inside}{field}", code)
        for field in fields
        if field in described
    }
    try:
        return cls(**given)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise InputError(f"{at or name}: {error}") from error


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


class _Field(NamedTuple):
    owner: type[Any]
    name: str

    @property
    def own(self) -> bool:
        """Whether the class is the user's own."""
        return _name_of(self.owner) not in ALL.types

    @property
    def held(self) -> Names:
        """The names that closed_set lists for the field; all where the class is the user's own."""
        return ALL if self.own else HELD.get(f"{_name_of(self.owner)}.{self.name}", Names())

    @property
    def largest(self) -> int:
        """The largest absolute value of an integer."""
        return 2**64 if self.own else LARGEST.get(self.name, LARGEST_OTHER)


def _checked(value: Any, hint: Any, field: _Field, at: str, code: Code = NO_CODE) -> Any:
    """Rebuild a value that fits the annotation of its field. Raises InputError for another."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _of_union(value, arguments, field, at, code)
    if origin is tuple:
        return _tuple(value, arguments, field, at, code)
    if hint is int or hint is float:
        return _number(value, hint, field.largest, at)
    if hint is str or origin is Literal:
        return _text(value, arguments or ONE_OF.get(field.name, ()), at)
    if hint is bool or hint is type(None):
        if type(value) is not hint:
            raise _refused(value, at, "true or false" if hint is bool else "null")
        return value
    if isinstance(hint, type) and (name := _name_of(hint)) in ALL.types:
        return _named(value, Names(types=frozenset({name})), at, code)
    return _of_field(value, hint, field, at, code)


def _of_field(value: Any, hint: Any, field: _Field, at: str, code: Code) -> Any:
    """Rebuild a value whose annotation does not say what it may be: closed_set says it, or it is a value of Rules."""
    if field.own and not isinstance(value, dict):
        listed = isinstance(value, list | tuple)
        return _tuple(value, (Any, ...), field, at, code) if listed else value
    if field.held != Names():
        return None if value is None and _may_be_none(field) else _named(value, field.held, at, code)
    if hint is not Any:
        raise _refused(value, at, "a value: no description may set this field")
    if isinstance(value, list | tuple):
        return _tuple(value, (float, ...), field, at, code)
    return value if isinstance(value, bool) else _number(value, float, field.largest, at)


def _of_union(value: Any, hints: tuple[Any, ...], field: _Field, at: str, code: Code) -> Any:
    """Rebuild a value of the first annotation of a union that it fits."""
    types = frozenset(_name_of(hint) for hint in hints if isinstance(hint, type)) & ALL.types
    if isinstance(value, dict) and types:
        return _named(value, Names(types, frozenset()), at, code)
    hints = hints if value is None else tuple(hint for hint in hints if hint is not type(None))
    for hint in hints[:-1]:
        try:
            return _checked(value, hint, field, at, code)
        except InputError:
            continue
    return _checked(value, hints[-1], field, at, code)


def _tuple(value: Any, hints: tuple[Any, ...], field: _Field, at: str, code: Code) -> tuple[Any, ...]:
    longest = LONGEST.get(field.name, LONGEST_OTHER)
    if not isinstance(value, list | tuple) or len(value) > longest:
        raise _refused(value, at, f"a list of at most {longest} elements")
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(value) != len(hints):
        raise _refused(value, at, f"a list of {len(hints)} elements")
    pairs = enumerate(zip(value, hints, strict=True))
    return tuple(_checked(item, hint, field, f"{at}.{index}", code) for index, (item, hint) in pairs)


def _number(value: Any, hint: type, largest: int, at: str) -> int | float:
    """Check a number; a float may be written as an integer, which is kept, so that its description stays equal."""
    largest = largest if hint is int else 2**53
    if type(value) is int and abs(value) <= largest:
        return value
    if hint is float and isinstance(value, float) and math.isfinite(value):
        return value
    raise _refused(value, at, f"{'an integer' if hint is int else 'a finite number'} of at most {largest:,}")


def _text(value: Any, choices: tuple[str, ...], at: str) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise _refused(value, at, f"a text of at most {LONGEST_TEXT:,} characters")
    if choices and value not in choices:
        raise _refused(value, at, f"one of {', '.join(map(repr, choices))}")
    return value


def _may_be_none(field: _Field) -> bool:
    """Tell whether a field that is annotated by Any is None by default."""
    return any(each.name == field.name and each.default is None for each in dataclasses.fields(field.owner))


def _name_of(hint: Any) -> str:
    return f"{hint.__module__}.{hint.__qualname__}"


def _some(names: Names) -> str:
    if names == ALL:
        return "a class or function that a description may name"
    types = sorted(name.rpartition(".")[2] for name in names.types)
    functions = sorted(name.rpartition(".")[2] for name in names.functions)
    return " or ".join(types + [f"the function {name}" for name in functions])


def _refused(value: Any, at: str, wanted: str) -> InputError:
    return InputError(f"{at or 'a description'} is {_short(value)}, not {wanted}")


def _short(value: Any) -> str:
    """Show a value that may be of any size: containers by their kind and length, numbers and texts by their start."""
    if isinstance(value, dict):
        kind = "type" if "type" in value else "function"
        named = isinstance(value.get(kind), str)
        return f"the {kind} {value[kind]!r:.100}" if named else f"an object of {len(value)} entries"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} elements"
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"a number of about 10**{int(value.bit_length() * 0.30103)}"
    return f"{value!r:.80}"


def dump(value: Any) -> str:
    """Format `to_json(value)` as indented text."""
    return json.dumps(to_json(value), indent=1)
