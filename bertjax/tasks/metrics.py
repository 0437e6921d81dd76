"""Score predictions as the official scripts of each task do: GLUE's by scikit-learn and scipy, entities as conlleval.

SQuAD's are in bertjax/tasks/squad.py. All are shares or correlations, not percent.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn

from bertjax.tasks.tags import Entity, entities, strict_entities


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the share of rows whose class is right."""
    return float(sklearn.accuracy_score(labels, predictions))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the F1 of class 1, as MRPC and QQP are scored; 0 where it never occurs."""
    return float(sklearn.f1_score(labels, predictions, zero_division=0))


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return Matthews' correlation, 0 where all predictions are the same."""
    return float(sklearn.matthews_corrcoef(labels, predictions))


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return Pearson's correlation; 0 where one side is constant, for which it has no value."""
    return _correlation(stats.pearsonr, labels, predictions)


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return Spearman's rank correlation; 0 where one side is constant, for which it has no value."""
    return _correlation(stats.spearmanr, labels, predictions)


def _correlation(measure: Callable[..., tuple[float, float]], labels: np.ndarray, predictions: np.ndarray) -> float:
    labels, predictions = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(measure(labels, predictions)[0])


_BY_NAME = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson, "spearman": spearman}


def score_rows(names: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Score rows by metrics of these names (see Task.metrics): classes, or numbers.

    Raises ValueError where labels and predictions differ in number, or where there are none.
    """
    if len(labels) != len(predictions) or not len(labels):
        raise ValueError(f"{len(labels)} labels and {len(predictions)} predictions: as many of both, and some")
    return {name: _BY_NAME[name](labels, predictions) for name in names}


class Found(NamedTuple):
    """Count entities: in the data, predicted, and both."""

    gold: int
    predicted: int
    right: int

    @property
    def precision(self) -> float:
        """The share of what was predicted that is right."""
        return self.right / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """The share of what is there that was found."""
        return self.right / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.right / (self.gold + self.predicted) if self.right else 0.0


def count_entities(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: str = ""
) -> dict[str, Found]:
    """Count entities of sentences of tags by their types, and all of them under "".

    An entity is right where its type, its first and its last word are. scheme: iob1, iob2 or bioes counts only what is
    written as it demands (strict); without one, what conlleval reads. Raises ValueError where the tags of a sentence
    differ in number.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} sentences and {len(predicted)} predictions")
    sides: tuple[set[tuple[int, Entity]], ...] = (set(), set())
    for number, pair in enumerate(zip(gold, predicted, strict=True)):
        if len(pair[0]) != len(pair[1]):
            raise ValueError(f"sentence {number} has {len(pair[0])} tags, but {len(pair[1])} were predicted")
        for side, tags in zip(sides, pair, strict=True):
            read = strict_entities(tags, scheme) if scheme else entities(tags)
            side.update((number, entity) for entity in read)
    counts = {}
    for kind in ["", *sorted({entity.kind for side in sides for _, entity in side})]:
        ours, theirs = ({x for x in side if kind in ("", x[1].kind)} for side in reversed(sides))
        counts[kind] = Found(len(theirs), len(ours), len(ours & theirs))
    return counts


def entity_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: str = "") -> float:
    """Return the F1 of all entities. See count_entities."""
    return count_entities(gold, predicted, scheme)[""].f1
