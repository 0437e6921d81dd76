"""Build optax transforms from small dataclasses: the published optimisers are compositions of a few parts.

    clip global norm → moments → + weight decay · w → trust ratio per tensor → × learning rate

AdamW takes optax's moments, BERT's Adam uncorrected ones, StableAdamW clips the update of each tensor, LAMB adds the
trust ratio. `Rules` on parameter names select the parameters that are decayed, scaled or adapted.

Weight decay is multiplied by the learning rate. Fully decoupled decay, as in Composer and optimi, shrinks weights by
decay · rate / peak per step: that is `weight_decay = decay / peak` here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import optax

from bertjax.optim.schedules import LearningRate
from bertjax.optim.skipping import Spikes
from bertjax.optim.transforms import (
    scale_by_rules,
    scale_by_stable_adam,
    scale_by_trust_ratio,
    scale_by_uncorrected_adam,
)
from bertjax.rules import NOT_NORM_NOR_BIAS, Rules, matcher


@dataclass(frozen=True)
class Optimizer:
    """An optimiser, by default AdamW; see `bert_adam`, `stable_adamw` and `lamb` for the other published ones.

    clip: largest global norm of the gradient; 0 turns clipping off. decayed: rules, True where weight decay applies.
    rates: rules with factors of the learning rate; a parameter with factor 0 is frozen, without gradient and moments. A
    tuple has a factor for each slice of stacked layers (finetuning/layerwise.py); a slice with factor 0 is not updated,
    and its gradient does not count in the global norm. adapted: rules, True where LAMB's trust ratio applies. spikes:
    which steps are skipped as spikes of the gradient, such as spikes=10,128; none by default.
    """

    learning_rate: LearningRate
    moments: Callable[[float, float, float], optax.GradientTransformation] = optax.scale_by_adam
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip: float = 1.0
    decayed: Rules = NOT_NORM_NOR_BIAS
    rates: Rules = ((r".*", 1.0),)
    adapted: Rules = ((r".*", False),)
    spikes: Spikes | None = None

    def __post_init__(self) -> None:
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1)")
        for name in ("eps", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} is not a finite number of 0 or more")

    @property
    def trained(self) -> Rules:
        """Rules: True for trained parameters, False for frozen ones."""
        return tuple((pattern, any(_each(rate))) for pattern, rate in self.rates)

    def transform(self) -> optax.GradientTransformation:
        """Build the optax transform of the trained parameters (`rules.partition`)."""
        whole = all(all(_each(rate)) or not any(_each(rate)) for _, rate in self.rates)
        return optax.chain(
            optax.identity() if whole else scale_by_rules(_ones_and_zeros(self.rates)),
            optax.clip_by_global_norm(self.clip) if self.clip else optax.identity(),
            self.moments(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=matcher(self.decayed)),
            scale_by_trust_ratio(self.adapted),
            scale_by_rules(self.rates),
            optax.scale_by_learning_rate(self.learning_rate),
        )


def _each(rate: float | tuple[float, ...]) -> tuple[float, ...]:
    return rate if isinstance(rate, tuple) else (rate,)


def _ones_and_zeros(rates: Rules) -> Rules:
    """Return rules with 1 for trained slices and 0 for frozen ones."""
    return tuple(
        (pattern, tuple(float(each != 0) for each in rate) if isinstance(rate, tuple) else 1.0)
        for pattern, rate in rates
    )


bert_adam = partial(Optimizer, moments=scale_by_uncorrected_adam)
"""Adam without bias correction, for the pre-training of BERT and ELECTRA."""


stable_adamw = partial(Optimizer, moments=scale_by_stable_adam, clip=0.0)
"""StableAdamW, for the pre-training of ModernBERT: updates are clipped per tensor, gradients are not."""


lamb = partial(Optimizer, moments=scale_by_uncorrected_adam, adapted=NOT_NORM_NOR_BIAS)
"""LAMB as in ALBERT: uncorrected moments, a trust ratio per tensor except norms and biases, no clamp."""
