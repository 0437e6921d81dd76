"""Files of safetensors whose header lies."""

import json
from collections.abc import Callable
from typing import Any

from security import world as w
from security.world import Hostile, World, with_file

_SOME = (w.LOAD, w.EXPORT)


def file_of(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a file of safetensors with this header."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + body


def _header(header: Any, body: bytes = b"", length: int | None = None) -> Callable[[World], None]:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return with_file("classifier", "model.safetensors", file_of(content, body, length))


def _tensor(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": offsets} | more


def _one(**fields: Any) -> Callable[[World], None]:
    return _header({"a": _tensor(**fields)}, bytes(4))


def _changed_name(old: str, new: str) -> Callable[[World], None]:
    """Rename a tensor of honest weights."""

    def content(world: World) -> bytes:
        whole = (world.honest.classifier / "model.safetensors").read_bytes()
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        header[new] = header.pop(old)
        return file_of(json.dumps(header).encode(), whole[8 + length :])

    return with_file("classifier", "model.safetensors", content)


INPUTS = {
    "an empty file": Hostile(with_file("classifier", "model.safetensors", b""), _SOME),
    "a header of 2^63 bytes": Hostile(_header({}, length=2**63), _SOME),
    "a header longer than the file": Hostile(_header({}, length=100), _SOME),
    "a header of 20 MB": Hostile(_header(b" " * 20_000_000), _SOME),
    "a header of spaces": Hostile(_header(b" " * 10**6), _SOME),
    "a header of brackets": Hostile(_header(b"[" * 10**6), _SOME),
    "a header of objects in objects": Hostile(_header(b'{"a":' * 10**5), _SOME),
    "a header that is a list": Hostile(_header([1]), _SOME),
    "a header of no text": Hostile(_header(b'{"\xff\xfe": 1}'), _SOME),
    "overlapping tensors": Hostile(_header({"a": _tensor(), "b": _tensor()}, bytes(4)), _SOME),
    "a hole between tensors": Hostile(_header({"a": _tensor(), "b": _tensor(offsets=(8, 12))}, bytes(12)), _SOME),
    "an offset beyond the file": Hostile(_one(shape=(2**40,), offsets=(0, 2**42)), _SOME),
    "offsets backwards": Hostile(_one(offsets=(4, 0)), _SOME),
    "negative offsets": Hostile(_one(offsets=(-4, 0)), _SOME),
    "offsets that are fractions": Hostile(_one(offsets=(0.0, 4.0)), _SOME),
    "offsets of text": Hostile(_one(offsets="ab"), _SOME),
    "three offsets": Hostile(_one(offsets=(0, 4, 8)), _SOME),
    "a shape beyond integers": Hostile(_one(shape=(2**32, 2**32), offsets=(0, 4)), _SOME),
    "a shape of 10^30": Hostile(_one(shape=(10**30,), offsets=(0, 4 * 10**30)), _SOME),
    "a shape of a thousand numbers": Hostile(_one(shape=(1,) * 1000), _SOME),
    "a shape of a million large numbers": Hostile(_one(shape=[2**62] * 10**5), _SOME),
    "a negative shape": Hostile(_one(shape=(-1, -1)), _SOME),
    "a shape of truth values": Hostile(_one(shape=[True]), _SOME),
    "a shape in a shape": Hostile(_one(shape=[[1]]), _SOME),
    "a shape of text": Hostile(_one(shape="1"), _SOME),
    "an unknown dtype": Hostile(_one(dtype="EVIL"), _SOME),
    "a dtype of escapes": Hostile(_one(dtype="\x1b[2J\x9b31m"), _SOME),
    "a dtype that is a list": Hostile(_one(dtype=["F32"]), _SOME),
    "a dtype of a megabyte": Hostile(_one(dtype="F" * 10**6), _SOME),
    "a name twice": Hostile(_header(b'{"a": 1, "a": 2}'), _SOME),
    "a hundred thousand names and the last twice": Hostile(
        _header(b"{" + b",".join(b'"%d": 1' % n for n in range(10**5)) + b',"99999": 1}'), _SOME
    ),
    "a hundred thousand empty tensors": Hostile(
        _header({str(n): _tensor(shape=(0,), offsets=(0, 0)) for n in range(10**5)}), _SOME, seconds=3.0
    ),
    "a tensor that is a number": Hostile(_header({"a": 1}), _SOME),
    "a tensor without a shape": Hostile(_header({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)), _SOME),
    "a name of escapes": Hostile(_changed_name("classifier.bias", "\x1b[2J\x1b]0;owned\x07\x9b31m"), _SOME),
    "a name of a path": Hostile(_changed_name("classifier.bias", "../../secret/home/.bashrc"), _SOME),
    "a name of a megabyte": Hostile(_changed_name("classifier.bias", "a" * 10**6), _SOME),
    "a name of a pattern": Hostile(_changed_name("classifier.bias", "(a+)+$" * 20 + "a" * 50), _SOME),
    "an empty name": Hostile(_changed_name("classifier.bias", ""), _SOME),
    "a name with NUL": Hostile(_changed_name("classifier.bias", "classifier.bias\0"), _SOME),
    "a name of a parameter of ours": Hostile(_changed_name("classifier.bias", "head/classify/bias"), _SOME),
}
