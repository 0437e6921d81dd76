import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from bertjax.tasks.metrics import (
    count_entities,
    entity_f1,
    f1,
    matthews,
    pearson,
    score_labels,
    score_rows,
    spearman,
)


def classes():
    """Yield labels and predictions of classes: of few and many rows, balanced or not, constant on either side."""
    rng = np.random.default_rng(0)
    for rows in (1, 2, 3, 40, 500):
        for likely in (0.5, 0.05):
            yield tuple((rng.random((2, rows)) < likely).astype(int))
        for constant in (0, 1):
            yield np.full(rows, constant), rng.integers(2, size=rows)
            yield rng.integers(2, size=rows), np.full(rows, constant)
            yield np.full(rows, constant), np.full(rows, constant)
    yield np.full(4, 0), np.full(4, 1)


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_classes_are_scored_as_by_scikit_learn():
    rng = np.random.default_rng(1)
    for labels, predictions in classes():
        expected = {
            "accuracy": sklearn.accuracy_score(labels, predictions),
            "f1": sklearn.f1_score(labels, predictions, zero_division=0),
            "matthews": sklearn.matthews_corrcoef(labels, predictions),
        }
        assert score_rows(tuple(expected), labels, predictions) == pytest.approx(expected, rel=1e-14, abs=0)
    for count in (3, 7):
        labels, predictions = rng.integers(count, size=(2, 200))
        assert matthews(labels, predictions) == pytest.approx(sklearn.matthews_corrcoef(labels, predictions), rel=1e-13)
        assert matthews(labels, labels) == 1 and matthews(labels, np.full(200, 9)) == 0
        with pytest.raises(ValueError, match="classes 0 and 1"):
            f1(labels, predictions)
    many = rng.integers(2, size=(2, 200_000))  # the product of the variances exceeds an int64
    assert matthews(*many) == pytest.approx(sklearn.matthews_corrcoef(*many), rel=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_several_labels_are_scored_as_by_scikit_learn():
    rng = np.random.default_rng(4)
    for rows, labels, likely in ((1, 2, 0.5), (5, 3, 0.5), (40, 7, 0.1), (40, 7, 0.9), (3, 4, 0.0), (9, 1, 0.5)):
        given = rng.random((rows, labels)) < likely
        chances = np.round(rng.random((rows, labels)), 1)  # with ties
        limits = rng.choice([0.2, 0.5, 0.8], labels)
        expected = {
            "micro_f1": sklearn.f1_score(given, chances > limits, average="micro", zero_division=0),
            "macro_f1": sklearn.f1_score(given, chances > limits, average="macro", zero_division=0),
            "ranking_average_precision": sklearn.label_ranking_average_precision_score(given, chances),
        }
        if labels == 1:  # one column is two classes to scikit-learn, unless it is asked for the second
            expected["micro_f1"] = expected["macro_f1"] = sklearn.f1_score(given[:, 0], chances[:, 0] > limits)
        assert score_labels(tuple(expected), given, chances, limits) == pytest.approx(expected, rel=1e-14, abs=0)

    def exact(labels, predictions):
        return float((labels == predictions).all(-1).mean())

    assert score_labels([exact], np.eye(3), np.eye(3), np.full(3, 0.5)) == {"exact": 1.0}
    with pytest.raises(
        ValueError, match="accuracy is no metric of several labels for each text: use micro_f1, macro_f1"
    ):
        score_labels(["accuracy"], np.eye(3), np.eye(3), np.full(3, 0.5))


def numbers():
    """Yield labels and predictions of numbers: of few and many rows, with ties, of very different sizes."""
    rng = np.random.default_rng(2)
    for rows in (2, 3, 10, 300):
        x, y = rng.normal(size=(2, rows))
        yield x, y
        yield np.arange(rows) * 1.0, y
        yield np.arange(rows) * 2.0, 7 - 3.0 * np.arange(rows)
        yield rng.permutation(np.arange(rows) // 2) * 0.5, y  # ties
        yield np.arange(rows) // 2 + 1e6, np.round(y, 1) * 1e-8 + np.arange(rows) % 2
        yield x.astype(np.float32), (x + 0.1 * y).astype(np.float32)
    yield np.array([0.0, -0.0, 1, 2]), np.array([1.0, 1, 2, 2])
    yield rng.normal(size=20) * 1e200, rng.normal(size=20) * 1e-200


def test_numbers_are_scored_as_by_scipy():
    for labels, predictions in numbers():
        if np.ptp(labels) and np.ptp(predictions):
            wide = np.float64(labels), np.float64(predictions)  # what both are computed in, whatever is given
            expected = stats.pearsonr(*wide)[0], stats.spearmanr(*wide)[0]
        else:
            expected = 0.0, 0.0
        assert (pearson(labels, predictions), spearman(labels, predictions)) == pytest.approx(expected, abs=1e-9)
    ours = np.arange(4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for constant in (np.full(4, 0.1), np.zeros(4)):
            for metric in (pearson, spearman):
                assert metric(ours, constant) == metric(constant, ours) == metric(constant, constant) == 0
        assert pearson([1.0], [2.0]) == spearman([1.0], [2.0]) == 0
        for bad in (np.nan, np.inf):
            theirs = np.array([1.0, bad, 0, 2])
            assert np.isnan(pearson(ours, theirs))
            assert spearman(ours, theirs) == pytest.approx(stats.spearmanr(ours, theirs)[0], nan_ok=True)


def test_labels_and_predictions_are_of_the_same_rows():
    with pytest.raises(ValueError, match="30 labels and 29 predictions"):
        score_rows(("pearson",), np.ones(30), np.ones(29))
    with pytest.raises(ValueError, match="0 labels and 0 predictions"):
        score_rows(("accuracy",), np.ones(0), np.ones(0))


def test_entities_are_counted_whole_and_by_type():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "B-LOC"], ["O"]]
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["O", "B-LOC", "I-LOC"], ["B-LOC"]]
    found = {kind: tuple(counts) for kind, counts in count_entities(gold, predicted).items()}
    assert found == {"": (4, 4, 1), "LOC": (3, 2, 0), "PER": (1, 2, 1)}
    counts = count_entities(gold, predicted)["PER"]
    assert (counts.precision, counts.recall, counts.f1) == (0.5, 1.0, pytest.approx(2 / 3))
    assert entity_f1(gold, gold) == 1.0 and entity_f1([["O"]], [["O"]]) == 0.0
    with pytest.raises(ValueError, match="sentence 1 has 3 tags, but 1 predicted"):
        count_entities(gold, [predicted[0], ["O"], ["O"]])


def test_damaged_entities_count_unless_asked_for_strictly():
    # What seqeval 1.2.2 prints for these, by default and with mode="strict" and scheme=IOB2.
    gold, predicted = [["B-X", "I-X", "O", "B-Y"]], [["I-X", "I-X", "O", "I-Y"]]
    assert entity_f1(gold, predicted) == 1.0
    assert entity_f1(gold, predicted, "iob2") == 0.0
    gold, predicted = [["B-X", "I-X", "O", "B-Y", "I-Y"]], [["B-X", "I-X", "O", "B-Y", "I-X"]]
    assert entity_f1(gold, predicted) == pytest.approx(0.4)
    assert entity_f1(gold, predicted, "iob2") == pytest.approx(0.5)
