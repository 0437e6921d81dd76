"""Save and restore checkpoints: Orbax behind a few functions, with a checksum for every array.

    <run>/checkpoints/<step>/params      what inference needs
                             optimizer   what only training needs
                             info        experiment, tokenizer files, checksums, versions: one JSON text

Orbax does not notice flipped bits. So a checksum of every array is computed on the device when it is saved, and again
when it is restored. It is a sum over elements, hence the same on every mesh.
"""

import base64
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from bertjax.checkpoints.info import checked_info
from bertjax.checkpoints.saving import STEP, BackgroundSaves
from bertjax.checkpoints.shared import SharedSaves
from bertjax.data.tokenizer import Tokenizer, fingerprint, tokenizer_from_files
from bertjax.errors import InputError
from bertjax.faults import fault
from bertjax.random import hash_bits
from bertjax.rules import name_of
from bertjax.serialization.bounded_json import LARGE, parse_object
from bertjax.serialization.description import up_to_date
from bertjax.serialization.places import without_places
from bertjax.storage import files
from bertjax.storage.paths import absolute, explained, in_cloud, storage_problem
from bertjax.types import Array

# Failures that are not damage. Orbax and TensorStore report damage by exceptions of any kind.
_NOT_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class Damaged(InputError):
    """A checkpoint that cannot be restored as it was saved."""


Saves: TypeAlias = BackgroundSaves | SharedSaves


def open_checkpoints(
    folder: Path, *, keep: int, keep_every: int, report: Callable[[str], None] = lambda text: None
) -> Saves:
    """Open the checkpoints of a run: the `keep` newest are kept, and those at multiples of `keep_every` if not 0.

    report: is told of attempts to save that failed. Unfinished checkpoints of a killed process are removed.
    """
    files.check_tree(files.make_folder(folder.parent, folder.name))
    if jax.process_count() == 1 and not in_cloud(folder):
        return BackgroundSaves(
            absolute(folder), keep=keep, keep_every=keep_every, write=_write, verify=_read_back, report=report
        )
    # Several processes write one checkpoint together, and Cloud Storage renames nothing: both are left to Orbax.
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True, create=True
    )
    with explained(folder):
        manager = ocp.CheckpointManager(absolute(folder), options=options)
        return SharedSaves(manager, folder, lambda: [int(path.name) for path in finished_steps(folder)], report)


def save(
    manager: Saves,
    step: int,
    params: Any,
    optimizer: Any,
    *,
    experiment: Mapping[str, Any],
    tokenizer: Tokenizer,
    data: list[str],
    model: str = "",
    skips: Mapping[str, float] | None = None,
) -> None:
    """Save in the background; `manager.wait_until_finished()` waits for it.

    data: the digest of the manifest of each corpus that the run reads. model: of the parameters that it started from.
    skips: the counters of skipped steps.
    """
    arrays = {"params": params, "optimizer": optimizer}
    fault("checkpoint.begin")
    facts = {"step": step, "data": data, "model": model, "skips": dict(skips or {})}
    info = facts | _info(arrays, experiment, tokenizer)
    if isinstance(manager, BackgroundSaves):
        manager.save(step, arrays, info)
        return
    with explained(manager.directory):
        if not manager.save(step, args=_described(arrays, info)):
            raise InputError(f"{manager.directory} has a checkpoint after step {step}: move those of later steps away")


def export(folder: Path, params: Any, *, experiment: Mapping[str, Any], tokenizer: Tokenizer | None) -> None:
    """Write a checkpoint without optimiser state to a new folder, for inference: its description names no places."""
    info = _info({"params": params}, without_places(experiment), tokenizer)
    with explained(folder), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(absolute(folder), args=_described({"params": params}, info))
    for place in (folder, folder / "params", folder / "info"):  # Orbax writes the place into these
        if jax.process_index() == 0 and (place / _COMMITTED).exists():
            files.write(place / _COMMITTED, "Checkpoint commit was successful")


def write(
    folder: Path,
    step: int,
    params: Any,
    optimizer: Any,
    *,
    experiment: Mapping[str, Any],
    tokenizer: Tokenizer,
    **facts: Any,
) -> None:
    """Write a checkpoint of a run to a folder of its own, and wait for it. facts: see `save`."""
    arrays = {"params": params, "optimizer": optimizer}
    with explained(folder):
        _write(folder, arrays, {"step": step} | facts | _info(arrays, experiment, tokenizer))


def _write(folder: Path, arrays: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(absolute(folder), args=_described(arrays, info), force=True)


def _read_back(folder: Path, arrays: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Raise Damaged unless a checkpoint on the disk holds these arrays on the host, and this description."""
    if _digest(_read_json(folder)) != _digest(info):
        raise _damaged(folder, "its description is another one than was written")
    for item, tree in arrays.items():
        found = jax.tree.leaves(read_arrays(folder, item, tree))
        for here, there in zip(jax.tree.leaves(tree), found, strict=True):
            if here.dtype != there.dtype or not np.array_equal(_bytes(here), _bytes(there)):
                raise _damaged(folder, f"{item} on the disk is not what was written")


def _bytes(array: Any) -> np.ndarray:
    """Return a view of the bytes of an array on the host, without a copy."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _info(arrays: Mapping[str, Any], experiment: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    files = {} if tokenizer is None else tokenizer.files
    return {
        "experiment": experiment,
        "tokenizer": {name: base64.b64encode(content).decode() for name, content in files.items()},
        "fingerprint": "" if tokenizer is None else fingerprint(tokenizer),
        "checksums": {item: checksums(tree) for item, tree in arrays.items()},
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("bertjax", "jax", "jaxlib", "flax", "optax")}


def other_versions(info: Mapping[str, Any]) -> str:
    """Return the packages whose versions were others when a checkpoint was saved, as in "jax 0.10.1 (now 0.10.2)"."""
    now, then = _versions(), info.get("versions", {})
    return ", ".join(f"{name} {then[name]} (now {now[name]})" for name in now if then.get(name, now[name]) != now[name])


def _described(arrays: Mapping[str, Any], info: Mapping[str, Any]) -> Any:
    described = ocp.args.JsonSave({"digest": _digest(info), "info": info})
    return ocp.args.Composite(
        **{item: ocp.args.StandardSave(tree) for item, tree in arrays.items()},
        info=described,
    )


def read_info(step_folder: Path) -> dict[str, Any]:
    """Read the `info` of a checkpoint.

    Raises Damaged if it is damaged, and if it has the name of another step among the checkpoints of a run.
    """
    info = _read_json(step_folder)
    try:
        info = checked_info(info | {"experiment": up_to_date(info["experiment"])}, step_folder)
    except (InputError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(step_folder, error) from error
    of_run = step_folder.parent.name == "checkpoints" and STEP.fullmatch(step_folder.name)  # a copy has any name
    if of_run and info.get("step", int(step_folder.name)) != int(step_folder.name):
        raise Damaged(
            f"checkpoint {step_folder} is that of step {info['step']}, under another name: rename it to {info['step']}"
        )
    return info


def _read_json(step_folder: Path) -> dict[str, Any]:
    _check_tree(step_folder, "info")
    try:
        fault("checkpoint.read", path=step_folder)
        content = files.read_inside(step_folder, "info/metadata", LARGE.bytes)  # Orbax's name for it
        read = parse_object(content, "its description", LARGE, constants=True)
        if read["digest"] != _digest(read["info"]):
            raise ValueError("the digest of its description does not fit")
        info: dict[str, Any] = read["info"]
        return info
    except _NOT_DAMAGE:
        raise
    except Exception as error:
        raise _damaged(step_folder, error) from error


def _check_tree(step_folder: Path, item: str) -> None:
    """Check what Orbax opens by itself. Raises InputError for a link that leads out, and for special files."""
    if (step_folder / item).exists():
        files.check_tree(step_folder, item)


def restore(step_folder: Path, item: str, like: Any, info: Mapping[str, Any], *, whole: bool = True) -> Any:
    """Restore `params` or `optimizer` into the shapes, dtypes and shardings of `like`, and verify every array.

    whole: `like` has all arrays of the checkpoint, or else only those to restore. Raises Damaged if the checkpoint is
    damaged or of another shape.
    """
    found = read_arrays(step_folder, item, like, whole=whole)
    verify(step_folder, item, found, info)
    return found


def verify(step_folder: Path, item: str, arrays: Any, info: Mapping[str, Any]) -> None:
    """Raise Damaged unless arrays have the checksums of a checkpoint; of several processes all call it together."""
    expected = info["checksums"].get(item, {})
    wrong = sorted(name for name, checksum in checksums(arrays).items() if expected.get(name) != checksum)
    if wrong:
        raise _damaged(step_folder, f"the checksum of {wrong[0]} does not fit")


def read_arrays(step_folder: Path, item: str, like: Any, *, whole: bool = True) -> Any:
    """Read what `restore` verifies. Each of several processes reads what it holds, and waits for no other one."""
    _check_tree(step_folder, item)
    place = absolute(step_folder / item)
    try:
        fault("checkpoint.arrays", path=step_folder / item)
        _check_size(step_folder / item, like)
        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
        )
        if whole:
            return ocp.StandardCheckpointer(multiprocessing_options=alone).restore(place, like)
        arguments = ocp.checkpoint_utils.construct_restore_args(like)
        some = ocp.args.PyTreeRestore(like, restore_args=arguments, partial_restore=True)
        return ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone
        ).restore(place, args=some)
    except _NOT_DAMAGE:
        raise
    except Exception as error:
        raise _damaged(step_folder, error) from error


def _check_size(folder: Path, like: Any) -> None:
    """Raise InputError where arrays are far larger than their files, which would be zeros without end.

    Of parameters alone: moments of rows that never occurred are zeros. Trained parameters compress hardly at all.
    """
    for name in ("_METADATA", "_sharding"):  # which Orbax reads as JSON
        if (folder / name).exists():
            parse_object(files.read_inside(folder, name, LARGE.bytes), name, LARGE)
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    if folder.name == "params" and needed > _SMALL and needed > _LARGEST_RATIO * (stored := files.size_below(folder)):
        raise InputError(f"its parameters would take {needed:,} bytes, but its files have {stored:,}")


_SMALL, _LARGEST_RATIO = 2**26, 64


def saved_tokenizer(step_folder: Path, info: Mapping[str, Any]) -> Tokenizer | None:
    """Rebuild the tokenizer of a checkpoint; None if it has none, as some converted models."""
    if not info["tokenizer"]:
        return None
    try:
        contents = {name: base64.b64decode(content, validate=True) for name, content in info["tokenizer"].items()}
    except ValueError as error:
        raise _damaged(step_folder, f"a file of its tokenizer: {error}") from error
    return tokenizer_from_files(contents, origin=f"the tokenizer of {step_folder}")


def latest_step(run: Path) -> Path:
    """Return the newest finished checkpoint of a run folder or of its `checkpoints`; a step folder is returned itself.

    Raises InputError if there is none.
    """
    with explained(run):
        if (run / "info").is_dir():
            return run
        folder = _checkpoints_of(run) if (run / "checkpoints").is_dir() else run
        steps = finished_steps(folder)
    if not steps:
        raise InputError(
            f"no checkpoint in {run}: give the work folder of a run, one of its checkpoints, `best` of a fine-tuning, "
            "or a Hugging Face folder"
            if run.is_dir()
            else f"there is no folder {run}"
        )
    newest = max(steps, key=lambda path: int(path.name))
    files.real_path(run, newest.relative_to(run))
    return newest


def has_checkpoint(run: Path) -> bool:
    """Tell whether a run has a finished checkpoint to resume from."""
    with explained(run):
        return bool(finished_steps(_checkpoints_of(run)))


def _checkpoints_of(run: Path) -> Path:
    """Return the folder of a run's checkpoints. Raises InputError where it is a link that leads out of the run."""
    folder = run / "checkpoints"
    if not in_cloud(folder) and folder.is_symlink():
        files.real_path(run, folder.name)
    return folder


def finished_steps(folder: Path) -> list[Path]:
    """List the finished checkpoints in a folder, in no order.

    Unfinished ones have other names, on a disk. In Cloud Storage nothing is renamed: there the last object of a
    checkpoint says that it is finished.
    """
    steps = [path for path in folder.iterdir() if STEP.fullmatch(path.name)] if folder.is_dir() else []
    return [path for path in steps if (path / _COMMITTED).exists()] if in_cloud(folder) else steps


_COMMITTED = "commit_success.txt"
"""What Orbax writes last."""


def set_aside(step_folder: Path, reason: str) -> Path:
    """Rename a checkpoint, so that no run resumes from it and none overwrites it; return its new place."""
    names = (f"{step_folder.name}.{reason}{f'.{number}' if number else ''}" for number in count())
    place = next(path for path in map(step_folder.with_name, names) if not path.exists())
    files.move_folder(step_folder, place)
    return place


def set_aside_later(run: Path, step: int, reason: str) -> list[Path]:
    """Rename the checkpoints of a run after a step, as `set_aside`; return their new places."""
    folder = run / "checkpoints"
    later = [path for path in finished_steps(folder) if int(path.name) > step]
    return [set_aside(path, reason) for path in later]


def checksums(tree: Any) -> dict[str, str]:
    """Compute a checksum of every array: 8 hexadecimal digits by name. Any single changed element changes it."""
    leaves = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    spread = {name for name, leaf in leaves.items() if isinstance(leaf, jax.Array) and len(leaf.devices()) > 1}
    values = jax.device_get(_checksums(leaves, frozenset(spread)))
    return {name: f"{int(value):08x}" for name, value in values.items()}


_CHUNK = 2**16
"""Elements of an array that are hashed at a time, which stay in the processor's cache."""


@partial(jax.jit, static_argnames="spread")
def _checksums(leaves: dict[str, Array], spread: frozenset[str]) -> dict[str, Array]:
    """spread: names of arrays on several devices, each of which hashes what it has."""
    arrays = {name: jnp.atleast_1d(leaf) for name, leaf in leaves.items()}
    return {name: (_at_once if name in spread else _in_chunks)(x) for name, x in arrays.items()}


# Jitted within the program, so that arrays of one shape are traced once: a restart waits for it.


@jax.jit
def _at_once(x: Array) -> Array:
    return _hashed(x).sum(dtype=jnp.uint32)


@jax.jit
def _in_chunks(x: Array) -> Array:
    # Bits and hashes of a whole array would be written to memory, ten times slower: so a few rows at a time.
    if not x.size:
        return jnp.uint32(0)
    rows = max(1, min(len(x), _CHUNK // math.prod(x.shape[1:])))
    chunks = len(x) // rows

    def add(chunk: Array, sums: Array) -> Array:
        return sums + _hashed(jax.lax.dynamic_slice_in_dim(x, chunk * rows, rows), chunk * rows)

    sums = jax.lax.fori_loop(0, chunks, add, jnp.zeros((rows, *x.shape[1:]), jnp.uint32)).sum(dtype=jnp.uint32)
    rest = x[chunks * rows :]
    return sums + _hashed(rest, chunks * rows).sum(dtype=jnp.uint32) if len(rest) else sums


def _hashed(x: Array, first: Array | int = 0) -> Array:
    bits = x if jnp.issubdtype(x.dtype, jnp.integer) else x.view(f"u{x.dtype.itemsize}")
    # The bits are hashed with their index, so that permuted elements change the sum too; the hash is a bijection of
    # the bits, so that one changed element always changes it.
    return hash_bits(jax.random.key(0), x.shape, bits.astype(jnp.uint32), first)


def _digest(info: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _damaged(step_folder: Path, reason: object) -> InputError:
    if isinstance(reason, Exception) and in_cloud(step_folder):
        problem = storage_problem(step_folder, reason)
        if problem is not None:
            return problem
    if not step_folder.exists():
        return InputError(
            f"checkpoint {step_folder} is gone: a run has deleted it; give the run, or a newer checkpoint"
        )
    text = str(reason).strip().splitlines()
    others = [path.name for path in finished_steps(step_folder.parent) if path.name != step_folder.name]
    remedy = "there is no other one, so start again in another --workdir"
    if others:
        remedy = f"move that folder away to go on from step {max(others, key=int)}"
    return Damaged(
        f"checkpoint {step_folder} is damaged ({text[0][:200] if text else type(reason).__name__}): {remedy}"
    )
