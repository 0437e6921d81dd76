"""What a terminal would act on is printed as text, wherever it comes from."""

import io
import json
import re
import struct

import pytest

from bertjax import terminal
from bertjax.commands.main import main
from bertjax.run.writers import Progress

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e\u2066\x7f\r\x08"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(*texts):
    assert not [text for text in texts if ACTS.search(text)]


def test_each_character_that_acts_is_spelled():
    assert terminal.escaped("a\x1b[31mb\x9b\u202e\x7f\r") == "a\\x1b[31mb\\x9b\\u202e\\x7f\\x0d"
    assert terminal.escaped("\ud800") == "\\ud800"
    for text in ("Straße 東京 शब्द می\u200cخواهم 👩\u200d🔬 é\tb\nc", "", "\\x1b"):
        assert terminal.escaped(text) == text
    long = "x" * 10_000_000
    assert len(terminal.message(f"begin{long}end")) < 5000 and terminal.message(f"{long}end").endswith("end")


def test_json_is_exact_and_harmless_on_a_terminal(capsys, monkeypatch):
    terminal.show_json({"text": EVIL + "é"})
    exact = capsys.readouterr().out
    assert exact == json.dumps({"text": EVIL + "é"}, ensure_ascii=False) + "\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    terminal.show_json({"text": EVIL + "é"})
    shown = capsys.readouterr().out
    harmless(shown)
    assert json.loads(shown) == json.loads(exact) and "é" in shown


def test_json_into_a_pipe_has_no_half_of_a_pair(monkeypatch):
    pipe = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr("sys.stdout", pipe)
    terminal.show_json({"a\ud800": "\udfff東"})
    written = pipe.buffer.getvalue().decode()
    assert written == '{"a\\ud800": "\\udfff東"}\n' and json.loads(written) == {"a\ud800": "\udfff東"}


def weights(folder):
    header = json.dumps(
        {f"x{EVIL}": {"dtype": "F31", "shape": [], "data_offsets": [0, 0]}}, ensure_ascii=False
    ).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return ["convert", folder, folder / "new"]


def model_type(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": EVIL, "architectures": [EVIL]}))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return ["convert", folder, folder / "new"]


def answers(folder):
    gold = {"data": [{"paragraphs": [{"qas": [{"id": "1", "answers": [{"text": "x"}]}]}]}]}
    for name, content in {"gold": gold, "answers": {EVIL: 1}}.items():
        (folder / name).write_text(json.dumps(content))
    return ["evaluate", "squad", "--data", folder / "gold", "--predictions", folder / "answers"]


def file_name(folder):
    (folder / f"text{EVIL}.txt").write_bytes(b"\0\n")
    return ["data", "build", folder, "--format", "plain", "--tokenizer", vocabulary(folder), "--out", folder / "corpus"]


def manifest(folder):
    (folder / "manifest.json").write_text(json.dumps({"format": EVIL}))
    return ["data", "inspect", folder]


def vocabulary(folder, *more):
    (folder / "vocab").mkdir()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", *more]
    (folder / "vocab" / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return folder / "vocab"


def pieces_twice(folder):
    return ["tokenizer", "inspect", "--model", vocabulary(folder, *["\x1b[31m"] * 2)]


@pytest.mark.parametrize("make", [weights, model_type, answers, file_name, manifest, pieces_twice])
def test_errors_are_harmless(make, tmp_path, capsys):
    assert main([str(word) for word in make(tmp_path)]) == 2
    out, err = capsys.readouterr()
    harmless(out, err)
    assert "\\x1b" in err


def test_texts_and_pieces_are_harmless(tmp_path, capsys):
    folder = vocabulary(tmp_path, "\x1b[31m", "\u202eb")
    assert main(["tokenizer", "inspect", "--model", str(folder), f"a {EVIL} \u202eb"]) == 0
    harmless(*capsys.readouterr())
    assert main(["tokenizer", "inspect", "--model", str(folder)]) == 0
    harmless(*capsys.readouterr())


@pytest.mark.parametrize("on_terminal", [True, False])
def test_progress_is_harmless(on_terminal, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: on_terminal)
    progress = Progress()
    progress.line(EVIL)
    progress.say(EVIL)
    err = capsys.readouterr().err
    harmless(err.replace("\r\033[K", ""))
    assert err.count("\\x1b]0;title") == 2
