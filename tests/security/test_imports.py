"""No module of the current folder, and none that a data set names, is imported; no program of others is run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from bertjax.data.corpus import open_split
from bertjax.data.tfds_folders import check_data_set
from bertjax.errors import InputError
from bertjax.machine import xla_flags
from bertjax.machine.program_cache import cache_problem, without_foreign_programs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trapped(tmp_path):
    """Return a folder with a module for each one of Python's library, and some others: run, they leave a file."""
    folder = tmp_path / "trapped"
    folder.mkdir()
    others = ("jax", "jaxlib", "numpy", "tokenizers", "sentencepiece", "array_record", "zstandard")
    trap = f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__ + ' ')\nraise SystemExit(9)\n"
    for name in {*sys.stdlib_module_names, *others} - {*sys.builtin_module_names}:
        (folder / f"{name}.py").write_text(trap)
    yield folder
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


def command(folder, *words):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("PYTHONSAFEPATH", None)
    line = [sys.executable, "-m", "bertjax", *map(str, words)]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def test_a_command_runs_no_module_of_the_current_folder(trapped):
    assert command(trapped, "--version").returncode == 0


def test_workers_run_no_module_of_the_current_folder(trapped, tmp_path):
    (tmp_path / "text").write_text("A text.\n\nAnother one.\n")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\ntext\n")
    words = ["data", "build", tmp_path / "text", "--format", "sentences", "--tokenizer", tmp_path / "vocab.txt"]
    done = command(trapped, *words, "--out", tmp_path / "corpus", "--workers", "1")
    assert done.returncode == 0, done.stderr


def test_the_doctor_runs_no_module_of_the_current_folder(trapped):
    done = command(trapped, "doctor", "--json")
    assert json.loads(done.stdout)["facts"]["devices"]["platform"] == "cpu"


def features(name, inner="tensorflow_datasets.core.features.tensor_feature.Tensor"):
    return {"type": name, "proto_cls": "tensorflow_datasets.FeaturesDict",
            "content": {"features": {"type": {"pythonClassName": inner}}}}  # fmt: skip


DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
NAMES = {
    "at the top": features("trap.Thing"),
    "below": features(DICT, "trap.Thing"),
    "by another spelling": {"python_class_name": "trap.Thing"},
    "of a message": features(DICT) | {"proto_cls": "trap.Thing"},
    "in a list": {"content": [{"type": "trap.Thing"}]},
    "by a prefix": features("tensorflow_datasets_trap.Thing"),
}


@pytest.mark.parametrize("where", NAMES)
def test_a_data_set_names_no_module_of_others(where, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "mine" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(NAMES[where]))
    (folder / "dataset_info.json").write_text(json.dumps({"name": "mine", "version": "1.0.0"}))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("trap", "tensorflow_datasets_trap"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError, match=r"names the class '.*trap\.Thing', which TFDS would import"):
        open_split("mine", "train", str(tmp_path / "data"))


def test_a_data_set_has_no_link_that_leads_out(tmp_path):
    folder = tmp_path / "data" / "mine" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(features(DICT)))
    check_data_set("mine/config:1.0.0", str(tmp_path / "data"))
    (folder / "label.labels.txt").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="outside the folder"):
        check_data_set("mine", str(tmp_path / "data"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)


def shared(folder):
    folder.chmod(0o777)


def of_a_group(folder):
    folder.chmod(0o770)


def of_another_user(folder):
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    os.chown(folder, 12345, -1)


@pytest.mark.parametrize("change", [shared, of_a_group, of_another_user])
def test_programs_that_others_may_have_written_are_not_run(change, cache, monkeypatch):
    said = []
    assert not cache_problem(cache) and not without_foreign_programs()
    xla_flags.keep_compiled_programs(said.append)
    assert not said and jax.config.jax_compilation_cache_dir == str(cache)
    change(cache)
    xla_flags.keep_compiled_programs(said.append)
    assert jax.config.jax_compilation_cache_dir is None
    assert "JAX runs the programs in it: " in said[0] and str(cache) in said[0]
    assert without_foreign_programs() == said[0] and "JAX_COMPILATION_CACHE_DIR" not in os.environ
    monkeypatch.setattr(xla_flags, "accelerator_expected", lambda: True)
    monkeypatch.setattr(xla_flags, "cache_folder", lambda: cache)
    xla_flags.keep_compiled_programs(said.append)
    assert said[1] == said[0] and jax.config.jax_compilation_cache_dir is None
