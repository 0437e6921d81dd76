"""Derive every random draw from (seed, purpose, step), so that nothing random is ever stored.

There are two generators. JAX's own (threefry) draws parameters, masks and samples. Dropout uses `hash_bits`, a counter
hash: it costs a few integer operations that fuse with their neighbours, is rematerialised rather than saved for the
backward pass, and depends on an element's global index alone, so every mesh and back end draws the same.
"""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bertjax.sharding.collectives import all_rows, first_row
from bertjax.types import Array, Batch, Key


def stream(seed: int, purpose: str) -> Key:
    """Return the key of an independent stream; that of a step is `jax.random.fold_in(stream(seed, "train"), step)`."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def row_keys(rng: Key, batch: Batch) -> Key:
    """Return a key for each row [B], by the number of its example, or by its index in the batch if it has none.

    With `example` in the batch the draws of a row do not depend on the other rows.
    """
    rows = len(batch["tokens"])
    number_B = batch.get("example", jnp.arange(rows, dtype=jnp.uint32) + jnp.uint32(first_row(rows)))
    return jax.vmap(lambda number: jax.random.fold_in(rng, number))(number_B)


class GlobalRows(NamedTuple):
    """Where the rows that a loss sees stand in the global batch of their step."""

    key: Key  # of the step, the same for all rows of the global batch
    number_B: Array  # u32: 0 .. size - 1
    size: Array  # u32 []: rows of the global batch, those of padding included


def global_rows(rng: Key, batch: Batch) -> GlobalRows:
    """Return the numbers of the rows of `batch` in the global batch, the number of its rows, and a key they share.

    For draws that depend on the whole batch. They are the same on every mesh and, unlike those from `rng` itself, under
    accumulation, where `batch` is a micro-batch with the arrays that `with_global_rows` added.
    """
    if "global_row" in batch:
        return GlobalRows(batch["global_key"][0], batch["global_row"], batch["global_rows"][0])
    rows = len(batch["tokens"])
    number_B = jnp.arange(rows, dtype=jnp.uint32) + jnp.uint32(first_row(rows))
    return GlobalRows(rng, number_B, jnp.uint32(all_rows(rows)))


def with_global_rows(rng: Key, batch: Batch) -> Batch:
    """Add the result of `global_rows` to every row of a batch, for use in its micro-batches."""
    key, number_B, size = global_rows(rng, batch)
    rows = number_B.shape
    whole = {"global_row": number_B, "global_rows": jnp.broadcast_to(size, rows)}
    return dict(batch) | whole | {"global_key": jnp.broadcast_to(key, rows)}


def stratified(rng: Key, batch: Batch) -> Array:
    """Return f32 [B] in [0, 1): (u + i / B) mod 1 for row i of the B rows of the global batch, with one uniform u.

    Each number is uniform, and together they are spread evenly, which lowers the variance of a batch (Kingma et al.
    2021, "Variational diffusion models", appendix I.1).
    """
    key, number_B, size = global_rows(rng, batch)
    return (jax.random.uniform(key) + number_B.astype(jnp.float32) / size.astype(jnp.float32)) % 1


_TIMES = zlib.crc32(b"antithetic times")


def antithetic(rng: Key, batch: Batch) -> Array:
    """Return f32 [B] in [0, 1): one number of each of B/2 strata for the even rows, and 1 minus it for the row after.

    So each pair of rows, and less exactly each run and each stride of rows, has a mean of 1/2: a replica's rows, or
    those of a micro-batch, are spread as the whole batch is. Strata are visited in steps of about the golden section.
    One uniform number shifts all of them, which therefore are uniform each (Kingma et al. 2021 as in `stratified`).
    """
    key, number_B, size = global_rows(rng, batch)
    strata = (size + 1) // 2

    def steps_coprime(step: Array) -> Array:
        return jnp.gcd(step, strata) == 1

    golden = jnp.maximum(jnp.round(strata.astype(jnp.float32) * 0.618034), 1).astype(jnp.uint32)
    step = jax.lax.while_loop(lambda step: ~steps_coprime(step), lambda step: step + 1, golden)
    place_B = number_B // 2 * step % strata
    shift = jax.random.uniform(jax.random.fold_in(key, _TIMES))
    time_B = (shift + place_B.astype(jnp.float32) / strata.astype(jnp.float32)) % 1
    return jnp.where(number_B % 2 == 0, time_B, (1 - time_B) % 1)


def unit_interval(bits: Array) -> Array:
    """Convert 32 random bits to f32, uniform over [0, 1)."""
    return (bits >> 8).astype(jnp.float32) * 2.0**-24


def hash_bits(rng: Key, shape: tuple[int, ...], data: Array | int = 0, first: Array | int = 0) -> Array:
    """Draw 32 random bits for each element of `shape`: u32, from `rng`, the element's index and its u32 `data`.

    first: the index of the first row, where `shape` is part of a larger array.
    The leading axis is hashed separately: a global batch of over 2^32 elements repeats nothing, and no two rows are
    shifted copies of each other.
    Two rounds of the 32-bit finaliser of MurmurHash3, keyed by the two words of `rng`; a bijection of `data`.
    """
    word_0, word_1 = key_words(rng)
    row = finalise(jax.lax.broadcasted_iota(jnp.uint32, shape, 0) + (word_0 + jnp.uint32(first)))
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in range(len(shape) - 1, 0, -1):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return finalise(finalise(index ^ word_1) ^ row ^ data)


def key_words(rng: Key) -> Array:
    """Return the two words of a key that `hash_bits` uses: u32 [2]."""
    return jax.random.key_data(rng).astype(jnp.uint32)[..., -2:]


def finalise(x: Array) -> Array:
    """Mix the bits of each u32 bijectively: the 32-bit finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
