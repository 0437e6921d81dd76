import dataclasses
import json

import pytest

from bertjax.amendments import Amendment
from bertjax.config import load_experiment
from bertjax.errors import InputError
from bertjax.optim.schedules import BertLinear, Restarting, Schedule, lengthened
from bertjax.optim.skipping import Spikes
from bertjax.run.workdir import as_begun, record_experiment

BERT = ["size=tiny", "steps=100", "warmup=10"]


def test_an_amendment_is_given_on_the_command_line():
    given = [*BERT, "amend=optimizer.learning_rate.peak:5e-5@37,optimizer.clip:0.5@40,optimizer.spikes:6,64@50"]
    experiment = load_experiment("bert", given)
    assert experiment.amend[:2] == (
        Amendment("optimizer.learning_rate.peak", "5e-5", 37),
        Amendment("optimizer.clip", "0.5", 40),
    )
    peaks = [experiment.at(step).optimizer.learning_rate.peak for step in (36, 37, 100)]
    clips = [experiment.at(step).optimizer.clip for step in (39, 40)]
    assert peaks == [1e-4, 5e-5, 5e-5] and clips == [1.0, 0.5]
    assert experiment.at(50).optimizer.spikes == Spikes(6, 64) and not experiment.at(50).amend


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
        ("steps:90@5", "made longer"),
        ("steps:200@102", "made longer, before its end or there"),
        ("steps:2e3@5", "nothing else"),
    ],
)
def test_everything_else_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        load_experiment("bert", [*BERT, f"amend={given}"])


def test_a_longer_run_has_a_longer_last_phase_and_schedule(tmp_path):
    begun = load_experiment("bert", BERT)
    record_experiment(tmp_path, begun)
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    longer = as_begun(tmp_path, load_experiment("bert", [*BERT, "extend=300"]))
    assert longer.amend == (Amendment("steps", "300", 101),) and longer.extend == 0 and longer.steps == 300
    assert [phase.steps for phase in longer.amended_phases] == [90, 210] and longer.phases == begun.phases
    totals = [longer.at(step).optimizer.learning_rate.total for step in (100, 101, 300)]
    assert totals == [100, 300, 300] and longer.at(300).steps == 300
    record_experiment(tmp_path, longer)
    assert as_begun(tmp_path, begun) == longer == as_begun(tmp_path, dataclasses.replace(begun, extend=300))
    with pytest.raises(InputError, match=r"the number of all steps, and the run has 300 already.*give extend=500"):
        as_begun(tmp_path, dataclasses.replace(begun, extend=200))
    (tmp_path / "checkpoints" / "200").mkdir()
    again = as_begun(tmp_path, dataclasses.replace(begun, extend=400, amend=(Amendment("optimizer.clip", "2", 350),)))
    assert again.steps == 400 and [str(each) for each in again.amend] == [
        "steps:300@101", "steps:400@201", "optimizer.clip:2@350"
    ]  # fmt: skip


def test_schedules_of_every_kind_become_longer():
    one = Schedule(1.0, 2, 10, decay=3, tail=1)
    assert lengthened(one, 5) == dataclasses.replace(one, total=15)
    assert lengthened(BertLinear(1.0, 2, 10), 5).total == 15 and lengthened(Restarting((one, one)), 5).total == 25
    with pytest.raises(ValueError, match="Constant has no field `total`"):
        lengthened(Constant(), 5)


@dataclasses.dataclass(frozen=True)
class Constant:
    total = 10


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
