"""Warm starts from a folder: which parameters are loaded, freshly initialised or refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from hub_folders import BATCH, DECODER, PRETRAINING, WORD, bert_tensors, pretraining_tensors, write
from safetensors.numpy import load_file
from texts import wordpiece_files

from bertjax.checkpoints.trained import load
from bertjax.checkpoints.warm_start import warm_start
from bertjax.config import Experiment, Phase, Run
from bertjax.data.pairs import NextSentencePairs
from bertjax.errors import InputError
from bertjax.inference.fill_mask import fill_mask
from bertjax.masking import Masking
from bertjax.models.encoder import Encoder
from bertjax.objectives.distil import Distillation
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import BertLinear
from bertjax.rules import name_of
from bertjax.train import fit


def experiment(objective, corpus, init, **optimizer):
    adam = dataclasses.replace(bert_adam(BertLinear(1e-3, 1, 1)), **optimizer)
    run = Run(evaluate_every=0, evaluate_batches=1)
    return Experiment(objective, adam, (Phase(1, 8, NextSentencePairs(corpus, 32)),), init=init, run=run)


@pytest.fixture
def pretrained(tokenizer, tmp_path):
    """Write a folder of BERT for pre-training with the tokenizer of the test corpus."""
    v = tokenizer.vocabulary
    config = PRETRAINING | {"vocab_size": v.size, "max_position_embeddings": 64}
    resized = bert_tensors(config)
    tensors = {name: resized.get(name, array) for name, array in pretraining_tensors(v.size).items()}
    folder = write(tmp_path / "pretrained", config, tensors)
    for name, content in wordpiece_files().items():
        (folder / name).write_bytes(content)
    return folder


def test_init_loads_parameters_from_a_folder(pretrained, tokenizer):
    v = tokenizer.vocabulary
    masking = Masking(v.mask, (0, v.size), (v.cls, v.sep))
    encoder = Encoder(V=v.size, D=8, N=2, H=2, F=12, positions=64)
    theirs = {name_of(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(load(pretrained).params)}

    def start(objective):
        like = jax.eval_shape(objective.init, jax.random.key(0), BATCH)
        return warm_start(str(pretrained), objective, like, tokenizer)

    found = start(MaskedLM(encoder, masking, pair=True))
    assert found.params.keys() == theirs.keys() and not found.note
    assert all((found.params[name] == array).all() for name, array in theirs.items())
    # An encoder without segments takes the first one's vector with every position.
    found = start(MaskedLM(encoder.clone(types=0), masking))
    np.testing.assert_array_equal(
        found.params["encoder/embeddings/position/table"],
        theirs["encoder/embeddings/position/table"] + theirs["encoder/embeddings/type/table"][:1],
    )
    with pytest.raises(InputError, match=r"of shape .* make the model as large as that one"):
        start(MaskedLM(encoder.clone(F=14), masking))
    with pytest.raises(InputError, match=rf"may be padded, so set objective\.encoder\.V={v.size}$"):
        start(MaskedLM(encoder.clone(V=v.size + 3), masking))


def test_tensors_ignored_in_a_warm_start_are_reported(pretrained, tokenizer):
    v = tokenizer.vocabulary
    tensors = load_file(pretrained / "model.safetensors")
    config = json.loads((pretrained / "config.json").read_text())
    write(pretrained, config, tensors | {"cls.predictions.decoder.weight": tensors[WORD]})
    objective = MaskedLM(Encoder(V=v.size, D=8, N=2, H=2, F=12, positions=64), Masking(v.mask, (0, v.size)))
    like = jax.eval_shape(objective.init, jax.random.key(0), BATCH)
    found = warm_start(str(pretrained), objective, like, tokenizer)
    assert found.note == f"; ignored cls.predictions.decoder.weight (the same as {WORD}) of {pretrained}"


def test_a_head_with_a_table_of_its_own_is_taken_whole_or_not_at_all(pretrained, tokenizer):
    v = tokenizer.vocabulary
    tensors = load_file(pretrained / "model.safetensors")
    config = json.loads((pretrained / "config.json").read_text()) | {"tie_word_embeddings": False}
    own = {DECODER: tensors[WORD] + 1, "cls.predictions.decoder.bias": tensors["cls.predictions.bias"]}
    write(pretrained, config, tensors | own)
    encoder = Encoder(V=v.size, D=8, N=2, H=2, F=12, positions=64)
    untied, masking = encoder.clone(tied_head=False), Masking(v.mask, (0, v.size))

    def start(objective):
        like = jax.eval_shape(objective.init, jax.random.key(0), BATCH)
        return warm_start(str(pretrained), objective, like, tokenizer)

    found = start(MaskedLM(untied, masking, pair=True))
    assert not found.note and (found.params["head/mlm/decoder"] == own[DECODER]).all()
    assert "student/head/mlm/decoder" in start(Distillation(untied, untied, masking)).params
    for objective in (MaskedLM(encoder, masking), Distillation(encoder, untied, masking)):
        with pytest.raises(InputError, match=r"an untied language head, .*head/mlm/decoder, .* set tied_head=false"):
            start(objective)
    pretrained = f"{pretrained}:encoder"  # of it alone there is nothing to leave out
    assert {name.split("/")[0] for name in start(MaskedLM(encoder, masking)).params} == {"encoder"}


def test_pre_training_warm_starts_from_a_folder_without_heads_and_tokenizer_with_a_note(
    pretrained, tokenizer, corpus, tmp_path, capsys
):
    v = tokenizer.vocabulary
    (pretrained / "vocab.txt").unlink()
    tensors = load_file(pretrained / "model.safetensors")
    config = json.loads((pretrained / "config.json").read_text()) | {"architectures": ["BertModel"]}
    write(pretrained, config, {name: array for name, array in tensors.items() if not name.startswith("cls.")})
    encoder = Encoder(V=v.size, D=8, N=2, H=2, F=12, positions=64)
    objective = MaskedLM(encoder, Masking(v.mask, (0, v.size), (v.cls, v.sep)), pair=True)
    state = fit(experiment(objective, corpus, str(pretrained), rates=((".*", 0.0),)), tmp_path / "run")
    np.testing.assert_array_equal(state.params["encoder"]["embeddings"]["word"]["table"], tensors[WORD])
    said = next(line for line in capsys.readouterr().err.splitlines() if "parameters from" in line)
    made, note = said.split("freshly initialised: ")[1].split("; ")
    pair = {"head/pair/classifier/bias", "head/pair/classifier/kernel"}
    assert {name for name in made.split(", ") if "mlm" not in name} == pair
    assert note == "it came without tokenizer, so its ids are taken to be the corpus's"


def test_a_folder_with_another_tokenizer_cannot_go_on_with_this_corpus(pretrained, tokenizer, corpus, tmp_path):
    v = tokenizer.vocabulary
    objective = MaskedLM(Encoder(V=v.size, D=8, N=2, H=2, F=12, positions=64), Masking(v.mask, (0, v.size)))
    lines = (pretrained / "vocab.txt").read_text().split("\n")
    (pretrained / "vocab.txt").write_text("\n".join(lines[:-2] + lines[:-3:-1]))
    with pytest.raises(InputError, match="another tokenizer than the corpus"):
        fit(experiment(objective, corpus, str(pretrained)), tmp_path / "run")


def test_a_table_may_be_longer_than_the_tokenizer_and_not_shorter(pretrained, tokenizer):
    model = load(pretrained)
    (filled,) = fill_mask(model, ["the [MASK] man"])
    assert len(filled.masks) == 1
    padded = load_file(pretrained / "model.safetensors")
    config = json.loads((pretrained / "config.json").read_text())
    for by in (3, -3):
        V = tokenizer.vocabulary.size + by
        for name in (WORD, "cls.predictions.bias"):
            padded[name] = np.resize(padded[name], (V, *padded[name].shape[1:]))
        write(pretrained, config | {"vocab_size": V}, padded)
        if by > 0:
            assert load(pretrained).mlm_logits(BATCH).shape == (2, 5, V)
            encoder = Encoder(V=V - by, D=8, N=2, H=2, F=12, positions=64)
            masking = Masking(tokenizer.vocabulary.mask, (0, V - by))
            objective = MaskedLM(encoder, masking)
            like = jax.eval_shape(objective.init, jax.random.key(0), BATCH)
            with pytest.raises(InputError, match=rf"may be padded, so set objective\.encoder\.V={V}$"):
                warm_start(str(pretrained), objective, like, tokenizer)
            two = Distillation(encoder.clone(N=1), encoder, masking)
            like = jax.eval_shape(two.init, jax.random.key(0), BATCH)
            with pytest.raises(InputError, match=rf"so set objective\.student\.V={V} objective\.teacher\.V={V}$"):
                warm_start(str(pretrained), two, like, tokenizer)
            continue
        with pytest.raises(InputError, match=f"the tokenizer has {V + 3} ids, vocab_size is only {V}"):
            load(pretrained)
