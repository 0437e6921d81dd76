"""ALBERT: parameters shared across layers, masked n-grams and sentence order (Lan et al. 2019; google-research/albert).

    bertjax tokenizer train text/ --format plain --kind unigram --size 30000 --lowercase --out spm/
    bertjax data build text/ --format plain --tokenizer spm/ --out corpus/
    bertjax pretrain experiments/albert.py size=base data=corpus/ dtype=bfloat16 --workdir runs/albert

Recipe: 125k steps of 4096 rows of 512, LAMB at 1.76e-3 after 3,125 steps of warm-up, no bias correction, weight decay
0.01 (run_pretraining.py, lamb_optimizer.py); 40 passes of pairs with static masks of n-grams up to 3 words, at most 20
predictions a row (create_pretraining_data.py); dropout 0 as in the v2 models, 0.1 in the first ones but xxlarge.
Published: xxlarge 32 hours on 512 TPU v3. Expected: no pre-training loss was published.

Deviations: n-grams partition the words of a row instead of being drawn around random anchors (bertjax.masking); a chunk
of one sentence is split in the middle instead of being paired with a random document (bertjax.data.pairs).
"""

from typing import Literal

from bertjax.checkpoints.described import size_of, sized_as
from bertjax.config import Experiment, Phase
from bertjax.data.pairs import SentenceOrderPairs
from bertjax.data.records import read_manifest
from bertjax.data.tokenizer import Vocabulary
from bertjax.masking import Masking, ngrams
from bertjax.models.encoder import Encoder
from bertjax.models.layers import gelu_tanh
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import lamb
from bertjax.optim.schedules import BertLinear

SIZES = {
    "base": {"N": 12, "D": 768, "H": 12, "F": 3072},
    "large": {"N": 24, "D": 1024, "H": 16, "F": 4096},
    "xlarge": {"N": 24, "D": 2048, "H": 16, "F": 8192},
    "xxlarge": {"N": 12, "D": 4096, "H": 64, "F": 16384},
}
PUBLISHED = Vocabulary(30000, pad=0, unk=1, cls=2, sep=3, mask=4)


def experiment(
    size: Literal["auto", "base", "large", "xlarge", "xxlarge"] = "auto",  # that of init, or base
    data: str = "",
    init: str = "",  # a model to start from, of which the sizes are taken
    steps: int = 125_000,
    warmup: int = 3125,
    batch_size: int = 4096,
    length: int = 512,
    dropout: float = 0.0,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Build the experiment."""
    v = read_manifest(data).vocabulary if data else PUBLISHED
    encoder = Encoder(
        V=v.size, E=128, shared=True, activation=gelu_tanh, dropout=dropout, attention_dropout=dropout, dtype=dtype,
        **SIZES[size_of(size, SIZES, init, "base")],
    )  # fmt: skip
    masking = Masking(
        mask_id=v.mask, random_ids=(0, v.size), specials=(v.cls, v.sep), unit=ngrams(3), max_predictions=20, seed=12345
    )
    return Experiment(
        objective=sized_as(init, MaskedLM(encoder, masking, pair=True)),
        optimizer=lamb(BertLinear(1.76e-3, warmup, steps)),
        phases=(Phase(steps, batch_size, SentenceOrderPairs(data, length, duplicates=40)),),
        init=init,
    )
