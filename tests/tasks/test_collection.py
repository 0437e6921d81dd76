"""Collections to search, and the metrics of a search against other derivations of them."""

import json

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from bertjax.errors import InputError
from bertjax.tasks.collection import collection_of_pairs, read_collection, read_passages, read_scored_pairs
from bertjax.tasks.ranking import ndcg, recall, reciprocal_rank
from bertjax.tasks.reading import Notes


def test_ndcg_is_that_of_scikit_learn():
    """Of 12 passages of degrees 0 to 3, all ranked by scores without ties."""
    rng = np.random.default_rng(0)
    degrees, scores = rng.integers(0, 4, (50, 12)) * (rng.random((50, 12)) < 0.4), rng.normal(size=(50, 12))
    degrees[:, 0] += 1  # each query has one that is relevant
    ranked = np.take_along_axis(degrees, np.argsort(-scores, axis=1), axis=1)
    ideal = -np.sort(-degrees, axis=1)
    for k in (1, 10, 12, 20):
        np.testing.assert_allclose(ndcg(ranked, ideal, k), ndcg_score(degrees, scores, k=k), rtol=1e-12)


def test_recall_and_reciprocal_rank_by_hand():
    gains = np.array([[0, 1, 0, 2], [0, 0, 0, 0], [1, 0, 0, 1]])
    relevant = np.array([4, 1, 2])
    assert recall(gains, relevant, 2) == pytest.approx((1 / 4 + 0 + 1 / 2) / 3)
    assert recall(gains, relevant, 100) == pytest.approx((2 / 4 + 0 + 2 / 2) / 3)
    assert reciprocal_rank(gains, 10) == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert reciprocal_rank(gains, 1) == pytest.approx(1 / 3)
    assert ndcg(gains[:1], np.array([[2, 1, 1, 1]]), 2) == pytest.approx(np.log2(3) ** -1 / (2 + np.log2(3) ** -1))


@pytest.fixture
def beir(tmp_path):
    """Write a collection as BEIR has it, and return a function that reads it with other judgements."""
    texts = {
        "queries.jsonl": [{"_id": "q1", "text": "how"}, {"_id": "q2", "text": "why"}],
        "corpus.jsonl": [
            {"_id": "d1", "title": "Old", "text": "news"}, {"_id": "d2", "title": "", "text": "new"},
            {"_id": "d3", "text": " "},
        ],
    }  # fmt: skip
    for name, records in texts.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))

    def read(judgements, notes=None):
        (tmp_path / "test.tsv").write_text(judgements)
        files = (tmp_path / name for name in ("queries.jsonl", "corpus.jsonl", "test.tsv"))
        return read_collection(*files, Notes() if notes is None else notes)

    return read


def test_files_of_beir_are_read(beir):
    notes = Notes()
    found = beir("query-id\tcorpus-id\tscore\nq1\td2\t2\nq1\td1\t1\nq2\td1\t0\n", notes)
    assert found.queries == ("how",) and found.passages == ("Old news", "new") and found.passage_ids == ("d1", "d2")
    assert found.relevant == ({1: 2.0, 0: 1.0},)
    assert +notes == {
        "texts left out, which are empty": 1, "queries left out, without relevant passage": 1,
        "judgements of degree 0 or less, of passages that are not relevant": 1,
    }  # fmt: skip
    assert found.gains(np.array([[0, 1]])).tolist() == [[1, 2]] and found.ideal(3).tolist() == [[2, 1, 0]]
    assert beir("query\tpassage\nq2\td1\n").relevant == ({0: 1.0},)


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        ("query\tpassage\nq9\td1\n", "no query 'q9'"),
        ("query\tpassage\nq1\td3\n", "no passage 'd3'"),
        ("query\tpassage\tscore\nq1\td1\tyes\n", "must be a number"),
        ("query\tpassage\tscore\nq1\td1\tinf\n", "finite"),
        ("query\tpassage\tscore\nq1\td1\t0\n", "no relevant passage"),
        ("a\tb\nq1\td1\n", "no column 'query'"),
    ],
)
def test_judgements_that_do_not_fit_are_named(beir, judgements, message):
    with pytest.raises(InputError, match=message):
        beir(judgements)


def test_a_file_of_pairs_is_a_collection(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("a,p,n\nhow,old,new\nhow,big,\nwhy,old,little\n")
    found = collection_of_pairs(path, ("a", "p", "n"), Notes())
    assert found.queries == ("how", "why") and found.passages == ("old", "new", "big", "little")
    assert found.relevant == ({0: 1.0, 2: 1.0}, {0: 1.0})
    path.write_text("a,p\nhow,old\nwhy,old\n")
    with pytest.raises(InputError, match=r"1 different passages?: nothing to search"):
        collection_of_pairs(path, ("a", "p"), Notes())


def test_passages_and_scored_pairs(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old\n\nnew\n")
    assert read_passages(path, Notes()) == {"1": "old", "3": "new"}
    path = tmp_path / "x.csv"
    path.write_text("id,text\n1,old\n1,new\n")
    with pytest.raises(InputError, match="another text has the id '1'"):
        read_passages(path, Notes())
    path.write_text("one,two,score\na,b,1.5\nc,d,2\n")
    assert read_scored_pairs(path, ("one", "two"), "score", Notes()) == ([("a", "b"), ("c", "d")], [1.5, 2.0])
    path.write_text("one,two,score\na,b,much\n")
    with pytest.raises(InputError, match=r"x.csv:2: score='much' is not a number"):
        read_scored_pairs(path, ("one", "two"), "score", Notes())
