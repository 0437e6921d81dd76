"""Metrics of tasks, as their official scripts compute them: GLUE's as scikit-learn and scipy, entities as conlleval.

SQuAD's are in bertjax/tasks/squad.py. All are fractions or correlations, not percent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bertjax.tasks.tags import Entity, entities, strict_entities
from bertjax.tasks.task import Metric
from bertjax.wording import counted


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the fraction of rows whose class is predicted correctly."""
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the F1 of class 1, as for MRPC and QQP: 2 tp / (2 tp + fp + fn), 0 if class 1 never occurs."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if not np.isin([*np.unique(labels), *np.unique(predictions)], (0, 1)).all():
        raise ValueError("f1 is defined for the classes 0 and 1: use accuracy or matthews for more classes")
    tp, either = np.sum((labels == 1) & (predictions == 1)), np.sum(labels == 1) + np.sum(predictions == 1)
    return float(2 * tp / either) if either else 0.0


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return Matthews' correlation of two or more classes (Gorodkin 2004), 0 if labels or predictions are constant."""
    classes, numbers = np.unique([labels, predictions], return_inverse=True)
    counts_CC = np.zeros((len(classes), len(classes)))
    np.add.at(counts_CC, tuple(numbers.reshape(2, -1)), 1)
    true_C, predicted_C, total = counts_CC.sum(1), counts_CC.sum(0), counts_CC.sum()
    covariance = np.trace(counts_CC) * total - true_C @ predicted_C
    variances = (total**2 - true_C @ true_C) * (total**2 - predicted_C @ predicted_C)
    return float(covariance / np.sqrt(variances)) if variances else 0.0


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return Pearson's correlation, 0 if labels or predictions are constant, NaN if one of them is not finite."""
    x, y = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return _correlation(x, y)


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return Spearman's rank correlation; equal values share the mean of their ranks. Degenerate cases as pearson.

    An infinite value has the first or last rank.
    """
    x, y = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return _correlation(_ranks(x), _ranks(y))


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        x, y = x - x.mean(), y - y.mean()
        # Scaled before they are squared, so that tiny and huge values neither underflow nor overflow.
        x, y = x / np.abs(x).max(), y / np.abs(y).max()
        return float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1))


def _ranks(x: np.ndarray) -> np.ndarray:
    """Return the ranks from 1, NaN throughout if x has a NaN, which has no rank."""
    if np.isnan(x).any():
        return np.full(len(x), np.nan)
    _, numbers, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[numbers]


def micro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the F1 of all labels of all rows, booleans [R, C]: 2 tp / (2 tp + fp + fn), 0 if there are none."""
    labels, predictions = np.asarray(labels, bool), np.asarray(predictions, bool)
    either = labels.sum() + predictions.sum()
    return float(2 * (labels & predictions).sum() / either) if either else 0.0


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the mean over labels of their F1 over rows, booleans [R, C]; 0 for a label that never occurs."""
    labels, predictions = np.asarray(labels, bool), np.asarray(predictions, bool)
    right_C, either_C = (labels & predictions).sum(0), labels.sum(0) + predictions.sum(0)
    return float(np.mean(2 * right_C / np.maximum(either_C, 1)))


def ranking_average_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the label ranking average precision of probabilities [R, C] for booleans [R, C].

    The mean over rows of the mean over a row's labels of the fraction of labels among those that are ranked as high or
    higher; 1 for a row with no label or with all. scikit-learn's label_ranking_average_precision_score.
    """
    scores = []
    for given_C, ranked_C in zip(np.asarray(labels, bool), np.asarray(probabilities), strict=True):
        higher = ranked_C >= ranked_C[given_C][:, None]  # of each label of the row, which are ranked as high
        precision = higher[:, given_C].sum(1) / np.maximum(higher.sum(1), 1)
        scores.append(precision.mean() if 0 < given_C.sum() < len(given_C) else 1.0)
    return float(np.mean(scores))


_BY_NAME = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson, "spearman": spearman}
_OF_LABELS = {"micro_f1": micro_f1, "macro_f1": macro_f1}
_OF_RANKING = {"ranking_average_precision": ranking_average_precision}


def score_labels(
    metrics: Sequence[str | Metric], labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray
) -> dict[str, float]:
    """Compute metrics of rows with any number of labels: by these names, or functions (see Task.metrics).

    labels, probabilities: [R, C]. thresholds: [C], a label whose probability is above is predicted. Raises ValueError
    for a name of a metric of another kind of task.
    """
    given, predicted = np.asarray(labels) > 0, probabilities > thresholds
    found = {}
    for metric in metrics:
        if isinstance(metric, str) and metric in _OF_RANKING:
            found[metric] = _OF_RANKING[metric](given, probabilities)
            continue
        if isinstance(metric, str) and metric not in _OF_LABELS:
            known = ", ".join([*_OF_LABELS, *_OF_RANKING])
            raise ValueError(f"{metric} is no metric of several labels for each text: use {known}, or a function")
        function = _OF_LABELS[metric] if isinstance(metric, str) else metric
        found[function.__name__] = function(given, predicted)
    return found


def score_rows(metrics: Sequence[str | Metric], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Compute metrics of predicted classes or numbers: by these names, or functions (see Task.metrics).

    Raises ValueError if labels and predictions differ in number, or if there are none.
    """
    if len(labels) != len(predictions) or not len(labels):
        raise ValueError(
            f"{counted(len(labels), 'labels')} and {counted(len(predictions), 'predictions')}: as many of both are "
            "needed, at least one"
        )
    functions = [_BY_NAME[metric] if isinstance(metric, str) else metric for metric in metrics]
    return {function.__name__: function(labels, predictions) for function in functions}


class EntityCounts(NamedTuple):
    """Numbers of entities: in the data, predicted, and predicted correctly."""

    gold: int
    predicted: int
    correct: int

    @property
    def precision(self) -> float:
        """Fraction of the predicted entities that are correct."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Fraction of the entities in the data that were predicted."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.correct / (self.gold + self.predicted) if self.correct else 0.0


def count_entities(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: str = ""
) -> dict[str, EntityCounts]:
    """Count the entities of tagged sentences by type, and all of them under the key "".

    An entity is correct if its type, first and last word are. scheme: with iob1, iob2 or bioes only entities tagged
    exactly in that scheme count (strict); by default, those that conlleval reads. Raises ValueError if the tags of a
    sentence differ in number.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"{counted(len(gold), 'sentences')} and {counted(len(predicted), 'predictions')}")
    sides: tuple[set[tuple[int, Entity]], ...] = (set(), set())
    for number, pair in enumerate(zip(gold, predicted, strict=True)):
        if len(pair[0]) != len(pair[1]):
            raise ValueError(f"sentence {number} has {counted(len(pair[0]), 'tags')}, but {len(pair[1])} predicted")
        for side, tags in zip(sides, pair, strict=True):
            read = strict_entities(tags, scheme) if scheme else entities(tags)
            side.update((number, entity) for entity in read)
    counts = {}
    for kind in ["", *sorted({entity.kind for side in sides for _, entity in side})]:
        ours, theirs = ({x for x in side if kind in ("", x[1].kind)} for side in reversed(sides))
        counts[kind] = EntityCounts(len(theirs), len(ours), len(ours & theirs))
    return counts


def entity_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: str = "") -> float:
    """Return the F1 of all entities. See count_entities."""
    return count_entities(gold, predicted, scheme)[""].f1
