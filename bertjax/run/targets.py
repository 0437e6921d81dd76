"""Check that a batch of pre-training has prediction targets, and about as many as its recipe asks for."""

from collections.abc import Mapping
from typing import Any

from bertjax.errors import InputError
from bertjax.types import Mean

FEWEST = 0.5
"""The least fraction of the targets that a recipe asks for, below which a run trains on another task than it."""

_LOSSES = ("loss/mlm", "loss/plm")
_REASON = (
    "words (or n-grams) are longer than the tokens to choose, so none fits: choose single tokens (unit=tokens), a "
    "higher rate, longer rows, or a vocabulary that divides this text into words"
)


def check_targets(step: int, metrics: Mapping[str, Mean]) -> None:
    """Raise InputError if no token of the batch of a step is a target, which would train at a loss of 0."""
    for name in _LOSSES:
        if name in metrics and float(metrics[name].weight) == 0:
            raise InputError(f"no token of the batch of step {step} is a target of {name}: {_REASON}")


def few_targets(objective: Any, metrics: Mapping[str, Mean], shape: tuple[int, int]) -> str | None:
    """Return a warning if a batch of this shape (B, L) has fewer than half of the targets that its recipe wants."""
    found = next((float(metrics[name].weight) for name in _LOSSES if name in metrics), None)
    wanted = _wanted(objective, metrics, shape)
    if found is None or wanted is None or found >= FEWEST * wanted:
        return None
    return (
        f"warning: {found:,.0f} tokens of the first batch are targets, {found / wanted:.0%} of the {wanted:,.0f} that "
        f"the recipe wants: {_REASON}"
    )


def _wanted(objective: Any, metrics: Mapping[str, Mean], shape: tuple[int, int]) -> float | None:
    """Count the targets that a batch should have, by its real tokens; None for objectives without such a recipe."""
    while hasattr(objective, "objective"):
        objective = objective.objective
    rows, length = shape
    permutation, masking = getattr(objective, "permutation", None), getattr(objective, "masking", None)
    if permutation is not None:
        return float(rows * permutation.targets)
    if masking is None:
        return None
    return min(masking.rate * float(metrics["tokens/real"].sum), float(rows * masking.slots(length)))
