"""Check that a batch of pre-training has prediction targets, and about as many as its recipe asks for."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from bertjax.errors import InputError
from bertjax.types import Mean

FEWEST = 0.5
"""The least fraction of the targets that a recipe asks for, below which a run trains on another task than it."""

_REASON = (
    "words (or n-grams) are longer than the tokens to choose, so none fits: choose single tokens (unit=tokens), a "
    "higher rate, longer rows, or a vocabulary that divides this text into words"
)


@runtime_checkable
class ExpectsTargets(Protocol):
    """Protocol for an objective whose recipe says how many tokens of a batch are prediction targets."""

    def expected_targets(self, rows: int, length: int, real_tokens: float) -> Mapping[str, float]:
        """Return the number of targets that the recipe asks for, by the metric whose weight counts them.

        rows, length: the shape (B, L) of the batch. real_tokens: its tokens without padding.
        """
        ...


def check_targets(step: int, objective: Any, metrics: Mapping[str, Mean], shape: tuple[int, int]) -> None:
    """Raise InputError if no token of the batch of a step is a target, which would train at a loss of 0."""
    for name in _expected(objective, metrics, shape):
        if float(metrics[name].weight) == 0:
            raise InputError(f"no token of the batch of step {step} is a target of {name}: {_REASON}")


def few_targets(objective: Any, metrics: Mapping[str, Mean], shape: tuple[int, int]) -> str | None:
    """Return a warning if a batch of this shape (B, L) has fewer than half of the targets that its recipe asks for."""
    for name, wanted in _expected(objective, metrics, shape).items():
        found = float(metrics[name].weight)
        if found < FEWEST * wanted:
            return (
                f"warning: {found:,.0f} tokens of the first batch are targets, {found / wanted:.0%} of the "
                f"{wanted:,.0f} that the recipe wants: {_REASON}"
            )
    return None


def _expected(objective: Any, metrics: Mapping[str, Mean], shape: tuple[int, int]) -> Mapping[str, float]:
    """Return the expected targets of an objective, or of the one that it wraps; none where it expects none."""
    while not isinstance(objective, ExpectsTargets):
        if not hasattr(objective, "objective"):
            return {}
        objective = objective.objective
    return objective.expected_targets(*shape, float(metrics["tokens/real"].sum))
