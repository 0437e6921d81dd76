"""The commands as a user types them, on good and on bad input: one line, exit code 2, nothing lost."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from texts import WORDS

from bertjax.commands.main import _parse, main
from bertjax.errors import InputError
from bertjax.run import processes

TINY = ["experiments/smoke.py", "steps=4", "batch_size=8", "length=32"]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(capsys, message, *arguments):
    """Run a command that must fail with one line that says `message`."""
    code, out, err = run(capsys, *arguments)
    last = err.strip().splitlines()[-1]
    assert code == 2 and not out
    assert last.startswith("bertjax: ") and re.search(message, last), err
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def wiki(tmp_path_factory):
    """Write 60 documents in WikiExtractor's form."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("wiki") / "wiki"
    folder.mkdir()
    for part in range(2):
        lines = []
        for number in range(30):
            lines += [f'<doc id="{number}" url="u" title="t">', f"Title {number}", ""]
            for _ in range(6):
                lines.append(" ".join(rng.choice(WORDS, 12)).capitalize() + ". " + "The year was good.")
            lines += ["</doc>", ""]
        (folder / f"wiki_{part:02}").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def built(wiki, tmp_path_factory):
    """Train a vocabulary, build a corpus, train a model: (tokenizer, corpus, run)."""
    folder = tmp_path_factory.mktemp("built")
    vocabulary, corpus, work = (folder / name for name in ("tokenizer", "corpus", "run"))
    tokenizer = ["tokenizer", "train", wiki, "--format", "wikiextractor", "--size", 200, "--lowercase"]
    build = ["data", "build", wiki, "--format", "wikiextractor", "--tokenizer", vocabulary / "vocab.txt"]
    for command in (
        [*tokenizer, "--out", vocabulary],
        [*build, "--holdout", 0.2, "--workers", 0, "--out", corpus],
        ["pretrain", *TINY, f"data={corpus}", "run.profile=2,3", "--workdir", work],
    ):
        assert main([str(argument) for argument in command]) == 0
    return vocabulary, corpus, work


def test_the_whole_path_from_text_to_a_filled_mask(built, capsys):
    vocabulary, corpus, work = built
    code, out, _ = run(capsys, "evaluate", "--model", work, "--json")
    values = json.loads(out)
    assert code == 0 and {"loss", "loss/mlm", "loss/pair", "unigram_entropy/mlm", "accuracy/mlm"} <= values.keys()
    logged = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()][-1]
    code, out, _ = run(capsys, "predict", "fill-mask", "--model", work, "The [MASK] was [MASK].", "A [MASK].", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [len(line["masks"]) for line in lines] == [2, 1]
    for guesses in lines[0]["masks"]:
        probabilities = [guess["probability"] for guess in guesses]
        assert len(guesses) == 5 and probabilities == sorted(probabilities, reverse=True) and sum(probabilities) < 1
    assert "of device time a step" in (work / "profile" / "summary.txt").read_text()
    assert logged["step"] == 4 and (vocabulary / "vocab.txt").exists()
    code, out, _ = run(capsys, "data", "inspect", corpus)
    assert code == 0 and re.search(r"documents +60\n", out) and "unknown_rate" in out and "fertility" in out


def test_masks_are_filled_from_standard_input_in_order(built, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("good [MASK]\n\n[MASK] day\n"))
    code, out, _ = run(capsys, "predict", "fill-mask", "--model", built[2], "--top", 2)
    assert code == 0
    assert [line for line in out.splitlines() if "[MASK]" in line] == ["good [MASK]", "[MASK] day"]


def test_plan_prints_published_counts(capsys):
    code, out, _ = run(capsys, "plan", "experiments/bert.py", "size=tiny", "--json")
    values = json.loads(out)
    assert code == 0 and values["params"] == 4433468 == sum(values["params_by_group"].values())
    assert values["flops_per_token"] > 6 * 396544


def test_overrides_may_stand_before_and_after_options(capsys):
    given = ["--json", "size=tiny", "cased=true"]
    for words in (given, [*given[1:], given[0]], [given[1], given[0], given[2]]):
        options = _parse(["plan", "experiments/bert.py", *words])
        assert options.json and options.override == ["size=tiny", "cased=true"]
    code, out, _ = run(capsys, "plan", "experiments/bert.py", *words)
    assert code == 0 and json.loads(out)["params"] == 4_433_468 - (30522 - 28996) * (128 + 1)
    for words in (["plan", "experiments/bert.py", "--jsn"], ["data", "inspect", "corpus", "more"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2 and "unrecognized arguments: " in capsys.readouterr().err


def test_every_command_has_help_with_an_example(capsys):
    for command in (
        "pretrain",
        "evaluate",
        "plan",
        "predict fill-mask",
        "data build",
        "data inspect",
        "tokenizer train",
        "doctor",
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*command.split(), "--help"])
        assert stopped.value.code == 0 and f"example: bertjax {command}" in " ".join(capsys.readouterr().out.split())


def build_command(text, out, *more, form="sentences", tokenizer="tokenizer"):
    return ["data", "build", text, "--format", form, "--tokenizer", tokenizer, "--workers", "0", "--out", out, *more]


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        (b"good day\n\xff\xfe bad\n", "sentences", r"text:2: not UTF-8 \(byte 0xff\): convert it"),
        (b"good\0day\n", "plain", r"text:1: a NUL byte: is this a text file"),
        (
            b"good day. " * 120_000,
            "plain",
            r"text:1: a line of over 1000000 bytes: split it, or increase --longest-line",
        ),
        (b" \n\t\n", "plain", r"text:1: a document without text"),
        (b"\n\n", "sentences", r"text: no document in the file"),
        (b'<doc id="1">\nT\n', "wikiextractor", r"never closed: the file is truncated"),
        (b"just text\n", "wikiextractor", r"text:1: text outside <doc>"),
        (b'{"text": 3}\n', "jsonl", r"text:1: no text in field 'text': name it with --text-field"),
        (b"{oops\n", "jsonl", r"text:1: not JSON"),
    ],
)
def test_bad_text_is_named_or_skipped_and_counted(content, form, message, tmp_path, tokenizer_folder, capsys):
    text = tmp_path / "in" / "text"
    text.parent.mkdir()
    text.write_bytes(content)
    good = tmp_path / "in" / "zgood"
    good.write_text(
        {"jsonl": '{"text": "good day"}', "wikiextractor": '<doc id="1">\ngood day\n</doc>'}.get(form, "good day")
    )
    command = build_command(text.parent, tmp_path / "corpus", form=form, tokenizer=tokenizer_folder)
    fails(capsys, message + r".*\(or skip such input with --skip-bad\)", *command)
    code, out, _ = run(
        capsys,
        *build_command(
            text.parent, tmp_path / "corpus2", "--skip-bad", "--json", form=form, tokenizer=tokenizer_folder
        ),
    )
    assert code == 0 and json.loads(out)["documents"] == 1 and sum(json.loads(out)["dropped"].values()) == 1


def test_missing_and_empty_input_is_named(tmp_path, tokenizer_folder, capsys):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "corpus"
    fails(capsys, "no file or folder .*nowhere", *build_command(tmp_path / "nowhere", out, tokenizer=tokenizer_folder))
    fails(capsys, "folder .*empty is empty", *build_command(tmp_path / "empty", out, tokenizer=tokenizer_folder))
    fails(capsys, "no tokenizer at .*nowhere", *build_command(tmp_path, out, tokenizer=tmp_path / "nowhere"))
    fails(capsys, "holds no tokenizer", *build_command(tmp_path, out, tokenizer=tmp_path / "empty"))
    (tmp_path / "blank").write_text("\n")
    fails(capsys, "no documents to build from: 1 were skipped",
          *build_command(tmp_path / "blank", out, "--skip-bad", tokenizer=tokenizer_folder))  # fmt: skip


def test_resuming_a_build_with_another_reader_is_refused(tmp_path, tokenizer_folder, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "good day"}\n' * 40_000 + "broken")  # behind finished shards
    command = build_command(tmp_path / "in.jsonl", tmp_path / "corpus", form="jsonl", tokenizer=tokenizer_folder)
    command += ["--shard-tokens", 100]
    fails(capsys, r"in.jsonl:40001: not JSON", *command)
    fails(capsys, "unfinished build with another input", *command, "--text-field", "body")
    plain = build_command(tmp_path / "in.jsonl", tmp_path / "corpus", form="plain", tokenizer=tokenizer_folder)
    plain += ["--shard-tokens", 100]
    fails(capsys, "unfinished build with another input", *plain)


def test_a_vocabulary_without_a_mask_is_named(tmp_path, capsys):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    (tmp_path / "text").write_text("a\n")
    command = build_command(tmp_path / "text", tmp_path / "corpus", tokenizer=tmp_path / "vocab.txt")
    fails(capsys, r"vocab.txt has no \[MASK\] nor <mask>", *command)


def test_wrong_corpora_are_named(built, tmp_path, tokenizer_folder, capsys):
    _, corpus, work = built
    (tmp_path / "text").write_text("\n\n".join(["good day"] * 30))
    other = tmp_path / "other"
    assert run(capsys, *build_command(tmp_path / "text", other, "--holdout", 0.3, tokenizer=tokenizer_folder))[0] == 0
    fails(capsys, "already contains a corpus", *build_command(tmp_path / "text", other, tokenizer=tokenizer_folder))
    fails(capsys, "built with another tokenizer than the model's", "evaluate", "--model", work, "--data", other)
    fails(capsys, "no corpus given: build one", "pretrain", "experiments/bert.py", "--workdir", tmp_path / "run")
    fails(
        capsys, "is not a corpus", "pretrain", "experiments/bert.py", f"data={tmp_path}", "--workdir", tmp_path / "run"
    )
    fails(capsys, "no test split", "evaluate", "--model", work, "--split", "test")
    fails(capsys, "no checkpoint in", "evaluate", "--model", corpus)
    assert not (tmp_path / "run").exists()


def test_wrong_experiments_and_overrides_are_named(built, tmp_path, capsys):
    corpus = f"data={built[1]}"
    work = ["--workdir", tmp_path / "run"]
    fails(capsys, "no experiment file", "pretrain", "experiments/brt.py", *work)
    fails(capsys, "did you mean 'steps'", "pretrain", TINY[0], corpus, "step=3", *work)
    fails(capsys, "'x' is not of type int", "pretrain", TINY[0], corpus, "steps=x", *work)
    fails(capsys, "does not divide over 8 devices", "pretrain", *TINY[:2], "batch_size=12", corpus, *work)
    fails(capsys, "exceed the 512 positions", "pretrain", *TINY[:3], "length=600", corpus, *work)
    fails(capsys, "give the first and the last step", "pretrain", TINY[0], corpus, "run.profile=3,2", *work)
    fails(capsys, "another experiment: .*steps is 4 there, 5 here", "pretrain", TINY[0], "steps=5", *TINY[2:], corpus,
          "--workdir", built[2])  # fmt: skip
    fails(capsys, r"experiments/smoke.py needs data=…", "pretrain", TINY[0], *work)


def test_a_damaged_checkpoint_is_named_with_the_fix(built, tmp_path, capsys):
    import shutil

    work = tmp_path / "run"
    shutil.copytree(built[2], work)
    data = max(
        (work / "checkpoints" / "4" / "params").rglob("*"),
        key=lambda path: path.stat().st_size if path.is_file() else 0,
    )
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    command = ["pretrain", *TINY, f"data={built[1]}", "--workdir", work]
    fails(capsys, r"checkpoints/4 is damaged .*no other one, so start again in another --workdir", *command)
    fails(capsys, "is damaged", "predict", "fill-mask", "--model", work, "[MASK]")
    shutil.rmtree(work / "checkpoints" / "4")
    fails(capsys, r"is empty, but the run had saved step 4: .*to begin again at step 0, delete .*run$", *command)
    shutil.rmtree(work)
    assert run(capsys, *command)[0] == 0


def test_texts_that_cannot_be_filled_are_named(built, capsys):
    fails(capsys, r"no \[MASK\] in 'plain'", "predict", "fill-mask", "--model", built[2], "plain")
    status, out, _ = run(capsys, "predict", "fill-mask", "--model", built[2], "[MASK]" + " good" * 600)
    assert status == 0 and "good good" in out


def bertjax(*arguments, **options):
    """Start the command as a process of its own, on one device, with the programs that earlier ones compiled."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": os.environ["BERTJAX_TEST_PROGRAMS"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, "-m", "bertjax", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **options)


def wait_for(condition, process, seconds=120):
    begun = time.monotonic()
    while not condition() and process.poll() is None:
        assert time.monotonic() - begun < seconds
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_and_interrupted_processes_resume_to_the_same_result(built, tmp_path):
    """SIGKILL in mid-run, then Ctrl-C, then to the end: log and parameters as those of a run left in peace."""
    command = ["pretrain", TINY[0], "steps=60", *TINY[2:], f"data={built[1]}", "objective.encoder.D=32",
               "objective.encoder.F=64", "run.checkpoint_every=7", "run.log_every=1", "run.evaluate_every=25",
               "run.evaluate_batches=1", "--workdir"]  # fmt: skip
    straight = bertjax(*command, tmp_path / "straight")
    assert straight.wait(timeout=300) == 0
    disturbed = tmp_path / "disturbed"

    def steps():
        log = disturbed / "log.jsonl"
        return len(log.read_bytes().splitlines()) if log.exists() else 0

    for number, (stop, code) in enumerate([(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)]):
        process = bertjax(*command, disturbed)
        wait_for(lambda goal=12 * (number + 1): steps() >= goal, process)
        process.send_signal(stop)
        assert process.wait(timeout=120) == code, process.stderr.read()
    assert "run the same command again" in process.stderr.read()
    assert bertjax(*command, disturbed).wait(timeout=300) == 0
    assert (disturbed / "log.jsonl").read_bytes() == (tmp_path / "straight" / "log.jsonl").read_bytes()
    checksums = []
    for folder in (disturbed, tmp_path / "straight"):
        info = next((folder / "checkpoints" / "60" / "info").rglob("metadata"))
        checksums.append(json.loads(info.read_text())["info"]["checksums"])
    assert checksums[0] == checksums[1]


def test_a_stopped_build_resumes(wiki, built, tmp_path):
    command = ["data", "build", wiki, "--format", "wikiextractor", "--tokenizer", built[0], "--holdout", 0.2,
               "--shard-tokens", 500, "--workers", 1, "--out"]  # fmt: skip
    assert bertjax(*command, tmp_path / "straight").wait(timeout=120) == 0
    process = bertjax(*command, tmp_path / "stopped")
    wait_for(lambda: (tmp_path / "stopped" / "progress.json").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    if not (tmp_path / "stopped" / "manifest.json").exists():
        assert bertjax(*command, tmp_path / "stopped").wait(timeout=120) == 0
    for path in (tmp_path / "straight").rglob("*"):
        if path.is_file():
            twin = tmp_path / "stopped" / path.relative_to(tmp_path / "straight")
            assert twin.read_bytes() == path.read_bytes(), path.name
    assert not list(Path(tmp_path / "stopped").glob("*.partial"))


def test_processes_that_do_not_connect_exit_with_code_75(capsys, monkeypatch, tmp_path):
    """Nothing listens at the address: process 0 is not there yet."""
    given = {"COORDINATOR_ADDRESS": "localhost:1", "NUM_PROCESSES": "2", "PROCESS_ID": "1"}
    for name, text in given.items():
        monkeypatch.setenv(f"JAX_{name}", text)
    roll_call = processes.roll_call
    monkeypatch.setattr(processes, "roll_call", lambda *place: roll_call(*place[:3], timeout=-10))
    code, out, err = run(capsys, "pretrain", *TINY, "data=x", "--workdir", tmp_path / "run")
    assert code == 75 and not out and err.startswith("bertjax: process 0 does not answer at localhost:1")


def test_an_experiment_that_fails_on_one_host_fails_on_all(capsys, monkeypatch, tmp_path):
    @contextmanager
    def group_size():
        try:
            yield
        except InputError as error:
            raise InputError(f"process 1: {error}") from error

    monkeypatch.setattr(processes, "raising_on_all", group_size)
    fails(capsys, "process 1: .*nowhere", "pretrain", *TINY, "data=nowhere", "--workdir", tmp_path / "run")
