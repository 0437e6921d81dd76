"""The conditional span heads of XLNet, ALBERT and ELECTRA: the end of an answer is chosen for a given start.

    start_l = w·x_l                        end_l|s = v·act([x_l; x_s] W + b), but ELECTRA with a norm before v
    unanswerable = u·act([Σ_l p(start = l) x_l; x_cls] W' + b')

zihangdai/xlnet function_builder.py get_qa_outputs; google-research/albert squad_utils.py create_v2_model, the same but
for the place of the classification token; google-research/electra finetune/qa/qa_tasks.py. In training s is the first
token of the answer, afterwards each of the most likely starts. Only the context and the classification token can start
or end an answer. Where we deviate: ELECTRA joins its vectors the other way round, [x_s; x_l] and [x_cls; Σ p x], on
which no result depends.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.models import layers
from bertjax.models.layers import Activation, Dense, Dropout, GlorotUniform, Initializer, Norm, aligned, states_at
from bertjax.types import Array

HIDDEN = -1e9
"""The logit of a masked choice: finite, so that no gradient becomes NaN."""


class Beams(NamedTuple):
    """The most likely starts [B, S], and for each the most likely ends [B, S, T]: positions and log probabilities.

    unanswerable_B: the logit of there being no answer.
    """

    starts_BS: Array
    start_scores_BS: Array
    ends_BST: Array
    end_scores_BST: Array
    unanswerable_B: Array


class SpanLogits(NamedTuple):
    """Logits of starts [B, L], of ends where the start is given [B, L], and of there being no answer [B]."""

    start_BL: Array
    end_BL: Array
    unanswerable_B: Array


class BeamSpanHead(nn.Module):
    """Predict starts, then an end for each start; see `xlnet_span_head` and `electra_span_head`.

    position: of the classification token. starts, ends: sizes of the beams in prediction. norm_eps: None for no norm.
    """

    D: int
    F: int
    activation: Activation
    norm_eps: float | None
    initializer: Initializer
    dtype: str
    position: int = 0
    starts: int = 20
    ends: int = 20
    answer_bias: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x_BLD: Array, context_BL: Array, starts_B: Array | None = None, *, train: bool = False
    ) -> SpanLogits | Beams:
        """Return the logits given the starts, or the beams if None."""
        allowed_BL = context_BL.astype(bool).at[:, self.position].set(True)
        start_BL = _only(allowed_BL, self._dense(self.D, 1, "start")(x_BLD)[..., 0])
        chances_BL = jax.nn.softmax(start_BL, axis=-1).astype(x_BLD.dtype)
        expected_BD = jnp.einsum("BL,BLD->BD", chances_BL, x_BLD)
        h_BF = jnp.concatenate([expected_BD, x_BLD[:, self.position]], axis=-1)
        h_BF = self.activation(self._dense(2 * self.D, self.F, "answer_hidden")(h_BF))
        h_BF = Dropout(self.dropout)(h_BF, train=train)
        unanswerable_B = self._dense(self.F, 1, "answer", self.answer_bias)(h_BF)[..., 0].astype(jnp.float32)
        if starts_B is not None:
            end_BSL = self._ends(x_BLD, starts_B[:, None], allowed_BL)
            return SpanLogits(start_BL, end_BSL[:, 0], unanswerable_B)
        L = x_BLD.shape[1]
        start_scores_BS, starts_BS = jax.lax.top_k(jax.nn.log_softmax(start_BL, axis=-1), min(self.starts, L))
        end_BSL = jax.nn.log_softmax(self._ends(x_BLD, starts_BS, allowed_BL), axis=-1)
        end_scores_BST, ends_BST = jax.lax.top_k(end_BSL, min(self.ends, L))
        return Beams(starts_BS, start_scores_BS, ends_BST, end_scores_BST, unanswerable_B)

    def _ends(self, x_BLD: Array, starts_BS: Array, allowed_BL: Array) -> Array:
        """Return the logits [B, S, L] of the ends for each start."""
        joined = _Joined(self.D, self.F, self.initializer, self.dtype, name="end_hidden")
        h_BSLF = self.activation(joined(x_BLD, states_at(x_BLD, starts_BS)))
        if self.norm_eps is not None:
            h_BSLF = Norm(self.F, self.norm_eps, name="end_norm")(h_BSLF)
        return _only(allowed_BL[:, None], self._dense(self.F, 1, "end")(h_BSLF)[..., 0])

    def _dense(self, inputs: int, outputs: int, name: str, use_bias: bool = True) -> Dense:
        return Dense((inputs,), (outputs,), self.initializer, self.dtype, use_bias, name=name)


class _Joined(nn.Module):
    """Dense layer of every token's state concatenated with every start's, [B, S, L, F], without the concatenation."""

    D: int
    F: int
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, x_BLD: Array, starts_BSD: Array) -> Array:
        kernel = self.param("kernel", self.initializer, (2 * self.D, self.F)).astype(self.dtype)
        bias_F = self.param("bias", nn.initializers.zeros_init(), (self.F,))
        of_tokens_BLF = jnp.tensordot(x_BLD.astype(self.dtype), kernel[: self.D], axes=1)
        of_starts_BSF = jnp.tensordot(starts_BSD.astype(self.dtype), kernel[self.D :], axes=1)
        # In float32, so that the gradient of a start, which all tokens read, is summed in float32.
        of_tokens_BLF, of_starts_BSF = of_tokens_BLF.astype(jnp.float32), of_starts_BSF.astype(jnp.float32)
        joined_BSLF = of_tokens_BLF[:, None] + of_starts_BSF[:, :, None]
        return (joined_BSLF + aligned(bias_F, joined_BSLF)).astype(self.dtype)


def _only(allowed: Array, logits: Array) -> Array:
    return jnp.where(allowed, logits.astype(jnp.float32), HIDDEN)


SpanHead = Callable[[Any, int], BeamSpanHead]
"""(encoder, position of the classification token) -> a head for it."""


def xlnet_span_head(encoder: Any, position: int) -> BeamSpanHead:
    """Build XLNet's and ALBERT's: as wide as the model, tanh, a norm; five starts with five ends each."""
    D, initializer = encoder.D, encoder.initializer
    return BeamSpanHead(
        D, D, layers.tanh, 1e-12, initializer, encoder.dtype, position, 5, 5, answer_bias=False, dropout=0.1
    )


def electra_span_head(encoder: Any, position: int) -> BeamSpanHead:
    """Build ELECTRA's: 512 wide, GELU, TensorFlow's initialiser; twenty starts with twenty ends each."""
    return BeamSpanHead(encoder.D, 512, layers.gelu, None, GlorotUniform(), encoder.dtype, position)
