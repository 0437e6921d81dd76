"""Your own task: fine-tuning on files train and validation in a folder, with columns of your choice.

    bertjax finetune experiments/own.py kind=classify columns=text label=topic init=bert/ data=mine/ --workdir runs/mine
    bertjax finetune experiments/own.py kind=tag columns=words label=tags init=bert/ data=mine/ --workdir runs/mine

classify, multilabel and regress read .tsv, .csv or .jsonl with one or two columns of text; for multilabel a text has
any number of labels, as a list in .jsonl, else in one cell with `separator` between them (quoted in a .csv); tag reads
.conll, or .jsonl with lists of words and of tags; span reads .json as SQuAD 2.0 has it, or .jsonl with
columns=question,context; choice reads .jsonl with a context, a list of endings, and the number of the correct one, or
.tsv and .csv with a column for each ending. The hyperparameters are BERT's for GLUE, one setting for all kinds;
override what you need.

    learning_rate=1e-5,3e-5   one work directory for each, and a table that compares them
    length=fixed              all rows of one length, of at most 128 tokens (fixed:256: of 256), so that one program is
                              compiled and not one for each length: less time on small data sets
    long=mean                 texts of more than `length` tokens are read in windows, whose logits are averaged, or
                              long=max: the highest of each class; each window is trained on the label of its text
    class_weights=balanced    rare classes weigh more in the loss; or class_weights=rare:5,common:1
    patience=3 epochs=20      a seed ends after three evaluations, one each epoch, without a better one
"""

from typing import Literal

from bertjax.finetuning.recipe import FineTuning, Recipe
from bertjax.models.span_heads import electra_span_head, xlnet_span_head
from bertjax.tasks.own import own_task
from bertjax.tasks.pooling import maximum, mean

POOLS = {"cut": None, "mean": mean, "max": maximum}  # of long texts
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
    learning_rate: tuple[float, ...] = (3e-5,),
    batch_size: int = 32,
    length: str = "128",
    long: Literal["cut", "mean", "max"] = "cut",
    class_weights: tuple[str, ...] = (),
    patience: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> FineTuning:
    """Build the fine-tuning."""
    longest, shortest = lengths(str(length))
    if not learning_rate:
        raise ValueError("learning_rate= needs a number, or several with commas between")
    recipe = Recipe(learning_rate[0], batch_size, epochs=epochs, length=longest)
    half = longest // 2
    room = {"question": min(64, half), "ending": min(128, half), "stride": min(128, half)}
    task = own_task(kind, data, columns, label, separator=separator, tags=tags)
    return FineTuning(
        task, data, init, recipe, seeds, head=HEADS[head], labels=labels, dtype=dtype, shortest=shortest,
        pool=POOLS[long], class_weights=class_weights, patience=patience, rates=learning_rate, **room,
    )  # fmt: skip


def lengths(length: str) -> tuple[int, int]:
    """Return the tokens of the longest and the shortest rows. length: 128, fixed or fixed:128."""
    fixed, _, number = length.partition(":") if length.startswith("fixed") else ("", "", length)
    number = number or ("128" if fixed == "fixed" else "")
    if fixed not in ("", "fixed") or not number.isdecimal():
        raise ValueError(f"length={length}: write a number of tokens, fixed, or fixed:256")
    return int(number), int(number) if fixed else 0
