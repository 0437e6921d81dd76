"""The worked examples of docs/extending-*.md are run as they stand there, on tiny sizes."""

import ast
import dataclasses
import json
import re
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import make_batch, small_bert

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.trained import load
from bertjax.commands.main import main
from bertjax.config import load_experiment
from bertjax.data.rows import DocumentSentences
from bertjax.errors import InputError
from bertjax.experiment_files import experiment_files
from bertjax.finetuning.families import family_of
from bertjax.huggingface.heads import task_head
from bertjax.models.heads import PairHead, Pooler
from bertjax.models.language import word_table
from bertjax.models.layers import Normal
from bertjax.models.published import Published
from bertjax.new_experiment import NOTES
from bertjax.run.bad_batch import keep_bad_batch, read_bad_batch
from bertjax.serialization.description import to_json
from bertjax.tasks.reading import Notes
from bertjax.types import total

pytestmark = pytest.mark.slow
KEY = jax.random.key(1)
SMALL = ["D=32", "length=32", "batch_size=8", "steps=4"]


@pytest.fixture
def example(tmp_path):
    """Return a function that writes the code of a page to its file, and returns that file and its names."""

    def written(page, name):
        (code,) = re.findall(r"```python\n(.*?)```", Path(f"docs/{page}").read_text(), flags=re.DOTALL)
        path = tmp_path / name
        path.write_text(code)
        names = {"__name__": f"experiment_{path.stem}"}
        exec(compile(code, path, "exec"), names)
        return path, names

    return written


def pretrained(path, corpus, folder, *overrides):
    """Train an example by its command, and return its log."""
    assert main(["pretrain", str(path), f"data={corpus}", *SMALL, *overrides, "--workdir", str(folder)]) == 0
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_objective_trains_and_keeps_its_clauses(example, corpus, tmp_path):
    path, names = example("extending-objective.md", "diffusion.py")
    log = pretrained(path, corpus, tmp_path / "run", "objective.diffusion.lowest=0.1")
    assert log[-1]["step"] == 4 and "loss/diffusion" in str(log[-1])
    with pytest.raises(InputError, match=r"lowest=0.0 must be in \(0, 1\)"):
        load_experiment(path, [f"data={corpus}", "objective.diffusion.lowest=0"])

    encoder = small_bert(N=1, dropout=0.0, attention_dropout=0.0)
    objective = names["MaskedDiffusion"](encoder, names["Diffusion"](mask_id=3, specials=(1, 2)))
    batch = {name: array for name, array in make_batch().items() if name in ("tokens", "mask", "example")}
    params = jax.jit(objective.init)(KEY, batch)
    loss = partial(objective.loss, train=True)
    (found, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, KEY)
    np.testing.assert_allclose(found, total(metrics), rtol=1e-6)
    assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(grads["head"]))

    masked = names["diffuse"](KEY, batch, objective.diffusion)
    hidden = masked.weights_BP > 0
    assert (masked.tokens_BL[hidden] == 3).all() and (masked.tokens_BL == batch["tokens"])[~hidden].all()
    assert not hidden[np.isin(batch["tokens"], (1, 2)) | (batch["mask"] == 0)].any()
    order = np.random.default_rng(0).permutation(len(batch["tokens"]))
    shuffled = names["diffuse"](KEY, {name: array[order] for name, array in batch.items()}, objective.diffusion)
    assert (shuffled.tokens_BL == masked.tokens_BL[order]).all()


def used(run, path, capsys):
    """Evaluate and convert a model of one's own with its file, from which the work directory has a copy."""
    given = ["--model", str(run), "--experiment", str(path)]
    assert (run / path.name).read_text() == path.read_text()
    assert main(["evaluate", *given, "--batch-size", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] > 0
    assert main(["evaluate", "--model", str(run)]) == 2
    assert f"'experiment_{path.stem}." in (said := capsys.readouterr().err) and "--experiment FILE" in said
    assert main(["convert", str(run), str(run / "copy"), "--experiment", str(path)]) == 0
    moved = path.rename(path.with_name("moved.py"))  # the name of the file may change, that of the class not
    model, copy = load(run, moved), load(run / "copy", moved)
    np.testing.assert_array_equal(word_table(model.params["encoder"]), word_table(copy.params["encoder"]))
    return model, moved


def looked_at(run, path, capsys):
    """Look at a batch of a run of one's own, with its file, as if it had diverged there as one of several processes."""
    rows = {"tokens": np.full((8, 16), 5), "mask": np.ones((8, 16), int), "example": np.arange(8)}
    state = next(checkpoint for checkpoint in (run / "checkpoints").iterdir() if checkpoint.name.isdigit())
    of_all = {"stop": np.zeros(8), "host": np.zeros((8, 3))}
    keep_bad_batch(run, 1, rows | of_all, KEY, lambda folder: shutil.copytree(state, folder))
    assert read_bad_batch(run / "diverged")[1].keys() == rows.keys()
    assert main(["inspect-batch", str(run)]) == 2
    assert "--experiment FILE" in capsys.readouterr().err
    assert main(["inspect-batch", str(run), "--experiment", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] > 0


def test_an_objective_of_ones_own_is_used_with_its_file_and_its_encoder_without(example, corpus, tmp_path, capsys):
    path, _ = example("extending-objective.md", "diffusion.py")
    run = tmp_path / "run"
    pretrained(path, corpus, run)
    assert "of your own files: experiment_diffusion.Diffusion" in capsys.readouterr().err
    looked_at(run, path, capsys)
    model, moved = used(run, path, capsys)
    assert type(model.objective).__name__ == "MaskedDiffusion"
    alone = load(f"{run}:encoder")  # bertjax's own
    for ours, theirs in zip(jax.tree.leaves(alone.params), jax.tree.leaves(model.params["encoder"]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert main(["convert", f"{run}:encoder", str(tmp_path / "hub"), "--to", "huggingface"]) == 0
    assert family_of(run, ["bert"]) == "bert"
    log = pretrained(moved, corpus, tmp_path / "more", f"init={run}", "steps=1")
    assert log[0]["step"] == 1 and "freshly initialised: none" in capsys.readouterr().err


def test_an_encoder_of_ones_own_is_used_with_its_file(example, corpus, tmp_path, capsys):
    path, _ = example("extending-encoder.md", "means.py")
    run = tmp_path / "run"
    pretrained(path, corpus, run)
    capsys.readouterr()
    model, moved = used(run, path, capsys)
    assert type(model.encoder).__name__ == "Means"
    with pytest.raises(InputError, match=r"'experiment_means.Means' \(objective.encoder\) is not of bertjax"):
        load(f"{run}:encoder")
    assert list(load(f"{run}:encoder", moved).params) == ["encoder"]
    given = ["--model", str(run), "--experiment", str(moved), "--json"]
    assert main(["predict", "fill-mask", *given, "the [MASK] is"]) == 0
    assert len(json.loads(capsys.readouterr().out)["masks"][0]) == 5
    assert family_of(run, ["bert"]) == ""
    assert isinstance(task_head("classify", model.encoder, {}, 3, {}).module, PairHead)  # as BERT's


def test_the_encoder_trains_as_a_masked_lm_and_keeps_documents_apart(example, corpus, tmp_path):
    path, names = example("extending-encoder.md", "means.py")
    log = pretrained(path, corpus, tmp_path / "run", "objective.encoder.remat=full")
    assert log[-1]["step"] == 4

    encoder = names["Means"](V=200, D=16, N=2, F=32, initializer=Normal(0.3))
    batch = make_batch(rows=3, length=20)
    params = encoder.init(KEY, batch["tokens"], batch["mask"])["params"]
    encode = jax.jit(lambda tokens, mask: encoder.apply({"params": params}, tokens, mask))
    alone = encode(batch["tokens"], batch["mask"])
    lengths = np.asarray(batch["mask"].sum(1))
    tokens = jnp.concatenate([batch["tokens"][row, :n] for row, n in enumerate(lengths)])[None]
    numbers = jnp.concatenate([jnp.full(n, row + 1) for row, n in enumerate(lengths)])[None]
    packed = encode(tokens, numbers)[0]
    for row, end in enumerate(np.cumsum(lengths)):
        np.testing.assert_allclose(alone[row, : lengths[row]], packed[end - lengths[row] : end], atol=1e-5)
    changed = encode(tokens.at[0, 0].set(9), numbers)[0]
    assert not np.allclose(changed[: lengths[0]], packed[: lengths[0]])
    np.testing.assert_array_equal(changed[lengths[0] :], packed[lengths[0] :])


def test_a_unit_of_masking_of_ones_own_hides_whole_blocks(example, corpus, tmp_path):
    path, names = example("extending-masking.md", "blocks.py")
    log = pretrained(path, corpus, tmp_path / "run", "objective.masking.unit.words=3")
    assert log[-1]["step"] == 4
    with pytest.raises(InputError, match="words=0: a block has 1 or more"):
        load_experiment(path, [f"data={corpus}", "words=0"])
    assert load(f"{tmp_path / 'run'}:encoder").encoder.D == 32  # without the file
    with pytest.raises(InputError, match=r"'experiment_blocks.Blocks' \(objective.masking.unit\) is not of bertjax"):
        load(tmp_path / "run")
    assert type(load(tmp_path / "run", path).objective.masking.unit).__name__ == "Blocks"

    starts = jnp.array([1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1]) > 0
    for shift in range(3):
        begins = names["Blocks"](3)(jnp.full(12, 3000 + shift, jnp.uint32), starts)
        words = np.flatnonzero(starts)
        assert list(np.flatnonzero(begins)) == list(words[(np.arange(8) + shift) % 3 == 0])


def test_rows_of_ones_own_are_the_beginnings_of_documents(example, corpus, tmp_path):
    path, names = example("extending-rows.md", "leads.py")
    log = pretrained(path, corpus, tmp_path / "run")
    assert log[-1]["step"] == 4
    assert main(["evaluate", "--model", str(tmp_path / "run"), "--experiment", str(path), "--batch-size", "8"]) == 0
    rows = names["Leads"](corpus, 6)
    source, whole = rows.open("train"), DocumentSentences(corpus, 10**4).open("train")
    assert len(source) == len(whole)
    ours, theirs = source.rows(np.arange(3)), whole.rows(np.arange(3))
    for name in ("tokens", "word_starts"):
        np.testing.assert_array_equal(ours[name][:, :5], theirs[name][:, :5])
    assert ours.keys() == rows.padding(3).keys() and (ours["mask"] == 1).all()
    assert (ours["tokens"][:, 5] == rows.load_tokenizer().vocabulary.sep).all()


@pytest.mark.parametrize("like", experiment_files())
def test_a_new_experiment_is_a_copy_of_one_that_is_tested_with_comments(like, corpus, tmp_path, capsys):
    path = tmp_path / "mine.py"
    assert main(["new-experiment", str(path), "--like", like]) == 0
    there, here = (ast.parse(each.read_text()) for each in (experiment_files()[like], path))
    assert [ast.dump(node) for node in there.body[1:]] == [ast.dump(node) for node in here.body[1:]]
    text = path.read_text()
    parts = ("FineTuning",) if "-> FineTuning" in text else ("experiment", "objective", "optimizer", "phases")
    assert all(f"# {NOTES[part].splitlines()[0]}" in text for part in parts)
    folder = f"--model runs/{path.stem}{'/best' if '-> FineTuning' in text else ''} --experiment"
    assert folder in text and "returned too, by dotted names: run.checkpoint_every=500" in text
    command = next(line for line in text.splitlines() if "--workdir" in line)
    given = [word.replace("corpus/", corpus).replace("…", corpus) for word in command.split()[3:] if "=" in word]
    if "pretrain" in command and "init=" not in command:
        others = [f"data={corpus}"] if like == "smoke" else []
        assert to_json(load_experiment(path, [*given, *others])) == to_json(load_experiment(like, given))
    assert main(["new-experiment", str(path), "--like", like]) == 2
    assert "exists: choose another name" in capsys.readouterr().err


def test_a_new_experiment_is_refused_by_name_where_it_cannot_be_written(tmp_path, capsys):
    assert main(["new-experiment", str(tmp_path / "mine.txt")]) == 2
    assert main(["new-experiment", str(tmp_path / "other.py"), "--like", "brt"]) == 2
    assert main(["new-experiment", str(tmp_path / "no" / "other.py")]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.fixture
def init(tokenizer, tmp_path):
    """Write a small BERT of random parameters with a pooler."""
    encoder = small_bert(V=tokenizer.vocabulary.size, N=1, D=16, F=32, positions=16, initializer=Normal(0.15))
    model = Published(encoder, (("pair", Pooler(16, encoder.initializer, "float32")),))
    tokens = np.zeros((1, 1), np.int32)
    params = model.init(KEY, {"tokens": tokens, "mask": tokens})
    checkpoint.export(tmp_path / "init", params, experiment={"objective": to_json(model)}, tokenizer=tokenizer)
    return tmp_path / "init"


def test_the_task_is_learned_scored_by_its_metric_and_predicted(example, init, tmp_path, capsys):
    path, names = example("extending-task.md", "grades.py")
    kappa = names["quadratic_kappa"]
    right, far, near = np.array([0, 1, 2, 2]), np.array([2, 1, 2, 2]), np.array([1, 1, 2, 2])
    assert kappa(right, right) == 1 and kappa(right, far) < kappa(right, near) < 1

    data, rng = tmp_path / "answers", np.random.default_rng(0)
    data.mkdir()
    for split, rows in (("train", 48), ("validation", 12)):
        grades = [("poor", "fair", "good")[number % 3] for number in range(rows)]
        words = {"poor": "bad", "fair": "same", "good": "good"}
        texts = [" ".join([words[grade], *rng.choice(["man", "day"], 2)]) for grade in grades]
        (data / f"{split}.txt").write_text("".join(f"{g} | {t}\n" for g, t in zip(grades, texts, strict=True)))
    run = tmp_path / "run"
    numbers = ["seeds=1", "epochs=8", "length=16", "recipe.learning_rate=1e-2", "recipe.batch_size=8"]
    assert main(["finetune", str(path), f"init={init}", f"data={data}", *numbers, "--workdir", str(run)]) == 0
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    assert metrics["quadratic_kappa"]["median"] > 0.9 and metrics["accuracy"]["median"] > 0.9
    capsys.readouterr()
    assert main(["predict", "classify", "--model", str(run / "best"), "good man day", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "good"

    with pytest.raises(ValueError, match="kind span, which has metrics by name only, not quadratic_kappa"):
        dataclasses.replace(names["GRADES"], kind="span")
    bad = tmp_path / "bad.txt"
    bad.write_text("good | a man\npoor | \n")
    with pytest.raises(InputError, match=r"bad\.txt:2: no text: write"):
        list(names["Graded"]().read(bad, Notes()))


def test_the_pages_name_files_that_exist():
    for page in Path("docs").glob("extending*.md"):
        for name in re.findall(r"`(bertjax/[\w/]+/)`", page.read_text()):
            assert Path(name).is_dir(), (page, name)
