"""RACE, SWAG, COPA and ARC: fine-tuning on multiple choice.

    bertjax finetune experiments/choice.py task=race init=roberta-large/ data=race/ seeds=3 --workdir runs/race

Sources: google-research/albert race_utils.py and README.md; zihangdai/xlnet README.md; fairseq examples/roberta/
README.race.md; Devlin et al. 2018, section 4.4 (SWAG). All options of a question are one row of the batch. Expected on
RACE's development set: XLNet-large 81.75, and 80.3 with batches of 8.

Deviations: RoBERTa's rate is constant in its recipe, as here, without warm-up; Adam corrects its bias; these authors
have no recipe for COPA and ARC, which use that of the family's RACE in smaller batches.
"""

from typing import Literal

from bertjax.finetuning.families import family_of
from bertjax.finetuning.recipe import FineTuning, Recipe
from bertjax.optim.schedules import BertLinear, Schedule
from bertjax.tasks.table import find_task


def fixed(peak: float, warmup: int, total: int) -> Schedule:
    """Return a constant schedule after warm-up."""
    return Schedule(peak, warmup, total, decay=0)


RECIPES = {
    "bert": Recipe(2e-5, 16, epochs=3, length=512, schedule=BertLinear),
    "albert": Recipe(1e-5, 32, steps=12000, warmup=1000, length=512, schedule=BertLinear),
    "roberta": Recipe(1e-5, 16, epochs=5, warmup=0, length=512, weight_decay=0.1, b2=0.98, schedule=fixed),
    "xlnet": Recipe(2e-5, 32, steps=12000, warmup=1000, length=512, weight_decay=0.0),
}
SMALL = {"copa": (10.0, 64), "arc_easy": (5.0, 128), "arc_challenge": (5.0, 128), "swag": (3.0, 128)}
"""Epochs and length of what is smaller than RACE."""


def experiment(
    init: str,
    data: str,
    task: Literal["race", "swag", "copa", "arc_easy", "arc_challenge"] = "race",
    family: str = "",  # families without a recipe take BERT's
    seeds: int = 5,
    epochs: float = 0.0,  # instead of the recipe's
    learning_rate: float = 0.0,
    batch_size: int = 0,
    length: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> FineTuning:
    """Build the fine-tuning."""
    recipe = RECIPES.get(family or family_of(init, RECIPES), RECIPES["bert"])
    if task in SMALL:
        recipe = recipe.changed(epochs=SMALL[task][0], length=SMALL[task][1])
    recipe = recipe.changed(learning_rate=learning_rate, batch_size=batch_size, epochs=epochs, length=length)
    ending = min(128, recipe.length // 2)
    return FineTuning(find_task(task), data, init, recipe, seeds, ending=ending, dtype=dtype)
