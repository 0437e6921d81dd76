"""Small Hugging Face folders, written by hand, and models of ours to be written to such folders."""

import json
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ENCODERS, small_xlnet
from safetensors.numpy import save_file
from texts import with_spaces_in_pieces

from bertjax.checkpoints.trained import Model, load
from bertjax.errors import InputError
from bertjax.huggingface.families import FAMILIES
from bertjax.masking import Masking
from bertjax.models import layers
from bertjax.models.deberta import DeBERTa
from bertjax.models.encoder import Encoder
from bertjax.models.published import Published
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.plm import PermutationLM
from bertjax.permutation import Permutation
from bertjax.serialization.description import to_json

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


WORD, BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
DECODER = "cls.predictions.decoder.weight"
TOKENS = jnp.array([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
BATCH = {"tokens": TOKENS, "mask": jnp.ones_like(TOKENS)}
PRETRAINING = CONFIG | {"architectures": ["BertForPreTraining"]}


def pretraining_tensors(V=20):
    rng = np.random.default_rng(1)
    shapes = {
        "cls.predictions.bias": (V,), "cls.predictions.transform.dense.weight": (8, 8),
        "cls.predictions.transform.dense.bias": (8,), "cls.predictions.transform.LayerNorm.weight": (8,),
        "cls.predictions.transform.LayerNorm.bias": (8,), "cls.seq_relationship.weight": (2, 8),
        "cls.seq_relationship.bias": (2,),
    }  # fmt: skip
    kept = {n: a for n, a in bert_tensors(CONFIG | {"vocab_size": V}).items() if not n.startswith("classifier")}
    return kept | {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def own_model(objective, tokenizer, seed=0):
    shapes = {**BATCH, "types": jnp.zeros_like(TOKENS)}
    params = jax.eval_shape(objective.init, jax.random.key(seed), shapes)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) / 4, params)
    return Model(objective, params, tokenizer, {"objective": to_json(objective)})


def small_v2(v, **fields):
    given = {"distances": 16, "buckets": 4, "table_norm": True, "convolution": 3, "positions": 16} | fields
    return DeBERTa(V=v.size, D=8, N=2, H=2, F=12, **given)


def own_objectives(v):
    """Return objectives by the class of transformers that each of them becomes."""
    masking = Masking(v.mask, (0, v.size), (v.cls, v.sep))
    small = {"V": v.size, "D": 8, "N": 2, "H": 2, "F": 12, "positions": 16}
    return {
        "BertForPreTraining": MaskedLM(Encoder(**small), masking, pair=True),
        "BertForMaskedLM": MaskedLM(Encoder(**small | {"types": 0, "activation": layers.gelu_tanh}), masking),
        "AlbertForPreTraining": MaskedLM(
            Encoder(**small, E=4, shared=True, activation=layers.gelu_tanh), masking, pair=True
        ),
        "ElectraForMaskedLM": MaskedLM(Encoder(**small, E=4), masking),
        "XLNetLMHeadModel": PermutationLM(
            small_xlnet(V=v.size), Permutation(functional=(v.cls, v.sep), parts=(8, 8), targets=2)
        ),
    }


def family_of_row(name):
    """Return the family of an encoder of the contract, None where transformers has none."""
    return FAMILIES.get(name.replace(" ", "-"))


OWN = ["BertForPreTraining", "BertForMaskedLM", "AlbertForPreTraining", "ElectraForMaskedLM", "XLNetLMHeadModel"]
OF_FAMILIES = [name for name in ENCODERS if family_of_row(name)]
LANGUAGE = ("ForMaskedLM", "LMHeadModel")


def make_own(name, tokenizer):
    """Return a model of OWN or OF_FAMILIES, and the class of transformers that it becomes."""
    if name in OWN:
        return own_model(own_objectives(tokenizer.vocabulary)[name], tokenizer), name
    family, encoder = family_of_row(name), ENCODERS[name](V=tokenizer.vocabulary.size)
    if getattr(encoder, "first_position", 0):  # that of a vocabulary whose padding has another id
        tokenizer = with_spaces_in_pieces("bpe")
        encoder = encoder.clone(V=tokenizer.vocabulary.size)
    class_name, (head,) = next((each, heads) for each, heads in family.classes.items() if each.endswith(LANGUAGE))
    published = Published(encoder, ((head, encoder.language_head()),), family.cls_last)
    return own_model(published, tokenizer), class_name


def refused(folder, message):
    """See that loading fails with this message, in a second and 100 MB."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(InputError, match=message):
        load(folder)
    assert time.monotonic() - begun < 5  # a second where nothing else runs
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
