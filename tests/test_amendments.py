import pytest

from bertjax.amendments import Amendment
from bertjax.config import load_experiment
from bertjax.errors import InputError

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
