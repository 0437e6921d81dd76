"""GLUE: fine-tuning with the published hyperparameters of each family.

    bertjax finetune experiments/glue.py task=sst2 init=bert-base-uncased/ data=glue/ seeds=5 --workdir runs/sst2

Sources: google-research/bert README.md and run_classifier.py; fairseq examples/roberta/config/finetuning;
google-research/albert run_glue.sh; google-research/electra configure_finetuning.py; zihangdai/xlnet README.md;
microsoft/DeBERTa experiments/glue; mosaicml/examples and AnswerDotAI/ModernBERT src/evals/glue_jobs.py; JonasGeiping/
cramming config/eval/GLUE_sane.yaml; chandar-lab/NeoBERT jobs/glue. `family` selects the hyperparameters; by default
those of the family and published size of `init`, else BERT's. Expected of BERT-base on the development
sets, medians over seeds: about 92.5 on SST-2, 58 on CoLA, 89 on STS-B, 84 on MNLI, 66 on RTE. IMDB is included.

Deviations: Adam corrects its bias, since small data sets fail more often without (in Python `Recipe.moments`). RoBERTa,
DeBERTa and the modern encoders initialise RTE, MRPC and STS-B from an MNLI model: pass it as `init`. RoBERTa and
ELECTRA train on STS-B's scores divided by 5 (`recipe.unit_range`); their predictions are between 0 and 5 again.
Decay that is decoupled from the rate (ModernBERT, MosaicBERT) is decay / peak here. Dropout of the encoder is that of
pre-training; Crammed-BERT, pre-trained without, has 0.1 everywhere (config/arch/crammed-bert.yaml). What a source
omits (XLNet on most tasks, NeoBERT's choice from its sweep, the decay of MosaicBERT) is taken from its nearest table.
"""

import dataclasses
from functools import partial
from typing import Any, Literal

from bertjax.finetuning.families import family_of
from bertjax.finetuning.recipe import FineTuning, Recipe
from bertjax.optim.schedules import BertLinear, ElectraLinear, Schedule, cosine
from bertjax.tasks.table import find_task


def half_cosine(peak: float, warmup: int, total: int) -> Schedule:
    """Decay along half a period of a cosine to 0."""
    return Schedule(peak, warmup, total, cosine)


def rows(make: Any, names: str, numbers: dict[str, tuple[float, ...]]) -> dict[str, Recipe]:
    """Build a recipe for each task of a table with these columns."""
    return {task: make(**dict(zip(names.split(), row, strict=True))) for task, row in numbers.items()}


roberta = partial(Recipe, weight_decay=0.1, b2=0.98, clip=0.0, length=512)
albert = partial(Recipe, length=512, schedule=BertLinear)
electra = partial(Recipe, batch_size=32, warmup=0.1, skipped=1, schedule=ElectraLinear)
UPDATES = "learning_rate batch_size steps warmup"
EPOCHS = "learning_rate epochs batch_size warmup dropout length"
LENGTHS = {"mnli": 256, "cola": 64, "sst2": 128, "qnli": 512, "qqp": 320, "rte": 320, "mrpc": 128, "stsb": 128}


def deberta(numbers: dict[str, tuple[float, ...]]) -> dict[str, Recipe]:
    """Build the recipes of a column of DeBERTa's table: rate, epochs, batch, warm-up steps, dropout of the head."""
    return rows(Recipe, EPOCHS, {task: (*row, LENGTHS[task]) for task, row in numbers.items()})


def modern(numbers: dict[str, tuple[float, ...]]) -> dict[str, Recipe]:
    """Build the recipes of ModernBERT's table: rate, batch, epochs, decoupled decay."""
    made = partial(Recipe, warmup=0.06, b2=0.98, length=256)
    return {
        task: made(rate, int(batch_size), epochs=epochs, weight_decay=decay / rate)
        for task, (rate, batch_size, epochs, decay) in numbers.items()
    }


MODERN = {
    "mnli": (5e-5, 64, 2, 1e-6), "rte": (1e-5, 16, 3, 1e-5), "qqp": (3e-5, 16, 5, 3e-6), "cola": (5e-5, 32, 10, 5e-6),
    "mrpc": (8e-5, 32, 10, 8e-6), "qnli": (1e-5, 16, 10, 1e-6), "sst2": (3e-5, 16, 3, 3e-6),
    "stsb": (3e-5, 32, 10, 3e-6),
}  # fmt: skip
RECIPES: dict[str, dict[str, Recipe]] = {
    "bert": {"": Recipe(3e-5, 32, epochs=3, schedule=BertLinear),
             "imdb": Recipe(3e-5, 32, epochs=3, schedule=BertLinear, length=512)},
    "small": {"": Recipe(1e-4, 32, epochs=4, schedule=BertLinear)},  # of the sweep for BERTs smaller than base
    "roberta": rows(roberta, UPDATES, {
        "mnli": (1e-5, 32, 123873, 7432), "qnli": (1e-5, 32, 33112, 1986), "qqp": (1e-5, 32, 113272, 28318),
        "rte": (2e-5, 16, 2036, 122), "sst2": (1e-5, 32, 20935, 1256), "mrpc": (1e-5, 16, 2296, 137),
        "cola": (1e-5, 16, 5336, 320),
    }) | {"": roberta(1e-5, 16, epochs=10, warmup=0.06),
          "stsb": roberta(2e-5, 16, steps=3598, warmup=214, unit_range=True)},
    "albert": rows(albert, UPDATES, {
        "sst2": (1e-5, 32, 20935, 1256), "mnli": (3e-5, 128, 10000, 1000), "cola": (1e-5, 16, 5336, 320),
        "qnli": (1e-5, 32, 33112, 1986), "qqp": (5e-5, 128, 14000, 1000), "rte": (3e-5, 32, 800, 200),
        "stsb": (2e-5, 16, 3598, 214), "mrpc": (2e-5, 32, 800, 200),
    }) | {"": albert(2e-5, 32, steps=800, warmup=200)},
    "electra": {"": electra(1e-4, epochs=3, decay=0.8), "rte": electra(1e-4, epochs=10, decay=0.8),
                "stsb": electra(1e-4, epochs=10, decay=0.8, both_orders=True, unit_range=True),
                "mrpc": electra(1e-4, epochs=3, decay=0.8, both_orders=True)},
    "electra-large": {"": electra(5e-5, epochs=3, decay=0.9), "rte": electra(5e-5, epochs=10, decay=0.9),
                      "stsb": electra(5e-5, epochs=10, decay=0.9, both_orders=True, unit_range=True),
                      "mrpc": electra(5e-5, epochs=3, decay=0.9, both_orders=True)},
    "xlnet": {"": Recipe(5e-5, 32, epochs=3, weight_decay=0.0),
              "stsb": Recipe(5e-5, 32, steps=1200, warmup=120, weight_decay=0.0),
              "imdb": Recipe(2e-5, 32, steps=4000, warmup=500, weight_decay=0.0, length=512)},
    "deberta": deberta({
        "mnli": (3e-5, 3, 64, 1000, 0.1), "cola": (2e-5, 6, 32, 100, 0.15), "sst2": (2e-5, 6, 32, 500, 0.15),
        "qnli": (2e-5, 4, 32, 500, 0.15), "qqp": (2e-5, 8, 64, 500, 0.15), "rte": (2e-5, 6, 32, 100, 0.2),
        "mrpc": (2e-5, 6, 32, 50, 0.15), "stsb": (2e-5, 6, 32, 100, 0.15),
    }),
    "deberta-large": deberta({
        "mnli": (1e-5, 3, 64, 1000, 0.2), "cola": (7e-6, 6, 32, 100, 0.15), "sst2": (1e-5, 6, 32, 500, 0.15),
        "qnli": (1e-5, 4, 32, 500, 0.15), "qqp": (1e-5, 8, 64, 500, 0.15), "rte": (1e-5, 6, 32, 50, 0.2),
        "mrpc": (1e-5, 6, 32, 50, 0.15), "stsb": (7e-6, 4, 32, 100, 0.15),
    }),
    "deberta-xlarge": deberta({
        "mnli": (5e-6, 3, 64, 1000, 0.3), "cola": (5e-6, 8, 32, 100, 0.2), "sst2": (3e-6, 6, 32, 500, 0.2),
        "qnli": (7e-6, 4, 32, 500, 0.2), "qqp": (5e-6, 8, 64, 500, 0.2), "rte": (5e-6, 6, 48, 50, 0.2),
        "mrpc": (7e-6, 8, 32, 50, 0.3), "stsb": (7e-6, 4, 32, 100, 0.2),
    }),
    "deberta-v2-xlarge": deberta({
        "mnli": (4e-6, 3, 64, 1000, 0.25), "cola": (3e-6, 8, 32, 100, 0.2), "sst2": (4e-6, 4, 32, 500, 0.2),
        "qnli": (4e-6, 4, 64, 500, 0.2), "qqp": (4e-6, 10, 64, 1000, 0.2), "rte": (4e-6, 6, 48, 50, 0.2),
        "mrpc": (3.5e-6, 6, 32, 50, 0.2), "stsb": (4e-6, 4, 32, 100, 0.2),
    }),
    "deberta-v2-xxlarge": deberta({
        "mnli": (3e-6, 3, 64, 1000, 0.3), "cola": (2.5e-6, 10, 32, 100, 0.2), "sst2": (3e-6, 4, 32, 500, 0.2),
        "qnli": (3e-6, 4, 64, 500, 0.2), "qqp": (3e-6, 10, 64, 1000, 0.2), "rte": (3e-6, 6, 48, 50, 0.2),
        "mrpc": (2e-6, 6, 32, 50, 0.2), "stsb": (3e-6, 4, 32, 100, 0.2),
    }),
    "deberta-v3-xsmall": deberta({"mnli": (4.5e-5, 3, 64, 1000, 0.1)}),
    "deberta-v3-small": deberta({"mnli": (4.5e-5, 3, 64, 1500, 0.2)}),
    "deberta-v3-base": deberta({"mnli": (1.5e-5, 3, 64, 1000, 0.1)}),
    "deberta-v3-large": deberta({
        "mnli": (7e-6, 2, 64, 500, 0.3), "cola": (5.5e-6, 10, 32, 50, 0.1), "sst2": (6e-6, 8, 32, 500, 0.1),
        "qnli": (7e-6, 6, 64, 200, 0.2), "qqp": (1e-5, 6, 64, 1000, 0.2), "rte": (1e-5, 6, 32, 50, 0.3),
        "mrpc": (6e-6, 6, 32, 50, 0.2), "stsb": (7e-6, 4, 32, 50, 0.1),
    }),
    "modernbert": modern(MODERN),
    "mosaicbert": modern(MODERN | {"mnli": (5e-5, 48, 3, 1e-6)}),
    "neobert": {"": Recipe(1e-5, 16, warmup=0.06, epochs=10, length=256)},
    "crammed": {"": Recipe(4e-5, 16, epochs=5, schedule=half_cosine, encoder_dropout=0.1)},
}  # fmt: skip
NEAREST = {
    "distilbert": "bert", "xlm-roberta": "roberta", "deberta-v2": "deberta-v3-large", "deberta-v3-base": "deberta",
    "deberta-v3-small": "deberta", "deberta-v3-xsmall": "deberta",
}  # fmt: skip


def recipe_for(family: str, task: str) -> Recipe:
    """Return the recipe of a family for a task, or else of the nearest family or of its other tasks."""
    table = RECIPES[family if family in RECIPES else NEAREST[family]]
    if task in table or "" in table:
        return table.get(task) or table[""]
    if family in NEAREST:
        return recipe_for(NEAREST[family], task)
    return table.get("rte") or next(iter(table.values()))


def experiment(
    task: Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "imdb"],
    init: str,
    data: str,
    family: str = "",
    seeds: int = 5,
    epochs: float = 0.0,  # instead of the recipe's
    learning_rate: float = 0.0,
    batch_size: int = 0,
    length: int = 0,
    adversary: float = 0.0,  # weight of SiFT: 5 for DeBERTa, with epochs=6; 3 and 10 for its smallest
    labels: tuple[str, ...] = (),  # pairs positive:POS,negative:NEG of the data and of init; or new, for a fresh head
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> FineTuning:
    """Build the fine-tuning."""
    family = family or family_of(init, [*RECIPES, *NEAREST]) or "bert"
    if family not in RECIPES and family not in NEAREST:
        raise ValueError(f"family={family!r} has no recipes: choose one of {', '.join([*RECIPES, *NEAREST])}")
    recipe = recipe_for(family, task)
    recipe = recipe.changed(learning_rate=learning_rate, batch_size=batch_size, epochs=epochs, length=length)
    recipe = dataclasses.replace(recipe, adversary=adversary)
    return FineTuning(find_task(task), data, init, recipe, seeds, labels=labels, dtype=dtype)
