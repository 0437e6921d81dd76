import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.checkpoints.export import save_hf
from bertjax.checkpoints.trained import Model
from bertjax.commands.main import main
from bertjax.errors import InputError
from bertjax.inference.embed import embed
from bertjax.masking import Masking
from bertjax.models.encoder import Encoder
from bertjax.objectives.mlm import MaskedLM
from bertjax.serialization.description import to_json


@pytest.fixture(scope="module")
def model(tokenizer):
    v = tokenizer.vocabulary
    encoder = Encoder(V=v.size, D=8, N=1, H=2, F=12, positions=40)
    objective = MaskedLM(encoder, Masking(v.mask, (0, v.size), (v.cls, v.sep)))
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(objective.init)(jax.random.key(0), {"tokens": tokens, "mask": tokens})
    return Model(objective, params, tokenizer, {"objective": to_json(objective)})


TEXTS = ["the man", "good work in the long week of the large company", "woman", "the man"]


def test_an_embedding_is_the_mean_of_the_states_of_all_tokens_of_length_1(model):
    v = model.tokenizer.vocabulary
    for text, vector in zip(TEXTS, embed(model, TEXTS, batch_size=3), strict=True):
        ids = [v.cls, *model.tokenizer.ids([text])[0], v.sep]
        x_LD = np.asarray(model.encode({"tokens": jnp.array([ids]), "mask": jnp.ones((1, len(ids)), jnp.int32)}))[0]
        mean_D = x_LD.mean(0)
        np.testing.assert_allclose(vector, mean_D / np.linalg.norm(mean_D), atol=1e-6)


def test_long_texts_are_refused_or_cut(model):
    long = "time " * 50
    with pytest.raises(
        InputError, match="52 tokens exceed the 40 positions of the model: truncate with --max-length 40"
    ):
        next(embed(model, [long]))
    with pytest.raises(InputError, match="max_length=41, but the model has 40 positions"):
        next(embed(model, [long], max_length=41))
    said = []
    (cut,) = embed(model, [long], max_length=10, say=said.append)
    assert said == ["1 text truncated to 10 tokens"]
    (same,) = embed(model, ["time " * 8])
    np.testing.assert_allclose(cut, same, atol=1e-6)
    with pytest.raises(InputError, match="1 token: a text has 2 special ones alone"):
        next(embed(model, [long], max_length=1))


def test_the_command_embeds_texts_and_lines(model, tmp_path, capsys, monkeypatch):
    save_hf(model, tmp_path / "model")
    command = ["predict", "embed", "--model", str(tmp_path / "model"), "--json"]
    assert main([*command, *TEXTS]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    np.testing.assert_allclose([line["embedding"] for line in lines], list(embed(model, TEXTS)), atol=1e-6)
    monkeypatch.setattr("sys.stdin", io.StringIO("the man\n\nwoman\n"))
    assert main(command[:-1]) == 0
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line[:1] != " "] == ["the man", "", "woman"]
    assert "1 blank text, embedded by its special tokens alone" in err
