"""Encode one text or a pair of texts, for a class or a number. google-research/bert run_classifier.py."""

from collections.abc import Sequence

import numpy as np

from bertjax.data.templates import Templates, framed, specials
from bertjax.data.tokenizer import Tokenizer
from bertjax.data.two_segments import truncate
from bertjax.tasks.encode.questions import sliding_windows
from bertjax.tasks.encode.sequences import Tokenized, tokenized
from bertjax.tasks.examples import Texts
from bertjax.tasks.reading import Notes
from bertjax.tasks.task import Task


def encode_texts(
    examples: Sequence[Texts],
    tokenizer: Tokenizer,
    notes: Notes,
    *,
    task: Task,
    templates: Templates,
    length: int,
    stride: int = 0,
) -> Tokenized:
    """Encode texts and pairs of texts; of a pair that is too long, truncate the longer text first.

    stride: instead, a row for each window of a text that is too long, a window every `stride` tokens; of a pair the
    longer text is cut into windows, beside the shorter one, of which half of a row is kept.
    """
    encoded = [
        tokenizer.ids([example.texts[part] for example in examples if len(example.texts) > part]) for part in (0, 1)
    ]
    ids = [iter(column) for column in encoded]
    sequences, example_of_row = [], []
    for number, example in enumerate(examples):
        a, b = next(ids[0]), next(ids[1]) if len(example.texts) > 1 else []
        template = templates.pair if len(example.texts) > 1 else templates.text
        room = length - specials(template)
        notes["texts without any token in the vocabulary"] += not a or (len(example.texts) > 1 and not b)
        if stride and len(a) + len(b) > room:
            notes[f"texts longer than {length} tokens, read in windows"] += 1
            rows = _windows(a, b, room, stride)
        else:
            kept_a, kept_b = truncate(len(a), len(b), room)
            notes[f"texts truncated to {length} tokens"] += kept_a + kept_b < len(a) + len(b)
            rows = [(a[:kept_a], b[:kept_b])]
        sequences += [framed(template, tokenizer.vocabulary, *row) for row in rows]
        example_of_row += [number] * len(rows)
    labels, numbers = _labels(examples, task), np.array(example_of_row, np.int64)
    return tokenized(sequences, None if labels is None else labels[numbers], example_of_row=numbers)


def _windows(a: list[int], b: list[int], room: int, stride: int) -> list[tuple[list[int], list[int]]]:
    """Return the windows of two texts that are too long together: of the longer one, beside the other."""
    first = len(a) >= len(b)
    long, short = (a, b) if first else (b, a)
    short = short[: room // 2]
    cuts = sliding_windows(len(long), room - len(short), stride)
    parts = [long[start : start + size] for start, size in cuts]
    return [(part, short) if first else (short, part) for part in parts]


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
