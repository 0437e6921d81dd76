"""Damage checkpoints, restore whole ones, and read them while a run deletes them."""

import shutil
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from drilled import HOME, TOKENIZER, Trials
from without import protected

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.newest import read_newest
from bertjax.errors import InputError

DESCRIBED, MOMENTS = {"objective": {"type": "x"}}, {"m": np.zeros(3, np.float32)}


def shapes(tree: object) -> object:
    """Return the shapes and dtypes of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def damage(count: int, on: bool = True) -> Trials:
    """Flip, truncate, exchange and delete files of a checkpoint: it is refused, or equal; never other weights.

    Off: without checksums.
    """
    rng = np.random.default_rng(0)
    state = {
        "a": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=300), jnp.float32),
    }
    folder, before, notes = HOME / f"damaged-{on}", jax.tree.leaves(state), list[str]()
    checkpoint.write(folder, 3, state, {"m": state["a"]}, experiment=DESCRIBED, tokenizer=TOKENIZER)
    like = shapes(state)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    data = [path for path in files if "params" in path.parts and path.stat().st_size > 1000]
    for trial in range(count):
        some = data if trial % 2 else files
        path, other, kind = some[rng.integers(len(some))], files[rng.integers(len(files))], trial % 4
        contents = path.read_bytes(), other.read_bytes()
        if kind == 0:
            path.write_bytes(contents[0][: rng.integers(len(contents[0]))])
        elif kind in (1, 3):
            content = bytearray(contents[0])
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            path.write_bytes(content)
        elif trial % 8 == 2:
            path.unlink()
        else:
            path.write_bytes(contents[1])
            other.write_bytes(contents[0])
        try:
            info = checkpoint.read_info(folder)
            with protected(on, "checksums"):
                found = jax.tree.leaves(checkpoint.restore(folder, "params", like, info))
            if not all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(found, before, strict=True)):
                notes.append(f"trial {trial}: other weights from {path.relative_to(folder)}")
        except InputError:
            pass
        other.write_bytes(contents[1])
        path.write_bytes(contents[0])
    return Trials(count, count - len(notes), tuple(notes))


def clean(count: int, on: bool = True) -> Trials:
    """Restore checkpoints that are whole: no false alarm. Nothing can be off: what is tried is the protection."""
    rng, passed = np.random.default_rng(1), 0
    for trial in range(count):
        shape = tuple(int(n) for n in rng.integers(1, 40, size=int(rng.integers(0, 4))))
        state = {"a": jnp.asarray(rng.normal(size=shape), jnp.bfloat16 if trial % 2 else jnp.float32)}
        folder = HOME / "clean"
        checkpoint.write(folder, 1, state, MOMENTS, experiment=DESCRIBED, tokenizer=TOKENIZER)
        found = checkpoint.restore(folder, "params", shapes(state), checkpoint.read_info(folder))
        passed += bool((np.asarray(found["a"]) == np.asarray(state["a"])).all())
    return Trials(count, passed)


def deleted_while_read(count: int, on: bool = True) -> Trials:
    """Read a run while it deletes old checkpoints: what it deletes is not called damaged.

    Off: checkpoints are deleted file by file, and readers look at the newest alone.
    """
    folder, state = HOME / f"moving-{on}", {"a": jnp.arange(2000.0)}
    like = shapes(state)
    ended, told, passed = threading.Event(), list[str](), 0
    with protected(on, "deletion at once"):
        manager = checkpoint.open_checkpoints(folder / "checkpoints", keep=1, keep_every=0)
        checkpoint.save(manager, 1, state, MOMENTS, experiment=DESCRIBED, tokenizer=TOKENIZER, data=[])
        manager.wait_until_finished()

        def write() -> None:
            step = 2
            while not ended.is_set():
                checkpoint.save(manager, step, state, MOMENTS, experiment=DESCRIBED, tokenizer=TOKENIZER, data=[])
                step += 1

        def read(path: Path) -> object:
            info = checkpoint.read_info(path)
            time.sleep(0.03)  # as for a large model
            return checkpoint.restore(path, "params", like, info)

        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(count):
            told.clear()
            try:
                if on:
                    read_newest(folder, read, told.append)
                else:
                    read(checkpoint.latest_step(folder))
                passed += not told
            except (InputError, OSError):
                pass
        ended.set()
        writer.join()
        manager.close()
    shutil.rmtree(folder)
    return Trials(count, passed)
