import pytest

from bertjax.config import load_experiment
from bertjax.plan import plan

# google-research/bert README.md and checkpoints; fairseq and albert likewise: parameters with pre-training heads
PUBLISHED = [
    ("bert", "size=tiny", 4_433_468),
    ("bert", "size=mini", 11_267_900),
    ("bert", "size=small", 29_058_876),
    ("bert", "size=medium", 41_668_412),
    ("bert", "size=base", 110_106_428),
    ("bert", "size=large", 336_226_108),
    ("bert", "cased=true", 108_932_934),
    ("roberta", "size=base", 124_696_665),
    ("roberta", "size=large", 355_411_033),
    ("albert", "size=base", 11_813_810),
    ("albert", "size=large", 17_847_474),
    ("albert", "size=xlarge", 59_021_490),
    ("albert", "size=xxlarge", 223_158_450),
]


@pytest.mark.parametrize(("family", "override", "count"), PUBLISHED)
def test_parameters_are_as_many_as_published(family, override, count):
    planned = plan(load_experiment(f"experiments/{family}.py", [override]))
    assert planned["params"] == sum(planned["params_by_group"].values()) == count


def test_a_head_with_a_table_of_its_own_has_that_many_parameters_more_and_does_the_same_work():
    tied = plan(load_experiment("experiments/bert.py", ["size=tiny"]))
    untied = plan(load_experiment("experiments/bert.py", ["size=tiny", "objective.encoder.tied_head=false"]))
    assert untied["params_by_group"]["head/mlm"] - tied["params_by_group"]["head/mlm"] == 30522 * 128
    assert untied["flops_per_token"] == tied["flops_per_token"]


def test_the_tokens_and_steps_are_those_of_the_published_run():
    short, long = plan(load_experiment("experiments/bert.py"))["phases"]
    assert (short["steps"], short["batch_size"], short["length"]) == (900_000, 256, 128)
    assert (long["steps"], long["batch_size"], long["length"]) == (100_000, 256, 512)
    assert long["tokens"] == 100_000 * 256 * 512
    assert long["flops_per_token"] > short["flops_per_token"]
