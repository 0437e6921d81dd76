"""Texts to build a corpus from, and labelled data, that are bombs, links or not what their names say."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard
from corpora import write_tfds

from security import world as w
from security.run_folders import in_place, sparse
from security.world import Command, Hostile, World, with_file, with_link

_BUILDS = (w.BUILD, w.BUILD_JSON)
_SKIPS = (*w.BUILD, "--skip-bad")
_TASK = (w.SCORE_ON, w.FINETUNE_ON)


def _file(name: str, content: bytes | str | Callable[[], bytes]) -> Callable[[World], None]:
    def write(world: World) -> None:
        given = content() if callable(content) else content
        (world.given / name).write_bytes(given if isinstance(given, bytes) else given.encode())

    return write


def _beside(*writers: Callable[[World], None]) -> Callable[[World], None]:
    """Write several things into one folder."""

    def write(world: World) -> None:
        for each in writers:
            each(world)

    return write


def _link(name: str, target: str) -> Callable[[World], None]:
    return lambda world: (world.given / name).symlink_to(world.secret / target)


def _zstd(size: int, of: bytes = b"a") -> Callable[[], bytes]:
    def compress() -> bytes:
        stream = zstandard.ZstdCompressor(level=1).compressobj()
        block = of * (2**20 // len(of))
        return b"".join(stream.compress(block) for _ in range(size // 2**20)) + stream.flush()

    return compress


def _gzip(size: int, of: bytes = b"a") -> Callable[[], bytes]:
    return lambda: gzip.compress(of * (size // len(of)), 1)


def _own(kind: str, columns: str) -> Command:
    return (*w.SCORE_ON, "--kind", kind, "--columns", columns)


TEXTS = {
    "a zstd bomb": Hostile(_file("a.txt.zst", _zstd(2**30)), _BUILDS),
    "a gzip bomb": Hostile(_file("a.txt.gz", _gzip(2**28)), (w.BUILD,), seconds=4.0),
    "a zstd file cut short": Hostile(_file("a.txt.zst", lambda: _zstd(2**20)()[:-4]), _BUILDS),
    "a gzip file of random bytes": Hostile(_file("a.txt.gz", bytes(range(256))), _BUILDS),
    "a zstd file of random bytes": Hostile(_file("a.txt.zst", bytes(range(256))), _BUILDS),
    "a zstd window of a gigabyte": Hostile(_file("a.txt.zst", bytes.fromhex("28b52ffd00b001000061")), (w.BUILD,)),
    "a line of 50 MB": Hostile(_file("a.txt", b"a" * 50_000_000), _BUILDS),
    "JSON of brackets": Hostile(_file("a.jsonl", '{"text": ' + "[" * 10**5), (w.BUILD_JSON,)),
    "JSON of a long number": Hostile(_file("a.jsonl", '{"text": ' + "9" * 10**5 + "}"), (w.BUILD_JSON,)),
    "JSON of a text of 100 MB": Hostile(
        _file("a.jsonl", '{"text": "' + "a" * 10**8 + '"}'), (w.BUILD_JSON,), megabytes=400
    ),
    "a lone surrogate": Hostile(_file("a.jsonl", '{"text": "\\ud800"}'), (w.BUILD_JSON,)),
    "bytes that are no text": Hostile(_file("a.txt", b"\xff\xfe\x80"), _BUILDS),
    "NUL": Hostile(_file("a.txt", b"a\0b"), (w.BUILD,)),
    "a name of escapes": Hostile(_file("\x1b[2J\x9b31m.txt", b"\xff"), (w.BUILD, _SKIPS)),
    "a name of no text": Hostile(
        lambda world: (Path(os.fsdecode(os.fsencode(world.given) + b"/\xff\xfe.txt"))).write_bytes(b"\xff"),
        (w.BUILD, _SKIPS),
    ),
    "a name with a line feed": Hostile(_file("a\nbertjax: done.txt", b"\xff"), (w.BUILD,)),
    "a name like an option": Hostile(_file("--out=x.txt", b"\xff"), (w.BUILD,)),
    "a link to the secret": Hostile(_beside(_link("a.txt", "passwords.txt")), (w.BUILD,)),
    "a link to a folder": Hostile(_beside(_link("a", "home")), (w.BUILD,)),
    "a link to a device": Hostile(_beside(_link("a.txt", "/dev/zero")), (w.BUILD,)),
    "a link to itself": Hostile(lambda world: (world.given / "a.txt").symlink_to("a.txt"), (w.BUILD,)),
    "a queue": Hostile(lambda world: os.mkfifo(world.given / "a.txt"), (w.BUILD,)),
    "nothing": Hostile(lambda world: None, (w.BUILD,)),
}

TABLES = {
    "a cell of 20 MB": Hostile(
        with_file("labelled", "validation.tsv", "text\tlabel\n" + "a" * 20_000_000 + "\ta\n"), _TASK
    ),
    "a quote that never ends": Hostile(
        _beside(
            with_file("labelled", "validation.csv", 'text,label\n"' + "a\n" * 10**6),
            lambda world: [(world.given / f"{name}.tsv").unlink() for name in ("train", "validation")],
        ),
        (w.SCORE_ON,),
    ),
    "a hundred thousand columns": Hostile(
        with_file("labelled", "validation.tsv", "\t".join(f"c{n}" for n in range(10**5)) + "\n"), _TASK
    ),
    "a hundred thousand columns and the last twice": Hostile(
        with_file("labelled", "validation.tsv", "\t".join(f"c{n}" for n in range(10**5)) + "\tc99999\n"), _TASK
    ),
    "a hundred thousand labels": Hostile(
        with_file("labelled", "validation.tsv", "text\tlabel\n" + "".join(f"a\tl{n}\n" for n in range(10**5))),
        (w.SCORE_ON,),
    ),
    "labels of escapes": Hostile(
        with_file("labelled", "validation.tsv", "text\tlabel\nbad\t\x1b[2J\x9b31m\ngood\t=cmd|' /C calc'!A0\n"), _TASK
    ),
    "texts of escapes": Hostile(
        with_file("labelled", "validation.tsv", "text\tlabel\n\x1b[2J\x9b31m\ta\n=cmd|' /C calc'!A0\tb\n"),
        _TASK,
        harmless=True,
    ),
    "a table elsewhere": Hostile(with_link("labelled", "validation.tsv", "passwords.txt"), _TASK),
    "a table that is a queue": Hostile(in_place("validation.tsv", os.mkfifo, "labelled"), _TASK),
    "a table that is a device": Hostile(with_link("labelled", "validation.tsv", "/dev/zero"), _TASK),
    "a table of two gigabytes of nothing": Hostile(in_place("validation.tsv", sparse(2**31), "labelled"), _TASK),
    "a table that is a folder": Hostile(in_place("validation.tsv", Path.mkdir, "labelled"), _TASK),
    "lists in lists": Hostile(_file("validation.jsonl", '{"text": ' + "[" * 10**5), (w.SCORE_ON,)),
    "a gzip bomb that nobody names": Hostile(_file("validation.jsonl.gz", _gzip(2**20)), (w.SCORE_ON,)),
    "SQuAD of brackets": Hostile(_file("validation.json", "[" * 10**6), (_own("span", "question,context"),)),
    "SQuAD with starts without end": Hostile(
        _file(
            "validation.json",
            json.dumps(
                {
                    "data": [
                        {
                            "paragraphs": [
                                {
                                    "context": "a",
                                    "qas": [
                                        {"id": "1", "question": "q", "answers": [{"text": "a", "answer_start": 10**30}]}
                                    ],
                                }
                            ]
                        }
                    ]
                }
            ),
        ),
        (
            (
                "evaluate",
                "task",
                "own",
                "--kind",
                "span",
                "--columns",
                "text",
                "--model",
                "{classifier}",
                "--data",
                "{given}",
            ),
        ),
    ),
    "predictions of brackets": Hostile(
        _beside(_file("p.json", "[" * 10**6), _file("d.json", '{"data": []}')),
        (("evaluate", "squad", "--data", "{given}/d.json", "--predictions", "{given}/p.json"),),
    ),
    "predictions elsewhere": Hostile(
        _beside(_link("p.json", "passwords.txt"), _file("d.json", '{"data": []}')),
        (("evaluate", "squad", "--data", "{given}/d.json", "--predictions", "{given}/p.json"),),
    ),
}


def _tfds(change: Callable[[Path], object]) -> Callable[[World], None]:
    """Write a data set of TFDS, and change it."""

    def write(world: World) -> None:
        import tensorflow_datasets as tfds

        features = {"text": tfds.features.Text()}
        write_tfds(world.given, "plain", "train", features, [{"text": b"The good man has time."}] * 4)
        change(world.given / "plain/1.0.0")

    return write


def _feature(name: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        (place / "features.json").write_text(json.dumps({"type": name, "content": {}, "proto_cls": name}))
        (place / "evil.py").write_text("raise SystemExit('ran')\n")
        (place.parents[1] / "evil.py").write_text("raise SystemExit('ran')\n")

    return change


def _info(**changed: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        path = place / "dataset_info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


_OF_TFDS = ((*w.BUILD[:2], "plain", "--format", "tfds", "--data-dir", "{given}", *w.BUILD[5:]),)
TFDS = {
    "features of another module": Hostile(_tfds(_feature("antigravity.Feature")), _OF_TFDS),
    "features of the standard library": Hostile(_tfds(_feature("os.system")), _OF_TFDS),
    "features of a module of the folder": Hostile(_tfds(_feature("evil.Feature")), _OF_TFDS),
    "features of a script of TFDS": Hostile(_tfds(_feature("tensorflow_datasets.scripts.cli.main.main")), _OF_TFDS),
    "shards elsewhere": Hostile(
        _tfds(
            _info(
                splits=[
                    {
                        "name": "train",
                        "shardLengths": ["4"],
                        "numBytes": "1",
                        "filepathTemplate": "../../../secret/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    }
                ]
            )
        ),
        _OF_TFDS,
    ),
    "another format of files": Hostile(_tfds(_info(fileFormat="evil")), _OF_TFDS),
    "info of brackets": Hostile(_tfds(lambda place: (place / "dataset_info.json").write_text("[" * 10**5)), _OF_TFDS),
}

INPUTS = (
    {f"texts: {name}": each for name, each in TEXTS.items()}
    | {f"tasks: {name}": each for name, each in TABLES.items()}
    | {f"tfds: {name}": each for name, each in TFDS.items()}
)
