"""Read golden arrays and compare with them; make_golden.py and its siblings say what they are."""

import json
import os
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from bertjax.models import layers
from bertjax.rules import name_of

# `make parity` writes all arrays elsewhere, from another seed.
FOLDER = Path(os.environ.get("BERTJAX_GOLDEN") or Path(__file__).parent)


def golden(*stems):
    """Read {"file: case": {what: array}}; what lies under params/ and grads/ are flat trees."""
    cases = {}
    for stem in stems:
        with np.load(FOLDER / f"{stem}.npz") as file:
            for key in file:
                case, what, *name = key.split("/", 2)
                case = cases.setdefault(f"{stem}: {case.replace('_', ' ')}", {"params": {}, "grads": {}})
                if name:
                    case[what][name[0]] = file[key].astype(np.float32)
                else:
                    case[what] = file[key]
    for case in cases.values():
        case["config"] = json.loads(case["config"].item())
    return cases


def build(model, config, **given):
    """Build a model from the fields that a case names."""
    return model(**config | {"activation": getattr(layers, config["activation"])} | given)


def flat(tree):
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def fill(shapes, case):
    """Put torch's parameters into a tree of ours, which has the same names and shapes."""
    assert {key: leaf.shape for key, leaf in flat(shapes).items()} == {k: a.shape for k, a in case["params"].items()}
    return jax.tree_util.tree_map_with_path(lambda path, _: case["params"][name_of(path)], shapes)


def compare(case, outputs, grads):
    """Compare outputs and gradients with torch's, both in float32."""
    for what, ours in outputs.items():
        np.testing.assert_allclose(ours, case[what], rtol=0, atol=1e-5, err_msg=what)
    for key, ours in flat(grads).items():
        # The gradient of a key's bias is 0 but for rounding: a softmax does not see what all its scores share. So it
        # is measured by the query's.
        largest = np.abs(case["grads"][key.replace("key/bias", "query/bias")]).max()
        np.testing.assert_allclose(ours, case["grads"][key], rtol=0, atol=1e-4 * largest, err_msg=key)


def read_cases(stem):
    """Read the entries of each case; `tensors`, and `gradients` where it has them, are then arrays by their names."""
    cases = {}
    with np.load(FOLDER / f"{stem}.npz") as file:
        for key in file:
            name, what = key.split("/")
            cases.setdefault(name, {})[what] = file[key]
    for case in cases.values():
        shapes = json.loads(str(case["tensors"]))
        ends = np.cumsum([np.prod(shape, dtype=int) for _, shape in shapes])
        for what, source in (("tensors", "values"), ("gradients", "gradients")):
            if source in case:
                parts = np.split(case[source].astype(np.float32), ends[:-1])
                case[what] = {name: part.reshape(shape) for (name, shape), part in zip(shapes, parts, strict=True)}
    return cases


def write_folder(case, folder):
    folder.mkdir()
    (folder / "config.json").write_text(str(case["config"]))
    save_file(case["tensors"], folder / "model.safetensors", {"format": "pt"})
    return folder
