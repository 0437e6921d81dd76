"""The encoder of ModernBERT, Ettin, NeoBERT, MosaicBERT and Crammed-BERT, which differ in its fields.

Warner et al. 2024 (AnswerDotAI/ModernBERT, src/bert_layers); Weller et al. 2025 (Ettin); Le Breton et al. 2025
(chandar-lab/NeoBERT, src/neobert/model/model.py); Portes et al. 2023 (mosaicml/examples, benchmarks/bert/src/
bert_layers.py); Geiping and Goldstein 2023 (JonasGeiping/cramming, cramming/architectures). All have no position
table, gated feed-forwards and few biases.

Layers 0, g, 2g, … of `global_every` g have global attention, the others sliding-window attention; `local` states any
other pattern. The scan is over periods of the pattern, so that each kind compiles to its own program; parameters keep
one leading axis of N.

Where we deviate: padded positions see only padding, and the documents of a packed row only themselves; queries, keys
and values, and the two halves of a gated layer, are parameters of their own, where the originals have them in one; no
dropout of attention's probabilities, which the originals train without.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.fields import check_fields
from bertjax.inputs import check_rows
from bertjax.models import layers
from bertjax.models.heads import MaskedLMHead, TiedHead, UntiedHead
from bertjax.models.layers import Activation, Dense, Dropout, Initializer, Norm, Normalise, Table
from bertjax.models.positions import Alibi, Positions, Rotary, ScaledSinusoids, Turn, alibi, rotate, sinusoids, turns
from bertjax.sharding.collectives import gather_layer
from bertjax.types import Array, Key, Params

Residual = Callable[[Array, Activation, Activation], Array]
"""(x, norm, sublayer) -> x: the order of a norm, a sublayer and its residual sum, `pre_norm` or `post_norm`."""


def pre_norm(x_BLD: Array, norm: Activation, sublayer: Activation) -> Array:
    """Normalise the input of the sublayer; the residual stream itself is never normalised."""
    return x_BLD + sublayer(norm(x_BLD))


def post_norm(x_BLD: Array, norm: Activation, sublayer: Activation) -> Array:
    """Normalise the residual sum, as BERT does: MosaicBERT."""
    return norm(x_BLD + sublayer(x_BLD))


@dataclass(frozen=True)
class Norms:
    """The norm of an encoder, and its places besides before (after) each sublayer."""

    normalise: Normalise = layers.layer_norm
    eps: float = 1e-5
    bias: bool = False
    embedding: bool = True  # after the embeddings
    first: bool = False  # before the first layer's attention too, although the embeddings are normalised
    final: bool = True  # after the last layer


@dataclass(frozen=True)
class Biases:
    """Which dense layers have a bias, and the language head's last product (of a `transformed_head`)."""

    attention: bool = False
    widen: bool = False  # both layers from D to F
    narrow: bool = False
    head: bool = False
    decoder: bool = True  # the product with the word table


def transformed_head(encoder: "Modern") -> nn.Module:
    """Build BERT's head with the encoder's biases: ModernBERT, MosaicBERT."""
    e = encoder
    return MaskedLMHead(
        e.V, e.D, e.D, e.activation, e.norms.eps, e.initializer, e.dtype, e.biases.head, e.norms.bias,
        decoder_bias=e.biases.decoder,
    )  # fmt: skip


def untied_transformed_head(encoder: "Modern") -> nn.Module:
    """Build BERT's head with a table of its own: ModernBERT with tie_word_embeddings=false."""
    return transformed_head(encoder).clone(tied=False)


def tied_head(encoder: "Modern") -> nn.Module:
    """Build the head that is a product with the word table, without a bias: Crammed-BERT."""
    return TiedHead(encoder.V, encoder.dtype, use_bias=False)


def untied_head(encoder: "Modern") -> nn.Module:
    """Build the head that is a dense layer of its own: NeoBERT."""
    return UntiedHead(encoder.V, encoder.D, encoder.initializer, encoder.dtype)


class Modern(nn.Module):
    """Encode tokens i32 [B, L] to hidden states [B, L, D]; the defaults are ModernBERT's.

    Raises ValueError at construction where the fields contradict each other.

    Example:
        encoder = bertjax.Modern(V=50368, D=128, N=3, H=2, F=192, global_every=3)  # like ModernBERT
        tokens = jnp.array([[50281, 12092, 1533, 50282]])
        mask = jnp.ones_like(tokens)
        params = encoder.init(jax.random.key(0), tokens, mask)["params"]
        x_BLD = encoder.apply({"params": params}, tokens, mask)  # [1, 4, 128]

    Attributes:
        V: ids in the vocabulary: rows of the word table, padding and special tokens included
        D: width of the hidden states, a multiple of H
        N: layers
        H: attention heads, each D / H wide
        F: width inside the feed-forward, behind the gate
        positions: how positions enter: Rotary, Alibi or ScaledSinusoids of models.positions
        global_every: one layer in so many has global attention, from the first on
        local: which layers of a period have local attention; None: as global_every says
        reach: tokens to each side that the layers with local attention see
        residual: the order of norm, sublayer and residual sum: modern.pre_norm or modern.post_norm
        norms: the norm and its places: modern.Norms
        biases: which dense layers have a bias: modern.Biases
        types: rows of the segment table; 0: no such table
        head: builds the language head: modern.transformed_head, tied_head, untied_head
        dropout: after the embeddings and inside the feed-forward
        attention_dropout: of the output of attention
        activation: of the feed-forward and the language head: a function, such as layers.gelu
        initializer: of weights and tables; biases begin at 0, scales of norms at 1
        output_initializer: of the projections into the residual stream, if another one
        remat: as in Encoder
        dtype: of the computation; parameters are float32
    """

    V: int
    D: int
    N: int
    H: int
    F: int
    positions: Positions = Rotary()
    global_every: int = 1
    local: tuple[bool, ...] | None = None
    reach: int = 64
    residual: Residual = pre_norm
    norms: Norms = Norms()
    biases: Biases = Biases()
    types: int = 0
    head: Callable[["Modern"], nn.Module] = transformed_head
    dropout: float = 0.0
    attention_dropout: float = 0.1
    activation: Activation = layers.gelu
    initializer: Initializer = layers.TruncatedNormal(0.02)
    output_initializer: Initializer | None = None
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        layers.check_encoder(self, "V", "D", "N", "H", "F", "global_every", "reach")
        if isinstance(self.positions, Rotary) and self.D // self.H % 2:
            raise ValueError(f"rotary heads of width {self.D // self.H} have no pairs: choose an even D / H")
        if isinstance(self.positions, ScaledSinusoids) and self.D % 2:
            raise ValueError(f"width D={self.D} has no pairs of sine and cosine: choose an even one")
        if self.local is not None and (self.global_every != 1 or not 1 <= len(self.local) <= self.N):
            raise ValueError(f"local={self.local} must be a period of 1 to N={self.N} layers, with global_every=1")
        if isinstance(self.positions, Alibi) and any(self.period):
            raise ValueError("linear biases and windows do not go together: use global_every=1 and local=None")
        if not self.norms.first and (self.N == 1 or self.residual is post_norm):
            raise ValueError("norms.first=false needs a second layer, and pre_norm: else attention has no norm at all")

    @property
    def period(self) -> tuple[bool, ...]:
        """Which layers have local attention; the pattern repeats over the N layers."""
        return self.local if self.local is not None else (False, *[True] * (self.global_every - 1))

    @property
    def max_length(self) -> None:
        """None: rows may be of any length."""

    @nn.nowrap
    def language_head(self) -> nn.Module:
        """Return the head that predicts ids from its hidden states."""
        return self.head(self)

    def hidden(
        self,
        tokens_BL: Array,
        mask_BL: Array,
        types_BL: Array | None = None,
        positions_BP: Array | None = None,
        *,
        visible_BLM: Array | None = None,
        train: bool = False,
    ) -> tuple[Array, Array]:
        """Return x_BLD, and the input x_BPD of the language head at `positions_BP`, or at every position if None."""
        x_BLD = self(tokens_BL, mask_BL, types_BL, visible_BLM=visible_BLM, train=train)
        return x_BLD, layers.states_at(x_BLD, positions_BP)

    @nn.compact
    def __call__(
        self,
        tokens_BL: Array,
        mask_BL: Array,
        types_BL: Array | None = None,
        *,
        visible_BLM: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Return x_BLD in the compute dtype; `train` turns dropout on, which needs an rng named dropout.

        visible_BLM: which keys each token attends to, by default all of its document; local attention also keeps to
        its window of positions. Every token sees one.
        """
        check_rows(self, tokens_BL, mask_BL, types_BL)
        positions_BL = layers.restarting_positions(mask_BL)
        x_BLD = ModernEmbeddings(
            self.V, self.D, self.types, self.positions, self.norms, self.dropout, self.initializer, self.dtype,
            name="embeddings",
        )(tokens_BL, types_BL, positions_BL, train=train)  # fmt: skip
        stacked = self.param("layers", self._init_layers)
        is_first_N = None
        if not self.norms.first:
            # Pad the stack of norms for the first layer, which has none, and mark that layer.
            pad = partial(jnp.pad, pad_width=((1, 0), (0, 0)))
            stacked = {**stacked, "attention_norm": jax.tree.map(pad, stacked["attention_norm"])}
            is_first_N = jnp.arange(self.N) == 0
        keys_N = jax.random.split(self.make_rng("dropout"), self.N) if train else None
        each_N = (stacked, keys_N, is_first_N)
        x_BLD = self._run(each_N, x_BLD, mask_BL, positions_BL, visible_BLM, train=train)
        if not self.norms.final:
            return x_BLD
        return Norm(self.D, self.norms.eps, self.norms.normalise, self.norms.bias, name="final_norm")(x_BLD)

    @nn.nowrap
    def _layer(self, *, train: bool) -> "ModernLayer":
        """Build the one layer that is applied with the parameters of each; it is no submodule."""
        return ModernLayer(
            self.D, self.H, self.F, self.residual, self.norms, self.biases, self.dropout, self.attention_dropout,
            self.activation, self.initializer, self.output_initializer or self.initializer, self.dtype, train,
            parent=None,
        )  # fmt: skip

    @nn.nowrap
    def _init_layers(self, rng: Key) -> Params:
        """Initialise the parameters of all layers, stacked, without the norm that the first layer does not have."""
        layer, x_BLD, mask_BL = self._layer(train=False), jnp.zeros((1, 1, self.D)), jnp.ones((1, 1), jnp.int32)
        stacked = jax.vmap(lambda key: layer.init(key, x_BLD, mask_BL)["params"])(jax.random.split(rng, self.N))
        if self.norms.first:
            return stacked
        return stacked | {"attention_norm": jax.tree.map(lambda leaf: leaf[1:], stacked["attention_norm"])}

    @nn.nowrap
    def _turns(self, positions_BL: Array, K: int) -> tuple[Turn | None, Turn | None]:
        """Return the rotations of global and of local attention, if positions are rotary."""
        if not isinstance(self.positions, Rotary):
            return None, None
        theta = self.positions.theta
        return turns(positions_BL, K, theta), turns(positions_BL, K, self.positions.local_theta or theta)

    @nn.nowrap
    def _run(
        self,
        each_N: Any,
        x_BLD: Array,
        mask_BL: Array,
        positions_BL: Array,
        visible_BLM: Array | None,
        *,
        train: bool,
    ) -> Array:
        """Run all layers. each_N: parameters, dropout keys and whether it is the first, by layer."""
        layer, K, L = self._layer(train=train), self.D // self.H, mask_BL.shape[1]
        turn, local_turn = self._turns(positions_BL, K)
        added_BHLM = None
        if isinstance(self.positions, Alibi):
            added_BHLM = alibi(self.H, jnp.arange(L)[None] if visible_BLM is None else positions_BL)
        near_BLM = _within(visible_BLM, positions_BL, self.reach)

        def one(reach: int | None, each: Any, x_BLD: Array, mask_BL: Array, turn: Turn | None) -> tuple[Array, Any]:
            params, key, is_first = each
            params = gather_layer(params, self.dtype)
            rngs = None if key is None else {"dropout": key}
            inputs = (x_BLD, mask_BL, turn, added_BHLM, is_first, visible_BLM if reach is None else near_BLM)
            return layers.apply_recorded(self, layer, params, *inputs, reach=reach, rngs=rngs)

        if (policy := layers.REMAT[self.remat]) is not None:
            one = jax.checkpoint(one, policy=policy, prevent_cse=False, static_argnums=(0,))

        views = [(self.reach, local_turn) if local else (None, turn) for local in self.period]
        G = len(views)

        def group(x_BLD: Array, each_G: Any) -> tuple[Array, Any]:
            size, recorded = jax.tree.leaves(each_G)[0].shape[0], []
            for index, (reach, turn) in enumerate(views[:size]):
                x_BLD, kept = one(reach, jax.tree.map(itemgetter(index), each_G), x_BLD, mask_BL, turn)
                recorded.append(kept)
            return x_BLD, jax.tree.map(lambda *each: jnp.stack(each), *recorded)

        def in_a_row(leaf: Array) -> Array:
            return leaf.reshape(-1, *leaf.shape[2:])

        def in_groups(leaf_N: Array) -> Array:
            return leaf_N[:whole].reshape(-1, G, *leaf_N.shape[1:])

        whole = self.N // G * G
        recorded = []
        if whole:
            x_BLD, kept = jax.lax.scan(group, x_BLD, jax.tree.map(in_groups, each_N))
            recorded.append(jax.tree.map(in_a_row, kept))
        if whole < self.N:
            x_BLD, kept = group(x_BLD, jax.tree.map(itemgetter(slice(whole, None)), each_N))
            recorded.append(kept)
        layers.record(self, layers=lambda: jax.tree.map(lambda *each: jnp.concatenate(each), *recorded))
        return x_BLD


def _within(visible_BLM: Array | None, positions_BL: Array, reach: int) -> Array | None:
    """Bound an attention mask, where there is one, by a window of positions."""
    if visible_BLM is None:
        return None
    return visible_BLM & (jnp.abs(positions_BL[:, :, None] - positions_BL[:, None, :]) <= reach)


class ModernEmbeddings(nn.Module):
    """Sum of word embeddings and, if the model has them, segment embeddings and sinusoids, then norm and dropout."""

    V: int
    D: int
    types: int
    positions: Positions
    norms: Norms
    dropout: float
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, tokens_BL: Array, types_BL: Array | None, positions_BL: Array, *, train: bool) -> Array:
        x_BLD = Table(self.V, self.D, self.initializer, self.dtype, name="word")(tokens_BL)
        if self.types:
            types_BL = jnp.zeros_like(tokens_BL) if types_BL is None else types_BL
            x_BLD += Table(self.types, self.D, self.initializer, self.dtype, name="type")(types_BL)
        if isinstance(self.positions, ScaledSinusoids):
            scale = self.param("position_scale", nn.initializers.constant(self.D**-0.5), ())
            x_BLD += (scale * sinusoids(positions_BL, self.D)).astype(self.dtype)
        if self.norms.embedding:
            x_BLD = Norm(self.D, self.norms.eps, self.norms.normalise, self.norms.bias, name="norm")(x_BLD)
        return Dropout(self.dropout)(x_BLD, train=train)


class ModernLayer(nn.Module):
    """Attention and feed-forward, each with its norm and residual sum."""

    D: int
    H: int
    F: int
    residual: Residual
    norms: Norms
    biases: Biases
    dropout: float
    attention_dropout: float
    activation: Activation
    initializer: Initializer
    output_initializer: Initializer
    dtype: str
    train: bool

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        mask_BL: Array,
        turn: Turn | None = None,
        added_BHLM: Array | None = None,
        is_first: Array | None = None,
        visible_BLM: Array | None = None,
        *,
        reach: int | None = None,
    ) -> Array:
        """Return x_BLD. is_first: true where attention has no norm. reach: None for global attention.

        visible_BLM: an attention mask in place of the documents' and the window's.
        """
        layers.record(self, before=lambda: x_BLD)
        norm = partial(Norm, self.D, self.norms.eps, self.norms.normalise, self.norms.bias)
        attention_norm, drop = norm(name="attention_norm"), partial(Dropout(self.attention_dropout), train=self.train)
        attend = ModernAttention(
            self.D, self.H, self.biases.attention, self.initializer, self.output_initializer, self.dtype,
            name="attention",
        )  # fmt: skip
        feed = GatedFeedForward(
            self.D, self.F, self.activation, self.biases, self.dropout, self.initializer, self.output_initializer,
            self.dtype, name="feedforward",
        )  # fmt: skip

        def norm_but_first(x_BLD: Array) -> Array:
            normed_BLD = attention_norm(x_BLD)
            return normed_BLD if is_first is None else jnp.where(is_first, x_BLD, normed_BLD)

        views = (turn, added_BHLM, reach, visible_BLM)
        x_BLD = self.residual(x_BLD, norm_but_first, lambda x: drop(attend(x, mask_BL, *views)))
        return self.residual(x_BLD, norm(name="feedforward_norm"), partial(feed, train=self.train))


class ModernAttention(nn.Module):
    """Self-attention with rotary positions or biases, global or local, then a projection to width D."""

    D: int
    H: int
    use_bias: bool
    initializer: Initializer
    output_initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        mask_BL: Array,
        turn: Turn | None,
        added_BHLM: Array | None,
        reach: int | None,
        visible_BLM: Array | None,
    ) -> Array:
        heads = (self.H, self.D // self.H)
        q_BLHK, k_BLHK, v_BLHK = (
            Dense((self.D,), heads, self.initializer, self.dtype, self.use_bias, name=name)(x_BLD)
            for name in ("query", "key", "value")
        )
        if turn is not None:
            q_BLHK, k_BLHK = rotate(q_BLHK, turn), rotate(k_BLHK, turn)
        if added_BHLM is not None:
            added_BHLM *= heads[1] ** 0.5  # undo the scaling by `attention`: ALiBi's biases are not scaled

        def seen_BLM() -> Array:
            if visible_BLM is not None:
                return visible_BLM
            return layers.same_document(mask_BL) if reach is None else layers.nearby(mask_BL, reach)

        layers.record(self, attention=lambda: layers.probabilities(q_BLHK, k_BLHK, seen_BLM(), added_BHLM))
        if reach is not None and visible_BLM is None:
            mixed_BLHK = layers.local_attention(q_BLHK, k_BLHK, v_BLHK, mask_BL, reach)
        else:
            mixed_BLHK = layers.attention(q_BLHK, k_BLHK, v_BLHK, seen_BLM(), lambda p: p, added_BHLM)
        output = Dense(heads, (self.D,), self.output_initializer, self.dtype, self.use_bias, name="output")
        return output(mixed_BLHK)


class GatedFeedForward(nn.Module):
    """Gated feed-forward (Shazeer 2020): D to F twice, activation of one times the other, dropout, F to D."""

    D: int
    F: int
    activation: Activation
    biases: Biases
    dropout: float
    initializer: Initializer
    output_initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, x_BLD: Array, *, train: bool) -> Array:
        h_BLF, gate_BLF = (
            Dense((self.D,), (self.F,), self.initializer, self.dtype, self.biases.widen, name=name)(x_BLD)
            for name in ("widen", "gate")
        )
        h_BLF = Dropout(self.dropout)(layers.gated(h_BLF, gate_BLF, self.activation), train=train)
        narrow = Dense((self.F,), (self.D,), self.output_initializer, self.dtype, self.biases.narrow, name="narrow")
        return narrow(h_BLF)
