"""Parse JSON that others wrote: strictly, in linear time, and within bounds that are checked before anything is built.

Python's `json` accepts any size, recurses as deep as the text is nested, keeps the last of two equal keys, and reads
NaN, Infinity, 1e999 and integers of thousands of digits. Each is refused here.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

from bertjax.errors import InputError


class Limits(NamedTuple):
    """The most that a JSON text may hold: its bytes in UTF-8, the nesting of its containers, its values.

    Every element of a list and every entry of an object is a value, and so is each container.
    """

    bytes: int
    depth: int
    values: int


SMALL = Limits(2**22, 64, 2**17)
"""Of configurations, descriptions and results: real ones have at most some hundred thousand bytes."""

LARGE = Limits(48_000_000, 64, 2**22)
"""Of manifests and tokenizers: one of 256,000 pieces has 35 million bytes and 2 million values."""

_LONGEST_NUMBER = 100  # characters; transformers writes 1000000000000000019884624838656


def parse(
    content: bytes | str, where: str, limits: Limits = SMALL, *, first_line: int = 1, constants: bool = False
) -> Any:
    """Return the value of a JSON text in UTF-8.

    where: the file, for errors. first_line: the number of the text's first line in that file. constants: accept NaN
    and Infinity, which `json.dumps` writes for metrics that are not finite. Raises InputError for a text that is not
    JSON or exceeds `limits`, for an object with two equal keys, and for numbers that are not finite or have more than
    100 characters.
    """
    try:
        _check_limits(content, limits)
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        return (_WITH_CONSTANTS if constants else _STRICT).decode(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 ({error.reason} at byte {error.start:,}): convert it") from error
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(f"{where}:{line}: not JSON: {error.msg} (column {error.colno})") from error
    except ValueError as error:
        raise InputError(f"{where}:{first_line}: cannot be read as JSON: {error}") from error


def parse_object(
    content: bytes | str, where: str, limits: Limits = SMALL, *, first_line: int = 1, constants: bool = False
) -> dict[str, Any]:
    """Return a JSON object as `parse` does. Raises InputError, too, for another value."""
    found = parse(content, where, limits, first_line=first_line, constants=constants)
    if not isinstance(found, dict):
        raise InputError(f"{where}:{first_line}: not a JSON object")
    return found


def _check_limits(content: bytes | str, limits: Limits) -> None:
    """Raise ValueError where a text exceeds the limits. Nothing is built, and most texts are only counted."""
    content = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    if len(content) > limits.bytes:
        raise ValueError(f"it has more than {limits.bytes:,} bytes")
    opened = content.count(b"[") + content.count(b"{")
    if opened <= limits.depth and opened + content.count(b",") < limits.values:
        return
    depth, values = 0, 1
    for structure in _structure(content):
        values += len(structure) - structure.count(b"]") - structure.count(b"}")
        if values > limits.values:
            raise ValueError(f"it has more than {limits.values:,} values")
        depths = list(accumulate(map(_STEPS.__getitem__, structure), initial=depth))
        if max(depths) > limits.depth:
            raise ValueError(f"it is nested more than {limits.depth} deep")
        depth = depths[-1]


_STEPS = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]
_OTHER_BYTES = bytes(byte for byte in range(256) if byte not in b"[]{},")
# Possessive, and with an optional end: a text without closing quotes is not searched again and again.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_CHUNK = re.compile(rb'(?:[^"]{1,4096}+|' + _STRING.pattern + rb"){1,4096}+", re.DOTALL)


def _structure(content: bytes) -> Iterator[bytes]:
    """Yield the brackets, braces and commas outside of strings, some thousands at a time.

    A string begins where `json` begins it as long as the text is valid, so nothing that `json` builds is missed.
    """
    view = memoryview(content)
    for chunk in _CHUNK.finditer(content):
        yield _STRING.sub(b"", view[slice(*chunk.span())]).translate(None, _OTHER_BYTES)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"it names {next(name for name in counts if counts[name] > 1)!r:.100} twice")
    return found


def _integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number has {len(text):,} digits")
    return int(text)


def _number(text: str) -> float:
    if len(text) > _LONGEST_NUMBER or not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text[:40]} is not finite, or has too many digits")
    return number


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_number, parse_constant=_constant)
_WITH_CONSTANTS = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_number)
