"""Embed texts: the mean of the hidden states of all their tokens, scaled to length 1, as sentence-transformers does.

Reimers and Gurevych 2019. The special tokens count as tokens of a text.
"""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from bertjax.checkpoints.protocols import LanguageModel
from bertjax.checkpoints.trained import Model
from bertjax.errors import InputError
from bertjax.types import Array


def embed(model: Model, texts: Sequence[str], *, max_length: int = 0, batch_size: int = 32) -> Iterator[np.ndarray]:
    """Yield an embedding f32 [D] of length 1 for each text, in order.

    max_length: truncate texts to this number of tokens, special tokens included; with 0, raises InputError for texts
    longer than the model's position table, as for a max_length beyond it. Batches are padded to their longest text.
    """
    if model.encoder.max_length and max_length > model.encoder.max_length:
        raise InputError(f"max_length={max_length}, but the model has {model.encoder.max_length} positions: reduce it")
    limit = min(max_length or (1 << 31), model.encoder.max_length or (1 << 31))
    for start in range(0, len(texts), batch_size):
        rows = [_ids(model, text, max_length, limit) for text in texts[start : start + batch_size]]
        length = min(limit, -(-max(len(ids) for ids, _ in rows) // 32) * 32)  # few lengths, few compilations
        tokens = np.full((len(rows), length), model.text.vocabulary.pad, np.int32)
        mask, types = np.zeros_like(tokens), np.zeros_like(tokens)
        for row, (ids, segments) in enumerate(rows):
            tokens[row, : len(ids)], types[row, : len(ids)], mask[row, : len(ids)] = ids, segments, 1
        batch = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask), "types": jnp.asarray(types)}
        yield from np.asarray(mean_pooled(model.encode(batch), batch["mask"]))


def mean_pooled(x_BLD: Array, mask_BL: Array) -> Array:
    """Return the mean state of each row's tokens, f32 [B, D] scaled to length 1; zeros for rows of padding."""
    x_BLD = jnp.where(mask_BL[..., None] > 0, x_BLD.astype(jnp.float32), 0)
    mean_BD = x_BLD.sum(1) / jnp.maximum((mask_BL > 0).sum(1, keepdims=True), 1)
    return mean_BD / jnp.maximum(jnp.linalg.norm(mean_BD, axis=-1, keepdims=True), 1e-12)


def _ids(model: Model, text: str, max_length: int, limit: int) -> tuple[list[int], list[int]]:
    """Encode a text with its special tokens: ids and segments."""
    v = model.text.vocabulary
    # A discriminator does not define its special tokens: they are those of its generator.
    before, after = (
        model.objective.special_tokens(v)
        if isinstance(model.objective, LanguageModel)
        else ([(v.cls, 0)], [(v.sep, 0)])
    )
    room = limit - len(before) - len(after)
    if room < 0:
        raise InputError(
            f"{limit} tokens have no room for the special tokens of a text: allow at least {len(before) + len(after)}"
        )
    (ids,) = model.text.ids([text])
    if len(ids) > room and not max_length:
        raise InputError(
            f"{len(ids) + len(before) + len(after)} tokens exceed the {limit} positions of the model: truncate with "
            f"--max-length {limit}, or shorten {text[:60]!r}…"
        )
    framed = [*before, *((index, 0) for index in ids[:room]), *after]
    return [index for index, _ in framed], [segment for _, segment in framed]
