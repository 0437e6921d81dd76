"""Encode multiple choice: one sequence for each option. google-research/albert race_utils.py."""

from collections.abc import Sequence

import numpy as np

from bertjax.data.templates import Templates, framed, specials
from bertjax.data.tokenizer import Tokenizer
from bertjax.errors import InputError
from bertjax.tasks.encode.sequences import Tokenized, tokenized
from bertjax.tasks.examples import Choice
from bertjax.tasks.reading import Notes
from bertjax.tasks.task import Task
from bertjax.wording import counted


def encode_choices(
    examples: Sequence[Choice],
    tokenizer: Tokenizer,
    notes: Notes,
    *,
    task: Task,
    templates: Templates,
    length: int,
    ending: int,
) -> Tokenized:
    """Encode a context with each of its endings: keep the last `ending` tokens of an ending, the first of a context."""
    template = templates.option
    contexts = tokenizer.ids([example.context for example in examples])
    endings = iter(tokenizer.ids([text for example in examples for text in example.endings]))
    longest = min(ending, length - specials(template))
    sequences, first = [], [0]
    for example, context in zip(examples, contexts, strict=True):
        if len(example.endings) > task.options:
            raise InputError(
                f"{example.origin}: {counted(len(example.endings), 'options')}, but task {task.name} has {task.options}"
            )
        for _ in example.endings:
            ids = next(endings)
            notes["options without any token in the vocabulary"] += not ids
            notes[f"options truncated to their last {longest} tokens"] += len(ids) > longest
            ids = ids[-longest:]
            room = length - specials(template) - len(ids)
            notes[f"contexts truncated to fit {length} tokens"] += len(context) > room
            sequences.append(framed(template, tokenizer.vocabulary, context[:room], ids))
        first.append(len(sequences))
    labels = np.array([example.label for example in examples], np.int32)
    return tokenized(sequences, labels if (labels >= 0).all() else None, first=np.array(first, np.int64))
