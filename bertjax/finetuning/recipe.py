"""The configuration of a fine-tuning: its hyperparameters, and the model and task that they apply to."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import optax

from bertjax.config import Run
from bertjax.finetuning.layerwise import layerwise
from bertjax.models.span_heads import SpanHead
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import BertLinear, ElectraLinear, Schedule
from bertjax.rules import Rules
from bertjax.tasks.pooling import Pool
from bertjax.tasks.task import Task

_RUN = Run(log_every=50)
_DECIDED = {
    "evaluate_every": "set `evaluations`, their number in an epoch",
    "evaluate_batches": "the whole split is evaluated",
    "keep": "the best model is kept, and the newest checkpoint until there is a result",
    "keep_every": "the best model is kept, and the newest checkpoint until there is a result",
}


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of fine-tuning.

    steps: instead of epochs, for recipes that count in steps. warmup: a fraction of the steps, or their number if above
    1. length: maximum tokens of a row. decay, skipped, frozen: see layerwise. renewed: number of top layers that are
    freshly initialised, and the pooler with them. dropout: of the head, by default that of its family. encoder_dropout:
    everywhere in the encoder, by default as pre-trained. adversary: weight of SiFT's divergence, 0 for none. schedule:
    called with peak, warm-up steps and all steps. both_orders, unit_range: see TaskRows. Adam corrects its bias, unlike
    BERT's: without, fine-tuning on small data sets fails more often (Mosbach et al. 2020).
    Raises ValueError for numbers out of range.
    """

    learning_rate: float
    batch_size: int = 32
    epochs: float = 3.0
    steps: int = 0
    warmup: float = 0.1
    length: int = 128
    decay: float = 1.0
    skipped: int = 0
    frozen: int = 0
    renewed: int = 0
    dropout: float | None = None
    encoder_dropout: float | None = None
    adversary: float = 0.0
    weight_decay: float = 0.01
    b2: float = 0.999
    eps: float = 1e-6
    clip: float = 1.0
    schedule: Callable[[float, int, int], Schedule | BertLinear | ElectraLinear] = Schedule
    moments: Callable[[float, float, float], optax.GradientTransformation] = optax.scale_by_adam
    both_orders: bool = False
    unit_range: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate} must be above 0")
        if self.steps < 0 or (not self.steps and not 0 < self.epochs < math.inf):
            raise ValueError(f"epochs={self.epochs}, steps={self.steps}: one of them must be positive and finite")
        if self.batch_size < 1 or self.warmup < 0:
            raise ValueError(f"batch_size={self.batch_size} must be 1 or more, warmup={self.warmup} 0 or more")
        for name in ("dropout", "encoder_dropout"):
            share = getattr(self, name)
            if share is not None and not 0 <= share < 1:
                raise ValueError(f"{name}={share} must be in [0, 1)")

    def changed(
        self, *, learning_rate: float = 0.0, batch_size: int = 0, epochs: float = 0.0, length: int = 0
    ) -> "Recipe":
        """Replace the values that are not 0. Epochs replace steps, and a warm-up counted in steps becomes 0.1."""
        numbers = {"learning_rate": learning_rate, "batch_size": batch_size, "length": length}
        given: dict[str, Any] = {name: number for name, number in numbers.items() if number}
        if epochs:
            given |= {"epochs": epochs, "steps": 0, "warmup": min(self.warmup, 0.1)}
        return replace(self, **given)

    def count(self, rows: int) -> int:
        """Return the number of updates for a training split of this many rows."""
        return self.steps or max(1, round(self.epochs * rows / self.batch_size))

    def optimizer(self, layers: int, steps: int, first: Rules, *, shared: bool = False) -> Optimizer:
        """Build the optimiser of an encoder with this many layers, which may share their parameters.

        first: rules before those of layer-wise rates.
        """
        warmup = round(self.warmup * steps) if self.warmup <= 1 else min(steps, int(self.warmup))
        return Optimizer(
            self.schedule(self.learning_rate, warmup, steps),
            moments=self.moments,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            clip=self.clip,
            rates=(*first, *layerwise(layers, self.decay, skipped=self.skipped, frozen=self.frozen, shared=shared)),
        )


@dataclass(frozen=True)
class FineTuning:
    """A complete fine-tuning: the model, the task, the recipe and the seeds.

    init: a trained model, as for `load`. head: builds a conditional head for spans; by default the family's own, which
    predicts starts and ends independently. labels: pairs label:LABEL of labels of the task and of the model, if names
    differ by more than capitals, or `new` for a fresh head; see labels.with_labels_of. evaluations: number in an epoch.
    stride, question, ending, shortest, pool: see TaskRows. class_weights: see weights.class_weights. patience: a seed
    ends after this many evaluations without a new best one, 0 for never. rates: learning rates to try in turn, see
    sweep.sweep. longest, threshold: of answers in evaluation, see answers.answer_questions.
    """

    task: Task
    data: str
    init: str
    recipe: Recipe
    seeds: int = 5
    first_seed: int = 0
    evaluations: int = 1
    head: SpanHead | None = None
    stride: int = 128
    question: int = 64
    ending: int = 128
    longest: int = 30
    threshold: float = 0.0
    labels: tuple[str, ...] = ()
    dtype: str = "float32"
    run: Run = _RUN
    shortest: int = 0
    pool: Pool | None = None
    class_weights: tuple[str, ...] = ()
    patience: int = 0
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, instead in _DECIDED.items():
            if getattr(self.run, name) != getattr(_RUN, name):
                raise ValueError(f"run.{name}={getattr(self.run, name)} has no effect on fine-tuning: {instead}")
        if self.seeds < 1 or self.evaluations < 1 or self.first_seed < 0:
            given = f"seeds={self.seeds}, evaluations={self.evaluations}, first_seed={self.first_seed}"
            raise ValueError(f"{given}: seeds and evaluations must be at least 1, first_seed at least 0")
        if self.patience < 0:
            raise ValueError(f"patience={self.patience} is negative: use 0 for no early end")
        if len({*self.rates}) < len(self.rates) or not all(0 < rate < math.inf for rate in self.rates):
            raise ValueError(f"rates={self.rates}: each must be a number above 0, and named once")
        if self.longest < 1 or not math.isfinite(self.threshold):
            raise ValueError(f"longest={self.longest} must be 1 or more, threshold={self.threshold} a number")
        if self.head is not None and self.task.kind != "span":
            raise ValueError(
                f"head={self.head.__name__} predicts spans, which task {self.task.name} has none of: leave it out"
            )
