"""The watch sees what it is there to see: each of these acts is what a hostile folder would want to happen."""

import ctypes
import importlib
import mmap
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from security.model_folders import Opens
from security.watch import TooLong, watching


def run_a_module_of_the_folder(world):
    (world.given / "evil_module.py").write_text("x = 1\n")
    sys.path.insert(0, str(world.given))
    try:
        importlib.import_module("evil_module")
    finally:
        sys.path.remove(str(world.given))
        sys.modules.pop("evil_module", None)


def follow_a_link(world):
    (world.out / "log.jsonl").symlink_to(world.secret / "home/.bashrc")
    (world.out / "log.jsonl").write_text("evil")


def open_by_a_library_in_c(world):
    handle = ctypes.CDLL(None).open(os.fsencode(world.secret / "passwords.txt"), os.O_RDONLY)
    os.close(handle)


def connect(world):
    with socket.socket() as peer:
        peer.connect_ex(("127.0.0.1", 9))


ACTS = {
    "code of the folder": run_a_module_of_the_folder,
    "code without a file": lambda world: exec("x = 1"),  # the caller's file is below tests/: no library's generator
    "a bait": lambda world: importlib.import_module("this.x"),
    "a file elsewhere": lambda world: (world.given / "x").write_text("x"),
    "a folder elsewhere": lambda world: (world.given / "x").mkdir(),
    "a link into the secret": follow_a_link,
    "a removal": lambda world: (world.given / "kept").unlink(),
    "a new name": lambda world: (world.given / "kept").rename(world.out / "kept"),
    "the secret read": lambda world: (world.secret / "passwords.txt").read_text(),
    "the secret read in C": open_by_a_library_in_c,
    "the secret listed": lambda world: os.listdir(world.secret / "home"),
    "a device": lambda world: Path("/dev/zero").open("rb").close(),
    "a process": lambda world: subprocess.run(["true"], check=True),
    "a shell": lambda world: os.system("true"),
    "a connection": connect,
    "a name looked up": lambda world: socket.getaddrinfo("localhost", 80),
    "a pickle": lambda world: pickle.loads(pickle.dumps(Opens(world.out / "x"))),
}


@pytest.mark.parametrize("name", ACTS)
def test_the_watch_sees(name, world):
    world.out.mkdir()
    (world.given / "kept").touch()
    with watching((world.out,), world.secret, world.given.parent / "cwd", 30) as watch:
        try:
            ACTS[name](world)
        except ModuleNotFoundError:
            assert name == "a bait"
    assert watch.violations


def test_the_watch_ends_a_wait_and_measures_memory(world):
    os.mkfifo(world.given / "queue")
    with pytest.raises(TooLong), watching((), world.secret, world.given.parent / "cwd", 0.2):
        (world.given / "queue").read_text()
    # Pages of its own: the allocator may still hold as much from an earlier test.
    with watching((), world.secret, world.given.parent / "cwd", 30) as watch, mmap.mmap(-1, 2**26) as memory:
        for _ in range(64):
            memory.write(bytes(2**20))
    assert 60 < watch.megabytes < 100 and watch.seconds < 10 and not watch.violations
