"""The protocol of an encoder for language modelling, and how objectives call one."""

from inspect import signature
from typing import Any, Protocol

import flax.linen as nn

from bertjax.inputs import check_positions, inputs_of, require_params
from bertjax.models.layers import Initializer, apply
from bertjax.models.perturb import perturbed_embeddings
from bertjax.sharding.collectives import gather_table
from bertjax.types import Array, Batch, Key, Params


class LanguageEncoder(Protocol):
    """Protocol for an encoder that masked LM can train: a Linen module with these members."""

    V: int
    D: int
    initializer: Initializer
    dtype: str

    @property
    def init(self) -> Any:
        """Linen's own."""
        ...

    @property
    def apply(self) -> Any:
        """Linen's own."""
        ...

    def language_head(self) -> nn.Module:
        """Return the head that predicts ids, a `heads.LanguageHead`."""
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
        """Return x_BLD, and the input x_BPD of the language head at `positions_BP`, or at every position if None."""
        ...


def takes_visible(encoder: Any) -> bool:
    """Return whether the `hidden` of an encoder takes `visible_BLM`, an attention mask in place of the documents'."""
    return "visible_BLM" in signature(encoder.hidden).parameters


def hidden(
    encoder: LanguageEncoder,
    params: Params,
    batch: Batch,
    tokens_BL: Array | None,
    positions_BP: Array | None,
    delta: Array | None = None,
    **options: Any,
) -> tuple[Array, Array]:
    """Apply `encoder.hidden` with params["encoder"] to `tokens_BL`, which replace the tokens of the batch if given.

    delta: a perturbation of their embeddings, see `perturbed_embeddings`.
    """
    if tokens_BL is not None:
        batch = {**batch, "tokens": tokens_BL}
    inputs = (*inputs_of(encoder, batch), positions_BP)
    require_params(params, "encoder")
    if positions_BP is not None:
        check_positions(positions_BP, batch)
    with perturbed_embeddings(delta):
        states: tuple[Array, Array] = encoder.apply({"params": params["encoder"]}, *inputs, **options, method="hidden")
    return states


def encode(encoder: Any, params: Params, batch: Batch, **options: Any) -> Array:
    """Apply an encoder with params["encoder"] to the tokens of a batch as they are: x_BLD."""
    inputs = inputs_of(encoder, batch)
    require_params(params, "encoder")
    return apply(encoder, params["encoder"], *inputs, **options)


def initialised(encoder: Any, rng: Key, batch: Batch) -> Params:
    """Initialise the parameters of an encoder; only the shapes and dtypes of `batch` matter."""
    params: Params = encoder.init(rng, *inputs_of(encoder, batch))["params"]
    return params


def word_table(params: Params) -> Array:
    """Return the word table [V, E] of an encoder's parameters, gathered from its devices."""
    return gather_table(params["embeddings"]["word"]["table"], "embeddings/word/table")
