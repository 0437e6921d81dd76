"""Predict with a fine-tuned model: classify texts, tag words, answer questions, choose endings; evaluate on a task.

Each function yields one result for each input, in order. Texts are encoded and truncated as in training
(bertjax/tasks/rows.py), to `max_length` tokens, by default the number of the model's positions, or 512 if it takes rows
of any length; truncation is reported through `say`. Raises InputError if the model has another head, and for an empty
text.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bertjax.checkpoints.trained import Model
from bertjax.data.words import words_to_tag
from bertjax.errors import InputError
from bertjax.inference.template_of import templates_of
from bertjax.models.published import Published
from bertjax.tasks.examples import Choice, Example, Question, Texts, Words
from bertjax.tasks.loading import load_examples
from bertjax.tasks.rows import Encoded, TaskRows, encode_examples
from bertjax.tasks.scoring import Evaluated, answers_of, evaluate_rows, logits_of_rows, logits_of_words
from bertjax.tasks.tags import entities
from bertjax.tasks.task import Kind, Task

Say = Callable[[str], None]
"""Takes a note or a warning for the user."""

_HEADS = {"classify": "classify", "tag": "tags", "span": "span", "choice": "choice"}
_DEFAULT_LENGTH = 512  # of models that take rows of any length


class Classified(NamedTuple):
    """One text or two with the best label, its probability and those of all labels; or a number (score), unlabelled."""

    texts: tuple[str, ...]
    label: str
    score: float
    scores: dict[str, float]


class TaggedWord(NamedTuple):
    """A word, its span of characters in the text, its tag and the tag's probability."""

    word: str
    start: int
    end: int
    tag: str
    score: float


class NamedEntity(NamedTuple):
    """An entity that consecutive tags describe: its text, span and type, and the least probability of its tags."""

    text: str
    start: int
    end: int
    kind: str
    score: float


class Tagged(NamedTuple):
    """A text, its words with their tags, and the entities among them."""

    text: str
    words: list[TaggedWord]
    names: list[NamedEntity]


class Answer(NamedTuple):
    """A question with its answer, the characters start .. end of the context or empty for none, and its probability."""

    question: str
    text: str
    start: int
    end: int
    score: float
    null_odds: float


class Chosen(NamedTuple):
    """A context with the index of the best ending, that ending, and the probabilities of all endings."""

    context: str
    best: int
    ending: str
    scores: list[float]


def classify(
    model: Model,
    texts: Sequence[str | tuple[str, ...]],
    *,
    batch_size: int = 32,
    max_length: int = 0,
    say: Say = print,
) -> Iterator[Classified]:
    """Classify texts or pairs of texts, or predict a number for each if the model's head has one output."""
    pairs = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    for number, pair in enumerate(pairs, 1):
        if not 1 <= len(pair) <= 2:
            raise InputError(f"text {number} has {len(pair)} parts: give one text or a pair")
    C = _head(model, "classify").C
    labels = _labels(model, C)
    if not pairs:
        return
    task = _task("regress" if C == 1 else "classify", labels)
    examples = [
        Texts(f"text {number}", tuple(_not_empty(f"text {number}", text) for text in pair))
        for number, pair in enumerate(pairs, 1)
    ]
    encoded = _encoded(model, task, examples, max_length, say)
    logits_BC = logits_of_rows(model.logits, encoded, _batch_size(encoded, batch_size))
    for pair, scores_C in zip(pairs, logits_BC if C == 1 else _softmax(logits_BC), strict=True):
        best = int(scores_C.argmax())
        scores = dict(zip(labels, map(float, scores_C), strict=True)) if C > 1 else {}
        yield Classified(pair, labels[best] if C > 1 else "", float(scores_C[best]), scores)


def tag(
    model: Model, texts: Sequence[str], *, batch_size: int = 32, max_length: int = 0, say: Say = print
) -> Iterator[Tagged]:
    """Tag the words of texts: runs of letters and digits, and each other symbol by itself. See words.words_to_tag."""
    labels = _labels(model, _head(model, "tag").C)
    found = [words_to_tag(_not_empty(f"text {number}", text)) for number, text in enumerate(texts, 1)]
    examples = [
        Words(f"text {number}", tuple(text[start:end] for start, end in spans), (), number)
        for number, (text, spans) in enumerate(zip(texts, found, strict=True), 1)
    ]
    encoded = _encoded(model, _task("tag", labels), examples, max_length, say)
    logits = logits_of_words(model.logits, encoded, _batch_size(encoded, batch_size))
    for text, spans, logits_WC in zip(texts, found, logits, strict=True):
        words = [
            TaggedWord(text[start:end], start, end, labels[int(scores_C.argmax())], float(scores_C.max()))
            for (start, end), scores_C in zip(spans, _softmax(logits_WC), strict=True)
        ]
        yield Tagged(text, words, list(_entities(text, words)))


def _entities(text: str, words: Sequence[TaggedWord]) -> Iterator[NamedEntity]:
    for entity in entities([word.tag for word in words]):
        start, end = words[entity.first].start, words[entity.last].end
        least = min(word.score for word in words[entity.first : entity.last + 1])
        yield NamedEntity(text[start:end], start, end, entity.kind, least)


def answer(
    model: Model,
    questions: Sequence[tuple[str, str]],
    *,
    may_have_none: bool = False,
    threshold: float = 0.0,
    longest: int = 30,
    batch_size: int = 32,
    max_length: int = 0,
    say: Say = print,
) -> Iterator[Answer]:
    """Answer questions by spans of their contexts.

    may_have_none: a question may have no answer, which is predicted if its odds exceed the threshold. longest: maximum
    tokens of an answer.
    """
    _head(model, "span")
    task = _task("span", (), unanswerable=may_have_none)
    examples = [
        Question(
            place,
            str(number),
            _not_empty(place, question),
            _not_empty(f"{place}, its context", context),
            labelled=False,
        )
        for number, (question, context) in enumerate(questions, 1)
        for place in [f"question {number}"]
    ]
    encoded = _encoded(model, task, examples, max_length, say)
    answered = answers_of(model.logits, encoded, _batch_size(encoded, batch_size), threshold=threshold, longest=longest)
    for (question, _), each in zip(questions, answered, strict=True):
        best = each.answer
        yield Answer(question, best.text, best.start, best.end, best.probability, each.null_odds)


def choose(
    model: Model,
    choices: Sequence[tuple[str, Sequence[str]]],
    *,
    batch_size: int = 16,
    max_length: int = 0,
    say: Say = print,
) -> Iterator[Chosen]:
    """Choose between the endings of each context; their number may vary."""
    _head(model, "choice")
    if not choices:
        return
    most = max(len(endings) for _, endings in choices)
    if min(len(endings) for _, endings in choices) < 2:
        raise InputError("each choice needs at least two endings")
    examples = [
        Choice(
            place, _not_empty(place, context), tuple(_not_empty(f"{place}, an ending", ending) for ending in endings)
        )
        for number, (context, endings) in enumerate(choices, 1)
        for place in [f"choice {number}"]
    ]
    encoded = _encoded(model, _task("choice", (), options=most), examples, max_length, say)
    logits_BC = logits_of_rows(model.logits, encoded, _batch_size(encoded, batch_size))
    for (context, endings), scores_C in zip(choices, _softmax(logits_BC), strict=True):
        best = int(scores_C.argmax())
        yield Chosen(context, best, endings[best], [float(score) for score in scores_C[: len(endings)]])


def score(
    model: Model,
    task: Task,
    data: str,
    split: str = "validation",
    *,
    batch_size: int = 32,
    max_length: int = 0,
    say: Say = print,
) -> Evaluated:
    """Evaluate a model on a labelled split of the task that it was trained on, or of one with the same labels.

    So AX, which has no training split, is evaluated with a model of MNLI. data: as for loading.load_examples. Raises
    InputError if the model has another head or other labels, and if the split is not labelled.
    """
    head = _head(model, "classify" if task.kind == "regress" else task.kind)
    if task.kind in ("classify", "tag"):
        labels = _labels(model, head.C)
        if sorted(labels) != sorted(task.labels):
            raise InputError(
                f"the model's labels are {', '.join(labels)}, those of task {task.name} {', '.join(task.labels)}: "
                "evaluate the model on a task with its own labels"
            )
        spelled = tuple(task.spelled[task.labels.index(label)] for label in labels) if task.spelled else ()
        task = dataclasses.replace(task, labels=labels, spelled=spelled)
    elif task.kind == "regress" and head.C != 1:
        raise InputError(
            f"the model has {head.C} classes, but task {task.name} predicts a number: fine-tune a model on it"
        )
    loaded = load_examples(task, data, split)
    for note, count in loaded.notes.items():
        say(f"{task.name}, {split}: {count:,} {note}")
    encoded = _encoded(model, task, loaded.examples, max_length, say)
    return evaluate_rows(encoded, model.logits, _batch_size(encoded, batch_size))


def _head(model: Model, kind: Kind) -> Any:
    """Return the head for a kind of task. Raises InputError if the model has another."""
    wanted = {_HEADS[kind]} | ({"beams"} if kind == "span" else set())
    if not isinstance(model.objective, Published):
        raise InputError(f"a {type(model.objective).__name__} has no head for {kind}: fine-tune it on a task first")
    if model.objective.task not in wanted:
        raise InputError(
            f"this model has a head for {model.objective.task}, not for {kind}: fine-tune a model for {kind}"
        )
    return model.objective.heads[model.objective.task]


def _labels(model: Model, classes: int) -> tuple[str, ...]:
    given: tuple[str, ...] = getattr(model.objective, "labels", ())
    return given if len(given) == classes else tuple(f"LABEL_{number}" for number in range(classes))


def _task(kind: Kind, labels: tuple[str, ...], **more: Any) -> Task:
    return Task("prediction", kind, labels, ("accuracy",), (), **more)


def _encoded(model: Model, task: Task, examples: Sequence[Example], max_length: int, say: Say) -> Encoded:
    """Encode examples as in training, and report truncation."""
    positions = model.encoder.max_length
    if positions and max_length > positions:
        raise InputError(f"max_length={max_length}, but the model has {positions} positions: reduce it")
    length = max_length or positions or _DEFAULT_LENGTH
    quarter = max(1, length // 4)
    strides = min(128, quarter), min(64, quarter), min(128, quarter)
    try:
        rows = TaskRows(task, "", "", templates_of(model), length, *strides)
    except ValueError as error:
        raise InputError(f"max_length={length}: {error}") from error
    encoded = encode_examples(rows, examples, model.text)
    for note, count in encoded.notes.items():
        say(f"{count:,} {note}")
    return encoded


def _batch_size(encoded: Encoded, batch_size: int) -> int:
    """Return a batch size without much padding for few texts: a power of two up to `batch_size`."""
    return min(batch_size, 1 << max(0, len(encoded) - 1).bit_length())


def _not_empty(place: str, text: str) -> str:
    if not text.strip():
        raise InputError(f"{place}: the text is empty: leave it out")
    return text


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.softmax(logits.astype(np.float32), axis=-1))
