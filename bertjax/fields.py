"""Check the fields of a dataclass when it is built in Python, against their annotations."""

import dataclasses
import types
from collections.abc import Callable
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bertjax.errors import InputError

_OF_MODULES = ("name", "parent")  # Linen's own fields
_NAMES = {int: "an integer", float: "a number", bool: "True or False", str: "a text"}


def check_fields(instance: Any) -> None:
    """Raise InputError where a field has a value of another type than its annotation; called as it is built.

    Lists become tuples where a tuple is meant, so that models stay hashable. An integer is a number. Where an object of
    a class is needed, one of the user's own is accepted that does the same.
    """
    kind: Any = type(instance)
    hints = _hints(kind)
    for field in dataclasses.fields(instance):
        if field.name in _OF_MODULES or not field.init:
            continue
        value = getattr(instance, field.name)
        if isinstance(value, list) and not _fits(value, hints[field.name]):
            value = tuple(value)
            object.__setattr__(instance, field.name, value)
        if not _fits(value, hints[field.name]):
            raise InputError(
                f"{kind.__name__}.{field.name} is {_shown(value)}: {_wanted(hints[field.name], field)} is needed"
            )


def check_kind(name: str, value: Any, kind: type, remedy: str = "") -> None:
    """Raise InputError where an argument is none of a class; an object of the user's own may stand for one."""
    if not _fits(value, kind):
        raise InputError(f"{name} is {_shown(value)}: {with_article(kind.__name__)} is needed{remedy}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (Any, object):
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and _fit(value, arguments)
    if origin in _PLAIN:
        return _PLAIN[origin](value)
    return not isinstance(origin, type) or (not isinstance(value, _PLAIN_VALUES) and _may_be(value, origin))


def _may_be(value: Any, kind: type) -> bool:
    """Return whether an object may stand for one of a class or a protocol: a stranger may, in place of our classes."""
    if getattr(kind, "_is_protocol", False):
        members = {name for each in kind.__mro__ for name in (*vars(each), *vars(each).get("__annotations__", ()))}
        return any(hasattr(value, name) for name in members if not name.startswith("_") or name == "__call__")
    return isinstance(value, kind) or not type(value).__module__.startswith("bertjax.")


_PLAIN_VALUES = (str, int, float, bytes, list, tuple, dict, type, type(None))


_PLAIN: dict[Any, Callable[[Any], bool]] = {
    None: lambda value: value is None,
    type(None): lambda value: value is None,
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, Integral) and not isinstance(value, bool),
    float: lambda value: isinstance(value, Real) and not isinstance(value, bool),
    str: lambda value: isinstance(value, str),
    Callable: callable,
}


def _fit(values: tuple[Any, ...], annotations: tuple[Any, ...]) -> bool:
    if annotations[1:] == (...,):
        return all(_fits(value, annotations[0]) for value in values)
    return len(values) == len(annotations) and all(map(_fits, values, annotations))


def with_article(noun: str) -> str:
    """Return the name of a class with "a" or "an"."""
    return f"{'an' if noun[0] in 'AEIOUaeio' or noun == 'XLNet' else 'a'} {noun}"


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    plain = isinstance(value, str | int | float | tuple | list | None)
    return f"{value!r:.80}" if plain else with_article(type(value).__name__)


def _wanted(annotation: Any, field: "dataclasses.Field[Any]") -> str:
    origin = get_origin(annotation) or annotation
    options = get_args(annotation) if origin in (Union, types.UnionType) else (annotation,)
    names = [_name(each) for each in options]
    wanted = " or ".join(dict.fromkeys(names))
    plain = isinstance(field.default, str | int | float | tuple) and field.default not in ("", ())
    return f"{wanted}, such as {field.default!r}," if plain else wanted


def _name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (None, type(None)):
        return "None"
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        many = arguments[1:] == (...,)
        inner = _name(arguments[0]) if many else ", ".join(map(_name, arguments))
        return f"a tuple (each {inner})" if many else f"a tuple ({inner})"
    if origin is Callable:
        return "a function"
    return _NAMES.get(origin, with_article(getattr(origin, "__name__", str(origin))))
