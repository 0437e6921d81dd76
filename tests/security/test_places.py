"""What is exported names no folder, user or host of the machine that it was made on."""

import json
import os
import socket
from pathlib import Path

import jax
import numpy as np
import pytest
from contract import small_bert

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.export import convert
from bertjax.commands.main import main
from bertjax.config import Experiment, Phase
from bertjax.data.rows import FullSentences
from bertjax.masking import Masking
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import BertLinear
from bertjax.serialization.description import to_json
from bertjax.serialization.places import without_places


def test_places_are_taken_out_of_a_description_and_nothing_else():
    described = {
        "init": "../alice/run:encoder",
        "phases": [{"rows": {"corpus": "/home/alice/wiki", "length": 16, "type": "bertjax.data.pairs.X"}}],
        "rows": {"data": "gs://ours/glue/", "tokenizer": "C:\\Users\\alice\\vocab.txt", "cache": None},
        "rules": [["/kernel$", True]],
        "labels": ("/a/b",),
        "prompt": "/query: ",
        "config": {"_name_or_path": "/home/alice/bert", "name_or_path": "org/model", "cache_dir": "~/x/y"},
    }
    assert without_places(described) == {
        "init": "run:encoder",
        "phases": [{"rows": {"corpus": "wiki", "length": 16, "type": "bertjax.data.pairs.X"}}],
        "rows": {"data": "glue", "tokenizer": "vocab.txt", "cache": None},
        "rules": [["/kernel$", True]],
        "labels": ["/a/b"],
        "prompt": "/query: ",
        "config": {"_name_or_path": "bert", "name_or_path": "org/model", "cache_dir": "y"},
    }


@pytest.fixture
def run(corpus, tokenizer, tmp_path):
    """Write the folder of a run, which was not trained; return it."""
    v = tokenizer.vocabulary
    objective = MaskedLM(small_bert(V=v.size, D=16, F=16, N=1), Masking(v.mask, (0, v.size), (v.cls, v.sep)))
    phase = Phase(1, 8, FullSentences(corpus, 16))
    experiment = Experiment(objective, bert_adam(BertLinear(1e-2, 2, 4)), (phase,), init="/home/alice/bert")
    params = objective.init(
        jax.random.key(0), {name: np.zeros((1, 16), np.int32) for name in ("tokens", "mask", "types")}
    )
    described, optimizer = to_json(experiment), {"count": np.zeros(1)}
    folder = tmp_path / "of alice" / "run"
    step = folder / "checkpoints/1"
    checkpoint.write(step, 1, params, optimizer, experiment=described, tokenizer=tokenizer, data=[], model="")
    return folder


@pytest.mark.parametrize("to", ["bertjax", "huggingface", "sentence-transformers"])
def test_an_exported_model_names_no_place(run, corpus, tmp_path, monkeypatch, to, capsys):
    monkeypatch.setattr(socket, "gethostname", lambda: "host-of-alice")
    new = tmp_path / "new"
    convert(run, new, to=to)
    found = b"\n".join(path.read_bytes() for path in sorted(new.rglob("*")) if path.is_file())
    for place in (corpus, str(tmp_path), str(run.parent), str(Path.home()), os.getcwd(), "alice"):
        assert place.encode() not in found, place
    if to == "bertjax":
        assert main(["evaluate", "--model", str(new)]) == 2
        assert "is not here: pass --data" in capsys.readouterr().err
    else:
        for path in (new / "config.json", new / "tokenizer_config.json"):
            described = json.loads(path.read_text()) if path.exists() else {}
            places = dict.fromkeys(("_name_or_path", "name_or_path", "tokenizer_file"), "/home/alice/bert")
            path.write_text(json.dumps(described | places))
        if to == "sentence-transformers":  # so that its vectors are refused, with a note
            (new / "sentence_bert_config.json").write_text('{"unknown": 1}')
        for form in ("bertjax", "huggingface"):
            convert(new, tmp_path / form, to=form)
            for path in filter(Path.is_file, (tmp_path / form).rglob("*")):
                assert b"alice" not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes(), path
