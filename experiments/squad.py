"""SQuAD 1.1 and 2.0: fine-tuning on question answering, with the published hyperparameters of each family.

    bertjax finetune experiments/squad.py task=squad init=bert-base-uncased/ data=squad/ seeds=3 --workdir runs/squad
    bertjax evaluate squad --data squad/dev-v1.1.json --predictions .../predictions.json   # of a seed of that run

Sources: google-research/bert run_squad.py; google-research/albert run_squad_v1.py and run_squad_v2.py;
google-research/electra finetune/qa; zihangdai/xlnet scripts; transformers for RoBERTa. `head` chooses between
independent starts and ends (plain), and the conditional heads of XLNet and ELECTRA, which also learn whether there is
an answer. Published numbers are with head=xlnet for XLNet, and for ALBERT on 2.0, whose head is the same; with
head=electra for ELECTRA. transformers has the plain ones, and XLNet's for XLNet. Expected on the development sets:
BERT-base 81 exact and 88.5 F1 on 1.1, BERT-large about 83 F1 on 2.0.

Deviations: Adam corrects its bias; XLNet's layer-wise decay scales updates, where its own code scales gradients, which
Adam undoes; windows advance by word pieces (`stride`), and those without the answer are labelled with the
classification token.
"""

from typing import Literal

from bertjax.finetuning.families import family_of
from bertjax.finetuning.recipe import FineTuning, Recipe
from bertjax.models.span_heads import electra_span_head, xlnet_span_head
from bertjax.optim.schedules import BertLinear, ElectraLinear
from bertjax.tasks.table import find_task

RECIPES = {
    "bert": Recipe(3e-5, 24, epochs=2, length=384, schedule=BertLinear),
    "roberta": Recipe(1.5e-5, 48, epochs=2, warmup=0.06, length=512, b2=0.98),
    "albert": Recipe(5e-5, 48, epochs=2, length=384, schedule=BertLinear),
    "electra": Recipe(1e-4, 32, epochs=2, length=512, decay=0.8, skipped=1, schedule=ElectraLinear),
    "electra-large": Recipe(5e-5, 32, epochs=2, length=512, decay=0.9, skipped=1, schedule=ElectraLinear),
    "xlnet": Recipe(3e-5, 48, steps=8000, warmup=1000, length=512, decay=0.75, skipped=-1, weight_decay=0.0),
}
NEAREST = {
    "distilbert": "bert", "xlm-roberta": "roberta", "modernbert": "roberta", "deberta": "roberta",
    "deberta-v2": "roberta",
}  # fmt: skip
LONGEST = {"xlnet": 64}
"""Pieces of an answer; the others have 30."""
THRESHOLD = {"electra": -2.75}
"""By head: the odds above which there is no answer (version 2), as ELECTRA's flags have it."""
HEADS = {"plain": None, "xlnet": xlnet_span_head, "electra": electra_span_head}


def experiment(
    init: str,
    data: str,
    task: Literal["squad", "squad2"] = "squad",
    family: str = "",
    head: Literal["plain", "xlnet", "electra"] = "plain",
    seeds: int = 5,
    epochs: float = 0.0,  # instead of the recipe's
    learning_rate: float = 0.0,
    batch_size: int = 0,
    length: int = 0,
    stride: int = 128,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> FineTuning:
    """Build the fine-tuning."""
    family = family or family_of(init, [*RECIPES, *NEAREST]) or "bert"
    if family not in RECIPES and family not in NEAREST:
        raise ValueError(f"family={family!r} has no recipe: choose one of {', '.join([*RECIPES, *NEAREST])}")
    recipe = RECIPES[NEAREST.get(family, family)]
    recipe = recipe.changed(learning_rate=learning_rate, batch_size=batch_size, epochs=epochs, length=length)
    longest, threshold = LONGEST.get(family, 30), THRESHOLD.get(head, 0.0)
    return FineTuning(
        find_task(task), data, init, recipe, seeds, head=HEADS[head], stride=stride, longest=longest,
        threshold=threshold, dtype=dtype,
    )  # fmt: skip
