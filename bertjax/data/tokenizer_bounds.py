"""Bounds on what a `tokenizer.json` may make of a text: forty doubled letters in a row would fill any memory."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from bertjax.errors import InputError

MOST_ADDED = 2**15
"""Added tokens of a folder; real ones have some thousand at most."""

_MOST_GROWTH = 2**12
_LONGEST_TEXT = 1000  # characters that a step puts in front of a text, or in place of one character
_STEPS = ("normalizer", "pre_tokenizer", "decoder")


def check_growth(described: Mapping[str, Any], origin: str) -> None:
    """Raise InputError where the steps of a tokenizer make over 4096 characters of one, or too long a text at once.

    Of each `Replace` the worst is taken: a pattern that matches between any two characters.
    """
    growth = 1.0
    for step in _steps([described.get(name) for name in _STEPS]):
        growth *= _growth(step)
        longest = max(len(str(step.get("prepend", ""))), len(str(step.get("content", ""))), _longest_of_charsmap(step))
        if growth > _MOST_GROWTH or longest > _LONGEST_TEXT:
            raise InputError(
                f"{origin}: its {step.get('type')!s:.40} makes too much of a text: over {_MOST_GROWTH:,} characters of "
                f"one, or over {_LONGEST_TEXT:,} at once"
            )


def _steps(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _steps(each)


def _growth(step: Mapping[str, Any]) -> float:
    """Return how many characters a step makes of one, at most."""
    if step.get("type") != "Replace" or not isinstance(step.get("content"), str):
        return 1.0
    pattern, length = step.get("pattern"), len(step["content"])
    text = pattern.get("String") if isinstance(pattern, dict) else None
    return max(1.0, length / len(text)) if isinstance(text, str) and text else 1.0 + length


def _longest_of_charsmap(step: Mapping[str, Any]) -> int:
    """Return the longest text that SentencePiece's compiled map puts in place of a character.

    The map is the size of a trie in four bytes, the trie, and texts that end in NUL.
    """
    if not isinstance(step.get("precompiled_charsmap"), str):
        return 0
    try:
        content = base64.b64decode(step["precompiled_charsmap"])
    except (binascii.Error, ValueError):
        return 0  # the library refuses it
    return max(map(len, content[4 + int.from_bytes(content[:4], "little") :].split(b"\0")), default=0)
