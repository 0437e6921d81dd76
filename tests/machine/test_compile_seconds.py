"""How long compilations took on this machine is remembered."""

import json

import pytest

from bertjax.machine.compile_seconds import remember, usual


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bertjax" / "compile_seconds.json"


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ('{"cpu": [40.2, 38]}', "usually 40 s on this machine (2 steps so far)"),
        ('{"cpu": [5, 130]}', "usually 5 s to 2 minutes on this machine (2 steps so far)"),
        ('{"TPU v4": [5]}', ""),
        ('{"cpu": "x"}', ""),
        ("{", ""),
    ],
)
def test_what_is_usual_is_read_from_the_last_ones(cache, known, told):
    assert usual("cpu") == ""
    cache.parent.mkdir()
    cache.write_text(known)
    assert usual("cpu") == told


def test_the_last_ones_are_kept(cache):
    for seconds in range(9):
        remember("cpu", seconds)
    assert json.loads(cache.read_text()) == {"cpu": [4, 5, 6, 7, 8]}
