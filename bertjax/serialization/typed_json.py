"""Check values parsed from JSON against annotations, so that what was read from a file is what its type says."""

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NotRequired, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from bertjax.errors import InputError

Value = TypeVar("Value")


def typed(value: Any, annotation: type[Value], at: str) -> Value:
    """Return a JSON value as `annotation` describes it; at: its name, for errors.

    Lists and objects of the built-in types, tuples from lists, NamedTuples and dataclasses from objects with their
    fields, TypedDicts with no other keys, unions, Literal, and Any, which is not checked. An integer is a float, but
    true is no integer; numbers are below 2**63. Raises InputError for another value, with its path.
    """
    return cast(Value, _typed(value, annotation, at))


def _typed(value: Any, annotation: Any, at: str) -> Any:
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (Any, object):
        return value
    if origin is NotRequired:
        return _typed(value, arguments[0], at)
    if origin in (Union, types.UnionType):
        return _of_union(value, arguments, at)
    if origin is Literal:
        if not any(type(value) is type(each) and value == each for each in arguments):
            raise _refused(value, at, f"one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (dict, list, tuple):
        return _container(value, origin, arguments, at)
    if is_typeddict(origin) or dataclasses.is_dataclass(origin) or hasattr(origin, "_fields"):
        return _record(value, origin, at)
    origin = type(None) if origin is None else origin
    fits = isinstance(value, (int, float)) if origin is float else isinstance(value, origin)
    too_large = isinstance(value, int) and abs(value) >= 2**63
    if not fits or too_large or (isinstance(value, bool) and origin is not bool):
        raise _refused(value, at, _NAMES.get(origin, str(origin)))
    return value


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text", type(None): "null"}


def _of_union(value: Any, annotations: tuple[Any, ...], at: str) -> Any:
    for annotation in annotations[:-1]:
        try:
            return _typed(value, annotation, at)
        except InputError:
            continue
    return _typed(value, annotations[-1], at)


def _container(value: Any, origin: type, arguments: tuple[Any, ...], at: str) -> Any:
    if origin is dict:
        if not isinstance(value, dict):
            raise _refused(value, at, "an object")
        keys, values = arguments
        return {
            _typed(key, keys, f"a key of {at}"): _typed(each, values, f"{at}.{key!r:.80}")
            for key, each in value.items()
        }
    if not isinstance(value, list):
        raise _refused(value, at, "a list")
    if origin is list or arguments[1:] == (...,):
        items = [_typed(each, arguments[0], f"{at}.{index}") for index, each in enumerate(value)]
        return items if origin is list else tuple(items)
    if len(value) != len(arguments):
        raise _refused(value, at, f"a list of {len(arguments)} elements")
    pairs = enumerate(zip(value, arguments, strict=True))
    return tuple(_typed(each, argument, f"{at}.{index}") for index, (each, argument) in pairs)


@cache
def _fields(record: Any) -> tuple[Mapping[str, Any], frozenset[str]]:
    """Return the annotations of a record's fields, and the names of those that are required."""
    hints = get_type_hints(record, include_extras=True)
    if is_typeddict(record):
        return hints, record.__required_keys__
    if dataclasses.is_dataclass(record):
        missing = dataclasses.MISSING
        fields = dataclasses.fields(record)
        return hints, frozenset(x.name for x in fields if x.default is missing and x.default_factory is missing)
    return hints, frozenset(hints) - set(record._field_defaults)


def _record(value: Any, record: Any, at: str) -> Any:
    if not isinstance(value, dict):
        raise _refused(value, at, "an object")
    hints, required = _fields(record)
    if unknown := value.keys() - hints:
        raise InputError(f"{at} has {min(unknown)!r:.80}, which is none of {', '.join(hints)}")
    if lacking := required - value.keys():
        raise InputError(f"{at} has no {min(lacking)}")
    given = {name: _typed(each, hints[name], f"{at}.{name}") for name, each in value.items()}
    return given if is_typeddict(record) else record(**given)


def _refused(value: Any, at: str, wanted: str) -> InputError:
    sized = isinstance(value, dict | list)
    shown = f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}" if sized else f"{value!r:.80}"
    return InputError(f"{at} is {shown}, not {wanted}")
