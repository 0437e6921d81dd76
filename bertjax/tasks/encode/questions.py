"""Encode questions on contexts: one row for each window of a context. google-research/bert run_squad.py."""

from collections.abc import Iterator, Sequence

import numpy as np

from bertjax.data.templates import Templates, framed, specials
from bertjax.data.tokenizer import Encoding, Tokenizer
from bertjax.tasks.encode.sequences import Tokenized, Window, tokenized
from bertjax.tasks.examples import Question
from bertjax.tasks.reading import Notes


def encode_questions(
    examples: Sequence[Question],
    tokenizer: Tokenizer,
    notes: Notes,
    *,
    templates: Templates,
    length: int,
    stride: int,
    longest_question: int,
) -> Tokenized:
    """Encode each question with every window of its context.

    A window that does not contain the whole answer is labelled with the position of <cls>. An answer's tokens are those
    that share a character with it, which is what "improving the answer span" finds there by search. White space around
    a question is stripped, as the published preprocessing of byte-level models does (transformers, run_qa.py).
    """
    template, v = templates.question, tokenizer.vocabulary
    contexts = {context: tokenizer.encode(context) for context in dict.fromkeys(x.context for x in examples)}
    questions = tokenizer.ids([example.question.strip() for example in examples])
    sequences, example_of_row, windows, labels = [], [], [], []
    for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
        context = contexts[example.context]
        ids = context.ids.tolist()
        notes["questions without any token in the vocabulary"] += not question
        notes["contexts without any token in the vocabulary"] += not ids
        notes[f"questions truncated to {longest_question} tokens"] += len(question) > longest_question
        question = question[:longest_question]
        answer = _pieces_of_answer(example, context)
        for start, size in sliding_windows(len(ids), length - specials(template) - len(question), stride):
            row = framed(template, v, question, ids[start : start + size])
            sequences.append(row)
            example_of_row.append(number)
            windows.append(Window(start, size, row.b))
            inside = answer is not None and start <= answer[0] and answer[1] < start + size
            span = [row.b + answer[0] - start, row.b + answer[1] - start] if inside and answer else [row.cls, row.cls]
            labels.append([*span, inside])
    held = [contexts[example.context] for example in examples]
    numbers = np.array(labels, np.int32).reshape(-1, 3)
    known = all(example.labelled for example in examples)
    return tokenized(
        sequences,
        numbers if known else None,
        example_of_row=np.array(example_of_row, np.int64),
        windows=windows,
        contexts=held,
    )


def sliding_windows(size: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield windows (start, size) of at most `room` pieces over `size` pieces, a new one every `stride`."""
    start = 0
    while True:
        held = min(size - start, room)
        yield start, held
        if start + held >= size:
            return
        start += min(held, stride)


def _pieces_of_answer(example: Question, context: Encoding) -> tuple[int, int] | None:
    """Return the first and last piece of the first answer that occurs in the context, or None."""
    answer = next((answer for answer in example.answers if answer.start >= 0), None)
    if answer is None:
        return None
    touched = np.flatnonzero(
        (context.offsets[:, 0] < answer.start + len(answer.text)) & (context.offsets[:, 1] > answer.start)
    )
    return (int(touched[0]), int(touched[-1])) if len(touched) else None
