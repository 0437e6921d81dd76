import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from contract import small_bert, small_crammed
from texts import wordpiece_files

from bertjax import train
from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.export import save_hf
from bertjax.checkpoints.trained import load
from bertjax.commands.main import main
from bertjax.config import Run
from bertjax.data.tokenizer import tokenizer_from_files
from bertjax.errors import InputError
from bertjax.finetuning.build import build
from bertjax.finetuning.evaluator import TaskEvaluator
from bertjax.finetuning.labels import with_labels_of
from bertjax.finetuning.prepare import experiment_of, prepare, record_tokenizer
from bertjax.finetuning.recipe import FineTuning, Recipe
from bertjax.finetuning.run import finetune
from bertjax.inference.checked import classify
from bertjax.inference.compatible import check_texts
from bertjax.models.heads import Pooler
from bertjax.models.layers import Normal
from bertjax.models.published import Published
from bertjax.rules import STACKED, match
from bertjax.serialization.description import to_json
from bertjax.tasks.own import own_task
from bertjax.tasks.rows import TaskRows
from bertjax.tasks.tags import iob2_labels
from bertjax.tasks.task import Task

RECIPE = Recipe(1e-2, 8, epochs=5, length=16, decay=0.9, dropout=0.0)


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    """Train on two devices, which share the rows: programs for eight take longer to compile and to run."""
    devices = jax.devices()[:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *backend: devices)
        yield


@pytest.fixture(scope="module")
def init(tokenizer, tmp_path_factory):
    """A model that knows nothing, with a pooler."""
    return written(tokenizer, tmp_path_factory.mktemp("init") / "model", N=1)


def written(tokenizer, folder, **fields):
    """Write a BERT of random parameters."""
    encoder = small_bert(V=tokenizer.vocabulary.size, positions=16, D=16, F=32, initializer=Normal(0.15), **fields)
    return exported(Published(encoder, (("pair", Pooler(16, encoder.initializer, "float32")),)), tokenizer, folder)


def exported(model, tokenizer, folder):
    """Write a freshly initialised model."""
    tokens = np.zeros((1, 1), np.int32)
    params = jax.jit(model.init)(jax.random.key(0), {"tokens": tokens, "mask": tokens})
    checkpoint.export(folder, params, experiment={"objective": to_json(model)}, tokenizer=tokenizer)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Texts that are good where they say so."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, rows in (("train", 64), ("dev", 20)):
        lines = ["text\tlabel"]
        for number in range(rows):
            words = [
                *rng.choice(["man", "day", "eye", "work", "case"], rng.integers(1, 9)),
                "good" if number % 2 else "bad",
            ]
            lines.append(" ".join(rng.permutation(words)) + f"\t{'yes' if number % 2 else 'no'}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def tuning(init, data):
    task = own_task("classify", data, ("text",), "label")
    run = Run(log_every=8, checkpoint_every=8)
    return FineTuning(task, data, init, RECIPE, seeds=1, first_seed=1, run=run)


@pytest.fixture(scope="module")
def finished(tuning, tmp_path_factory):
    """Fine-tune seed 1: the work folder and the summary."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, finetune(tuning, folder)


def test_a_seed_is_trained_evaluated_and_its_best_model_kept(finished):
    folder, straight = finished
    assert straight["metrics"]["accuracy"]["median"] > 0.9 and not straight["failed"]
    assert straight["programs"] == {"train": 2, "validation": 2}  # rows of at most 8 and of at most 16
    assert not list(folder.glob("seed-*/checkpoints"))
    lines = (folder / "seed-1/predictions/validation/predictions.jsonl").read_text().splitlines()
    predicted = [json.loads(line) for line in lines]
    assert [line["gold"] for line in predicted] == ["no", "yes"] * 10
    right = [line["predicted"] == line["gold"] for line in predicted]
    assert np.mean(right) == straight["seeds"][0]["best"]["metrics"]["accuracy"]
    assert "1 seed, 0 failed" in (folder / "results.md").read_text()


@pytest.mark.slow
def test_a_killed_seed_resumes_to_the_same_results(tuning, finished, tmp_path, monkeypatch):
    straight, place, calls = finished[1], train.place_batch, iter(range(10**6))

    def dying(*arguments):
        if next(calls) == 20:
            raise Killed
        return place(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "place_batch", dying)
        with pytest.raises(Killed):
            finetune(tuning, tmp_path / "killed")
    again = finetune(tuning, tmp_path / "killed")
    assert again["metrics"] == straight["metrics"] and again["seeds"][0]["best"] == straight["seeds"][0]["best"]
    assert finetune(tuning, tmp_path / "killed") == again and again["chosen_by"] == "accuracy"


def test_the_best_model_is_served_and_written_with_its_labels(tuning, finished, tmp_path):
    model = load(finished[0] / "best")
    assert model.objective.labels == ("no", "yes")
    save_hf(model, tmp_path / "written")
    config = json.loads((tmp_path / "written" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "no", "1": "yes"}
    back = load(tmp_path / "written")
    assert back.objective.labels == ("no", "yes")
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(back.params), strict=True):
        np.testing.assert_array_equal(a, b)

    # A head of the same labels is inherited; with other labels it is freshly initialised.
    same, other = (build(dataclasses.replace(tuning, task=dataclasses.replace(tuning.task, labels=labels)), back)[1]
                   for labels in (("no", "yes"), ("yes", "no")))  # fmt: skip
    assert same.remap_params(back.params)["head"]["classify"].keys() == {"pooler", "classifier"}
    assert other.remap_params(back.params)["head"]["classify"].keys() == {"pooler"}
    new = build(dataclasses.replace(tuning, labels=("new",)), back).objective
    assert new.remap_params(back.params)["head"]["classify"].keys() == {"pooler"}


def test_a_folder_of_an_earlier_version_is_resumed(tuning, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run/seed-1/experiment.json"
    described = json.loads(path.read_text())
    del described["counters"], described["objective"]["model"]["problem_type"]
    described["objective"]["model"]["type"] = "bertjax.published.Published"
    path.write_text(json.dumps(described))
    assert finetune(tuning, tmp_path / "run") == finished[1]


@pytest.mark.slow
def test_seeds_share_data_and_programs_and_each_is_as_if_trained_alone(tuning, finished, tmp_path, monkeypatch):
    opened, made, (opening, making) = [], [], (TaskRows.open, train.sharded_step)
    monkeypatch.setattr(TaskRows, "open", lambda rows, split: opened.append(split) or opening(rows, split))
    monkeypatch.setattr(
        "bertjax.finetuning.prepare.sharded_step", lambda *given: made.append(making(*given)) or made[-1]
    )
    short = dataclasses.replace(tuning, seeds=2, first_seed=0)
    both = finetune(short, tmp_path / "both")
    assert sorted(opened) == ["train", "validation"] and len(made) == 1
    assert made[0]._cache_size() == 2  # for rows of at most 8 and of at most 16
    # What is there is of these settings and data: others are refused.
    with pytest.raises(InputError, match=r"learning_rate.*is 0\.01 there, 0\.02 here"):
        finetune(dataclasses.replace(short, recipe=short.recipe.changed(learning_rate=0.02)), tmp_path / "both")
    other = shutil.copytree(tuning.data, tmp_path / "other")
    (other / "dev.tsv").write_text("text\tlabel\ngood\tyes\n")
    with pytest.raises(InputError, match="both has seeds from other data"):
        finetune(dataclasses.replace(short, data=str(other)), tmp_path / "both")
    # What one run found, the next one of more or fewer seeds keeps; `best` is the best of all.
    assert finetune(dataclasses.replace(short, seeds=1, first_seed=1), tmp_path / "both") == both
    monkeypatch.setattr("bertjax.finetuning.run.load", lambda path, *_: shifted(load(path)))
    with pytest.raises(InputError, match=r"both has seeds from .* other parameters than"):
        finetune(short, tmp_path / "both")
    for seed in (0, 1):  # also where no seed was done with
        (tmp_path / "both" / f"seed-{seed}" / "result.json").unlink()
    with pytest.raises(InputError, match=r"both has seeds from .* other parameters than"):
        finetune(short, tmp_path / "both")
    monkeypatch.setattr("bertjax.finetuning.run.load", load)
    assert finished[1]["seeds"][0]["last"] == both["seeds"][1]["last"]
    logs = [(folder / "seed-1" / "log.jsonl").read_bytes() for folder in (tmp_path / "both", finished[0])]
    assert logs[0] == logs[1]


def shifted(model):
    return dataclasses.replace(model, params=jax.tree.map(lambda x: x + 1, model.params))


@pytest.mark.slow
def test_a_model_trained_on_scaled_targets_predicts_in_the_original_range(init, tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("text\tscore\nman\t4\nday\t4.5\neye\t3.5\nwork\t4\n")
    task = dataclasses.replace(own_task("regress", str(tmp_path), ("text",), "score"), scale=(2.0, 5.0))
    recipe = dataclasses.replace(RECIPE, steps=12, unit_range=True)
    finetune(FineTuning(task, str(tmp_path), init, recipe, seeds=1, run=Run(log_every=8)), tmp_path / "run")
    lines = (tmp_path / "run/seed-0/predictions/validation/predictions.jsonl").read_text().splitlines()
    predicted = [json.loads(line)["predicted"] for line in lines]
    assert min(predicted) > 3 and max(predicted) < 5  # as shares they are between 0.5 and 0.84
    served = [each.score for each in classify(load(tmp_path / "run" / "best"), ["man", "day", "eye", "work"])]
    np.testing.assert_allclose(served, predicted, rtol=1e-4)


def test_invalid_fine_tuning_settings_are_refused_before_training(tuning, init, tokenizer, tmp_path):
    def refused(match, **changes):
        with pytest.raises(InputError, match=match):
            finetune(dataclasses.replace(tuning, **changes), tmp_path / "run")
        assert not list((tmp_path / "run").glob("seed-*"))

    refused("frozen=2 of the lowest layers, but there are 1", recipe=dataclasses.replace(RECIPE, frozen=2))
    refused("renewed=2 top layers", recipe=dataclasses.replace(RECIPE, renewed=2))
    recipe, one = dataclasses.replace(RECIPE, frozen=1), written(tokenizer, tmp_path / "shared", N=2, shared=True)
    refused("frozen=1: the layers of this encoder share", recipe=recipe, init=one)
    with pytest.raises(ValueError, match=r"run.evaluate_every=5 has no effect.*`evaluations`"):
        dataclasses.replace(tuning, run=Run(evaluate_every=5))
    squad = {"task": own_task("span", questions(tmp_path), (), ""), "data": str(tmp_path)}
    refused("rows of length 16 have no room beside a question of 64", **squad)
    refused("dev.json: question 2: no label: models are evaluated on this split", **squad, question=4)


def questions(folder):
    """Write questions whose development set has one without the field for answers."""
    answered = {"id": "1", "question": "who", "answers": [{"text": "man", "answer_start": 0}]}
    for name, entries in (("train", [answered]), ("dev", [answered, {"id": "2", "question": "what"}])):
        content = {"data": [{"paragraphs": [{"context": "man day", "qas": entries}]}]}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


def test_answers_are_judged_by_the_length_and_threshold_that_are_asked_for(tuning, tmp_path):
    entry = {"id": "1", "question": "who", "answers": [{"text": "man day eye", "answer_start": 0}]}
    content = json.dumps({"data": [{"paragraphs": [{"context": "man day eye work case", "qas": [entry]}]}]})
    for name in ("train", "dev"):
        (tmp_path / f"{name}.json").write_text(content)
    recipe = dataclasses.replace(RECIPE, steps=1, warmup=0)
    task = own_task("span", str(tmp_path), (), "")
    asked = dataclasses.replace(tuning, task=task, data=str(tmp_path), question=4, stride=4, recipe=recipe)
    record_tokenizer(asked, load(asked.init), tmp_path / "run")
    prepared = prepare(asked, load(asked.init), tmp_path / "run", SimpleNamespace(say=print))
    experiment = experiment_of(asked, prepared, 0)
    params = jax.jit(experiment.objective.init)(jax.random.key(0), prepared.rows.padding(1))
    best = {}
    for name, change in {"short": {"longest": 1, "threshold": 1e9}, "none": {"threshold": -1e9}}.items():
        TaskEvaluator(dataclasses.replace(asked, **change), prepared, tmp_path / name)(1, params)
        predictions = tmp_path / name / "predictions/validation"
        best[name] = json.loads((predictions / "predictions.json").read_text())["1"]
    assert best["none"] == "" and len(best["short"].split()) == 1
    with pytest.raises(ValueError, match="longest=0 must be 1 or more"):
        dataclasses.replace(asked, longest=0)


def test_recipes_are_changed_by_what_is_given():
    recipe = Recipe(1e-5, 32, steps=1000, warmup=100, length=512)
    assert recipe.changed() == recipe
    assert recipe.changed(epochs=2, length=64) == Recipe(1e-5, 32, epochs=2, warmup=0.1, length=64)
    assert Recipe(1e-5, warmup=0.06).changed(epochs=1, batch_size=8) == Recipe(1e-5, 8, epochs=1, warmup=0.06)


@pytest.mark.parametrize("encoder_dropout", [None, 0.2])
def test_the_encoder_drops_as_it_was_pre_trained_unless_the_recipe_says(tuning, tokenizer, tmp_path, encoder_dropout):
    source = load(written(tokenizer, tmp_path / "undropped", N=1, dropout=0.0, attention_dropout=0.0))
    recipe = dataclasses.replace(RECIPE, encoder_dropout=encoder_dropout)
    objective = build(dataclasses.replace(tuning, recipe=recipe), source).objective
    batch = {name: np.ones((4, 9), np.int32) for name in ("tokens", "mask")} | {"labels": np.zeros(4, np.int32)}
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    loss = jax.jit(lambda params, key: objective.loss(params, batch, key, train=True)[0])
    losses = [loss(params, jax.random.key(number)) for number in (1, 2)]
    assert (losses[0] != losses[1]) == bool(encoder_dropout)
    assert objective.model.encoder.attention_dropout == (encoder_dropout or 0)


@pytest.mark.parametrize("name", ["dropout", "encoder_dropout"])
@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_dropout_is_a_share(name, share):
    with pytest.raises(ValueError, match=f"^{name}={share} must be in"):
        Recipe(1e-5, **{name: share})


def test_renewed_layers_are_fresh_and_the_others_inherited(init, tuning, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, renewed=1, steps=1, learning_rate=1e-9)
    states = []
    fit = train.fit

    def kept(*arguments, **options):
        states.append(fit(*arguments, **options))
        return states[-1]

    monkeypatch.setattr("bertjax.finetuning.run.fit", kept)
    finetune(dataclasses.replace(tuning, recipe=recipe), tmp_path / "run")
    source, params = jax.device_get((load(init).params["encoder"], states[0].params["encoder"]))
    stacked = jax.tree.leaves(match(STACKED, params))
    for theirs, ours, fresh in zip(jax.tree.leaves(source), jax.tree.leaves(params), stacked, strict=True):
        if not fresh or theirs.std() == 0:  # norms and biases begin alike
            np.testing.assert_allclose(theirs, ours, atol=1e-6)
        else:
            assert np.abs(theirs - ours).max() > 1e-2


def test_rows_longer_than_the_model_are_refused(tuning, tmp_path):
    long = dataclasses.replace(tuning, recipe=dataclasses.replace(RECIPE, length=17))
    with pytest.raises(InputError, match=r"recipe.length=17, but .* has 16 positions"):
        finetune(long, tmp_path)


def test_foreign_words_of_any_split_and_place_are_named(tuning, tmp_path, monkeypatch):
    """Of a long data set that ends in another language, and of what it is judged on."""
    monkeypatch.setattr(check_texts, "__kwdefaults__", {"where": "", "most_words": 1000})
    rows = [f"man good day\t{('no', 'yes')[number % 2]}" for number in range(900)]
    foreign = [f"Магия реальна\t{('no', 'yes')[number % 2]}" for number in range(100)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *rows, *foreign]) + "\n")
    (tmp_path / "dev.tsv").write_text("\n".join(["text\tlabel", *rows[:20], *foreign[:2]]) + "\n")
    task = own_task("classify", str(tmp_path), ("text",), "label")
    mine = dataclasses.replace(tuning, task=task, data=str(tmp_path))
    reported = []
    record_tokenizer(mine, load(mine.init), tmp_path / "run")
    prepare(mine, load(mine.init), tmp_path / "run", SimpleNamespace(say=reported.append))
    train, validation = (
        next(x for x in reported if x.startswith(f"warning: {task.name}, {s}: ")) for s in ("train", "validation")
    )
    share = float(train.split("(")[1].split("%")[0])
    assert 5 < share < 9 and "Магия, реальна" in train  # 200 of 2,900 words are 6.9%
    assert "4 of 64 words (6.2%) are unknown to this vocabulary: Магия, реальна" in validation


def test_a_scalar_parameter_is_warm_started_too(tuning, tokenizer, tmp_path):
    encoder = small_crammed(V=tokenizer.vocabulary.size)  # the scale of its positions is one number
    init = exported(Published(encoder, ()), tokenizer, tmp_path / "crammed")
    assert load(init).params["encoder"]["embeddings"]["position_scale"].shape == ()
    short = dataclasses.replace(RECIPE, steps=1, warmup=0)
    summary = finetune(dataclasses.replace(tuning, init=init, recipe=short), tmp_path / "run")
    assert summary["seeds"][0]["best"]["step"] == 1


def test_the_command_fails_where_every_seed_did_and_says_why(init, data, tmp_path, capsys):
    command = ["finetune", "experiments/own.py", f"init={init}", f"data={data}", "length=16", "seeds=1", "batch_size=8"]
    command += ["recipe.steps=3", "recipe.warmup=0", "learning_rate=1e30", "--workdir", str(tmp_path / "run"), "--json"]
    assert main(command) == 1
    (note,) = json.loads(capsys.readouterr().out)["failed"].values()
    assert note.startswith("diverged at step 3") and "checkpoints" not in note


def test_a_refused_run_leaves_the_folder_of_another_alone(tuning, finished, tokenizer, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")

    def contents():
        files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "lock"]
        return {path: path.read_bytes() for path in files}

    before = contents()
    vocabulary = wordpiece_files()["vocab.txt"].replace(b"man\n", b"fox\n")
    other = tokenizer_from_files({"vocab.txt": vocabulary}, origin="another")
    changed = written(other, tmp_path / "other", N=1)
    with pytest.raises(InputError, match="has seeds with another tokenizer than that of"):
        finetune(dataclasses.replace(tuning, init=changed), tmp_path / "run")
    assert contents() == before
    (tmp_path / "run/seed-1/result.json").write_text("{")
    with pytest.raises(InputError, match=r"seed-1/result\.json is damaged: delete the folder .*run/seed-1, and"):
        finetune(tuning, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/seed-1")
    again = finetune(tuning, tmp_path / "run")
    assert again["metrics"] == finished[1]["metrics"] and (tmp_path / "run/seed-1/result.json").exists()
    (tmp_path / "run/inputs.json").write_text("{")
    with pytest.raises(InputError, match=r"inputs\.json is damaged: choose another --workdir, or delete"):
        finetune(tuning, tmp_path / "run")


def test_data_without_an_example_to_train_on_are_refused_before_training(tuning, tmp_path):
    entry = {"id": "1", "question": "who", "answers": [{"text": "fox", "answer_start": 0}]}
    for name in ("train", "dev"):
        content = {"data": [{"paragraphs": [{"context": "man day", "qas": [entry]}]}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    asked = {"task": own_task("span", str(tmp_path), (), ""), "data": str(tmp_path), "question": 4, "stride": 4}
    with pytest.raises(InputError, match=r"the training split of .* has no example to train on"):
        finetune(dataclasses.replace(tuning, **asked), tmp_path / "run")
    with pytest.raises(ValueError, match="first_seed=-1: seeds and"):
        dataclasses.replace(tuning, first_seed=-1)


@pytest.mark.slow
def test_a_text_may_have_several_labels_from_training_to_export(init, tmp_path):
    rng = np.random.default_rng(3)
    for split, rows in (("train", 64), ("dev", 16)):
        lines = []
        for number in range(rows):
            words = [*rng.choice(["man", "day"], 3), *["good"] * (number % 2), *["work"] * (number // 2 % 2)]
            labels = ["nice"] * (number % 2) + ["busy"] * (number // 2 % 2)
            lines.append(json.dumps({"text": " ".join(rng.permutation(words)), "label": labels}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    task = own_task("multilabel", str(tmp_path), ("text",), "label")
    tuning = FineTuning(task, str(tmp_path), init, RECIPE.changed(epochs=10), seeds=1)
    summary = finetune(tuning, tmp_path / "run")
    assert summary["metrics"]["micro_f1"]["median"] > 0.9 and not summary["failed"]
    assert summary["metrics"].keys() == {"micro_f1", "macro_f1", "ranking_average_precision"}
    model = load(tmp_path / "run" / "best")
    assert (model.objective.predicts, model.objective.labels) == ("multi_label_classification", ("busy", "nice"))
    texts = [json.loads(line)["text"] for line in (tmp_path / "dev.jsonl").read_text().splitlines()]
    found = list(classify(model, texts, max_length=16))
    written = (tmp_path / "run/seed-0/predictions/validation/predictions.jsonl").read_text().splitlines()
    for each, line in zip(found, written, strict=True):
        predicted = json.loads(line)
        assert each.scores == pytest.approx(predicted["probabilities"], abs=1e-4)
        assert list(each.labels) == predicted["predicted"]
        assert each.labels == tuple(label for label, chance in each.scores.items() if chance > 0.5)
    assert {len(each.labels) for each in found} >= {0, 1}
    save_hf(model, tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification" and config["id2label"] == {"0": "busy", "1": "nice"}
    back = list(classify(load(tmp_path / "theirs"), texts[:2]))
    assert [each.scores for each in back] == [pytest.approx(each.scores, rel=1e-4) for each in found[:2]]


@pytest.mark.parametrize("of_others", [False, True])
def test_a_number_and_one_label_are_written_as_such(tuning, init, tmp_path, of_others):
    source, tokens = load(init), np.zeros((1, 1), np.int32)
    if of_others:
        save_hf(source, tmp_path / "others")
        config = json.loads((tmp_path / "others/config.json").read_text()) | {"num_labels": 2}  # of old folders
        (tmp_path / "others/config.json").write_text(json.dumps(config))
        source = load(tmp_path / "others")
    for kind, labels, problem in (("regress", (), "regression"), ("classify", ("no", "yes"), None),
                                  ("multilabel", ("x",), "multi_label_classification")):  # fmt: skip
        task = dataclasses.replace(tuning.task, kind=kind, labels=labels)
        built = build(dataclasses.replace(tuning, task=task), source)
        shapes = jax.eval_shape(built.model.init, jax.random.key(0), {"tokens": tokens, "mask": tokens})
        params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        model = dataclasses.replace(source, objective=built.model, params=params, config=built.config)
        save_hf(model, tmp_path / kind)
        assert json.loads((tmp_path / kind / "config.json").read_text()).get("problem_type") == problem
        assert load(tmp_path / kind).objective.predicts == built.model.predicts


def test_the_head_of_a_model_is_continued_if_its_labels_are_those_of_the_data(tuning, init, tokenizer, tmp_path):
    model = load(init)

    def started(labels, pairs=(), task=tuning.task):
        built = build(dataclasses.replace(tuning, task=dataclasses.replace(task, labels=labels)), model)
        source = dataclasses.replace(model, objective=built.model)
        reported = []
        return with_labels_of(dataclasses.replace(tuning, task=task, labels=pairs), source, reported.append), reported

    changed, reported = started(("no", "yes"))
    assert changed == tuning and not reported
    changed, reported = started(("YES", "No"))
    assert changed.task.labels == ("YES", "No") and changed.task.number("f", "yes") == 0
    assert reported == [
        "labels of task own are matched with the model's: no is No; yes is YES; in the model's order"
    ]  # fmt: skip
    changed, _ = started(("POS", "NEG"), ("yes:POS", "no:NEG"))
    assert changed.task.labels == ("POS", "NEG") and changed.task.number("f", "no") == 1
    assert started(("POS", "NEG"), ("new",))[0].task == tuning.task
    assert started(("LABEL_0", "LABEL_1"))[0].task == tuning.task
    assert started(("LABEL_0", "LABEL_1"), ("yes:pos",))[0].task.labels == ("no", "pos")
    assert started(("POS", "NEG", "NEUTRAL"))[0].task == tuning.task  # of another number: a fresh head
    for labels, pairs, says in (
        (("POS", "NEG"), (), r"a head for the labels POS, NEG, task own has no, yes: name which is which, labels="),
        (("Yes", "yes", "NO"), ("yes:no",), "yes:no, but the model's labels are Yes, yes, NO"),
        (("POS", "NEG"), ("yes:POS",), "name which is which"),
        (("POS", "NEG"), ("yes",), "'yes' is no pair: write label:LABEL"),
        (("POS", "NEG"), ("yes:POS", "no:POS"), "two labels become one"),
    ):
        with pytest.raises(InputError, match=says):
            started(labels, pairs)
    tags = Task("t", "tag", iob2_labels(("LOC", "PER")), ("entity_f1",), ())
    changed, reported = started(("B_per", "I_per", "O", "B_loc", "I_loc"), task=tags)
    assert changed.task.number("f", "I-LOC") == 4 and "I-PER is I_per" in reported[0]
    changed, _ = started(("O", "B-P", "I-P", "B-L", "I-L"), ("PER:P", "LOC:L"), tags)
    assert changed.task.labels == ("O", "B-P", "I-P", "B-L", "I-L") and changed.task.number("f", "B-LOC") == 3
