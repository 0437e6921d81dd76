"""A published model, for inference: an encoder and the heads that it was published with."""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bertjax.data.tokenizer import Vocabulary
from bertjax.errors import InputError
from bertjax.inputs import require
from bertjax.models.heads import LanguageHead, Pooler, ReplacedInContextHead, TransformedHead
from bertjax.models.initialise import one_program
from bertjax.models.language import encode, hidden, initialised, word_table
from bertjax.models.layers import apply
from bertjax.models.sentence import SentenceEmbedding
from bertjax.models.span_heads import BeamSpanHead
from bertjax.rules import Rules
from bertjax.types import Array, Batch, Key, Params

TASKS = ("classify", "choice", "tags", "span", "beams", "rtd", "pair")
LABELLED = {"classify", "tags"}
"""Heads whose classes have names."""
ProblemType = Literal["", "regression", "single_label_classification", "multi_label_classification"]
"""What a head `classify` predicts, as config.json of a Hugging Face folder names it."""


@dataclass(frozen=True)
class Published:
    """An encoder and its heads by name: each is a `LanguageHead`, or the head of a task under a name of TASKS.

    cls_last: texts end with the classification token (XLNet) instead of starting with it. labels: the names of the
    classes of a head of LABELLED, in order, if known. problem_type: what a head `classify` predicts; by default
    regression for one class, else single_label_classification.
    """

    encoder: Any
    named_heads: tuple[tuple[str, nn.Module], ...] = ()
    cls_last: bool = False
    labels: tuple[str, ...] = ()
    problem_type: ProblemType = ""

    @property
    def predicts(self) -> ProblemType:
        """What its head `classify` predicts: `problem_type`, or its default. "" if it has no such head."""
        head = self.heads.get("classify")
        if head is None:
            return ""
        return self.problem_type or ("regression" if head.C == 1 else "single_label_classification")

    @property
    def heads(self) -> dict[str, nn.Module]:
        """Its heads by their names among the parameters."""
        return dict(self.named_heads)

    @property
    def frozen(self) -> Rules:
        """The rates of what only pre-training reads of the encoder, which would only decay: none."""
        return tuple((f"^encoder/{pattern}", 0.0) for pattern in getattr(self.encoder, "pretraining_only", ()))

    @one_program
    def init(self, rng: Key, batch: Batch) -> Params:
        """Initialise {encoder, head: {name: …}}; `head` only where there is one."""
        encoder_key, head_key = jax.random.split(rng)
        encoder = initialised(self.encoder, encoder_key, batch)
        x_BLD = jnp.zeros((*batch["tokens"].shape, self.encoder.D))
        head = {}
        for name, module in self.named_heads:
            predicts_ids = isinstance(module, LanguageHead)
            inputs = (x_BLD[:, :1], word_table(encoder)) if predicts_ids else (x_BLD, *_besides(module, batch))
            # A head that is the word table alone has no parameters.
            head[name] = module.init(head_key, *inputs).get("params", {})
        return {"encoder": encoder, "head": head} if head else {"encoder": encoder}

    def encode(self, params: Params, batch: Batch, **options: Any) -> Array:
        """Return hidden states x_BLD of tokens as they are. options: `train` and `rngs`, for fine-tuning."""
        return encode(self.encoder, params, batch, **options)

    def language_logits(self, params: Params, batch: Batch, positions_BP: Array | None = None) -> Array:
        """Return logits_BPV at `positions_BP`, where the tokens are masks, or at every position if None.

        Raises InputError where the model has no language head.
        """
        name = next((name for name, module in self.named_heads if isinstance(module, LanguageHead)), None)
        if name is None:
            raise InputError(f"this model has no language-model head: {self._has()}")
        _, x_BPD = hidden(self.encoder, params, batch, None, positions_BP)
        return apply(self.heads[name], params["head"][name], x_BPD, word_table(params["encoder"]))

    @property
    def task(self) -> str:
        """The name of its task head. Raises InputError where it has none."""
        found = {name for name, module in self.named_heads if not isinstance(module, Pooler)}
        name = next((name for name in TASKS if name in found), None)
        if name is None:
            raise InputError(f"this model has no task head: {self._has()}; fine-tune it on a task first")
        return name

    def task_logits(self, params: Params, batch: Batch) -> Any:
        """Return the output of the task head: logits of rows [B, C], or of tokens [B, L, C] (replaced ones [B, L]).

        The two logits of a token for spans are of starts and ends; a conditional span head returns `Beams` and reads
        `context`. For a choice the arrays of the batch are [B, C, L], one row an option. Raises InputError
        where there is no such head.
        """
        name = self.task
        rows = one_by_one(batch)
        logits = apply_head(self.heads[name], params["head"][name], self.encode(params, rows), batch=rows)
        return logits.reshape(batch["tokens"].shape[:-1]) if name == "choice" else logits

    def special_tokens(self, v: Vocabulary) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the special tokens before and after a text, as (id, segment)."""
        return ([], [(v.sep, 0), (v.cls, 2)]) if self.cls_last else ([(v.cls, 0)], [(v.sep, 0)])

    def _has(self) -> str:
        return f"its heads are {', '.join(self.heads)}" if self.named_heads else "it is an encoder alone"


def one_by_one(batch: Batch) -> Batch:
    """Reshape the options of questions [B, C, L] to rows [B·C, L]; return rows unchanged."""
    require(batch, "tokens")
    if getattr(batch["tokens"], "ndim", 2) != 3:
        return batch
    return {name: array.reshape(-1, array.shape[-1]) for name, array in batch.items() if array.ndim == 3}


def apply_head(module: nn.Module, params: Params, x_BLD: Array, *more: Array, batch: Batch, **options: Any) -> Any:
    """Apply the head of a task to hidden states; options: `train` and `rngs`, for fine-tuning."""
    return apply(module, params, x_BLD, *_besides(module, batch), *more, **options)


def _besides(module: nn.Module, batch: Batch) -> tuple[Array, ...]:
    """Return the arrays of a batch that a head reads besides hidden states."""
    if isinstance(module, BeamSpanHead):
        return (batch.get("context", batch["mask"]),)
    return (batch["mask"],) if isinstance(module, TransformedHead | ReplacedInContextHead | SentenceEmbedding) else ()
