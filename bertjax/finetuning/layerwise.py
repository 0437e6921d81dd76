"""Learning rates by depth, as rules: smaller ones, or none, for what lies nearer to the words.

Howard and Ruder 2018; Clark et al. 2020 (google-research/electra model/optimization.py, whose exponent for the last
layer is 2, not 1: issue 51 there). Parameters of layers are stacks, so a rule's value is a tuple with a rate for each.
"""

from bertjax.rules import Rules


def layerwise(N: int, decay: float = 1.0, *, skipped: int = 0, frozen: int = 0) -> Rules:
    """Give the head 1, the last of N layers decay^(1 + skipped), each layer below `decay` times the rate above it.

    Embeddings, and whatever else lies under the layers, come after the first layer. skipped: 1 is ELECTRA as published,
    -1 gives the last layer the rate of the head, as XLNet. frozen: so many of the lowest layers, and the embeddings
    under them, are not trained. That keeps what they know, but saves no time unless all layers are frozen: a scan runs
    back through all of them, so their gradients are computed and dropped. Layers that are all one (ALBERT) have the
    last one's rate, or are all frozen; where only some would be, no rule covers them, which `match` refuses. Raises
    ValueError for a decay that is no share in (0, 1], and for more frozen layers than there are.

    XLNet's own code scales gradients, which Adam undoes, and leaves the embeddings; here updates are scaled.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay} is not in (0, 1]: 1 gives all layers the same rate")
    if not 0 <= frozen <= N:
        raise ValueError(f"frozen={frozen} of the lowest layers, but there are {N}")
    rates = tuple(0.0 if layer < frozen else decay ** (N - layer + skipped) for layer in range(N))
    last, below = decay ** (1 + skipped), 0.0 if frozen else decay ** (N + 1 + skipped)
    one: Rules = () if 0 < frozen < N else ((r"^encoder/layer/", 0.0 if frozen else last),)
    return (
        (r"^head/", 1.0),
        (r"^encoder/layers/", rates),
        *one,
        (r"^encoder/final_norm/", last),
        (r"^encoder/(?!layer/)", below),
    )
