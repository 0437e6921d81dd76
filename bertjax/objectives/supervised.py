"""Supervised objectives for fine-tuning: an encoder and the head of a task, trained on labels.

    classes    mean over rows of the nll of the label
    WeightedClasses   the same, rows weighing as their labels
    labels     mean over rows of the mean over labels of their binary cross-entropy, each label by itself
    numbers    mean over rows of (y - label)²
    tags       mean over scored tokens of the nll of the tag
    options    mean over questions of the nll of the right option among the question's
    spans      mean over rows of (nll of the first token + nll of the last) / 2, among the row's tokens
    BeamSpans  the same, the last given the first, both among the context's, + weight · nll of there being an answer

Devlin et al. 2018 (google-research/bert run_classifier.py, run_squad.py); Yang et al. 2019 (zihangdai/xlnet
run_race.py, function_builder.py); Clark et al. 2020 (google-research/electra finetune/). Where we deviate: the softmax
over a row's tokens leaves padding out, which BERT's counts; means are over labels, so rows of padding weigh nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from bertjax.fields import check_fields
from bertjax.inputs import check_ids, check_step, require
from bertjax.models.heads import LanguageHead
from bertjax.models.perturb import perturbed_embeddings
from bertjax.models.published import Published, apply_head, one_by_one
from bertjax.models.span_heads import HIDDEN, SpanLogits
from bertjax.objectives.losses import real_tokens, scaled, scores, weighted_mean
from bertjax.rules import EVERYTHING, STACKED, Rules, match
from bertjax.types import Array, Batch, Key, Mean, Metrics, Params, Predictions, total

Head = Callable[..., Any]
"""(x_BLD, more …) -> the output of the head of the task, with parameters, mask and dropout bound."""

Score = Callable[[Head, Array, Batch], tuple[Metrics, Predictions]]
"""(head, x_BLD, batch) -> (metrics, predictions): the terms of the loss with their accuracies, and what they score."""


def classes(head: Head, x_BLD: Array, batch: Batch) -> tuple[Metrics, Predictions]:
    """Score one of C labels for each row."""
    logits_BC, real_B = head(x_BLD), _real(batch)
    _check_labels(batch, logits_BC.shape[-1])
    return scores("classify", logits_BC, batch["labels"], real_B), {"classify": (logits_BC, real_B)}


@dataclass(frozen=True)
class WeightedClasses:
    """Score one of C labels for each row, a row weighing as its label: torch.nn.CrossEntropyLoss(weight).

    The loss is the weighted mean, Σ w·nll / Σ w; the accuracy counts rows alike. Raises ValueError for a weight that is
    not positive.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(weight > 0 for weight in self.weights):
            raise ValueError(f"weights={self.weights} must be above 0")

    def __call__(self, head: Head, x_BLD: Array, batch: Batch) -> tuple[Metrics, Predictions]:
        logits_BC, real_B = head(x_BLD), _real(batch)
        weights_B = real_B * jnp.array(self.weights, jnp.float32)[batch["labels"]]
        found = scores("classify", logits_BC, batch["labels"], real_B)
        found["loss/classify"] = scores("classify", logits_BC, batch["labels"], weights_B)["loss/classify"]
        return found, {"classify": (logits_BC, real_B)}


def labels(head: Head, x_BLD: Array, batch: Batch) -> tuple[Metrics, Predictions]:
    """Score any number of C labels for each row. torch.nn.BCEWithLogitsLoss, as in transformers."""
    logits_BC, real_B = head(x_BLD), _real(batch)
    logits_BC2 = jnp.stack([logits_BC, jnp.zeros_like(logits_BC)], axis=-1)  # of the label, of its absence
    weights_BC = jnp.broadcast_to(real_B[:, None] / logits_BC.shape[-1], logits_BC.shape)
    absent_BC = 1 - batch["labels"].astype(jnp.int32)
    return scores("labels", logits_BC2, absent_BC, weights_BC, normaliser=real_B), {"labels": (logits_BC2, weights_BC)}


def numbers(head: Head, x_BLD: Array, batch: Batch) -> tuple[Metrics, Predictions]:
    """Score a number for each row: the head has one output."""
    y_B1, real_B = head(x_BLD), _real(batch)
    squares = weighted_mean(jnp.square(y_B1[:, 0] - batch["labels"]), real_B)
    return {"loss/regress": squares}, {"regress": (y_B1, real_B)}


def tags(head: Head, x_BLD: Array, batch: Batch) -> tuple[Metrics, Predictions]:
    """Score a label for each token that has one, 0 or above."""
    logits_BLC = head(x_BLD)
    _check_labels(batch, logits_BLC.shape[-1], lowest=-1)
    scored_BL = ((batch["labels"] >= 0) & (batch["mask"] > 0)).astype(jnp.float32)
    labels_BL = jnp.maximum(batch["labels"], 0)
    return scores("tags", logits_BLC, labels_BL, scored_BL), {"tags": (logits_BLC, scored_BL)}


def options(head: Head, x_BLD: Array, batch: Batch) -> tuple[Metrics, Predictions]:
    """Score the options of a question [B, C, L], each a row: the head has one output."""
    _check_labels(batch, batch["mask"].shape[1])
    given_BC = batch["mask"].any(-1)  # a question may have fewer options than others
    logits_BC = jnp.where(given_BC, head(x_BLD).reshape(given_BC.shape), HIDDEN)
    return scores("choice", logits_BC, batch["labels"], _real(batch)), {"choice": (logits_BC, _real(batch))}


def spans(head: Head, x_BLD: Array, batch: Batch) -> tuple[Metrics, Predictions]:
    """Score the first and the last token of an answer; without one both are the classification token."""
    logits_BL2 = jnp.where((batch["mask"] > 0)[..., None], head(x_BLD), HIDDEN)
    return _ends(logits_BL2[..., 0], logits_BL2[..., 1], batch)


@dataclass(frozen=True)
class BeamSpans:
    """Score answers with a conditional head, given the right start. weight: of the answerability term.

    Raises ValueError for a weight below 0.
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} must be 0 or more")

    def __call__(self, head: Head, x_BLD: Array, batch: Batch) -> tuple[Metrics, Predictions]:
        logits: SpanLogits = head(x_BLD, batch["labels"][:, 0])
        metrics, predictions = _ends(logits.start_BL, logits.end_BL, batch)
        real_B = _real(batch)
        logits_B2 = jnp.stack([logits.unanswerable_B, jnp.zeros_like(logits.unanswerable_B)], axis=-1)
        answerable = scores("answerable", logits_B2, batch["answerable"], real_B)
        answerable["cross_entropy/answerable"] = answerable["loss/answerable"]
        answerable["loss/answerable"] = scaled(answerable["loss/answerable"], self.weight)
        return metrics | answerable, predictions | {"answerable": (logits_B2, real_B)}


def _ends(start_BL: Array, end_BL: Array, batch: Batch) -> tuple[Metrics, Predictions]:
    """Score both ends of a span, as one term of the loss."""
    _check_labels(batch, start_BL.shape[1])
    real_B = _real(batch)
    found: Metrics = {}
    ends = {"start": start_BL, "end": end_BL}
    for column, (name, logits_BL) in enumerate(ends.items()):
        found |= scores(name, logits_BL, batch["labels"][:, column], real_B)
    loss = (found.pop("loss/start").sum + found.pop("loss/end").sum) / 2
    return {"loss/span": Mean(loss, real_B.sum())} | found, {
        name: (logits_BL, real_B) for name, logits_BL in ends.items()
    }


def _check_labels(batch: Batch, C: int, lowest: int = 0) -> None:
    """Raise InputError where a label that is known now is none of C."""
    check_ids("labels", batch["labels"], C, f"they are {lowest} to {C - 1}", lowest=lowest)


def _real(batch: Batch) -> Array:
    """Return which rows are not padding: f32 [B]."""
    mask = batch["mask"]
    return mask.any(tuple(range(1, mask.ndim))).astype(jnp.float32)


@dataclass(frozen=True)
class Supervised:
    """Train `model`, an encoder and one head, on the labels that `score` reads.

    inherited: rules on names, True for parameters that are taken from the model in an experiment's `init`. renewed: how
    many of the top layers are freshly initialised instead. pooler_of: the head of that model whose pooler the head is
    initialised from, where it has none of the same name: `pair` of BERT and ALBERT.
    Raises ValueError where the model does not have one head, of a task, or fewer layers than are renewed.
    """

    model: Published
    score: Score
    inherited: Rules = EVERYTHING
    renewed: int = 0
    pooler_of: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        names = [name for name, _ in self.model.named_heads]
        if len(names) != 1 or isinstance(self.head[1], LanguageHead):
            raise ValueError(f"fine-tuning needs one head, of a task: this model has {', '.join(names) or 'none'}")
        if not 0 <= self.renewed <= self.encoder.N:
            raise ValueError(f"renewed={self.renewed} top layers, but the encoder has N={self.encoder.N}")
        if self.renewed and getattr(self.encoder, "shared", False):
            raise ValueError(
                f"renewed={self.renewed}: the layers of this encoder share parameters, so none can be initialised alone"
            )

    @property
    def encoder(self) -> Any:
        """The encoder."""
        return self.model.encoder

    @property
    def head(self) -> tuple[str, nn.Module]:
        """The head and its name among the parameters."""
        return self.model.named_heads[0]

    @property
    def objective(self) -> Published:
        """The objective that serves the trained model."""
        return self.model

    @property
    def frozen(self) -> Rules:
        """The rules that an optimiser's rates must begin with: see Published.frozen."""
        return self.model.frozen

    def init(self, rng: Key, batch: Batch) -> Params:
        """Initialise {encoder, head: {name: …}}."""
        return self.model.init(rng, one_by_one(batch))

    def remap_params(self, found: Params) -> Params:
        """Return the inherited parameters of the model in `init`; of stacks the layers that are not renewed.

        A stack of no more layers than are renewed is left out: ModernBERT's first layer has no attention_norm, so that
        of N layers holds N - 1. Raises ValueError for a model in parts.
        """
        if "encoder" not in found:
            raise ValueError(f"fine-tuning begins with one encoder: name one of its parts, {' or '.join(found)}")
        name, heads = self.head[0], found.get("head", {})
        head = dict(heads.get(name, {}))
        if self.pooler_of and "pooler" in heads.get(self.pooler_of, {}):
            head.setdefault("pooler", heads[self.pooler_of]["pooler"])
        params = {"encoder": found["encoder"], "head": {name: head}}
        inherited, stacked = (flatten_dict(match(rules, params)) for rules in (self.inherited, STACKED))
        taken = {path: leaf for path, leaf in flatten_dict(params).items() if inherited[path]}
        taken = {
            path: leaf[: len(leaf) - self.renewed] if stacked[path] else leaf
            for path, leaf in taken.items()
            if not stacked[path] or len(leaf) > self.renewed
        }
        return unflatten_dict(taken)

    def loss(self, params: Params, batch: Batch, rng: Key, *, train: bool) -> tuple[Array, Metrics]:
        """Return the loss and its metrics."""
        metrics, _ = self.outputs(params, batch, rng, train=train)
        return total(metrics), metrics

    def encode(self, params: Params, batch: Batch) -> Array:
        """Return hidden states x_BLD of rows; each option of a question is a row."""
        return self.model.encode(params, one_by_one(batch))

    def outputs(
        self, params: Params, batch: Batch, rng: Key, *, train: bool, delta: Array | None = None
    ) -> tuple[Metrics, Predictions]:
        """Return the metrics of `loss`, and the predictions that they score. Raises ValueError without labels.

        delta: a perturbation of the embeddings, see `perturbed_embeddings`.
        """
        check_step(params, ("encoder", "head"), batch, rng)
        require(batch, "tokens", "mask")
        if "labels" not in batch:
            raise ValueError("fine-tuning needs `labels` in the batch: use rows of a task")
        encoder_key, head_key = jax.random.split(rng)
        rows = one_by_one(batch)
        with perturbed_embeddings(delta):
            x_BLD = self.model.encode(params, rows, train=train, rngs={"dropout": encoder_key})
        name, module = self.head
        in_training = partial(apply_head, batch=rows, train=train, rngs={"dropout": head_key})
        metrics, predictions = self.score(partial(in_training, module, params["head"][name]), x_BLD, batch)
        metrics["tokens/real"] = real_tokens(batch["mask"])
        return metrics, predictions
