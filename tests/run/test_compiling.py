"""A compilation that takes long is told, with how long it took on this machine before."""

import json
import time

import pytest

from bertjax.run import compiling
from bertjax.run.compiling import Compiling, told_if_long


class Said(list):
    shown = True
    say = list.append


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bertjax" / "compile_seconds.json"


def test_a_long_compilation_is_told_once_and_remembered(cache, monkeypatch):
    monkeypatch.setattr(compiling, "LONG", 0.02)
    progress = Said()
    programs = Compiling(progress, "cpu")
    for program in ("a", "a", "b"):
        with programs.first_call(program):
            time.sleep(0.05)
    assert [text.split()[0] for text in progress] == ["compiling", "compiled"] * 2
    assert "may take minutes" in progress[0] and "usually 0 s on this machine (1 step so far)" in progress[2]
    assert len(json.loads(cache.read_text())["cpu"]) == 2


def test_a_quick_one_is_not_told_and_a_failed_one_is_not_remembered(cache, monkeypatch):
    monkeypatch.setattr(compiling, "LONG", 0.5)
    progress = Said()
    with Compiling(progress, "cpu").first_call("a"):
        pass
    with pytest.raises(KeyboardInterrupt), told_if_long(progress, lambda: "x"):
        raise KeyboardInterrupt
    assert not progress and not cache.exists()
