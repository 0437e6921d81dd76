"""Keep what a look at a diverged run needs: its last batch, the key, and the state that the batch was of no use to.

<run>/diverged/why.json        the step, and the key of the run
               batch-0.npz     the rows of process 0, and so on
               state/          a checkpoint of the state
"""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bertjax.data.source import Batch
from bertjax.errors import InputError
from bertjax.run.processes import is_coordinator
from bertjax.serialization.bounded_json import parse_object
from bertjax.storage import files
from bertjax.types import Key

FOLDER = "diverged"


_LARGEST = 2**28  # bytes of a batch: a thousand rows of 512 tokens with six arrays have 13 million


def keep_bad_batch(workdir: Path, step: int, batch: Batch, key: Key, write_state: Callable[[Path], None]) -> Path:
    """Write the batch of a step and the key, on all processes, and the state by `write_state`; return the folder.

    What an earlier end of the run left there is replaced.
    """
    folder = workdir / FOLDER
    if is_coordinator():
        folder.mkdir(parents=True, exist_ok=True)
    write_state(folder / "state")  # which waits for all processes
    content = io.BytesIO()
    rows = {name: array for name, array in batch.items() if name not in ("stop", "host")}
    np.savez(content, **rows)  # type: ignore[arg-type]
    files.write(folder / f"batch-{jax.process_index()}.npz", content.getvalue())
    if is_coordinator():
        words = np.asarray(jax.random.key_data(key)).tolist()
        why = {"step": step, "key": words, "processes": jax.process_count()}
        files.write(folder / "why.json", json.dumps(why, indent=1))
    return folder


def read_bad_batch(folder: Path) -> tuple[dict[str, Any], Batch]:
    """Return why.json and the batch of all processes that a run kept. Raises InputError where there is none."""
    if not (folder / "why.json").exists():
        raise InputError(
            f"{folder} holds no batch of a diverged run: give the work folder of a run that ended as diverged"
        )
    try:
        why = parse_object(files.read_inside(folder, "why.json"), str(folder / "why.json"))
        parts = []
        for index in range(int(why["processes"])):
            content = io.BytesIO(files.read_inside(folder, f"batch-{index}.npz", _LARGEST))
            if sum(each.file_size for each in zipfile.ZipFile(content).infolist()) > _LARGEST:
                raise ValueError(f"batch-{index}.npz expands to over {_LARGEST:,} bytes")
            with np.load(content, allow_pickle=False) as arrays:
                parts.append(dict(arrays))
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder} is damaged ({error}): run the same command again, which writes it anew") from error
    if not rows:
        raise InputError(f"{folder} holds a state without a batch: the run diverged in an evaluation, before its steps")
    return why, rows
