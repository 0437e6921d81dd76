"""What folders predict, by their labels and problem_type: as transformers' pipelines, whose results are stored."""

import json
from pathlib import Path

import numpy as np
import pipelines
import pytest
from pipelines import CLASSES, TAGS, TEXTS, write

from bertjax.checkpoints.export import convert, save_hf
from bertjax.checkpoints.trained import load, load_notes
from bertjax.commands.main import main
from bertjax.errors import InputError
from bertjax.inference.checked import classify, score, tag
from bertjax.tasks.own import own_task
from bertjax.tasks.tags import SCHEMES
from bertjax.tasks.task import Part, Task

STORED = json.loads(pipelines.STORED.read_text())
SILENT = {"say": lambda sentence: None}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("folders")
    found = {name: write(home / name, labels, entries, tags=False) for name, (labels, entries) in CLASSES.items()}
    return found | {name: write(home / f"tags of {name}", labels, {}, tags=True) for name, labels in TAGS.items()}


def test_the_stored_results_are_those_of_transformers_pipelines(folders):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for name in CLASSES:
        for now, stored in zip(pipelines.classified(folders[name]), STORED["classes"][name], strict=True):
            assert now == pytest.approx(stored, abs=1e-5), name
    for name in TAGS:
        for now, stored in zip(pipelines.tagged(folders[name]), STORED["tags"][name], strict=True):
            assert [each[:3] for each in now] == [each[:3] for each in stored], name
            np.testing.assert_allclose([each[3] for each in now], [each[3] for each in stored], atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_predicted_as_the_problem_type_says(name, folders):
    model, expected = load(folders[name]), STORED["classes"][name]
    for found, scores in zip(classify(model, TEXTS, **SILENT), expected, strict=True):
        best = max(scores, key=scores.get)
        assert found.score == pytest.approx(scores[best], abs=1e-5)
        if name == "a number":
            assert (found.label, found.scores, found.labels) == ("", {}, ())
            continue
        assert found.scores == pytest.approx(scores, abs=1e-5) and found.label == best
        several = model.objective.predicts == "multi_label_classification"
        assert set(found.labels) == ({label for label in scores if scores[label] > 0.5} if several else {best})


@pytest.mark.parametrize("name", TAGS)
def test_pieces_are_joined_to_entities_as_the_strategy_simple_does(name, folders):
    found = list(tag(load(folders[name]), TEXTS, **SILENT))
    for each, groups in zip(found, STORED["tags"][name], strict=True):
        assert [(entity.kind, entity.start, entity.end) for entity in each.names] == [tuple(x[:3]) for x in groups]
        np.testing.assert_allclose([entity.score for entity in each.names], [x[3] for x in groups], atol=1e-5)
        assert all(each.text[x.start : x.end] == x.text for x in each.names)
        # A word has the tag of its first piece, and so of the entity that begins or goes on there.
        for word in each.words:
            inside = [x for x in each.names if x.start <= word.start < x.end]
            assert [x.kind for x in inside] == (
                [] if word.tag == "O" else [word.tag.removeprefix("B-").removeprefix("I-")]
            )
    assert sum(len(each.names) for each in found) > len(TEXTS)


def test_long_texts_are_tagged_in_windows_of_which_the_first_is_the_truncated_text(folders):
    model, reported = load(folders["B-TYPE"]), []
    whole = next(tag(model, [TEXTS[0] * 3], **SILENT))
    cut = next(tag(model, [TEXTS[0] * 3], max_length=20, say=reported.append))
    assert reported == ["1 text longer than 20 tokens, tagged in windows"]
    assert [(w.start, w.end) for w in cut.words] == [(w.start, w.end) for w in whole.words]
    (alone,) = tag(model, [TEXTS[0][:12]], **SILENT)
    assert len(alone.words) == 3 and [x.tag for x in alone.words]  # the same pieces, in a row of their own
    assert list(tag(model, [], **SILENT)) == []


def test_labels_have_thresholds_of_their_own(folders, capsys):
    model = load(folders["several labels"])
    (found,) = classify(model, TEXTS[:1], threshold={"toxic": 0.0, "spam": 1.0, "insult": 0.999}, **SILENT)
    above = {label for label in ("threat",) if found.scores[label] > 0.5}
    assert set(found.labels) == {"toxic"} | above
    assert next(classify(model, TEXTS[:1], threshold=1, **SILENT)).labels == ()
    with pytest.raises(
        InputError, match="a threshold for 'tox', but the model's labels are toxic, insult, threat, spam"
    ):
        next(classify(model, TEXTS, threshold={"tox": 0.1}, **SILENT))
    with pytest.raises(InputError, match="the threshold of spam is 50: a probability is from 0 to 1"):
        next(classify(model, TEXTS, threshold={"spam": 50}, **SILENT))
    with pytest.raises(InputError, match="each text has one label of this model, or a number: leave out the threshold"):
        next(classify(load(folders["one label each"]), TEXTS, threshold=0.4, **SILENT))
    command = ["predict", "classify", "--model", folders["several labels"], TEXTS[0]]
    assert main([*command, "--json", "--threshold", "toxic:0,insult:0,threat:1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["scores"] == pytest.approx(STORED["classes"]["several labels"][0], abs=1e-5)
    assert printed["labels"][:2] == ["toxic", "insult"] and "threat" not in printed["labels"]
    assert main([*command, "--threshold", "1"]) == 0 and capsys.readouterr().out == f"no label   {TEXTS[0]}\n"
    assert main([*command, "--threshold", "0"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(max(found.scores, key=found.scores.get)) and shown.count("%") == 4


@pytest.mark.parametrize("name", CLASSES)
def test_the_problem_type_survives_both_formats(name, folders, tmp_path):
    model, labels = load(folders[name]), CLASSES[name][0]
    convert(folders[name], tmp_path / "ours")
    assert load(tmp_path / "ours").objective.predicts == model.objective.predicts
    save_hf(load(tmp_path / "ours"), tmp_path / "theirs")
    before, after = (json.loads((Path(at) / "config.json").read_text()) for at in (folders[name], tmp_path / "theirs"))
    assert after == before and list(after["id2label"].values()) == list(labels)


def test_an_unstated_problem_type_of_one_label_is_noted_and_a_wrong_one_refused(folders, tmp_path):
    folder = folders["one label, unstated"]
    assert any("one label and no problem_type" in note for note in load_notes(folder, load(folder)))
    assert not any("problem_type" in note for note in load_notes(folders["a number"], load(folders["a number"])))
    for wrong, says in (("multi_label", "is none of"), ("single_label_classification", "needs at least two labels")):
        bad = write(tmp_path / wrong, ("LABEL_0",), {"problem_type": wrong}, tags=False)
        with pytest.raises(InputError, match=rf"config\.json: problem_type='{wrong}' {says}"):
            load(bad)


MARKED = {
    "B-TYPE": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
    "B_TYPE": ("O", "B_PER", "I_PER", "B_LOC", "I_LOC"),
    "TYPE-B": ("O", "PER-B", "PER-I", "LOC-B", "LOC-I"),
    "TYPE_B": ("O", "PER_B", "PER_I", "LOC_B", "LOC_I"),
}


@pytest.mark.parametrize("name", MARKED)
def test_marks_in_any_place_name_the_same_entities(name, tmp_path):
    expected = next(tag(load(write(tmp_path / "usual", MARKED["B-TYPE"], {}, tags=True)), TEXTS[:1], **SILENT))
    model, reported = load(write(tmp_path / "other", MARKED[name], {}, tags=True)), []
    found = next(tag(model, TEXTS[:1], say=reported.append))
    assert found.names == expected.names and found.names and found.scheme == name
    assert len(reported) == (name != "B-TYPE")
    read_as_types = next(tag(model, TEXTS[:1], scheme=SCHEMES["TYPE"], **SILENT))
    assert {entity.kind for entity in read_as_types.names} <= set(MARKED[name])


def test_tags_of_words_are_printed_word_by_word(folders, capsys):
    command = ["predict", "tag", "--model", folders["words"], TEXTS[2]]
    assert main(command) == 0
    (found,) = tag(load(folders["words"]), TEXTS[2:3], **SILENT)
    assert capsys.readouterr().out == f"good\n    good   {found.words[0].tag} {found.words[0].score:.1%}\n"
    assert main([*command, "--scheme", "TYPE"]) == 0
    assert capsys.readouterr().out.startswith(f"good\n    {found.words[0].tag} 'good' 0–4 ")
    assert main([*command, "--aggregation", "first", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scheme"] == "words"


def rows(folder, lines):
    folder.mkdir(exist_ok=True)
    (folder / "dev.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return str(folder)


def test_several_labels_are_scored_with_their_thresholds(folders, tmp_path, capsys):
    model = load(folders["several labels"])
    given = [["toxic", "spam"], [], ["Threat"], ["insult"]]
    data = rows(tmp_path / "data", [{"text": x, "label": y} for x, y in zip(TEXTS, given, strict=True)])
    task = own_task("multilabel", data, ("text",), "label", split="validation")
    reported = []
    found = score(model, task, data, threshold=0.3, say=reported.append)
    assert reported == ["labels of task own are matched with the model's: Threat is threat; in the model's order"]
    right = wrong = 0
    for scores, labels in zip(STORED["classes"]["several labels"], given, strict=True):
        predicted = {label for label in scores if scores[label] > 0.3}
        both = len(predicted & {label.lower() for label in labels})
        right, wrong = right + 2 * both, wrong + len(predicted) + len(labels) - 2 * both
    assert found.metrics["micro_f1"] == pytest.approx(right / (right + wrong))
    assert found.metrics.keys() == {"micro_f1", "macro_f1", "ranking_average_precision"}
    command = ["evaluate", "task", "own", "--kind", "multilabel", "--model", folders["several labels"], "--data", data]
    assert main([*command, "--threshold", "0.3", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {name: printed[name] for name in found.metrics} == pytest.approx(found.metrics)
    with pytest.raises(InputError, match="problem_type is single_label_classification, but task own is of kind multi"):
        score(load(folders["one label each"]), task, data, **SILENT)


def test_labels_of_other_names_need_the_option(folders, tmp_path, capsys):
    data = rows(tmp_path / "data", [{"text": x, "label": y} for x, y in zip(TEXTS, ["n", "n", "y", "m"], strict=True)])
    command = ["evaluate", "task", "own", "--model", folders["one label each"], "--data", data, "--json"]
    assert main(command) == 2
    assert "labels are no, maybe, yes, those of task own m, n, y" in capsys.readouterr().err
    assert main([*command, "--labels", "n:no,y:yes,m:maybe"]) == 0
    scores = [max(each, key=each.get) for each in STORED["classes"]["one label each"]]
    expected = np.mean([a == b for a, b in zip(scores, ["no", "no", "yes", "maybe"], strict=True)])
    assert json.loads(capsys.readouterr().out)["accuracy"] == expected
    assert main([*command, "--labels", "n:no,y:maybe,m:other"]) == 2
    assert "m:other, but the model's labels are no, maybe, yes" in capsys.readouterr().err


def test_entities_are_scored_whatever_the_schemes_of_model_and_data(tmp_path):
    usual = load(write(tmp_path / "usual", MARKED["B-TYPE"], {}, tags=True))
    suffixed = load(
        write(
            tmp_path / "suffixed",
            tuple(x.lower().replace("_b", "_B").replace("_i", "_I") if x != "O" else x for x in MARKED["TYPE_B"]),
            {},
            tags=True,
        )
    )
    words = [["time", "person", "year"], ["day", "man"]]
    given = {
        "B-TYPE": [["B-PER", "I-PER", "O"], ["B-LOC", "O"]],
        "TYPE_B": [["PER_B", "PER_I", "O"], ["LOC_B", "O"]],
        "TYPE": [["PER", "PER", "O"], ["LOC", "O"]],
    }
    found = []
    for name, tags in given.items():
        data = rows(tmp_path / name, [{"words": x, "label": y} for x, y in zip(words, tags, strict=True)])
        task = own_task("tag", data, ("words",), "label", split="validation")
        assert task.scheme.name == name
        found += [score(model, task, data, **SILENT).metrics for model in (usual, suffixed)]
    assert all(metrics == found[0] for metrics in found) and found[0].keys() == {"entity_f1", "entity_f1_strict"}
    data = rows(tmp_path / "pos", [{"words": x, "label": ["NN"] * len(x)} for x in words])
    pos = Task("pos", "tag", ("NN", "VB"), ("accuracy",), (Part("validation", ("dev.jsonl",), task.parts[1].format),),
               scheme=SCHEMES["words"])  # fmt: skip
    with pytest.raises(InputError, match="read as B-TYPE, those of task pos as words"):
        score(usual, pos, data, **SILENT)
    tagger = load(write(tmp_path / "tagger", ("VB", "NN"), {}, tags=True))
    predicted = [word.tag for x in words for word in next(tag(tagger, [" ".join(x)], **SILENT)).words]
    assert score(tagger, pos, data, **SILENT).metrics == {"accuracy": pytest.approx(predicted.count("NN") / 5)}
