"""A batch of texts for a trained model."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bertjax.data.masked_text import reading_masks
from bertjax.data.templates import Framed, Templates, framed
from bertjax.data.tokenizer import Tokenizer
from bertjax.errors import InputError
from bertjax.texts import several_or_pairs
from bertjax.types import Batch


def batch_of(
    texts: str | Sequence[str | tuple[str, str]],
    tokenizer: Tokenizer,
    templates: Templates,
    most: int | None,
    length: int | None,
) -> Batch:
    """Return tokens, mask and types i32 [B, L] of texts or pairs with their special tokens, padded to `length`.

    most: the number of positions of the model, None where rows may be of any length. Raises InputError for no text, and
    for rows longer than these.
    """
    given = several_or_pairs(texts)
    if not given:
        raise InputError("there is no text to make a batch of: give one, or a list of them")
    read = reading_masks(tokenizer)

    def row(number: int, text: Any) -> Framed:
        parts = (text,) if isinstance(text, str) else text
        if not 1 <= len(parts) <= 2:
            raise InputError(f"text {number} has {len(parts)} parts: give one text or a pair")
        template = templates.text if len(parts) == 1 else templates.pair
        return framed(template, tokenizer.vocabulary, *map(read, parts))

    rows = [row(number, text) for number, text in enumerate(given, 1)]
    longest = max(range(len(rows)), key=lambda index: len(rows[index].tokens))
    size = len(rows[longest].tokens)
    limits = {f"length={length}": length, f"the {most} positions of the model": most}
    for name, limit in limits.items():
        if limit is not None and max(size, length or 0) > limit:
            raise InputError(f"text {longest + 1} has {size} tokens, more than {name}: shorten {given[longest]!r:.60}…")
    L = length or size
    tokens = np.full((len(rows), L), tokenizer.vocabulary.pad, np.int32)
    mask, types = np.zeros_like(tokens), np.zeros_like(tokens)
    for index, each in enumerate(rows):
        n = len(each.tokens)
        place = slice(L - n, L) if templates.left else slice(0, n)
        tokens[index, place], types[index, place], mask[index, place] = each.tokens, each.types, 1
    return {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask), "types": jnp.asarray(types)}
