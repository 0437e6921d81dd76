"""Predict with a fine-tuned model: classify texts, tag words, answer questions, choose endings.

Each function yields one result for each input, in order. Texts are encoded and truncated as in training
(bertjax/tasks/rows.py), to `max_length` tokens, by default the number of the model's positions, or 512 if it takes rows
of any length; truncation is reported through `say`, or counted in `notes` where these are given. Raises InputError if
the model has another head, and for an empty text.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from bertjax.checkpoints.trained import Model
from bertjax.data.words import words_to_tag
from bertjax.errors import InputError
from bertjax.inference.as_trained import (
    Say,
    Thresholds,
    encoded_as_trained,
    fitting_batch,
    head_of,
    labels_of,
    not_empty,
    prediction_task,
    predicts_of,
    report,
    rows_of,
    threshold_of_two,
    thresholds_of,
)
from bertjax.tasks.encode.pieces import encode_pieces
from bertjax.tasks.examples import Choice, Question, Texts, Words
from bertjax.tasks.reading import Notes
from bertjax.tasks.report import at_threshold
from bertjax.tasks.rows import Encoded
from bertjax.tasks.scoring import answers_of, logits_of_examples, logits_of_rows, logits_of_words, sigmoid, softmax
from bertjax.tasks.tags import Scheme, entities, scheme_of
from bertjax.texts import several, several_choices, several_or_pairs, several_questions
from bertjax.wording import counted

Aggregation = Literal["", "simple", "first"]
"""How tags of pieces become tags of words and entities: see tag."""


class Classified(NamedTuple):
    """One text or two with the best label, its probability and those of all labels; or a number (score), unlabelled.

    labels: those that are predicted: the best one, or all above their thresholds of a model that gives each label a
    probability of its own.
    """

    texts: tuple[str, ...]
    label: str
    score: float
    scores: dict[str, float]
    labels: tuple[str, ...] = ()


class TaggedWord(NamedTuple):
    """A word, its span of characters in the text, its tag and the tag's probability."""

    word: str
    start: int
    end: int
    tag: str
    score: float


class NamedEntity(NamedTuple):
    """An entity that consecutive tags describe: its text, span and type, and the mean probability of its tags."""

    text: str
    start: int
    end: int
    kind: str
    score: float


class Tagged(NamedTuple):
    """A text, its words with their tags, and the entities among them.

    scheme: how tags name entities, see tags.SCHEMES; of `words`, which are none, names are runs of one tag.
    """

    text: str
    words: list[TaggedWord]
    names: list[NamedEntity]
    scheme: str = ""


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
    texts: str | Sequence[str | tuple[str, ...]],
    *,
    threshold: Thresholds = None,
    batch_size: int = 32,
    max_length: int = 0,
    say: Say = print,
    notes: Notes | None = None,
) -> Iterator[Classified]:
    """Classify texts or pairs of texts, or predict a number for each, as the model's `predicts` says.

    Labels of a multi_label_classification do not exclude each other: each has a probability of its own (a sigmoid), and
    those above `threshold` are predicted: one for all labels, or by their names, 0.5 for those not named. Of two labels
    that exclude each other, the second is predicted above the threshold, or one by its name; "chosen" is that of the
    validation split in fine-tuning.
    """
    pairs = [(text,) if isinstance(text, str) else text for text in several_or_pairs(texts)]
    for number, pair in enumerate(pairs, 1):
        if not 1 <= len(pair) <= 2:
            raise InputError(f"text {number} has {counted(len(pair), 'parts')}: give one text or a pair")
    predicts, labels = predicts_of(model), labels_of(model, head_of(model, "classify").C)
    of_two = None if threshold is None else threshold_of_two(model, threshold)
    limits_C = thresholds_of(model, None if of_two else threshold)
    if not pairs:
        return
    examples = [
        Texts(f"text {number}", tuple(not_empty(f"text {number}", text) for text in pair))
        for number, pair in enumerate(pairs, 1)
    ]
    encoded = encoded_as_trained(model, prediction_task("multilabel", labels), examples, max_length, say, notes)
    logits_BC = logits_of_examples(model.logits, encoded, fitting_batch(encoded, batch_size))
    to_scores = {"single_label_classification": softmax, "multi_label_classification": sigmoid}
    for pair, scores_C in zip(pairs, to_scores.get(predicts, np.asarray)(logits_BC), strict=True):
        best = int(scores_C.argmax())
        if of_two:
            best = int(at_threshold(scores_C[None], labels.index(of_two.label), of_two.probability)[0])
        if predicts == "regression" and len(scores_C) == 1:
            yield Classified(pair, "", float(scores_C[0]), {})
            continue
        scores = dict(zip(labels, map(float, scores_C), strict=True))
        found = tuple(label for label, score, limit in zip(labels, scores_C, limits_C, strict=True) if score > limit)
        chosen = found if predicts == "multi_label_classification" else (labels[best],)
        yield Classified(pair, labels[best], float(scores_C[best]), scores, chosen)


def tag(
    model: Model,
    texts: str | Sequence[str],
    *,
    aggregation: Aggregation = "",
    scheme: Scheme | None = None,
    batch_size: int = 32,
    max_length: int = 0,
    say: Say = print,
    notes: Notes | None = None,
) -> Iterator[Tagged]:
    """Tag the words of texts: runs of letters and digits, and each other symbol by itself. See words.words_to_tag.

    aggregation: `first` tags each word at its first piece, as fine-tuning here does; `simple` tags every piece, and
    joins pieces to entities, as transformers' pipeline with that strategy. By default `simple` for a Hugging Face
    folder, `first` for a model that was fine-tuned here. scheme: how tags name entities, by default as scheme_of tells.
    """
    labels = labels_of(model, head_of(model, "tag").C)
    scheme = scheme or scheme_of(labels)
    if scheme.name not in ("B-TYPE", "TYPE", "words") or any(scheme.parse(label)[0] in "ES" for label in labels):
        say(f"labels such as {labels[-1]} are read as {scheme.name}, with their marks; transformers' pipeline joins "
            "only words of B- and I-")  # fmt: skip
    found = [not_empty(f"text {number}", text) for number, text in enumerate(several(texts), 1)]
    run = _tag_pieces if (aggregation or _aggregation(model)) == "simple" else _tag_words
    yield from run(model, found, labels, scheme, batch_size, max_length, say, notes)


def _aggregation(model: Model) -> Aggregation:
    """Return the default: a folder of others is used as in transformers, a model fine-tuned here as it was trained."""
    return "simple" if "huggingface" in model.config and "metrics" not in model.config else "first"


def _tag_words(
    model: Model,
    texts: list[str],
    labels: tuple[str, ...],
    scheme: Scheme,
    batch_size: int,
    max_length: int,
    say: Say,
    notes: Notes | None,
) -> Iterator[Tagged]:
    found = [words_to_tag(text) for text in texts]
    examples = [
        Words(f"text {number}", tuple(text[start:end] for start, end in spans), (), number)
        for number, (text, spans) in enumerate(zip(texts, found, strict=True), 1)
    ]
    encoded = encoded_as_trained(model, prediction_task("tag", labels), examples, max_length, say, notes)
    logits = logits_of_words(model.logits, encoded, fitting_batch(encoded, batch_size))
    for text, spans, logits_WC in zip(texts, found, logits, strict=True):
        words = _tagged(text, spans, logits_WC, labels)
        yield Tagged(text, words, list(_entities(text, words, scheme)), scheme.name)


def _tag_pieces(
    model: Model,
    texts: list[str],
    labels: tuple[str, ...],
    scheme: Scheme,
    batch_size: int,
    max_length: int,
    say: Say,
    notes: Notes | None,
) -> Iterator[Tagged]:
    counts = Notes()
    rows = rows_of(model, prediction_task("tag", labels), max_length)
    examples = [Texts(f"text {number}", (text,)) for number, text in enumerate(texts, 1)]
    tokenized = encode_pieces(texts, model.text, counts, templates=rows.templates, length=rows.length)
    encoded = Encoded(rows, model.text.vocabulary.pad, list(examples), *tokenized, notes=+counts)
    report(encoded.notes, say, notes)
    logits = logits_of_words(model.logits, encoded, fitting_batch(encoded, batch_size))
    for text, encoding, logits_TC in zip(texts, encoded.contexts, logits, strict=True):
        pieces = _tagged(text, encoding.offsets.tolist(), logits_TC, labels)
        ends = np.array([piece.end for piece in pieces])
        words = []
        for start, end in words_to_tag(text):
            first = int(np.searchsorted(ends, start, "right"))  # the first piece that ends inside the word
            if first < len(pieces) and pieces[first].start < end:
                words.append(pieces[first]._replace(word=text[start:end], start=start, end=end))
        yield Tagged(text, words, list(_entities(text, pieces, scheme)), scheme.name)


def _tagged(text: str, spans: Sequence[Sequence[int]], logits: np.ndarray, labels: tuple[str, ...]) -> list[TaggedWord]:
    """Return the most probable tag of each span of characters."""
    return [
        TaggedWord(text[start:end], start, end, labels[int(scores_C.argmax())], float(scores_C.max()))
        for (start, end), scores_C in zip(spans, softmax(logits) if len(logits) else (), strict=True)
    ]


def _entities(text: str, words: Sequence[TaggedWord], scheme: Scheme) -> Iterator[NamedEntity]:
    for entity in entities([word.tag for word in words], scheme):
        start, end = words[entity.first].start, words[entity.last].end
        mean = float(np.mean([word.score for word in words[entity.first : entity.last + 1]]))
        yield NamedEntity(text[start:end], start, end, entity.kind, mean)


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
    notes: Notes | None = None,
) -> Iterator[Answer]:
    """Answer questions by spans of their contexts.

    may_have_none: a question may have no answer, which is predicted if its odds exceed the threshold. longest: maximum
    tokens of an answer.
    """
    head_of(model, "span")
    questions = several_questions(questions)
    task = prediction_task("span", (), unanswerable=may_have_none)
    examples = [
        Question(
            place,
            str(number),
            not_empty(place, question),
            not_empty(f"{place}, its context", context),
            labelled=False,
        )
        for number, (question, context) in enumerate(questions, 1)
        for place in [f"question {number}"]
    ]
    encoded = encoded_as_trained(model, task, examples, max_length, say, notes)
    answered = answers_of(
        model.logits, encoded, fitting_batch(encoded, batch_size), threshold=threshold, longest=longest
    )
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
    notes: Notes | None = None,
) -> Iterator[Chosen]:
    """Choose between the endings of each context; their number may vary."""
    head_of(model, "choice")
    choices = several_choices(choices)
    if not choices:
        return
    most = max(len(endings) for _, endings in choices)
    if min(len(endings) for _, endings in choices) < 2:
        raise InputError("each choice needs at least two endings")
    examples = [
        Choice(place, not_empty(place, context), tuple(not_empty(f"{place}, an ending", ending) for ending in endings))
        for number, (context, endings) in enumerate(choices, 1)
        for place in [f"choice {number}"]
    ]
    encoded = encoded_as_trained(model, prediction_task("choice", (), options=most), examples, max_length, say, notes)
    logits_BC = logits_of_rows(model.logits, encoded, fitting_batch(encoded, batch_size))
    for (context, endings), scores_C in zip(choices, softmax(logits_BC), strict=True):
        best = int(scores_C.argmax())
        yield Chosen(context, best, endings[best], [float(score) for score in scores_C[: len(endings)]])
