"""The fuzzing of `make fuzz` in short, and what it has found."""

import json

import pytest
from fuzz import CONFIG, Failure, Target, fuzz, targets, tried

from bertjax.errors import InputError

FOUND = [
    ("squad", b'{"data": [{"title": "t", "paragraphs": [[]]}]}'),
    ("config", json.dumps(CONFIG | {"model_type": "electra", "embedding_size": ""}).encode()),
    ("tokenizer-vocabulary", "\n".join(["[PAD]\0[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]", *"abc"]).encode()),
]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize(("name", "content"), FOUND, ids=[name for name, _ in FOUND])
def test_what_was_found_is_refused(known, tmp_path, name, content):
    tried(known[name], content, tmp_path)
    with pytest.raises(InputError):
        known[name].read(content, tmp_path)


def test_readers_answer_or_refuse(known, tmp_path):
    for name, target in known.items():
        (tmp_path / name).mkdir()
        found = fuzz(target, tmp_path / name, seed=0, executions=25)
        assert not found, (name, found)


@pytest.mark.filterwarnings("ignore")
def test_what_neither_answers_nor_refuses_is_found_and_shrunk(tmp_path):
    """Without this the test above would prove nothing."""

    def read(content, folder):
        if b"x" in content:
            raise KeyError("x")
        raise InputError("" if content == b"y" else "refused")

    ((where, (content, text)),) = fuzz(Target(read, (b"abcxyz",)), tmp_path, seed=0, executions=100).items()
    assert where.startswith("KeyError") and len(content) < 12 and "KeyError: 'x'" in text
    with pytest.raises(Failure, match="without a message"):
        tried(Target(read, ()), b"y", tmp_path)
