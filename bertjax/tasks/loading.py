"""Load the splits of a task from a folder in their original format, or from TFDS."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from bertjax.data.corpus import open_split
from bertjax.errors import InputError
from bertjax.storage.files import open_given, real_path
from bertjax.storage.paths import path_of
from bertjax.tasks.examples import Example, Texts, Words
from bertjax.tasks.formats import ManyFiles
from bertjax.tasks.reading import Notes
from bertjax.tasks.task import Part, Task
from bertjax.tasks.tfds import plain


class Loaded(NamedTuple):
    """Examples, and how many were dropped or repaired, by reason."""

    examples: list[Example]
    notes: Notes


def load_examples(task: Task, data: str, split: str) -> Loaded:
    """Load a split of a task. data: a folder, or `tfds`, or `tfds:FOLDER` with the data folder of TFDS.

    Raises InputError if it is missing, empty or of another task.
    """
    notes: Notes = Notes()
    part = task.part(split)
    if data.partition(":")[0] == "tfds":
        examples = list(_from_tfds(task, part, data.partition(":")[2] or None, notes))
    else:
        examples = list(part.format.read(find_part(task, data, part), notes))
    if not examples:
        raise InputError(f"the {split} split of task {task.name} in {data} is empty")
    return Loaded(examples, +notes)


def find_part(task: Task, data: str, part: Part) -> Path:
    """Return the file or folder of a split, in `data` or in the task's own folder below it."""
    folders = [path_of(data), *(path_of(data) / folder for folder in task.folders)]
    for folder in folders:
        for name in part.files:
            if (folder / name).exists():
                real_path(path_of(data), (folder / name).relative_to(path_of(data)))
                return folder / name
    names, inside = " or ".join(part.files), "".join(f" or in {folder}/ of it" for folder in task.folders)
    raise InputError(f"no {names} in {data}{inside}, the {part.split} split of task {task.name}: check data=FOLDER")


def available(task: Task, data: str) -> tuple[str, ...]:
    """List the splits of a task that exist in `data`; for TFDS, those that it documents."""
    if data.partition(":")[0] == "tfds":
        return tuple(part.split for part in task.parts if part.tfds)

    def exists(part: Part) -> bool:
        folders = [path_of(data), *(path_of(data) / folder for folder in task.folders)]
        return any((folder / name).exists() for folder in folders for name in part.files)

    return tuple(part.split for part in task.parts if exists(part))


def digest(task: Task, data: str) -> str:
    """Return the SHA-256 of all splits but the test splits, which training never reads.

    Of files it covers names and contents, of TFDS the name, version and size of the data set.
    """
    total = hashlib.sha256(task.name.encode())
    for split in available(task, data):
        if split.startswith("test"):
            continue
        part = task.part(split)
        if data.partition(":")[0] == "tfds":
            for name in task.tfds:
                source, info = open_split(name, part.tfds, data.partition(":")[2] or None)
                total.update(f"{info.full_name} {split} {len(source)}".encode())
            continue
        path = find_part(task, data, part)
        folder = path if path.is_dir() else path.parent
        files = part.format.files(path) if isinstance(part.format, ManyFiles) else [path]
        for file in files:
            name = file.relative_to(folder).as_posix()
            total.update(os.fsencode(name) + _sha256(file))
    return total.hexdigest()


def _sha256(path: Path) -> bytes:
    with open_given(path) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").digest()


def _from_tfds(task: Task, part: Part, data_dir: str | None, notes: Notes) -> Iterator[Example]:
    if not part.tfds:
        raise InputError(f"TFDS has no {part.split} split of task {task.name}: give data=FOLDER in the original format")
    for name in task.tfds:
        source, info = open_split(name, part.tfds, data_dir)
        for index in range(len(source)):
            for example in task.records.examples(f"{name}[{index}]", plain(source[index], info.features), notes):
                if isinstance(example, Texts) and task.spelled and example.label in task.labels:
                    example = example._replace(label=task.spelled[task.labels.index(example.label)])
                if isinstance(example, Words):
                    notes["sentences without their document, whose boundaries TFDS omits"] += 1
                    example = example._replace(document=index)
                yield example
