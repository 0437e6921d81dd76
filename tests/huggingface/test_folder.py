"""Broken and hostile folders: each is refused in one sentence, quickly, and without taking the memory it claims."""

import json
import shutil
import struct

import jax
import numpy as np
import pytest
from hub_folders import CONFIG, bert_tensors, refused, write, write_shards

from bertjax.checkpoints.trained import load

TENSORS = bert_tensors()
WORD = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Write a folder, whole and in shards, that loads: what is done to it is refused."""
    path = tmp_path_factory.mktemp("good")
    load(write(path / "whole", CONFIG, TENSORS))
    load(write_shards(path / "shards", CONFIG, TENSORS))
    return path


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good / "whole", tmp_path / "good")


def change_header(folder, change):
    """Rewrite the header of the weights as `change` says."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = change(json.loads(content[8 : 8 + length]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def with_entry(**changes):
    return lambda header: header | {WORD: header[WORD] | changes}


def twice(header):
    text = json.dumps(header)
    return (text[:-1] + f', "{WORD}": ' + json.dumps(header[WORD]) + "}").encode()


def overlapping(header):
    begin = header["bert.encoder.layer.0.intermediate.dense.weight"]["data_offsets"][0]
    entry = header["classifier.weight"]
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    return header | {"classifier.weight": entry | {"data_offsets": [begin, begin + size]}}


HEADERS = {
    "a shape larger than its bytes": (with_entry(shape=[2**40, 2**40]), "of shape .* has 640 bytes"),
    "a shape whose product overflows": (with_entry(shape=[2**63, 2**63, 0, 1]), "has 640 bytes"),
    "a negative size": (with_entry(shape=[-20, -8]), "damaged: .* has shape"),
    "sizes that are no numbers": (with_entry(shape=[True, "8"]), "damaged: .* has shape"),
    "no shape": (with_entry(shape=None), "damaged: .* has shape"),
    "a dtype that nobody knows": (with_entry(dtype="F31"), "unknown dtype 'F31'"),
    "offsets beyond the file": (with_entry(data_offsets=[2**62, 2**62 + 640]), "begins at byte|where"),
    "offsets that go backwards": (with_entry(data_offsets=[640, 0]), "has -640 bytes"),
    "no offsets": (lambda header: header | {WORD: {"dtype": "F32", "shape": [1]}}, "no dtype, shape and data_offsets"),
    "tensors that overlap": (overlapping, "damaged: .* begins at byte"),
    "a name twice": (twice, "names 'bert.embeddings.word_embeddings.weight' twice"),
    "a list for a header": (lambda header: b"[]", "not a JSON object"),
    "no JSON": (lambda header: b"{" * 10, "not JSON"),
    "JSON too deep": (lambda header: b'{"a":' * 100_000, "nested more than 64 deep"),
    "an entry that is a number": (lambda header: header | {WORD: 3}, "no dtype, shape and data_offsets"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_with(what, folder):
    change, message = HEADERS[what]
    change_header(folder, change)
    refused(folder, message)


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_file_that_is_cut_short(length, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    refused(folder, "cut short|damaged")


@pytest.mark.parametrize("length", [2**63, 2**32, 10**6])
def test_a_header_that_claims_more_than_the_file(length, folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(folder, "cut short")


def test_a_header_that_is_too_long_for_any_model(folder):
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2**30))
        file.truncate(2**31)  # a hole: it takes no room
    refused(folder, "no real one is over")


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.float64])
def test_weights_of_a_dtype_that_weights_have_not(dtype, folder):
    write(folder, CONFIG, TENSORS | {WORD: TENSORS[WORD].astype(dtype)})
    refused(folder, f"{WORD} has dtype .*: only F32, F16, BF16 are weights")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value, folder):
    table = TENSORS[WORD].copy()
    table[3, 4] = value
    write(folder, CONFIG, TENSORS | {WORD: table})
    refused(folder, f"{WORD} has 1 of 160 values that are not finite")


def test_a_tensor_that_is_missing_unknown_or_of_another_shape(folder):
    write(folder, CONFIG, {name: array for name, array in TENSORS.items() if name != "classifier.bias"})
    refused(folder, "lacks classifier.bias, which its config.json asks for")
    write(folder, CONFIG, TENSORS | {"surprise.weight": np.zeros(3, np.float32)})
    refused(folder, "has .*surprise.weight, which its config.json does not explain")
    write(folder, CONFIG, TENSORS | {WORD: TENSORS[WORD].T})
    refused(folder, r"word_embeddings.weight has shape \(8, 20\), config.json asks for \(20, 8\)")


CONFIGS = {
    "another architecture": ({"model_type": "gpt2"}, "model_type='gpt2': bertjax reads bert, roberta"),
    "no architecture": ({"model_type": None}, "model_type=None"),
    "an unknown activation": ({"hidden_act": "laplace"}, "hidden_act: 'laplace' is none of the activations gelu"),
    "relative positions": ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported, only 'abs"),
    "a decoder": ({"is_decoder": True}, "is_decoder=True is not supported"),
    "heads that do not divide the width": ({"num_attention_heads": 3}, "config.json: width D=8 does not divide"),
    "a size that is a text": ({"hidden_size": "8"}, "hidden_size: '8' is not a size"),
    "a size of 0": ({"num_hidden_layers": 0}, "num_hidden_layers: 0 is not a size"),
    "a size beyond all memory": ({"vocab_size": 2**31 - 1}, "shape .20, 8., config.json asks for .2147483647, 8."),
    "a width beyond all memory": ({"hidden_size": 2**30}, "config.json asks for|describes no model"),
    "layers without end": ({"num_hidden_layers": 2**31 - 1}, "says 2,147,483,647 layers"),
    "too few layers": ({"num_hidden_layers": 1}, "layer.1.* does not explain"),
    "too many layers": ({"num_hidden_layers": 3}, "lacks bert.encoder.layer.2"),
    "labels by names": ({"id2label": {"bad": 0}}, "id2label={'bad': 0} does not name classes by their numbers"),
    "more labels than it names": ({"num_labels": 4}, r"shape \(3,.*, config.json asks for \(4,"),
    "an encoder of its own": (
        {"model_type": "eurobert"},
        "model_type='eurobert', an encoder with RMS norms and grouped queries: bertjax",
    ),
    "labels without end": ({"id2label": None, "num_labels": 2**31}, "num_labels=2147483648 is not a number of labels"),
    "another number of labels": ({"id2label": None, "num_labels": 4}, r"shape \(3,.*, config.json asks for \(4,"),
    "no class": ({"architectures": None}, "classifier.bias, classifier.weight.*check model_type, architectures"),
    "an epsilon that is no number": ({"layer_norm_eps": "small"}, "layer_norm_eps: 'small' is not a number"),
}  # fmt: skip


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_with(what, folder):
    change, message = CONFIGS[what]
    write(folder, CONFIG | change, TENSORS)
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "labels", "note"),
    [
        ({"id2label": {"2": "c", "0": "a", "1": "b"}}, ("a", "b", "c"), ""),
        (
            {"id2label": {"0": "a", "1": "b", "7": "c"}},
            (),
            "id2label does not name classes 0 to 2 by strings: they are",
        ),
        (
            {"id2label": {"0": "a", "1": "b"}, "num_labels": 3},
            (),
            "id2label is not read: it names 2 classes, num_label",
        ),
        ({"label2id": {"bad": 2, "good": 1, "so so": 0}}, ("bad", "good", "so so"), "label2id is not read: it contra"),
        ({"auto_map": {"AutoModel": "x.Y"}}, ("bad", "good", "so so"), "auto_map names code of the folder's own"),
    ],
)
def test_labels_are_those_of_transformers_and_what_is_not_read_is_reported(change, labels, note, folder):
    model = load(write(folder, CONFIG | change, TENSORS))
    assert model.objective.labels == labels
    reported = model.config["huggingface"]["reported"]
    assert [each[: len(note)] for each in reported] == ([note] if note else [])


@pytest.mark.parametrize("key", ["vocab_size", "hidden_act", "layer_norm_eps", "type_vocab_size"])
def test_missing_config_keys_are_not_guessed(key, folder):
    write(folder, {name: value for name, value in CONFIG.items() if name != key}, TENSORS)
    refused(folder, f"has no {key}: add it")


def test_a_config_that_is_no_json_or_missing(folder):
    (folder / "config.json").write_text("{'a': 1}")
    refused(folder, "config.json:1: not JSON")
    (folder / "config.json").write_text('{"model_type": "bert", "model_type": "roberta"}')
    refused(folder, "names 'model_type' twice")
    (folder / "config.json").unlink()
    refused(folder, "config.json is missing")


def test_pickles_are_never_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "weights in pytorch_model.bin.* can run code .* convert it where you trust it")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, "has no weights")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            "adapter_config.json, an adapter: merge it .* with peft",
        ),
        (["config.json", "flax_model.msgpack"], "flax_model.msgpack, weights of Flax: convert it .*from_flax=True"),
        (["config.json", "tf_model.h5"], "tf_model.h5, weights of TensorFlow: convert it .*from_tf=True"),
        (["bert_config.json", "bert_model.ckpt.index"], "bert_model.ckpt.index, a checkpoint of TensorFlow: conv"),
        (["modules.json", "0_Transformer/config.json"], "modules.json is not a JSON list"),  # whole ones are read
    ],
)
def test_weights_in_another_format(names, message, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(CONFIG))
    for path in (tmp_path, f"{tmp_path}:encoder"):
        refused(path, message)


def test_an_encoder_is_read_whatever_heads_are_beside_it(folder, tmp_path):
    foreign = {"crf.transitions": np.zeros((3, 3)), "classifier.dense.weight": np.zeros((8, 8))}
    foreign = {name: array.astype(np.float32) for name, array in foreign.items()}
    other = write(tmp_path / "other", CONFIG, TENSORS | foreign)
    refused(other, "crf.transitions, which its config.json does not explain")
    model = load(f"{other}:encoder")
    for ours, theirs in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(load(folder).params["encoder"]), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    left = {name for name in TENSORS | foreign if not name.startswith(("bert.embeddings", "bert.encoder"))}
    assert model.config["huggingface"]["ignored"] == dict.fromkeys(left, "not of the encoder")
    bare = {name.removeprefix("bert."): array for name, array in (TENSORS | foreign).items()}
    assert model.params.keys() == load(f"{write(tmp_path / 'bare', CONFIG, bare)}:encoder").params.keys()
    unknown = {"bert.encoder.layer.0.adapter.weight": np.zeros((8, 8), np.float32)}
    refused(f"{write(tmp_path / 'unknown', CONFIG, TENSORS | unknown)}:encoder", "adapter.weight, which its config.js")


def test_a_pickle_by_another_name(folder):
    import pickle

    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": np.zeros(100)}))
    refused(folder, "cut short|no real one|not JSON|not UTF-8")


@pytest.fixture
def shards(good, tmp_path):
    return shutil.copytree(good / "shards", tmp_path / "shards")


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"weight_map": change(index["weight_map"])}))


INDICES = {
    "a file outside": (lambda m: m | {WORD: "../model.safetensors"}, "only files inside the folder"),
    "an absolute path": (lambda m: m | {WORD: "/etc/passwd.safetensors"}, "only files inside the folder"),
    "a hidden path": (lambda m: m | {WORD: "..\\x.safetensors"}, "only files inside the folder"),
    "a pickle": (lambda m: m | {WORD: "pytorch_model.bin"}, "only .safetensors files are read"),
    "a file that is not there": (lambda m: m | {WORD: "no.safetensors"}, "no.safetensors is missing"),
    "a tensor that is not there": (lambda m: m | {"x": m[WORD]}, "x is in no shard"),
    "a tensor less": (lambda m: {n: f for n, f in m.items() if n != WORD}, "is in a shard, but not in the index"),
    "the wrong shard": (lambda m: m | {WORD: "model-00003-of-00003.safetensors"}, "says that .* is in .*00003"),
    "a list": (lambda m: [], "has no `weight_map`"),
    "a number": (lambda m: m | {WORD: 3}, "has no `weight_map`"),
}


@pytest.mark.parametrize("what", INDICES)
def test_an_index_that_names(what, shards):
    change, message = INDICES[what]
    change_index(shards, change)
    refused(shards, message)


def test_a_tensor_in_two_shards(shards):
    first = shards / "model-00001-of-00003.safetensors"
    (shards / "more.safetensors").write_bytes(first.read_bytes())
    change_index(shards, lambda m: m | {"y": "more.safetensors"})
    refused(shards, "is in model-00001-of-00003.safetensors and in more.safetensors: each tensor once")


def test_a_missing_shard(shards):
    (shards / "model-00002-of-00003.safetensors").unlink()
    refused(shards, "model-00002-of-00003.safetensors is missing")


def test_links_lead_to_the_blobs_of_a_cache_and_nowhere_else(folder, tmp_path):
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "1234"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(blobs / name)
        (snapshot / name).symlink_to(blobs / name)
        (folder / name).symlink_to(blobs / name)
    assert load(snapshot).params.keys() == {"encoder", "head"}
    refused(folder, "is a link to .*blobs.*, outside the folder")


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json", "spiece.model"])
def test_a_tokenizer_is_no_link_to_a_file_outside(name, folder, tmp_path):
    (tmp_path / "outside").write_text("{}")
    (folder / "vocab.txt").write_text("[PAD]\n")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "outside")
    refused(folder, rf"{name} is a link to .*outside, outside the folder")


def test_a_part_of_a_folder(folder):
    refused(f"{folder}:generator", "has no part 'generator', only 'encoder'")
