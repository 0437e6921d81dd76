"""Write small Hugging Face folders by hand."""

import json

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 20, "hidden_size": 8,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 16,
    "type_vocab_size": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "initializer_range": 0.02, "id2label": {"0": "bad", "1": "good", "2": "so so"},
}  # fmt: skip


def bert_tensors(config=CONFIG, dtype=np.float32, seed=0):
    """Draw BERT's tensors with a classifier, by the names of transformers."""
    V, D, F = (config[key] for key in ("vocab_size", "hidden_size", "intermediate_size"))
    shapes = {
        "bert.embeddings.word_embeddings.weight": (V, D),
        "bert.embeddings.position_embeddings.weight": (config["max_position_embeddings"], D),
        "bert.embeddings.token_type_embeddings.weight": (config["type_vocab_size"], D),
        "bert.embeddings.LayerNorm.weight": (D,),
        "bert.embeddings.LayerNorm.bias": (D,),
        "bert.pooler.dense.weight": (D, D),
        "bert.pooler.dense.bias": (D,),
        "classifier.weight": (3, D),
        "classifier.bias": (3,),
    }
    for n in range(config["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{n}"
        for name, shape in {
            "attention.self.query": (D, D), "attention.self.key": (D, D), "attention.self.value": (D, D),
            "attention.output.dense": (D, D), "attention.output.LayerNorm": (D,), "intermediate.dense": (F, D),
            "output.dense": (D, F), "output.LayerNorm": (D,),
        }.items():  # fmt: skip
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write(folder, config=CONFIG, tensors=None, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file({key: np.ascontiguousarray(array) for key, array in tensors.items()}, folder / name)
    return folder


def write_shards(folder, config=CONFIG, tensors=None, shards=3):
    """Write the tensors in several files, and their index."""
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        write(folder, config, part, file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
