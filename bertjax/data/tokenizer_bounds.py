"""Bound what the files of a tokenizer may ask for, before a library reads them: its memory has no limit of its own.

Pieces and ids, the characters that a normaliser makes of one, the tokens around a text, the letters of a word.
"""

import base64
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np

from bertjax.errors import InputError

_MOST_PIECES = 2**20  # XLM-V has 901,629
_MISSING_IDS = 2**16  # real vocabularies leave out at most some hundred
MOST_IDS = 2 * _MOST_PIECES + _MISSING_IDS
MOST_ADDED = 2**15
"""Added tokens of a folder; real ones have some thousand at most."""

_MOST_GROWTH = 2**10  # characters made of one; NFKC alone makes 18 of U+FDFA
_STEPS = ("normalizer", "pre_tokenizer", "decoder")
_MOST_PARTS = 64  # of the template of a text; real ones have at most 4
_LONGEST_MARK = 64  # characters of "##", "</w>" and the like
_LONGEST_WORD = 1000  # characters; WordPiece takes time by their square


def check_pieces(vocabulary: object, origin: str) -> None:
    """Raise InputError for more pieces than any vocabulary has, and for ids that leave out far more than they number.

    vocabulary: the pieces, or pieces with their ids, as JSON types; anything else is left to the library, which refuses
    it. The library lists all ids that are missing.
    """
    count = len(vocabulary) if isinstance(vocabulary, dict | list) else 0
    ids = [index for index in vocabulary.values() if type(index) is int] if isinstance(vocabulary, dict) else []
    if count > _MOST_PIECES:
        raise InputError(f"{origin} has {count:,} pieces: no real vocabulary has over {_MOST_PIECES:,}")
    if max(ids, default=0) > 2 * count + _MISSING_IDS:
        raise InputError(f"{origin} has {count:,} pieces, and one with the id {max(ids):,}: it is damaged")


def check_lines(content: bytes, origin: str) -> None:
    """Raise InputError for a file of a piece a line with more than any vocabulary has, before it is divided."""
    if content.count(b"\n") > _MOST_PIECES:
        raise InputError(f"{origin} has over {_MOST_PIECES:,} lines: no real vocabulary has so many pieces")


def check_tokenizer(described: Mapping[str, Any], origin: str) -> None:
    """Raise InputError for a `tokenizer.json` that asks for more than any real one."""
    model = _object(described.get("model"))
    check_pieces(model.get("vocab"), origin)
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model.get(key), str) and len(model[key]) > _LONGEST_MARK:
            raise InputError(f"{origin} has a {key} of {len(model[key]):,} characters: the most are {_LONGEST_MARK}")
    word = model.get("max_input_chars_per_word")
    if isinstance(word, int) and word > _LONGEST_WORD:
        raise InputError(f"{origin}: max_input_chars_per_word={word}: the most are {_LONGEST_WORD:,}")
    try:
        growth = math.prod(_growth(step) for step in _steps([described.get(name) for name in _STEPS]))
    except ValueError as error:
        raise InputError(f"{origin}: its normaliser is damaged: {error}") from error
    if growth > _MOST_GROWTH:
        raise InputError(f"{origin}: its steps make {growth:.3g} characters of one: the most are {_MOST_GROWTH:,}")
    parts = _parts(described.get("post_processor"))
    if parts > _MOST_PARTS:
        raise InputError(f"{origin}: its post_processor puts {parts:,} parts together: the most are {_MOST_PARTS}")


def check_sentencepiece(content: bytes, origin: str) -> None:
    """Raise InputError for a SentencePiece model that asks for more than any real one, or is none."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2  # slow to import, and needed by these models alone

    messages: Any = sentencepiece_model_pb2  # its classes are made as it is imported
    try:
        model = messages.ModelProto.FromString(content)
    except DecodeError as error:
        raise InputError(f"{origin} is not a SentencePiece model") from error
    check_pieces([*model.pieces], origin)
    try:
        growth = max(_longest(each.precompiled_charsmap) for each in (model.normalizer_spec, model.denormalizer_spec))
    except ValueError as error:
        raise InputError(f"{origin}: its normaliser is damaged: {error}") from error
    if growth > _MOST_GROWTH:
        raise InputError(f"{origin}: its normaliser makes {growth:,} characters of one: the most are {_MOST_GROWTH:,}")


@contextmanager
def panics_refused(origin: str) -> Iterator[None]:
    """Turn a failure of a library in Rust into an InputError.

    That is a panic, which no `except Exception` catches, or a plain Exception, as for a vocabulary without the piece
    for unknown words.
    """
    try:
        yield
    except BaseException as error:
        # The class of panics is one of its own in each library, which none exports.
        if type(error).__name__ != "PanicException" and type(error) is not Exception:
            raise
        raise InputError(
            f"the tokenizer of {origin} fails ({error!s:.200}): use another, or leave the text out"
        ) from None


def _steps(value: object) -> Iterator[dict[str, Any]]:
    """Yield a step, and all those within it."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _steps(each)


def _growth(step: Mapping[str, Any]) -> float:
    """Return the most characters that a step makes of one."""
    if step.get("type") == "Prepend" and isinstance(step.get("prepend"), str):
        return float(max(1, len(step["prepend"])))
    if step.get("type") == "Replace" and isinstance(step.get("content"), str):
        replaced, inserted = _object(step.get("pattern")).get("String"), len(step["content"])
        # An expression may match nothing, between all characters.
        return max(1.0, inserted / max(1, len(replaced))) if isinstance(replaced, str) else 1.0 + inserted
    if step.get("type") == "Precompiled" and isinstance(step.get("precompiled_charsmap"), str):
        return float(_longest(base64.b64decode(step["precompiled_charsmap"])))
    return 1.0


def _longest(charsmap: bytes) -> int:
    """Return the length of the longest text of a table. Raises ValueError for a table that leads out of itself.

    A table is the size of a trie, the trie, and texts that end in NUL. SentencePiece walks the trie unchecked: each of
    its units of four bytes is a text's place, with the highest bit, or a step to others in blocks of 256 (darts-clone).
    """
    if not charsmap:
        return 1
    size, places = int.from_bytes(charsmap[:4], "little"), charsmap[4:]
    if size > len(places) or size % (4 * _BLOCK):
        raise ValueError(f"a trie of {size:,} bytes in a table of {len(places):,}")
    texts = places[size:]
    units = np.frombuffer(places[:size], "<u4").astype(np.int64)
    ends = units >> 31 == 1
    steps = np.arange(len(units)) ^ ((units >> 10) << ((units & 1 << 9) >> 6))
    if (steps[~ends] >= len(units)).any() or ((units[ends] & 2**31 - 1) >= len(texts)).any():
        raise ValueError("a trie that leads out of its table")
    return max(len(text.decode("utf-8", "replace")) for text in texts.split(b"\0"))


_BLOCK = 256  # units


def _parts(processor: object) -> int:
    """Count the parts that a post-processor puts around a text, or two."""
    step = _object(processor)
    if step.get("type") == "Sequence" and isinstance(step.get("processors"), list):
        return sum(map(_parts, step["processors"]))
    lists = [step.get("single"), step.get("pair")]
    lists += [_object(token).get("ids") for token in _object(step.get("special_tokens")).values()]
    return len([*chain.from_iterable(each for each in lists if isinstance(each, list))])


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
