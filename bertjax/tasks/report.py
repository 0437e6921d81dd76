"""Scores by class, their means, a confusion matrix, calibration and the best threshold, from labels and predictions.

As scikit-learn computes them: classification_report, confusion_matrix, calibration_curve. A ratio without rows is 0.
The calibration error is that of Guo et al. 2017, over 15 bins of equal width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from bertjax.tasks.metrics import EntityCounts, count_entities
from bertjax.tasks.scoring import Evaluated, as_scored

BINS = 15


class ClassScore(NamedTuple):
    """Precision, recall and F1 of a class, and how many rows (labels, entities) of it the data have."""

    precision: float
    recall: float
    f1: float
    support: int


class Bin(NamedTuple):
    """Predictions of a probability in (low, high]: their number, mean probability, and the fraction that is right."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


class Calibration(NamedTuple):
    """The expected calibration error, mean |accuracy - confidence| over predictions, and its bins that have some."""

    error: float
    bins: list[Bin]


class Threshold(NamedTuple):
    """The probability above which `label`, of two, is predicted. macro_f1: of the rows that it was chosen on."""

    label: str
    probability: float
    macro_f1: float | None = None


@dataclass(frozen=True)
class Report:
    """Scores of a model on labelled data.

    classes, means: by class (of entities, type); macro, weighted by support, and micro where rows have several.
    confusion: rows of class i (of labels) that were predicted as class j; [] where rows have several, or none. at: the
    same scores of two classes at a threshold that was chosen elsewhere.
    """

    rows: int
    metrics: dict[str, float]
    classes: dict[str, ClassScore] = field(default_factory=dict)
    means: dict[str, ClassScore] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    confusion: list[list[int]] = field(default_factory=list)
    calibration: Calibration | None = None
    threshold: Threshold | None = None
    at: "Report | None" = None


def report_on(evaluated: Evaluated, threshold: Threshold | None = None) -> Report:
    """Report on the predictions of a split, and on those of two classes at a threshold too."""
    task = evaluated.task
    assert task is not None
    plain = Report(len(evaluated.examples), evaluated.metrics)
    if task.kind == "tag":
        return _of_tags(evaluated, plain)
    if task.kind not in ("classify", "multilabel", "choice"):
        return plain
    chances_RC, gold = np.asarray(evaluated.probabilities, np.float64), evaluated.gold
    if task.kind == "choice":
        best_R = chances_RC.argmax(1)
        return replace(plain, calibration=calibration(chances_RC.max(1), best_R == np.asarray(gold)))
    if task.kind == "multilabel":
        given_RC, found_RC = (_one_hot(side, len(task.labels)) for side in (gold, evaluated.predictions))
        return _of_labels(plain, task.labels, given_RC, found_RC, chances_RC)
    predicted = np.asarray(evaluated.predictions)
    report = of_classes(plain, task.labels, np.asarray(gold), predicted)
    right_R = predicted == np.asarray(gold)
    report = replace(report, calibration=calibration(chances_RC[np.arange(len(predicted)), predicted], right_R))
    if threshold is None or len(task.labels) != 2:
        return report
    chosen = at_threshold(chances_RC, task.labels.index(threshold.label), threshold.probability)
    accuracy = {"accuracy": float(np.mean(chosen == np.asarray(gold)))}
    at = of_classes(Report(plain.rows, accuracy), task.labels, np.asarray(gold), chosen)
    return replace(report, threshold=threshold, at=at)


def of_classes(plain: Report, labels: Sequence[str], gold_R: np.ndarray, predicted_R: np.ndarray) -> Report:
    """Add the scores of classes by number, those that neither occur nor are predicted left out."""
    C = len(labels)
    counts_CC = np.zeros((C, C), np.int64)
    np.add.at(counts_CC, (gold_R, predicted_R), 1)
    kept = np.flatnonzero(counts_CC.sum(0) + counts_CC.sum(1))
    counts_CC = counts_CC[np.ix_(kept, kept)]
    names = tuple(labels[number] for number in kept.tolist())
    scores = _scores(np.diag(counts_CC), counts_CC.sum(0), counts_CC.sum(1))
    classes = dict(zip(names, scores, strict=True))
    return replace(plain, classes=classes, means=_means(scores), labels=names, confusion=counts_CC.tolist())


def _of_labels(
    plain: Report, labels: Sequence[str], given_RC: np.ndarray, found_RC: np.ndarray, chances_RC: np.ndarray
) -> Report:
    right_C, found_C, given_C = (given_RC & found_RC).sum(0), found_RC.sum(0), given_RC.sum(0)
    scores = _scores(right_C, found_C, given_C)
    means = {"micro": _scores([right_C.sum()], [found_C.sum()], [given_C.sum()])[0]} | _means(scores)
    error = calibration(chances_RC.reshape(-1), given_RC.reshape(-1))
    return replace(plain, classes=dict(zip(labels, scores, strict=True)), means=means, calibration=error)


def _of_tags(evaluated: Evaluated, plain: Report) -> Report:
    """Report on entities by type; on tags of words, each by itself, as on classes."""
    task, gold, found = evaluated.task, evaluated.gold, evaluated.predictions
    assert task is not None
    if task.scheme.marks == "words":
        sides = [[tag for sentence in side for tag in sentence] for side in (gold, found)]
        labels = tuple(dict.fromkeys([*task.labels, *sides[0], *sides[1]]))
        numbers = {label: number for number, label in enumerate(labels)}
        return of_classes(plain, labels, *(np.array([numbers[tag] for tag in side]) for side in sides))
    counts: Mapping[str, EntityCounts] = count_entities(gold, [as_scored(task, tags) for tags in found])
    classes = {kind: ClassScore(x.precision, x.recall, x.f1, x.gold) for kind, x in counts.items()}
    micro = classes.pop("")
    return replace(plain, classes=classes, means={"micro": micro} | _means(list(classes.values())))


def _scores(right: Any, predicted: Any, given: Any) -> list[ClassScore]:
    return [
        ClassScore(
            float(tp / found) if found else 0.0,
            float(tp / there) if there else 0.0,
            float(2 * tp / (found + there)) if found + there else 0.0,
            int(there),
        )
        for tp, found, there in zip(right, predicted, given, strict=True)
    ]


def _means(scores: Sequence[ClassScore]) -> dict[str, ClassScore]:
    """Return the macro mean, and that weighted by support."""
    if not scores:
        return {}
    table_C3, support_C = np.array([score[:3] for score in scores]), np.array([score.support for score in scores])
    total = int(support_C.sum())
    weights_C = support_C / total if total else np.zeros(len(scores))
    means = {"macro": table_C3.mean(0), "weighted": weights_C @ table_C3}
    return {name: ClassScore(float(p), float(r), float(f), total) for name, (p, r, f) in means.items()}


def calibration(confidence_R: np.ndarray, right_R: np.ndarray) -> Calibration:
    """Compare probabilities of predictions with how often these are right."""
    bin_R = np.clip(np.ceil(np.asarray(confidence_R) * BINS).astype(int) - 1, 0, BINS - 1)
    bins = [
        Bin(
            number / BINS,
            (number + 1) / BINS,
            int((bin_R == number).sum()),
            float(np.mean(confidence_R[bin_R == number])),
            float(np.mean(right_R[bin_R == number])),
        )
        for number in np.unique(bin_R).tolist()
    ]
    rows = max(1, len(bin_R))
    return Calibration(sum(each.rows * abs(each.accuracy - each.confidence) for each in bins) / rows, bins)


def at_threshold(chances_RC: np.ndarray, label: int, probability: float) -> np.ndarray:
    """Return the class of each row, of two: `label` where its probability is above the threshold, else the other."""
    return np.where(np.asarray(chances_RC)[:, label] > probability, label, 1 - label)


def best_threshold(labels: Sequence[str], chances_RC: Any, gold: Sequence[int]) -> Threshold:
    """Choose the threshold of the second of two labels: of the highest macro F1, of equals the nearest to 0.5."""
    chance_R, positive_R = np.asarray(chances_RC, np.float64)[:, 1], np.asarray(gold) == 1
    order = np.argsort(-chance_R, kind="stable")
    chance_R, positive_R = chance_R[order], positive_R[order]
    # With a cut after k rows these are predicted; a cut is possible where probabilities differ.
    cuts = np.flatnonzero(np.diff(np.concatenate([[np.inf], chance_R, [-np.inf]])))
    above = np.concatenate([[0], np.cumsum(positive_R)])[cuts]
    positives, rows = int(positive_R.sum()), len(positive_R)
    f1_positive = 2 * above / np.maximum(cuts + positives, 1)
    f1_negative = 2 * (rows - cuts - (positives - above)) / np.maximum((rows - cuts) + (rows - positives), 1)
    macro = (f1_positive + f1_negative) / 2
    edges = np.concatenate([[1.0], chance_R, [0.0]])
    middle = (edges[cuts] + edges[cuts + 1]) / 2
    best = min(np.flatnonzero(macro >= macro.max() - 1e-12), key=lambda cut: abs(middle[cut] - 0.5))
    return Threshold(labels[1], float(middle[best]), float(macro[best]))


def _one_hot(rows: Sequence[Sequence[int]], C: int) -> np.ndarray:
    found_RC = np.zeros((len(rows), C), bool)
    for row, numbers in enumerate(rows):
        found_RC[row, list(numbers)] = True
    return found_RC
