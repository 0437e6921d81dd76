"""Reports are those of scikit-learn, and of a second, plainer computation of the calibration error."""

from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve

from bertjax.tasks.examples import Choice, Texts, Words
from bertjax.tasks.report import BINS, Threshold, at_threshold, best_threshold, report_on
from bertjax.tasks.report_picture import picture
from bertjax.tasks.report_text import as_json, as_text
from bertjax.tasks.scoring import Evaluated
from bertjax.tasks.tags import WORDS, iob2_labels
from bertjax.tasks.task import Task


def chances(rng, rows, C, sharpness=1.0):
    found = np.exp(sharpness * rng.normal(size=(rows, C)))
    return found / found.sum(1, keepdims=True)


def classified(labels, gold, chances_RC):
    task = Task("own", "classify", labels, ("accuracy",), ())
    examples = [Texts("f:1", ("x",), labels[number]) for number in gold]
    predicted = chances_RC.argmax(1).tolist()
    return Evaluated({"accuracy": 0.0}, predicted, task, examples, chances_RC)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("C", "rows"), [(2, 50), (5, 200), (7, 12), (3, 1)])
def test_classes_are_scored_as_by_scikit_learn(C, rows):
    rng = np.random.default_rng(C)
    labels, gold, chances_RC = tuple(f"c{n}" for n in range(C)), rng.integers(C, size=rows), chances(rng, rows, C)
    evaluated = classified(labels, gold, chances_RC)
    report = report_on(evaluated)
    names = [np.array(labels)[side] for side in (gold, evaluated.predictions)]
    expected = sklearn.classification_report(*names, output_dict=True, zero_division=0)
    for found, theirs in ((report.classes, {}), (report.means, {"macro": "macro avg", "weighted": "weighted avg"})):
        for name, score in found.items():
            assert list(score) == pytest.approx(list(expected[theirs.get(name, name)].values()), rel=1e-12)
    assert report.classes.keys() == expected.keys() - {"accuracy", "macro avg", "weighted avg"}
    assert report.confusion == sklearn.confusion_matrix(*names).tolist()
    confidence, right = chances_RC.max(1), gold == chances_RC.argmax(1)
    error = 0.0
    for low in np.arange(BINS) / BINS:
        held = (confidence > low) & (confidence <= low + 1 / BINS)
        error += held.mean() * abs(right[held].mean() - confidence[held].mean()) if held.any() else 0
    assert report.calibration.error == pytest.approx(error, abs=1e-12)
    for ours, theirs in zip(zip(*[(x.accuracy, x.confidence) for x in report.calibration.bins], strict=True),
                            calibration_curve(right, confidence, n_bins=BINS), strict=True):  # fmt: skip
        np.testing.assert_allclose(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_several_labels_and_tags_are_reported_by_label():
    rng = np.random.default_rng(0)
    labels = ("a", "b", "c")
    given, chances_RC = rng.random((40, 3)) < 0.4, rng.random((40, 3))
    task = Task("own", "multilabel", labels, ("micro_f1",), ())
    examples = [Texts("f", ("x",), "", tuple(np.array(labels)[row])) for row in given]
    found = chances_RC > 0.5
    evaluated = Evaluated({}, [np.flatnonzero(row).tolist() for row in found], task, examples, chances_RC)
    report = report_on(evaluated)
    expected = sklearn.classification_report(given, found, target_names=labels, output_dict=True, zero_division=0)
    for name, score in [*report.classes.items(), *((f"{name} avg", mean) for name, mean in report.means.items())]:
        assert list(score) == pytest.approx(list(expected[name].values()), rel=1e-12)
    assert not report.confusion
    task = Task("own", "tag", iob2_labels(("X", "Y")), ("entity_f1",), ())
    sentences = [Words("f", ("a", "b", "c"), ("B-X", "I-X", "B-Y")), Words("f", ("d",), ("B-X",))]
    report = report_on(Evaluated({}, [["B-X", "I-X", "O"], ["B-Y"]], task, sentences))
    assert [tuple(report.classes[kind]) for kind in "XY"] == [(1, 0.5, pytest.approx(2 / 3), 2), (0, 0, 0, 1)]
    assert tuple(report.means["micro"]) == (0.5, pytest.approx(1 / 3), pytest.approx(0.4), 3)
    task = Task("own", "tag", ("N", "V"), ("accuracy",), (), scheme=WORDS)
    report = report_on(Evaluated({}, [["N", "N"]], task, [Words("f", ("a", "b"), ("N", "V"))]))
    assert report.confusion == [[1, 0], [1, 0]]
    task = Task("own", "choice", (), ("accuracy",), (), options=2)
    report = report_on(Evaluated({}, [0], task, [Choice("f", "a", ("b", "c"), 1)], np.array([[0.9, 0.1]])))
    assert report.calibration.error == pytest.approx(0.9)


def test_the_threshold_has_the_highest_macro_f1_of_all(tmp_path):
    rng = np.random.default_rng(5)
    labels = ("no", "yes")
    for rows, digits in ((30, 9), (200, 1), (1, 9)):
        gold = (rng.random(rows) < 0.2).astype(int)
        positive = np.round(np.clip(0.3 * gold + 0.6 * rng.random(rows), 0, 1), digits)
        chances_RC = np.stack([1 - positive, positive], 1)
        found = best_threshold(labels, chances_RC, gold.tolist())

        def macro(limit, gold=gold, positive=positive):
            return sklearn.f1_score(gold, positive > limit, average="macro", labels=[0, 1], zero_division=0)

        assert found.macro_f1 == pytest.approx(macro(found.probability))
        assert found.macro_f1 >= max(macro(limit) for limit in [-1, *np.unique(positive)]) - 1e-12
        predicted = at_threshold(chances_RC, 1, found.probability)
        report = report_on(classified(labels, gold, chances_RC), found)
        assert report.at.metrics["accuracy"] == np.mean(predicted == gold)
        assert sum(map(sum, report.at.confusion)) == rows


def test_a_report_is_text_json_and_one_picture():
    rng = np.random.default_rng(1)
    labels = ("<neg> & \x1b[31m", "pos")
    evaluated = classified(labels, rng.integers(2, size=60), chances(rng, 60, 2))
    report = report_on(evaluated, Threshold("pos", 0.3))
    text, values = as_text(report), as_json(report)
    assert "precision  recall" in text and "with the threshold 0.3000 for pos" in text
    assert values["confusion"]["labels"] == list(labels) and values["threshold"]["scores"]["rows"] == 60
    drawn = picture(report, 'a "model" <on> data')
    root = ElementTree.fromstring(drawn)  # well-formed, whatever the labels are
    assert root.tag.endswith("svg") and "http" not in drawn.replace("http://www.w3.org/2000/svg", "")
    many = tuple(f"class {n}" for n in range(80))
    report = report_on(classified(many, rng.integers(80, size=400), chances(rng, 400, 80)))
    assert "of the 30 largest classes" in picture(report, "t") and "80 classes: see the JSON" in as_text(report)
    empty = report_on(
        SimpleNamespace(task=Task("own", "regress", (), ("pearson",), ()), examples=[1], metrics={"x": 1.0})
    )
    ElementTree.fromstring(picture(empty, "t"))
