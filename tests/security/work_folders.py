"""Work folders, and folders to write into, that somebody prepared: links where files are written, files of lies."""

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

from security import world as w
from security.world import Command, Hostile, World

_INTO: Command = tuple({"init={given}": "init={run}", "{out}": "{given}"}.get(word, word) for word in w.PRETRAIN)
_FINE: Command = tuple({"init={given}": "init={classifier}", "{out}": "{given}"}.get(word, word) for word in w.FINETUNE)
_BUILD: Command = ("data", "build", "{texts}", *w.BUILD[3:-1], "{given}")
_CONVERT: Command = ("convert", "{run}", "{given}")


def _link(name: str, target: str) -> Callable[[World], None]:
    def write(world: World) -> None:
        path = world.given / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(world.secret / target)

    return write


def _file(name: str, content: Any) -> Callable[[World], None]:
    def write(world: World) -> None:
        path = world.given / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def _begun_by_others(world: World) -> None:
    """Write the state of a build with other settings, and a shard that it has finished."""
    _file("progress.json", {"settings": {"key": ["x"]}})(world)
    _file("train-00000.records", b"records")(world)


def _queue(name: str) -> Callable[[World], None]:
    return lambda world: os.mkfifo(world.given / name)


def _out_elsewhere(world: World) -> None:
    """Make the output folder itself a link into the secret folder, which does not exist yet."""
    shutil.rmtree(world.given)
    world.given.symlink_to(world.secret / "new")


_RC, _KEY = "home/.bashrc", "home/.ssh/id_rsa"

INPUTS = {
    "a lock that is a link": Hostile(_link("lock", _RC), (_INTO,), into=True),
    "a lock that is a queue": Hostile(_queue("lock"), (_INTO,), into=True),
    "a lock of escapes": Hostile(_file("lock", "\x1b[2J\x9b31m"), (_FINE,), into=True, harmless=True),
    "a description that is a link": Hostile(_link("experiment.json", _RC), (_INTO,), into=True),
    "a partial description that is a link": Hostile(
        _link("experiment.json.partial", _RC), (_INTO,), into=True, harmless=True
    ),
    "a description of brackets": Hostile(_file("experiment.json", "[" * 10**6), (_INTO,), into=True),
    "a description of a list": Hostile(_file("experiment.json", [1]), (_INTO,), into=True),
    "a description of escapes": Hostile(_file("experiment.json", {"counters": "\x1b[2J\x9b"}), (_INTO,), into=True),
    "a description that names a function": Hostile(
        _file("experiment.json", {"counters": {"type": "bertjax.config.load_experiment", "path": "evil.py"}}),
        (_INTO,),
        into=True,
    ),
    "a description that is a queue": Hostile(_queue("experiment.json"), (_INTO,), into=True),
    "checkpoints elsewhere": Hostile(_link("checkpoints", "home"), (_INTO,), into=True),
    "a fine-tuning described by a link": Hostile(_link("finetuning.json", _RC), (_FINE,), into=True, harmless=True),
    "a corpus begun by a link": Hostile(_link("progress.json", _RC), (_BUILD,), into=True),
    "a corpus begun by brackets": Hostile(_file("progress.json", "[" * 10**6), (_BUILD,), into=True),
    "a corpus begun by a list": Hostile(_file("progress.json", [1]), (_BUILD,), into=True),
    "a corpus begun by other settings": Hostile(_begun_by_others, (_BUILD,), into=True),
    "a corpus begun in a queue": Hostile(_queue("progress.json"), (_BUILD,), into=True),
    "a partial progress that is a link": Hostile(_link("progress.json.partial", _RC), (_BUILD,), into=True),
    "a shard that is a link": Hostile(_link("train-00000.records.partial", _RC), (_BUILD,), into=True),
    "a folder to convert into that holds a link": Hostile(_link("model.safetensors", _RC), (_CONVERT,), into=True),
}
