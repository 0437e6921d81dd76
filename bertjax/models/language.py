"""What an objective that predicts words asks of an encoder, and how it runs one."""

from typing import Any, Protocol

import flax.linen as nn

from bertjax.models.layers import Initializer
from bertjax.models.perturb import changed_embeddings
from bertjax.sharding.collectives import gather_table
from bertjax.types import Array, Batch, Params


class LanguageEncoder(Protocol):
    """What masked LM asks of an encoder: a Linen module that has these besides."""

    V: int
    D: int
    initializer: Initializer
    dtype: str

    @property
    def init(self) -> Any:
        """As of every Linen module."""
        ...

    @property
    def apply(self) -> Any:
        """As of every Linen module."""
        ...

    def language_head(self) -> nn.Module:
        """Make the head that guesses words: called on x_BPD and the word table, it returns logits_BPV."""
        ...

    def hidden(
        self,
        tokens_BL: Array,
        mask_BL: Array,
        types_BL: Array | None = None,
        positions_BP: Array | None = None,
        *,
        train: bool = False,
    ) -> tuple[Array, Array]:
        """Return x_BLD, and x_BPD to guess the words at `positions_BP` from (at all positions without)."""
        ...


def hidden(
    encoder: LanguageEncoder,
    params: Params,
    batch: Batch,
    tokens_BL: Array,
    positions_BP: Array | None,
    delta: Array | None = None,
    **options: Any,
) -> tuple[Array, Array]:
    """Run `encoder.hidden` with its part of `params`, on these tokens instead of the batch's.

    delta: what changes their embeddings, see `changed_embeddings`.
    """
    inputs = (tokens_BL, batch["mask"], batch.get("types"), positions_BP)
    with changed_embeddings(delta):
        states: tuple[Array, Array] = encoder.apply({"params": params["encoder"]}, *inputs, **options, method="hidden")
    return states


def word_table(params: Params) -> Array:
    """Find the word table [V, E] in an encoder's parameters: a tied head multiplies by it."""
    return gather_table(params["embeddings"]["word"]["table"], "embeddings/word/table")
