"""Long texts in windows: how the logits of the windows of a text become those of the text."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, TypedDict

import numpy as np

Pool = Callable[[np.ndarray], np.ndarray]
"""Maps the logits of the windows of a text [W, C] to those of the text [C]."""


class Windows(TypedDict):
    """How a model reads long texts: its windows' tokens, those between their starts, and what joins their logits."""

    pool: Literal["mean", "maximum"]
    length: int
    stride: int


def mean(logits_WC: np.ndarray) -> np.ndarray:
    """Return the mean over windows."""
    return np.asarray(logits_WC.mean(0))


def maximum(logits_WC: np.ndarray) -> np.ndarray:
    """Return the maximum over windows, of each class by itself."""
    return np.asarray(logits_WC.max(0))


POOLS: dict[str, Pool] = {"mean": mean, "maximum": maximum}


def pooled(logits_RC: np.ndarray, example_of_row: np.ndarray, pool: Pool) -> np.ndarray:
    """Return the logits of examples [examples, C]. example_of_row: in order."""
    bounds = np.flatnonzero(np.diff(example_of_row, prepend=-1, append=-1))
    return np.stack([pool(logits_RC[begin:end]) for begin, end in pairwise(bounds.tolist())])
