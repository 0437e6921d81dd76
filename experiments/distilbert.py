"""DistilBERT: a student with half of BERT's layers (Sanh et al. 2019; huggingface/transformers, distillation).

    bertjax data build wiki/ --format wikiextractor --tokenizer vocab.txt --out corpus/
    bertjax pretrain experiments/distilbert.py teacher=runs/base data=corpus/ dtype=bfloat16 --workdir runs/distilbert

The teacher is a BERT or RoBERTa: a work directory, `folder:part`, or a Hugging Face folder; its vocabulary is
that of the corpus. Without one the plan is BERT-base's: `bertjax plan experiments/distilbert.py` counts the student as
`trained`.

Recipe: three passes over Wikipedia and books, 2000 rows a step (8 GPUs, 50 micro-batches of 5); the student is
initialised with layers 0, 2, 4, 7, 9, 11, the embeddings without segments and the head of the teacher; 5 · soft targets
at temperature 2 + 2 · masked LM + 1 · cosine; Adam β .9/.98, no weight decay, clipped at 5, linear from 5e-4 after 5%
of the steps (distiller.py, train.py, scripts/extract_distilbert.py). Published hardware: 8 V100 of 16 GB, 90 hours.
Expected: about 97% of the teacher's GLUE score (README.md).

Deviations: rows of full sentences instead of single lines grouped by length, so three passes are fewer
rows (the steps here are our arithmetic: 3 · 4.3 billion pieces in 2000 rows of 512); 15% of each row, where the
original draws from a whole batch; every piece is equally likely to be masked, where the original prefers rare ones by
count^-0.7 (a corpus does not record the frequencies of pieces).
"""

import dataclasses
from typing import Literal

from bertjax.checkpoints.trained import load
from bertjax.config import Experiment, Phase
from bertjax.data.records import read_manifest
from bertjax.data.rows import FullSentences
from bertjax.data.tokenizer import Vocabulary
from bertjax.masking import Masking
from bertjax.models.encoder import Encoder
from bertjax.objectives.distil import FROZEN_TEACHER, Distillation
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule

UNCASED = Vocabulary(30522, pad=0, unk=100, cls=101, sep=102, mask=103)
CASED = Vocabulary(28996, pad=0, unk=100, cls=101, sep=102, mask=103)


def encoder_of(teacher: str) -> Encoder:
    """Return the teacher's encoder. Raises ValueError if it is several models, or not a BERT."""
    model = load(teacher)
    if "encoder" not in model.params:
        raise ValueError(f"teacher={teacher} is several models: name one, such as {teacher}:{next(iter(model.params))}")
    if not isinstance(model.encoder, Encoder):
        raise ValueError(
            f"teacher={teacher} is a {type(model.encoder).__name__}; the student of this recipe is half a BERT or "
            "RoBERTa: for another pair write an experiment with bertjax.Distillation"
        )
    return model.encoder


def experiment(
    teacher: str = "",
    data: str = "",
    cased: bool = False,  # which published vocabulary to plan with, where there is neither teacher nor corpus
    layers: tuple[int, ...] = (0, 2, 4, 7, 9, 11),  # of the teacher: as many has the student
    steps: int = 12_600,
    batch_size: int = 2000,
    accumulate: int = 50,
    length: int = 512,
    learning_rate: float = 5e-4,
    warmup: float = 0.05,  # of the steps
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Build the experiment."""
    v = read_manifest(data).vocabulary if data else CASED if cased else UNCASED
    big = encoder_of(teacher) if teacher else Encoder(V=v.size, D=768, N=12, H=12, F=3072)
    big = dataclasses.replace(big, dtype=dtype)
    small = dataclasses.replace(big, N=len(layers), types=0)
    masking = Masking(mask_id=v.mask, random_ids=(0, v.size), specials=(v.cls, v.sep))
    return Experiment(
        objective=Distillation(small, big, masking, layers),
        optimizer=Optimizer(
            Schedule(learning_rate, round(warmup * steps), steps),
            b2=0.98,
            weight_decay=0.0,
            clip=5.0,
            rates=(*FROZEN_TEACHER, (r".*", 1.0)),
        ),
        phases=(Phase(steps, batch_size, FullSentences(data, length), accumulate),),
        init=teacher,
    )
