"""Descriptions without the places of files: what is published names no folder of a machine, and so no user of it."""

import re
from collections.abc import Mapping
from typing import Any

PLACES = {"corpus": None, "data": None, "tokenizer": None, "validation": None}
"""The fields of rows that are paths."""

_PATHS = frozenset({*PLACES, "init"})
_NAMES_OF_OTHERS = re.compile(r"\w*(_path|_dir|_file)")  # in config.json, such as _name_or_path
_LOCAL = re.compile(r"(/|~|\.{1,2}/|[A-Za-z]:[\\/]|\\\\|\w+:/).*", re.DOTALL)


def without_places(described: Any) -> Any:
    """Return a description, of JSON types, in which only the last part of each path is left.

    Of paths in descriptions of ours, wherever they lead; in those of a config.json, of absolute ones, since a name of a
    model in a hub looks like a relative one.
    """
    if isinstance(described, Mapping):
        return {key: _placeless(key, value) for key, value in described.items()}
    if isinstance(described, list | tuple):
        return [without_places(each) for each in described]
    return described


def _placeless(key: str, value: Any) -> Any:
    if isinstance(value, str) and (key in _PATHS or (_NAMES_OF_OTHERS.fullmatch(key) and _LOCAL.fullmatch(value))):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return without_places(value)
