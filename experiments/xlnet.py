"""XLNet: predict tokens in random orders, with memory of earlier windows (Yang et al. 2019; zihangdai/xlnet).

    bertjax data build text/ --format plain --tokenizer spiece.model --out corpus/
    bertjax pretrain experiments/xlnet.py size=base data=corpus/ dtype=bfloat16 --workdir runs/xlnet

Recipe: windows of 512 tokens, of which 85 are predicted, in both directions, memory of 384, 256 of them from each
window; 500k steps at 4e-4, 40k steps of warm-up, linear, BERT's Adam with eps 1e-6, weight decay 0.01 also on the
biases of attention (paper, appendix A; data_utils.py, model_utils.py). The published version of the paper has batches
of 8192 windows and 5.5 days on 512 TPU v3 chips, which is the default; its first version and the repository's command
have 2048 and 2.5 days: `batch_size=2048`. Expected: no loss was published; small batches are known to stall.

Deviations: memory lasts for a row of `windows` windows, not from step to step (objectives/plm.py), so 1/windows of them
have none; targets and the order are drawn at every step (`objective.permutation.seed=1` fixes the targets of each
example, as in the published data); relative positions have no dropout (models/xlnet.py).
"""

from typing import Literal

from bertjax.checkpoints.described import size_of, sized_as
from bertjax.config import Experiment, Phase
from bertjax.data.records import corpus_tokenizer, read_manifest
from bertjax.data.tokenizer import Vocabulary
from bertjax.data.windows import Windows
from bertjax.models.xlnet import XLNet
from bertjax.objectives.plm import PermutationLM
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import Schedule
from bertjax.permutation import Permutation

SIZES = {
    "tiny": {"N": 4, "D": 128, "H": 2, "F": 512},  # not published: for a CPU
    "base": {"N": 12, "D": 768, "H": 12, "F": 3072},
    "large": {"N": 24, "D": 1024, "H": 16, "F": 4096},
}
PUBLISHED, EOD = Vocabulary(32000, pad=5, unk=0, cls=3, sep=4, mask=6), 7


def experiment(
    size: Literal["auto", "tiny", "base", "large"] = "auto",  # that of init, or base
    data: str = "",
    init: str = "",  # a model to start from, of which the sizes are taken
    steps: int = 500_000,
    batch_size: int = 8192,  # windows; the paper's first version: 2048
    windows: int = 8,  # in a row
    window: int = 512,
    targets: int = 85,  # of a window
    memory: int | None = None,  # none: 3/4 of a window as published, or what earlier windows leave
    learning_rate: float = 4e-4,
    warmup: int = 40_000,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Build the experiment."""
    if window % 2 or windows < 1 or batch_size % (2 * windows):
        raise ValueError(
            f"window={window} must be even, windows={windows} 1 or more, and batch_size={batch_size} a multiple of "
            "twice as many, for both directions"
        )
    remembered = (windows - 1) * window // 2
    memory = min(window * 3 // 4, remembered) if memory is None else memory
    if memory > remembered:
        raise ValueError(f"memory={memory} is longer than its source: windows={windows} leave {remembered} tokens")
    v, boundary = (read_manifest(data).vocabulary, end_of_document(data)) if data else (PUBLISHED, EOD)
    permutation = Permutation(functional=(v.sep, v.cls), parts=(window // 2, window // 2), targets=targets)
    rows = Windows(data, reuse=window // 2, length=windows * window, window=window, boundary=boundary)
    encoder = XLNet(V=v.size, dtype=dtype, **SIZES[size_of(size, SIZES, init, "base")])
    return Experiment(
        objective=sized_as(init, PermutationLM(encoder, permutation, memory)),
        optimizer=bert_adam(Schedule(learning_rate, warmup, steps)),
        phases=(Phase(steps, batch_size // windows, rows),),
        init=init,
    )


def end_of_document(data: str) -> int:
    """Return the id of the piece that ends a document: <eod>, or the separator in vocabularies without it."""
    tokenizer = corpus_tokenizer(data)
    pieces = map(tokenizer.piece, range(tokenizer.vocabulary.size))
    return next((index for index, piece in enumerate(pieces) if piece == "<eod>"), tokenizer.vocabulary.sep)
