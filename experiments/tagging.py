"""CoNLL-2003 and WNUT-17: fine-tuning on named-entity recognition.

    bertjax finetune experiments/tagging.py task=conll2003 init=bert-base-cased/ data=conll/ --workdir runs/conll

Sources: Devlin et al. 2018, section 5.3 and appendix A.3; microsoft/DeBERTa experiments/ner. A word is tagged at
its first piece; neighbouring sentences of a document fill the row (google-research/bert issue 223). Use a cased model.
Expected on CoNLL-2003's development set: BERT-base 96.4 F1 with documents.

Deviations: Adam corrects its bias; a linear layer without the CRF that some add.
"""

from typing import Literal

from bertjax.finetuning.families import family_of
from bertjax.finetuning.recipe import FineTuning, Recipe
from bertjax.optim.schedules import BertLinear
from bertjax.tasks.table import find_task

BERT = Recipe(5e-5, 32, epochs=3, length=128, schedule=BertLinear)
RECIPES = {
    "bert": {"conll2003": BERT.changed(length=512, batch_size=16), "wnut17": BERT},
    "deberta": {"": Recipe(2e-5, 16, epochs=15, length=512, dropout=0.0)},
    "deberta-large": {"": Recipe(1e-5, 16, epochs=15, length=512, dropout=0.0)},
    "deberta-xlarge": {"": Recipe(7e-6, 16, epochs=15, length=512, dropout=0.0)},
    "deberta-v2-xlarge": {"": Recipe(4e-6, 16, epochs=15, length=512, dropout=0.0)},
    "deberta-v2-xxlarge": {"": Recipe(2.5e-6, 16, epochs=15, length=512, dropout=0.0)},
    "deberta-v3-large": {"": Recipe(9e-6, 16, epochs=10, warmup=10, length=512, dropout=0.0)},
}
NEAREST = {"deberta-v2": "deberta-v3-large"}


def experiment(
    init: str,
    data: str,
    task: Literal["conll2003", "wnut17"] = "conll2003",
    family: str = "",  # all but DeBERTa take BERT's numbers
    seeds: int = 5,
    epochs: float = 0.0,  # instead of the recipe's
    learning_rate: float = 0.0,
    batch_size: int = 0,
    length: int = 0,
    labels: tuple[str, ...] = (),  # pairs PER:PERSON of the data and of init; or new, for a fresh head
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> FineTuning:
    """Build the fine-tuning."""
    family = family or family_of(init, [*RECIPES, *NEAREST])
    table = RECIPES.get(NEAREST.get(family, family), RECIPES["bert"])
    recipe = table.get(task) or table[""]
    recipe = recipe.changed(learning_rate=learning_rate, batch_size=batch_size, epochs=epochs, length=length)
    return FineTuning(find_task(task), data, init, recipe, seeds, labels=labels, dtype=dtype)
