"""Small folders of sentence-transformers, written by hand: one of each kind of pooling, and of what else they state."""

import json

import numpy as np
from hub_folders import CONFIG, bert_tensors, write
from safetensors.numpy import save_file
from texts import wordpiece_files

TEXTS = [
    "The man is new. time good",
    "woman",
    "one long week of the large company and the small group, then the last day of the year",
    "Place Of the Work!",
]
TYPES = "sentence_transformers.models"
MEAN = {"pooling_mode_mean_tokens": True}
PROMPTS = {"prompts": {"query": "the point: ", "passage": "a fact ", "nothing": None}}


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def dense(inputs, outputs, activation="activation.Tanh", bias=True, **more):
    """Return the config and the tensors of a dense module, random ones."""
    rng = np.random.default_rng(inputs + 100 * outputs)
    weights = {"linear.weight": rng.normal(size=(outputs, inputs)) / 2}
    weights |= {"linear.bias": rng.normal(size=outputs)} if bias else {}
    weights |= {"residual.weight": rng.normal(size=(outputs, inputs))} if more and inputs != outputs else {}
    config = {"in_features": inputs, "out_features": outputs, "bias": bias, **more}
    return config | {"activation_function": f"torch.nn.modules.{activation}"}, weights


def sentence_folder(
    folder, pooling=MEAN, after=(), settings=None, transformer=None, lowercase=True, inside="", types=TYPES
):
    """Write a BERT with these modules. after: (kind, config, tensors) of each module behind the pooling."""
    vocabulary = wordpiece_files()["vocab.txt"]
    config = CONFIG | {"vocab_size": len(vocabulary.split(b"\n")), "architectures": ["BertModel"]}
    config |= {"max_position_embeddings": 24}
    tensors = {name: x / 3 for name, x in bert_tensors(config).items() if not name.startswith("classifier")}
    folder.mkdir(exist_ok=True)
    model = write(folder / inside, config, tensors)
    (model / "vocab.txt").write_bytes(vocabulary)
    put(model, "tokenizer_config.json", {"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer"})
    put(model, "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False} | (transformer or {}))
    listed = [("Transformer", inside), ("Pooling", "1_Pooling")]
    put(folder, "1_Pooling/config.json", {"word_embedding_dimension": 8} | pooling)
    for number, (kind, stated, weights) in enumerate(after, 2):
        listed.append((kind, f"{number}_{kind}"))
        if stated is not None:
            put(folder, f"{number}_{kind}/config.json", stated)
        if weights:
            arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in weights.items()}
            save_file(arrays, folder / f"{number}_{kind}" / "model.safetensors")
    put(folder, "modules.json", [
        {"idx": index, "name": str(index), "path": path, "type": f"{types}.{kind}"}
        for index, (kind, path) in enumerate(listed)
    ])  # fmt: skip
    put(folder, "config_sentence_transformers.json", {"__version__": {}} | (settings or {}))
    return folder


NORMALIZE = ("Normalize", None, {})
NORM = ("LayerNorm", {"dimension": 8},
        {"norm.weight": np.linspace(-1, 2, 8), "norm.bias": np.linspace(0, 1, 8)})  # fmt: skip
LEFT_OUT = {"include_prompt": False}
KINDS = {
    "cls": {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}},
    "max": {"pooling": {"pooling_mode_max_tokens": True}},
    "mean": {},
    "mean of root": {"pooling": {"pooling_mode_mean_sqrt_len_tokens": True}},
    "weighted mean": {"pooling": {"pooling_mode_weightedmean_tokens": True}},
    "last token": {"pooling": {"pooling_mode_lasttoken": True}},
    "several": {"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}},
    "several in today's order": {"pooling": {"pooling_mode": ["mean", "max", "cls"]}},
    "normalised": {"after": [NORMALIZE]},
    "dense": {"pooling": {"pooling_mode": "cls"}, "after": [("Dense", *dense(8, 6)), NORMALIZE]},
    "dense with residuals": {
        "after": [("Dense", *dense(8, 6, "activation.GELU", False, use_residual=True)),
                  ("Dense", *dense(6, 6, "linear.Identity", use_residual=True))],
    },
    "layer norm": {"after": [NORM, ("Dropout", {"dropout": 0.5}, {})]},
    "first dimensions": {"settings": {"truncate_dim": 3}},
    "short": {"transformer": {"max_seq_length": 6}},
    "lower-cased": {"transformer": {"do_lower_case": True}, "lowercase": False},
    "default prompt": {"settings": PROMPTS | {"default_prompt_name": "passage"}},
    "0_Transformer": {"inside": "0_Transformer"},
} | {
    f"prompt left out of {mode}": {
        "pooling": {"pooling_mode": mode} | LEFT_OUT, "settings": PROMPTS | {"default_prompt_name": "query"},
    }
    for mode in ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
}  # fmt: skip
