"""Files that ask for gigabytes or hours are refused in a second and a hundred megabytes: see bombs.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

from bertjax.data.text_files import Unreadable, open_bytes
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.tokenizer_bounds import check_tokenizer
from bertjax.errors import InputError

from .bombs import BOMBS, MEGABYTES, SECONDS, tokenizer


@pytest.fixture(scope="session")
def costs():
    """Measure in a small process: this one has memory to spare."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("bombs.py")), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_a_bounded_cost(name, costs):
    seconds, megabytes, message = costs[name]
    assert not message.startswith("!"), message
    assert megabytes < MEGABYTES
    assert seconds < SECONDS * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.mark.parametrize("level", [3, 19, 21])
def test_what_compressors_make_of_text_is_read(level, tmp_path):
    text = np.random.default_rng(0).bytes(200_000).hex().encode() * 20
    (tmp_path / "text.zst").write_bytes(zstandard.ZstdCompressor(level=level).compress(text))
    with open_bytes(tmp_path / "text.zst") as file:
        assert file.read() == text
    with open_bytes(tmp_path / "text.zst", most=10**6) as file, pytest.raises(Unreadable, match="more than 1,000,000"):
        file.read()


def test_what_real_tokenizers_do_to_texts_is_allowed():
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    quotes = [{"type": "Replace", "pattern": {"String": mark}, "content": '"'} for mark in ("``", "''")]
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    check_tokenizer({"normalizer": {"type": "Sequence", "normalizers": [*quotes, spaces, marks] * 2},
                  "decoder": {"type": "Sequence", "decoders": [marks]}}, "a tokenizer")  # fmt: skip


def test_a_panic_of_the_tokenizers_library_is_explained(tmp_path):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_bytes(tokenizer(pre_tokenizer=split))
    found = load_tokenizer(tmp_path)
    for encode in (found.encode, lambda text: found.ids([text])):
        with pytest.raises(InputError, match=r"the tokenizer of .* fails"):
            encode("a" * 40 + "b")
