"""What experiments/own.py offers beside its task: weights, an early end, one length, windows, several rates."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight
from test_finetune_run import RECIPE, data, init, two_devices  # noqa: F401 fixtures

from bertjax.checkpoints.trained import load
from bertjax.config import Run, load_described
from bertjax.data.source import Bucketed
from bertjax.data.templates import templates_for
from bertjax.errors import InputError
from bertjax.finetuning.recipe import FineTuning
from bertjax.finetuning.results import is_enough
from bertjax.finetuning.sweep import sweep
from bertjax.finetuning.weights import class_weights
from bertjax.inference.as_trained import rows_of
from bertjax.inference.checked import classify
from bertjax.objectives.supervised import WeightedClasses, classes
from bertjax.serialization.description import from_json, to_json
from bertjax.tasks.examples import Texts
from bertjax.tasks.own import own_task
from bertjax.tasks.pooling import maximum, mean, pooled
from bertjax.tasks.rows import TaskRows, encode_examples
from bertjax.tasks.scoring import evaluate_rows
from bertjax.tasks.task import Task

TASK = Task("own", "classify", ("no", "yes"), ("accuracy",), ())


def test_rows_weigh_as_their_labels():
    rng = np.random.default_rng(0)
    logits, labels, weights = rng.normal(size=(6, 3)).astype(np.float32), np.array([0, 1, 2, 2, 1, 0]), (1.0, 2.0, 5.0)
    mask = np.ones((6, 2), np.int32)
    mask[5] = 0  # padding
    batch = {"mask": jnp.asarray(mask), "labels": jnp.asarray(labels)}
    found, _ = WeightedClasses(weights)(lambda x: jnp.asarray(logits), None, batch)
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), labels]
    w = np.array(weights)[labels] * [1, 1, 1, 1, 1, 0]
    loss = found["loss/classify"]
    np.testing.assert_allclose(loss.sum / loss.weight, (w * nll).sum() / w.sum(), rtol=1e-5)
    plain, _ = classes(lambda x: jnp.asarray(logits), None, batch)
    assert found["accuracy/classify"] == plain["accuracy/classify"]
    assert from_json(json.loads(json.dumps(to_json(WeightedClasses(weights))))) == WeightedClasses(weights)


def test_weights_of_classes_are_given_or_balanced():
    labels = np.array([0, 0, 0, 1])
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    assert class_weights(("balanced",), TASK, labels) == pytest.approx(tuple(expected))
    assert class_weights(("yes:5",), TASK, labels) == (1, 5)
    spelled = dataclasses.replace(TASK, spelled=("0", "1"))
    assert class_weights(("1:2.5", "no:3"), spelled, labels) == (3, 2.5)
    three = dataclasses.replace(TASK, labels=("no", "yes", "never"))
    assert class_weights(("balanced",), three, labels)[2] == 1
    for bad, says in (("maybe:2", "'maybe:2' is no label:weight of no, yes"), ("yes", "is no label:weight"),
                      ("yes:x", "'x' of yes is not a number"), ("yes:0", "0 of yes must be above 0"),
                      ("yes:nan", "must be above 0")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            class_weights((bad,), TASK, labels)
    with pytest.raises(InputError, match="are for kind=classify, not for regress"):
        class_weights(("balanced",), dataclasses.replace(TASK, kind="regress"), labels)


def test_patience_counts_evaluations_since_the_best():
    values = [0.1, 0.5, 0.5, 0.4, 0.6]
    history = list(enumerate(values))
    assert [is_enough(history[:n], 2) for n in range(6)] == [False, False, False, False, True, False]
    assert not is_enough(history[:4], 0) and not is_enough([], 1)


def described(folder, *overrides):
    return load_described("experiments/own.py", ["init=x", f"data={folder}", *overrides], FineTuning)


def test_own_py_takes_lengths_rates_and_windows(data):  # noqa: F811
    plain = described(data)
    assert (plain.recipe.length, plain.shortest, plain.pool, plain.recipe.learning_rate) == (128, 0, None, 3e-5)
    for length, expected in (("fixed", (128, 128)), ("fixed:64", (64, 64)), ("40", (40, 0))):
        tuning = described(data, f"length={length}")
        assert (tuning.recipe.length, tuning.shortest) == expected
    several = described(data, "learning_rate=1e-5,3e-5", "long=max", "class_weights=no:2", "patience=3")
    assert several.rates == (1e-5, 3e-5) and several.pool is maximum and several.patience == 3
    for bad, says in (("length=fixed:x", "write a number of tokens, fixed"), ("patience=-1", "is negative"),
                      ("learning_rate=1e-5,1e-5", "named once"), ("learning_rate=", "needs a number"),
                      ("long=median", "choose one of cut, mean, max")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            described(data, bad)


def test_long_texts_are_rows_of_windows_whose_logits_are_joined(tokenizer):
    scores = np.array([[1.0, 0], [3, 1], [0, 5]])
    rows = np.array([0, 0, 1])
    np.testing.assert_array_equal(pooled(scores, rows, mean), [[2, 0.5], [0, 5]])
    np.testing.assert_array_equal(pooled(scores, rows, maximum), [[3, 1], [0, 5]])
    examples = [Texts("1", ("man " * 20,), "yes"), Texts("2", ("day",), "no"), Texts("3", ("man " * 9, "day"), "yes")]
    spec = TaskRows(TASK, "", "", templates_for(tokenizer, cls_last=False), 10, 4, pool=mean)
    encoded = encode_examples(spec, examples, tokenizer)
    sizes = np.diff(encoded.sequences.bounds)
    assert isinstance(encoded, Bucketed) and encoded.example_of_row.tolist() == [0] * 4 + [1] + [2] * 2
    assert sizes.max() == 10 and encoded.labels.tolist() == [1] * 4 + [0] + [1] * 2
    assert encoded.notes == {"texts longer than 10 tokens, read in windows": 2}
    batch = encoded.rows(np.array([5, 6]))
    pieces = [[piece for piece in row if piece] for row in batch["tokens"].tolist()]
    (man,), (day,) = tokenizer.ids(["man", "day"])
    assert pieces[0].count(man) == 6 and pieces[0].count(day) == pieces[1].count(day) == 1  # the short one
    assert pieces[1].count(man) == 5  # 9 words: the windows begin at 0 and 4
    found = evaluate_rows(encoded, lambda batch: np.eye(2)[(batch["tokens"] == day).any(1).astype(int)], 4)
    assert found.predictions == [0, 1, 1] and found.metrics["accuracy"] == pytest.approx(1 / 3)
    assert [gold for gold in found.gold] == [1, 0, 1]
    with pytest.raises(ValueError, match="not for tag: leave it out"):
        dataclasses.replace(spec, task=Task("t", "tag", ("O", "B-X"), ("entity_f1",), ()))


def test_fixed_rows_have_the_length_of_the_longest(tokenizer):
    examples = [Texts("1", ("man",), "yes"), Texts("2", ("man " * 12,), "no")]
    spec = TaskRows(TASK, "", "", templates_for(tokenizer, cls_last=False), 64)
    plain, fixed, least = (
        encode_examples(dataclasses.replace(spec, shortest=n), examples, tokenizer).buckets.tolist()
        for n in (0, 64, 12)
    )
    assert (plain, fixed, least) == ([8, 16], [16, 16], [12, 16])
    with pytest.raises(ValueError, match="shortest=65 must be from 0 to length=64"):
        dataclasses.replace(spec, shortest=65)


def test_a_sweep_ends_early_resumes_and_serves_long_texts(init, data, tmp_path, monkeypatch):  # noqa: F811
    task = own_task("classify", data, ("text",), "label")
    recipe = dataclasses.replace(RECIPE, length=8, epochs=8)
    tuning = FineTuning(task, data, init, recipe, 1, stride=4, run=Run(log_every=8), shortest=8, pool=mean,
                        class_weights=("balanced",), patience=3, rates=(1e-9, 1e-2))  # fmt: skip
    summary = sweep(tuning, tmp_path)
    assert [line["folder"] for line in summary["rates"]] == ["learning_rate-1e-09", "learning_rate-0.01"]
    assert summary["best"] == 1e-2 and summary["rates"][0]["median"] is None  # at 1e-9 nothing is learned
    assert "| **0.01** |" in (tmp_path / "sweep.md").read_text()
    first = tmp_path / "learning_rate-1e-09"
    results = json.loads((first / "results.json").read_text())
    assert results["programs"] == {"train": 1, "validation": 1}
    (seed,) = results["seeds"]
    assert seed["ended"] < 90 and "ended early, at step" in (first / "results.md").read_text()

    def never(*arguments, **options):
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr("bertjax.finetuning.run.fit", never)
        assert sweep(tuning, tmp_path) == summary
        (first / "seed-0/result.json").unlink()  # killed before it was written
        assert sweep(tuning, tmp_path) == summary
    model = load(tmp_path / "learning_rate-0.01" / "best")
    assert model.config["windows"] == {"pool": "mean", "length": 8, "stride": 4}
    assert rows_of(model, task, 0).pool is mean and rows_of(model, task, 0).length == 8
    said = []
    (one, both) = classify(model, ["man day eye good", "man day eye good " * 5], say=said.append)
    assert said == ["1 text longer than 8 tokens, read in windows"] and one.label == both.label
