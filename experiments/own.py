"""Your own task: fine-tuning on files train and validation in a folder, with columns of your choice.

    bertjax finetune experiments/own.py kind=classify columns=text label=topic init=bert/ data=mine/ --workdir runs/mine
    bertjax finetune experiments/own.py kind=tag columns=words label=tags init=bert/ data=mine/ --workdir runs/mine

classify, multilabel and regress read .tsv, .csv or .jsonl with one or two columns of text; for multilabel a text has
any number of labels, as a list in .jsonl, else in one cell with `separator` between them (quoted in a .csv); tag reads
.conll, or .jsonl with lists of words and of tags; span reads .json as SQuAD 2.0 has it, or .jsonl with
columns=question,context; choice reads .jsonl with a context, a list of endings, and the number of the correct one, or
.tsv and .csv with a column for each ending. The hyperparameters are BERT's for GLUE, one setting for all kinds;
override what you need.
"""

from typing import Literal

from bertjax.finetuning.recipe import FineTuning, Recipe
from bertjax.models.span_heads import electra_span_head, xlnet_span_head
from bertjax.tasks.own import own_task

HEADS = {"plain": None, "xlnet": xlnet_span_head, "electra": electra_span_head}  # of spans


def experiment(
    init: str,
    data: str,
    kind: Literal["classify", "multilabel", "regress", "tag", "span", "choice"] = "classify",
    columns: tuple[str, ...] = ("text",),
    label: str = "label",
    separator: str = ",",  # between the labels of a text
    tags: Literal["", "entities", "words"] = "",  # by default entities if they have marks (B-, I-) or one is O
    labels: tuple[str, ...] = (),  # pairs neg:NEGATIVE,pos:POSITIVE of the data and of init; or new, for a fresh head
    head: Literal["plain", "xlnet", "electra"] = "plain",
    seeds: int = 3,
    epochs: float = 3.0,
    learning_rate: float = 3e-5,
    batch_size: int = 32,
    length: int = 128,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> FineTuning:
    """Build the fine-tuning."""
    recipe = Recipe(learning_rate, batch_size, epochs=epochs, length=length)
    room = {"question": min(64, length // 2), "ending": min(128, length // 2), "stride": min(128, length // 2)}
    task = own_task(kind, data, columns, label, separator=separator, tags=tags)
    return FineTuning(task, data, init, recipe, seeds, head=HEADS[head], labels=labels, dtype=dtype, **room)
