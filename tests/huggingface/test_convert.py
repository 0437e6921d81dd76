"""Folders in and out: dtypes, tied copies, old names, shards, our own models, training that goes on from a folder."""

import json
import math
import os
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from contract import small_bert, small_generator, small_neobert
from hub_folders import (
    BATCH,
    BIAS,
    CONFIG,
    DECODER,
    OF_FAMILIES,
    OWN,
    PRETRAINING,
    WORD,
    bert_tensors,
    make_own,
    own_model,
    pretraining_tensors,
    refused,
    small_v2,
    write,
    write_shards,
)
from safetensors.numpy import load_file
from texts import with_spaces_in_pieces, wordpiece_files

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.export import convert, save_hf
from bertjax.checkpoints.trained import Model, encoder_alone, load
from bertjax.checkpoints.warm_start import warm_start
from bertjax.commands.main import main
from bertjax.data.tokenizer import load_tokenizer, same_tokenizer, tokenizer_from_files
from bertjax.errors import InputError
from bertjax.huggingface.table import activation
from bertjax.inference.fill_mask import fill_mask
from bertjax.masking import Masking
from bertjax.models import layers
from bertjax.models.deberta import DeBERTa
from bertjax.models.encoder import Encoder
from bertjax.models.layers import Normal
from bertjax.models.modern import Modern, Norms
from bertjax.models.positions import Rotary
from bertjax.models.published import Published
from bertjax.objectives.distil import Distillation
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.rtd import Discriminator, ReplacedTokenDetection, deberta_discriminator_head
from bertjax.rules import name_of

TENSORS = bert_tensors()
POSITIONS = "deberta.embeddings.position_embeddings.weight"


def flat(tree):
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def same(folder, tensors):
    found = load_file(folder / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_folder_comes_back_byte_by_byte_through_a_checkpoint_in_its_own_dtype(dtype, tmp_path):
    tensors = {name: array.astype(dtype) for name, array in TENSORS.items()}
    tensors["classifier.bias"] = TENSORS["classifier.bias"]  # a head that was not halved
    write(tmp_path / "theirs", CONFIG, tensors)
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    model = load(tmp_path / "ours")
    assert model.tokenizer is None and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model.params))
    np.testing.assert_array_equal(model.logits(BATCH), load(tmp_path / "theirs").logits(BATCH))
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "again"), "--to", "huggingface"]) == 0
    same(tmp_path / "again", tensors)
    assert json.loads((tmp_path / "again" / "config.json").read_text()).items() >= CONFIG.items()


def test_converting_tells_what_it_wrote_with_the_modes_of_the_umask(tmp_path, capsys):
    write(tmp_path / "theirs", CONFIG, TENSORS)
    before = os.umask(0o027)
    try:
        for to in ("bertjax", "huggingface"):
            (tmp_path / to).mkdir(mode=0o700)  # a folder that is there and empty
            assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / to), "--to", to]) == 0
    finally:
        os.umask(before)
    said = capsys.readouterr().err
    assert f"{tmp_path / 'huggingface'}: written, 0.0 MB: config.json, model.safetensors" in said
    assert f"{tmp_path / 'bertjax'}: written, " in said and "params/" in said
    for to in ("bertjax", "huggingface"):
        for path in (tmp_path / to, *(tmp_path / to).rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


def test_shards_are_one_model(tmp_path):
    whole, parts = write(tmp_path / "whole", CONFIG, TENSORS), write_shards(tmp_path / "parts", CONFIG, TENSORS)
    for a, b in zip(jax.tree.leaves(load(whole).params), jax.tree.leaves(load(parts).params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_copies_of_tied_tensors_and_buffers_are_ignored_with_their_reason_and_others_are_refused(tmp_path):
    tensors = pretraining_tensors()
    copies = {
        "cls.predictions.decoder.weight": tensors[WORD],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
        "bert.embeddings.position_ids": np.arange(16)[None],
    }
    model = load(write(tmp_path / "copies", PRETRAINING, tensors | copies))
    assert model.config["huggingface"]["ignored"] == {
        "cls.predictions.decoder.weight": f"the same as {WORD}",
        "cls.predictions.decoder.bias": "the same as cls.predictions.bias",
        "bert.embeddings.position_ids": "a buffer that counts, which nothing learns",
    }
    save_hf(model, tmp_path / "again")
    same(tmp_path / "again", tensors)
    bias = tensors.pop(BIAS)  # one of two names is enough
    model = load(write(tmp_path / "other", PRETRAINING, tensors | {"cls.predictions.decoder.bias": bias}))
    np.testing.assert_array_equal(model.params["head"]["mlm"]["bias"], bias)
    headless = TENSORS | {"cls.predictions.decoder.weight": tensors[WORD] + 1}
    refused(
        write(tmp_path / "headless", CONFIG, headless), "decoder.weight differs from .*there is no head that it bel"
    )


def test_ignored_tensors_are_reported(tmp_path, capsys):
    copies = {"cls.predictions.decoder.weight": pretraining_tensors()[WORD]}
    copies |= {f"bert.{n}.embeddings.position_ids": np.arange(16)[None] for n in range(4)}
    folder = str(write(tmp_path / "copies", PRETRAINING, pretraining_tensors() | copies))
    for to in ("bertjax", "huggingface"):
        capsys.readouterr()
        assert main(["convert", folder, str(tmp_path / to), "--to", to]) == 0
        line, wrote = capsys.readouterr().err.splitlines()
        assert ": written, " in wrote and line.startswith("ignored ") and line.endswith(f" and 2 more of {folder}")
        assert "bert.0.embeddings.position_ids (a buffer that counts, which nothing learns)" in line
    assert not convert(tmp_path / "bertjax", tmp_path / "again")  # they are not in there


def test_a_head_is_untied_by_its_config_or_its_decoder(tmp_path, capsys):
    tensors = pretraining_tensors()
    untied = PRETRAINING | {"tie_word_embeddings": False}
    own = {DECODER: tensors[WORD] + 1, "cls.predictions.decoder.bias": tensors[BIAS]}
    written = tensors | own
    for name, config, given in (
        ("said", untied, written),
        ("equal", untied, tensors | own | {DECODER: tensors[WORD]}),
        ("older", untied, {name: array for name, array in written.items() if not name.endswith("decoder.bias")}),
        ("seen", PRETRAINING, written),
    ):
        model = load(write(tmp_path / name, config, given))
        assert not model.encoder.tied_head and not model.config["huggingface"]["ignored"]
        np.testing.assert_array_equal(model.params["head"]["mlm"]["decoder"], given[DECODER])
        capsys.readouterr()
        assert main(["convert", str(tmp_path / name), str(tmp_path / f"{name} again"), "--to", "huggingface"]) == 0
        said = capsys.readouterr().err
        assert ("differs from bert.embeddings.word_embeddings.weight, so it is read as untied" in said) == (
            name == "seen"
        )
        same(tmp_path / f"{name} again", tensors | own | {DECODER: given[DECODER]})
        assert json.loads((tmp_path / f"{name} again" / "config.json").read_text())["tie_word_embeddings"] is False
    refused(write(tmp_path / "lacking", untied, tensors), r"lacks cls.predictions.decoder.weight, which tie_word_emb")
    load(write(tmp_path / "classifier", CONFIG | {"tie_word_embeddings": False}, TENSORS))  # has no such head


@pytest.mark.parametrize("tied", [True, False])
def test_of_two_biases_that_differ_the_decoders_is_read(tied, tmp_path):
    tensors = pretraining_tensors()
    given = tensors | {"cls.predictions.decoder.bias": tensors[BIAS] + 1} | ({} if tied else {DECODER: tensors[WORD]})
    model = load(write(tmp_path / "theirs", PRETRAINING | {"tie_word_embeddings": tied}, given))
    np.testing.assert_array_equal(model.params["head"]["mlm"]["bias"], tensors[BIAS] + 1)
    assert model.config["huggingface"]["ignored"] == {BIAS: "cls.predictions.decoder.bias is read instead"}
    save_hf(model, tmp_path / "again")
    expected = given | {BIAS: tensors[BIAS] + 1}
    same(tmp_path / "again", {n: a for n, a in expected.items() if not tied or n != "cls.predictions.decoder.bias"})


def test_old_names_of_norms_and_an_encoder_without_prefix(tmp_path):
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in TENSORS.items()
    }
    np.testing.assert_array_equal(
        load(write(tmp_path / "old", CONFIG, old)).logits(BATCH),
        load(write(tmp_path / "new", CONFIG, TENSORS)).logits(BATCH),
    )
    bare = {n.removeprefix("bert."): a for n, a in TENSORS.items() if not n.startswith("classifier")}
    model = load(write(tmp_path / "bare", CONFIG | {"architectures": ["BertModel"]}, bare))
    np.testing.assert_array_equal(model.encode(BATCH), load(tmp_path / "new").encode(BATCH))
    save_hf(model, tmp_path / "again")
    same(tmp_path / "again", bare)
    save_hf(load(f"{tmp_path / 'new'}:encoder"), tmp_path / "alone")
    same(tmp_path / "alone", {name: array for name, array in bare.items() if not name.startswith("pooler")})
    assert json.loads((tmp_path / "alone" / "config.json").read_text())["architectures"] == ["BertModel"]
    for use, what in ((model.logits, "task"), (model.mlm_logits, "language-model")):
        with pytest.raises(InputError, match=f"no {what} head: its heads are pair"):
            use(BATCH)


def test_heads_beyond_the_class_of_the_config_are_kept(tmp_path):
    """The published BERTs are said to be for masked LM, and carry the pair head too."""
    tensors = pretraining_tensors()
    model = load(write(tmp_path / "bert", CONFIG | {"architectures": ["BertForMaskedLM"]}, tensors))
    assert set(model.params["head"]) == {"mlm", "pair"} and model.logits(BATCH).shape == (2, 2)
    save_hf(model, tmp_path / "again")
    same(tmp_path / "again", tensors)


@pytest.mark.parametrize("name", OWN + OF_FAMILIES)
def test_our_own_models_become_the_class_that_computes_the_same(name, tokenizer, tmp_path):
    model, class_name = make_own(name, tokenizer)
    save_hf(model, tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    v = model.tokenizer.vocabulary
    assert config["architectures"] == [class_name] and config["vocab_size"] == v.size
    again = load(tmp_path / "theirs")
    np.testing.assert_array_equal(again.mlm_logits(BATCH), model.mlm_logits(BATCH))
    assert same_tokenizer(again.tokenizer, model.tokenizer)
    assert again.objective.special_tokens(v) == model.objective.special_tokens(v)
    if name == "BertForPreTraining":
        (ours,), (theirs,) = (list(fill_mask(each, ["the [MASK] man"])) for each in (model, again))
        assert [[g.piece for g in guesses] for guesses in ours.masks] == [[g.piece for g in m] for m in theirs.masks]


class Unknown(Encoder):
    """An encoder that no family has."""


def test_an_encoder_that_no_family_has_is_refused(tokenizer, tmp_path):
    v = tokenizer.vocabulary
    encoder = Unknown(V=v.size, D=8, N=1, H=2, F=12, positions=16)
    with pytest.raises(InputError, match="no class for the encoder Unknown: bertjax writes bert, roberta"):
        save_hf(own_model(Published(encoder), tokenizer), tmp_path / "new")


def test_an_encoder_that_no_family_has_is_taken_alone(tokenizer):
    v = tokenizer.vocabulary
    objective = MaskedLM(Unknown(V=v.size, D=8, N=1, H=2, F=12, positions=16), Masking(v.mask, (0, v.size)))
    alone = encoder_alone(own_model(objective, tokenizer))
    assert type(alone.encoder) is Unknown and alone.params.keys() == {"encoder"}


def test_models_without_a_class_of_transformers_are_refused(tokenizer, tmp_path):
    v = tokenizer.vocabulary
    masking = Masking(v.mask, (0, v.size), (v.cls, v.sep))
    small = {"V": v.size, "D": 8, "N": 2, "H": 2, "F": 12, "positions": 16}
    cases = {
        "no electra class with the heads mlm, pair": MaskedLM(Encoder(**small, E=4), masking, pair=True),
        "electra of transformers cannot have activation=gelu_tanh in its mlm, only gelu": MaskedLM(
            Encoder(**small, E=4, activation=layers.gelu_tanh), masking
        ),
        "roberta of transformers needs the pad piece at id 1.* at 0": MaskedLM(
            Encoder(**small | {"first_position": 2}), masking
        ),
        "one of its parts, folder:discriminator or folder:generator$": ReplacedTokenDetection(
            small_generator(V=v.size), small_bert(V=v.size), masking
        ),
        "one of its parts, folder:student or folder:teacher$": Distillation(
            Encoder(**small | {"N": 1}), Encoder(**small), masking
        ),
    }
    for message, objective in cases.items():
        with pytest.raises(InputError, match=message):
            save_hf(own_model(objective, tokenizer), tmp_path / "new")
    with pytest.raises(InputError, match="no architecture 'gpt2': choose one of bert"):
        save_hf(own_model(cases["no electra class with the heads mlm, pair"], tokenizer), tmp_path / "new", "gpt2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="is not empty"):
        save_hf(own_model(cases["no electra class with the heads mlm, pair"], tokenizer), tmp_path / "full")


@pytest.fixture
def released(released_once, tmp_path):
    """Return DeBERTa-v3's folder as it is released: few keys, old names, tensors that transformers does not read."""
    folder, model, config, tensors, other = released_once
    shutil.copytree(folder / "ours", tmp_path / "ours")
    return model, dict(config), dict(tensors), dict(other)


@pytest.fixture(scope="module")
def released_once(tokenizer, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("released")
    v = tokenizer.vocabulary
    encoder = small_v2(v, convolution=None, shared_projections=True)
    model = own_model(MaskedLM(encoder, Masking(v.mask, (0, v.size))), tokenizer)
    save_hf(model, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    dropped = ("architectures", "legacy", "embedding_size", "conv_kernel_size", "conv_act", "tie_word_embeddings")
    config = {key: value for key, value in config.items() if key not in dropped} | {
        "pos_att_type": "p2c|c2p", "max_relative_positions": -1, "pooler_hidden_size": 8, "attention_head_size": 4,
    }  # fmt: skip
    tensors = {
        name.replace("cls.predictions.transform", "cls.predictions").replace("cls.pred", "lm_pred"): array
        for name, array in load_file(tmp_path / "ours" / "model.safetensors").items()
    }
    tensors = {name.replace("lm_predictions", "lm_predictions.lm_head"): array for name, array in tensors.items()}
    rng = np.random.default_rng(2)
    shapes = {
        "LayerNorm.weight": (8,), "LayerNorm.bias": (8,), "dense.weight": (8, 8), "dense.bias": (8,),
        "classifier.weight": (1, 8), "classifier.bias": (1,),
    }  # fmt: skip
    other = {f"mask_predictions.{name}": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    other[POSITIONS] = rng.normal(size=(16, 8)).astype(np.float32)
    return tmp_path, model, config, tensors, other


def test_released_deberta_is_its_encoder_its_mask_decoder_and_both_heads(released, tokenizer, tmp_path):
    model, config, tensors, other = released
    added = {f"deberta.embeddings.{name}_embeddings._weight": np.ones((2, 2)) for name in ("word", "position")}
    misspelt = {name.replace("classifier", "classifer"): array for name, array in other.items()}
    again = load(write(tmp_path / "theirs", config, tensors | misspelt | added))
    np.testing.assert_array_equal(again.encode(BATCH), model.encode(BATCH))
    assert again.encoder.decoder == 2 and again.config["huggingface"]["ignored"].keys() == added.keys()
    assert again.logits(BATCH).shape == (2, 5) and again.mlm_logits(BATCH).shape == (2, 5, tokenizer.vocabulary.size)
    assert convert(tmp_path / "theirs", tmp_path / "again", to="huggingface")[1:] == [
        f"wrote head/{head} by the names of the released weights: transformers has no class with it, and lists "
        f"{names}.* as unexpected; FOLDER:encoder is the encoder alone"
        for head, names in (("mlm", "lm_predictions"), ("rtd", "mask_predictions"))
    ]
    same(tmp_path / "again", tensors | other)
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written.items() >= config.items() and "conv_kernel_size" not in written
    (note,) = convert(f"{tmp_path / 'again'}:encoder", tmp_path / "alone", to="huggingface")
    assert note.startswith("ignored lm_predictions.lm_head") and "(not of the encoder)" in note
    alone = {name.removeprefix("deberta."): array for name, array in tensors.items() if name.startswith("deberta.")}
    same(tmp_path / "alone", alone)
    # A head that was trained after the decoder is not taken without it.
    v = tokenizer.vocabulary
    for decoder in (0, 2):
        objective = MaskedLM(model.encoder.clone(decoder=decoder), Masking(v.mask, (0, v.size)))
        like = jax.eval_shape(objective.init, jax.random.key(0), BATCH)
        if decoder:
            assert warm_start(str(tmp_path / "theirs"), objective, like, tokenizer).params.keys() == flat(like).keys()
        else:
            with pytest.raises(InputError, match="after a mask decoder, this experiment has none: set decoder=2"):
                warm_start(str(tmp_path / "theirs"), objective, like, tokenizer)


@pytest.mark.parametrize(
    ("keys", "given", "ignored"),
    [
        ({}, {"lm_predictions"}, "whose positions the folder lacks"),
        ({}, {POSITIONS}, "whose head the folder lacks"),
        ({}, {POSITIONS, "lm_predictions", "cls"}, "words are guessed by cls.predictions"),
        ({"legacy": False}, {POSITIONS, "lm_predictions"}, "after which a head of legacy=false does not stand"),
    ],
)
def test_unusable_tensors_of_the_mask_decoder_are_ignored_with_a_reason(keys, given, ignored, released, tmp_path):
    _, config, tensors, other = released
    tensors = tensors | other | load_file(tmp_path / "ours" / "model.safetensors")
    parts = ("deberta.encoder", "deberta.embeddings.word", "deberta.embeddings.L", *given)
    kept = {name: array for name, array in tensors.items() if name.startswith(parts)}
    again = load(write(tmp_path / "theirs", config | keys, kept))
    reasons = set(again.config["huggingface"]["ignored"].values())
    assert len(reasons) == 1 and ignored in reasons.pop() and not again.encoder.decoder
    assert set(again.params.get("head", {})) == ({"mlm"} if "cls" in given or keys else set())


def test_debertas_head_of_new_names_computes_what_that_of_old_names_does(released, tmp_path):
    model, config, tensors, _ = released
    # There this head shares the word table whatever the config says.
    config |= {"architectures": ["DebertaV2ForMaskedLM"], "legacy": False, "tie_word_embeddings": False}
    again = load(write(tmp_path / "theirs", config, tensors))
    np.testing.assert_array_equal(again.mlm_logits(BATCH), model.mlm_logits(BATCH))
    save_hf(again, tmp_path / "again")
    same(tmp_path / "again", tensors)


NOT_OURS = {
    "relative_attention": (False, "relative_attention: False is not supported, only true is"),
    "position_biased_input": (True, "position_biased_input: True is not supported, only false is"),
    "type_vocab_size": (2, "type_vocab_size=2 is not supported, only 0 is"),
    "attention_head_size": (8, "attention_head_size=8 is not supported, only 4 is"),
    "pos_att_type": ("c2p|p2p", r"terms=\('c2p', 'p2p'\) are not some of"),
    "norm_rel_ebd": ("batch_norm", "norm_rel_ebd: 'batch_norm' is neither none nor layer_norm"),
    "conv_kernel_size": (3, r"lacks deberta.encoder.conv.LayerNorm.bias, .* and 1 more, which its config.json"),
    "legacy": ("yes", "config.json: 'yes' is neither true nor false"),
}


@pytest.mark.parametrize("key", NOT_OURS)
def test_unsupported_keys_of_deberta_are_refused(key, released, tmp_path):
    _, config, tensors, _ = released
    value, message = NOT_OURS[key]
    with pytest.raises(InputError, match=message):
        load(write(tmp_path / "theirs", config | {key: value}, tensors))


@pytest.mark.parametrize("key", ["relative_attention", "position_biased_input"])
def test_config_keys_with_a_meaningful_default_must_be_present(key, released, tmp_path):
    _, config, tensors, _ = released
    del config[key]
    with pytest.raises(InputError, match=f"has no {key}: add it"):
        load(write(tmp_path / "theirs", config, tensors))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_relative_positions": 2**30, "position_buckets": -1}, "at most 100,000"),
        ({"max_relative_positions": 100_000, "position_buckets": -1}, "rel_embeddings.weight has shape"),
        ({"position_buckets": 2**30}, "buckets=1073741824 must be"),
        ({"conv_kernel_size": 2**30 + 1, "conv_act": "gelu"}, "at most 99"),
    ],
)
def test_implausible_sizes_of_deberta_are_refused_without_time_or_memory(given, message, released, tmp_path):
    _, config, tensors, _ = released
    refused(write(tmp_path / "theirs", config | given, tensors), message)


def test_a_sentencepiece_model_of_deberta_lacks_its_mask(released, tmp_path):
    _, config, tensors, _ = released
    folder = write(tmp_path / "theirs", config, tensors)
    (folder / "spm.model").touch()
    with pytest.raises(InputError, match=r"spm.model, whose ids are not all of deberta-v2's: write its tokenizer.json"):
        load(folder)


def test_both_parts_of_electra_become_its_classes(tokenizer, tmp_path):
    v = tokenizer.vocabulary
    masking = Masking(v.mask, (0, v.size), (v.cls, v.sep))
    same_width = small_bert(V=v.size, N=1)  # without a projection a generator looks like a BERT
    model = own_model(ReplacedTokenDetection(same_width, small_bert(V=v.size), masking), tokenizer)
    checkpoint.export(tmp_path / "run", model.params, experiment=model.config, tokenizer=tokenizer)
    for part, name in (("generator", "ElectraForMaskedLM"), ("discriminator", "ElectraForPreTraining")):
        convert(f"{tmp_path / 'run'}:{part}", tmp_path / part, to="huggingface")
        assert json.loads((tmp_path / part / "config.json").read_text())["architectures"] == [name]
        ours, theirs = load(f"{tmp_path / 'run'}:{part}"), load(tmp_path / part)
        assert "electra.embeddings.word_embeddings.weight" in load_file(tmp_path / part / "model.safetensors")
        use = {"generator": Model.mlm_logits, "discriminator": Model.logits}[part]
        np.testing.assert_allclose(use(theirs, BATCH), use(ours, BATCH), atol=1e-6)


@pytest.mark.parametrize(("key_bias", "name"), [(True, "DebertaV2Model"), (False, "DebertaModel")])
def test_a_deberta_is_written_with_the_heads_that_transformers_lacks_and_they_are_reported(
    key_bias, name, tokenizer, tmp_path, capsys
):
    v = tokenizer.vocabulary
    masking = Masking(v.mask, (0, v.size), (v.cls, v.sep))
    encoder = small_v2(v) if key_bias else DeBERTa(V=v.size, D=8, N=2, H=2, F=12, distances=6, key_bias=False)
    pair = ReplacedTokenDetection(
        encoder.clone(N=1, decoder=2), encoder, masking, discriminator_head=deberta_discriminator_head
    )
    model = own_model(pair, tokenizer)
    checkpoint.export(tmp_path / "run", model.params, experiment=model.config, tokenizer=tokenizer)
    for part, head, use in (("discriminator", "rtd", Model.logits), ("generator", "mlm", Model.mlm_logits)):
        source = f"{tmp_path / 'run'}:{part}"
        capsys.readouterr()
        assert main(["convert", source, str(tmp_path / part), "--to", "huggingface"]) == 0
        line, _ = capsys.readouterr().err.splitlines()
        assert line.startswith(f"wrote head/{head} by the names of the released weights: transformers has no class")
        assert json.loads((tmp_path / part / "config.json").read_text())["architectures"] == [name]
        again, ours = load(tmp_path / part), load(source)
        assert flat(again.params).keys() == flat(ours.params).keys()
        np.testing.assert_array_equal(use(again, BATCH), use(ours, BATCH))
    with pytest.raises(InputError, match="cannot have decoder=1 in its encoder, only 2"):
        save_hf(own_model(MaskedLM(encoder.clone(decoder=1), masking), tokenizer), tmp_path / "once")
    with pytest.raises(InputError, match="cannot have tied_head=False in its encoder, only True"):
        save_hf(own_model(MaskedLM(encoder.clone(decoder=2, tied_head=False), masking), tokenizer), tmp_path / "once")
    with pytest.raises(InputError, match="cannot have a ReplacedHead as its rtd, only a ReplacedInContextHead"):
        save_hf(own_model(Discriminator(encoder), tokenizer), tmp_path / "alone")
    said = save_hf(
        own_model(Discriminator(encoder.clone(decoder=2), deberta_discriminator_head), tokenizer), tmp_path / "idle"
    )
    assert said[0] == "left out encoder/decoder_positions: there is no language head to use it"
    with pytest.raises(InputError, match="electra of transformers has the encoder Encoder, not DeBERTa"):
        save_hf(load(source), tmp_path / "electra", "electra")


def test_a_student_without_segments_becomes_a_distilbert(tokenizer, tmp_path):
    v = tokenizer.vocabulary
    small = Encoder(V=v.size, D=8, N=2, H=2, F=12, positions=16)
    masking = Masking(v.mask, (0, v.size), (v.cls, v.sep))
    model = own_model(Distillation(small.clone(N=1, types=0), small, masking), tokenizer)
    checkpoint.export(tmp_path / "run", model.params, experiment=model.config, tokenizer=tokenizer)
    convert(f"{tmp_path / 'run'}:student", tmp_path / "student", to="huggingface")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["architectures"] == ["DistilBertForMaskedLM"]
    ours, theirs = load(f"{tmp_path / 'run'}:student"), load(tmp_path / "student")
    np.testing.assert_array_equal(ours.mlm_logits(BATCH), theirs.mlm_logits(BATCH))


@pytest.mark.parametrize("positions", [Rotary(), Rotary(160.0, 160.0)])
def test_one_theta_for_all_layers_is_written_and_read_in_both_spellings(positions, tokenizer, tmp_path):
    v = tokenizer.vocabulary
    widths = {"V": v.size, "D": 8, "N": 4, "H": 2, "F": 12}
    encoder = Modern(**widths, global_every=3, positions=positions, output_initializer=Normal(0.01))
    model = own_model(MaskedLM(encoder, Masking(v.mask, (0, v.size))), tokenizer)
    save_hf(model, tmp_path / "theirs")
    again = load(tmp_path / "theirs")
    assert again.encoder.positions == Rotary(positions.theta)
    np.testing.assert_array_equal(again.mlm_logits(BATCH), model.mlm_logits(BATCH))
    save_hf(again, tmp_path / "again")
    same(tmp_path / "again", load_file(tmp_path / "theirs" / "model.safetensors"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "modernbert of transformers cannot have norms.normalise=rms_norm in its encoder, only layer_norm"),
        ({"norms": Norms()}, "modernbert of transformers cannot have head=untied_head in its encoder, only"),
    ],
)
def test_a_neobert_is_refused_with_the_first_field_that_differs(fields, message, tokenizer, tmp_path):
    v = tokenizer.vocabulary
    encoder = small_neobert(V=v.size, positions=Rotary(), **fields)
    with pytest.raises(InputError, match=message):
        save_hf(own_model(MaskedLM(encoder, Masking(v.mask, (0, v.size))), tokenizer), tmp_path / "new")


def test_one_tokenizer_in_other_files_is_the_same(tokenizer, tmp_path):
    described = {"tokenizer.json": tokenizer.library.to_str().encode()}
    assert same_tokenizer(tokenizer, tokenizer_from_files(described, origin="made"))
    cased = {**wordpiece_files(), "tokenizer_config.json": b'{"do_lower_case": false}'}
    assert not same_tokenizer(tokenizer, tokenizer_from_files(cased, origin="made"))


def test_the_ids_of_xlm_roberta_are_not_those_of_its_sentencepiece_model(tmp_path):
    config = CONFIG | {"model_type": "xlm-roberta", "pad_token_id": 1}
    tensors = {name.replace("bert.", "roberta.", 1): array for name, array in TENSORS.items()}
    tensors = {name: array for name, array in tensors.items() if not name.startswith("classifier")}
    folder = write(tmp_path / "xlm", config | {"architectures": ["XLMRobertaModel"]}, tensors)
    assert load(folder).encoder.first_position == 2
    (folder / "sentencepiece.bpe.model").touch()
    with pytest.raises(InputError, match=r"whose ids are not all of xlm-roberta's: write its tokenizer.json"):
        load(folder)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_the_padding_of_a_config_may_differ_from_the_tokenizers(model_type, tokenizer, tmp_path):
    V = tokenizer.vocabulary.size
    config = CONFIG | {"vocab_size": V, "model_type": model_type, "architectures": None, "pad_token_id": 5}
    tensors = bert_tensors(config)
    tensors = {name.replace("bert.", f"{model_type}.", 1): array for name, array in tensors.items()}
    tensors = {name: array for name, array in tensors.items() if not name.startswith("classifier")}
    folder = write(tmp_path / "theirs", config, tensors)
    for name, content in wordpiece_files().items():
        (folder / name).write_bytes(content)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    model = load(folder)
    assert model.tokenizer.vocabulary.pad == 0
    if model_type == "roberta":
        assert (model.encoder.first_position, model.encoder.unnumbered) == (6, 5)
        (note,) = model.config["huggingface"]["reported"]
        assert note.startswith(
            "config.json has pad_token_id=5, its tokenizer pads with 0: as in transformers, position"
        )
        left = '{"tokenizer_class": "BertTokenizer", "padding_side": "left"}'
        (folder / "tokenizer_config.json").write_text(left)
        refused(folder, "its tokenizer pads with 0 on the left: roberta would number texts by the length of their padd")


def test_a_model_without_tokenizer_refuses_texts(tmp_path):
    model = load(write(tmp_path / "bert", PRETRAINING, pretraining_tensors()))
    with pytest.raises(InputError, match="came without tokenizer files: put its vocabulary into its folder"):
        next(fill_mask(model, ["the [MASK]"]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_written_folder_keeps_the_padding_side_and_is_as_long_as_the_model(side, tmp_path):
    stated = {"tokenizer_class": "BertTokenizer", "padding_side": side, "model_max_length": 512}
    (tmp_path / "mine").mkdir()
    for name, content in (wordpiece_files() | {"tokenizer_config.json": json.dumps(stated).encode()}).items():
        (tmp_path / "mine" / name).write_bytes(content)
    mine = load_tokenizer(tmp_path / "mine")
    encoder = Encoder(V=mine.vocabulary.size, D=8, N=1, H=2, F=12, positions=34)
    masking = Masking(mine.vocabulary.mask, (0, mine.vocabulary.size))
    save_hf(own_model(MaskedLM(encoder, masking), mine), tmp_path / "theirs")
    written = json.loads((tmp_path / "theirs" / "tokenizer_config.json").read_text())
    assert (written["padding_side"], written["model_max_length"]) == (side, 34)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_the_tokenizer_of_a_written_folder_is_the_same(kind, tokenizer, tmp_path):
    mine = tokenizer if kind == "wordpiece" else with_spaces_in_pieces(kind)
    v = mine.vocabulary
    fields = {"first_position": 2, "types": 0} if kind == "bpe" else {}
    encoder = Encoder(V=v.size, D=8, N=1, H=2, F=12, positions=34, **fields)
    save_hf(own_model(MaskedLM(encoder, Masking(v.mask, (0, v.size))), mine), tmp_path / "theirs")
    again = load_tokenizer(tmp_path / "theirs")
    texts = ["The man is new. time good", "it (the woman) [MASK] 1,000  two  spaces"]
    assert again.ids(texts) == mine.ids(texts) and again.vocabulary == v
    config = json.loads((tmp_path / "theirs" / "tokenizer_config.json").read_text())
    assert config["mask_token"] == mine.piece(v.mask)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu_10", lambda x: np.clip(x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2, -10, 10)),
        ("quick_gelu", lambda x: x / (1 + np.exp(-1.702 * x))),
        ("mish", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    ],
)
def test_activations_that_few_models_have(name, expected):
    """As transformers/activations.py has them: ClippedGELUActivation, QuickGELUActivation, MishActivation."""
    x = np.array([-40.0, -3.0, -0.5, 0.0, 0.7, 4.0, 12.0])
    with jax.disable_jit():
        np.testing.assert_allclose(activation(name)(jnp.asarray(x, jnp.float32)), expected(x), rtol=1e-5, atol=1e-6)
