"""No command that opens a folder of others imports, executes, writes elsewhere, follows a link out, or takes more.

Each input is a small function that writes a folder; each is opened by the commands that would open it. It must be
refused in one line with exit code 2, or, where nothing is wrong but what it says of itself, be read as it stands.
"""

import json
import shutil

import pytest

from security import (
    corpus_folders,
    descriptions,
    model_folders,
    run_folders,
    texts_and_tasks,
    tokenizer_folders,
    weights,
    work_folders,
)
from security.running import faults, run
from security.world import EXPORT, digest_of, in_json

LIMIT = 15  # seconds after which a command is taken to wait for ever
KINDS = (
    descriptions,
    run_folders,
    model_folders,
    weights,
    tokenizer_folders,
    corpus_folders,
    texts_and_tasks,
    work_folders,
)
INPUTS = {f"{kind.__name__.rpartition('.')[2]}: {name}": each for kind in KINDS for name, each in kind.INPUTS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_nothing_hostile_gets_in(name, world, capsys):
    hostile = INPUTS[name]
    hostile.write(world)
    before, found = digest_of(world.secret), []
    for command in hostile.commands:
        outcome = run(world, command, capsys, LIMIT, into=hostile.into)
        found += [f"{' '.join(command[:2])}: {fault}" for fault in faults(world, hostile, command, outcome, before)]
        shutil.rmtree(world.out, ignore_errors=True)
    assert not found, "\n".join(found)


def test_nothing_that_names_code_is_carried_on(world, capsys):
    code = {"AutoModel": "stranger/code--modeling.Model"}
    in_json(
        "classifier", "config.json", auto_map=code, custom_pipelines={"x": {"impl": "x.Y"}}, _name_or_path="/home/x"
    )(world)
    (world.given / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "auto_map": code, "chat_template": "{{ 7 * 7 }}"})
    )
    assert run(world, EXPORT, capsys).code == 0
    written = "".join(path.read_text() for path in world.out.glob("*.json"))
    assert "BertForSequenceClassification" in written
    assert not any(word in written for word in ("auto_map", "custom_pipelines", "/home/x", "chat_template", "stranger"))
