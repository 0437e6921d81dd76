"""Skip the update of a step whose loss, gradient or update is of no use, on the device: nothing waits for the host.

A skipped step leaves parameters and optimiser state as they are: the run goes on as if its batch were not there. The
decision depends on the loss and the gradient of the whole batch, and on the update, which are the same on all replicas.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bertjax.types import Array, Mean

LARGEST_LOSS = 1e3
"""Times the first loss of a run, or 1 if that is less: a loss beyond has diverged. At random initialisation a loss is
that of a uniform guess, about 10 for a vocabulary, and no model that learns does a hundred times worse."""


class Skips(NamedTuple):
    """The counters of skipped steps, and what later steps are judged by; part of a run's state.

    norm: the running mean of the norms of the gradients of the updates made; kept without `Spikes` too, over their
    default window, since an amendment may turn them on.
    """

    total: Any = np.int32(0)  # i32: steps skipped
    in_a_row: Any = np.int32(0)  # i32: of them since the last update
    updates: Any = np.int32(0)  # i32: updates made since counting began
    norm: Any = np.float32(0)  # f32
    first_loss: Any = np.float32(0)  # f32: the loss of the first update, 0 before it

    def described(self) -> dict[str, float]:
        """Return the counters as numbers that JSON keeps exactly."""
        return {name: np.asarray(value).item() for name, value in self._asdict().items()}

    @classmethod
    def of(cls, described: Mapping[str, float]) -> "Skips":
        """Return the counters from their description; {}: those of a run that has not counted yet."""
        zeros = cls()._asdict()
        return cls(*(zero.dtype.type(described.get(name, zero)) for name, zero in zeros.items()))


@dataclass(frozen=True)
class Spikes:
    """Skip steps whose gradient has a norm over `multiple` times the running mean of about `window` updates.

    The first `window` updates are all made, since the norm falls quickly at the beginning.
    Raises ValueError for numbers out of range.
    """

    multiple: float = 10.0
    window: int = 128

    def __post_init__(self) -> None:
        if not 1 < self.multiple < np.inf or self.window < 1:
            raise ValueError(
                f"spikes={self.multiple},{self.window}: the multiple must be above 1, the window 1 or more"
            )

    @staticmethod
    def parse(text: str) -> "Spikes":
        """Parse `multiple,window`, or the multiple alone. Raises ValueError for other texts."""
        multiple, comma, window = text.partition(",")
        return Spikes(float(multiple), int(window)) if comma else Spikes(float(multiple))


def total_loss(metrics: Mapping[str, Mean]) -> Array:
    """Return the scalar loss: the sum of the means in group `loss/`."""
    means = [mean for name, mean in metrics.items() if name.startswith("loss/")]
    return sum((mean.sum / jnp.where(mean.weight == 0, 1, mean.weight) for mean in means), jnp.float32(0))


def judge(skips: Skips, loss: Array, norm: Array, update: Array, spikes: Spikes | None = None) -> tuple[Array, Skips]:
    """Return whether the update of a step is made (bool []), and the counters after it.

    Not where the loss, the norm of the gradient, or that of the update, is not finite, where the loss has diverged
    (LARGEST_LOSS), or where the norm of the gradient is a spike. A finite norm of a gradient in float32 means that the
    square of every element is finite too, hence moments.
    """
    first = jnp.where(skips.first_loss == 0, loss, skips.first_loss).astype(jnp.float32)
    within = jnp.abs(loss) <= LARGEST_LOSS * jnp.maximum(1, jnp.abs(first))  # also of an infinite first loss
    usable = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(update) & within
    if spikes is not None:
        usable &= (skips.updates < spikes.window) | (norm <= spikes.multiple * skips.norm)
    share = 1 / jnp.minimum(skips.updates + 1, (spikes or Spikes()).window).astype(jnp.float32)
    made = usable.astype(jnp.int32)
    return usable, Skips(
        total=skips.total + 1 - made,
        in_a_row=jnp.where(usable, 0, skips.in_a_row + 1),
        updates=skips.updates + made,
        norm=jnp.where(usable, skips.norm + share * (norm - skips.norm), skips.norm).astype(jnp.float32),
        first_loss=jnp.where(usable, first, skips.first_loss),
    )
