"""Positions without a learned table: rotary embeddings, linear biases on scores (ALiBi), fixed sinusoids.

An encoder holds one of the dataclasses; the functions are pure. Positions count from the start of each document of a
row.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from bertjax.fields import check_fields
from bertjax.types import Array

Turn = tuple[Array, Array]
"""Cosines and sines of the angles by which queries and keys are rotated: f32 [B, L, K / 2] each."""


@dataclass(frozen=True)
class Rotary:
    """Rotary embeddings: rotate queries and keys by angles proportional to their position (Su et al. 2021).

    Raises ValueError where a theta is not above 0.

    Attributes:
        theta: the longest wavelength is about 2π·theta positions
        local_theta: of the layers with local attention, if another one
    """

    theta: float = 10_000.0
    local_theta: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("theta", "local_theta"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")


@dataclass(frozen=True)
class Alibi:
    """ALiBi: lower scores in proportion to the distance of query and key (Press et al. 2022), to both sides."""


@dataclass(frozen=True)
class ScaledSinusoids:
    """Sinusoids times one learned scale, added to the embeddings (Hua et al. 2022; cramming embeddings.py)."""


Positions = Rotary | Alibi | ScaledSinusoids


def turns(positions_BL: Array, width: int, theta: float) -> Turn:
    """Return the angles of all pairs of a head of `width`: position · theta^(-2i / width)."""
    frequencies = theta ** -(np.arange(0, width, 2) / width)
    angles_BLK = positions_BL[..., None] * jnp.asarray(frequencies, jnp.float32)[None, None]
    return jnp.cos(angles_BLK), jnp.sin(angles_BLK)


def rotate(x_BLHK: Array, turn: Turn) -> Array:
    """Rotate the pairs (x_i, x_{i + K/2}), in float32; released NeoBERT weights pair neighbours instead."""
    cos, sin = (each[:, :, None] for each in turn)
    first, second = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BLHK.dtype)


def alibi_slopes(H: int) -> np.ndarray:
    """Return the slope of each head: f64 [H], 2^(-8h / H) for h from 1.

    If H is no power of two: the slopes of the power below, then every second one of the power above, as in the
    published code of ALiBi and of MosaicBERT.
    """
    below = 2 ** int(math.log2(H))
    slopes = 2.0 ** (-8 * np.arange(1, below + 1) / below)
    between = 2.0 ** (-8 * np.arange(1, 2 * below + 1, 2) / (2 * below))
    return np.concatenate([slopes, between])[:H]


def alibi(H: int, positions_BL: Array) -> Array:
    """Return the biases of rows, f32 [B, H, L, L], by the distance of two positions.

    One row of positions, 0 … L - 1, serves all rows: within a document, distance in the row is distance in it.
    """
    positions_BL = positions_BL.astype(jnp.float32)
    distance_BLM = jnp.abs(positions_BL[:, :, None] - positions_BL[:, None, :])
    return -jnp.asarray(alibi_slopes(H), jnp.float32)[None, :, None, None] * distance_BLM[:, None]


def sinusoids(positions_BL: Array, D: int) -> Array:
    """Return sines at even and cosines at odd places, f32 [B, L, D], of wavelengths from 2π to 2π·10000."""
    cos, sin = turns(positions_BL, D, 10_000.0)
    return jnp.stack([sin, cos], axis=-1).reshape(*positions_BL.shape, D)
