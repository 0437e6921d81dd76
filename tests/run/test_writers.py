import json
import os
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertjax.errors import InputError
from bertjax.run import local_files
from bertjax.run.local_files import LocalFiles
from bertjax.run.writers import (
    Lines,
    Log,
    Progress,
    Timing,
    dropped_at_an_error,
    duration,
    tensorboard_writer,
    wandb_writer,
)


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_resumed_log_drops_lines_after_the_checkpoint(tmp_path):
    log = Log(tmp_path, 0)
    for step in (1, 2, 3):
        log(step, {"loss": step / 4})
    log(2, {"validation/loss": 1.0})
    Log(tmp_path, 2)(3, {"loss": 9.0})
    assert lines(tmp_path) == [
        {"step": 1, "loss": 0.25},
        {"step": 2, "loss": 0.5},
        {"step": 2, "validation/loss": 1.0},
        {"step": 3, "loss": 9.0},
    ]


def test_a_log_line_truncated_by_a_kill_is_dropped(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    Log(tmp_path, 5)(3, {"loss": 2.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 3, "loss": 2.0}]


def test_timing_is_kept_apart_with_the_hour(tmp_path):
    Timing(tmp_path)(5, {"tokens_per_second": 1.5})
    Timing(tmp_path)(6, {"tokens_per_second": 2.5})
    found = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [(line["step"], line["tokens_per_second"]) for line in found] == [(5, 1.5), (6, 2.5)]
    assert found[0]["time"] <= found[1]["time"] and not (tmp_path / "log.jsonl").exists()


def test_tensorboard_gets_every_scalar(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    write = tensorboard_writer(tmp_path)
    write(3, {"loss": 1.5, "accuracy/mlm": 0.25})
    write(4, {"loss": 1.25})
    (path,) = (tmp_path / "tensorboard").iterdir()
    found = {
        (event.step, value.tag, value.tensor.float_val[0])
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    }
    assert found == {(3, "loss", 1.5), (3, "accuracy/mlm", 0.25), (4, "loss", 1.25)}


def test_wandb_is_one_run_however_often_it_is_resumed(tmp_path, monkeypatch):
    """Against a stand-in of the library: what it is called with."""
    calls, values = [], []

    class Run:
        def log(self, given, step):
            values.append((step, given))

    class Stand:
        class util:
            generate_id = staticmethod(lambda: f"id{len(calls)}")

        @staticmethod
        def init(**options):
            calls.append(options)
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Stand)
    wandb_writer(tmp_path, "mine", {"seed": 1})(3, {"loss": 1.0})
    wandb_writer(tmp_path, "mine", {"seed": 1})(4, {"loss": 0.5})
    assert values == [(3, {"loss": 1.0}), (4, {"loss": 0.5})]
    assert [call["id"] for call in calls] == ["id0", "id0"] and {call["resume"] for call in calls} == {"allow"}
    assert calls[0]["config"] == {"seed": 1} and {call["project"] for call in calls} == {"mine"}


def test_wandb_gets_no_path_and_nothing_of_the_machine_unless_asked(tmp_path, monkeypatch):
    given = []
    library = SimpleNamespace(
        util=SimpleNamespace(generate_id=lambda: "abc"), init=lambda **options: given.append(options)
    )
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setenv("WANDB_CONSOLE", "auto")
    experiment = {"init": "/home/me/a:encoder", "phases": [{"rows": {"corpus": "gs://ours/wiki/"}}], "seed": 3}
    wandb_writer(tmp_path, "mine", experiment)
    assert given[0]["config"] == {"init": "a:encoder", "phases": [{"rows": {"corpus": "wiki"}}], "seed": 3}
    settings = given[0]["settings"]
    assert (
        settings["x_disable_meta"] and settings["disable_git"] and settings["host"] == "" and "console" not in settings
    )
    (tmp_path / "wandb_id").write_text("../x")
    with pytest.raises(InputError, match="is not the name of a run"):
        wandb_writer(tmp_path, "mine", experiment)


@pytest.mark.parametrize(
    ("module", "writer"),
    [("tensorboard.summary", tensorboard_writer), ("wandb", lambda path: wandb_writer(path, "p", {}))],
)
def test_a_writer_without_its_library_says_how_to_install_it(tmp_path, monkeypatch, module, writer):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"needs the extra: pip install"):
        writer(tmp_path)


def test_progress_shows_its_first_line_on_a_machine_that_has_just_started(capsys, monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 3.0)
    Progress(every_seconds=1000.0).line("step 0")
    assert capsys.readouterr().err == "step 0\n"


def test_progress_shows_a_line_now_and_then_and_says_what_must_stay(capsys):
    progress = Progress(every_seconds=1000.0)
    for step in range(5):
        progress.line(f"step {step}")
    progress.say("done")
    assert capsys.readouterr().err == "step 0\ndone\n"


def test_durations_are_read_as_clocks_are():
    assert [duration(seconds) for seconds in (5, 65, 3605.9, 90000)] == ["0:05", "1:05", "1:00:05", "25:00:00"]


@contextmanager
def standard_error(stream):
    """Replace standard error; what is left in its buffer goes nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setattr(sys, "__stderr__", stream)
        yield
    if stream is not None and not stream.closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        stream.close()


@pytest.fixture
def pipe():
    """Make a pipe: (its read end, the stream of its write end)."""
    read, write = os.pipe()
    yield read, os.fdopen(write, "w", buffering=1)
    with suppress(OSError):
        os.close(read)


def messages(folder):
    return [line[20:] for line in (folder / "messages.log").read_text().splitlines()]


def test_messages_go_on_into_the_log_where_the_reader_of_standard_error_is_gone(tmp_path, pipe):
    with standard_error(pipe[1]):
        progress = Progress(0.0)
        progress.keep(tmp_path / "messages.log")
        progress.say("first")
        os.close(pipe[0])
        progress.say("second")
        progress.line("a line of progress")
        progress.say("third\nof two lines")
    lost = "messages are kept here alone, since standard error takes none: [Errno 32] Broken pipe"
    assert messages(tmp_path) == ["first", "second", lost, "third", "of two lines"]


def test_nothing_waits_for_a_reader_that_does_not_read(tmp_path, pipe):
    begun = time.monotonic()
    with standard_error(pipe[1]):
        progress = Progress(0.0)
        progress.keep(tmp_path / "messages.log")
        for _ in range(100):
            progress.line("x" * 3000)
        progress.say("kept")
        assert time.monotonic() - begun < 5 and messages(tmp_path)[-1] == "kept"
        assert "its reader does not read" in messages(tmp_path)[0]
        os.read(pipe[0], 2**20)
        progress.say("shown again")
        assert b"shown again" in os.read(pipe[0], 2**20)


@pytest.mark.parametrize("kind", ["closed", "none", "full"])
def test_closed_and_full_standard_error_are_noted_once_and_raise_nothing(tmp_path, kind):
    stream = None if kind == "none" else Path("/dev/full").open("w")  # noqa: SIM115 closed below
    if kind == "closed":
        stream.close()
    with standard_error(stream):
        progress = Progress()
        progress.line("before the work directory is known")
        progress.keep(tmp_path / "messages.log")
        progress.say("x")
    assert len(messages(tmp_path)) == 2 and messages(tmp_path)[1] == "x"


def test_lines_of_the_log_wait_while_the_disk_is_full_and_none_is_lost_or_torn(tmp_path, monkeypatch):
    said, write, room = [], os.write, [10**6]

    def limited(descriptor, content):
        if not room[0]:
            raise OSError(28, "No space left on device")
        count = write(descriptor, content[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(os, "write", limited)
    log = Log(tmp_path, 0, said.append)
    log(1, {"loss": 1.0})
    room[0] = 9
    log(2, {"loss": 2.0})
    log(3, {"loss": 3.0})
    room[0] = 10**6
    log(4, {"loss": 4.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert ["cannot be written" in text for text in said] == [True, False] and "complete again" in said[1]


def test_lines_in_a_folder_that_is_gone_for_a_while_come_later(tmp_path):
    write = Lines(tmp_path / "away" / "lines", lambda text: None)
    write("a\n")
    (tmp_path / "away").mkdir()
    write("b\n")
    assert (tmp_path / "away" / "lines").read_text() == "a\nb\n"


@pytest.mark.parametrize("at", ["made", "used"])
def test_a_writer_that_raises_is_dropped_with_a_message(at):
    said, calls = [], []

    def make():
        if at == "made":
            raise ConnectionError("the server is away")

        def write(step, values):
            calls.append(step)
            raise RuntimeError("full")

        return write

    write = dropped_at_an_error("W&B", make, said.append)
    write(1, {})
    write(2, {})
    assert len(said) == 1 and "nothing more is written to W&B" in said[0] and calls == [1] * (at == "used")


@pytest.mark.parametrize("error", [RuntimeError, ValueError, OSError, InputError])
def test_logs_that_are_not_uploaded_end_no_run(tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise error("checksum")

    said = []
    monkeypatch.setattr("bertjax.run.local_files.files.upload", fail)
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "log.jsonl").write_text("{}")
    local = LocalFiles(tmp_path / "local", tmp_path / "workdir", SimpleNamespace(say=said.append))
    assert not local.upload("messages*.log") or not said
    local.end()
    assert "were not uploaded: checksum" in said[0] and (tmp_path / "local" / "log.jsonl").exists()
    for name in ("bertjax-run-a", "bertjax-run-b", "bertjax-run-c"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    os.utime((tmp_path / "local").rename(tmp_path / "bertjax-run-d"), (0, 0))
    (tmp_path / "bertjax-run-e").mkdir()  # of a run that begins at this moment
    (tmp_path / "bertjax-run-f").symlink_to(tmp_path / "workdir")
    held = local_files._locked(tmp_path / "bertjax-run-b")
    local_files._delete_left(tmp_path)
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["b", "d", "e", "f"]
    os.close(held)
