"""Evaluate a model on a task: run it over the rows of a split, collect its predictions, compute the metrics."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bertjax.data.source import bucketed
from bertjax.errors import InputError
from bertjax.models.span_heads import Beams
from bertjax.tasks.answers import Answered, WindowScores, answer_questions, decided, window_scores
from bertjax.tasks.examples import Choice, Example, Question, Texts, Words, is_labelled
from bertjax.tasks.metrics import accuracy, entity_f1, score_labels, score_rows
from bertjax.tasks.pooling import pooled
from bertjax.tasks.rows import Encoded
from bertjax.tasks.squad import Gold, score_predictions
from bertjax.tasks.tags import PLAIN, to_iob2
from bertjax.tasks.task import Task

Logits = Callable[[Any], Any]
"""Maps a batch to the logits of the task head: arrays whose first axis is the rows."""


class RowLogits(NamedTuple):
    """The logits of one row, and the padded length of its batch."""

    row: int
    logits: Any
    length: int


def predict_rows(logits: Logits, encoded: Encoded, batch_size: int) -> Iterator[RowLogits]:
    """Yield the logits of all rows, run in batches by bucket, in no particular order."""
    for index in bucketed(np.arange(len(encoded)), encoded.buckets, batch_size, np.random.default_rng(0)):
        batch = encoded.rows(index)
        found = jax.device_get(logits({name: array for name, array in batch.items() if name in _READ}))
        for place, row in enumerate(index.tolist()):
            if row >= 0:
                yield RowLogits(row, jax.tree.map(lambda x, place=place: x[place], found), batch["tokens"].shape[-1])


_READ = ("tokens", "mask", "types", "context")


def logits_of_rows(logits: Logits, encoded: Encoded, batch_size: int) -> np.ndarray:
    """Return the logits of all rows, or of the options of each, in order: [R, C], -inf for options that a row lacks."""
    found = {each.row: each.logits for each in predict_rows(logits, encoded, batch_size)}
    scores_RC = np.stack([found[row] for row in range(len(encoded))])
    if encoded.spec.task.kind == "choice":  # a question may have fewer options than others
        scores_RC[np.arange(scores_RC.shape[1]) >= np.diff(encoded.first)[:, None]] = -np.inf
    return scores_RC


def logits_of_examples(logits: Logits, encoded: Encoded, batch_size: int) -> np.ndarray:
    """Return the logits of all examples [examples, C], joined from those of their windows where they have several."""
    scores_RC = logits_of_rows(logits, encoded, batch_size)
    return pooled(scores_RC, encoded.example_of_row, encoded.spec.pool) if encoded.spec.pool else scores_RC


def labels_of_examples(encoded: Encoded) -> np.ndarray | None:
    """Return the labels of all examples: those of the first of their rows, which all have the same."""
    if encoded.labels is None or not encoded.spec.pool:
        return encoded.labels
    return encoded.labels[np.flatnonzero(np.diff(encoded.example_of_row, prepend=-1))]


def logits_of_words(logits: Logits, encoded: Encoded, batch_size: int) -> list[np.ndarray]:
    """Return for each sentence the logits [words, C] at the first piece of each word."""
    found: list[dict[int, np.ndarray]] = [{} for _ in encoded.examples]
    for row, logits_LC, length in predict_rows(logits, encoded, batch_size):
        places, words = encoded.first_pieces(row, length)
        found[encoded.example_of_row[row]] |= {
            int(word): logits_LC[place] for place, word in zip(places, words, strict=True)
        }
    return [np.array([each[word] for word in sorted(each)]) for each in found]


def tags_of(task: Task, logits: list[np.ndarray]) -> list[list[str]]:
    """Return the highest-scoring tag of each word of each sentence, spelled as in the data."""
    names = task.spelled or task.labels
    return [[names[number] for number in scores.argmax(-1)] if len(scores) else [] for scores in logits]


def answers_of(
    logits: Logits, encoded: Encoded, batch_size: int, *, threshold: float = 0.0, n_best: int = 20, longest: int = 30
) -> list[Answered]:
    """Answer the questions of `encoded`. See answers.answer_questions.

    A conditional head predicts unanswerability itself: its logit, the lowest of all windows, is compared with the
    threshold.
    """
    scores: dict[int, WindowScores] = {}
    none: dict[int, float] = {}
    for row, found, length in predict_rows(logits, encoded, batch_size):
        if isinstance(found, Beams):
            scores[row] = _beam_scores(encoded, row, found, length)
            number = int(encoded.example_of_row[row])
            none[number] = min(none.get(number, np.inf), float(found.unanswerable_B))
        else:
            scores[row] = window_scores(encoded, row, found[:, 0], found[:, 1], n_best=n_best)
    answered = answer_questions(encoded, scores, n_best=n_best, longest=longest, threshold=threshold)
    if not none or not encoded.spec.task.unanswerable:
        return answered
    return [decided(each, none[number], threshold) for number, each in enumerate(answered)]


def _beam_scores(encoded: Encoded, row: int, beams: Beams, length: int) -> WindowScores:
    """Convert the beams of a row, which are positions in a padded batch, to candidates of its window."""
    window = encoded.windows[row]
    size = int(np.diff(encoded.sequences.bounds[row : row + 2])[0])
    first = window.at + (length - size if encoded.spec.templates.left else 0)
    ends = np.asarray(beams.ends_BST) - first
    starts = np.broadcast_to(np.asarray(beams.starts_BS)[:, None] - first, ends.shape)
    start_scores = np.broadcast_to(np.asarray(beams.start_scores_BS)[:, None], ends.shape)
    end_scores, null = np.asarray(beams.end_scores_BST), float(beams.unanswerable_B)
    kept = (starts >= 0) & (ends >= starts) & (ends < window.size)
    return WindowScores(starts[kept], ends[kept], start_scores[kept], end_scores[kept], null, 0.0)


class Evaluated(NamedTuple):
    """The metrics of a task, and the predictions for its examples.

    predictions: answers to questions, tags of words, class numbers or values, or lists of class numbers. probabilities:
    [R, C], of the classes, labels or options; None of other kinds of tasks.
    """

    metrics: dict[str, float]
    predictions: Any
    task: Task
    examples: Sequence[Example]
    probabilities: np.ndarray | None = None

    @property
    def gold(self) -> list[Any]:
        """The labels of the examples, as `predictions` has them; of questions their answers, of sentences IOB2."""
        return [_gold_of(self.task, example) for example in self.examples]


def _gold_of(task: Task, example: Example) -> Any:
    match example:
        case Texts(origin, _, _, labels) if labels is not None:
            return [task.number(origin, label) for label in labels]
        case Texts(origin, _, label):
            return task.value(origin, label) if task.kind == "regress" else task.number(origin, label)
        case Words(origin, _, tags):
            return list(as_scored(task, task.tags(origin, tags)))
        case Question(answers=answers):
            return [answer.text for answer in answers]
        case Choice(label=number):
            return number


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of labels that exclude each other: float32."""
    return np.asarray(jax.nn.softmax(logits.astype(np.float32), axis=-1))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of labels that do not exclude each other: float32."""
    return np.asarray(jax.nn.sigmoid(logits.astype(np.float32)))


def require_labels(examples: Sequence[Example]) -> None:
    """Raise InputError if an example has no label, or a question no answer, to evaluate predictions against."""
    for example in examples:
        if not is_labelled(example) and not (isinstance(example, Question) and example.answers):
            raise InputError(f"{example.origin}: no label: models are evaluated on this split, so label all of it")


def evaluate_rows(
    encoded: Encoded,
    logits: Logits,
    batch_size: int,
    *,
    longest: int = 30,
    threshold: float = 0.0,
    thresholds: Sequence[float] = (),
) -> Evaluated:
    """Evaluate a model on the rows of a labelled split. longest, threshold: see answers.answer_questions.

    thresholds: of the labels of a multilabel task, by default 0.5 each. Raises InputError for missing labels: see
    require_labels.
    """
    require_labels(encoded.examples)
    task = encoded.spec.task
    if task.kind == "span":
        return _evaluate_answers(encoded, answers_of(logits, encoded, batch_size, longest=longest, threshold=threshold))
    if task.kind == "tag":
        tags = tags_of(task, logits_of_words(logits, encoded, batch_size))
        scores = score_tags(task, encoded.examples, [as_scored(task, each) for each in tags])
        return Evaluated(scores, tags, task, encoded.examples)
    labels = labels_of_examples(encoded)
    assert labels is not None  # all examples have one
    scores_RC = logits_of_examples(logits, encoded, batch_size)
    if task.kind == "multilabel":
        chances_RC = sigmoid(scores_RC)
        limits_C = np.array(thresholds or [0.5] * len(task.labels))
        scores = score_labels(task.metrics, labels, chances_RC, limits_C)
        found = [np.flatnonzero(chances_C > limits_C).tolist() for chances_C in chances_RC]
        return Evaluated(scores, found, task, encoded.examples, chances_RC)
    if task.kind == "regress":
        predicted = scores_RC[:, 0]
        return Evaluated(score_rows(task.metrics, labels, predicted), predicted.tolist(), task, encoded.examples)
    chances_RC, predicted = softmax(scores_RC), scores_RC.argmax(-1)
    scores = score_rows(task.metrics, labels, predicted)
    return Evaluated(scores, predicted.tolist(), task, encoded.examples, chances_RC)


def as_scored(task: Task, tags: Sequence[str]) -> tuple[str, ...]:
    """Return tags as they are scored: types of entities without marks become IOB2."""
    return to_iob2(tags, PLAIN) if task.scheme.marks == "none" else tuple(tags)


def score_tags(task: Task, examples: Sequence[Example], tags: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score the tags of the words of each sentence: in IOB2 if they are entities, else as the data write them.

    Entities by their F1, also a strict one, for which an entity must begin with B-; other tags by accuracy over words.
    """
    gold = [as_scored(task, task.tags(x.origin, x.tags)) for x in examples if isinstance(x, Words)]
    if task.scheme.marks == "words":
        given, found = ([tag for sentence in side for tag in sentence] for side in (gold, tags))
        return {"accuracy": accuracy(np.array(given), np.array(found))}
    return {"entity_f1": entity_f1(gold, tags), "entity_f1_strict": entity_f1(gold, tags, "iob2")}


def _evaluate_answers(encoded: Encoded, answered: list[Answered]) -> Evaluated:
    """Score answers; if questions may have none, also at the best threshold."""
    gold = _gold(encoded)
    predictions = {each.id: each.answer.text for each in answered}
    if not gold.unanswerable:
        scores = score_predictions(gold, predictions)
    else:
        forced = {each.id: next((x.text for x in each.best if x.text), "") for each in answered}
        odds = {each.id: each.null_odds for each in answered}
        scores = score_predictions(gold, predictions)
        best = score_predictions(gold, forced, odds, threshold=np.inf)
        scores |= {name: value for name, value in best.items() if name.startswith("best_")}
    left_out = ("missing_ids", "unknown_ids")
    kept = {name: value for name, value in scores.items() if not name.endswith("total") and name not in left_out}
    return Evaluated(kept, answered, encoded.spec.task, encoded.examples)


def _gold(encoded: Encoded) -> Gold:
    questions = [example for example in encoded.examples if isinstance(example, Question)]
    return Gold({x.id: [answer.text for answer in x.answers] for x in questions}, encoded.spec.task.unanswerable)


def constant_answer(encoded: Encoded) -> float:
    """Return the first metric of the best constant prediction: a model that does no better has learned nothing."""
    task, labels = encoded.spec.task, labels_of_examples(encoded)
    if task.kind == "span":
        gold = _gold(encoded)
        return float(score_predictions(gold, dict.fromkeys(gold.answers, ""))[task.metric_names[0]])
    if task.kind == "multilabel" and labels is not None:
        return _constant_labels(task, labels)
    if task.kind == "tag" and task.scheme.marks == "words":
        counts = Counter(tag for x in encoded.examples if isinstance(x, Words) for tag in x.tags)
        return max(counts.values()) / counts.total()
    if task.kind not in ("classify", "choice") or labels is None:
        return 0.0
    constant = [np.full_like(labels, label) for label in np.unique(labels)]
    return max(score_rows(task.metrics[:1], labels, each)[task.metric_names[0]] for each in constant)


def _constant_labels(task: Task, labels_RC: np.ndarray) -> float:
    """Return the first metric of the best constant prediction: the k most frequent labels, for some k."""
    C = labels_RC.shape[1]
    rank_C = np.argsort(np.argsort(-labels_RC.mean(0), kind="stable"))
    found = []
    for k in range(C + 1):
        chances_RC = np.broadcast_to(np.where(rank_C < k, 0.75, 0.25) - 0.25 * rank_C / C, labels_RC.shape)
        found.append(score_labels(task.metrics[:1], labels_RC, chances_RC, np.array([0.5] * C)))
    return max(each[task.metric_names[0]] for each in found)
