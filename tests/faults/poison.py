"""Poison what a run computes with, or the corpus that it reads: nothing of it gets into the weights unseen."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from corpora import restate
from disks import faulty
from drilled import HOME, Trials, compiled_once, corpus, digest, experiment_of, fitted, newest
from without import protected

from bertjax import train
from bertjax.checkpoints import checkpoint
from bertjax.data.records import TokenReader, encode_record, index_name, read_manifest, shard_name
from bertjax.data.rows import FullSentences
from bertjax.errors import Diverged, InputError

POISONS = [f"{point}:{what}@5" for point in ("gradient", "loss") for what in ("nan", "inf", "scale=1e30")]


def bad_batches(count: int, on: bool = True) -> Trials:
    """Poison loss or gradient of one step: its state is that of the step before, and the run goes on.

    Off: every update is made.
    """
    passed, notes = 0, list[str]()
    with compiled_once(), protected(on, "skipping"):
        for seed, poison in enumerate(islice(cycle(POISONS), count)):
            folder, problem = HOME / f"bad-batch-{on}", ""
            experiment = replace(experiment_of("bert", 8, every=1, keep=8), seed=seed)
            try:
                with faulty(poison):
                    state = fitted(experiment, folder)
                held = checkpoint.read_info(folder / "checkpoints" / "6")["skips"]["total"] == 1
                finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((state.params, state.opt)))
                if not (held and finite and int(state.skips.total) == 1):
                    problem = f"skipped {int(state.skips.total)}, finite: {finite}"
            except (Diverged, InputError) as error:
                problem = repr(error)
            passed += not problem
            notes += [f"{poison}, seed {seed}: {problem}"[:300]] if problem else []
            shutil.rmtree(folder, ignore_errors=True)
    return Trials(count, passed, tuple(notes))


# Corpora -------------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> dict[str, Path]:
    count = len(read_manifest(folder).splits["train"])
    names = {"records": shard_name("train", 0, count), "manifest": "manifest.json", "tokenizer": "tokenizer/vocab.txt"}
    names |= {unit: index_name("train", 0, count, unit) for unit in ("sentences", "documents")}
    return {what: folder / name for what, name in names.items()}


def _exchanged(path: Path) -> None:
    """Exchange a file with the second shard's, the manifest with the vocabulary."""
    others = {"manifest.json": "tokenizer/vocab.txt", "vocab.txt": "../manifest.json"}
    other = path.parent / others.get(path.name, path.name.replace("-00000-of", "-00001-of"))
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def _in_its_place(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.unlink()
        make(path)

    return put


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped": _flipped,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "random": lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size)),
    "twice": lambda path: path.write_bytes(path.read_bytes() * 2),
    "deleted": os.unlink,
    "exchanged": _exchanged,
    "a folder": _in_its_place(os.mkdir),
    "a queue": _in_its_place(os.mkfifo),
    "a link to nothing": _in_its_place(lambda path: path.symlink_to("nowhere")),
}


def _rewritten(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Rewrite the tokens of a shard, with the hash in the manifest: whoever built it meant this."""

    def rewrite(folder: Path) -> None:
        path, dtype = _files(folder)["records"], read_manifest(folder).dtype
        reader = TokenReader(path, dtype)
        total = read_manifest(folder).splits["train"][0].tokens
        read = [reader.read(begin, min(1024, total - begin)) for begin in range(0, total, 1024)]
        path.unlink()
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for tokens, flags in read:
            writer.write(encode_record(change(tokens), flags))
        writer.close()
        restate(folder)

    return rewrite


def _index(what: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = _files(folder)[what]
        np.save(path, change(np.load(path)).astype(np.int32))
        restate(folder)

    return rewrite


def _manifest(**changed: Any) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        stated = json.loads((folder / "manifest.json").read_text())
        stated["vocabulary"] |= changed
        (folder / "manifest.json").write_text(json.dumps(stated))

    return rewrite


MEANT: dict[str, Callable[[Path], None]] = {
    "ids beyond the vocabulary": _rewritten(lambda tokens: tokens + tokens.dtype.type(60_000)),
    "one id beyond the vocabulary": _rewritten(lambda tokens: np.where(np.arange(len(tokens)) == 7, 300, tokens)
                                               .astype(tokens.dtype)),
    "ids of another type": _rewritten(lambda tokens: tokens.astype(np.uint32)),
    "ids of fractions": _rewritten(lambda tokens: tokens.astype(np.float64)),
    "too few ids": _rewritten(lambda tokens: tokens[:-1]),
    "negative sentences": _index("sentences", lambda lengths: -lengths),
    "empty sentences": _index("sentences", lambda lengths: lengths * 0),
    "sentences that do not add up": _index("sentences", lambda lengths: lengths + 1),
    "documents that do not add up": _index("documents", lambda lengths: lengths + 1),
    "a vocabulary of seven": _manifest(size=7),
    "a mask beyond the vocabulary": _manifest(mask=10**6),
    "a vocabulary without a mask": _manifest(mask=None),
}  # fmt: skip


def _damaged(what: str, damage: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda folder: damage(_files(folder)[what])


POISONED = MEANT | {
    f"{what} {name}": _damaged(what, damage)
    for name, damage in DAMAGES.items()
    for what in ("records", "sentences", "documents", "manifest", "tokenizer")
}


def corpora(count: int, on: bool = True) -> Trials:
    """Train on a corpus that is damaged, or whose maker meant no good: it is refused, or the end is that without.

    Some are damaged while the run goes on, and then it may also save and end with an error. Off: nothing is compared
    with the hashes in the manifest.
    """
    notes, experiment = list[str](), experiment_of("electra", 6)
    with compiled_once():
        wanted = digest(fitted(experiment, HOME / f"honest-{on}").params)
        names = [*POISONED, *(f"records {name} in the middle" for name in DAMAGES if name != "a queue")]
        if count < len(names):
            names = random.Random(7).sample(names, count)
        for name in names:
            problem = _trained_on(name, wanted, on)
            notes += [f"{name}: {problem}"[:300]] if problem else []
    return Trials(len(names), len(names) - len(notes), tuple(notes))


def _trained_on(name: str, wanted: str, on: bool) -> str:
    """Train on a corpus with one poison; return what went wrong, "" for nothing."""
    poisoned, folder = HOME / f"poisoned-{on}", HOME / f"poisoned-run-{on}"
    shutil.copytree(corpus(), poisoned)
    place = train.place_batch

    def damaging(*arguments: Any) -> Any:
        if (damage := later.pop("damage", None)) is not None:
            DAMAGES[damage](_files(poisoned)["records"])
        return place(*arguments)

    middle = name.endswith(" in the middle")
    later = {"damage": name.removeprefix("records ").removesuffix(" in the middle")} if middle else {}
    if not middle:
        POISONED[name](poisoned)
    experiment = experiment_of("electra", 40 if middle else 6, data=str(poisoned))
    begun = time.monotonic()
    try:
        with protected(on, "shards", "indices", "ids"):
            train.place_batch = damaging
            end = digest(fitted(experiment, folder).params)
        right = end == wanted if not middle else True
        return "" if right else "it trained to another end without a word"
    except (InputError, Diverged) as error:
        if middle and newest(folder) == 0:
            return f"no checkpoint: {error!r}"
        return "" if "\n" not in str(error) and time.monotonic() - begun < 30 else f"refused by {error!r}"
    except Exception as error:  # noqa: BLE001 any other end is wrong
        return repr(error)
    finally:
        train.place_batch = place
        shutil.rmtree(poisoned)
        shutil.rmtree(folder, ignore_errors=True)


def exchanged_shards(count: int, on: bool = True) -> Trials:
    """Exchange two shards of a corpus: the run is refused when it begins. Off: no file is hashed."""
    folder, passed, rng = HOME / f"exchanged-{on}", 0, random.Random(3)
    shutil.copytree(corpus(), folder)
    shards = sorted(folder.glob("*.array_record-*"))
    with protected(on, "shards"):
        for _ in range(count):
            a, b = rng.sample(shards, 2)
            turn = ((a, folder / "other"), (b, a), (folder / "other", b))
            for first, second in turn:
                first.rename(second)
            try:
                FullSentences(str(folder), 16).digest()
            except InputError:
                passed += 1
            for first, second in turn:
                first.rename(second)
    return Trials(count, passed)
