"""What the README shows is run, so that it stays true."""

import re
from pathlib import Path

import jax

from bertjax.commands.main import main

README = Path("README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def test_the_notebook_runs():
    (code,) = (text for language, text in BLOCKS if language == "python")
    names = {}
    exec(code, names)
    assert abs(names["loss"] - 10.33) < 0.1  # ln 30522
    assert jax.tree.structure(names["grads"]) == jax.tree.structure(names["params"])
    assert names["masked"].positions_BP.shape == (4, 10)


def test_every_command_names_options_that_exist(capsys):
    shell = "\n".join(text for language, text in BLOCKS if language == "sh").replace("\\\n", " ")
    commands = [line.split() for line in shell.splitlines() if line.startswith("bertjax ")]
    assert len(commands) >= 8
    for _, *words in commands:
        nested = words[0] in ("tokenizer", "data", "predict") or words[:2] in (
            ["evaluate", "squad"],
            ["evaluate", "task"],
        )
        command = words[: 2 if nested else 1]
        try:
            main([*command, "--help"])
        except SystemExit as stop:
            assert stop.code == 0
        known = capsys.readouterr().out
        for option in (word for word in words if word.startswith("--")):
            assert option in known, (command, option)


def test_every_file_it_names_is_there():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links and all(Path(link).exists() for link in links), links
    for path in re.findall(r"\b(?:experiments|benchmarks)/\w+\.py", README):
        assert Path(path).exists(), path
