"""Predict with a fine-tuned model: classify texts, tag words, answer questions, choose endings; evaluate on a task.

Each function yields one result for each input, in order. Texts are encoded and truncated as in training
(bertjax/tasks/rows.py), to `max_length` tokens, by default the number of the model's positions, or 512 if it takes rows
of any length; truncation is reported through `say`. Raises InputError if the model has another head, and for an empty
text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from bertjax.checkpoints.checkpoint import checksums
from bertjax.checkpoints.trained import Model
from bertjax.data.words import words_to_tag
from bertjax.errors import InputError
from bertjax.evaluate import logits_on_mesh, place_params
from bertjax.inference.template_of import templates_of
from bertjax.models.published import Published
from bertjax.run.processes import assert_equal_on_all, raising_on_all
from bertjax.sharding.mesh import DATA_PARALLEL
from bertjax.tasks.encode.pieces import encode_pieces
from bertjax.tasks.examples import Choice, Example, Question, Texts, Words
from bertjax.tasks.labels import Matched, match_types, parse_pairs, with_labels
from bertjax.tasks.loading import load_examples
from bertjax.tasks.reading import Notes
from bertjax.tasks.rows import Encoded, TaskRows, encode_examples
from bertjax.tasks.scoring import (
    Evaluated,
    Logits,
    answers_of,
    evaluate_rows,
    logits_of_rows,
    logits_of_words,
    require_labels,
    score_tags,
    sigmoid,
    tags_of,
)
from bertjax.tasks.tags import IOB, WORDS, Scheme, entities, scheme_of, to_iob2
from bertjax.tasks.task import Kind, Task
from bertjax.wording import counted

Say = Callable[[str], None]
"""Takes a note or a warning for the user."""

Aggregation = Literal["", "simple", "first"]
"""How tags of pieces become tags of words and entities: see tag."""

_HEADS = {"classify": "classify", "multilabel": "classify", "regress": "classify", "tag": "tags", "span": "span",
          "choice": "choice"}  # fmt: skip
_DEFAULT_LENGTH = 512  # of models that take rows of any length


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
    texts: Sequence[str | tuple[str, ...]],
    *,
    threshold: float | Mapping[str, float] | None = None,
    batch_size: int = 32,
    max_length: int = 0,
    say: Say = print,
) -> Iterator[Classified]:
    """Classify texts or pairs of texts, or predict a number for each, as the model's `predicts` says.

    Labels of a multi_label_classification do not exclude each other: each has a probability of its own (a sigmoid), and
    those above `threshold` are predicted: one for all labels, or by their names, 0.5 for those not named.
    """
    pairs = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    for number, pair in enumerate(pairs, 1):
        if not 1 <= len(pair) <= 2:
            raise InputError(f"text {number} has {counted(len(pair), 'parts')}: give one text or a pair")
    predicts, labels = _predicts(model), _labels(model, _head(model, "classify").C)
    limits_C = thresholds_of(model, threshold)
    if not pairs:
        return
    examples = [
        Texts(f"text {number}", tuple(_not_empty(f"text {number}", text) for text in pair))
        for number, pair in enumerate(pairs, 1)
    ]
    encoded = _encoded(model, _task("multilabel", labels), examples, max_length, say)
    logits_BC = logits_of_rows(model.logits, encoded, _batch_size(encoded, batch_size))
    to_scores = {"single_label_classification": _softmax, "multi_label_classification": sigmoid}
    for pair, scores_C in zip(pairs, to_scores.get(predicts, np.asarray)(logits_BC), strict=True):
        best = int(scores_C.argmax())
        if predicts == "regression" and len(scores_C) == 1:
            yield Classified(pair, "", float(scores_C[0]), {})
            continue
        scores = dict(zip(labels, map(float, scores_C), strict=True))
        found = tuple(label for label, score, limit in zip(labels, scores_C, limits_C, strict=True) if score > limit)
        chosen = found if predicts == "multi_label_classification" else (labels[best],)
        yield Classified(pair, labels[best], float(scores_C[best]), scores, chosen)


def _predicts(model: Model) -> str:
    """Return what the head `classify` of a model predicts. Raises InputError if it has none."""
    _head(model, "classify")
    predicts: str = getattr(model.objective, "predicts", "")
    return predicts


def thresholds_of(model: Model, threshold: float | Mapping[str, float] | None) -> tuple[float, ...]:
    """Return the threshold of each label of a model that gives each a probability of its own.

    threshold: of all labels, or by their names; 0.5 where none is given. Raises InputError for a number outside 0 .. 1,
    an unknown label, or a model of another kind.
    """
    labels = _labels(model, _head(model, "classify").C)
    if threshold is not None and _predicts(model) != "multi_label_classification":
        raise InputError("each text has one label of this model, or a number: leave out the threshold")
    given = (
        threshold if isinstance(threshold, Mapping) else dict.fromkeys(labels, 0.5 if threshold is None else threshold)
    )
    unknown = [label for label in given if label not in labels]
    if unknown:
        raise InputError(f"a threshold for {unknown[0]!r}, but the model's labels are {', '.join(labels)}")
    for label, limit in given.items():
        if not 0 <= limit <= 1:
            raise InputError(f"the threshold of {label} is {limit}: a probability is from 0 to 1")
    return tuple(given.get(label, 0.5) for label in labels)


def tag(
    model: Model,
    texts: Sequence[str],
    *,
    aggregation: Aggregation = "",
    scheme: Scheme | None = None,
    batch_size: int = 32,
    max_length: int = 0,
    say: Say = print,
) -> Iterator[Tagged]:
    """Tag the words of texts: runs of letters and digits, and each other symbol by itself. See words.words_to_tag.

    aggregation: `first` tags each word at its first piece, as fine-tuning here does; `simple` tags every piece, and
    joins pieces to entities, as transformers' pipeline with that strategy. By default `simple` for a Hugging Face
    folder, `first` for a model that was fine-tuned here. scheme: how tags name entities, by default as scheme_of tells.
    """
    labels = _labels(model, _head(model, "tag").C)
    scheme = scheme or scheme_of(labels)
    if scheme.name not in ("B-TYPE", "TYPE", "words") or any(scheme.parse(label)[0] in "ES" for label in labels):
        say(f"labels such as {labels[-1]} are read as {scheme.name}, with their marks; transformers' pipeline joins "
            "only words of B- and I-")  # fmt: skip
    found = [_not_empty(f"text {number}", text) for number, text in enumerate(texts, 1)]
    run = _tag_pieces if (aggregation or _aggregation(model)) == "simple" else _tag_words
    yield from run(model, found, labels, scheme, batch_size, max_length, say)


def _aggregation(model: Model) -> Aggregation:
    """Return the default: a folder of others is used as in transformers, a model fine-tuned here as it was trained."""
    return "simple" if "huggingface" in model.config and "metrics" not in model.config else "first"


def _tag_words(
    model: Model, texts: list[str], labels: tuple[str, ...], scheme: Scheme, batch_size: int, max_length: int, say: Say
) -> Iterator[Tagged]:
    found = [words_to_tag(text) for text in texts]
    examples = [
        Words(f"text {number}", tuple(text[start:end] for start, end in spans), (), number)
        for number, (text, spans) in enumerate(zip(texts, found, strict=True), 1)
    ]
    encoded = _encoded(model, _task("tag", labels), examples, max_length, say)
    logits = logits_of_words(model.logits, encoded, _batch_size(encoded, batch_size))
    for text, spans, logits_WC in zip(texts, found, logits, strict=True):
        words = _tagged(text, spans, logits_WC, labels)
        yield Tagged(text, words, list(_entities(text, words, scheme)), scheme.name)


def _tag_pieces(
    model: Model, texts: list[str], labels: tuple[str, ...], scheme: Scheme, batch_size: int, max_length: int, say: Say
) -> Iterator[Tagged]:
    notes = Notes()
    rows = _rows(model, _task("tag", labels), max_length)
    examples = [Texts(f"text {number}", (text,)) for number, text in enumerate(texts, 1)]
    tokenized = encode_pieces(texts, model.text, notes, templates=rows.templates, length=rows.length)
    encoded = Encoded(rows, model.text.vocabulary.pad, list(examples), *tokenized, notes=+notes)
    for note, count in encoded.notes.items():
        say(counted(count, note))
    logits = logits_of_words(model.logits, encoded, _batch_size(encoded, batch_size))
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
        for (start, end), scores_C in zip(spans, _softmax(logits) if len(logits) else (), strict=True)
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
    threshold: float | Mapping[str, float] | None = None,
    labels: Sequence[str] = (),
    scheme: Scheme | None = None,
    batch_size: int = 32,
    max_length: int = 0,
    say: Say = print,
) -> Evaluated:
    """Evaluate a model on a labelled split of the task that it was trained on, or of one with the same labels.

    Labels may differ in their order and capitals; else `labels` has pairs label:LABEL, of the task and of the model (of
    entities, types). threshold: as for classify. scheme: as for tag. So AX, which has no training split, is evaluated
    with a model of MNLI. data: as for loading.load_examples. Rows are split over all devices; several processes that
    have joined each return the same. Raises InputError if the model has another head or other labels, and if the split
    is not labelled.
    """
    with raising_on_all():
        encoded, evaluate = _to_score(
            model, task, data, split, threshold=threshold, labels=labels, scheme=scheme, max_length=max_length, say=say
        )
        batch_size = -(-_batch_size(encoded, batch_size) // jax.device_count()) * jax.device_count()
        mesh = DATA_PARALLEL.mesh(batch_size)
    assert isinstance(model.objective, Published)
    if jax.process_count() > 1:
        assert_equal_on_all({"the model": checksums(model.params), "the data": repr(encoded.examples)})
    logits = partial(logits_on_mesh(model.objective.task_logits, mesh), place_params(model.params, mesh))
    return evaluate(encoded, logits, batch_size)


def _to_score(
    model: Model,
    task: Task,
    data: str,
    split: str,
    *,
    threshold: float | Mapping[str, float] | None,
    labels: Sequence[str],
    scheme: Scheme | None,
    max_length: int,
    say: Say,
) -> tuple[Encoded, Callable[[Encoded, Logits, int], Evaluated]]:
    """Return the encoded split, and the function that evaluates it."""
    head = _head(model, task.kind)
    thresholds = thresholds_of(model, threshold) if task.kind == "multilabel" or threshold is not None else ()
    wanted = {"classify": "single_label_classification", "multilabel": "multi_label_classification"}.get(task.kind)
    if wanted and head.C > 1 and _predicts(model) != wanted:
        raise InputError(
            f"the model's problem_type is {_predicts(model)}, but task {task.name} is of kind {task.kind}: fine-tune a "
            "model on it"
        )
    pairs = parse_pairs(labels)
    if task.kind in ("classify", "multilabel"):
        task = _matched(model, task, with_labels(task, _labels(model, head.C), pairs), say)
    elif task.kind == "regress" and head.C != 1:
        raise InputError(
            f"the model has {counted(head.C, 'classes')}, but task {task.name} predicts a number: fine-tune a model on "
            "it"
        )
    loaded = load_examples(task, data, split)
    for note, count in loaded.notes.items():
        say(f"{task.name}, {split}: {counted(count, note)}")
    if task.kind == "tag":
        return _to_score_tags(model, task, loaded.examples, pairs, scheme, max_length, say)
    encoded = _encoded(model, task, loaded.examples, max_length, say)
    require_labels(encoded.examples)
    return encoded, partial(evaluate_rows, thresholds=thresholds)


def _matched(model: Model, task: Task, found: Matched | None, say: Say) -> Task:
    """Return the task with the model's labels. Raises InputError if they do not match."""
    if found is None:
        labels = _labels(model, _head(model, task.kind).C)
        raise InputError(
            f"the model's labels are {', '.join(labels)}, those of task {task.name} {', '.join(task.labels)}: evaluate "
            f"the model on a task with its own labels, or name which is which: labels={task.labels[-1]}:{labels[-1]},…"
        )
    if found.note:
        say(found.note)
    return found.task


def _to_score_tags(
    model: Model,
    task: Task,
    examples: list[Example],
    pairs: Mapping[str, str],
    scheme: Scheme | None,
    max_length: int,
    say: Say,
) -> tuple[Encoded, Callable[[Encoded, Logits, int], Evaluated]]:
    """Prepare to score tags: entities by type and place, in whatever scheme model and data have; others by name."""
    require_labels(examples)
    labels = _labels(model, _head(model, "tag").C)
    scheme = scheme or scheme_of(labels)
    if (scheme.marks == "words") != (task.scheme.marks == "words"):
        raise InputError(
            f"the model's labels are {', '.join(labels)}, read as {scheme.name}, those of task {task.name} as "
            f"{task.scheme.name}: entities and tags of words are scored differently, so say which they are with scheme"
        )
    unlabelled = [example._replace(tags=()) for example in examples if isinstance(example, Words)]
    encoded = _encoded(model, _task("tag", labels), unlabelled, max_length, say)
    if task.scheme.marks == "words":
        task_here = _matched(model, task, with_labels(task, labels, pairs), say)
        return encoded, partial(_score_tags, task, examples, task_here, list)
    partners = match_types(task, scheme, labels, pairs)
    if partners is None:
        _matched(model, task, None, say)
    names = {partner: kind for kind, partner in (partners or {}).items()}
    if any(kind != partner for partner, kind in names.items()):
        say(f"types of entities are matched with the model's: {', '.join(f'{b} is {a}' for a, b in names.items())}")

    def renamed(tags: list[list[str]]) -> list[list[str]]:
        return [[tag[:2] + names.get(tag[2:], tag[2:]) for tag in to_iob2(each, scheme)] for each in tags]

    return encoded, partial(_score_tags, task, examples, encoded.spec.task, renamed)


def _score_tags(
    task: Task,
    examples: list[Example],
    predicted: Task,
    renamed: Callable[[list[list[str]]], list[list[str]]],
    encoded: Encoded,
    logits: Logits,
    batch_size: int,
) -> Evaluated:
    """Score the tags of the task that the model predicts, which `renamed` turns into those of the data."""
    tags = renamed(tags_of(predicted, logits_of_words(logits, encoded, batch_size)))
    return Evaluated(score_tags(task, examples, tags), tags)


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
    scheme = WORDS if kind == "tag" else IOB  # tags are predicted by their names, and not scored
    return Task("prediction", kind, labels, ("accuracy",), (), scheme=scheme, **more)


def _rows(model: Model, task: Task, max_length: int) -> TaskRows:
    """Describe rows as in training. Raises InputError for a length that the model does not have."""
    positions = model.encoder.max_length
    if positions and max_length > positions:
        raise InputError(f"max_length={max_length}, but the model has {positions} positions: reduce it")
    length = max_length or positions or _DEFAULT_LENGTH
    quarter = max(1, length // 4)
    strides = min(128, quarter), min(64, quarter), min(128, quarter)
    try:
        return TaskRows(task, "", "", templates_of(model), length, *strides)
    except ValueError as error:
        raise InputError(f"max_length={length}: {error}") from error


def _encoded(model: Model, task: Task, examples: Sequence[Example], max_length: int, say: Say) -> Encoded:
    """Encode examples as in training, and report truncation."""
    rows = _rows(model, task, max_length)
    encoded = encode_examples(rows, examples, model.text)
    for note, count in encoded.notes.items():
        say(counted(count, note))
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
