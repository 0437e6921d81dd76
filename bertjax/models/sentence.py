"""Sentence embeddings: hidden states pooled to one vector a text, and the layers after the pooling.

Reimers and Gurevych 2019; the modules Pooling, Dense, LayerNorm and Normalize of sentence-transformers, whose code
decides where the paper does not. Computed in float32.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.models.layers import Activation, Dense, TruncatedNormal
from bertjax.types import Array, Params

SENTENCE = "sentence"
"""The name of the head among the parameters of a model."""

Pooling = Callable[[Array, Array], Array]
"""Hidden states x_BLD and the number of each token in its row, from 1; 0 for tokens that are left out -> [B, D]."""


def cls_token(x_BLD: Array, number_BL: Array) -> Array:
    """Return the state of the first token."""
    return _states_at(x_BLD, jnp.argmax(number_BL > 0, axis=1))


def last_token(x_BLD: Array, number_BL: Array) -> Array:
    """Return the state of the last token."""
    return _states_at(x_BLD, jnp.argmax(number_BL, axis=1))


def max_tokens(x_BLD: Array, number_BL: Array) -> Array:
    """Return the maximum of all tokens in each dimension."""
    return jnp.where(number_BL[..., None] > 0, x_BLD, -jnp.inf).max(1)


def mean_tokens(x_BLD: Array, number_BL: Array) -> Array:
    """Return the mean of all tokens: Σₙ xₙ / N."""
    kept_BL = (number_BL > 0).astype(x_BLD.dtype)
    return _weighted_sum(x_BLD, kept_BL) / jnp.maximum(kept_BL.sum(1, keepdims=True), 1e-9)


def mean_sqrt_length(x_BLD: Array, number_BL: Array) -> Array:
    """Return the sum of all tokens by the root of their number: Σₙ xₙ / √N."""
    kept_BL = (number_BL > 0).astype(x_BLD.dtype)
    return _weighted_sum(x_BLD, kept_BL) / jnp.sqrt(jnp.maximum(kept_BL.sum(1, keepdims=True), 1e-9))


def weighted_mean(x_BLD: Array, number_BL: Array) -> Array:
    """Return the mean of all tokens weighted by their number in the row: Σₙ n·xₙ / Σₙ n. Muennighoff 2022 (SGPT)."""
    weight_BL = number_BL.astype(x_BLD.dtype)
    return _weighted_sum(x_BLD, weight_BL) / jnp.maximum(weight_BL.sum(1, keepdims=True), 1e-9)


def _weighted_sum(x_BLD: Array, weight_BL: Array) -> Array:
    return (jnp.where(weight_BL[..., None] > 0, x_BLD, 0) * weight_BL[..., None]).sum(1)


def _states_at(x_BLD: Array, index_B: Array) -> Array:
    return jnp.take_along_axis(x_BLD, index_B[:, None, None], axis=1)[:, 0]


def identity(x: Array) -> Array:
    """Return x."""
    return x


def sigmoid(x: Array) -> Array:
    """Compute 1 / (1 + exp(-x))."""
    return jax.nn.sigmoid(x)


class Projection(nn.Module):
    """Apply a dense layer and an activation to vectors [B, inputs].

    residual: add the vector itself, through a dense layer without bias where the widths differ.
    """

    inputs: int
    outputs: int
    activation: Activation
    use_bias: bool = True
    residual: bool = False

    @nn.compact
    def __call__(self, x_BD: Array) -> Array:
        """Return vectors [B, outputs]."""
        widths = (self.inputs,), (self.outputs,), TruncatedNormal(0.02), "float32"
        y_BD = self.activation(Dense(*widths, self.use_bias, name="dense")(x_BD))
        if not self.residual:
            return y_BD
        return y_BD + (x_BD if self.inputs == self.outputs else Dense(*widths, False, name="residual")(x_BD))


class UnitLength(nn.Module):
    """Scale vectors [B, D] to length 1; those shorter than 1e-12 by 1e12."""

    def __call__(self, x_BD: Array) -> Array:
        """Return vectors [B, D]."""
        return x_BD / jnp.maximum(jnp.linalg.norm(x_BD, axis=-1, keepdims=True), 1e-12)


class SentenceEmbedding(nn.Module):
    """Compute a vector for each text from its hidden states; hold how the texts are to be read.

    pooling: one vector of each is concatenated. transforms: applied in order. width: the first dimensions that are
    kept, 0 for all. max_length: truncate texts to so many tokens, special tokens included; 0 for no limit but the
    model's positions. lowercase: lower-case texts before the tokenizer. prompts: prefixes of texts, by name.
    default_prompt: the name of the one that is used unless another is chosen, or "". include_prompt: whether the tokens
    of a prompt are pooled.
    """

    pooling: tuple[Pooling, ...] = (mean_tokens,)
    transforms: tuple[nn.Module, ...] = (UnitLength(),)
    width: int = 0
    max_length: int = 0
    lowercase: bool = False
    prompts: tuple[tuple[str, str], ...] = ()
    default_prompt: str = ""
    include_prompt: bool = True

    def __call__(self, x_BLD: Array, mask_BL: Array, prompt_length: int = 0) -> Array:
        """Return vectors f32 [B, D].

        prompt_length: the number of tokens of the prompt at the start of each row, which are left out if
        `include_prompt` is false.
        """
        number_BL = jnp.where(mask_BL > 0, jnp.cumsum(mask_BL > 0, axis=1), 0)
        if not self.include_prompt:
            number_BL = jnp.where(number_BL > prompt_length, number_BL, 0)
        x_BLD = x_BLD.astype(jnp.float32)
        x_BD = jnp.concatenate([pool(x_BLD, number_BL) for pool in self.pooling], axis=-1)
        for transform in self.transforms:
            x_BD = transform(x_BD)
        return x_BD[:, : self.width] if self.width else x_BD


def vector_width(head: SentenceEmbedding, D: int) -> int:
    """Return the number of dimensions of the vectors that a head computes from states of width D."""
    width = D * len(head.pooling)
    for transform in head.transforms:
        width = transform.outputs if isinstance(transform, Projection) else width
    return min(head.width or width, width)


def sentence_head(objective: Any, params: Params) -> tuple[SentenceEmbedding, Params]:
    """Return the head of a model for sentence embeddings and its parameters; the mean of length 1 if it has none."""
    head = getattr(objective, "heads", {}).get(SENTENCE)
    if head is None:
        return SentenceEmbedding(), {}
    return head, params.get("head", {}).get(SENTENCE, {})
