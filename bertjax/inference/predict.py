"""Use the head of a fine-tuned model: classify texts, tag words, answer questions, choose between endings, be scored.

Each function yields a result for each input, in order; none for none. Texts are framed and cut as in training
(data/supervised.py), to `max_length` tokens, by default all that the model has positions for, or 512 where it takes
rows of any length; what was cut is said. Raises InputError where the model has another head, and for an empty text.
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
"""Takes a sentence for the user."""

_HEADS = {"classify": "classify", "tag": "tags", "span": "span", "choice": "choice"}
_LONGEST = 512  # of models that take rows of any length


class Classified(NamedTuple):
    """A text or two, the likeliest label and its probability, and those of all; or a number (score), without labels."""

    texts: tuple[str, ...]
    label: str
    score: float
    scores: dict[str, float]


class TaggedWord(NamedTuple):
    """A word, where it stands in the text, its tag and the tag's probability."""

    word: str
    start: int
    end: int
    tag: str
    score: float


class Name(NamedTuple):
    """What the tags of consecutive words mean together: a piece of the text, its kind, its words' least probability."""

    text: str
    start: int
    end: int
    kind: str
    score: float


class Tagged(NamedTuple):
    """A text, its words with their tags, and the names among them."""

    text: str
    words: list[TaggedWord]
    names: list[Name]


class Answer(NamedTuple):
    """A question and its answer: characters start to end of the context, empty where there is none; its probability."""

    question: str
    text: str
    start: int
    end: int
    score: float
    null_odds: float


class Chosen(NamedTuple):
    """A context, the number of the likeliest ending, that ending, and the probabilities of all."""

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
    """Classify texts or pairs of texts, or put a number on each where the model's head has one output."""
    pairs = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    for number, pair in enumerate(pairs, 1):
        if not 1 <= len(pair) <= 2:
            raise InputError(f"text {number} has {len(pair)} parts: give one text, or a pair")
    C = _head(model, "classify").C
    labels = _labels(model, C)
    if not pairs:
        return
    task = _task("regress" if C == 1 else "classify", labels)
    examples = [
        Texts(f"text {number}", tuple(_full(f"text {number}", text) for text in pair))
        for number, pair in enumerate(pairs, 1)
    ]
    encoded = _encoded(model, task, examples, max_length, say)
    logits_BC = logits_of_rows(model.logits, encoded, _rows(encoded, batch_size))
    for pair, scores_C in zip(pairs, logits_BC if C == 1 else _softmax(logits_BC), strict=True):
        best = int(scores_C.argmax())
        scores = dict(zip(labels, map(float, scores_C), strict=True)) if C > 1 else {}
        yield Classified(pair, labels[best] if C > 1 else "", float(scores_C[best]), scores)


def tag(
    model: Model, texts: Sequence[str], *, batch_size: int = 32, max_length: int = 0, say: Say = print
) -> Iterator[Tagged]:
    """Tag the words of texts: runs of letters and digits, and each mark by itself, as in the data of such tasks.

    Combining marks, such as vowel signs and decomposed accents, belong to the word or mark that they stand on.
    """
    labels = _labels(model, _head(model, "tag").C)
    found = [words_to_tag(_full(f"text {number}", text)) for number, text in enumerate(texts, 1)]
    examples = [
        Words(f"text {number}", tuple(text[start:end] for start, end in spans), (), number)
        for number, (text, spans) in enumerate(zip(texts, found, strict=True), 1)
    ]
    encoded = _encoded(model, _task("tag", labels), examples, max_length, say)
    logits = logits_of_words(model.logits, encoded, _rows(encoded, batch_size))
    for text, spans, logits_WC in zip(texts, found, logits, strict=True):
        words = [
            TaggedWord(text[start:end], start, end, labels[int(scores_C.argmax())], float(scores_C.max()))
            for (start, end), scores_C in zip(spans, _softmax(logits_WC), strict=True)
        ]
        yield Tagged(text, words, list(_names(text, words)))


def _names(text: str, words: Sequence[TaggedWord]) -> Iterator[Name]:
    for entity in entities([word.tag for word in words]):
        start, end = words[entity.first].start, words[entity.last].end
        least = min(word.score for word in words[entity.first : entity.last + 1])
        yield Name(text[start:end], start, end, entity.kind, least)


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
    """Answer questions, each with its context, by a piece of the context.

    may_have_none: some have no answer there; none is the answer whose odds exceed the threshold. longest: in pieces.
    """
    _head(model, "span")
    task = _task("span", (), unanswerable=may_have_none)
    examples = [
        Question(place, str(number), _full(place, question), _full(f"{place}, its context", context), labelled=False)
        for number, (question, context) in enumerate(questions, 1)
        for place in [f"question {number}"]
    ]
    encoded = _encoded(model, task, examples, max_length, say)
    answered = answers_of(model.logits, encoded, _rows(encoded, batch_size), threshold=threshold, longest=longest)
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
    """Choose between the endings of each context; they need not be equally many."""
    _head(model, "choice")
    if not choices:
        return
    most = max(len(endings) for _, endings in choices)
    if min(len(endings) for _, endings in choices) < 2:
        raise InputError("a choice needs two endings or more")
    examples = [
        Choice(place, _full(place, context), tuple(_full(f"{place}, an ending", ending) for ending in endings))
        for number, (context, endings) in enumerate(choices, 1)
        for place in [f"choice {number}"]
    ]
    encoded = _encoded(model, _task("choice", (), options=most), examples, max_length, say)
    logits_BC = logits_of_rows(model.logits, encoded, _rows(encoded, batch_size))
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
    """Score a model on a labelled split of a task: of that which it was trained on, or of one with the same labels.

    So AX, which has no training split, is asked of a model of MNLI. data: as for tasks.load_examples. Raises InputError
    where the model has another head or other labels, and where the split has no labels.
    """
    head = _head(model, "classify" if task.kind == "regress" else task.kind)
    if task.kind in ("classify", "tag"):
        labels = _labels(model, head.C)
        if sorted(labels) != sorted(task.labels):
            raise InputError(
                f"the model's labels are {', '.join(labels)}, those of task {task.name} {', '.join(task.labels)}: "
                "a model is scored on tasks with its own labels"
            )
        spelled = tuple(task.spelled[task.labels.index(label)] for label in labels) if task.spelled else ()
        task = dataclasses.replace(task, labels=labels, spelled=spelled)
    elif task.kind == "regress" and head.C != 1:
        raise InputError(
            f"the model has {head.C} classes, but task {task.name} predicts a number: fine-tune one for it"
        )
    loaded = load_examples(task, data, split)
    for what, count in loaded.notes.items():
        say(f"{task.name}, {split}: {count:,} {what}")
    encoded = _encoded(model, task, loaded.examples, max_length, say)
    return evaluate_rows(encoded, model.logits, _rows(encoded, batch_size))


def _head(model: Model, kind: Kind) -> Any:
    """Find the head for a kind of task. Raises InputError where the model has another."""
    wanted = {_HEADS[kind]} | ({"beams"} if kind == "span" else set())
    if not isinstance(model.objective, Published):
        raise InputError(f"a {type(model.objective).__name__} has no head for {kind}: fine-tune it on a task first")
    if model.objective.task not in wanted:
        raise InputError(f"this model has a head for {model.objective.task}, not for {kind}: fine-tune one for that")
    return model.objective.heads[model.objective.task]


def _labels(model: Model, classes: int) -> tuple[str, ...]:
    given: tuple[str, ...] = getattr(model.objective, "labels", ())
    return given if len(given) == classes else tuple(f"LABEL_{number}" for number in range(classes))


def _task(kind: Kind, labels: tuple[str, ...], **more: Any) -> Task:
    return Task("prediction", kind, labels, ("accuracy",), (), **more)


def _encoded(model: Model, task: Task, examples: Sequence[Example], max_length: int, say: Say) -> Encoded:
    """Encode examples as the model was trained; say what was cut."""
    positions = model.encoder.max_length
    if positions and max_length > positions:
        raise InputError(f"max_length={max_length}, but the model has {positions} positions: use fewer")
    length = max_length or positions or _LONGEST
    quarter = max(1, length // 4)
    strides = min(128, quarter), min(64, quarter), min(128, quarter)
    try:
        rows = TaskRows(task, "", "", templates_of(model), length, *strides)
    except ValueError as error:
        raise InputError(f"max_length={length}: {error}") from error
    encoded = encode_examples(rows, examples, model.text)
    for what, count in encoded.notes.items():
        say(f"{count:,} {what}")
    return encoded


def _rows(encoded: Encoded, batch_size: int) -> int:
    """Choose a batch size that a few texts do not fill with padding: a power of two up to `batch_size`."""
    return min(batch_size, 1 << max(0, len(encoded) - 1).bit_length())


def _full(place: str, text: str) -> str:
    if not text.strip():
        raise InputError(f"{place}: an empty text: leave it out")
    return text


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.softmax(logits.astype(np.float32), axis=-1))
