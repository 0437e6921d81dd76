import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertjax import exits
from bertjax.commands import main, training
from bertjax.errors import InputError, PassingError, ProcessFailed
from bertjax.run import leaving, processes


def test_every_code_is_in_the_table_of_the_docs_and_in_that_of_the_watcher():
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    names = [name for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)]
    assert codes == exits.EXITS.keys() and len(codes) == len(names)
    text = Path("docs/runs.md").read_text()
    for code, ending in exits.EXITS.items():
        assert f"| {code} | {ending.meaning} | {'yes' if ending.again else 'no'} |\n" in text
    assert runpy.run_path("bertjax/exits.py")["EXITS"] == exits.EXITS


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (PassingError("x"), 75),
        (FloatingPointError("x"), 1),
        (ProcessFailed("x"), 70),
        (ProcessFailed("x", 75), 75),
        (FileNotFoundError(2, "no such file", "x"), 2),
        (OSError(28, "no space left"), 70),
        (BrokenPipeError(), 70),
        (ConnectionResetError(), 70),
        (ZeroDivisionError("x"), 70),
        (KeyboardInterrupt(), 81),
    ],
)
def test_a_run_that_raises_ends_with_the_code_of_the_error(error, code, monkeypatch, capsys):
    def fails(options):
        raise error

    monkeypatch.setattr(training, "_pretrain", fails)
    monkeypatch.setattr(training, "TRAIN", (fails,))
    assert main.main(["pretrain", "bert", "--workdir", "x"]) == code
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, ZeroDivisionError)


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", ">&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | true"])
def test_output_that_nobody_reads_changes_no_exit_code(where):
    command = f"{sys.executable} -m bertjax pretrain nothing --workdir x {where}; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", command]).returncode == 2


def test_reads_that_go_on_after_a_failure_print_no_tracebacks(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "__unraisablehook__", told.append)
    closed, other = (SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "other"))
    main._tell_of_unraisable(closed)
    main._tell_of_unraisable(other)
    assert told == [other]


@pytest.mark.parametrize("given", [["evaluate", "--model", "x"], ["evaluate", "task", "sst2", "--model", "x"]])
def test_an_evaluation_that_fails_on_one_of_two_processes_tells_the_others_and_ends(given, monkeypatch):
    def fails(*arguments, **more):
        raise ZeroDivisionError("the rows of this process")

    told, ended = [], []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(processes, "join", lambda: None)
    monkeypatch.setattr(processes, "raising_on_all", nullcontext)
    monkeypatch.setattr(processes, "_publish_failure", lambda code, text: told.append((code, text)))
    monkeypatch.setattr("bertjax.sharding.mesh.held_rows", fails)
    monkeypatch.setattr("bertjax.inference.score.score", fails)
    monkeypatch.setattr("bertjax.checkpoints.trained.load", lambda *arguments: SimpleNamespace(objective=None))
    monkeypatch.setattr("bertjax.inference.compatible.check_tokenizer", lambda *arguments: None)
    monkeypatch.setattr("bertjax.machine.xla_flags.keep_compiled_programs", lambda say: None)
    monkeypatch.setattr(training, "_model_and_rows", lambda options: (None, None))
    monkeypatch.setattr(leaving, "_decided", [])
    monkeypatch.setattr(leaving, "end_within", lambda seconds, code: ended.append((seconds, code)))
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(sys, "argv", ["bertjax", *given, *(["--data", "x"] if "task" in given else [])])
    assert main.main() == 70
    assert [code for code, _ in told] == [70] and "the rows of this process" in told[0][1]
    assert ended == [(10, 70)]
