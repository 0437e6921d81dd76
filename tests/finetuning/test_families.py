import jax
import numpy as np
import pytest
from contract import (
    small_bert,
    small_crammed,
    small_deberta,
    small_deberta_v2,
    small_modernbert,
    small_mosaicbert,
    small_neobert,
    small_roberta,
)

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.export import save_hf
from bertjax.checkpoints.trained import load
from bertjax.finetuning.families import family_of
from bertjax.models.published import Published
from bertjax.serialization.description import to_json

NAMES = (
    "bert", "roberta", "deberta", "deberta-large", "deberta-v2", "deberta-v3-small", "deberta-v3-large", "modernbert",
    "mosaicbert", "neobert", "crammed",
)  # fmt: skip


def written(encoder, tokenizer, folder):
    """Write an encoder whose shapes alone are looked at: no parameter is made."""
    model = Published(encoder, ())
    tokens = np.zeros((1, 1), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"tokens": tokens, "mask": tokens})
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes) if encoder.D < 64 else {"x": np.zeros(1)}
    checkpoint.export(folder, params, experiment={"objective": to_json(model)}, tokenizer=tokenizer)
    return folder


@pytest.mark.parametrize(
    ("encoder", "family"),
    [
        (small_bert(), "bert"),
        (small_roberta(), "roberta"),
        (small_deberta(), "deberta"),
        (small_deberta(D=1024, N=24, H=16), "deberta-large"),
        (small_deberta_v2(), "deberta-v2"),
        (small_deberta_v2(D=768, N=6, H=12, E=None), "deberta-v3-small"),
        (small_deberta_v2(D=1024, N=24, H=16, E=None), "deberta-v3-large"),
        (small_modernbert(), "modernbert"),
        (small_mosaicbert(), "mosaicbert"),
        (small_neobert(), "neobert"),
        (small_crammed(), "crammed"),
    ],
)
def test_the_narrowest_family_is_found(encoder, family, tokenizer, tmp_path):
    folder = written(encoder, tokenizer, tmp_path / "model")
    assert family_of(folder, NAMES) == family
    assert family_of(folder, ["xlnet"]) == ""


def test_a_folder_of_transformers_is_of_its_model_type(tokenizer, tmp_path):
    folder = written(small_bert(V=tokenizer.vocabulary.size), tokenizer, tmp_path / "model")
    save_hf(load(folder), tmp_path / "theirs")
    assert family_of(tmp_path / "theirs", NAMES) == "bert"
