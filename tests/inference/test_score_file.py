"""`evaluate task own` scores a model on one labelled file: report, picture, predictions, threshold."""

import csv
import json

import numpy as np
import pytest
from task_files import write
from test_predict import trained

from bertjax.checkpoints import checkpoint
from bertjax.commands.main import main
from bertjax.errors import InputError
from bertjax.inference.as_trained import threshold_of_two
from bertjax.inference.checked import classify, load
from bertjax.models.heads import PairHead
from bertjax.models.layers import Normal

TEXTS = ["time person", "year way", "man world", "life", "good day", "work case", "hand eye"]


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """A classifier of random parameters, in a folder, with a threshold as fine-tuning writes it."""
    made = trained(tokenizer, "classify", PairHead(16, 2, Normal(0.5), "float32"), ("no", "yes"))
    folder = tmp_path_factory.mktemp("model") / "best"
    config = made.config | {"threshold": {"label": "yes", "probability": 0.25, "macro_f1": 0.5}}
    checkpoint.export(folder, made.params, experiment=config, tokenizer=tokenizer)
    return str(folder)


@pytest.fixture(scope="module")
def predicted(model):
    return list(classify(load(model), TEXTS, say=print))


def test_a_file_is_scored_whatever_its_labels_are_called(model, predicted, tmp_path, capsys):
    gold = ["Yes", "no", "yes ", "no", "no", "yes", "no"]
    lines = ["id;satz;tone", *(f"{n};{text};{label}" for n, (text, label) in enumerate(zip(TEXTS, gold, strict=True)))]
    lines = [line.replace("Yes", "yes") for line in lines]
    write(tmp_path, {"test.csv": "\r\n".join(lines)})
    command = ["evaluate", "task", "own", "--model", model, "--data", f"{tmp_path}/test.csv", "--columns", "satz",
               "--label", "tone"]  # fmt: skip
    assert main([*command, "--out", f"{tmp_path}/report"]) == 0
    out = capsys.readouterr().out
    assert "precision  recall" in out and "with the threshold 0.2500 for yes" in out and "written to" in out
    names = [label.strip().lower() for label in gold]
    found = [json.loads(line) for line in (tmp_path / "report/predictions.jsonl").read_text().splitlines()]
    assert [line["gold"] for line in found] == names
    assert [line["predicted"] for line in found] == [each.label for each in predicted]
    assert found[1]["example"].endswith("test.csv:3")
    for line, each in zip(found, predicted, strict=True):
        assert line["probabilities"] == pytest.approx(each.scores, abs=1e-5)
    report = json.loads((tmp_path / "report/report.json").read_text())
    right = np.mean([a == b.label for a, b in zip(names, predicted, strict=True)])
    assert report["accuracy"] == pytest.approx(right) and np.sum(report["confusion"]["counts"]) == len(TEXTS)
    above = np.mean([(a == "yes") == (b.scores["yes"] > 0.25) for a, b in zip(names, predicted, strict=True)])
    assert report["threshold"]["scores"]["accuracy"] == pytest.approx(above)
    assert (tmp_path / "report/report.svg").read_text().startswith("<svg")
    # A threshold of one's own, or chosen on another file; a file with one label alone.
    write(tmp_path, {"one.csv": "satz,tone\n" + "".join(f"{text},yes\n" for text in TEXTS[:3])})
    assert main([*command, "--threshold-from", f"{tmp_path}/one.csv", "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)["threshold"]["probability"]
    assert chosen < min(each.scores["yes"] for each in predicted[:3])
    command[6] = f"{tmp_path}/one.csv"
    assert main([*command, "--json", "--threshold", "yes:0.0"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["threshold"]["scores"]["accuracy"] == 1 and values["rows"] == 3
    for more, says in ((["--split", "test"], "has no splits"), (["--kind", "regress"], "has 2 classes, but task own"),
                       (["--out", f"{tmp_path}/one.csv"], "is a file: name a folder")):  # fmt: skip
        assert main([*command, *more]) == 2
        assert says in capsys.readouterr().err


def test_of_two_labels_a_threshold_decides(model, predicted, tmp_path, capsys):
    loaded = load(model)
    for given, limit in ((0.4, 0.4), ({"no": 0.6}, 0.4), ("chosen", 0.25)):
        found = list(classify(loaded, TEXTS, threshold=given, say=print))
        assert [each.label for each in found] == ["yes" if each.scores["yes"] > limit else "no" for each in predicted]
        assert [each.score for each in found] == [each.scores[each.label] for each in found]
    both = {"no": 0.5, "yes": 0.5}
    for given, says in ((1.5, "a probability is from 0 to 1"), (both, "thresholds for both of no, yes"),
                        ({"x": 0.5}, "a threshold for 'x'")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            threshold_of_two(loaded, given)
    write(tmp_path, {"in.csv": "text\ntime person\n"})
    command = ["predict", "classify", "--model", model, "--input", f"{tmp_path}/in.csv", "--out", f"{tmp_path}/o.csv"]
    assert main([*command, "--threshold", "yes:1"]) == 0
    capsys.readouterr()
    assert next(csv.DictReader((tmp_path / "o.csv").open()))["predicted"] == "no"
