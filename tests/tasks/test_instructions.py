"""Prompts are given, answers and their ends are predicted."""

import json

import jax
import numpy as np
import pytest
from contract import small_bert

from bertjax.commands.main import main
from bertjax.config import Experiment, Phase, Run
from bertjax.errors import EmptySplit, InputError
from bertjax.noise import ExactCount
from bertjax.objectives.diffusion import MaskedDiffusion, per_row
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule
from bertjax.serialization.description import from_json, to_json
from bertjax.tasks.instructions import Instructions
from bertjax.train import fit

PAIRS = [("time way", "year day"), ("the man", "world"), ("day " * 30, "way"), ("time", "year " * 30)]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": a, "answer": b}) + "\n" for a, b in PAIRS))
    return path


def test_rows_hold_a_prompt_that_is_given_and_an_answer_with_its_ends(pairs, tokenizer_folder, tokenizer):
    rows = Instructions(str(pairs), str(tokenizer_folder), 20)
    assert from_json(to_json(rows)) == rows and rows.splits() == ("train",) and len(rows.digest()) == 64
    source = rows.open("train")
    assert source.notes == {
        "pairs dropped, whose prompt leaves no room for an answer": 1, "answers truncated to rows of 20 tokens": 1
    }  # fmt: skip
    batch, v = source.rows(np.array([0, 1, -1])), tokenizer.vocabulary
    time_way, year_day = tokenizer.ids(["time way", "year day"])
    expected = [v.cls, *time_way, v.sep, *year_day, v.sep, v.sep]
    assert batch["tokens"].shape == (3, 8) and batch["tokens"][0].tolist() == expected
    assert batch["given"][0].tolist() == [1] * 4 + [0] * 4 and batch["types"][0].tolist() == [0] * 4 + [1] * 4
    assert batch["mask"].any(1).tolist() == [True, True, False]
    long = source.rows(np.array([0, 2]))
    assert long["tokens"].shape == (2, 20) and (long["tokens"][1] != v.sep).sum() == 19  # cut, without an end
    shapes = {name: array.shape for name, array in rows.padding(2).items()}
    assert shapes["given"] == (2, 20) and set(shapes) == set(batch)


def test_a_prompt_is_never_masked_and_answers_weigh_alike(pairs, tokenizer_folder, tokenizer, tmp_path, capsys):
    v = tokenizer.vocabulary
    encoder = small_bert(V=v.size, N=1)
    objective = MaskedDiffusion(encoder, v.mask, noise=ExactCount(), share=per_row, slots=1.0)
    rows = Instructions(str(pairs), str(tokenizer_folder), 20)
    batch = rows.open("train").rows(np.array([0, 1]))
    np.testing.assert_array_equal(objective.candidates(batch), batch["given"] == 0)
    metrics = objective.loss(objective.init(jax.random.key(0), batch), batch, jax.random.key(1), train=True)[1]
    assert metrics["loss/diffusion"].weight == 2
    run = Run(evaluate_every=0, log_every=1)
    pairs.write_text(4 * pairs.read_text())
    fit(Experiment(objective, Optimizer(Schedule(1e-3, 1, 2)), (Phase(2, 8, rows),), run=run), tmp_path / "run")
    assert main(["evaluate", "--model", str(tmp_path / "run")]) == 2
    assert "pass --data FILE" in capsys.readouterr().err
    options = ["--data", str(pairs), "--draws", "2", "--batch-size", "8", "--json"]
    assert main(["evaluate", "--model", str(tmp_path / "run"), *options]) == 0
    values = json.loads(capsys.readouterr().out)
    assert 3 < values["nelbo"] < 6 and values["nelbo_standard_error"] > 0 and values["bits_per_byte"] > 0
    assert values["overflow/diffusion"] == 0


def test_what_cannot_be_read_is_named(pairs, tokenizer_folder, tmp_path):
    folder = str(tokenizer_folder)
    with pytest.raises(EmptySplit, match="no pair that fits rows of 4 tokens"):
        Instructions(str(pairs), folder, 4).open("train")
    with pytest.raises(InputError, match="has no validation split"):
        Instructions(str(pairs), folder, 20).open("validation")
    with pytest.raises(InputError, match="need a tokenizer"):
        Instructions(str(pairs), "", 20).open("train")
    with pytest.raises(ValueError, match="rows of length 3"):
        Instructions(str(pairs), folder, 3)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "time"}\n')
    with pytest.raises(InputError, match="answer"):
        Instructions(str(tmp_path / "bad.jsonl"), folder, 20).open("train")
