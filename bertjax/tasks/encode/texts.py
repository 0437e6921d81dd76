"""Encode one text or a pair of texts, for a class or a number. google-research/bert run_classifier.py."""

from collections.abc import Sequence

import numpy as np

from bertjax.data.templates import Templates, framed, specials
from bertjax.data.tokenizer import Tokenizer
from bertjax.data.two_segments import truncate
from bertjax.tasks.encode.sequences import Tokenized, tokenized
from bertjax.tasks.examples import Texts
from bertjax.tasks.reading import Notes
from bertjax.tasks.task import Task


def encode_texts(
    examples: Sequence[Texts], tokenizer: Tokenizer, notes: Notes, *, task: Task, templates: Templates, length: int
) -> Tokenized:
    """Encode texts and pairs of texts; of a pair that is too long, truncate the longer text first."""
    encoded = [
        tokenizer.ids([example.texts[part] for example in examples if len(example.texts) > part]) for part in (0, 1)
    ]
    ids = [iter(column) for column in encoded]
    sequences = []
    for example in examples:
        a, b = next(ids[0]), next(ids[1]) if len(example.texts) > 1 else []
        template = templates.pair if len(example.texts) > 1 else templates.text
        kept_a, kept_b = truncate(len(a), len(b), length - specials(template))
        notes[f"texts truncated to {length} tokens"] += kept_a + kept_b < len(a) + len(b)
        notes["texts without any token in the vocabulary"] += not a or (len(example.texts) > 1 and not b)
        sequences.append(framed(template, tokenizer.vocabulary, a[:kept_a], b[:kept_b]))
    return tokenized(sequences, _labels(examples, task))


def _labels(examples: Sequence[Texts], task: Task) -> np.ndarray | None:
    """Return class numbers i32 [R], regression targets f32 [R] or, of any number of labels, which are given f32 [R, C].

    None if an example has no label.
    """
    if task.kind == "multilabel":
        return _given_labels(examples, task)
    if not all(example.label for example in examples):
        return None
    read = task.value if task.kind == "regress" else task.number
    dtype = np.float32 if task.kind == "regress" else np.int32
    return np.array([read(example.origin, example.label) for example in examples], dtype)


def _given_labels(examples: Sequence[Texts], task: Task) -> np.ndarray | None:
    given_RC = np.zeros((len(examples), len(task.labels)), np.float32)
    for row, example in enumerate(examples):
        if example.labels is None:
            return None
        given_RC[row, [task.number(example.origin, label) for label in example.labels]] = 1
    return given_RC
