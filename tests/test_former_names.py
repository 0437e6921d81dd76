"""What versions before 0.2 wrote, in tests/former, loads: descriptions, and a run that was killed goes on."""

import gzip
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from texts import make_documents

from bertjax.checkpoints.trained import load
from bertjax.config import Experiment, Phase, Run, load_experiment
from bertjax.counters import Restarted
from bertjax.data.build import BuildSettings, build
from bertjax.data.corpus import split_sentences
from bertjax.data.held_out import by_number
from bertjax.data.rows import FullSentences
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule
from bertjax.serialization.description import from_json, to_json, up_to_date
from bertjax.train import fit

FORMER = Path(__file__).parent / "former"
DESCRIPTIONS = json.loads(gzip.decompress((FORMER / "descriptions.json.gz").read_bytes()))


@pytest.mark.parametrize("name", DESCRIPTIONS["objectives"])
def test_an_objective_is_rebuilt_from_its_former_description(name):
    former = DESCRIPTIONS["objectives"][name]
    assert up_to_date(former) == json.loads(json.dumps(to_json(from_json(former))))


@pytest.mark.parametrize("name", DESCRIPTIONS["experiments"])
def test_the_former_description_of_an_experiment_is_todays(name, corpus):
    given = [f"data={corpus}"] if name == "smoke" else []
    experiment = load_experiment(f"experiments/{name}.py", given)
    found = up_to_date(DESCRIPTIONS["experiments"][name])
    if name == "smoke":  # its vocabulary is that of the corpus
        assert found["optimizer"] == to_json(experiment.optimizer)
        return
    assert found.pop("counters") == to_json(Restarted()) != to_json(experiment.counters)
    assert found == {k: v for k, v in json.loads(json.dumps(to_json(experiment))).items() if k != "counters"}


@pytest.fixture
def stopped(tmp_path, tokenizer, monkeypatch):
    """Unpack a run that was killed after step 7 of 12, and build the corpus that it was trained on."""
    settings = BuildSettings(split_sentences, 0.2, shard_tokens=8000, key=by_number)
    build(make_documents(60), tokenizer, tmp_path / "corpus", settings)
    with tarfile.open(FORMER / "stopped.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "stopped"


def test_a_run_of_an_earlier_version_loads_and_resumes(stopped):
    model = load(stopped)
    rows = FullSentences("corpus", 16)
    optimizer = Optimizer(Schedule(1e-2, warmup=2, total=12, decay=4))
    run = Run(log_every=2, evaluate_every=6, checkpoint_every=4, keep=1)
    experiment = Experiment(model.objective, optimizer, (Phase(12, 8, rows),), run=run)
    assert model.encode({"tokens": np.ones((1, 4), np.int32), "mask": np.ones((1, 4), np.int32)}).shape == (1, 4, 8)
    assert int(fit(experiment, stopped).step) == 12
    undisturbed = [json.loads(line) for line in (FORMER / "whole.jsonl").read_text().splitlines()]
    found = [json.loads(line) for line in (stopped / "log.jsonl").read_text().splitlines()]
    assert [line.keys() for line in found] == [line.keys() for line in undisturbed]
    for ours, theirs in zip(found, undisturbed, strict=True):
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)
