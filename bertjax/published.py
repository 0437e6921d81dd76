"""A model as others publish it: an encoder and the heads that came with it, ready to use, with nothing to train it."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.data.tokenizer import Vocabulary
from bertjax.errors import InputError
from bertjax.heads import Pooler, ReplacedInContextHead, TransformedHead
from bertjax.layers import apply
from bertjax.models.encoder import word_table
from bertjax.objectives.mlm import hidden
from bertjax.types import Array, Batch, Key, Params

LANGUAGE = ("mlm", "plm")
TASKS = ("classify", "choice", "tags", "span", "rtd", "pair")


@dataclass(frozen=True)
class Published:
    """Hold an encoder and its heads by name: those of LANGUAGE guess words, those of TASKS read hidden states.

    cls_last: texts end with the classification token (XLNet) instead of starting with it.
    """

    encoder: Any
    named_heads: tuple[tuple[str, nn.Module], ...] = ()
    cls_last: bool = False

    @property
    def heads(self) -> dict[str, nn.Module]:
        """Its heads by their names among the parameters."""
        return dict(self.named_heads)

    def init(self, rng: Key, batch: Batch) -> Params:
        """Make {encoder, head: {name: …}}; `head` only where there is one."""
        encoder_key, head_key = jax.random.split(rng)
        encoder = self.encoder.init(encoder_key, batch["tokens"], batch["mask"], batch.get("types"))["params"]
        x_BLD = jnp.zeros((*batch["tokens"].shape, self.encoder.D))
        head = {}
        for name, module in self.named_heads:
            inputs = (x_BLD[:, :1], word_table(encoder)) if name in LANGUAGE else _inputs(module, x_BLD, batch)
            head[name] = module.init(head_key, *inputs)["params"]
        return {"encoder": encoder, "head": head} if head else {"encoder": encoder}

    def encode(self, params: Params, batch: Batch) -> Array:
        """Return hidden states x_BLD of tokens as they are."""
        return apply(self.encoder, params["encoder"], batch["tokens"], batch["mask"], batch.get("types"))

    def language_logits(self, params: Params, batch: Batch, positions_BP: Array | None = None) -> Array:
        """Return logits_BPV of what stands at `positions_BP`, where the tokens have masks; without them at all.

        Raises InputError where no head guesses words.
        """
        name = next((name for name, _ in self.named_heads if name in LANGUAGE), None)
        if name is None:
            raise InputError(f"this model has no language-model head: {self._has()}")
        _, x_BPD = hidden(self.encoder, params, batch, batch["tokens"], positions_BP)
        return apply(self.heads[name], params["head"][name], x_BPD, word_table(params["encoder"]))

    def task_logits(self, params: Params, batch: Batch) -> Array:
        """Return what the task head says: of rows [B, C], of tokens [B, L, C] (replaced ones [B, L]).

        A span's two logits of a token are for its beginning and its end. For a choice the arrays of the batch are
        [B, C, L], one row an option. Raises InputError where there is no such head.
        """
        found = {name for name, module in self.named_heads if not isinstance(module, Pooler)}
        name = next((name for name in TASKS if name in found), None)
        if name is None:
            raise InputError(f"this model has no task head: {self._has()}")
        options = batch["tokens"].shape[:-1]
        if name == "choice":
            batch = {key: array.reshape(-1, array.shape[-1]) for key, array in batch.items()}
        module = self.heads[name]
        logits = apply(module, params["head"][name], *_inputs(module, self.encode(params, batch), batch))
        return logits.reshape(options) if name == "choice" else logits

    def around(self, v: Vocabulary) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Name the specials before and after a text, as (id, segment)."""
        return ([], [(v.sep, 0), (v.cls, 2)]) if self.cls_last else ([(v.cls, 0)], [(v.sep, 0)])

    def _has(self) -> str:
        return f"its heads are {', '.join(self.heads)}" if self.named_heads else "it is an encoder alone"


def _inputs(module: nn.Module, x_BLD: Array, batch: Batch) -> tuple[Array, ...]:
    reads_mask = isinstance(module, TransformedHead | ReplacedInContextHead)
    return (x_BLD, batch["mask"]) if reads_mask else (x_BLD,)
