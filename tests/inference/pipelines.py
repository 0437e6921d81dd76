"""Folders with heads of classes and tags, and what transformers' pipelines say of them, stored in pipelines.json.

Make it anew, with torch and transformers: PYTHONPATH=tests python tests/inference/pipelines.py
"""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
from contract import small_bert
from texts import wordpiece_files

from bertjax.checkpoints.export import save_hf
from bertjax.checkpoints.trained import Model
from bertjax.data.tokenizer import tokenizer_from_files
from bertjax.models.heads import PairHead, TokenHead
from bertjax.models.layers import Normal
from bertjax.models.published import Published
from bertjax.serialization.description import to_json

STORED = Path(__file__).with_suffix(".json")
TEXTS = [
    "Time, person zebra way. man-kind",
    "The case of year day thing world life hand eye woman",
    "good",
    "work work jumble way quiz of the man",
]
CLASSES = {  # by name: labels, and entries of config.json
    "several labels": (("toxic", "insult", "threat", "spam"), {"problem_type": "multi_label_classification"}),
    "one of several labels": (("toxic",), {"problem_type": "multi_label_classification"}),
    "one label, unstated": (("LABEL_0",), {}),
    "a number": (("LABEL_0",), {"problem_type": "regression"}),
    "numbers": (("a", "b", "c"), {"problem_type": "regression"}),
    "one label each": (("no", "maybe", "yes"), {}),
    "one label each, stated": (("no", "maybe", "yes"), {"problem_type": "single_label_classification"}),
}
TAGS = {
    "B-TYPE": ("B-PER", "I-PER", "O", "I-LOC", "B-LOC"),
    "TYPE": ("O", "PER", "LOC"),
    "TYPE, some with marks": ("O", "B-PER", "I-PER", "MISC"),
    "words": ("NN", "VB", "DT"),
    "unnamed": ("LABEL_0", "LABEL_1", "LABEL_2"),
}


def write(folder, labels, entries, *, tags):
    """Write a folder as others have it: numpy's random weights, labels, and these entries of config.json."""
    tokenizer = tokenizer_from_files(wordpiece_files(), origin="made")
    encoder = small_bert(V=tokenizer.vocabulary.size, N=1, D=16, F=32, initializer=Normal(0.5))
    head = TokenHead(16, len(labels), Normal(), "float32") if tags else PairHead(16, len(labels), Normal(), "float32")
    model = Published(encoder, (("tags" if tags else "classify", head),), labels=labels)
    ones = np.ones((1, 4), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"tokens": ones, "mask": ones, "types": ones})
    draw = np.random.default_rng(len(labels))

    def drawn(path, leaf):
        mean, width = {"scale": (1, 0.1), "bias": (0, 0.1)}.get(path[-1].key, (0, 0.4))
        return np.float32(draw.normal(mean, width, leaf.shape))

    params = jax.tree_util.tree_map_with_path(drawn, shapes)
    save_hf(Model(model, params, tokenizer, {"objective": to_json(model)}), folder)
    path = Path(folder, "config.json")
    config = json.loads(path.read_text())
    config.pop("problem_type", None)
    path.write_text(json.dumps(config | entries))
    return str(folder)


def classified(folder):
    """Return what the pipeline says of each text: {label: score}."""
    import transformers

    pipeline = transformers.pipeline("text-classification", model=folder, top_k=None)
    return [{each["label"]: each["score"] for each in pipeline([text])[0]} for text in TEXTS]


def tagged(folder):
    """Return what the pipeline says of each text with the strategy `simple`: [kind, start, end, score] of groups."""
    import transformers

    pipeline = transformers.pipeline("token-classification", model=folder, aggregation_strategy="simple")
    return [
        [[each["entity_group"], each["start"], each["end"], float(each["score"])] for each in pipeline(text)]
        for text in TEXTS
    ]


def made():
    """Make all folders and ask the pipelines."""
    with tempfile.TemporaryDirectory() as home:
        found = {"classes": {}, "tags": {}}
        for number, (name, (labels, entries)) in enumerate(CLASSES.items()):
            found["classes"][name] = classified(write(f"{home}/{number}", labels, entries, tags=False))
        for name, labels in TAGS.items():
            found["tags"][name] = tagged(write(f"{home}/tags {len(labels)} {name}", labels, {}, tags=True))
        return found


if __name__ == "__main__":
    STORED.write_text(json.dumps(made(), indent=1) + "\n")
