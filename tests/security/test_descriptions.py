"""A description builds what closed_set lists for each field, and imports and calls nothing else."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
import pytest
from contract import ENCODERS, OBJECTIVES
from hub_folders import family_of_row

from bertjax.checkpoints.trained import param_shapes
from bertjax.config import Experiment, Phase, load_described, own_code, sources
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.rows import FullSentences
from bertjax.errors import InputError
from bertjax.experiment_files import experiment_files
from bertjax.finetuning.recipe import FineTuning
from bertjax.flops import row_shapes
from bertjax.masking import Masking
from bertjax.models.layers import Norm
from bertjax.models.published import Published
from bertjax.models.sentence import Projection, SentenceEmbedding, UnitLength, identity, weighted_mean
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule
from bertjax.serialization.closed_set import ALL, FOUND_AT, HELD, TRAINED
from bertjax.serialization.description import _checked, _Field, _hints, field_names, from_json, to_json

from .descriptions_at_random import FORBIDDEN, Trees, audited, built_of_allowed, calls

ENCODER = to_json(ENCODERS["bert"]())
MLM = to_json(OBJECTIVES["bert"])
RTD = to_json(OBJECTIVES["electra"])
ROWS = {"type": "bertjax.data.rows.FullSentences", "corpus": "x", "length": 16}


def changed(described, **fields):
    return json.loads(json.dumps(described)) | fields


def function(name):
    return {"function": f"bertjax.{name}"}


def again(value):
    """Describe a value as JSON text, and rebuild it."""
    return from_json(json.loads(json.dumps(to_json(value))))


# What is honest ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_of_the_contract_survives_its_description(name):
    assert again(OBJECTIVES[name]) == OBJECTIVES[name]


@pytest.mark.parametrize("name", [name for name in experiment_files() if name not in ("smoke", "embed")])
def test_every_experiment_survives_its_description(name, tmp_path):
    path = experiment_files()[name]
    if "-> FineTuning" not in path.read_text():
        experiment = load_described(path, [], Experiment)
        assert again(experiment) == experiment
        return
    task = {"glue": "task=stsb", "squad": "task=squad2", "tagging": "task=conll2003", "choice": "task=race"}
    given = [task[name], "family=bert"] if name in task else ["kind=regress"]
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t1\n")
    tuning = load_described(path, [*given, "init=model", f"data={tmp_path}"], FineTuning)
    assert again(tuning) == tuning


@pytest.mark.parametrize("name", [name for name in ENCODERS if family_of_row(name)])
def test_every_head_of_a_family_survives_its_description(name):
    family, encoder = family_of_row(name), ENCODERS[name]()
    config = {"model_type": family.model_type, "classifier_activation": "gelu", "classifier_pooling": "cls"}
    heads = [head for head in (family.pooler, *family.heads) if head and head.fits(encoder)]
    assert heads
    for head in heads:
        model = Published(encoder, ((head.name, head.make(encoder, config, 3)),), family.cls_last, ("a", "b", "c"))
        assert again(model) == model, head.name


def test_the_modules_of_sentence_transformers_survive_their_description():
    transforms = (Projection(32, 8, identity, residual=True), Norm(8, 1e-12), UnitLength())
    head = SentenceEmbedding((weighted_mean,), transforms, 4, 512, True, (("query", "find: "),), "query", False)
    assert again(Published(ENCODERS["bert"](), (("sentence", head),))).heads == {"sentence": head}


def test_the_closed_set_names_what_there_is_and_says_what_every_field_may_hold():
    examples = {f"{owner}.{name}" for owner in ALL.types for name in field_names(type_of(owner))}
    assert set(HELD) <= examples, "a field that is gone"
    for name in ALL.types | ALL.functions:
        found = type_of(name)
        assert f"{found.__module__}.{found.__qualname__}" == name
        assert name in FOUND_AT or name.startswith("bertjax.")
    for name in ALL.types:
        for field in field_names(type_of(name)):
            try:
                _checked({"function": "os.system"}, _hints(type_of(name))[field], _Field(type_of(name), field), field)
            except InputError as error:
                assert "no description may set this field" not in str(error), (name, field)


def test_of_a_file_of_ones_own_the_classes_and_functions_count_and_nothing_of_the_standard_library(
    tmp_path, monkeypatch
):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\nfrom os import system\nfrom pathlib import Path\n"
        "def swish(x):\n    return x\n@dataclass(frozen=True)\nclass Mine:\n    size: int\n    encoder: object = None\n"
    )
    (tmp_path / "own_library_of_tests.py").write_text("def relish(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    path.write_text("import subprocess, jax, own_library_of_tests\n" + path.read_text())
    code = own_code(path)
    given = changed(ENCODER, activation={"function": "own_library_of_tests.relish"})
    encoder = from_json(given, code=code)
    assert encoder.activation is code["own_library_of_tests.relish"]
    assert sources(encoder).keys() == {"own_library_of_tests.py"} and not sources(ENCODERS["bert"]())
    mine = {"type": "experiment_mine.Mine", "size": 2**40, "encoder": ENCODER}
    assert from_json(mine, code=code).encoder == ENCODERS["bert"]()
    given = changed(ENCODER, activation={"function": "experiment_other.swish"})
    assert from_json(given, code=code).activation is code["experiment_mine.swish"]
    for name in (
        "subprocess.run",
        "jax.jit",
        "posix.system",
        "os.system",
        "pathlib.Path",
        "experiment_mine.system",
        "experiment_mine.Mine.encoder",
    ):
        for described in (changed(ENCODER, activation={"function": name}), changed(mine, encoder={"function": name})):
            with pytest.raises(InputError, match="is not of bertjax"):
                from_json(described, code=code)
    with pytest.raises(InputError, match=r"names experiment_mine.swish, which is no dataclass"):
        from_json({"type": "experiment_mine.swish"}, code=code)
    with pytest.raises(InputError, match="size is 'x', not an integer"):
        from_json(changed(mine, size="x"), code=code)


def type_of(name):
    module, _, attribute = FOUND_AT.get(name, name).rpartition(".")
    return getattr(sys.modules.get(module) or __import__(module, fromlist=["x"]), attribute)


def test_parameters_have_the_same_shapes_whatever_the_length_of_the_rows():
    """`load` traces one row of one position: a description cannot make it long."""
    for rows in (FullSentences("x", 64), NextSentencePairs("x", 64)):
        experiment = {"phases": [{"rows": to_json(rows)}]}
        for name in ("bert", "xlnet", "deberta", "mosaicbert", "electra, disentangled", "sift"):
            objective = OBJECTIVES[name]
            expected = jax.eval_shape(objective.init, jax.random.key(0), row_shapes(rows, 2))
            assert param_shapes(objective, experiment, Path()) == expected, name


# What is not ---------------------------------------------------------------------------------------------------------

HOSTILE = {
    "a function that runs a file, as a head": (
        changed(RTD, discriminator_head=function("config.load_experiment")), "discriminator_head names"),
    "the same by the former name of the field": (
        changed(RTD, judge=function("config.load_experiment")), "judge and discriminator_head"),
    "the command line": (changed(MLM, corrupt=function("commands.main.main")), "corrupt names"),
    "what starts a process": (changed(ENCODER, activation=function("machine.doctor.doctor")), "activation names"),
    "a reader of files as a format": (
        {"type": "bertjax.tasks.task.Part", "split": "x", "files": ["a"], "format": function("data.corpus.json_lines")},
        "format names"),
    "an import of an import": (function("description.importlib.import_module"), "that a description may name"),
    "a private class": (changed(ENCODER, type="bertjax.models.heads._Decoder"), "that a description may name"),
    "a class as a function": (function("models.encoder.Encoder"), "that a description may name"),
    "a function as a class": (
        {"type": "bertjax.models.layers.gelu"}, "that a description may name"),
    "a schedule for an activation": (
        changed(ENCODER, activation=function("optim.schedules.linear")), "activation is the function"),
    "a unit of masking of the same signature for a pooling": (
        {"type": "bertjax.models.sentence.SentenceEmbedding", "pooling": [function("masking.words")]},
        r"pooling\.0 is the function"),
    "a head for an encoder": (changed(MLM, encoder={"type": "bertjax.models.sentence.UnitLength"}), "encoder is"),
    "an encoder without tables to share": (changed(RTD, generator=to_json(ENCODERS["xlnet"]())), "generator is"),
    "rows for an objective": (changed(MLM, encoder=ROWS), "encoder is the type"),
    "an objective around itself": (
        {"type": "bertjax.objectives.sift.SiFT", "objective": to_json(OBJECTIVES["sift"])}, "objective is the type"),
    "own code": (changed(ENCODER, activation={"function": "mine.swish"}), r"'mine.swish' .* is not of bertjax"),
    "a parent": (changed(ENCODER, parent=ENCODER), "'parent' is no field"),
    "a field that there is not": (changed(ENCODER, __class__="x"), "'__class__' is no field"),
    "a field that is missing": ({"type": "bertjax.masking.Groups"}, "probabilities is missing"),
    "type and function": (changed(ENCODER, function="bertjax.models.layers.gelu"), "'function' is no field"),
    "a function with fields": (changed(ENCODER, activation=function("models.layers.gelu") | {"x": 1}), "activation is"),
    "a name that is a list": ({"type": ["bertjax.masking.Groups"]}, "an object of 1 entries"),
    "no name": (changed(ENCODER, activation={}), "activation is an object of 0 entries"),
    "true for a size": (changed(ENCODER, N=True), "N is True, not an integer"),
    "a float for a size": (changed(ENCODER, N=2.0), r"N is 2\.0, not an integer"),
    "a text for a size": (changed(ENCODER, N="2"), "N is '2', not an integer"),
    "null for a size": (changed(ENCODER, D=None), "D is None, not an integer"),
    "a number for a flag": (changed(ENCODER, shared=1), "shared is 1, not true or false"),
    "a number for a text": (changed(ENCODER, dtype=32), "dtype is 32"),
    "another dtype": (changed(ENCODER, dtype="O"), "dtype is 'O', not one of 'float32', 'bfloat16'"),
    "a policy by another name": (changed(ENCODER, remat="__import__"), "remat is '__import__'"),
    "a text for a list": (changed(MLM, masking=changed(MLM["masking"], specials="ab")), r"masking\.specials is 'ab'"),
    "too few elements": (changed(MLM, masking=changed(MLM["masking"], random_ids=[1])), "a list of 2 elements"),
    "an infinite rate": (changed(ENCODER, dropout=math.inf), "dropout is inf"),
    "not a number": (changed(ENCODER, norm_eps=math.nan), "norm_eps is nan"),
    "10**400 layers": (changed(ENCODER, N=10**400), r"N is a number of about 10\*\*400"),
    "10**400 as a share": (changed(ENCODER, dropout=10**400), r"dropout is a number of about"),
    "a million layers": (changed(ENCODER, N=10**6), "N is 1000000, not an integer of at most 512"),
    "a vocabulary of a billion": (changed(ENCODER, V=10**9), "at most 8,388,608"),
    "a width of a billion": (changed(ENCODER, D=10**9), "D is 1000000000"),
    "rows of a billion": (changed(ROWS, length=10**9), "length is"),
    "a thousand heads": (
        to_json(Published(ENCODERS["bert"](), tuple((f"{n}", UnitLength()) for n in range(1000)))),
        "named_heads is a list of 1000 elements"),
    "a head whose name is a path": (
        to_json(Published(ENCODERS["bert"](), (("../x", UnitLength()),))), r"named_heads\.0\.0 is '\.\./x'"),
    "a text of a million": (changed(ROWS, corpus="x" * 10**6), "at most 16,384 characters"),
    "a former class without its fields": ({"type": "bertjax.optim.Polynomial"}, "is damaged: KeyError"),
    "a former class of texts": (
        {"type": "bertjax.optim.Cosine", "peak": 1, "total": "x", "bottom": 1}, "is damaged: TypeError"),
    "what contradicts itself": (changed(MLM, encoder=changed(ENCODER, H=7)), "encoder: width D=32"),
    "no object": ([MLM], "a list of 1 elements"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_experiment_holds_is_refused_with_its_path(name):
    described, problem = HOSTILE[name]
    with pytest.raises(InputError, match=problem) as refused:
        from_json(described)
    assert len(str(refused.value)) < 1500


def test_only_models_are_the_objectives_of_checkpoints():
    with pytest.raises(InputError, match=r"objective is the type 'bertjax\.data\.rows\.FullSentences'"):
        from_json(ROWS, TRAINED, "objective")


def test_a_description_nested_without_end_is_refused():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InputError, match="nested too deep"):
        from_json(deep)


def test_what_cannot_be_read_is_not_written():
    optimizer = Optimizer(Schedule(1e-3, 0, 10))
    with pytest.raises(InputError, match="inf in an experiment"):
        to_json(dataclasses.replace(optimizer, rates=((".*", math.inf),)))


def test_random_trees_reach_no_call_outside_the_set():
    trees = Trees(seed=0, honest=[*map(to_json, OBJECTIVES.values()), ROWS, EXPERIMENT])
    assert set(FORBIDDEN) & {"bertjax.config.load_experiment", "bertjax.commands.main.main"}
    rebuilt = 0
    with audited() as events:
        for number in range(trees.count):
            tree = trees.draw()
            try:
                if number % 50:
                    value = from_json(tree)
                else:
                    with calls() as outside:
                        value = from_json(tree)
                    assert not outside, (outside, tree)
            except InputError:
                continue
            finally:
                assert not events, (events, tree)
            rebuilt += 1
            assert built_of_allowed(value), tree
    assert trees.count / 50 < rebuilt < trees.count  # neither is everything refused, nor nothing


EXPERIMENT = to_json(
    Experiment(
        MaskedLM(ENCODERS["bert"](), Masking(3, (4, 200))),
        Optimizer(Schedule(1e-3, 2, 10)),
        (Phase(10, 8, FullSentences("corpus", 16)),),
    )
)
