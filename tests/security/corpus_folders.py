"""Corpora of ours whose manifest, index or records lie."""

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
from corpora import restate

from security import world as w
from security.run_folders import in_place, sparse
from security.world import Hostile, World, copied, with_file, with_link

_TRAINED = tuple(
    {"{corpus}": "{given}", "data={corpus}": "data={given}", "init={given}": "init={run}"}.get(x, x) for x in w.PRETRAIN
)
_OPENS = (w.INSPECT, w.EVALUATE_ON, _TRAINED)
_SOME = (w.INSPECT, w.EVALUATE_ON)
_PLANNED = (w.EVALUATE_ON,)  # the others do not read the index
_RECORDS = "corpus-train.array_record-00000-of-00001"
_SENTENCES = "corpus-train-00000-of-00001.sentences.npy"
_DOCUMENTS = "corpus-train-00000-of-00001.documents.npy"


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[World], None]:
    def write(world: World) -> None:
        path = copied("corpus")(world) / "manifest.json"
        stated = json.loads(path.read_text())
        path.write_text(json.dumps(change(stated) or stated))

    return write


def _vocabulary(**changed: Any) -> Callable[[World], None]:
    return _manifest(lambda stated: stated["vocabulary"].update(changed))


def _shard(**changed: Any) -> Callable[[World], None]:
    return _manifest(lambda stated: stated["splits"]["train"][0].update(changed))


def _split_elsewhere(world: World) -> None:
    """Name a split by a way out of the folder: corpus-x/../../secret/… is one through a folder that exists."""
    folder = copied("corpus")(world)
    (folder / "corpus-x").mkdir()
    way = "x/../../secret/moved"
    for path in folder.glob("corpus-train*"):
        shutil.move(path, world.secret / path.name.replace("corpus-train", "moved"))
    path = folder / "manifest.json"
    stated = json.loads(path.read_text())
    stated["splits"] = {"train": [], way: stated["splits"]["train"]}
    path.write_text(json.dumps(stated))


def _moved(name: str) -> Callable[[World], None]:
    """Put a file into the secret folder, and a link to it in its place."""

    def write(world: World) -> None:
        path = copied("corpus")(world) / name
        shutil.move(path, world.secret / "moved")
        path.symlink_to(world.secret / "moved")

    return write


def npy(header: str, body: bytes = b"") -> bytes:
    """Return a file of numpy with this header."""
    padded = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + body


def _objects(world: World) -> bytes:
    from security.model_folders import pickled

    return npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickled(world))


def _stated(write: Callable[[World], None], **counts: int) -> Callable[[World], None]:
    """Return a function that writes a corpus whose manifest has the hashes of what was written, and these counts."""

    def write_both(world: World) -> None:
        write(world)
        restate(world.given, **counts)

    return write_both


def _index(name: str, array: Any, **counts: int) -> Callable[[World], None]:
    def write(world: World) -> None:
        np.save(copied("corpus")(world) / name, array)

    return _stated(write, **{"sentences" if name == _SENTENCES else "documents": len(array)} | counts)


def _empty(world: World) -> None:
    pass


INPUTS = {
    "an empty folder": Hostile(_empty, _OPENS),
    "a split elsewhere": Hostile(
        _split_elsewhere, (w.INSPECT, (*w.EVALUATE_ON[:-3], "x/../../secret/moved", "--batch-size", "8"))
    ),
    "a split of escapes": Hostile(
        _manifest(lambda x: x["splits"].update({"\x1b[2J\x9b": x["splits"]["train"]})), _SOME, harmless=True
    ),
    "a manifest elsewhere": Hostile(with_link("corpus", "manifest.json", "config.json"), _SOME),
    "a manifest moved elsewhere": Hostile(_moved("manifest.json"), _OPENS),
    "records elsewhere": Hostile(_moved(_RECORDS), _OPENS),
    "sentences elsewhere": Hostile(_moved(_SENTENCES), _PLANNED),
    "a tokenizer elsewhere": Hostile(_moved("tokenizer"), (w.INSPECT, _TRAINED)),
    "a tokenizer file elsewhere": Hostile(_moved("tokenizer/vocab.txt"), (w.INSPECT, _TRAINED)),
    "a manifest that is a queue": Hostile(in_place("manifest.json", os.mkfifo, "corpus"), _OPENS),
    "a manifest of two gigabytes": Hostile(in_place("manifest.json", sparse(2**31), "corpus"), _SOME),
    "a manifest of brackets": Hostile(with_file("corpus", "manifest.json", "[" * 10**6), _SOME),
    "a manifest that is a list": Hostile(_manifest(lambda stated: [1]), _SOME),
    "a manifest of no text": Hostile(with_file("corpus", "manifest.json", b"\xff\xfe"), _SOME),
    "a manifest of another format": Hostile(_manifest(lambda stated: stated.update(format="\x1b[2J")), _SOME),
    "a vocabulary of 2^60": Hostile(_vocabulary(size=2**60), _OPENS),
    "a negative vocabulary": Hostile(_vocabulary(size=-1), _SOME),
    "a vocabulary of text": Hostile(_vocabulary(size="127"), _SOME),
    "a vocabulary of fractions": Hostile(_vocabulary(size=1.5), _SOME),
    "another field of the vocabulary": Hostile(_vocabulary(evil=1), _SOME),
    "ids beyond the vocabulary": Hostile(_vocabulary(size=7), (_TRAINED,)),
    "10^15 tokens": Hostile(_shard(tokens=10**15), _SOME, harmless=True),
    "tokens beyond integers": Hostile(_shard(tokens=10**30), _SOME, harmless=True),
    "negative tokens": Hostile(_shard(tokens=-1), _SOME, harmless=True),
    "tokens of text": Hostile(_shard(tokens="many"), _OPENS),
    "digests of another number": Hostile(_shard(sha256=[1]), _SOME, harmless=True),
    "a shard of other fields": Hostile(_shard(evil=1), _SOME),
    "twenty thousand shards": Hostile(
        _manifest(lambda x: x["splits"].update(train=x["splits"]["train"] * 2 * 10**4)), _SOME
    ),
    "words of text": Hostile(_manifest(lambda stated: stated.update(words="\x1b[2J")), _SOME),
    "no words": Hostile(_manifest(lambda stated: stated.update(words=0)), _SOME, harmless=True),
    "words that are no number": Hostile(
        _manifest(lambda stated: stated.update(words=float("nan"))), _SOME, harmless=True
    ),
    "reasons of escapes": Hostile(
        _manifest(lambda stated: stated.update(dropped={"\x1b[2J\x9b31m": 1})), _SOME, harmless=True
    ),
    "a tokenizer of another digest": Hostile(
        _manifest(lambda stated: stated.update(tokenizer="0" * 64)), _SOME, harmless=True
    ),
    "an index of pickles": Hostile(_stated(with_file("corpus", _SENTENCES, _objects), sentences=1), _PLANNED),
    "an index of 10^15 numbers": Hostile(
        _stated(
            with_file("corpus", _SENTENCES, npy(f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({10**15},), }}")),
            sentences=10**15,
        ),
        _PLANNED,
    ),
    "an index of many megabytes of nothing": Hostile(
        _stated(
            in_place(
                _SENTENCES,
                lambda path: (
                    path.write_bytes(npy(f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({2**25},), }}")),
                    os.truncate(path, 2**27 + 128),
                ),
                "corpus",
            ),
            sentences=2**25,
        ),
        _PLANNED,
    ),
    "an index whose header is code": Hostile(
        _stated(with_file("corpus", _SENTENCES, npy("__import__('os').system('id')"))), _PLANNED
    ),
    "an index whose header is brackets": Hostile(_stated(with_file("corpus", _SENTENCES, npy("(" * 9000))), _PLANNED),
    "an index of fractions": Hostile(_index(_SENTENCES, np.ones(50)), _PLANNED),
    "an index of two dimensions": Hostile(_index(_SENTENCES, np.ones((50, 2), np.int32)), _PLANNED),
    "negative lengths": Hostile(_index(_SENTENCES, np.full(100, -5, np.int32)), _PLANNED),
    "lengths that overflow": Hostile(_index(_SENTENCES, np.full(100, 2**31 - 1, np.int32)), _PLANNED),
    "lengths that the manifest has too": Hostile(
        _index(_SENTENCES, np.full(100, 2**31 - 1, np.int32), tokens=100 * (2**31 - 1)), _PLANNED
    ),
    "documents beyond the sentences": Hostile(_index(_DOCUMENTS, np.full(2, 1000, np.int32)), _PLANNED),
    "documents that overflow": Hostile(_index(_DOCUMENTS, np.full(100, 2**31 - 1, np.int32)), _PLANNED),
    "no sentences": Hostile(_index(_SENTENCES, np.zeros(0, np.int32)), _PLANNED),
    "an index that is a queue": Hostile(in_place(_SENTENCES, os.mkfifo, "corpus"), _PLANNED),
    "records of random bytes": Hostile(with_file("corpus", _RECORDS, bytes(range(256)) * 300), _OPENS),
    "no records": Hostile(with_file("corpus", _RECORDS, b""), _OPENS),
    "records of zeros": Hostile(with_file("corpus", _RECORDS, bytes(2**17)), _OPENS),
    "records that are a queue": Hostile(in_place(_RECORDS, os.mkfifo, "corpus"), _OPENS),
}
