import numpy as np
import pytest

from bertjax.tasks.metrics import count_entities, entity_f1, matthews, score_rows


def test_classes_are_scored_as_their_formulas_say():
    rng = np.random.default_rng(0)
    labels, said = rng.integers(2, size=(2, 50))
    tp, tn = (labels & said).sum(), ((1 - labels) & (1 - said)).sum()
    fp, fn = ((1 - labels) & said).sum(), (labels & (1 - said)).sum()
    expected = {
        "accuracy": (tp + tn) / 50,
        "f1": 2 * tp / (2 * tp + fp + fn),
        "matthews": (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
    }
    assert score_rows(("accuracy", "f1", "matthews"), labels, said) == pytest.approx(expected)
    three, guess = rng.integers(3, size=(2, 60))
    counts = np.zeros((3, 3))
    np.add.at(counts, (three, guess), 1)
    rows, columns = counts.sum(1), counts.sum(0)
    top = 60 * np.trace(counts) - rows @ columns
    assert matthews(three, guess) == pytest.approx(top / np.sqrt((60**2 - columns @ columns) * (60**2 - rows @ rows)))
    assert score_rows(("f1", "matthews"), labels, np.zeros(50, int)) == {"f1": 0.0, "matthews": 0.0}


def test_numbers_are_scored_by_their_correlations():
    rng = np.random.default_rng(0)
    labels, said = rng.normal(size=(2, 30))
    ranks = [np.argsort(np.argsort(x)) for x in (labels, said)]
    expected = {"pearson": np.corrcoef(labels, said)[0, 1], "spearman": np.corrcoef(*ranks)[0, 1]}
    assert score_rows(("pearson", "spearman"), labels, said) == pytest.approx(expected)
    assert score_rows(("spearman",), np.array([1, 1, 2, 3]), np.array([1, 1, 2, 9])) == {"spearman": pytest.approx(1)}
    assert score_rows(("pearson", "spearman"), labels, np.ones(30)) == {"pearson": 0.0, "spearman": 0.0}
    with pytest.raises(ValueError, match="30 labels and 29 predictions"):
        score_rows(("pearson",), labels, said[1:])


def test_entities_are_counted_whole_and_by_type():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "B-LOC"], ["O"]]
    said = [["B-PER", "I-PER", "O", "B-PER"], ["O", "B-LOC", "I-LOC"], ["B-LOC"]]
    found = {kind: tuple(counts) for kind, counts in count_entities(gold, said).items()}
    assert found == {"": (4, 4, 1), "LOC": (3, 2, 0), "PER": (1, 2, 1)}
    counts = count_entities(gold, said)["PER"]
    assert (counts.precision, counts.recall, counts.f1) == (0.5, 1.0, pytest.approx(2 / 3))
    assert entity_f1(gold, gold) == 1.0 and entity_f1([["O"]], [["O"]]) == 0.0
    with pytest.raises(ValueError, match="sentence 1 has 3 tags, but 1 were predicted"):
        count_entities(gold, [said[0], ["O"], ["O"]])


def test_damaged_entities_count_unless_asked_for_strictly():
    # What seqeval 1.2.2 prints for these, by default and with mode="strict" and scheme=IOB2.
    gold, said = [["B-X", "I-X", "O", "B-Y"]], [["I-X", "I-X", "O", "I-Y"]]
    assert entity_f1(gold, said) == 1.0
    assert entity_f1(gold, said, "iob2") == 0.0
    gold, said = [["B-X", "I-X", "O", "B-Y", "I-Y"]], [["B-X", "I-X", "O", "B-Y", "I-X"]]
    assert entity_f1(gold, said) == pytest.approx(0.4)
    assert entity_f1(gold, said, "iob2") == pytest.approx(0.5)
