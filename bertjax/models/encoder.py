"""The post-norm encoder of BERT, RoBERTa, ALBERT, ELECTRA and DistilBERT, which differ in its fields.

Devlin et al. 2018 (google-research/bert, modeling.py); Liu et al. 2019 (fairseq, models/roberta); Lan et al. 2019
(google-research/albert, modeling.py). Where we deviate: padded positions see only padding (in the originals they see
the text; nothing reads them), and positions restart in each document of a packed row.
"""

import flax.linen as nn
import jax.numpy as jnp

from bertjax.fields import check_fields
from bertjax.inputs import check_rows
from bertjax.models import layers
from bertjax.models.heads import MaskedLMHead
from bertjax.models.layers import (
    Activation,
    Attend,
    Dense,
    Dropout,
    FeedForward,
    Initializer,
    Norm,
    SelfAttention,
    Table,
)
from bertjax.types import Array


class Encoder(nn.Module):
    """Encode tokens i32 [B, L] to hidden states [B, L, D].

    Raises ValueError at construction where the fields contradict each other, and when called on rows longer than
    `max_length`.

    Example:
        encoder = bertjax.Encoder(V=30522, D=128, N=2, H=2, F=512)  # BERT tiny
        tokens = jnp.array([[101, 7592, 2088, 102]])
        mask = jnp.ones_like(tokens)
        params = encoder.init(jax.random.key(0), tokens, mask)["params"]
        x_BLD = encoder.apply({"params": params}, tokens, mask)  # [1, 4, 128]

    Attributes:
        V: ids in the vocabulary: rows of the word table, padding and special tokens included
        D: width of the hidden states, a multiple of H
        N: layers
        H: attention heads, each D / H wide
        F: width inside the feed-forward
        E: embedding width where it is not D: then a dense layer projects from E to D (ALBERT)
        positions: rows of the position table
        first_position: its row for the first token; RoBERTa starts at 2
        unnumbered: tokens of this id get the row before the first and are not counted (RoBERTa: pad)
        types: rows of the segment table; 0: no such table (RoBERTa)
        dropout: share of the elements that are dropped after the embeddings and each sublayer, in training
        attention_dropout: share of the attention probabilities that are dropped, in training
        activation: of the feed-forward and the language head: a function, such as layers.gelu
        norm_eps: added to the variance in layer norms
        initializer: of weights and tables; biases begin at 0, scales of norms at 1
        project_initializer: of the layer from E to D, where it is another one (ELECTRA)
        shared: one set of parameters for all layers (ALBERT)
        groups: of shared layers: groups of successive ones, each with parameters of its own
        inner: sets of parameters of a group; each of N layers applies all of them in turn
        tied_head: the language head multiplies by the word table; else by a table of its own
        remat: rematerialised: nothing ("none"), all but matrix products ("dots"), whole layers ("full")
        dtype: of the computation; parameters are float32
        attend: attention itself: layers.attend, or a kernel that equals it, `kernels.fused_attend`
        unroll: unroll the scan over layers: faster, but slower to compile
    """

    V: int
    D: int
    N: int
    H: int
    F: int
    E: int | None = None
    positions: int = 512
    first_position: int = 0
    unnumbered: int | None = None
    types: int = 2
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: Activation = layers.gelu
    norm_eps: float = 1e-12
    initializer: Initializer = layers.TruncatedNormal(0.02)
    project_initializer: Initializer | None = None
    shared: bool = False
    groups: int = 1
    inner: int = 1
    tied_head: bool = True
    remat: str = "none"
    dtype: str = "float32"
    attend: Attend = layers.attend
    unroll: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        layers.check_encoder(self, "V", "D", "N", "H", "F", "E", "positions")
        if self.first_position >= self.positions:
            raise ValueError(f"first_position={self.first_position} is beyond the {self.positions} positions")
        if self.first_position < 0:
            raise ValueError(f"first_position={self.first_position} must be 0 or more")
        if not 1 <= self.groups <= self.N or self.inner < 1:
            raise ValueError(f"groups={self.groups} must be 1 to N={self.N}, inner={self.inner} 1 or more")
        if (self.groups, self.inner) != (1, 1) and not self.shared:
            raise ValueError(f"groups={self.groups}, inner={self.inner} are of shared layers: set shared=true")

    @property
    def max_length(self) -> int:
        """The longest row that the position table covers."""
        return self.positions - self.first_position

    @property
    def embedding_width(self) -> int:
        """The width of the word table: E, or D where the embeddings are not factorised."""
        return self.E or self.D

    @property
    def table_sizes(self) -> dict[str, int]:
        """The sizes that must be equal in two encoders that share their embeddings."""
        names = ("embedding_width", "positions", "first_position", "types")
        return {name: getattr(self, name) for name in names}

    @nn.nowrap
    def language_head(self) -> MaskedLMHead:
        """Return the head that predicts ids from its hidden states."""
        return MaskedLMHead(
            self.V, self.D, self.embedding_width, self.activation, self.norm_eps, self.initializer, self.dtype,
            tied=self.tied_head,
        )  # fmt: skip

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

        visible_BLM: which keys each token attends to, by default all of its document. Who passes it sees to it that
        every token sees one, and that no document is longer than `max_length`: a row may hold two copies of a text.
        """
        check_rows(self, tokens_BL, mask_BL, types_BL)
        if tokens_BL.shape[1] > self.max_length and visible_BLM is None:
            raise ValueError(
                f"rows of length {tokens_BL.shape[1]} exceed the {self.max_length} positions of the encoder: "
                "shorten the rows or raise `positions`"
            )
        x_BLE = Embeddings(
            self.V, self.embedding_width, self.positions, self.first_position, self.types,
            self.dropout, self.norm_eps, self.initializer, self.dtype, self.unnumbered, name="embeddings",
        )(tokens_BL, mask_BL, types_BL, train=train)  # fmt: skip
        x_BLD = x_BLE
        if self.E is not None:
            x_BLD = Dense(
                (self.E,), (self.D,), self.project_initializer or self.initializer, self.dtype, name="project"
            )(x_BLE)
        one = self.shared and self.groups * self.inner == 1
        repeated = self._sets() if self.shared and not one else None
        layer = layers.stack(
            EncoderLayer, self.N * self.inner, remat=self.remat, shared=one, dtype=self.dtype,
            initializing=self.is_initializing(), unroll=self.unroll, repeated=repeated,
        )(
            self.D, self.H, self.F, self.dropout, self.attention_dropout, self.activation,
            self.norm_eps, self.initializer, self.dtype, self.attend, train, name="layer" if one else "layers",
        )  # fmt: skip
        x_BLD, _ = layer(x_BLD, mask_BL, visible_BLM)
        return x_BLD

    @nn.nowrap
    def _sets(self) -> list[int]:
        """Return the set of parameters of each layer that is applied; groups are split as ALBERT's code splits them."""
        groups = [int(layer / (self.N / self.groups)) for layer in range(self.N)]
        return [group * self.inner + index for group in groups for index in range(self.inner)]


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings of width E, before any projection, then norm and dropout."""

    V: int
    E: int
    positions: int
    first_position: int
    types: int
    dropout: float
    norm_eps: float
    initializer: Initializer
    dtype: str
    unnumbered: int | None = None

    @nn.compact
    def __call__(self, tokens_BL: Array, mask_BL: Array, types_BL: Array | None, *, train: bool) -> Array:
        def table(rows: int, name: str) -> Table:
            return Table(rows, self.E, self.initializer, self.dtype, name=name)

        positions_BL = layers.restarting_positions(mask_BL) + self.first_position
        if self.unnumbered is not None:
            counted_BL = (tokens_BL != self.unnumbered).astype(jnp.int32)
            positions_BL = layers.restarting_count(counted_BL, mask_BL) * counted_BL + self.first_position - 1
        x_BLE = table(self.V, "word")(tokens_BL) + table(self.positions, "position")(positions_BL)
        if self.types:
            types_BL = jnp.zeros_like(tokens_BL) if types_BL is None else types_BL
            x_BLE += table(self.types, "type")(types_BL)
        return Dropout(self.dropout)(Norm(self.E, self.norm_eps, name="norm")(x_BLE), train=train)


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each followed by dropout, the residual sum and a norm."""

    D: int
    H: int
    F: int
    dropout: float
    attention_dropout: float
    activation: Activation
    norm_eps: float
    initializer: Initializer
    dtype: str
    attend: Attend
    train: bool

    @nn.compact
    def __call__(self, x_BLD: Array, mask_BL: Array, visible_BLM: Array | None) -> tuple[Array, None]:
        layers.record(self, before=lambda: x_BLD)
        attend = SelfAttention(
            self.D, self.H, self.attention_dropout, self.initializer, self.dtype, self.attend, name="attention"
        )
        feed = FeedForward(self.D, self.F, self.activation, self.initializer, self.dtype, name="feedforward")
        h_BLD = Dropout(self.dropout)(attend(x_BLD, mask_BL, visible_BLM, train=self.train), train=self.train)
        x_BLD = Norm(self.D, self.norm_eps, name="attention_norm")(x_BLD + h_BLD)
        h_BLD = Dropout(self.dropout)(feed(x_BLD), train=self.train)
        return Norm(self.D, self.norm_eps, name="feedforward_norm")(x_BLD + h_BLD), None
