"""DeBERTa: disentangled attention over content and distance; absolute positions only in the mask decoder.

He et al. 2020 (DeBERTa) and 2021 (DeBERTaV3); microsoft/DeBERTa, deberta/disentangled_attention.py, deberta/bert.py and
apps/models/masked_language_model.py. For query i and key j of one head, with T of the last two terms:

    (q_i·k_j + q_i·K(i - j) + k_j·Q(i - j)) / √((1 + T)·width)

K and Q are projected rows of one table, which all layers share. The paper writes Q(j - i); its code has Q(i - j), so
the released weights have it too.

Where we deviate: padded positions see only padding, where the original gives them zeros; nothing reads them. A position
key has no bias: it would be the same for all keys of a query, which a softmax does not see. The convolution does not
look into other documents of a packed row.
"""

from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from operator import add, mul
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bertjax.fields import check_fields
from bertjax.inputs import check_rows
from bertjax.models import layers, relative
from bertjax.models.heads import MaskedLMHead
from bertjax.models.layers import Activation, Dense, Dropout, FeedForward, Initializer, Norm, Table
from bertjax.sharding.collectives import gather_layer, sum_cotangents_first
from bertjax.types import Array

C2C = "c2c"  # content to content
C2P, P2C = "c2p", "p2c"  # content to position: query by distance; position to content: key by distance


@dataclass(frozen=True)
class DistanceRows:
    """One-hot rows R(d) of a table of 2·`rows` distances: R(d) @ table is the row of distance d (OfDistance).

    logarithmic: the largest distance of logarithmic buckets; distances beyond rows / 2 share rows (DeBERTa-v2).
    Distances beyond the table have its first or last row. microsoft/DeBERTa deberta/da_utils.py.
    """

    rows: int
    logarithmic: int | None = None

    def row(self, distances: np.ndarray) -> np.ndarray:
        """Return the row of each distance: integers, computed on the host, where logarithms are exact enough."""
        if self.logarithmic is not None:
            middle, size = self.rows // 2, np.abs(distances)
            share = np.log(np.maximum(size, middle) / middle) / np.log((self.logarithmic - 1) / middle)
            shared = np.sign(distances) * (np.ceil(share * (middle - 1)) + middle)
            distances = np.where(size <= middle, distances, shared).astype(int)
        return np.clip(distances + self.rows, 0, 2 * self.rows - 1)

    def table(self, distances: np.ndarray) -> np.ndarray:
        """See OfDistance.table."""
        return (self.row(distances)[..., None] == np.arange(2 * self.rows)).astype(np.float32)

    def waves(self, reach: int) -> tuple[np.ndarray, np.ndarray]:
        """See OfDistance.waves."""
        return _series(self, reach)


@lru_cache(maxsize=8)
def _series(distances: DistanceRows, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the series once for all layers and traces, which takes a while."""
    return relative.fourier_series(distances.table(np.arange(-reach, reach + 1)))


class DeBERTa(nn.Module):
    """Encode tokens i32 [B, L] to hidden states [B, L, D]. Segments are not read.

    Raises ValueError at construction where the fields contradict each other, and with a decoder when called on rows
    longer than `positions`.

    Example:
        encoder = bertjax.DeBERTa(V=50265, D=128, N=2, H=2, F=512, decoder=2)  # like DeBERTa's first version
        tokens = jnp.array([[1, 31414, 232, 2]])
        mask = jnp.ones_like(tokens)
        params = encoder.init(jax.random.key(0), tokens, mask)["params"]
        x_BLD = encoder.apply({"params": params}, tokens, mask)  # [1, 4, 128]

    Attributes:
        V: ids in the vocabulary: rows of the word table, padding and special tokens included
        D: width of the hidden states, a multiple of H
        N: layers
        H: attention heads, each D / H wide
        F: width inside the feed-forward
        E: embedding width where it is not D: then a dense layer leads from E to D
        distances: largest distance to each side, to which larger ones are clipped
        buckets: rows of the table for each side, if fewer: large distances share rows (v2, v3)
        table_norm: norm the table of distances (v2, v3)
        terms: besides content to content
        shared_projections: distances are projected by the kernels of tokens (v2, v3), else by others (v1)
        key_bias: not in v1
        convolution: width of the branch beside the first layer (v2 xlarge and xxlarge)
        decoder: how often the last layer is applied again before the language head (2); 0: no mask decoder
        positions: rows of the mask decoder's position table
        tied_head: the language head multiplies by the word table; else by a table of its own
        dropout: share of the elements that are dropped after the embeddings and each sublayer, in training
        attention_dropout: share of the attention probabilities that are dropped, in training
        activation: of the feed-forward and the language head: a function, such as layers.gelu
        convolution_activation: None: that of the layers
        norm_eps: added to the variance in layer norms
        initializer: of weights and tables; biases begin at 0, scales of norms at 1
        remat: as in Encoder
        dtype: of the computation; parameters are float32
    """

    V: int
    D: int
    N: int
    H: int
    F: int
    E: int | None = None
    distances: int = 512
    buckets: int | None = None
    table_norm: bool = False
    terms: tuple[str, ...] = (C2P, P2C)
    shared_projections: bool = False
    key_bias: bool = True
    convolution: int | None = None
    decoder: int = 0
    positions: int = 512
    tied_head: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: Activation = layers.gelu
    convolution_activation: Activation | None = None
    norm_eps: float = 1e-7
    initializer: Initializer = layers.Normal(0.02)
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        layers.check_encoder(self, "V", "D", "N", "H", "F", "E", "distances", "positions")
        if not {C2P, P2C}.issuperset(self.terms) or len(set(self.terms)) < len(self.terms):
            raise ValueError(f"terms={self.terms} are not some of {C2P!r} and {P2C!r}, each once")
        if self.buckets is not None and not 2 <= self.buckets // 2 < self.distances - 1:
            raise ValueError(
                f"buckets={self.buckets} must be 4 or more, and half of them less than distances - 1 = "
                f"{self.distances - 1}: use fewer, or none for a row for each distance"
            )
        if self.convolution is not None and (self.convolution < 1 or self.convolution % 2 == 0):
            raise ValueError(f"convolution={self.convolution} has no middle: use an odd width")
        if self.decoder < 0:
            raise ValueError(f"decoder={self.decoder} is negative: use 0 for none")

    @property
    def max_length(self) -> int | None:
        """The longest row that the decoder's position table covers; None without a decoder: rows of any length."""
        return self.positions if self.decoder else None

    @property
    def embedding_width(self) -> int:
        """The width of the word table: E, or D where the embeddings are not factorised."""
        return self.E or self.D

    @property
    def table_sizes(self) -> dict[str, int]:
        """The sizes that must be equal in two encoders that share their embeddings."""
        return {"embedding_width": self.embedding_width}

    @property
    def pretraining_only(self) -> tuple[str, ...]:
        """Patterns of the parameters that only pre-training reads: absolute positions, of a decoder."""
        return ("decoder_positions/",) if self.decoder else ()

    @nn.nowrap
    def language_head(self) -> MaskedLMHead:
        """Return the head that predicts ids from its hidden states."""
        return MaskedLMHead(
            self.V, self.D, self.embedding_width, self.activation, self.norm_eps, self.initializer, self.dtype,
            tied=self.tied_head,
        )  # fmt: skip

    def __call__(
        self, tokens_BL: Array, mask_BL: Array, types_BL: Array | None = None, *, train: bool = False
    ) -> Array:
        """Return x_BLD in the compute dtype; `train` turns dropout on, which needs an rng named dropout."""
        return self.hidden(tokens_BL, mask_BL, types_BL, train=train)[0]

    @nn.compact
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
        check_rows(self, tokens_BL, mask_BL, types_BL)
        if self.max_length is not None and tokens_BL.shape[1] > self.max_length:
            raise ValueError(
                f"rows of length {tokens_BL.shape[1]} exceed the {self.max_length} positions of the decoder: "
                "shorten the rows or raise `positions`"
            )
        x_BLD = WordEmbeddings(
            self.V, self.D, self.E, self.dropout, self.norm_eps, self.initializer, self.dtype, name="embeddings"
        )(tokens_BL, train=train)
        rows = DistanceRows(self.buckets or self.distances, self.buckets and self.distances)
        table_RD = DistanceTable(
            2 * rows.rows, self.D, self.norm_eps if self.table_norm else None, self.initializer, name="relative"
        )()
        branch = None
        if self.convolution is not None:
            branch = Convolution(
                self.D, self.convolution, self.dropout, self.convolution_activation or self.activation,
                self.initializer, self.dtype, name="convolution",
            )(x_BLD, mask_BL, train=train)  # fmt: skip
        fields = (
            self.D, self.H, self.F, rows, self.terms, self.shared_projections, self.key_bias, self.dropout,
            self.attention_dropout, self.activation, self.norm_eps, self.initializer, self.dtype, train,
        )  # fmt: skip
        stack = layers.stack(
            DeBERTaLayer, self.N, remat=self.remat, shared=False, dtype=self.dtype,
            initializing=self.is_initializing(), in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        )(*fields, name="layers")  # fmt: skip
        view = _view(mask_BL, None)
        (x_BLD, before_BLD), _ = stack((x_BLD, x_BLD), jnp.arange(self.N) == 0, view, table_RD, branch)
        if not self.decoder:
            return x_BLD, layers.states_at(x_BLD, positions_BP)
        view, places_BP = _view(mask_BL, positions_BP), _at(layers.restarting_positions(mask_BL), positions_BP)
        table = Table(self.positions, self.D, self.initializer, self.dtype, name="decoder_positions")
        x_BPD = layers.states_at(before_BLD, positions_BP) + table(places_BP)
        last = jax.tree.map(lambda parameters: parameters[-1], stack.variables["params"])
        last = gather_layer(last, self.dtype)
        decoder = []
        for _ in range(self.decoder):
            rngs = {"dropout": self.make_rng("dropout")} if train else None
            inputs = (x_BPD, view, table_RD, before_BLD)
            layer: Any = DeBERTaLayer(*fields, parent=None)
            x_BPD, recorded = layers.apply_recorded(self, layer, last, *inputs, rngs=rngs, method="rows")
            decoder.append(recorded)
        layers.record(self, decoder=lambda: jax.tree.map(lambda *each: jnp.stack(each), *decoder))
        return x_BLD, x_BPD


class View(NamedTuple):
    """Attention mask of some rows of queries, and their positions if they are not the whole row."""

    visible_BPM: Array
    positions_BP: Array | None


def _view(mask_BL: Array, positions_BP: Array | None) -> View:
    return View(layers.same_document(_at(mask_BL, positions_BP), mask_BL), positions_BP)


def _at(x_BL: Array, positions_BP: Array | None) -> Array:
    return layers.states_at(x_BL[..., None], positions_BP)[..., 0]


class _Branch(NamedTuple):
    """The output of the convolution, which is added to the first layer's output, and the norm of their sum."""

    x_BLD: Array
    scale_D: Array
    bias_D: Array


class WordEmbeddings(nn.Module):
    """Word embeddings, projected from E to D where these differ, then norm and dropout."""

    V: int
    D: int
    E: int | None
    dropout: float
    norm_eps: float
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, tokens_BL: Array, *, train: bool) -> Array:
        x_BLD = Table(self.V, self.E or self.D, self.initializer, self.dtype, name="word")(tokens_BL)
        if self.E is not None:
            project = Dense((self.E,), (self.D,), self.initializer, self.dtype, use_bias=False, name="project")
            x_BLD = project(x_BLD)
        return Dropout(self.dropout)(Norm(self.D, self.norm_eps, name="norm")(x_BLD), train=train)


class DistanceTable(nn.Module):
    """Table of distances, f32 [R, D], with a norm or without. Each layer applies dropout of its own to it."""

    rows: int
    D: int
    norm_eps: float | None
    initializer: Initializer

    @nn.compact
    def __call__(self) -> Array:
        table_RD: Array = self.param("table", self.initializer, (self.rows, self.D))
        if self.norm_eps is None:
            return table_RD
        return Norm(self.D, self.norm_eps, name="norm")(table_RD)


class Convolution(nn.Module):
    """Convolve the embeddings of a document, then dropout and activation.

    microsoft/DeBERTa deberta/bert.py ConvLayer. The norm belongs to the sum with the first layer's states.
    """

    D: int
    width: int
    dropout: float
    activation: Activation
    initializer: Initializer
    dtype: str

    @nn.compact
    def __call__(self, x_BLD: Array, mask_BL: Array, *, train: bool) -> _Branch:
        L, reach = x_BLD.shape[1], self.width // 2
        padded_BLD = jnp.pad(x_BLD, ((0, 0), (reach, reach), (0, 0)))
        padded_BL = jnp.pad(mask_BL, ((0, 0), (reach, reach)), constant_values=-1)
        windows_BLWD = jnp.stack(
            [
                jnp.where((padded_BL[:, i : i + L] == mask_BL)[..., None], padded_BLD[:, i : i + L], 0)
                for i in range(self.width)
            ],
            axis=2,
        )
        mix = Dense((self.width, self.D), (self.D,), self.initializer, self.dtype, name="mix")
        x_BLD = self.activation(Dropout(self.dropout)(mix(windows_BLWD), train=train))
        return _Branch(x_BLD, *_NormParameters(self.D, name="norm")())


class _NormParameters(nn.Module):
    """Scale and bias of a norm that is applied elsewhere."""

    width: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        scale_D = self.param("scale", nn.initializers.ones_init(), (self.width,))
        return scale_D, self.param("bias", nn.initializers.zeros_init(), (self.width,))


class DeBERTaLayer(nn.Module):
    """Attention and feed-forward, each followed by dropout, the residual sum and a norm."""

    D: int
    H: int
    F: int
    distances: DistanceRows
    terms: tuple[str, ...]
    shared_projections: bool
    key_bias: bool
    dropout: float
    attention_dropout: float
    activation: Activation
    norm_eps: float
    initializer: Initializer
    dtype: str
    train: bool

    def __call__(
        self, carry: tuple[Array, Array], is_first: Array, view: View, table_RD: Array, branch: _Branch | None
    ) -> tuple[tuple[Array, Array], None]:
        """Map (states, states before) to the next; the convolution joins after the first layer."""
        before_BLD, _ = carry
        layers.record(self, before=lambda: before_BLD)
        x_BLD = self.rows(before_BLD, view, table_RD)
        if branch is not None:

            def joined(x_BLD: Array) -> Array:
                return layers.layer_norm(x_BLD + branch.x_BLD, branch.scale_D, branch.bias_D, self.norm_eps)

            x_BLD = jax.lax.cond(is_first, joined, lambda x_BLD: x_BLD, x_BLD)
        return (x_BLD, before_BLD), None

    @nn.compact
    def rows(self, x_BPD: Array, view: View, table_RD: Array, seen_BMD: Array | None = None) -> Array:
        """Return the next states of the rows `x_BPD`, which attend to `seen_BMD`, or to each other."""
        attend = DisentangledAttention(
            self.D, self.H, self.distances, self.terms, self.shared_projections, self.key_bias, self.dropout,
            self.attention_dropout, self.initializer, self.dtype, self.train, name="attention",
        )  # fmt: skip
        feed = FeedForward(self.D, self.F, self.activation, self.initializer, self.dtype, name="feedforward")
        h_BPD = Dropout(self.dropout)(attend(x_BPD, view, table_RD, seen_BMD), train=self.train)
        x_BPD = Norm(self.D, self.norm_eps, name="attention_norm")(x_BPD + h_BPD)
        h_BPD = Dropout(self.dropout)(feed(x_BPD), train=self.train)
        return Norm(self.D, self.norm_eps, name="feedforward_norm")(x_BPD + h_BPD)


class DisentangledAttention(nn.Module):
    """Disentangled attention from rows to `seen_BMD`, or to each other, then a projection to width D."""

    D: int
    H: int
    distances: DistanceRows
    terms: tuple[str, ...]
    shared_projections: bool
    key_bias: bool
    dropout: float  # of the table of distances
    attention_dropout: float
    initializer: Initializer
    dtype: str
    train: bool

    @nn.compact
    def __call__(self, x_BPD: Array, view: View, table_RD: Array, seen_BMD: Array | None = None) -> Array:
        heads = (self.H, self.D // self.H)
        x_BPD = sum_cotangents_first(x_BPD)
        seen_BMD = x_BPD if seen_BMD is None else sum_cotangents_first(seen_BMD)

        def project(name: str, *, use_bias: bool = True) -> Dense:
            return Dense((self.D,), heads, self.initializer, self.dtype, use_bias=use_bias, name=name)

        query, key = project("query"), project("key", use_bias=self.key_bias)
        q_BPHK, k_BMHK, v_BMHK = query(x_BPD), key(seen_BMD), project("value")(seen_BMD)
        table_RD = Dropout(self.dropout, by_row=False)(table_RD, train=self.train)
        terms = {}
        if C2P in self.terms:
            to_keys = key if self.shared_projections else project("position_key", use_bias=False)
            table_RHK = to_keys(table_RD)
            if view.positions_BP is None:
                terms[C2P] = relative.relative_scores(q_BPHK, table_RHK, self.distances, 0, None)
            else:
                length = seen_BMD.shape[1]
                terms[C2P] = relative.rotated_scores(
                    q_BPHK, table_RHK, self.distances, view.positions_BP, 0, length, None
                )
        if P2C in self.terms:
            to_queries = query if self.shared_projections else project("position_query")
            table_RHK = to_queries(table_RD)
            if view.positions_BP is None:
                terms[P2C] = relative.relative_key_scores(k_BMHK, table_RHK, self.distances)
            else:
                terms[P2C] = relative.rotated_key_scores(k_BMHK, table_RHK, self.distances, view.positions_BP)
        added_BHPM = reduce(add, terms.values()) if terms else None
        self._record(q_BPHK, k_BMHK, view, terms, added_BHPM)
        drop = partial(Dropout(self.attention_dropout), train=self.train)
        mixed_BPHK = layers.attention(
            q_BPHK, k_BMHK, v_BMHK, view.visible_BPM, drop, added_BHPM, terms=1 + len(self.terms)
        )
        return Dense(heads, (self.D,), self.initializer, self.dtype, name="output")(mixed_BPHK)

    def _record(
        self, q_BPHK: Array, k_BMHK: Array, view: View, terms: dict[str, Array], added_BHPM: Array | None
    ) -> None:
        """Record the probabilities, and the terms of their scores, scaled, so that these are the logs of a softmax."""
        count = 1 + len(terms)
        scale = (count * q_BPHK.shape[-1]) ** -0.5

        def content() -> Array:
            return scale * jnp.einsum("BPHK,BMHK->BHPM", q_BPHK, k_BMHK, preferred_element_type=jnp.float32)

        probabilities = partial(layers.probabilities, q_BPHK, k_BMHK, view.visible_BPM, added_BHPM, count)
        scaled = {name: partial(mul, scale, scores_BHPM) for name, scores_BHPM in terms.items()}
        layers.record(self, attention=probabilities, **{C2C: content}, **scaled)
