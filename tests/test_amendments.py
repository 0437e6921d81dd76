import dataclasses
import json

import pytest

from bertjax.amendments import Amendment
from bertjax.config import load_experiment
from bertjax.errors import InputError
from bertjax.run.workdir import as_begun, record_experiment

BERT = ["size=tiny", "steps=100", "warmup=10"]


def test_an_amendment_is_given_on_the_command_line():
    given = [*BERT, "amend=optimizer.learning_rate.peak:5e-5@37,optimizer.clip:0.5@40,optimizer.spikes:6@50"]
    experiment = load_experiment("bert", given)
    assert experiment.amend[:2] == (
        Amendment("optimizer.learning_rate.peak", "5e-5", 37),
        Amendment("optimizer.clip", "0.5", 40),
    )
    peaks = [experiment.at(step).optimizer.learning_rate.peak for step in (36, 37, 100)]
    clips = [experiment.at(step).optimizer.clip for step in (39, 40)]
    assert peaks == [1e-4, 5e-5, 5e-5] and clips == [1.0, 0.5]
    assert experiment.at(50).optimizer.spikes.multiple == 6 and not experiment.at(50).amend


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("seed:3@5", "nothing else of an experiment may change"),
        ("phases.0.batch_size:8@5", "nothing else of an experiment may change"),
        ("optimizer.clip:1", "is not of type|nothing else"),
        ("optimizer.clip:1@²", "nothing else"),
        ("optimizer.clip:1@0", "none of the steps 1 to 100"),
        ("optimizer.clip:1@101", "none of the steps 1 to 100"),
        ("optimizer.clop:1@5", "did you mean 'clip'"),
        ("optimizer.clip:-1@5", "not a finite number"),
        ("optimizer.learning_rate.total:50@5", "learning rate ends at step 50"),
        ("optimizer.moments:x@5", "names an object"),
    ],
)
def test_everything_else_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        load_experiment("bert", [*BERT, f"amend={given}"])


@pytest.fixture(scope="module")
def amended():
    return load_experiment("bert", [*BERT, "amend=optimizer.clip:0.5@90"])


def test_an_experiment_that_earlier_amendments_do_not_fit_is_another_one(amended, tmp_path):
    record_experiment(tmp_path, amended)
    shorter = load_experiment("bert", ["size=tiny", "steps=80", "warmup=10"])
    with pytest.raises(InputError, match=r"belongs to another experiment: .*steps is 90 there, 72 here"):
        as_begun(tmp_path, shorter)
    again = dataclasses.replace(amended, amend=())
    assert as_begun(tmp_path, again) == amended


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"step": None}, "experiment.json is damaged .*step is None, not an integer.*delete"),
        ({"step": "90"}, "experiment.json is damaged"),
        ({"value": 0.5}, "experiment.json is damaged"),
        ({"more": 1}, "experiment.json is damaged"),
        ({"name": "optimizer.clop"}, "did you mean 'clip'.*Mend `amend` in its experiment.json"),
        ({"step": 900}, "none of the steps 1 to 100.*Mend `amend`"),
        ({"name": "seed"}, "experiment.json is damaged .*nothing else of an experiment may change"),
    ],
)
def test_a_damaged_record_of_an_amendment_is_refused_by_name(amended, tmp_path, damage, message):
    record_experiment(tmp_path, amended)
    path = tmp_path / "experiment.json"
    described = json.loads(path.read_text())
    described["amend"][0] |= damage
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match=message):
        as_begun(tmp_path, dataclasses.replace(amended, amend=()))
    described["amend"] = [{"name": "optimizer.clip"}]
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match="json is damaged"):
        as_begun(tmp_path, amended)
