"""Protocols for optional methods of an objective: for inference with its model, and for a warm start."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from bertjax.data.tokenizer import Vocabulary
from bertjax.types import Array, Batch, Params


class Trained(Protocol):
    """Protocol for every trained model."""

    @property
    def encoder(self) -> Any:
        """The encoder that was trained."""
        ...

    def encode(self, params: Params, batch: Batch) -> Array:
        """Return hidden states [B, L, D]."""
        ...


@runtime_checkable
class LanguageModel(Trained, Protocol):
    """Protocol for a model with a language-model head."""

    def language_logits(self, params: Params, batch: Batch, positions_BP: Array | None = None) -> Array:
        """Return logits [B, P, V] at these positions, or at every position [B, L, V] if None."""
        ...

    def special_tokens(self, v: Vocabulary) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the special tokens before and after a text, as (id, segment)."""
        ...


@runtime_checkable
class InParts(Protocol):
    """Protocol for an objective that trains several models, as ELECTRA's."""

    def part(self, name: str, params: Params) -> tuple[Trained, Params]:
        """Return one of them alone, with its parameters."""
        ...


@runtime_checkable
class ForTask(Protocol):
    """Protocol for a model with the head of a task."""

    def task_logits(self, params: Params, batch: Batch) -> Array:
        """Return the logits of its task head for a batch."""
        ...


@runtime_checkable
class RestrictsAttention(Protocol):
    """Protocol for a model whose tokens do not attend to all of their document."""

    def seen(self, batch: Batch) -> dict[str, Array]:
        """Return the attention mask `visible_BLM` of a batch under this name, or nothing."""
        ...


@runtime_checkable
class Wrapping(Protocol):
    """Protocol for an objective that trains another one's parameters in its own way, as SiFT."""

    @property
    def objective(self) -> Trained:
        """The objective that serves the trained model."""
        ...


@runtime_checkable
class RemapsWarmStart(Protocol):
    """Protocol for an objective that is initialised from another model otherwise than by equal parameter names."""

    def remap_params(self, found: Params) -> Params:
        """Map the parameters of that model to initial parameters of its own."""
        ...


@runtime_checkable
class ReinitsTopLayers(Protocol):
    """Protocol for an objective that takes only the lower layers of the model that it is initialised from."""

    @property
    def renewed(self) -> int:
        """How many of the top layers are freshly initialised."""
        ...


def wrapped(objective: Any) -> Iterator[Any]:
    """Yield an objective, the one that it wraps, and so on."""
    yield objective
    while isinstance(objective, Wrapping):
        objective = objective.objective
        yield objective


def served(objective: Wrapping) -> Trained:
    """Return the innermost objective, which serves the trained model."""
    *_, innermost = wrapped(objective)
    return innermost
