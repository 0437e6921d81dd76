"""No name in a file becomes a path that its reader did not mean, and no file says what its reader does not expect."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from contract import small_bert
from hub_folders import own_model

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.export import convert
from bertjax.checkpoints.trained import load
from bertjax.config import Experiment, Phase
from bertjax.data.build import BuildSettings, build
from bertjax.data.corpus import split_sentences
from bertjax.data.records import read_manifest
from bertjax.data.rows import FullSentences
from bertjax.data.tokenizer import tokenizer_from_files
from bertjax.errors import InputError
from bertjax.finetuning.results import last_metrics, read_best, read_result, timing
from bertjax.masking import Masking
from bertjax.models.heads import PairHead
from bertjax.models.layers import TruncatedNormal
from bertjax.models.published import Published
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule
from bertjax.run.workdir import record_experiment
from bertjax.serialization.description import to_json

ROWS = FullSentences("corpus", 16)

OUTSIDE = (
    "../x", "/tmp/x", "a/b", "..", ".", ".bashrc", "vocab.txt/../../x", "x.sh", "a\\b.model", ".model", "\0", "é.model",
    "../x.model", "-/x.model", "config.json\n", "", "x" * 200 + ".model",
)  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer):
    """Export a model, whose description the tests change."""
    encoder = small_bert(V=tokenizer.vocabulary.size, D=8, H=1, F=8, N=1)
    model = Published(encoder, (("classify", PairHead(8, 2, TruncatedNormal(0.02), "float32")),), labels=("a", "b"))
    made = own_model(model, tokenizer)
    folder = tmp_path_factory.mktemp("exported") / "model"
    checkpoint.export(folder, made.params, experiment={"objective": to_json(model)}, tokenizer=tokenizer)
    return folder


@pytest.fixture
def changed(exported, tmp_path):
    """Return a function that copies the model with another `info`, whose digest fits."""

    def change(edit):
        folder = tmp_path / "model"
        shutil.copytree(exported, folder)
        path = folder / "info/metadata"
        info = json.loads(path.read_text())["info"]
        info = edit(info) or info
        digest = hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({"digest": digest, "info": info}))
        return folder

    return change


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_tokenizer_has_files_of_fixed_names(tokenizer, name):
    with pytest.raises(InputError, match="which no tokenizer has"):
        tokenizer_from_files({**tokenizer.files, name: b"x"}, origin="it")


def test_a_checkpoint_writes_no_file_outside_of_the_new_folder(changed, tmp_path):
    for name in ("../outside", str(tmp_path / "absolute"), "script.sh"):
        folder = changed(lambda info: info["tokenizer"].update({name: base64.b64encode(b"x").decode()}))  # noqa: B023
        before = {*tmp_path.rglob("*")}
        for to in ("bertjax", "huggingface"):
            with pytest.raises(InputError, match="which no tokenizer has"):
                convert(folder, tmp_path / "new", to=to)
        assert {*tmp_path.rglob("*")} == before
        shutil.rmtree(folder)


EDITS = {
    "no objective": (lambda info: info["experiment"].pop("objective"), "has no objective"),
    "a list for the objective": (lambda info: info["experiment"].update(objective=[]), "objective is a list"),
    "code for the objective": (
        lambda info: info["experiment"].update(objective={"function": "bertjax.commands.main.main"}),
        "objective names 'bertjax.commands.main.main'"),
    "a list for the tokenizer": (lambda info: info.update(tokenizer=[]), "info.tokenizer is a list"),
    "no base64": (lambda info: info["tokenizer"].update({"vocab.txt": "é"}), "a file of its tokenizer"),
    "numbers for checksums": (lambda info: info.update(checksums={"params": {"x": 1}}), "is 1, not a text"),
    "escapes for the name of an array": (
        lambda info: info.update(checksums={"params": {"\x1b]0;\u202e": 1}}), r"'\\x1b\]0;\\u202e' is 1, not a text"),
    "no checksums": (lambda info: info.update(checksums={}), "the checksum of .* does not fit"),
    "an unknown entry": (lambda info: info.update(x=1), "info has 'x'"),
    "an unknown entry of the experiment": (lambda info: info["experiment"].update(x=1), "experiment has 'x'"),
    "an architecture that is a list": (
        lambda info: info["experiment"].update(architecture=[]), "architecture is a list"),
    "rows of another kind": (
        lambda info: info["experiment"].update(phases=[{"rows": {"type": "bertjax.config.Run"}}]), "rows is the type"),
    "an unknown family": (
        lambda info: info["experiment"].update(huggingface={"config": {"model_type": "x"}}), "model_type='x'"),
    "another dtype": (
        lambda info: info["experiment"].update(huggingface={"dtypes": {"x": "F8"}}), "is 'F8', not one of"),
    "a head of another width": (
        lambda info: info["experiment"]["objective"]["named_heads"][0][1].update(D=9), "cannot be built"),
    "a vocabulary of gigabytes": (
        lambda info: info["experiment"]["objective"]["encoder"].update(V=2**23), "would take .* bytes"),
    "a list": (lambda info: [info], "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_a_checkpoint_that_is_not_of_its_types_is_refused(name, changed):
    edit, problem = EDITS[name]
    with pytest.raises(InputError, match=problem):
        load(changed(lambda info: edit(info) if name == "a list" else (edit(info), None)[1]))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[" * 10**6, "nested more than"),
        (b'{"digest": "a", "digest": "b"}', "names 'digest' twice"),
        (b'{"digest": 1e999, "info": {}}', "1e999 is not finite"),
        (b" " * 50_000_000, "no real one is over"),
    ],
    ids=("nested", "twice", "infinite", "large"),
)
def test_a_description_beyond_the_bounds_of_json_is_refused(exported, tmp_path, content, problem):
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "info/metadata").write_bytes(content)
    with pytest.raises(InputError, match=problem):
        load(folder)


def test_metadata_of_arrays_beyond_the_bounds_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "params/_METADATA").write_bytes(b"[" * 10**6)
    with pytest.raises(InputError, match="nested more than"):
        load(folder)


def test_only_digits_are_the_name_of_a_checkpoint(tmp_path):
    for name in ("²", "٣", "1_0", "+1", "9" * 200, "0x1"):
        (tmp_path / name).mkdir()
    assert checkpoint.finished_steps(tmp_path) == []
    (tmp_path / "12").mkdir()
    assert checkpoint.latest_step(tmp_path).name == "12"


MANIFESTS = {
    "a split that is a path": (lambda m: m["splits"].update({"../../x": m["splits"]["train"]}), "a key of splits is"),
    "a negative count": (lambda m: m["splits"]["train"][0].update(tokens=-1), "tokens"),
    "a text for a count": (lambda m: m["splits"]["train"][0].update(tokens="1"), "tokens is '1', not an integer"),
    "10**30 tokens": (lambda m: m["splits"]["train"][0].update(tokens=10**30), "tokens is 10"),
    "a list for splits": (lambda m: m.update(splits=[]), "splits is a list"),
    "two digests": (lambda m: m["splits"]["train"][0].update(sha256=["a", "b"]), "sha256 is a list of 2"),
    "a vocabulary of texts": (lambda m: m["vocabulary"].update(size="x"), "size is 'x'"),
    "another field": (lambda m: m["vocabulary"].update(x=1), "vocabulary has 'x'"),
    "a list for dropped": (lambda m: m.update(dropped=[1]), "dropped is a list"),
    "another format": (lambda m: m.update(format="2"), "has format"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_is_not_of_its_types_is_refused(name, corpus, tmp_path):
    edit, problem = MANIFESTS[name]
    manifest = json.loads((Path(corpus) / "manifest.json").read_text())
    edit(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=problem):
        read_manifest(tmp_path)


def test_progress_that_is_not_of_its_types_is_refused(tokenizer, tmp_path):
    shard = {"tokens": 1, "sentences": 1, "documents": 1, "sha256": ["a", "b", "c"]}
    for progress, problem in (
        ({"settings": {}, "shards": [{"../../x": shard}]}, "a key of shards.0 is '../../x'"),
        ({"settings": {}, "shards": [{"train": shard | {"tokens": []}}]}, "tokens is a list"),
        ({"settings": [], "shards": []}, "settings is a list"),
        ({"settings": {}, "read": "1"}, "read is '1'"),
        ({"settings": {}, "x": 1}, "has 'x'"),
        ([], "not a JSON object"),
    ):
        (tmp_path / "progress.json").write_text(json.dumps(progress))
        with pytest.raises(InputError, match=rf"progress\.json is damaged .*{re.escape(problem)}"):
            build([], tokenizer, tmp_path, BuildSettings(split_sentences, 0.1))


def test_the_result_of_a_seed_names_its_own_folder_and_is_of_its_types(tmp_path):
    path = tmp_path / "seed-1" / "result.json"
    path.parent.mkdir()
    best = {"step": 1, "metrics": {"f1": 0.5}}
    result = {"seed": 1, "best": best, "last": {"f1": float("nan")}, "step_ms": 1.5}
    path.write_text(json.dumps(result))
    assert read_result(path, "f1")["best"] == best
    for changes, problem in (
        ({"seed": "../../x"}, "seed is '../../x'"),
        ({"seed": 2}, "it is of seed 2"),
        ({"seed": True}, "seed is True"),
        ({"best": {"step": 1}}, "best"),
        ({"best": {"step": 1, "metrics": {"f1": "x"}}}, "best"),
        ({"last": []}, "last is a list"),
        ({"last": {"f1": "../x"}}, "last.'f1' is '../x'"),
        ({"last": {}}, "has no f1"),
        ({"x": 1}, "has 'x'"),
    ):
        path.write_text(json.dumps(result | changes))
        with pytest.raises(InputError, match=rf"is damaged: delete the folder .*seed-1, and .*{re.escape(problem)}"):
            read_result(path, "f1")


def test_logs_that_are_not_of_their_types_are_refused(tmp_path):
    (tmp_path / "best.json").write_text('{"step": "../x", "metrics": {}}')
    with pytest.raises(InputError, match=r"best\.json is damaged: delete the folder .*, and the same .*step is"):
        read_best(tmp_path / "best.json")
    (tmp_path / "timing.jsonl").write_text('{"step_ms": "x"}\n')
    with pytest.raises(InputError, match="step_ms is 'x'"):
        timing(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "validation/f1": ["x"]}\n')
    with pytest.raises(InputError, match="'f1' is a list"):
        last_metrics(tmp_path)


def test_an_experiment_of_a_run_that_is_not_of_its_types_is_refused(tmp_path):
    experiment = Experiment(
        MaskedLM(small_bert(), Masking(3, (4, 200))), Optimizer(Schedule(1e-3, 0, 2)), (Phase(2, 8, ROWS),)
    )
    path, described = tmp_path / "experiment.json", to_json(experiment)
    path.write_text(json.dumps(described))
    record_experiment(tmp_path, experiment)
    for changes, problem in (
        ({"phases": [1]}, "phases.0 is 1"),
        ({"phases": [{"rows": []}]}, "rows is a list"),
        ({"counters": [1]}, "counters is a list"),
        ({"type": ["bertjax.config.Experiment"]}, "type is a list"),
        ({"x": 1}, "has 'x'"),
        ({"seed": 10**30}, "seed is 10"),
    ):
        path.write_text(json.dumps(described | changes))
        with pytest.raises(InputError, match=rf"experiment\.json is damaged \(.*{re.escape(problem)}"):
            record_experiment(tmp_path, experiment)
    path.write_text(json.dumps(described | {"counters": {"type": "bertjax.optim.optimizer.Optimizer"}}))
    with pytest.raises(InputError, match="counters is the type"):
        record_experiment(tmp_path, experiment)
