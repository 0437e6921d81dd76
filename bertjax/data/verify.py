"""Compare the files of a corpus with the SHA-256 of each in its manifest.

ArrayRecord notices a flipped bit, but not a shard that is in the place of another. So a run hashes the shards when it
starts; a file of the same size, time and inode as one that was hashed before is not read again.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bertjax.data.records import corpus_tokenizer, file_digest, index_name, read_manifest, shard_name
from bertjax.data.tokenizer import fingerprint
from bertjax.errors import InputError
from bertjax.serialization.bounded_json import parse_object
from bertjax.storage import files
from bertjax.storage.paths import path_of

_THREADS = 4


def verify_shards(folder: str | Path) -> None:
    """Check the record files of a corpus on a disk, each once. Raises InputError where one is not what was built."""
    home = path_of(folder)
    memory = _memory_of(home)
    known = _remembered(memory)
    found = {name: _identity(home / name) for name in _digests(home, records_only=True)}
    new = [name for name, identity in found.items() if known.get(name, [])[:-1] != identity]
    known |= {name: [*found[name], digest] for name, digest in _hashed(home, new).items()}
    problems = [home / name for name, digest in _digests(home, records_only=True).items() if known[name][-1] != digest]
    if problems:
        raise _exchanged(problems)
    if new and memory is not None:
        _remember(memory, {name: known[name] for name in found})


def verify_corpus(folder: str | Path) -> dict[str, int]:
    """Read all files of a corpus and compare them with its manifest; return the numbers of files and of bytes.

    Raises InputError where one is missing, damaged or exchanged, and for another tokenizer.
    """
    home, manifest = path_of(folder), read_manifest(folder)
    expected = _digests(home)
    missing = [name for name in expected if not (home / name).is_file()]
    if missing:
        raise InputError(f"{home} lacks {', '.join(missing[:3])} ({len(missing)} in all): build the corpus again")
    found = _hashed(home, list(expected))
    problems = [home / name for name, digest in expected.items() if found[name] != digest]
    if problems:
        raise _exchanged(problems)
    if fingerprint(corpus_tokenizer(home)) != manifest.tokenizer:
        raise InputError(f"{home}/tokenizer is not the tokenizer that the corpus was built with: build it again")
    return {"files": len(expected), "bytes": sum(files.version_of(home / name)[0] for name in expected)}


def _digests(home: Path, *, records_only: bool = False) -> dict[str, str]:
    """Return the SHA-256 of every file of a corpus by its name."""
    found: dict[str, str] = {}
    for split, shards in read_manifest(home).splits.items():
        for index, shard in enumerate(shards):
            names = [shard_name(split, index, len(shards))]
            names += [index_name(split, index, len(shards), unit) for unit in ("sentences", "documents")]
            found |= dict(zip(names[:1] if records_only else names, shard.sha256, strict=False))
    return found


def _hashed(home: Path, names: list[str]) -> dict[str, str]:
    with ThreadPoolExecutor(_THREADS) as pool:  # hashing leaves other threads free to run
        return dict(zip(names, pool.map(lambda name: file_digest(home / name), names), strict=True))


def _identity(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path} is missing ({error.strerror}): build the corpus again") from error
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _exchanged(problems: list[Path]) -> InputError:
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return InputError(
        f"{problems[0]}{more}: not the file that the corpus was built with, but damaged or exchanged for another: "
        "copy it again, or build the corpus again"
    )


def _memory_of(home: Path) -> Path | None:
    """Return the file of this user that remembers the hashes of a corpus; None where the user has no home."""
    cache = files.user_cache()
    return cache and cache / "corpora" / f"{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:32]}.json"


def _remembered(memory: Path | None) -> dict[str, list[int | str]]:
    """Return what is remembered: {name: [size, time, inode, SHA-256]}; nothing where it cannot be read."""
    try:
        read = {} if memory is None else parse_object(files.read_inside(memory.parent, memory.name), str(memory))
    except (InputError, OSError):
        return {}
    return {name: entry for name, entry in read.items() if isinstance(entry, list) and len(entry) == 4}


def _remember(memory: Path, known: Mapping[str, list[int | str]]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.write(memory, json.dumps(known))
    except (OSError, InputError):  # a home that cannot be written: hash again the next time
        return
