"""A typo is answered with the name that was meant."""

import re
import sys

import pytest

from bertjax.commands.main import main
from bertjax.config import load_experiment
from bertjax.errors import InputError
from bertjax.experiment_files import find_experiment
from bertjax.nearest import did_you_mean, nearest
from bertjax.tasks.reading import require_columns
from bertjax.tasks.table import find_task

NAMES = ["size", "data", "batch_size", "learning_rate", "weight_decay", "warmup", "fill-mask"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lr", "learning_rate"), ("bs", "batch_size"), ("wd", "weight_decay"), ("batch", "batch_size"),
        ("Size", "size"),
        ("fillmask", "fill-mask"), ("warmpu", "warmup"), ("sizes", "size"), ("zzz", ""), ("d", ""), ("", ""),
    ],
)  # fmt: skip
def test_the_nearest_name_is_found_by_spelling_initials_and_beginning(word, meant):
    assert nearest(word, NAMES) == meant
    assert did_you_mean(word, NAMES, "; ") == (f"; did you mean {meant!r}?" if meant else "")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["predit"], "did you mean 'predict'"),
        (["train", "bert"], "did you mean 'pretrain'"),
        (["pretrain", "bert", "--workdr", "x"], "--workdr: did you mean '--workdir'"),
        (["pretrain", "bert", "--size", "base", "--workdir", "x"], "without dashes, as size=VALUE"),
        (["plan", "bert", "--topolgy", "v5e:4x4"], "bertjax plan: error: unrecognized arguments.*mean '--topology'"),
        (["predict", "fillmask", "--model", "x"], "did you mean 'fill-mask'"),
        (["data", "biuld"], "did you mean 'build'"),
        (["tokenizer", "inspct"], "did you mean 'inspect'"),
        (["convert", "a", "b", "--to", "hugginface"], "did you mean 'huggingface'"),
        (["evaluate", "--model", "a", "--splt", "x"], "--splt: did you mean '--split'"),
        (["evaluate", "taks", "sst2"], "did you mean 'task'"),
    ],
)
def test_commands_and_options_that_do_not_exist_are_answered_with_the_nearest(given, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bertjax", *given])
    with pytest.raises(SystemExit) as stopped:
        main(given)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_so_are_settings_experiments_tasks_and_columns(tmp_path):
    for overrides, meant in (
        (["lr=1"], "learning_rate"),
        (["size=tny"], "tiny"),
        (["optimizer.lr=1"], "learning_rate"),
    ):
        with pytest.raises(InputError, match=f"did you mean '{meant}'"):
            load_experiment("bert", overrides)
    for name in ("brt", "experimnts/bert.py"):
        with pytest.raises(InputError, match=r"did you mean 'bert'\?$"):
            find_experiment(name)
    (tmp_path / "mine.py").touch()
    with pytest.raises(InputError, match=r"did you mean '.*mine\.py'"):
        find_experiment(tmp_path / "main.py")
    with pytest.raises(InputError, match="did you mean 'sst2'"):
        find_task("sst")
    with pytest.raises(InputError, match="no column 'txt' among text, label: did you mean 'text'"):
        require_columns("a.csv:2", {"text": "x", "label": "y"}, ("txt",))


def test_a_name_of_one_letter_is_not_the_beginning_of_another():
    assert nearest("sentence", ["", "s", "label"]) == ""
