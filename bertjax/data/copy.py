"""Copy a corpus to a disk or to Cloud Storage, verified; what an interrupted copy has finished is not copied again.

Training reads a corpus from where it is. A copy on the disk of a machine is for those who want one there.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from bertjax.data.records import (
    Manifest,
    corpus_tokenizer,
    file_digest,
    index_name,
    manifest_digest,
    read_manifest,
    shard_name,
)
from bertjax.data.tokenizer import fingerprint, save_tokenizer
from bertjax.errors import InputError
from bertjax.storage import files
from bertjax.storage.paths import path_of

_PIECE = 2**22  # bytes
_FOR_TFDS = ("dataset_info.json", "features.json")


def copy_corpus(source: str | Path, folder: str | Path, *, report: Callable[[str], None] = lambda name: None) -> int:
    """Copy a corpus to another folder, its manifest last, and return the bytes that were copied; 0 if it is there.

    Files that are not of a corpus stay behind. report: is called with the name of each shard's files. Raises InputError
    where a file or the tokenizer is not what the manifest says, and where the folder holds anything else.
    """
    home, to, manifest = path_of(source), path_of(folder), read_manifest(source)
    if (to / "manifest.json").exists() and manifest_digest(folder) == manifest_digest(source):
        return 0
    wanted, tokenizer = dict(_shards(manifest)), corpus_tokenizer(source)
    if fingerprint(tokenizer) != manifest.tokenizer:
        raise InputError(f"{home}/tokenizer is not the tokenizer that the corpus was built with: build it again")
    small = [name for name in _FOR_TFDS if (home / name).exists()]
    known = {*wanted, *small, *(f"tokenizer/{name}" for name in tokenizer.files)}
    there = {path.relative_to(to).as_posix() for path in files.files_below(to)} if to.exists() else set()
    if others := there - known - {f"{name}.partial" for name in known}:
        raise InputError(f"{to} is not empty ({min(others)}): choose another folder for the copy")
    copied = 0
    for name, digest in wanted.items():
        if name in there and file_digest(to / name) == digest:
            continue
        report(name)
        size, found = _copy(home, to, name)
        if found != digest:
            raise InputError(f"{home / name} is damaged: build the corpus again, and delete {to}")
        copied += size
    save_tokenizer(tokenizer, to / "tokenizer")  # the one that was compared, whatever is in its place by now
    copied += sum(map(len, tokenizer.files.values()))
    for name in (*small, "manifest.json"):
        copied += _copy(home, to, name)[0]
    return copied


def _shards(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the files of all shards with their SHA-256."""
    for split, shards in manifest.splits.items():
        for index, shard in enumerate(shards):
            names = [shard_name(split, index, len(shards))]
            names += [index_name(split, index, len(shards), what) for what in ("sentences", "documents")]
            yield from zip(names, shard.sha256, strict=True)


def _copy(home: Path, to: Path, name: str) -> tuple[int, str]:
    """Copy a file; return its bytes and its SHA-256."""
    digest, size = hashlib.sha256(), 0
    files.make_folder(to, Path(name).parent)
    with files.open_inside(home, name) as file, files.writing(to / name) as copy:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += copy.write(piece)
    return size, digest.hexdigest()
