"""Read and write the files of a Hugging Face folder, trusting none of their claims.

Before a tensor is read, or memory taken for it, every header has been checked against the size of its file: safetensors
as its specification says (github.com/huggingface/safetensors, README "Format"), stricter in that a header may be 4 MiB
and no name may come twice. Pickled weights are never opened, because reading one can run any code.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from bertjax.errors import InputError
from bertjax.serialization.bounded_json import SMALL, parse, parse_object
from bertjax.storage.files import open_inside, read_inside, real_path, resolved, write, written_by_name

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
MODULES = "modules.json"  # of sentence-transformers
FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
          "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}  # fmt: skip
_MOST_AXES = 8
Parsed = TypeVar("Parsed", dict[str, Any], list[Any])


class Tensor(NamedTuple):
    """Where a tensor is stored, its dtype and shape, as its header states them. begin: of its bytes in the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int


_PEFT = "merge it into its base model with peft: AutoPeftModel.from_pretrained(folder).merge_and_unload()"
_BY_VERSION_4 = "convert it with transformers 4: AutoModel.from_pretrained(folder, {})"
_SAVE = ".save_pretrained(new_folder)"
_NOT_READ = {
    "adapter_config.json": f"an adapter: {_PEFT}{_SAVE}",
    "adapter_model.*": f"an adapter: {_PEFT}{_SAVE}",
    "*.msgpack": f"weights of Flax: {_BY_VERSION_4.format('from_flax=True')}{_SAVE}",
    "*.h5": f"weights of TensorFlow: {_BY_VERSION_4.format('from_tf=True')}{_SAVE}",
    "*.ckpt.index": f"a checkpoint of TensorFlow: {_BY_VERSION_4.format('from_tf=True')}{_SAVE}",
    "*_Transformer": "a model of sentence-transformers in a folder of its own: give that one",
}
"""Formats of weights that are not read, by patterns of file names, with the remedy."""


def is_huggingface(folder: Path) -> bool:
    """Tell whether this looks like a Hugging Face folder: it has a config.json or weights by their names."""
    return folder.is_dir() and (
        any((folder / name).exists() for name in (CONFIG, WEIGHTS, INDEX, MODULES)) or bool(_not_read(folder))
    )


def _not_read(folder: Path) -> str:
    """Describe weights in another format; "" if there are none."""
    found = ((sorted(folder.glob(pattern)), remedy) for pattern, remedy in _NOT_READ.items())
    return next((f"{folder} has {paths[0].name}, {remedy}" for paths, remedy in found if paths), "")


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json. Raises InputError if it is missing or not a JSON object."""
    if not (folder / CONFIG).exists() and (described := _not_read(folder)):
        raise InputError(described)
    return read_json(folder, CONFIG, dict)


def read_json(folder: Path, name: str, kind: type[Parsed]) -> Parsed:
    """Read a JSON file of a folder. Raises InputError if it is missing, broken or of another kind."""
    path = file_inside(folder, name)
    found = parse(read_inside(folder, name), f"{path}")
    if not isinstance(found, kind):
        raise InputError(f"{path} is not a JSON {'object' if kind is dict else 'list'}")
    return found


def folder_inside(home: Path, path: str) -> Path:
    """Return a folder by its path inside `home`, whether or not it exists. Raises InputError for one outside."""
    folder = home / path
    inner, outer = resolved(folder), resolved(home)
    if inner != outer and outer not in inner.parents:
        raise InputError(f"{folder} is outside of {home}: copy the folder there instead")
    return folder


def find_tensors(folder: Path) -> dict[str, Tensor]:
    """List the tensors of model.safetensors, or of the shards that its index names.

    Raises InputError for broken or hostile files, for shards outside the folder, and where there are only pickles.
    """
    if (folder / WEIGHTS).exists():
        return _read_header(file_inside(folder, WEIGHTS))
    if (folder / INDEX).exists():
        return _read_shards(folder)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        raise InputError(
            f"{folder} has its weights in {pickles[0]}, not in {WEIGHTS}; that format can run code and is never opened "
            "here: convert it where you trust it, with transformers: AutoModel.from_pretrained(folder)"
            ".save_pretrained(new_folder), of the class that config.json names"
        )
    raise InputError(_not_read(folder) or f"{folder} has no weights: no {WEIGHTS} and no {INDEX}")


def read_tensor(tensor: Tensor) -> np.ndarray:
    """Read one tensor of a dtype in FLOATS as it is stored. Raises InputError where the file has become shorter."""
    dtype = FLOATS[tensor.dtype]
    size = math.prod(tensor.shape) * dtype.itemsize
    with open_inside(tensor.file.parent, tensor.file.name) as file:
        file.seek(tensor.begin)
        content = file.read(size)
    if len(content) != size:
        raise InputError(f"{tensor.file} changed while it was read: {tensor.name} is cut short")
    return np.frombuffer(content, dtype).reshape(tensor.shape)


def write_folder(folder: Path, config: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Write config.json and one model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with written_by_name(folder / WEIGHTS) as partial:
        save_file(contiguous, partial, {"format": "pt"})  # transformers asks for this entry


def file_inside(folder: Path, name: str) -> Path:
    """Return the path of a plain file of the folder, by a name without a path.

    Links may lead to the blobs beside the snapshots of a Hugging Face cache, and nowhere else outside; the
    folder may be inside such a snapshot.
    """
    if Path(name).name != name or name.startswith(".") or "\\" in name or "\0" in name:
        raise InputError(f"{folder} names a file {name!r}: only files inside the folder itself are read")
    real_path(folder, name)
    return folder / name


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX
    weight_map = read_json(folder, INDEX, dict).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index} has no `weight_map` from tensors to files")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if not shard.endswith(".safetensors"):
            raise InputError(f"{index} names {shard!r}: only .safetensors files are read")
        for name, tensor in _read_header(file_inside(folder, shard)).items():
            if name in tensors:
                raise InputError(f"{name} is in {tensors[name].file.name} and in {shard}: each tensor once")
            tensors[name] = tensor
    for name in sorted(tensors.keys() ^ weight_map.keys()):
        where = "is in no shard" if name in weight_map else "is in a shard, but not in the index"
        raise InputError(f"{index} does not fit its shards: {name} {where}")
    for name, tensor in tensors.items():
        if weight_map[name] != tensor.file.name:
            raise InputError(f"{index} says that {name} is in {weight_map[name]}, but it is in {tensor.file.name}")
    return tensors


def _read_header(path: Path) -> dict[str, Tensor]:
    with open_inside(path.parent, path.name) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError(f"{path} is cut short: {size:,} bytes, and a header of {length:,} to begin with")
        if length > SMALL.bytes:
            raise InputError(f"{path} has a header of {length:,} bytes: no real one is over {SMALL.bytes:,}")
        header = parse_object(file.read(length), f"the header of {path}")
    header.pop("__metadata__", None)
    spans = sorted((*_span(path, name, entry), name) for name, entry in header.items())
    end = 0
    for begin, after, name in spans:
        if begin != end:
            raise InputError(f"{path} is damaged: {name} begins at byte {begin:,}, where {end:,} was to come")
        end = after
    if end != size - 8 - length:
        raise InputError(f"{path} is damaged: its tensors need {end:,} bytes, it holds {size - 8 - length:,}")
    begins = {name: 8 + length + begin for begin, _, name in spans}
    return {
        name: Tensor(path, name, entry["dtype"], tuple(entry["shape"]), begins[name]) for name, entry in header.items()
    }


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Check the header's entry of a tensor; return the byte offsets of its begin and end."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged: {name} has no dtype, shape and data_offsets") from error
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise InputError(f"{path}: {name} has an unknown dtype {dtype!r:.80}")
    numbers = [*shape, begin, end] if isinstance(shape, list) and len(shape) <= _MOST_AXES else [None]
    if not all(type(number) is int and 0 <= number <= 2**63 for number in numbers):
        raise InputError(f"{path} is damaged: {name} has shape {str(shape)[:80]} at {str((begin, end))[:80]}")
    if end - begin != math.prod(shape) * _BYTES[dtype]:
        raise InputError(
            f"{path} is damaged: {name} of shape {str(shape)[:80]} and dtype {dtype} has {end - begin:,} bytes"
        )
    return begin, end
