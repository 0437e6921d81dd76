"""Check the folder of a TFDS data set before TFDS opens it: TFDS imports the modules that the folder names."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertjax.errors import InputError
from bertjax.serialization.bounded_json import parse
from bertjax.storage.files import check_tree, read_inside

_CLASSES = ("type", "pythonClassName", "python_class_name", "proto_cls")
"""The keys of features.json whose values are names of classes (TFDS, core/features/feature.py, from_json)."""


def check_data_set(name: str, data_dir: str | None) -> None:
    """Raise InputError where a data set names classes of other modules than TFDS's or files elsewhere, or links there.

    name: of the data set, with or without its configuration. data_dir: of TFDS, by default its own.
    """
    below = name.partition("/")[0].partition(":")[0]
    home = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    if "://" in home:
        from etils import epath  # as TFDS itself

        for path in epath.Path(home, below).rglob("features.json"):
            _check_classes(path.read_bytes(), f"{path}")
        for path in epath.Path(home, below).rglob("dataset_info.json"):
            _check_names_of_files(path.read_bytes(), f"{path}")
        return
    folder = Path(home).expanduser() / below
    if not below or not folder.is_dir():
        return
    check_tree(folder)
    for path in sorted(folder.rglob("features.json")):
        _check_classes(read_inside(folder, path.relative_to(folder)), f"{path}")
    for path in sorted(folder.rglob("dataset_info.json")):
        _check_names_of_files(read_inside(folder, path.relative_to(folder)), f"{path}")


def _check_names_of_files(content: bytes, where: str) -> None:
    """Raise InputError where the files of a split would be elsewhere."""
    described = parse(content, where)
    splits = described.get("splits") if isinstance(described, dict) else None
    for split in splits if isinstance(splits, list) else []:
        named = [split.get(key) for key in ("name", "filepathTemplate")] if isinstance(split, dict) else []
        outside = next((each for each in named if isinstance(each, str) and ("/" in each or "\\" in each)), "")
        if outside:
            raise InputError(f"{where} names files {outside!r:.100}: only files beside it are read")


def _check_classes(content: bytes, where: str) -> None:
    for name in _names(parse(content, where)):
        if not name.startswith("tensorflow_datasets."):
            raise InputError(
                f"{where} names the class {name!r:.100}, which TFDS would import: only those of tensorflow_datasets "
                "are followed"
            )


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (each for key, each in value.items() if key in _CLASSES and isinstance(each, str))
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _names(each)
