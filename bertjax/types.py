"""Dimension letters, type aliases and the protocol Objective, which the whole package uses.

Arrays end in their dimensions, one letter each (`x_BLD`, `logits_BPV`):

    B  rows in a batch            V  vocabulary
    L  positions in a row         D  model width
    M  positions seen as keys     E  embedding width, where it differs from D
    P  predicted positions        H  attention heads
    N  layers                     K  width of one head, D / H
    C  classes                    F  feed-forward width
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array  # a typed key, as jax.random.key makes it

Params = Mapping[str, Any]
"""A nested dict of arrays. Its top-level keys are public: encoder, head; for two models generator, discriminator."""

Batch = Mapping[str, Array]
"""The arrays that an objective reads:

    tokens       i32 [B, L]  ids before corruption
    mask         i32 [B, L]  0 at padding, else which document of the row a token belongs to (1 in an unpacked row)
    types        i32 [B, L]  segment: A, B, and 2 at XLNet's <cls>
    word_starts  i32 [B, L]  1 at the first piece of a word
    pair         i32 [B]     the label of the pair term: 0 in order, 1 not
    backward     i32 [B]     1 where a row holds its text from its end to its beginning
    given        i32 [B, L]  1 where a token is never masked by diffusion: the prompt of an answer
    example      u32 [B]     which example this is; names its random draws

A batch of a task (bertjax/tasks/rows.py) has tokens, mask, types, example and, where they are known, labels:

    labels       i32 [B]     the class of a row, or f32 [B] its number
                 f32 [B, C]  1 for each label of a row that may have any number of C
                 i32 [B, L]  the tag of a word at its first piece, -1 at all that is not scored
                 i32 [B, 2]  the first and the last piece of an answer, both at the <cls> where there is none
                 i32 [B]     the right one of C options; tokens, mask and types are then [B, C, L]
    answerable   i32 [B]     1 where the row holds an answer
    context      i32 [B, L]  1 where an answer may begin and end, in the rows of a question

A batch of pairs (bertjax/tasks/text_pairs.py) has anchors in tokens, mask and types, and for each K passages, its own
first, then hard negatives:

    passage_tokens, passage_mask, passage_types   i32 [B, K, M]
    texts        i32 [B, 1 + K]  the number of each text of a row, equal for equal texts; -1 where there is none

A row of padding has mask 0 throughout and weighs nothing; so has an option that a question does not have.

A micro-batch also says where its rows stand in the batch of their step, see `bertjax.random.global_rows`:

    global_row   u32 [B]     the number of the row in the global batch
    global_rows  u32 [B]     how many rows the global batch has
    global_key   key [B]     the key of the step
"""


class Mean(NamedTuple):
    """A sum and its weight, divided only at the very end: exact over micro-batches, hosts and ragged batches."""

    sum: Array
    weight: Array


Metrics = dict[str, Mean]
"""`group/name` -> Mean. The entries of group `loss` are the terms of the loss: it is the sum of their means."""


Predictions = dict[str, tuple[Array, Array]]
"""name -> (logits [..., C], weights [...]): distributions that an objective scores, and which of them count.

With C = 1 they are no logits: each is a number that the objective compares with another.
"""


@runtime_checkable
class Objective(Protocol):
    """Protocol for a model and the loss that it is trained with: the trainer's only view of a model."""

    def init(self, rng: Key, batch: Batch) -> Params:
        """Initialise the parameters; only the shapes and dtypes of `batch` matter."""
        ...

    def loss(self, params: Params, batch: Batch, rng: Key, *, train: bool) -> tuple[Array, Metrics]:
        """Return the scalar to minimise, f32 [], and its metrics.

        The scalar is the sum of the means in group `loss/`. An implementation keeps these rules:

        - The weights of the means in group `loss/` depend on the batch and on `rng` alone, not on `params`. So
          gradients accumulate exactly: the weights of all micro-batches are known before the first gradient.
        - `train` turns dropout on and changes nothing else, unless the objective documents it. So the loss that is
          evaluated is the one that is trained.
        - `batch` may be a part of the global batch. Under accumulation it is a micro-batch, with a key of its own, and
          with several replicas (`sharding.collectives.per_replica`) only the rows of one replica. So no draw may depend
          on `len(batch["tokens"])` or on a row's place in `batch`. A row's own draws come from `random.row_keys` or,
          for dropout, from `random.hash_bits` with `first_row`; draws over the whole batch, such as one of each
          stratum, from `random.global_rows`.
        - The sums and weights of all metrics are sums over rows, so that those of parts can be added up.
        """
        ...


def positions(batch: Mapping[str, Any]) -> int:
    """Return the number of positions of a batch, or of its shapes, padding included: those of all arrays of tokens."""
    return sum(array.size for name, array in batch.items() if name.endswith("tokens"))


def total(metrics: Metrics) -> Array:
    """Sum the terms of the loss: the means in group `loss`."""
    return sum((average(mean) for name, mean in metrics.items() if name.startswith("loss/")), jnp.float32(0))


def average(mean: Mean) -> Array:
    """Divide the sum by its weight; 0 where the weight is 0, never NaN."""
    return mean.sum / jnp.where(mean.weight == 0, 1, mean.weight)
