"""Check the arrays of a batch before an encoder or an objective reads them.

Names, shapes and dtypes are checked wherever a program is traced. Values are checked only where they are known, outside
`jax.jit`, so that no compiled program pays for it: an id beyond a table would silently be another one.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.errors import InputError
from bertjax.fields import with_article
from bertjax.types import Array, Batch, Key, Params

_OTHER_NAMES = {"tokens": "input_ids", "mask": "attention_mask"}  # in transformers


def inputs_of(encoder: Any, batch: Batch) -> tuple[Array, Array, Array | None]:
    """Return tokens, mask and, where given, types of a batch of rows, checked against the tables of an encoder.

    Raises InputError for an array that is missing, has another shape or dtype, or ids without a row in their table.
    """
    require(batch, "tokens", "mask")
    tokens, mask, types = batch["tokens"], batch["mask"], batch.get("types")
    check_rows(encoder, tokens, mask, types)
    return tokens, mask, types


def check_draw(rng: Key, batch: Batch) -> None:
    """Raise InputError where a corruption cannot read its key or its batch."""
    check_key(rng)
    require(batch, "tokens", "mask")
    check_shapes(batch["tokens"], batch["mask"])


def check_step(params: Params, parts: tuple[str, ...], batch: Batch, rng: Key, *encoders: Any) -> None:
    """Raise InputError where the arguments of a loss do not fit the encoders that it trains.

    parts: the topmost names of the parameters.
    """
    check_key(rng)
    require_params(params, *parts)
    for encoder in encoders:
        inputs_of(encoder, batch)


def check_rows(encoder: Any, tokens: Array, mask: Array, types: Array | None) -> None:
    """Raise InputError where the inputs of an encoder do not fit together, or have ids beyond its tables."""
    check_shapes(tokens, mask, types)
    check_ids("tokens", tokens, encoder.V, f"the vocabulary of the encoder has V={encoder.V} ids")
    check_ids("mask", mask, None, "it is 0 at padding, and 1 or the number of the document elsewhere")
    rows = getattr(encoder, "types", 0)
    if types is not None and rows:
        check_ids("types", types, rows, f"the segment table of the encoder has {rows} rows, types={rows}")


def check_shapes(tokens: Array, mask: Array, types: Array | None = None) -> None:
    """Raise InputError where arrays of a batch are not of integers, [B, L] each."""
    _check_array("tokens", tokens)
    if tokens.ndim != 2:
        remedy = ": of one row give tokens[None]" if tokens.ndim == 1 else ""
        raise InputError(f"tokens has shape {tokens.shape}, not two axes, rows and positions [B, L]{remedy}")
    for name, array in (("mask", mask), ("types", types)):
        if array is None and name == "types":
            continue
        _check_array(name, array)
        assert array is not None
        if array.shape != tokens.shape:
            raise InputError(f"{name} has shape {array.shape}, tokens {tokens.shape}: give one number for each token")


def check_positions(positions_BP: Array, batch: Batch) -> None:
    """Raise InputError where positions are not i32 [B, P], each within the rows of the batch."""
    _check_array("positions", positions_BP)
    require(batch, "tokens")
    B, L = batch["tokens"].shape
    if positions_BP.ndim != 2 or len(positions_BP) != B:
        raise InputError(f"positions has shape {positions_BP.shape}: give some for each of the {B} rows, [B, P]")
    check_ids("positions", positions_BP, L, f"rows have {L} tokens")


def require(batch: Batch, *names: str) -> None:
    """Raise InputError where a batch is no dict of arrays, or lacks an array."""
    if not isinstance(batch, Mapping):
        raise InputError(f"the batch is {_kind(batch)}: give a dict of arrays with tokens and mask")
    lacking = next((name for name in names if name not in batch), None)
    if lacking is None:
        return
    if _OTHER_NAMES[lacking] in batch:
        raise InputError(f"the batch has no {lacking}: give it its {_OTHER_NAMES[lacking]!r} under this name")
    remedy = ": jnp.ones_like(tokens) where no row is padded" if lacking == "mask" else ""
    has = f"only {', '.join(map(repr, batch))}" if batch else "it is empty"
    raise InputError(f"the batch has no {lacking}, {has}{remedy}")


def require_params(params: Params, *parts: str) -> None:
    """Raise InputError where parameters are not those of the model that reads them, by their topmost names."""
    if not isinstance(params, Mapping):
        raise InputError(f"params is {_kind(params)}: give the nested dict that `init` returns")
    for part in parts:
        if part not in params:
            has = ", ".join(map(repr, params)) or "nothing"
            raise InputError(f"params has no {part!r}, only {has}: give what `init` of this model returns")


def check_key(rng: Key) -> None:
    """Raise InputError where a random key is something else."""
    if isinstance(rng, jax.Array) and (jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) or rng.dtype == jnp.uint32):
        if rng.ndim == (rng.dtype == jnp.uint32):  # of the older keys one is a row of words
            return
        raise InputError(f"rng has shape {rng.shape}, not one key: give one of them, such as rng[0]")
    shown = repr(rng) if isinstance(rng, int) else _kind(rng)
    raise InputError(f"rng is {shown}, not a random key: give jax.random.key({rng if isinstance(rng, int) else 0})")


def check_ids(name: str, ids: Array, rows: int | None, reason: str, *, lowest: int = 0) -> None:
    """Raise InputError where a value that is known now is below `lowest`, or not below `rows`."""
    known = known_values(ids)
    if known is None or not known.size:
        return
    least, most = int(known.min()), int(known.max())
    if least < lowest or (rows is not None and most >= rows):
        wrong = least if least < lowest else most
        raise InputError(f"{name} holds {wrong}: {reason}")


def known_values(array: Any) -> np.ndarray | None:
    """Return the values of an array, or None while a program is traced, or where other processes hold a part."""
    if isinstance(array, jax.core.Tracer) or not getattr(array, "is_fully_addressable", True):
        return None
    return np.asarray(array)


def _kind(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray):
        return "an array"
    return "None" if value is None else with_article(type(value).__name__)


def _check_array(name: str, array: Any) -> None:
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        raise InputError(f"{name} is {_kind(array)}, not an array: give jnp.asarray of its numbers")
    if not (jnp.issubdtype(array.dtype, jnp.integer) or (name == "mask" and array.dtype == bool)):
        raise InputError(f"{name} has dtype {array.dtype}, not int32: give {name}.astype(jnp.int32)")
