"""Relative position scores for attention, in two forms without a gather.

The rotated form needs only matrix products, so it is cheap on TPU; the shifted one needs half the multiplications, and
copies instead. The terms of XLNet and DeBERTa differ in the function of distance.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.models.layers import aligned, recomputed
from bertjax.types import Array


class OfDistance(Protocol):
    """A fixed vector-valued function R of the distance between a query and a key, in two forms."""

    def table(self, distances: np.ndarray) -> np.ndarray:
        """Evaluate it: f32 [..., W] for distances [...]."""
        ...

    def waves(self, reach: int) -> tuple[np.ndarray, np.ndarray]:
        """Decompose it into waves, for distances up to `reach`: frequencies f64 [F] and coefficients f32 [2F, W].

        R(d) = [sin(d·frequencies), cos(d·frequencies)] @ coefficients.
        """
        ...


@dataclass(frozen=True)
class Sinusoids:
    """The encoding of Transformer-XL and XLNet: W/2 sines, then W/2 cosines, of distances clamped to ±`clamp`.

    zihangdai/xlnet modeling.py relative_positional_encoding. Frequencies fall from 1 to 1/10000.
    """

    width: int
    clamp: int | None = None

    def frequencies(self) -> np.ndarray:
        """Return the frequencies, f64 [W / 2]."""
        return 10000.0 ** -(np.arange(0, self.width, 2) / self.width)

    def table(self, distances: np.ndarray) -> np.ndarray:
        """See OfDistance.table."""
        if self.clamp is not None:
            distances = np.clip(distances, -self.clamp, self.clamp)
        angles = distances[..., None] * self.frequencies()
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)

    def waves(self, reach: int) -> tuple[np.ndarray, np.ndarray]:
        """See OfDistance.waves: its own, or where distances are clamped those of a Fourier series over all of them."""
        if self.clamp is None or self.clamp >= reach:
            return self.frequencies(), np.eye(self.width, dtype=np.float32)
        return fourier_series(self.table(np.arange(-reach, reach + 1)))


@dataclass(frozen=True)
class Mirrored:
    """A function of the negated distance, R(-d)."""

    function: OfDistance

    def table(self, distances: np.ndarray) -> np.ndarray:
        """See OfDistance.table."""
        return self.function.table(-distances)

    def waves(self, reach: int) -> tuple[np.ndarray, np.ndarray]:
        """See OfDistance.waves: sines change their sign."""
        frequencies, coefficients = self.function.waves(reach)
        sines, cosines = np.split(coefficients, 2)
        return frequencies, np.concatenate([-sines, cosines])


def fourier_series(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Fourier series of a table [2·reach + 1, W] over distances -reach .. reach, as OfDistance.waves."""
    period = len(table)
    reach = period // 2
    frequencies = 2 * np.pi * np.arange(reach + 1) / period
    angles = frequencies[:, None] * np.arange(-reach, reach + 1)
    weight = np.where(np.arange(reach + 1) == 0, 1, 2)[:, None] / period
    coefficients = np.concatenate([weight * np.sin(angles), weight * np.cos(angles)]) @ table.astype(np.float64)
    return frequencies, coefficients.astype(np.float32)


def rotated_scores(
    q_BLHK: Array, kernel_WHK: Array, function: OfDistance, positions_BL: Array | np.ndarray, memory: int, length: int,
    sign_B: Array | None,
) -> Array:  # fmt: skip
    """Score queries at any positions: q · (R(sign·(i - j)) kernel), f32 [B, H, L, memory + length].

    positions_BL: i32 in 0 .. length, the position of each query; or [L], static and the same in all rows. Keys are at
    -memory .. length. By the addition theorems of sine and cosine the factor of i multiplies the query and that of j is
    constant: only matrix products, no shift, no gather. It costs 2·H·W more multiplications for a query and key than a
    product of table and query, so it is the form for matrix units, and for queries at few positions.
    """
    waves = function.waves(memory + length - 1)
    turned = _turned(q_BLHK, kernel_WHK, waves, positions_BL, sign_B)
    keys = _sines_and_cosines(np.arange(-memory, length), waves[0], q_BLHK.dtype)
    return _summed("BHLF,MF->BHLM", turned, keys)


def rotated_key_scores(
    k_BMHK: Array, kernel_WHK: Array, function: OfDistance, positions_BL: Array | np.ndarray
) -> Array:
    """Score keys at 0 .. M by queries at any positions: k · (R(i - j) kernel), f32 [B, H, L, M].

    positions_BL: i32 in 0 .. M, the position of each query; or [L], static and the same in all rows. As
    `rotated_scores`, but the factor of j multiplies the key.
    """
    M = k_BMHK.shape[1]
    waves = Mirrored(function).waves(M - 1)
    turned = _turned(k_BMHK, kernel_WHK, waves, np.arange(M), None)
    queries = _sines_and_cosines(positions_BL, waves[0], k_BMHK.dtype)
    return _summed("BHMF,BLF->BHLM" if positions_BL.ndim == 2 else "BHMF,LF->BHLM", turned, queries)


_Pair = tuple[Array, Array]
"""The factors of the sines and those of the cosines: not concatenated, since that would be a copy."""


def _turned(
    q_BLHK: Array, kernel_WHK: Array, waves: tuple[np.ndarray, np.ndarray], positions_BL: Array | np.ndarray,
    sign_B: Array | None,
) -> _Pair:  # fmt: skip
    """Multiply queries by the kernel and rotate each wave by its angle at `positions_BL`: two of [B, H, L, F].

    These are the largest arrays of all; they are computed and saved in the compute dtype.
    """
    (frequencies, coefficients), dtype = waves, q_BLHK.dtype
    if not np.array_equal(coefficients, np.eye(len(coefficients))):
        kernel_WHK = jnp.einsum("FW,WHK->FHK", jnp.asarray(coefficients), kernel_WHK, precision="highest")
    sines, cosines = (jnp.einsum("BLHK,FHK->BHLF", q_BLHK, half.astype(dtype)) for half in jnp.split(kernel_WHK, 2))
    if sign_B is not None:
        sines *= sign_B[:, None, None, None].astype(dtype)
    sin, cos = (
        wave[:, None] if wave.ndim == 3 else aligned(wave, sines)
        for wave in _sines_and_cosines(positions_BL, frequencies, dtype)
    )
    return cosines * sin - sines * cos, sines * sin + cosines * cos


def _sines_and_cosines(positions: Array | np.ndarray, frequencies: np.ndarray, dtype: Any) -> _Pair:
    """Evaluate sines and cosines at positions [...]: two of [..., F]. Static positions are evaluated on the host."""
    if isinstance(positions, np.ndarray):
        angles = positions[..., None] * frequencies
        return jnp.asarray(np.sin(angles), dtype), jnp.asarray(np.cos(angles), dtype)
    angles = positions[..., None] * aligned(jnp.asarray(frequencies, jnp.float32), positions[..., None])
    return jnp.sin(angles).astype(dtype), jnp.cos(angles).astype(dtype)


def _summed(equation: str, turned: _Pair, others: _Pair) -> Array:
    sines, cosines = (
        jnp.einsum(equation, one, other, preferred_element_type=jnp.float32)
        for one, other in zip(turned, others, strict=True)
    )
    return sines + cosines


def shifted_scores(
    q_BLHK: Array, kernel_WHK: Array, function: OfDistance, memory: int, sign_B: Array | None, block: int = 64
) -> Array:
    """Score a whole row of queries, at 0 .. L: the same as `rotated_scores`, f32 [B, H, L, memory + L].

    In the product of queries and a table of all distances the wanted scores start one further left in each row.
    Reshaped to rows shorter by one, they are aligned. A block of queries needs few distances.
    """
    B, L, H, _ = q_BLHK.shape
    T = min(block, L)
    blocks, keys = -(-L // T), memory + L
    distances_R = memory + blocks * T - np.arange(blocks * T + keys)
    if sign_B is None:
        tables = function.table(distances_R)[None]
    else:  # a table for each direction side by side, and zeros in the query where the row goes the other way
        tables = np.stack([function.table(distances_R), function.table(-distances_R)])
        ahead = sign_B[:, None, None, None] > 0
        q_BLHK = jnp.concatenate([jnp.where(ahead, q_BLHK, 0), jnp.where(ahead, 0, q_BLHK)], axis=-1)
    table_RHK = jnp.einsum("SRW,WHK->RHSK", tables, kernel_WHK).reshape(len(distances_R), H, -1)
    q_BLHK = jnp.pad(q_BLHK, ((0, 0), (0, blocks * T - L), (0, 0), (0, 0)))
    scores = []
    for i in range(blocks):
        # Cast here, so that the gradient of a distance is summed over blocks in float32.
        window_RHK = table_RHK[(blocks - 1 - i) * T :][: keys + T].astype(q_BLHK.dtype)
        q_BTHK = q_BLHK[:, i * T : (i + 1) * T]
        x_BHTR = jnp.einsum("BTHK,RHK->BHTR", q_BTHK, window_RHK, preferred_element_type=jnp.float32)
        flat = x_BHTR.reshape(B, H, T * (keys + T))[..., T:]
        scores.append(flat.reshape(B, H, T, keys + T - 1)[..., :keys])
    return jnp.concatenate(scores, axis=2)[:, :, :L]


LONGEST = 1024
"""The longest row of a program that is exported for rows of any length."""


def unsized_scores(q_BLHK: Array, kernel_WHK: Array, function: OfDistance) -> Array:
    """Score a whole row of queries whose length L is symbolic, at most LONGEST: as `shifted_scores` without memory.

    The table of all distances up to LONGEST is a constant, of which the program takes the rows that it needs.
    """
    L = q_BLHK.shape[1]
    table_RW = jnp.asarray(function.table(np.arange(-LONGEST + 1, LONGEST)))
    table_RW = jnp.take(table_RW, jnp.arange(2 * L - 1) + (LONGEST - L), axis=0)
    table_RHK = jnp.einsum("RW,WHK->RHK", table_RW, kernel_WHK).astype(q_BLHK.dtype)
    x_BHLR = jnp.einsum("BLHK,RHK->BHLR", q_BLHK, table_RHK, preferred_element_type=jnp.float32)
    distance_LM = jnp.arange(L)[:, None] - jnp.arange(L)[None]
    return jnp.take_along_axis(x_BHLR, distance_LM[None, None] + (L - 1), axis=-1)


@partial(recomputed, static_argnums=(2, 3))
def relative_scores(q_BLHK: Array, kernel_WHK: Array, function: OfDistance, memory: int, sign_B: Array | None) -> Array:
    """Score queries at 0 .. L against keys at -memory .. L by their distance: f32 [B, H, L, memory + L].

    q · (R(sign·(i - j)) kernel); sign_B: -1 where a row is read backwards, else 1. Rotated on TPU, where matrix
    products are cheap and copies are not, shifted elsewhere. Both are linear in q and in kernel, so only these are
    saved.
    """
    L = q_BLHK.shape[1]
    if not isinstance(L, int):
        return unsized_scores(q_BLHK, kernel_WHK, function)

    def rotated(q_BLHK: Array, kernel_WHK: Array, sign_B: Array | None) -> Array:
        return rotated_scores(q_BLHK, kernel_WHK, function, np.arange(L), memory, L, sign_B)

    def shifted(q_BLHK: Array, kernel_WHK: Array, sign_B: Array | None) -> Array:
        return shifted_scores(q_BLHK, kernel_WHK, function, memory, sign_B)

    return cast(Array, jax.lax.platform_dependent(q_BLHK, kernel_WHK, sign_B, tpu=rotated, default=shifted))


@partial(recomputed, static_argnums=(2,))
def relative_key_scores(k_BMHK: Array, kernel_WHK: Array, function: OfDistance) -> Array:
    """Score keys by queries, both at 0 .. M, by their distance: k · (R(i - j) kernel), f32 [B, H, M, M], queries first.

    `relative_scores` with their roles exchanged. Shifting costs a transposition, rotating does not.
    """
    if not isinstance(k_BMHK.shape[1], int):
        return unsized_scores(k_BMHK, kernel_WHK, Mirrored(function)).swapaxes(2, 3)

    def rotated(k_BMHK: Array, kernel_WHK: Array) -> Array:
        return rotated_key_scores(k_BMHK, kernel_WHK, function, np.arange(k_BMHK.shape[1]))

    def shifted(k_BMHK: Array, kernel_WHK: Array) -> Array:
        return shifted_scores(k_BMHK, kernel_WHK, Mirrored(function), 0, None).swapaxes(2, 3)

    return cast(Array, jax.lax.platform_dependent(k_BMHK, kernel_WHK, tpu=rotated, default=shifted))
