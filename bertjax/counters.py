"""Where the counters of a run begin: the rows of a later phase, and the seed of a run that continues a model.

Batches, masks and dropout are functions of a seed and a counter, so a counter that restarts under the same seed repeats
them. An experiment has one of these rules; a work directory keeps the rule that it began with.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Counters(Protocol):
    """Protocol for a rule: a frozen dataclass, so that it can be described."""

    def first_example(self, earlier: Sequence[int]) -> int:
        """Return the number of a phase's first example. earlier: the examples of each earlier phase on equal rows."""
        ...

    def stream_seed(self, seed: int, model: str) -> int:
        """Return the seed of the order of rows, of masks and of dropout, 0 or above.

        model: the digest of the parameters that the run starts from, "" where all are freshly initialised.
        """
        ...


@dataclass(frozen=True)
class Continued:
    """Continue: a phase goes on where phases on equal rows stopped; the model in `init` is mixed into the seed.

    So no row is served twice before all were served once, and a run with the data, the seed and the batch size of the
    run that it continues has batches, masks and dropout of its own.
    """

    def first_example(self, earlier: Sequence[int]) -> int:
        """See Counters.first_example."""
        return sum(earlier)

    def stream_seed(self, seed: int, model: str) -> int:
        """See Counters.stream_seed."""
        if not model:
            return seed
        return int.from_bytes(hashlib.sha256(f"{seed} {model}".encode()).digest()[:4]) >> 1


CONTINUED = Continued()


@dataclass(frozen=True)
class Restarted:
    """Restart: every phase begins at row 0, and every run of a seed has the same streams. Runs before version 0.2."""

    def first_example(self, earlier: Sequence[int]) -> int:
        """See Counters.first_example."""
        return 0

    def stream_seed(self, seed: int, model: str) -> int:
        """See Counters.stream_seed."""
        return seed
