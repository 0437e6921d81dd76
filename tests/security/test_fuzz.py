"""Readers of what others made meet random bytes, and honest content with random changes: they answer or refuse."""

import copy
import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertjax.config import load_experiment
from bertjax.data.records import decode_record, encode_record, read_manifest
from bertjax.data.tokenizer import load_tokenizer, tokenizer_from_files
from bertjax.errors import InputError
from bertjax.huggingface.folder import find_tensors
from security.tokenizer_folders import sentencepiece_model, tokenizer_json
from security.weights import file_of
from security.world import REPOSITORY, VOCABULARY

ODD = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 10**30, 1.5, float("nan"), float("inf"), "", "a", "[UNK]", "../x",
    "/etc/passwd", "\x1b[2J", "\ud800", "\0",
    [], [[]], [1], {}, {"type": "x"}, {"a": None}, "bertjax.config.load_experiment",
)  # fmt: skip


def changed(value, rng):
    """Return JSON with a few random changes at random places."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        holder, places = value, []
        while isinstance(holder, dict | list) and holder:
            key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
            places.append((holder, key))
            holder = holder[key]
        holder, key = rng.choice(places) if places else (None, None)
        if holder is None:
            return rng.choice(ODD)
        act = rng.random()
        if act < 0.15:
            del holder[key]
        elif act < 0.3 and isinstance(holder, dict):
            holder[str(rng.choice(ODD))] = holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    return value


def flipped(content, rng):
    """Return bytes with a few of them changed, left out or repeated."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content))
        act = rng.random()
        if act < 0.6:
            content[place] = rng.randrange(256)
        elif act < 0.8:
            del content[place : place + rng.randint(1, 9)]
        else:
            content[place:place] = content[place : place + rng.randint(1, 9)]
        content = content or bytearray(b"\0")
    return bytes(content)


def refused_or_read(function, *arguments):
    """Call a function that may raise InputError, and nothing else."""
    try:
        return function(*arguments)
    except InputError as error:
        assert str(error)
        return None


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
HEADER = {"a": ENTRY, "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}, "__metadata__": {"format": "pt"}}


@pytest.mark.parametrize("seed", range(4))
def test_headers_of_weights(seed, tmp_path):
    rng = random.Random(seed)
    for _ in range(400):
        header = json.dumps(changed(HEADER, rng), ensure_ascii=rng.random() < 0.9).encode(errors="replace")
        content = file_of(header, bytes(32))
        (tmp_path / "model.safetensors").write_bytes(flipped(content, rng) if rng.random() < 0.3 else content)
        refused_or_read(find_tensors, tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=80))
def test_records(record):
    try:
        tokens, flags = decode_record(record)
    except ValueError:
        return
    assert isinstance(tokens, bytes) and isinstance(flags, bytes)


def test_records_that_are_changed():
    rng = random.Random(0)
    record = encode_record(np.arange(100, dtype=np.uint16), np.zeros(100, np.uint8))
    for _ in range(2000):
        try:
            decode_record(flipped(record, rng))
        except ValueError:
            continue


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel", "BPE", "Unigram"])
def test_tokenizer_json(kind):
    from security.tokenizer_folders import model_of

    rng, honest = random.Random(kind), tokenizer_json(model=model_of(kind))
    honest["added_tokens"] = [{"id": 5, "content": "a", "single_word": False, "lstrip": False, "rstrip": False,
                               "normalized": False, "special": True}]  # fmt: skip
    for _ in range(40):
        content = json.dumps(changed(honest, rng)).encode()
        found = refused_or_read(lambda: tokenizer_from_files({"tokenizer.json": content}, origin="the folder"))  # noqa: B023
        if found is not None:
            found.ids(["good time"])


CONFIG = {
    "tokenizer_class": "BertTokenizer", "do_lower_case": True, "pad_token": "[PAD]", "model_max_length": 512,
    "added_tokens_decoder": {"0": {"content": "[PAD]", "special": True, "lstrip": False}},
    "extra_special_tokens": ["[X]"], "auto_map": {"AutoTokenizer": ["x.T", None]}, "padding_side": "right",
}  # fmt: skip


def test_settings_of_tokenizers(tmp_path):
    rng = random.Random(1)
    (tmp_path / "vocab.txt").write_bytes(VOCABULARY)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for _ in range(150):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(changed(CONFIG, rng)))
        refused_or_read(load_tokenizer, tmp_path)


def test_sentencepiece_models():
    rng, honest = random.Random(2), sentencepiece_model()
    for _ in range(300):
        content = flipped(honest, rng)
        refused_or_read(lambda: tokenizer_from_files({"spiece.model": content}, origin="the folder"))  # noqa: B023


def test_manifests(honest, tmp_path):
    rng, described = random.Random(3), json.loads((honest.corpus / "manifest.json").read_text())
    for _ in range(400):
        (tmp_path / "manifest.json").write_text(json.dumps(changed(described, rng)))
        refused_or_read(read_manifest, tmp_path)


KEYS = ("size", "objective", "objective.encoder", "objective.encoder.D", "phases.0.batch_size", "phases.9.x", "mesh",
        "phases.0.rows.corpus", "run.profile", "seed", "optimizer.learning_rate.peak", "..", ".", "", "__class__",
        "objective.__class__.x", "objective.encoder.activation", "phases")  # fmt: skip


def test_overrides(honest):
    rng = random.Random(4)
    values = [str(value) for value in ODD] + [
        "data:1",
        "data:x",
        "(",
        "1,2",
        "1e999",
        "0x10",
        "9" * 5000,
        "١٢",
        "1_000",
    ]
    path = REPOSITORY / "experiments/smoke.py"
    for _ in range(120):
        overrides = [f"{rng.choice(KEYS)}={rng.choice(values)}" for _ in range(rng.randint(1, 2))]
        refused_or_read(load_experiment, path, [f"data={honest.corpus}", *overrides])
