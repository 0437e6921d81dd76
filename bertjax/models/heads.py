"""Heads: modules that map hidden states to logits."""

from typing import ClassVar, Literal, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp

from bertjax.models.layers import (
    Activation,
    Dense,
    Dropout,
    GlorotUniform,
    Initializer,
    Norm,
    add_bias,
    restarting_positions,
    states_at,
    tanh,
)
from bertjax.sharding.collectives import vocabulary_product
from bertjax.types import Array


@runtime_checkable
class LanguageHead(Protocol):
    """Protocol for a head that predicts ids: a Linen module of x_BPD and the word table [V, E] that returns logits_BPV.

    Code that has heads by name checks them against this protocol, since names are the objective's choice. Parameters
    with an axis of V are named `bias`, `decoder` or `decoder/…`, so that `rules.VOCABULARY` matches them.
    """

    V: int

    @property
    def tied(self) -> bool:
        """Whether it multiplies by the word table; else by a table of its own, `decoder`."""
        ...

    def __call__(self, x_BPD: Array, table_VE: Array) -> Array:
        """Return logits_BPV in the compute dtype."""
        ...


class MaskedLMHead(nn.Module):
    """Predict ids: dense D -> E, activation, norm, then a product with the word table and a bias.

    google-research/bert run_pretraining.py get_masked_lm_output; ALBERT's is the same with E < D, ModernBERT's has no
    bias in the dense layer and the norm, and may have none in the product. Untied it multiplies by a table of its own,
    `decoder` [V, E].
    """

    V: int
    D: int
    E: int
    activation: Activation
    norm_eps: float
    initializer: Initializer
    dtype: str
    transform_bias: bool = True
    norm_bias: bool = True
    tied: bool = True
    decoder_bias: bool = True

    @nn.compact
    def __call__(self, x_BPD: Array, table_VE: Array) -> Array:
        """Return logits_BPV in the compute dtype; reduce them in float32."""
        transform = Dense((self.D,), (self.E,), self.initializer, self.dtype, self.transform_bias, name="transform")
        x_BPE = self.activation(transform(x_BPD))
        x_BPE = Norm(self.E, self.norm_eps, use_bias=self.norm_bias, name="norm")(x_BPE)
        bias_V = self.param("bias", nn.initializers.zeros_init(), (self.V,)) if self.decoder_bias else None
        if not self.tied:
            table_VE = self.param("decoder", self.initializer, (self.V, self.E))
        logits_BPV = vocabulary_product(x_BPE, table_VE.astype(self.dtype))
        return logits_BPV if bias_V is None else add_bias(logits_BPV, bias_V)


class TiedHead(nn.Module):
    """Predict ids: a product with the word table and a bias, nothing between. zihangdai/xlnet modeling.py lm_loss.

    Crammed-BERT's has no bias, and so no parameters.
    """

    V: int
    dtype: str
    use_bias: bool = True
    tied: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x_BPD: Array, table_VD: Array) -> Array:
        """Return logits_BPV in the compute dtype; reduce them in float32."""
        logits_BPV = vocabulary_product(x_BPD, table_VD.astype(self.dtype))
        if not self.use_bias:
            return logits_BPV
        return add_bias(logits_BPV, self.param("bias", nn.initializers.zeros_init(), (self.V,)))


class UntiedHead(nn.Module):
    """Predict ids: a dense layer of its own with a bias; the word table is not used.

    NeoBERT, src/neobert/model/model.py; XLNet's lm_loss where it is not tied.
    """

    V: int
    D: int
    initializer: Initializer
    dtype: str
    tied: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x_BPD: Array, table_VD: Array) -> Array:
        """Return logits_BPV in the compute dtype; reduce them in float32."""
        kernel_DV, bias_V = _Decoder(self.V, self.D, self.initializer, name="decoder")()
        return add_bias(vocabulary_product(x_BPD.astype(self.dtype), kernel_DV.astype(self.dtype).T), bias_V)


class _Decoder(nn.Module):
    """Kernel and bias of a dense layer from hidden states to ids."""

    V: int
    D: int
    initializer: Initializer

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        kernel_DV = self.param("kernel", self.initializer, (self.D, self.V))
        return kernel_DV, self.param("bias", nn.initializers.zeros_init(), (self.V,))


class ReplacedHead(nn.Module):
    """Classify every token as original or replaced: dense and activation, then one logit, cast to float32.

    google-research/electra run_pretraining.py _get_discriminator_output; the last layer has TensorFlow's initialiser.
    """

    D: int
    activation: Activation
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, x_BLD: Array, mask_BL: Array | None = None) -> Array:
        """Return logits_BL in float32, of each token from its own hidden state; the mask is not used."""
        x_BLD = self.activation(Dense((self.D,), (self.D,), self.initializer, self.dtype, name="transform")(x_BLD))
        logits_BL1 = Dense((self.D,), (1,), GlorotUniform(), self.dtype, name="classifier")(x_BLD)
        return logits_BL1[..., 0].astype(jnp.float32)


class ReplacedInContextHead(nn.Module):
    """Classify every token as original or replaced, in the context of the first token of its document, [CLS].

    Sum of the two hidden states, norm, dense, activation, one logit.

    microsoft/DeBERTa apps/models/replaced_token_detection_model.py.
    """

    D: int
    activation: Activation
    norm_eps: float
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, x_BLD: Array, mask_BL: Array) -> Array:
        """Return logits_BL in float32."""
        firsts_BL = jnp.arange(mask_BL.shape[1])[None] - restarting_positions(mask_BL)
        # In float32, so that the gradient of [CLS], which a whole document reads, is summed in float32.
        y_BLD = x_BLD.astype(jnp.float32)
        x_BLD = (y_BLD + states_at(y_BLD, firsts_BL)).astype(x_BLD.dtype)
        x_BLD = Norm(self.D, self.norm_eps, name="norm")(x_BLD)
        x_BLD = self.activation(Dense((self.D,), (self.D,), self.initializer, self.dtype, name="transform")(x_BLD))
        logits_BL1 = Dense((self.D,), (1,), self.initializer, self.dtype, name="classifier")(x_BLD)
        return logits_BL1[..., 0].astype(jnp.float32)


class SequenceSummary(nn.Module):
    """Pool a row at its last position, where XLNet has <cls>: dense and tanh, then dropout.

    zihangdai/xlnet modeling.py summarize_sequence. Rows must be padded on their left.
    """

    D: int
    dropout: float
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, x_BLD: Array, *, train: bool = False) -> Array:
        """Return summary_BD."""
        summary_BD = jnp.tanh(Dense((self.D,), (self.D,), self.initializer, self.dtype, name="summary")(x_BLD[:, -1]))
        return Dropout(self.dropout)(summary_BD, train=train)


class Pooler(nn.Module):
    """Pool a row at one position: dense and activation, pooled_BD. google-research/bert modeling.py."""

    D: int
    initializer: Initializer
    dtype: str
    activation: Activation = tanh
    position: int = 0

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        dense = Dense((self.D,), (self.D,), self.initializer, self.dtype, name="pooler")
        return self.activation(dense(x_BLD[:, self.position]))


class PairHead(nn.Module):
    """Classify a pair of segments, or any row: BERT's pooler, then C logits in float32.

    google-research/bert modeling.py and run_pretraining.py get_next_sentence_output. Other families' classifiers have
    another activation; XLNet's reads the last position, so rows must be padded on their left. dropout: of the input of
    the classifier; input_dropout: of the input of the pooler (RoBERTa, ELECTRA).
    """

    D: int
    C: int
    initializer: Initializer
    dtype: str
    activation: Activation = tanh
    position: int = 0
    dropout: float = 0.0
    input_dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BLD: Array, *, train: bool = False) -> Array:
        x_BD = Dropout(self.input_dropout)(x_BLD[:, self.position], train=train)
        dense = Dense((self.D,), (self.D,), self.initializer, self.dtype, name="pooler")
        pooled_BD = Dropout(self.dropout)(self.activation(dense(x_BD)), train=train)
        logits_BC = Dense((self.D,), (self.C,), self.initializer, self.dtype, name="classifier")(pooled_BD)
        return logits_BC.astype(jnp.float32)


class TokenHead(nn.Module):
    """Classify every token by one dense layer: C logits in float32, for tags or the two ends of a span."""

    D: int
    C: int
    initializer: Initializer
    dtype: str
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BLD: Array, *, train: bool = False) -> Array:
        x_BLD = Dropout(self.dropout)(x_BLD, train=train)
        logits_BLC = Dense((self.D,), (self.C,), self.initializer, self.dtype, name="classifier")(x_BLD)
        return logits_BLC.astype(jnp.float32)


class TransformedHead(nn.Module):
    """Classify rows or tokens: dense, activation and norm, then C logits in float32. ModernBERT's, of any task.

    pooling: the first position of a row (cls), the mean over its tokens (mean), or no pooling, for tokens (none).
    """

    D: int
    C: int
    pooling: Literal["cls", "mean", "none"]
    activation: Activation
    norm_eps: float
    initializer: Initializer
    dtype: str
    transform_bias: bool = False
    norm_bias: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BLD: Array, mask_BL: Array, *, train: bool = False) -> Array:
        """Return logits_BC, or logits_BLC without pooling."""
        x = x_BLD
        if self.pooling == "cls":
            x = x_BLD[:, 0]
        if self.pooling == "mean":
            # Sum, count and quotient in float32: 301 is no bfloat16 number.
            real_BL1 = (mask_BL > 0)[..., None]
            sum_BD = jnp.where(real_BL1, x_BLD.astype(jnp.float32), 0).sum(1)
            x = (sum_BD / jnp.maximum(real_BL1.sum(1), 1)).astype(x_BLD.dtype)
        x = Dense((self.D,), (self.D,), self.initializer, self.dtype, self.transform_bias, name="transform")(x)
        x = Norm(self.D, self.norm_eps, use_bias=self.norm_bias, name="norm")(self.activation(x))
        x = Dropout(self.dropout)(x, train=train)
        return Dense((self.D,), (self.C,), self.initializer, self.dtype, name="classifier")(x).astype(jnp.float32)
