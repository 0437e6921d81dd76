"""The path of docs/embeddings.md, from a table of pairs to a searched corpus, is run as it stands there."""

import json
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from sentence_folders import sentence_folder

from bertjax.checkpoints.trained import load
from bertjax.commands.main import main
from bertjax.config import load_experiment
from bertjax.inference.embed import embed
from bertjax.serialization.description import from_json, to_json

PAGE = Path("docs/embeddings.md").resolve()
WORDS = ["time", "person", "year", "way", "day", "man", "world", "life", "hand", "part", "child", "eye"]
QUICK = ["batch_size=8", "length=16", "steps=4", "run.checkpoint_every=2", "run.log_every=1", "widths=4"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make the files that the page names, and go to their folder."""
    sentence_folder(tmp_path / "all-MiniLM-L6-v2", settings={"prompts": {"query": "good: "}})
    pairs = ["question,answer", *(f"{a} {b},new {a}" for a, b in pairwise(WORDS))]
    for name in ("pairs.csv", "test.csv"):
        (tmp_path / name).write_text("\n".join(pairs))
    (tmp_path / "passages.txt").write_text("\n".join(WORDS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_whole_path_and_exact_resume(folder, capsys):
    (block, *_) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    for line in block.splitlines():
        _, *words = shlex.split(line, comments=True)
        assert main([*words, *(QUICK if words[0] == "pretrain" else [])]) == 0, line
    out, err = capsys.readouterr()
    assert out.count("ndcg@10") == 2 and "Where is the new group?" in out
    assert "freshly initialised: none" in err and "is left out" not in err
    log = [json.loads(line) for line in Path("runs/embed/log.jsonl").read_text().splitlines()]
    assert 4 < log[-1]["negatives/used"] <= 7 and "loss/contrastive_4" in log[-1]

    trained, again = load("runs/embed"), load("embedder")
    texts = ["new man", "the year of the child"]
    found = [list(embed(model, texts, prompt="query", say=lambda note: None)) for model in (trained, again)]
    np.testing.assert_array_equal(*found)
    assert again.objective.heads["sentence"].max_length == 16

    experiment = load_experiment("embed", [*shlex.split(block.splitlines()[1])[3:6], *QUICK])
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment

    shutil.copytree("runs/embed", "runs/killed")
    shutil.rmtree("runs/killed/checkpoints/4")
    command = shlex.split(block.splitlines()[1])[1:-1]
    assert main([*command, "runs/killed", *QUICK]) == 0
    for a, b in zip(*(jax.tree.leaves(load(f"runs/{name}").params) for name in ("embed", "killed")), strict=True):
        np.testing.assert_array_equal(a, b)
    assert main(["evaluate", "--model", "runs/embed"]) == 2
    assert "bertjax evaluate retrieval" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["evaluate", "retrieval", "--queries", "a.csv"], "--queries, --passages and --relevant together"),
        (["evaluate", "retrieval", "--data", "pairs.csv", "--columns", "question"], "name two"),
        (["evaluate", "retrieval", "--data", "pairs.csv"], "no column 'anchor'"),
        (["evaluate", "similarity", "--data", "pairs.csv"], "no column"),
        (["evaluate", "similarity", "--data", "passages.txt"], "convert it"),
        (["predict", "search", "--passages", "pairs.csv", "time"], "no column 'text'"),
        (["predict", "search", "--passages", "none.txt", "time"], "none.txt"),
    ],
)
def test_mistakes_are_named(folder, capsys, given, message):
    assert main([*given, "--model", "all-MiniLM-L6-v2"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["temperature=0"], "must be above 0"),
        (["widths=8"], "from 1 to 7"),
        (["chunks=2", "batch_size=8"], "chunks=2 do not divide a batch whose rows on each replica are 1"),
        (["length=400"], "has 24 positions"),
        (["phases.0.accumulate=2"], "leave accumulate at 1"),
        (["columns=question,reply"], "no column 'reply'"),
        (["data=none.csv", "steps=1"], "none.csv"),
        (["init=none"], "none"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(folder, capsys, given, message):
    usual = {"init": "all-MiniLM-L6-v2", "data": "pairs.csv", "columns": "question,answer", "batch_size": "16",
             "length": "16"} | dict(each.split("=") for each in given)  # fmt: skip
    assert main(["pretrain", "embed", *(f"{k}={v}" for k, v in usual.items()), "--workdir", "run"]) == 2
    assert message in capsys.readouterr().err
