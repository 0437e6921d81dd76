"""Permutation language modelling: the objective of XLNet.

    loss = Σ w·nll / Σ w over the targets, each predicted from the tokens before it in a random permutation

Yang et al. 2019 (zihangdai/xlnet, modeling.py two_stream_loss, function_builder.py). A row holds consecutive windows of
one text; each leaves the states of its first part to the next ones as memory, under `stop_gradient`. Where we deviate:
the original keeps memory from one step to the next, computed with older parameters; here the memory of a row comes from
its own windows, so that a step depends on its batch alone and the first window has no memory.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.data.tokenizer import Vocabulary
from bertjax.fields import check_fields
from bertjax.inputs import check_step
from bertjax.models.initialise import one_program
from bertjax.models.language import encode, hidden, initialised, word_table
from bertjax.models.layers import apply
from bertjax.models.perturb import perturbed_embeddings
from bertjax.models.xlnet import Memory, XLNet
from bertjax.objectives.losses import histogram, real_tokens, scores
from bertjax.permutation import Permutation, Permuted, permute
from bertjax.sharding.collectives import sums_per_replica
from bertjax.types import Array, Batch, Key, Metrics, Params, Predictions, total


class _Window(NamedTuple):
    """Inputs of a window of each row; with a leading axis, those of all windows in order."""

    dropout_key: Key
    batch: Batch
    permuted: Permuted
    delta: Array | None


class _Scan(NamedTuple):
    """The initial memory, and the windows of the rows: the carry and the inputs of a scan."""

    memory: Memory | None
    inputs: _Window


@dataclass(frozen=True)
class PermutationLM:
    """Train `encoder` to predict the targets of `permutation`. Raises ValueError where an id of it exceeds V.

    memory: how many tokens of earlier windows a window attends to (mem_len; the first part of `permutation` is
    reuse_len). Rows are one or more windows long.
    """

    encoder: XLNet
    permutation: Permutation
    memory: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        largest = max(self.permutation.functional, default=0)
        if largest >= self.encoder.V:
            raise ValueError(f"permutation uses id {largest}, but the encoder's vocabulary has V={self.encoder.V} ids")
        if self.memory < 0:
            raise ValueError(f"memory={self.memory} is negative: use 0 for none")

    @property
    def head(self) -> nn.Module:
        """The language head of the encoder."""
        return self.encoder.language_head()

    @property
    def heads(self) -> dict[str, nn.Module]:
        """Its heads by their names among the parameters."""
        return {"plm": self.head}

    @one_program
    def init(self, rng: Key, batch: Batch) -> Params:
        """Initialise {encoder, head: {plm}}."""
        encoder_key, head_key = jax.random.split(rng)
        encoder = initialised(self.encoder, encoder_key, batch)
        x_BPD = jnp.zeros((*batch["tokens"][:, :1].shape, self.encoder.D))
        return {"encoder": encoder, "head": {"plm": self.head.init(head_key, x_BPD, word_table(encoder))["params"]}}

    def encode(self, params: Params, batch: Batch) -> Array:
        """Return hidden states x_BLD of the content stream, where every token attends to all of its document."""
        return encode(self.encoder, params, batch)

    def language_logits(self, params: Params, batch: Batch, positions_BP: Array | None = None) -> Array:
        """Return logits_BPV at `positions_BP`, which attend to all other positions and not to each other.

        They come from the query stream; if None, logits at every position come from the content stream.
        """
        _, x_BPD = hidden(self.encoder, params, batch, None, positions_BP)
        return apply(self.head, params["head"]["plm"], x_BPD, word_table(params["encoder"]))

    def special_tokens(self, v: Vocabulary) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the special tokens before and after a text, as (id, segment)."""
        return [], [(v.sep, 0), (v.cls, 2)]

    def expected_targets(self, rows: int, length: int, real_tokens: float) -> dict[str, float]:
        """See ExpectsTargets."""
        windows = rows * length // self.permutation.window
        return {"loss/plm": float(windows * self.permutation.targets)}

    def loss(self, params: Params, batch: Batch, rng: Key, *, train: bool) -> tuple[Array, Metrics]:
        """Return the loss and its metrics; without `train` also the histogram of the targets, `targets/plm`.

        Only the loss has a gradient. As memory has none, the backward pass of a window follows its forward pass at
        once, and residuals are saved for one window, not for all windows of a row. Raises ValueError where rows are no
        whole number of windows, or too short for the memory.
        """
        check_step(params, ("encoder", "head"), batch, rng, self.encoder)

        def on_replica(params: Params, batch: Batch, rng: Key) -> tuple[Metrics, tuple[()]]:
            scan = self._scan_inputs(batch, rng, None)
            summed = jax.custom_vjp(partial(self._summed, train=train))
            summed.defvjp(
                partial(self._summed_and_gradient, train=train),
                lambda gradient, up: (jax.tree.map(lambda x: x * up["loss/plm"].sum, gradient), None),
            )
            return summed(params, scan) | self._counted(batch, scan, train=train), ()

        metrics, _ = sums_per_replica(on_replica)(params, _named(batch), rng)
        return total(metrics), metrics

    def outputs(
        self, params: Params, batch: Batch, rng: Key, *, train: bool, delta: Array | None = None
    ) -> tuple[Metrics, Predictions]:
        """Return the metrics of `loss`, and the predictions that they score, row by row, under `plm`.

        delta: a perturbation of the embeddings of rows, see `perturbed_embeddings`, which reaches later windows through
        memory. The learned vector of the query stream is not perturbed. Raises ValueError as `loss`.
        """
        check_step(params, ("encoder", "head"), batch, rng, self.encoder)

        def on_replica(
            params: Params, rows: tuple[Batch, Array | None], rng: Key
        ) -> tuple[Metrics, tuple[Array, Array]]:
            batch, delta = rows
            scan = self._scan_inputs(batch, rng, delta)
            step = partial(self._window_step, params, train=train)
            _, (metrics, logits_CBPV) = jax.lax.scan(step, scan.memory, scan.inputs)
            metrics = jax.tree.map(lambda x: x.sum(0), metrics) | self._counted(batch, scan, train=train)
            return metrics, (logits_CBPV.swapaxes(0, 1), scan.inputs.permuted.weights_BP.swapaxes(0, 1))

        metrics, predicted = sums_per_replica(on_replica)(params, (_named(batch), delta), rng)
        return metrics, {"plm": predicted}

    def _scan_inputs(self, batch: Batch, rng: Key, delta: Array | None) -> _Scan:
        """Prepare the inputs of all windows: each array has a leading axis of windows."""
        order_key, dropout_key = jax.random.split(rng)
        windows = self._windows(batch)
        B, C = batch["tokens"].shape[0], windows["tokens"].shape[0] // batch["tokens"].shape[0]
        permuted = permute(order_key, windows, self.permutation)
        if delta is not None:
            delta = delta.reshape(B * C, self.permutation.window, -1)
        stacked = jax.tree.map(lambda x: x.reshape(B, C, *x.shape[1:]).swapaxes(0, 1), (windows, permuted, delta))
        keys_C = jax.vmap(partial(jax.random.fold_in, dropout_key))(jnp.arange(C))
        memory = self.encoder.empty_memory(B, self.memory) if self.memory else None
        return _Scan(memory, _Window(keys_C, *stacked))

    def _window_step(
        self, params: Params, memory: Memory | None, window: _Window, *, train: bool
    ) -> tuple[Memory | None, tuple[Metrics, Array]]:
        """Run one window of each row: (memory, (metrics, logits))."""
        batch, permuted = window.batch, window.permuted
        with perturbed_embeddings(window.delta):
            streams: Any = self.encoder.apply(
                {"params": params["encoder"]}, batch["tokens"], batch["mask"], batch.get("types"),
                ranks_BL=permuted.ranks_BL, targets_BP=permuted.positions_BP, sign_B=_sign(batch), memory=memory,
                reuse=self.permutation.parts[0], train=train, rngs={"dropout": window.dropout_key}, method="streams",
            )  # fmt: skip
        logits_BPV = apply(self.head, params["head"]["plm"], streams.query_BPD, word_table(params["encoder"]))
        metrics = scores("plm", logits_BPV, permuted.targets_BP, permuted.weights_BP)
        return jax.lax.stop_gradient(streams.memory), (metrics, logits_BPV)

    def _summed(self, params: Params, scan: _Scan, *, train: bool) -> Metrics:
        """Sum the metrics of all windows."""

        def step(memory: Memory | None, window: _Window) -> tuple[Memory | None, Metrics]:
            memory, (metrics, _) = self._window_step(params, memory, window, train=train)
            return memory, metrics

        return jax.tree.map(lambda x: x.sum(0), jax.lax.scan(step, scan.memory, scan.inputs)[1])

    def _summed_and_gradient(self, params: Params, scan: _Scan, *, train: bool) -> tuple[Metrics, Params]:
        """Sum the metrics of all windows, and the gradients of their sums `loss/plm`."""

        def scored(params: Params, memory: Memory | None, window: _Window) -> tuple[Array, tuple[Any, Metrics]]:
            memory, (metrics, _) = self._window_step(params, memory, window, train=train)
            return metrics["loss/plm"].sum, (memory, metrics)

        def step(carry: tuple[Params, Any], window: _Window) -> tuple[tuple[Params, Any], Metrics]:
            gradient, (memory, metrics) = jax.grad(scored, has_aux=True)(params, carry[1], window)
            return (jax.tree.map(jnp.add, carry[0], gradient), memory), metrics

        zeros = jax.tree.map(jnp.zeros_like, params)
        (gradient, _), metrics = jax.lax.scan(step, (zeros, scan.memory), scan.inputs)
        return jax.tree.map(lambda x: x.sum(0), metrics), gradient

    def _counted(self, batch: Batch, scan: _Scan, *, train: bool) -> Metrics:
        """Return the metrics that depend on data alone."""
        metrics: Metrics = {"tokens/real": real_tokens(batch["mask"])}
        if not train:
            permuted = scan.inputs.permuted
            metrics["targets/plm"] = histogram(self.encoder.V, permuted.targets_BP, permuted.weights_BP)
        return metrics

    def _windows(self, batch: Batch) -> Batch:
        """Cut rows into windows: arrays [B · C, window], a row's one after another, each an example of its own."""
        (B, L), window, reuse = batch["tokens"].shape, self.permutation.window, self.permutation.parts[0]
        if L % window:
            raise ValueError(
                f"rows of {L} tokens do not divide into windows of parts {self.permutation.parts}: make the row's "
                f"length a multiple of {window}"
            )
        C = L // window
        if self.memory > (C - 1) * reuse:
            raise ValueError(
                f"memory={self.memory} is more than {C} windows leave to the last one, {(C - 1) * reuse} tokens: "
                "shorten memory, or put more windows into a row"
            )
        windows = {name: x.reshape(B * C, window) for name, x in batch.items() if x.ndim == 2}
        windows["example"] = (batch["example"][:, None] * C + jnp.arange(C, dtype=jnp.uint32)[None]).reshape(B * C)
        if "backward" in batch:
            windows["backward"] = jnp.repeat(batch["backward"], C)
        return windows


def _named(batch: Batch) -> Batch:
    """Number the rows of a batch that does not name its examples, before it is split."""
    return {"example": jnp.arange(len(batch["tokens"]), dtype=jnp.uint32), **batch}


def _sign(batch: Batch) -> Array | None:
    return None if "backward" not in batch else 1 - 2 * batch["backward"]
