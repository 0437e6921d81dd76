"""XLNet: relative attention, a content and a query stream that share all weights, memory of earlier windows.

Yang et al. 2019 (zihangdai/xlnet, modeling.py); the relative scores after Dai et al. 2019 (Transformer-XL). For query i
and key j of one head:

    ((q_i + content_bias)·k_j + (q_i + position_bias)·(R(i - j) W) + (q_i + segment_bias)·s_[types differ]) / √K

The content stream is an ordinary encoder, masked by ranks. The query stream predicts: it starts from one learned
vector, has its position but not its token, and takes its keys and values from the content stream. It has P rows, one
for each predicted position, never L.

Where we deviate: the originals also drop elements of R, which the products used here cannot express (relative.py,
`rotated_scores`); R is not dropped. A row may hold several documents, and memory has a mask.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from bertjax.fields import check_fields
from bertjax.inputs import check_rows
from bertjax.models import layers
from bertjax.models.heads import TiedHead, UntiedHead
from bertjax.models.layers import Activation, Dense, Dropout, FeedForward, Initializer, Norm, Table
from bertjax.models.relative import Sinusoids, relative_scores, rotated_scores
from bertjax.sharding.collectives import sum_cotangents_first
from bertjax.types import Array


class Memory(NamedTuple):
    """Hidden states of earlier windows that later ones attend to.

    states_NBMD: the inputs of each layer at the last M tokens. mask_BM: their `mask` of the batch, -1 in empty slots.
    """

    states_NBMD: Array
    mask_BM: Array


class Streams(NamedTuple):
    """Output of XLNet: hidden states of all tokens, of the predicted positions, and the next memory."""

    content_BLD: Array
    query_BPD: Array | None
    memory: Memory | None


class _View(NamedTuple):
    """Attention mask, relative segments and direction of a stream's rows of queries; the same in all layers."""

    visible_BLM: Array
    same_segment_BLM: Array | None
    sign_B: Array | None
    positions_BP: Array | None  # where the rows stand, if they are not the whole row


class XLNet(nn.Module):
    """Encode tokens i32 [B, L] to hidden states [B, L, D]; `streams` is for pre-training and long texts.

    Raises ValueError at construction where the fields contradict each other.

    Example:
        encoder = bertjax.XLNet(V=32000, D=128, N=2, H=2, F=512)
        tokens = jnp.array([[35, 1038, 4, 3]])
        mask = jnp.ones_like(tokens)
        params = encoder.init(jax.random.key(0), tokens, mask)["params"]
        x_BLD = encoder.apply({"params": params}, tokens, mask)  # [1, 4, 128]

    Attributes:
        V: ids in the vocabulary: rows of the word table, padding and special tokens included
        D: width of the hidden states, a multiple of H
        N: layers
        H: attention heads, each D / H wide
        F: width inside the feed-forward
        dropout: share of the elements that are dropped after the embeddings and each sublayer, in training
        attention_dropout: share of the attention probabilities that are dropped, in training
        activation: of the feed-forward and the language head: a function, such as layers.gelu
        norm_eps: added to the variance in layer norms
        initializer: of weights and tables; biases begin at 0, scales of norms at 1
        untied: each layer has content, position and segment biases of its own
        clamp: distances are clipped to ±clamp
        same_length: attention reaches back by at most the length of the memory
        tied_head: the language head multiplies by the word table; else by a table of its own
        remat: as in Encoder, and so is unroll
        unroll: unroll the scan over layers: faster, but slower to compile
        dtype: of the computation; parameters are float32
    """

    V: int
    D: int
    N: int
    H: int
    F: int
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: Activation = layers.gelu_tanh
    norm_eps: float = 1e-12
    initializer: Initializer = layers.Normal(0.02)
    untied: bool = True
    clamp: int | None = None
    same_length: bool = False
    tied_head: bool = True
    remat: str = "none"
    unroll: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        layers.check_encoder(self, "V", "D", "N", "H", "F", "clamp")
        if self.D % 2:
            raise ValueError(f"width D={self.D} must be even: sines and cosines encode distances in pairs")

    @property
    def max_length(self) -> None:
        """None: rows may be of any length."""

    @nn.nowrap
    def empty_memory(self, rows: int, length: int) -> Memory:
        """Return an empty memory of `length` tokens, 1 or more."""
        if length < 1:
            raise ValueError(f"a memory of {length} tokens: use 1 or more, or none at all")
        states_NBMD = jnp.zeros((self.N, rows, length, self.D), self.dtype)
        return Memory(states_NBMD, jnp.full((rows, length), -1, jnp.int32))

    @property
    def pretraining_only(self) -> tuple[str, ...]:
        """Patterns of the parameters that only pre-training reads: the query stream begins with this one."""
        return ("mask_embedding$",)

    @nn.nowrap
    def language_head(self) -> TiedHead | UntiedHead:
        """Return the head that predicts ids from its hidden states."""
        if not self.tied_head:
            return UntiedHead(self.V, self.D, self.initializer, self.dtype)
        return TiedHead(self.V, self.dtype)

    def hidden(
        self,
        tokens_BL: Array,
        mask_BL: Array,
        types_BL: Array | None = None,
        positions_BP: Array | None = None,
        *,
        train: bool = False,
    ) -> tuple[Array, Array]:
        """Return x_BLD, and the input x_BPD of the language head at `positions_BP`, or at every position if None.

        At given positions it comes from the query stream, which attends to all other positions and not to these.
        """
        if positions_BP is None:
            x_BLD = self(tokens_BL, mask_BL, types_BL, train=train)
            return x_BLD, x_BLD
        at_BPL = positions_BP[..., None] == jnp.arange(tokens_BL.shape[1])[None, None]
        streams = self.streams(
            tokens_BL, mask_BL, types_BL, ranks_BL=at_BPL.any(1).astype(jnp.int32), targets_BP=positions_BP, train=train
        )
        assert streams.query_BPD is not None
        return streams.content_BLD, streams.query_BPD

    def __call__(
        self, tokens_BL: Array, mask_BL: Array, types_BL: Array | None = None, *, train: bool = False
    ) -> Array:
        """Return x_BLD in the compute dtype, with full attention within documents, for fine-tuning and inference."""
        return self.streams(tokens_BL, mask_BL, types_BL, train=train).content_BLD

    @nn.compact
    def streams(
        self,
        tokens_BL: Array,
        mask_BL: Array,
        types_BL: Array | None = None,
        *,
        ranks_BL: Array | None = None,
        targets_BP: Array | None = None,
        sign_B: Array | None = None,
        memory: Memory | None = None,
        reuse: int = 0,
        train: bool = False,
    ) -> Streams:
        """Run the content stream and, at positions `targets_BP`, the query stream.

        ranks_BL: i32; a content row attends to ranks up to its own, a query row to ranks below its own; if None, all
        attend to all. sign_B: -1 for rows with reversed text, else 1. memory: of earlier tokens, visible to all ranks;
        the memory returned is as long, with the first `reuse` tokens of this row at its end. Attention stays within
        documents, in memory too; the segment of memory is 0.
        Raises ValueError where targets come without ranks.
        """
        check_rows(self, tokens_BL, mask_BL, types_BL)
        if targets_BP is not None and ranks_BL is None:
            raise ValueError("a query stream needs ranks_BL: without them it would attend to its own targets")
        M = 0 if memory is None else memory.mask_BM.shape[1]
        embed = WordEmbeddings(self.V, self.D, self.dropout, self.initializer, self.dtype, name="embeddings")
        rows = [embed(tokens_BL, train=train)]
        mask_embedding_D = self.param("mask_embedding", self.initializer, (self.D,))
        views = [_view(mask_BL, types_BL, ranks_BL, sign_B, memory, None, same_length=self.same_length)]
        if targets_BP is not None:
            # Cast after the broadcast, so that the gradient of the one vector is summed in float32.
            g_BPD = jnp.broadcast_to(mask_embedding_D, (*targets_BP.shape, self.D)).astype(self.dtype)
            rows.append(Dropout(self.dropout)(g_BPD, train=train))
            views.append(_view(mask_BL, types_BL, ranks_BL, sign_B, memory, targets_BP, same_length=self.same_length))
        heads = (self.H, self.D // self.H)
        tied = None
        if not self.untied:
            tied = tuple(self.param(name, self.initializer, heads) for name in _BIASES)
        layer = layers.stack(
            XLNetLayer, self.N, remat=self.remat, shared=False, dtype=self.dtype,
            initializing=self.is_initializing(), unroll=self.unroll, in_axes=(0, nn.broadcast, nn.broadcast),
        )(
            self.D, self.H, self.F, self.dropout, self.attention_dropout, self.activation, self.norm_eps,
            self.initializer, self.clamp, reuse, self.dtype, train, name="layers",
        )  # fmt: skip
        rows, states_NBMD = layer(rows, memory and memory.states_NBMD, views, tied)
        last = Dropout(self.dropout)
        rows = [last(x, train=train) for x in rows]
        if memory is not None:
            mask_BM = jnp.concatenate([memory.mask_BM, mask_BL[:, :reuse]], axis=1)[:, -M:]
            memory = Memory(states_NBMD, mask_BM)
        return Streams(rows[0], rows[1] if len(rows) > 1 else None, memory)


def _view(
    mask_BL: Array,
    types_BL: Array | None,
    ranks_BL: Array | None,
    sign_B: Array | None,
    memory: Memory | None,
    targets_BP: Array | None,
    *,
    same_length: bool,
) -> _View:
    """Build the attention mask of the content rows, or of the query rows at `targets_BP`."""
    B, L = mask_BL.shape
    M = 0 if memory is None else memory.mask_BM.shape[1]

    def at_rows(x_BL: Array) -> Array:
        if targets_BP is None:
            return x_BL
        return jnp.take_along_axis(x_BL, targets_BP, axis=1, mode="promise_in_bounds")

    def with_memory(x_BL: Array, of_memory: Array | int) -> Array:
        return jnp.concatenate([jnp.broadcast_to(of_memory, (B, M)).astype(x_BL.dtype), x_BL], axis=1)

    keys_mask_BM = with_memory(mask_BL, 0 if memory is None else memory.mask_BM)
    visible_BLM = layers.same_document(at_rows(mask_BL), keys_mask_BM)
    if ranks_BL is not None:
        above = jnp.greater_equal if targets_BP is None else jnp.greater
        keys_ranks_BM = with_memory(ranks_BL, jnp.iinfo(jnp.int32).min)
        visible_BLM &= above(at_rows(ranks_BL)[:, :, None], keys_ranks_BM[:, None, :])
    if same_length:
        index_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
        visible_BLM &= at_rows(index_BL)[:, :, None] - jnp.arange(-M, L)[None, None, :] <= M
    same_segment_BLM = None
    if types_BL is not None:
        same_segment_BLM = at_rows(types_BL)[:, :, None] == with_memory(types_BL, 0)[:, None, :]
    return _View(visible_BLM, same_segment_BLM, sign_B, targets_BP)


class WordEmbeddings(nn.Module):
    """Word embeddings and dropout: XLNet has no table of positions and no norm here."""

    V: int
    D: int
    dropout: float
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, tokens_BL: Array, *, train: bool) -> Array:
        x_BLD = Table(self.V, self.D, self.initializer, self.dtype, name="word")(tokens_BL)
        return Dropout(self.dropout)(x_BLD, train=train)


class XLNetLayer(nn.Module):
    """Attention and feed-forward in both streams, each followed by dropout, the residual sum and a norm."""

    D: int
    H: int
    F: int
    dropout: float
    attention_dropout: float
    activation: Activation
    norm_eps: float
    initializer: Initializer
    clamp: int | None
    reuse: int
    dtype: str
    train: bool

    @nn.compact
    def __call__(
        self,
        rows: list[Array],
        memory_BMD: Array | None,
        views: list[_View],
        tied: tuple[Array, ...] | None,
    ) -> tuple[list[Array], Array | None]:
        attend = RelativeAttention(
            self.D, self.H, self.attention_dropout, self.initializer, self.clamp, self.dtype, self.train,
            name="attention",
        )  # fmt: skip
        feed = FeedForward(
            self.D, self.F, self.activation, self.initializer, self.dtype, self.dropout, name="feedforward"
        )
        layers.record(self, before=lambda: rows[0])
        drop = Dropout(self.dropout)
        attention_norm = Norm(self.D, self.norm_eps, name="attention_norm")
        feedforward_norm = Norm(self.D, self.norm_eps, name="feedforward_norm")
        after = []
        for x_BLD, mixed_BLD in zip(rows, attend(rows, memory_BMD, views, tied), strict=True):
            x_BLD = attention_norm(x_BLD + drop(mixed_BLD, train=self.train))
            after.append(feedforward_norm(x_BLD + drop(feed(x_BLD, train=self.train), train=self.train)))
        if memory_BMD is not None:
            M = memory_BMD.shape[1]
            memory_BMD = jnp.concatenate([memory_BMD, rows[0][:, : self.reuse]], axis=1)[:, -M:]
        return after, memory_BMD


_BIASES = ("content_bias", "position_bias", "segment_bias")


class RelativeAttention(nn.Module):
    """Relative attention from each stream to memory and the content stream, then a projection to width D."""

    D: int
    H: int
    dropout: float
    initializer: Initializer
    clamp: int | None
    dtype: str
    train: bool

    @nn.compact
    def __call__(
        self, rows: list[Array], memory_BMD: Array | None, views: list[_View], tied: tuple[Array, ...] | None
    ) -> list[Array]:
        heads = (self.H, self.D // self.H)
        rows = [sum_cotangents_first(x) for x in rows]
        seen_BMD = rows[0] if memory_BMD is None else jnp.concatenate([memory_BMD, rows[0]], axis=1)

        def project(inputs: tuple[int, ...], outputs: tuple[int, ...], name: str) -> Dense:
            return Dense(inputs, outputs, self.initializer, self.dtype, use_bias=False, name=name)

        query, output = project((self.D,), heads, "query"), project(heads, (self.D,), "output")
        k_BMHK, v_BMHK = (project((self.D,), heads, name)(seen_BMD) for name in ("key", "value"))
        kernel_DHK = self.param("position_kernel", self.initializer, (self.D, *heads))
        segment_2HK = self.param("segment_table", self.initializer, (2, *heads))
        biases = tied or tuple(self.param(name, self.initializer, heads) for name in _BIASES)
        distance = Sinusoids(self.D, self.clamp)
        L = rows[0].shape[1]
        M = seen_BMD.shape[1] - L
        mixed = []
        for x_BLD, view, stream in zip(rows, views, ("attention", "query_attention"), strict=False):
            q_BLHK = query(x_BLD)
            to_content, to_position, to_segment = (layers.add_bias(q_BLHK, bias) for bias in biases)
            if view.positions_BP is None:
                added_BHLM = relative_scores(to_position, kernel_DHK, distance, M, view.sign_B)
            else:
                added_BHLM = rotated_scores(to_position, kernel_DHK, distance, view.positions_BP, M, L, view.sign_B)
            if view.same_segment_BLM is not None:
                same, other = jnp.einsum(
                    "BLHK,SHK->SBHL", to_segment, segment_2HK.astype(self.dtype), preferred_element_type=jnp.float32
                )
                added_BHLM += jnp.where(view.same_segment_BLM[:, None], same[..., None], other[..., None])
            drop = partial(Dropout(self.dropout), train=self.train)
            probabilities = partial(layers.probabilities, to_content, k_BMHK, view.visible_BLM, added_BHLM)
            layers.record(self, **{stream: probabilities})
            mixed_BLHK = layers.attention(to_content, k_BMHK, v_BMHK, view.visible_BLM, drop, added_BHLM)
            mixed.append(output(mixed_BLHK))
        return mixed
