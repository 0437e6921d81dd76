"""Runs and checkpoints of ours whose files are not what they should be, or elsewhere."""

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from security import world as w
from security.world import SECRET, VOCABULARY, Hostile, World, copied, forged, restate, with_file, with_link

_B64 = base64.b64encode(VOCABULARY).decode()


def _tokenizer(*names: str) -> Callable[[World], None]:
    """Give a checkpoint a tokenizer with files of these names beside its own; {secret} is the secret folder."""

    def change(info: dict[str, Any], world: World) -> None:
        info["tokenizer"] |= {name.format(secret=world.secret): _B64 for name in names}

    return forged(change)


def _tokenizer_is(value: Any) -> Callable[[World], None]:
    return forged(lambda info, world: info.update(tokenizer=value))


def in_place(name: str, make: Callable[[Path], object], source: str = "run") -> Callable[[World], None]:
    """Return a function that puts something else in place of a file."""

    def replace(world: World) -> None:
        path = copied(source)(world) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        make(path)

    return replace


def sparse(size: int) -> Callable[[Path], None]:
    """Return a function that makes a file of this size which takes no room on the disk."""

    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return make


def _numbered(*names: str) -> Callable[[World], None]:
    """Put the checkpoint among others of these names."""

    def write(world: World) -> None:
        folder = world.given / "checkpoints"
        shutil.copytree(world.honest.run, folder / "1")
        for name in names:
            (folder / name).mkdir()

    return write


def _newest_is_damaged(array: str) -> Callable[[World], None]:
    """Put one whose description names an array so after an honest checkpoint: it is passed over, with a warning."""

    def write(world: World) -> None:
        for step in ("1", "2"):
            shutil.copytree(world.honest.run, world.given / "checkpoints" / step)
        restate(world.given / "checkpoints/2", lambda info: info["checksums"]["params"].update({array: 7}))

    return write


def _step_is_a_link(world: World) -> None:
    (world.given / "checkpoints").mkdir()
    shutil.copytree(world.honest.run, world.secret / "run")
    (world.given / "checkpoints/1").symlink_to(world.secret / "run")


def _arrays_elsewhere(name: str) -> Callable[[World], None]:
    """Move a part of the arrays into the secret folder, and link to it: a reader that follows finds all of it."""

    def write(world: World) -> None:
        path = copied("run")(world) / name
        path = next(path.parent.glob(path.name))
        target = world.secret / "moved"
        shutil.move(path, target)
        path.symlink_to(target)

    return write


def _metadata(change: Callable[[dict[str, Any], World], object]) -> Callable[[World], None]:
    """Change what Orbax notes of its arrays."""

    def write(world: World) -> None:
        path = copied("run")(world) / "params" / "_METADATA"
        stated = json.loads(path.read_text())
        path.write_text(json.dumps(change(stated, world) or stated))

    return write


def _leaves(**changed: Any) -> Callable[[World], None]:
    def change(stated: dict[str, Any], world: World) -> None:
        for leaf in stated["tree_metadata"].values():
            leaf["value_metadata"] |= changed

    return _metadata(change)


def _zarr(**changed: Any) -> Callable[[World], None]:
    """Give the arrays as folders of zarr instead of a database, their description changed."""

    def write(world: World) -> None:
        folder = copied("run")(world) / "params"
        stated = json.loads((folder / "_METADATA").read_text()) | {"use_ocdbt": False, "use_zarr3": False}
        (folder / "_METADATA").write_text(json.dumps(stated))
        for name in ("manifest.ocdbt", "d", "ocdbt.process_0"):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for leaf in stated["tree_metadata"].values():
            array = folder / ".".join(key["key"] for key in leaf["key_metadata"])
            array.mkdir()
            shape = leaf["value_metadata"]["write_shape"]
            described = {"zarr_format": 2, "shape": shape, "chunks": shape, "dtype": "<f4", "order": "C",
                         "compressor": None, "filters": None, "fill_value": 0.0}  # fmt: skip
            (array / ".zarray").write_text(json.dumps(described | changed))
            (array / ".".join("0" * len(shape))).symlink_to(world.secret / "passwords.txt")

    return write


_OPENS = (w.LOAD, w.CONVERT, w.EXPORT, w.LOOK)
_SOME = (w.LOAD, w.CONVERT)
_WRITES = (w.CONVERT, w.EXPORT, w.FINETUNE, w.PRETRAIN)
_ELSEWHERE = {"driver": "file", "path": "/etc/"}

INPUTS = {
    "a tokenizer file above the folder": Hostile(_tokenizer("../../secret/home/.bashrc"), _WRITES),
    "a tokenizer file by an absolute name": Hostile(_tokenizer("{secret}/home/.bashrc"), _WRITES),
    "a tokenizer file in a folder below": Hostile(_tokenizer("sub/vocab.txt"), _WRITES),
    "a tokenizer file that is the folder": Hostile(_tokenizer("..", "."), _WRITES),
    "a tokenizer file without a name": Hostile(_tokenizer(""), _WRITES),
    "a tokenizer file named as weights": Hostile(_tokenizer("model.safetensors"), _WRITES),
    "a tokenizer file named as a script": Hostile(_tokenizer(".bashrc", "evil.py"), _WRITES),
    "a tokenizer file named with NUL": Hostile(_tokenizer("vocab.txt\0x"), _WRITES),
    "a tokenizer file named with escapes": Hostile(_tokenizer("\x1b]0;owned\x07.model"), _WRITES),
    "a tokenizer model above the folder": Hostile(_tokenizer("../../secret/home/x.model"), _WRITES),
    "a list as the tokenizer": Hostile(_tokenizer_is([1, 2]), _SOME),
    "a number as a tokenizer file": Hostile(_tokenizer_is({"vocab.txt": 7}), _SOME),
    "no base64": Hostile(_tokenizer_is({"vocab.txt": "\xff\x00!"}), _SOME),
    "no checksums": Hostile(forged(lambda info, world: info.pop("checksums") and None), _SOME),
    "a list as the checksums": Hostile(forged(lambda info, world: info.update(checksums=[1])), _SOME),
    "a digest that does not fit": Hostile(with_file("run", "info/metadata", '{"digest": "0", "info": {}}'), _SOME),
    "no JSON": Hostile(with_file("run", "info/metadata", b"\x80\x04evil"), _SOME),
    "JSON of brackets": Hostile(with_file("run", "info/metadata", "[" * 10**6), _SOME),
    "JSON of a number without end": Hostile(with_file("run", "info/metadata", "9" * 10**6), _SOME),
    "JSON of two gigabytes": Hostile(in_place("info/metadata", sparse(2**31)), _SOME),
    "metadata of arrays of two gigabytes": Hostile(in_place("params/_METADATA", sparse(2**31)), _SOME),
    "a queue as the description": Hostile(in_place("info/metadata", os.mkfifo), _SOME),
    "a queue as the metadata of arrays": Hostile(in_place("params/_METADATA", os.mkfifo), _SOME),
    "a queue as the database": Hostile(in_place("params/manifest.ocdbt", os.mkfifo), _SOME),
    "a device as the description": Hostile(with_link("run", "info/metadata", "/dev/zero"), _SOME),
    "a description elsewhere": Hostile(_arrays_elsewhere("info/metadata"), _OPENS),
    "a folder of the description elsewhere": Hostile(_arrays_elsewhere("info"), _OPENS),
    "a folder of arrays elsewhere": Hostile(_arrays_elsewhere("params"), _OPENS),
    "arrays elsewhere": Hostile(_arrays_elsewhere("params/d/*"), _OPENS),
    "a database elsewhere": Hostile(_arrays_elsewhere("params/manifest.ocdbt"), _SOME),
    "a folder of a process elsewhere": Hostile(_arrays_elsewhere("params/ocdbt.process_0"), _SOME, harmless=True),
    "metadata elsewhere": Hostile(_arrays_elsewhere("params/_METADATA"), _SOME),
    "notes of Orbax elsewhere": Hostile(_arrays_elsewhere("_CHECKPOINT_METADATA"), _SOME, harmless=True),
    "a step elsewhere": Hostile(_step_is_a_link, _OPENS),
    "steps that are digits but no numbers": Hostile(_numbered("²", "①"), _SOME, harmless=True),
    "a step beyond numbers": Hostile(_numbered("9" * 250), _SOME, harmless=True),
    "a newest checkpoint that is passed over": Hostile(_newest_is_damaged("\x1b]0;owned\x07"), _SOME, harmless=True),
    "an array of another kind": Hostile(_leaves(value_type="evil.Type"), _SOME, harmless=True),
    "an array as a text": Hostile(_leaves(value_type="string"), _SOME, harmless=True),
    "an array that is skipped": Hostile(_leaves(skip_deserialize=True), _SOME, harmless=True),
    "arrays of another shape": Hostile(_leaves(write_shape=[10**15]), _SOME, harmless=True),
    "metadata without a tree": Hostile(_metadata(lambda stated, world: {"tree_metadata": {}}), _SOME),
    "metadata that is a list": Hostile(_metadata(lambda stated, world: [1]), _SOME),
    "chunks that are links": Hostile(_zarr(), _SOME),
    "an array of 10^15 numbers": Hostile(_zarr(shape=[10**15], chunks=[10**15]), _SOME),
    "a chunk of 10^15 numbers": Hostile(_zarr(chunks=[10**15]), _SOME),
    "an array of objects": Hostile(_zarr(dtype="|O"), _SOME),
    "an unknown compressor": Hostile(_zarr(compressor={"id": "evil", "path": "/etc/passwd"}), _SOME),
    "a store elsewhere": Hostile(_zarr(kvstore=_ELSEWHERE, path="../../secret"), _SOME),
    "a database of random bytes": Hostile(with_file("run", "params/manifest.ocdbt", bytes(range(256)) * 9), _SOME),
    "an empty database": Hostile(with_file("run", "params/manifest.ocdbt", b""), _SOME),
    "the secret as the database": Hostile(with_file("run", "params/manifest.ocdbt", SECRET), _SOME),
}
