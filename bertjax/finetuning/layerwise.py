"""Layer-wise learning rates, as rules: lower, or zero, for layers nearer to the input.

Howard and Ruder 2018; Clark et al. 2020 (google-research/electra model/optimization.py, whose exponent for the last
layer is 2, not 1: issue 51 there). Parameters of layers are stacked, so the value of a rule is a tuple of rates, one
for each layer.
"""

from typing import Any

from bertjax.rules import Rules


def layerwise(N: int, decay: float = 1.0, *, skipped: int = 0, frozen: int = 0, shared: bool = False) -> Rules:
    """Return rules of rate multipliers: 1 for the head, decay^(1 + skipped) for the last of N layers, and so on down.

    Each layer has `decay` times the rate of the layer above it; embeddings, and all else below the layers, come after
    the first layer. skipped: 1 is ELECTRA as published, -1 gives the last layer the rate of the head, as XLNet. frozen:
    number of lowest layers that are not trained, nor are the embeddings. Freezing saves no time unless all layers are
    frozen: the backward scan runs over all layers, so their gradients are computed and dropped. Layers that share their
    parameters (`shared`: ALBERT, with stacks where it has groups) have the last one's rate, or are all frozen; if only
    some would be, no rule covers them, and `match` raises. Raises ValueError for a decay outside (0, 1], and for more
    frozen layers than there are.

    XLNet's own code scales gradients, which Adam undoes, and leaves the embeddings alone; here updates are scaled.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay} must be in (0, 1]: 1 gives all layers the same rate")
    if not 0 <= frozen <= N:
        raise ValueError(f"frozen={frozen} of the lowest layers, but there are {N}")
    rates: Any = tuple(0.0 if layer < frozen else decay ** (N - layer + skipped) for layer in range(N))
    last, below = decay ** (1 + skipped), 0.0 if frozen else decay ** (N + 1 + skipped)
    if shared and not 0 < frozen < N:
        rates = 0.0 if frozen else last
    one: Rules = () if 0 < frozen < N else ((r"^encoder/layer/", 0.0 if frozen else last),)
    return (
        (r"^head/", 1.0),
        (r"^encoder/layers/", rates),
        *one,
        (r"^encoder/final_norm/", last),
        (r"^encoder/(?!layer/)", below),
    )
