import dataclasses
import json
import subprocess
import sys

import pytest

from bertjax import config
from bertjax.config import Experiment, Phase, load_experiment
from bertjax.data.rows import FullSentences
from bertjax.data.windows import Windows
from bertjax.errors import InputError
from bertjax.masking import ngrams, words
from bertjax.models import layers
from bertjax.serialization.description import dump, from_json, to_json

BERT, ALBERT = "experiments/bert.py", "experiments/albert.py"


def test_overrides_reach_arguments_and_fields():
    experiment = load_experiment(
        BERT,
        [
            "size=tiny", "steps=50_000", "learning_rate=3e-4", "objective.encoder.dropout=0.2", "run.log_every=3",
            "phases.1.batch_size=8", "objective.masking.seed=none", "objective.pair=false",
            "objective.masking.random_ids=5,99", "optimizer.learning_rate.warmup=7", "phases.0.rows.short=0.5",
        ],
    )  # fmt: skip
    objective = experiment.objective
    assert (objective.encoder.D, objective.encoder.dropout, objective.pair) == (128, 0.2, False)
    assert (objective.masking.seed, objective.masking.random_ids) == (None, (5, 99))
    assert (experiment.phases[0].steps, experiment.phases[1].batch_size) == (45_000, 8)
    assert (experiment.optimizer.learning_rate.peak, experiment.optimizer.learning_rate.warmup) == (3e-4, 7)
    assert (experiment.run.log_every, experiment.phases[0].rows.short) == (3, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sise=base", "unknown override 'sise' of experiments/bert.py; did you mean 'size'"),
        ("objective.encoder.droput=1", "unknown override 'droput' of Encoder .*did you mean 'dropout'"),
        ("zzz=1", "known: size, data"),
        ("size=gigantic", "choose one of auto, tiny, mini"),
        ("steps=many", "'many' is not of type int"),
        ("learning_rate=fast", "'fast' is not of type float"),
        ("cased=maybe", "'maybe' is not of type bool"),
        ("steps", "not of the form key=value"),
        ("phases.7.steps=1", "'7' is not an index below 2"),
        ("objective.encoder=x", "names an object"),
        ("objective.encoder.activation=relu", "names an object"),
        ("objective.encoder.V.x=1", "int has no field 'x'"),
        ("objective.encoder.H=7", "D=768 does not divide into H=7 heads: choose H among its divisors"),
        ("objective.masking.mask_id=99999", "masking uses id 99999, but the encoder's vocabulary has V=30522"),
        ("steps=100", "100 steps cannot spend 10000 on warm-up"),
        ("batch_size=0", "steps, batch_size and accumulate must each be at least 1"),
        ("phases.0.accumulate=7", "batch_size=256 is not a multiple of accumulate=7"),
    ],
)
def test_wrong_overrides_are_one_line_errors_that_name_them(override, message):
    with pytest.raises(InputError, match=message) as caught:
        load_experiment(BERT, [override])
    assert "\n" not in str(caught.value)


def test_files_that_are_no_experiments_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no experiment file experiments/brt\.py; did you mean '.*bert\.py'"):
        load_experiment("experiments/brt.py")
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1")
    with pytest.raises(InputError, match="has no function experiment"):
        load_experiment(empty)
    empty.write_text("def experiment(): return 3")
    with pytest.raises(InputError, match="returned int, not an Experiment"):
        load_experiment(empty)


@pytest.mark.parametrize("path", [BERT, ALBERT, "experiments/roberta.py"])
def test_an_objective_survives_its_description(path):
    objective = load_experiment(path).objective
    described = json.loads(json.dumps(to_json(objective)))
    assert from_json(described) == objective
    assert described["type"] == "bertjax.objectives.mlm.MaskedLM"


def test_functions_and_parts_are_described_by_name():
    masking = load_experiment(ALBERT).objective.masking
    assert to_json(dataclasses.replace(masking, unit=words))["unit"] == {"function": "bertjax.masking.words"}
    assert to_json(masking)["unit"] == {
        "type": "bertjax.masking.Groups",
        "probabilities": list(ngrams(3).probabilities),
    }
    assert to_json(layers.gelu) == {"function": "bertjax.models.layers.gelu"}
    assert json.loads(dump(load_experiment(BERT)))["phases"][0]["rows"]["length"] == 128


@pytest.mark.parametrize(
    "name", ["os.system", "subprocess.run", "bertjax.nothing.here", "bertjax.models.layers.nothing", ""]
)
def test_descriptions_import_only_from_the_package(name):
    with pytest.raises(InputError, match=r"is not of bertjax|has no"):
        from_json({"function": name})


@pytest.mark.parametrize(
    "described",
    [
        {"type": "bertjax.config.load_experiment", "path": "x.py"},
        {"type": "bertjax.config.Path"},
        {"function": "bertjax.config.Run"},
        {"function": "bertjax.train.signal"},
        {"type": "bertjax.models.layers.nn.Dense"},
    ],
)
def test_descriptions_rebuild_only_dataclasses_and_functions_of_bertjax(described):
    with pytest.raises(InputError, match="that a description may name"):
        from_json(described)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=x"], "'x' is not of type int"),
        (["run=5"], "unknown override 'run'"),
        (["phases.0=5"], "names an object"),
        (["objective.encoder.H=0"], "H=0 must be 1 or more"),
        (["objective.encoder.N=-1"], "N=-1 must be 1 or more"),
        (["optimizer.b1=nan"], r"b1=nan is not in \[0, 1\)"),
        (["optimizer.clip=-1"], "clip=-1.0 is not a finite number of 0 or more"),
        (["run.keep=0"], "keep=0: keep at least the newest checkpoint"),
        (["run.log_every=-1"], "log_every=-1 is negative"),
        (["long=2"], "long=2.0 is not a share"),
        (["steps=5000"], "5000 steps cannot spend 10000 on warm-up"),
        (["phases.0.steps=2000000"], "phases have 2100000 steps, but the learning rate ends at step 1000000"),
    ],
)
def test_overrides_that_make_no_sense_are_one_clear_line(overrides, message):
    with pytest.raises(InputError, match=message) as error:
        load_experiment(BERT, overrides)
    assert "\n" not in str(error.value)


def test_the_seed_and_items_of_tuples_can_be_overridden():
    experiment = load_experiment(BERT, ["seed=7", "objective.masking.random_ids.0=5"])
    assert experiment.seed == 7 and experiment.objective.masking.random_ids == (5, 30522)


def test_the_steps_of_an_experiment_are_those_of_its_phases():
    phase = Phase(3, 4, FullSentences("", 16))
    experiment = load_experiment(BERT)
    assert dataclasses.replace(experiment, phases=(phase, phase)).steps == 6
    assert isinstance(experiment, Experiment) and experiment.steps == 1_000_000


@pytest.mark.parametrize(("batch_size", "accumulate", "multiple"), [(3, 1, 2), (6, 2, 4), (9, 3, 6)])
def test_a_batch_that_parts_the_directions_of_a_text_is_refused(batch_size, accumulate, multiple):
    message = f"batch_size={batch_size} in {accumulate} micro-batches: .* groups of 2 .*: use a multiple of {multiple}"
    with pytest.raises(ValueError, match=message):
        Phase(1, batch_size, Windows("corpus"), accumulate)
    Phase(1, batch_size, Windows("corpus", both_directions=False), accumulate)
    Phase(1, multiple, Windows("corpus"), accumulate)


def test_values_that_cannot_be_described_are_refused():
    with pytest.raises(InputError, match="cannot be described"):
        to_json({"a": object()})


def test_importing_the_package_does_not_import_jax():
    code = "import bertjax, bertjax.data.build, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert config.Experiment is __import__("bertjax").Experiment


def test_fields_that_must_agree_are_changed_together():
    experiment = load_experiment(
        "experiments/electra.py", ["objective.generator.positions=1024", "objective.discriminator.positions=1024"]
    )
    assert experiment.objective.generator.positions == experiment.objective.discriminator.positions == 1024
    with pytest.raises(InputError, match="positions=1024, the discriminator positions=512"):
        load_experiment("experiments/electra.py", ["objective.generator.positions=1024"])
    again = load_experiment("experiments/electra.py", ["optimizer.b2=0.5", "optimizer.b2=0.9", "optimizer.b1=0.8"])
    assert (again.optimizer.b1, again.optimizer.b2) == (0.8, 0.9)
