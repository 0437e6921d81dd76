"""Folders of transformers and sentence-transformers that lie, lead elsewhere, or bring code."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from security import world as w
from security.run_folders import in_place, sparse
from security.world import Hostile, World, copied, in_json, with_file, with_link

_READ = (w.LOAD, w.EXPORT)
_OPENS = (w.LOAD, w.LOOK, w.CLASSIFY, w.EXPORT, w.FINETUNE)
_SOME = (w.LOAD, w.EXPORT)
_VECTORS = (w.EMBED, w.EXPORT_SENTENCE)
_VECTOR = (w.EMBED,)
_CODE = "open(__file__ + '.ran', 'w')\n"


class Opens:
    """A pickle that creates a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def pickled(world: World) -> bytes:
    """Return such a pickle."""
    return pickle.dumps(Opens(world.secret / "ran"))


def _config(**changed: Any) -> Callable[[World], None]:
    return in_json("classifier", "config.json", **changed)


def _with_code(write: Callable[[World], None]) -> Callable[[World], None]:
    """Put modules beside what is written, as remote code has them."""

    def put(world: World) -> None:
        write(world)
        for name in ("modeling_evil", "tokenization_evil", "configuration_evil", "sentence_transformers", "__init__"):
            (world.given / f"{name}.py").write_text(_CODE)

    return put


def _text(content: bytes | str) -> Callable[[World], None]:
    return with_file("classifier", "config.json", content)


def _modules(*modules: Any) -> Callable[[World], None]:
    """Replace modules.json; a module is (type, path)."""
    listed = [{"idx": n, "name": str(n), "type": kind, "path": path} for n, (kind, path) in enumerate(modules)]
    return with_file("sentence", "modules.json", json.dumps(listed))


def _index(weight_map: Any) -> Callable[[World], None]:
    def write(world: World) -> None:
        folder = copied("classifier")(world)
        (folder / "model.safetensors").rename(world.secret / "elsewhere.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return write


def _only_a_pickle(name: str) -> Callable[[World], None]:
    def write(world: World) -> None:
        folder = copied("classifier")(world)
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickled(world))

    return write


_T = "sentence_transformers.models.Transformer"
_P = "sentence_transformers.models.Pooling"
_MAP = {
    "AutoConfig": "configuration_evil.C",
    "AutoModel": "modeling_evil.M",
    "AutoTokenizer": ["tokenization_evil.T", None],
}

CONFIGS = {
    "code beside a known model": Hostile(_with_code(_config(auto_map=_MAP)), _READ, harmless=True),
    "code of an unknown model": Hostile(_with_code(_config(auto_map=_MAP, model_type="evil")), _OPENS),
    "a model by a path": Hostile(
        _config(_name_or_path="/etc/passwd", tokenizer_file="/etc/passwd"), _READ, harmless=True
    ),
    "a model type of a path": Hostile(_config(model_type="../../secret"), _SOME),
    "a model type that is a list": Hostile(_config(model_type=["bert"]), _SOME),
    "a model type of escapes": Hostile(_config(model_type="\x1b[2J\x9b31m"), _OPENS),
    "architectures of numbers": Hostile(_config(architectures=[1, {}]), _SOME),
    "architectures of text": Hostile(_config(architectures="BertModel"), _SOME),
    "an architecture of escapes": Hostile(_config(architectures=["\x1b]0;x\x07"]), _SOME),
    "a billion layers": Hostile(_config(num_hidden_layers=10**9), _OPENS),
    "a number of layers beyond integers": Hostile(_config(num_hidden_layers=10**40), _SOME),
    "a text as a number of layers": Hostile(_config(num_hidden_layers="1"), _SOME),
    "true as a number of layers": Hostile(_config(num_hidden_layers=True), _SOME),
    "a width without end": Hostile(_config(hidden_size=2**50), _SOME),
    "a width that is no number": Hostile(_config(hidden_size=float("nan")), _SOME),
    "a width beyond floats": Hostile(_text('{"model_type": "bert", "hidden_size": 1e999}'), _SOME),
    "negative sizes": Hostile(_config(vocab_size=-1, intermediate_size=-2), _SOME),
    "a vocabulary of everything": Hostile(_config(vocab_size=2**40), _SOME),
    "positions without end": Hostile(_config(max_position_embeddings=2**40), _SOME),
    "an activation that is an object": Hostile(_config(hidden_act={"function": "os.system"}), _SOME),
    "an activation by a path": Hostile(_config(hidden_act="os.system"), _SOME),
    "an epsilon of text": Hostile(_config(layer_norm_eps="1e-12; import os"), _SOME),
    "labels of escapes": Hostile(
        _config(id2label={"0": "\x1b[2J\x1b]0;owned\x07", "1": "a\r\nbertjax: done", "2": "\x9b31m"}),
        _READ,
        harmless=True,
    ),
    "labels of a million": Hostile(_config(id2label={str(n): str(n) for n in range(10**5)}), _SOME),
    "labels of a megabyte": Hostile(
        _config(id2label={"0": "a" * 10**6, "1": "b", "2": "c"}), (w.LOAD, w.CLASSIFY), harmless=True
    ),
    "labels with other keys": Hostile(_config(id2label={"x": "a", "-1": "b", "9" * 5000: "c"}), _SOME),
    "labels that are a list": Hostile(_config(id2label=[1, 2, 3]), _SOME),
    "a problem of another type": Hostile(_config(problem_type={"a": 1}), _SOME),
    "JSON of brackets": Hostile(_text("[" * 10**6), _OPENS),
    "JSON of objects in objects": Hostile(_text('{"a":' * 10**5 + "1" + "}" * 10**5), _SOME),
    "JSON of a long number": Hostile(_text('{"model_type": "bert", "hidden_size": ' + "9" * 10**5 + "}"), _SOME),
    "a key twice": Hostile(_text('{"model_type": "bert", "model_type": "roberta"}'), _SOME),
    "a key a hundred thousand times": Hostile(_text("{" + ",".join(['"a": 1'] * 10**5) + "}"), _SOME),
    "a hundred thousand keys and the last twice": Hostile(
        _text("{" + ",".join(f'"{n}": 1' for n in range(10**5)) + ',"99999": 1}'), _SOME
    ),
    "a mark of byte order": Hostile(_text(b"\xef\xbb\xbf{}"), _SOME),
    "another encoding": Hostile(_text('{"model_type": "bert"}'.encode("utf-16")), _SOME),
    "bytes that are no text": Hostile(_text(b'{"model_type": "\xff\xfe\x80"}'), _SOME),
    "a lone surrogate": Hostile(_text('{"model_type": "\\ud800"}'), _SOME),
    "an empty file": Hostile(_text(b""), _SOME),
    "null": Hostile(_text("null"), _SOME),
    "a config of two gigabytes": Hostile(in_place("config.json", sparse(2**31), "classifier"), _SOME),
    "a config that is a queue": Hostile(in_place("config.json", os.mkfifo, "classifier"), _OPENS),
    "a config that is a device": Hostile(with_link("classifier", "config.json", "/dev/zero"), _OPENS),
    "a config that is a folder": Hostile(in_place("config.json", Path.mkdir, "classifier"), _SOME),
    "a config elsewhere": Hostile(with_link("classifier", "config.json", "config.json"), _OPENS),
    "a config that leads to itself": Hostile(
        in_place("config.json", lambda path: path.symlink_to(path), "classifier"), _SOME
    ),
}

WEIGHTS_ELSEWHERE = {
    "weights elsewhere": Hostile(with_link("classifier", "model.safetensors", "passwords.txt"), _OPENS),
    "weights that are a queue": Hostile(in_place("model.safetensors", os.mkfifo, "classifier"), _SOME),
    "weights that are a device": Hostile(with_link("classifier", "model.safetensors", "/dev/zero"), _SOME),
    "a shard above the folder": Hostile(_index({"a": "../secret/elsewhere.safetensors"}), _OPENS),
    "a shard by an absolute name": Hostile(_index({"a": "/etc/x.safetensors"}), _SOME),
    "a shard of escapes": Hostile(_index({"a": "\x1b[2J.safetensors"}), _SOME),
    "a shard that is an object": Hostile(_index({"a": {"b": 1}}), _SOME),
    "a hundred thousand shards": Hostile(_index({str(n): f"{n}.safetensors" for n in range(10**5)}), _SOME),
    "an index that is a list": Hostile(_index([1]), _SOME),
    "only a pickle": Hostile(_only_a_pickle("pytorch_model.bin"), _OPENS, message="never opened"),
    "a pickle of weights for Flax": Hostile(_only_a_pickle("flax_model.msgpack"), _SOME),
    "a pickle that is called safetensors": Hostile(with_file("classifier", "model.safetensors", pickled), _OPENS),
    "an adapter": Hostile(with_file("classifier", "adapter_config.json", "{}"), _SOME, harmless=True),
    "an array of pickles": Hostile(
        with_file("classifier", "model.safetensors", lambda world: np.array([Opens(world.secret / "ran")]).dumps()),
        _SOME,
    ),
}

SENTENCE = {
    "a module of another package": Hostile(_with_code(_modules((_T, ""), ("os.system", "1_Pooling"))), _VECTORS),
    "a module of the folder": Hostile(_with_code(_modules(("modeling_evil.M", ""), (_P, "1_Pooling"))), _VECTORS),
    "a module of a longer package": Hostile(
        _with_code(_modules((_T, ""), ("sentence_transformers_evil.P", "1_Pooling"))), _VECTOR
    ),
    "a transformer above the folder": Hostile(_modules((_T, "../secret"), (_P, "1_Pooling")), _VECTORS),
    "a pooling by an absolute name": Hostile(_modules((_T, ""), (_P, "/etc")), _VECTORS),
    "a pooling above the folder": Hostile(_modules((_T, ""), (_P, "1_Pooling/../../secret")), _VECTORS),
    "a pooling elsewhere": Hostile(with_link("sentence", "1_Pooling", ""), _VECTORS),
    "a config of the pooling elsewhere": Hostile(
        with_link("sentence", "1_Pooling/config.json", "config.json"), _VECTORS
    ),
    "settings elsewhere": Hostile(with_link("sentence", "config_sentence_transformers.json", "config.json"), _VECTORS),
    "modules elsewhere": Hostile(with_link("sentence", "modules.json", "config.json"), _VECTORS),
    "ten thousand modules": Hostile(
        _modules((_T, ""), (_P, "1_Pooling"), *[(f"{_T[:-11]}Normalize", "")] * 10**4), _VECTORS
    ),
    "modules of escapes": Hostile(_modules((_T, ""), ("sentence_transformers.\x1b[2J\x9b", "\x1b[2J")), _VECTORS),
    "a module without a type": Hostile(with_file("sentence", "modules.json", '[{"path": ""}]'), _VECTOR),
    "a module that is a number": Hostile(with_file("sentence", "modules.json", "[1]"), _VECTOR),
    "modules that are an object": Hostile(with_file("sentence", "modules.json", '{"0": "x"}'), _VECTOR),
    "code of the transformer": Hostile(
        _with_code(in_json("sentence", "sentence_bert_config.json", model_args={"trust_remote_code": True})),
        _VECTORS,
        harmless=True,
    ),
    "arguments of the transformer": Hostile(
        in_json("sentence", "sentence_bert_config.json", model_args={"cache_dir": "/etc", "state_dict": "x"}), _VECTOR
    ),
    "a length without end": Hostile(
        in_json("sentence", "sentence_bert_config.json", max_seq_length=10**12), _VECTOR, harmless=True
    ),
    "a negative length": Hostile(in_json("sentence", "sentence_bert_config.json", max_seq_length=-1), _VECTOR),
    "a pooling of a file": Hostile(in_json("sentence", "1_Pooling/config.json", pooling_mode=["/etc/passwd"]), _VECTOR),
    "a pooling without end": Hostile(
        in_json("sentence", "1_Pooling/config.json", pooling_mode=["mean"] * 10**5), _VECTORS
    ),
    "prompts of escapes": Hostile(
        in_json(
            "sentence", "config_sentence_transformers.json", prompts={"\x1b[2J": "\x1b[31m"}, default_prompt_name="\x9b"
        ),
        _VECTORS,
        harmless=True,
    ),
    "prompts of other types": Hostile(in_json("sentence", "config_sentence_transformers.json", prompts=[1]), _VECTOR),
    "a prompt of a megabyte": Hostile(
        in_json(
            "sentence", "config_sentence_transformers.json", prompts={"a": "good " * 10**6}, default_prompt_name="a"
        ),
        _VECTOR,
        harmless=True,
    ),
    "dimensions without end": Hostile(
        in_json("sentence", "config_sentence_transformers.json", truncate_dim=10**30), _VECTORS, harmless=True
    ),
}

INPUTS = (
    {f"config: {name}": each for name, each in CONFIGS.items()}
    | {f"weights: {name}": each for name, each in WEIGHTS_ELSEWHERE.items()}
    | {f"sentence: {name}": each for name, each in SENTENCE.items()}
)
