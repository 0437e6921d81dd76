"""An experiment takes the sizes of the model in `init`; what contradicts them is named."""

import dataclasses
from argparse import Namespace

import numpy as np
import pytest
from hub_folders import CONFIG, write

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.described import Init, encoders_in, other_fields, sized_as
from bertjax.commands.training import _loaded
from bertjax.config import load_experiment
from bertjax.errors import InputError
from bertjax.models import layers
from bertjax.models.encoder import Encoder
from bertjax.objectives.sift import SiFT
from bertjax.serialization.description import field_names, to_json

FILES = ("bert", "roberta", "albert", "electra", "xlnet", "deberta", "modernbert", "neobert", "crammed", "mosaicbert",
         "diffusion", "llada")  # fmt: skip
TINY = {"V": 130_000, "D": 32, "N": 2, "H": 2, "F": 48}


def saved(folder, objective):
    """Write a checkpoint that is read for its description alone."""
    params = {"encoder": {"x": np.zeros(1, np.float32)}}
    checkpoint.export(folder, params, experiment={"objective": to_json(objective)}, tokenizer=None)
    return folder


def encoders_of(objective):
    names = ("encoder", "generator", "discriminator")
    return {name: getattr(objective, name) for name in names if name in field_names(objective)}


def tiny(objective, **more):
    """Return an objective with small encoders, the sizes of a user's own."""
    small = {name: dataclasses.replace(each, **TINY, **more) for name, each in encoders_of(objective).items()}
    return dataclasses.replace(objective, **small)


@pytest.mark.parametrize("name", FILES)
def test_every_experiment_takes_the_sizes_of_the_model_that_it_starts_from(name, tmp_path):
    theirs = tiny(load_experiment(name).objective)
    folder = saved(tmp_path / "run", theirs)
    found = load_experiment(name, [f"init={folder}"])
    assert encoders_of(found.objective) == encoders_of(theirs) and found.init == str(folder)
    wrapped = saved(tmp_path / "sift", SiFT(theirs)) if name == "bert" else folder
    assert encoders_of(load_experiment(name, [f"init={wrapped}"]).objective) == encoders_of(theirs)


def test_the_recipe_is_that_of_the_published_size(tmp_path):
    small = saved(tmp_path / "17m", load_experiment("modernbert", ["size=17m"]).objective)
    there, found = (
        load_experiment("modernbert", ["stage=extend", f"init={small}", *more]) for more in ([], ["size=17m"])
    )
    assert there == found != load_experiment("modernbert", ["stage=extend"])
    large = saved(tmp_path / "large", load_experiment("modernbert", ["size=large"]).objective)
    with pytest.raises(InputError, match="sizes of several recipes: choose one, size=large or size=400m"):
        load_experiment("modernbert", ["stage=extend", f"init={large}"])
    assert load_experiment("bert", ["size=auto"]) == load_experiment("bert", ["size=base"])


def test_a_size_that_contradicts_is_named(tmp_path):
    folder = saved(tmp_path / "run", load_experiment("bert", ["size=tiny"]).objective)
    with pytest.raises(InputError, match=r"size=mini contradicts init=.*: N is 2 there, 4 here, D is 128 there, 256"):
        load_experiment("bert", [f"init={folder}", "size=mini"])
    with pytest.raises(InputError, match=r"size=small contradicts init=.*: D is 128 there, 768 here"):
        load_experiment("diffusion", [f"init={folder}", "size=small"])
    large = saved(tmp_path / "1b", load_experiment("llada", ["size=1b"]).objective)
    with pytest.raises(InputError, match=r"size=8b contradicts init=.*: N is 22 there, 32 here"):
        load_experiment("llada", [f"init={large}", "size=8b"])
    with pytest.raises(
        InputError,
        match=r"the encoder of init=.* is of class Encoder, that of this experiment Modern: use an experiment of its",
    ):
        load_experiment("neobert", [f"init={folder}"])
    with pytest.raises(InputError, match=r"there is no folder .*gone"):
        load_experiment("bert", [f"init={tmp_path / 'gone'}"])
    # What is set beside it is taken as it is, and compared where parameters are copied.
    assert load_experiment("bert", [f"init={folder}", "objective.encoder.F=64"]).objective.encoder.F == 64
    objective = load_experiment("bert").objective
    objective = dataclasses.replace(objective, encoder=objective.encoder.clone(positions=1024, first_position=700))
    with pytest.raises(InputError, match=r"with the sizes of init=.*beyond the 512 positions"):
        sized_as(str(folder), objective)


def test_the_sizes_of_a_folder_of_transformers_are_read_from_its_config_alone(tmp_path):
    folder = write(tmp_path / "hub", CONFIG | {"vocab_size": 40_000})
    encoder = load_experiment("bert", [f"init={folder}"]).objective.encoder
    assert (encoder.V, encoder.D, encoder.N, encoder.F, encoder.positions) == (40_000, 8, 2, 12, 16)
    assert load_experiment("bert", [f"init={folder}:encoder"]).objective.encoder == encoder
    # A vocabulary is never made smaller than that of the data.
    write(folder, CONFIG)
    assert load_experiment("bert", [f"init={folder}"]).objective.encoder.V == 30522


def test_parts_have_their_own_sizes(tmp_path):
    folder = saved(tmp_path / "electra", load_experiment("electra", ["size=tiny"]).objective)
    assert {name: each["D"] for name, each in encoders_in(str(folder)).items()} == {
        "generator": 64,
        "discriminator": 128,
    }
    widths = [load_experiment("bert", [f"init={folder}:{part}"]).objective.encoder.D
              for part in ("generator", "discriminator", "encoder")]  # fmt: skip
    assert widths == [64, 128, 128]
    with pytest.raises(
        InputError, match=r"generator and discriminator, this .* encoder: choose one of them, init=\S+:gen"
    ):
        load_experiment("bert", [f"init={folder}"])
    with pytest.raises(InputError, match="has encoder, this experiment trains generator and discriminator: start from"):
        load_experiment("electra", [f"init={folder}:discriminator"])


def test_fields_that_change_what_the_parameters_compute_are_named():
    here = Encoder(**TINY)
    there = here.clone(activation=layers.relu, norm_eps=1e-5, dropout=0.0, types=0)
    assert other_fields(here, there) == ["activation relu there, gelu here", "norm_eps 1e-05 there, 1e-12 here"]


def test_init_may_ask_for_the_state_of_the_optimiser():
    assert Init.parse("runs/a,optimizer") == ("runs/a", True)
    assert Init.parse("runs/a:encoder") == ("runs/a:encoder", False) == Init.parse("runs/a:encoder")
    assert Init.parse("runs/a,b") == ("runs/a,b", False)
    for near in ("optimiser", "optimzer", "opt"):
        with pytest.raises(InputError, match="did you mean runs/a,optimizer"):
            Init.parse(f"runs/a,{near}")


def test_a_run_goes_on_without_the_folder_that_it_started_from(tmp_path):
    theirs = tiny(load_experiment("bert").objective)
    saved(tmp_path / "run" / "checkpoints" / "3", theirs)
    given = {
        "experiment": "bert",
        "override": ["steps=9", "warmup=1", f"init={tmp_path / 'gone'}"],
        "workdir": tmp_path / "run",
    }
    found = _loaded(Namespace(**given))
    assert found.objective.encoder == theirs.encoder and found.init == str(tmp_path / "gone")
    with pytest.raises(InputError, match="there is no folder"):
        _loaded(Namespace(**given | {"workdir": tmp_path / "new"}))
