import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bertjax.commands.main import main
from bertjax.errors import InputError
from bertjax.tasks.squad import (
    Gold,
    overlap,
    read_answers,
    read_gold,
    score_predictions,
)

GOLD = Gold({"1": ["The Denver Broncos", "Broncos"], "2": ["a cat"], "3": [], "4": []}, unanswerable=True)
SAID = {"1": "broncos!", "2": "black cat", "3": "", "4": "dog", "9": "?"}


@pytest.mark.parametrize(
    ("prediction", "gold", "f1"),
    [
        ("the Cat, sat", "cat", 2 / 3),
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("The.", "", 1.0),
        ("", "cat", 0.0),
        ("in the-end", "in theend", 1.0),
    ],
)
def test_answers_overlap_in_their_words_without_articles_and_punctuation(prediction, gold, f1):
    assert overlap(prediction, gold) == pytest.approx(f1)


def test_scores_are_those_of_the_official_scripts():
    scores = score_predictions(GOLD, SAID)
    expected = {"exact": 50.0, "f1": (1 + 2 / 3 + 1) / 4 * 100, "total": 4, "missing_ids": 0, "unknown_ids": 1}
    expected |= {"HasAns_exact": 50.0, "HasAns_f1": (1 + 2 / 3) / 2 * 100, "HasAns_total": 2}
    expected |= {"NoAns_exact": 50.0, "NoAns_f1": 50.0, "NoAns_total": 2}
    assert scores == pytest.approx(expected)
    # An answer of which nothing is left does not count beside another.
    assert score_predictions(Gold({"1": ["the", "cat"]}, unanswerable=True), {"1": ""})["exact"] == 0
    first = Gold({"1": ["cat"], "2": ["the"]}, unanswerable=False)
    # Version 1.1: a missing id scores 0, and two answers of which only an article is left are equal but do not overlap.
    assert score_predictions(first, {"2": "a"}) == pytest.approx(
        {"exact": 50.0, "f1": 0.0, "total": 2, "missing_ids": 1, "unknown_ids": 0}
    )


def test_the_best_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    ids = [str(n) for n in range(40)]
    gold = Gold({id: ["cat sat"] * int(rng.integers(2)) for id in ids}, unanswerable=True)
    predicted = {id: ["cat", "cat sat", "dog"][rng.integers(3)] for id in ids}
    odds = {id: float(rng.normal()) for id in ids}
    scores = score_predictions(gold, predicted, odds, threshold=99.0)
    cut = {
        at: score_predictions(gold, {i: predicted[i] if odds[i] <= at else "" for i in ids})
        for at in [-99, *odds.values()]
    }
    for name in ("exact", "f1"):
        assert scores[f"best_{name}"] == pytest.approx(max(each[name] for each in cut.values()))
        assert scores[f"best_{name}"] == pytest.approx(cut[scores[f"best_{name}_thresh"]][name])
        assert scores[name] == score_predictions(gold, predicted)[name]
    officially = score_predictions(gold, predicted, odds)
    above_one = score_predictions(gold, {id: predicted[id] if odds[id] <= 1.0 else "" for id in ids})
    assert officially["exact"] == above_one["exact"] != scores["exact"]
    with pytest.raises(InputError, match="odds of no answer lack question 7"):
        score_predictions(gold, predicted, {id: x for id, x in odds.items() if id != "7"})


def files(folder, paragraphs=None, predictions=None):
    data = {"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs or []}]}
    (folder / "dev.json").write_text(json.dumps(data))
    (folder / "predicted.json").write_text(json.dumps(predictions))
    return [
        "evaluate",
        "squad",
        "--data",
        str(folder / "dev.json"),
        "--predictions",
        str(folder / "predicted.json"),
        "--json",
    ]


def test_the_command_scores_without_a_model(tmp_path, capsys):
    answer = {"id": "1", "question": "?", "answers": [{"text": "cat", "answer_start": 0}], "is_impossible": False}
    none = {"id": "2", "question": "?", "answers": [], "is_impossible": True}
    command = files(tmp_path, [{"context": "cat", "qas": [answer, none]}], {"1": "Cat."})
    assert main(command) == 0
    scores = json.loads(capsys.readouterr().out)
    assert (scores["exact"], scores["HasAns_f1"], scores["NoAns_exact"], scores["missing_ids"]) == (50.0, 100.0, 0.0, 1)
    (tmp_path / "odds.json").write_text('{"1": -3.5, "2": 2}')
    assert main([*command, "--null-odds", str(tmp_path / "odds.json")]) == 0
    assert json.loads(capsys.readouterr().out)["best_exact_thresh"] == -3.5
    assert main([*command, "--null-threshold", "0.5"]) == 2
    assert "--null-threshold needs --null-odds" in capsys.readouterr().err
    assert main(["evaluate", "--model", "nowhere", *command[1:]]) == 2
    assert "predictions are scored without a model" in capsys.readouterr().err
    program = "import bertjax.tasks.squad, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_ids_that_are_numbers_in_the_data_are_those_of_the_predictions(tmp_path, capsys):
    question = {"id": 7, "question": "?", "answers": [{"text": "cat", "answer_start": 0}]}
    assert main(files(tmp_path, [{"context": "cat", "qas": [question]}], {"7": "cat"})) == 0
    assert json.loads(capsys.readouterr().out)["exact"] == 100.0
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match=r"deep\.json:1: cannot be read as JSON"):
        read_gold(tmp_path / "deep.json")


@pytest.mark.parametrize(
    ("paragraphs", "predictions", "says"),
    [
        ([{"context": "x", "qas": [{"id": "1", "answers": []}]}], {"2": "x"}, "has no answer to a question of"),
        ([{"context": "x", "qas": [{"id": "1", "answers": []}]}], {"1": 3}, "'1' has 3, not a text"),
        ([{"context": "x", "qas": [{"id": "1", "answers": []}]}], ["x"], "not a JSON object"),
        ([{"context": "x", "qas": [{"id": "1"}]}], {"1": "x"}, "is not a SQuAD file with answers: .*'answers'"),
        ([], {"1": "x"}, "has no question"),
        (
            [{"context": "x", "qas": [{"id": 1, "answers": []}, {"id": "1", "answers": []}]}],
            {"1": "x"},
            "two questions have the id 1",
        ),
        ([{"context": "x", "qas": [{"id": "1", "answers": [{"text": 3}]}]}], {"1": "x"}, "question 1: an answer is no"),
    ],
)
def test_files_of_another_kind_are_refused_by_name(tmp_path, capsys, paragraphs, predictions, says):
    assert main(files(tmp_path, paragraphs, predictions)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line)


def test_questions_without_answers_are_of_version_2_with_or_without_its_field(tmp_path, capsys):
    none = {"id": "1", "question": "?", "answers": []}
    assert main(files(tmp_path, [{"context": "cat", "qas": [none]}], {"1": ""})) == 0
    scores = json.loads(capsys.readouterr().out)
    assert (scores["exact"], scores["NoAns_exact"]) == (100.0, 100.0)


@pytest.mark.skipif("BERTJAX_DATA" not in os.environ, reason="BERTJAX_DATA names no folder with published predictions")
def test_published_predictions_have_their_published_scores():
    folder = Path(os.environ["BERTJAX_DATA"]) / "squad"
    expected = json.loads((folder / "predictions/expected_scores.json").read_text())
    for name, scores in expected.items():
        gold = read_gold(folder / f"dev-{name.split('-')[0]}.rebuilt.json")
        found = score_predictions(gold, read_answers(folder / "predictions" / name))
        for key, value in scores.items():
            digits = len(str(value).partition(".")[2])
            assert round(found[key], digits) == value, (name, key)
