"""Folders of sentence-transformers: what is obeyed, what is refused by name, and what is written."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from contract import small_bert, small_generator
from hub_folders import BATCH, own_model, own_objectives
from sentence_folders import KINDS, NORMALIZE, TEXTS, dense, put, sentence_folder

import bertjax
from bertjax.checkpoints.export import convert, save_sentence_transformers
from bertjax.checkpoints.trained import load, load_notes
from bertjax.checkpoints.warm_start import warm_start
from bertjax.commands.main import main
from bertjax.errors import InputError
from bertjax.huggingface.sentence_transformers import read_modules, write_modules
from bertjax.inference.embed import embed
from bertjax.masking import Masking
from bertjax.models.encoder import Encoder
from bertjax.models.sentence import SENTENCE
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.rtd import ReplacedTokenDetection


def vectors(folder_or_model, texts=TEXTS, **options):
    model = load(folder_or_model) if not hasattr(folder_or_model, "params") else folder_or_model
    return np.array(list(embed(model, texts, **{"say": lambda note: None} | options)))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "folder"


def change(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


# Each change of a good folder, and the message with which embedding is refused. The rest of the model can be read.
REFUSED = {
    "another class": (lambda f: change(f / "config_sentence_transformers.json", model_type="SparseEncoder"),
                      "model_type='SparseEncoder' is not supported, only SentenceTransformer"),
    "unknown pooling": (lambda f: change(f / "1_Pooling/config.json", pooling_mode="median"),
                        r"pooling_mode=\['median'\] is not supported, only cls, max, mean"),
    "unknown key": (lambda f: change(f / "1_Pooling/config.json", pooling_temperature=2),
                    "pooling_temperature=2 is not supported"),
    "activation": (lambda f: change(f / "2_Dense/config.json", activation_function="torch.nn.Softmax"),
                   "activation_function='torch.nn.Softmax' is not supported, only Identity, Tanh"),
    "other code": (lambda f: change(f / "2_Dense/config.json", activation_function="mine.Tanh"),
                   "activation_function='mine.Tanh' is not supported"),
    "of tokens": (lambda f: change(f / "2_Dense/config.json", module_input_name="token_embeddings"),
                  "module_input_name='token_embeddings' is not supported, only sentence_embedding is"),
    "width": (lambda f: change(f / "2_Dense/config.json", in_features=7), "it takes 7 numbers a text, but is given 8"),
    "shapes": (lambda f: change(f / "2_Dense/config.json", out_features=5), r"asks for .*'linear.weight': \(5, 8\)"),
    "pickle": (lambda f: (f / "2_Dense/model.safetensors").rename(f / "2_Dense/pytorch_model.bin"),
               "only pytorch_model.bin, which can run code and is never opened here: save the model again"),
    "no weights": (lambda f: (f / "2_Dense/model.safetensors").unlink(), "2_Dense has no model.safetensors"),
    "length": (lambda f: change(f / "sentence_bert_config.json", max_seq_length="64"),
               "max_seq_length='64' is not a number of tokens"),
    "task": (lambda f: change(f / "sentence_bert_config.json", transformer_task="fill-mask"),
             "transformer_task='fill-mask' is not supported"),
    "loading": (lambda f: change(f / "sentence_bert_config.json", tokenizer_args={"padding_side": "left"}),
                "tokenizer_args has padding_side='left', which is not supported"),
    "config": (lambda f: change(f / "sentence_bert_config.json", config_kwargs={"hidden_act": "relu"}),
               "config_kwargs has hidden_act='relu', which is not supported"),
    "default prompt": (lambda f: change(f / "config_sentence_transformers.json", default_prompt_name="query"),
                       "default_prompt_name='query' is none of no prompts"),
    "modes in a list": (lambda f: put(f, "1_Pooling/config.json", {"pooling_mode": [["mean"]]}),
                        r"pooling_mode=\[\['mean'\]\] is not supported"),
    "arguments in a list": (lambda f: change(f / "sentence_bert_config.json", model_args=["dtype"]),
                            r"model_args=\['dtype'\] are not arguments by name"),
    "default prompt in a list": (lambda f: change(f / "config_sentence_transformers.json", default_prompt_name=["a"]),
                                 r"default_prompt_name=\['a'\] is none of no prompts"),
    "length of the tokenizer": (lambda f: (change(f / "sentence_bert_config.json", max_seq_length=None),
                                           change(f / "tokenizer_config.json", model_max_length="64")),
                                "model_max_length='64' is not a number of tokens"),
    "dimensions": (lambda f: change(f / "config_sentence_transformers.json", truncate_dim="all"),
                   "truncate_dim='all' is not a number of dimensions"),
    "outside": (lambda f: modules(f, "sentence_transformers.models.Dense", "../2_Dense"),
                r"names the folder '\.\./2_Dense': only folders inside the folder itself are read"),
    "own code": (lambda f: modules(f, "modeling.Dense", "2_Dense"),
                 "names modeling.Dense: a module with code of its own"),
    "no list": (lambda f: put(f, "modules.json", {}), "modules.json is not a JSON list"),
    "no pooling": (lambda f: put(f, "modules.json", json.loads((f / "modules.json").read_text())[:1]),
                   "nothing follows the Transformer: only Pooling is supported there"),
} | {
    kind: (lambda f, kind=kind: modules(f, f"sentence_transformers.models.{kind}", "2_Dense"),
           f"modules.json names {kind} in 2_Dense: supported are one Transformer, Pooling")
    for kind in ("CNN", "LSTM", "WeightedLayerPooling", "Transformer", "Asym")
}  # fmt: skip


def modules(folder, kind, path):
    """Make the third module of a folder another one."""
    listed = json.loads((folder / "modules.json").read_text())
    put(folder, "modules.json", [*listed[:2], listed[2] | {"type": kind, "path": path}])


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name_and_the_model_is_read(name, folder):
    spoil, message = REFUSED[name]
    sentence_folder(folder, after=[("Dense", *dense(8, 6))])
    spoil(folder)
    model = load(folder)
    with pytest.raises(InputError, match=message):
        vectors(model)
    assert any("embedding is refused" in note for note in load_notes(folder, model))
    with pytest.raises(InputError, match=message):
        save_sentence_transformers(model, folder.parent / "again")


@pytest.mark.parametrize("kind", ["Router", "CLIPModel", "StaticEmbedding", "WordEmbeddings", "BoW"])
def test_another_kind_of_model_is_named(kind, folder):
    folder.mkdir()
    put(
        folder, "modules.json", [{"idx": 0, "name": "0", "path": "0_x", "type": f"sentence_transformers.models.{kind}"}]
    )
    with pytest.raises(InputError, match=f"modules.json names {kind} in 0_x: supported are one Transformer"):
        load(folder)


def test_older_and_newer_paths_of_classes_are_the_same(folder):
    sentence_folder(folder, after=[NORMALIZE])
    old = vectors(folder)
    listed = json.loads((folder / "modules.json").read_text())
    for entry, path in zip(
        listed, ("base.modules.transformer", "sentence_transformer.modules.pooling", "base.modules.normalize"),
        strict=True,
    ):  # fmt: skip
        entry["type"] = f"sentence_transformers.{path}.{entry['type'].rpartition('.')[2]}"
    put(folder, "modules.json", listed)
    np.testing.assert_array_equal(vectors(folder), old)


def test_texts_are_truncated_to_the_length_of_the_folder_and_counted(folder):
    sentence_folder(folder, transformer={"max_seq_length": 5})
    said = []
    (cut, *_) = embed(load(folder), ["time person year way", "time"], say=said.append)
    np.testing.assert_allclose(cut, vectors(folder, ["time person year"])[0], atol=1e-6)
    assert said == ["1 text truncated to 5 tokens"]
    whole = vectors(folder, ["time person year way"], max_length=9)
    assert np.abs(cut - whole).max() > 1e-3
    (folder / "sentence_bert_config.json").unlink()
    np.testing.assert_allclose(whole, vectors(folder, ["time person year way"]), atol=1e-6)
    assert load(folder).objective.heads[SENTENCE].max_length == 24  # of its positions
    change(folder / "tokenizer_config.json", model_max_length=7)
    assert load(folder).objective.heads[SENTENCE].max_length == 7
    change(folder / "tokenizer_config.json", model_max_length=5, truncation_side="left")
    cut, same = vectors(folder, ["time person year way", "person year way"])
    np.testing.assert_allclose(cut, same, atol=1e-6)


def test_prompts_by_name(folder, capsys):
    sentence_folder(folder, **KINDS["default prompt"])
    model = load(folder)
    np.testing.assert_array_equal(vectors(model, ["man"]), vectors(model, ["a fact man"], prompt=""))
    queried = vectors(model, ["man"], prompt="query")
    np.testing.assert_array_equal(queried, vectors(model, ["the point: man"], prompt=""))
    np.testing.assert_array_equal(queried, list(bertjax.embed(model, ["man"], prompt="query")))
    with pytest.raises(InputError, match="no prompt 'title': its prompts are 'query', 'passage', 'nothing'"):
        vectors(model, prompt="title")
    assert main(["predict", "embed", "--model", str(folder), "--json", "--prompt", "query", "man"]) == 0
    line = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(line["embedding"], queried[0], atol=1e-6)
    (folder / "config_sentence_transformers.json").unlink()
    with pytest.raises(InputError, match="the model has no prompt 'query': it has none"):
        vectors(folder, prompt="query")


@pytest.mark.parametrize("name", KINDS)
def test_modules_are_written_as_they_were_read(name, folder, tmp_path):
    sentence_folder(folder, **KINDS[name])
    encoder = SimpleNamespace(D=8, max_length=24)
    read = read_modules(folder, encoder)
    (tmp_path / "again").mkdir()
    write_modules(tmp_path / "again", read.head, read.params, encoder, "dot")
    again = read_modules(tmp_path / "again", encoder)
    assert (again.head, again.similarity) == (read.head, "dot")
    assert jax.tree.map(np.ndarray.tolist, again.params) == jax.tree.map(np.ndarray.tolist, read.params)


def test_a_folder_is_written_back_and_kept_in_our_format(folder, tmp_path):
    sentence_folder(folder, **KINDS["dense with residuals"])
    expected = vectors(folder, TEXTS[:2])
    convert(folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again", to="sentence-transformers")
    np.testing.assert_array_equal(vectors(tmp_path / "again", TEXTS[:2]), expected)
    notes = convert(tmp_path / "ours", tmp_path / "plain", to="huggingface")
    assert notes[-1] == "left out head/sentence, which `convert --to sentence-transformers` writes"
    assert not (tmp_path / "plain/modules.json").exists()


def test_the_encoder_of_a_folder_is_without_its_modules(folder):
    sentence_folder(folder, after=[("Dense", *dense(8, 6)), NORMALIZE])
    model = load(f"{folder}:encoder")
    assert vectors(model, ["man"]).shape == (1, 8)
    assert f"modules.json is not applied to the encoder alone: {folder}" in load_notes(f"{folder}:encoder", model)
    assert vectors(folder, ["man"]).shape == (1, 6)


@pytest.mark.parametrize("kind", ["BertForPreTraining", "electra"])
def test_a_run_of_ours_is_written_as_the_mean_of_length_1(kind, tokenizer, tmp_path):
    v = tokenizer.vocabulary
    electra = ReplacedTokenDetection(
        small_generator(V=v.size), small_bert(V=v.size), Masking(v.mask, (0, v.size), (v.cls, v.sep))
    )
    model = own_model(electra if kind == "electra" else own_objectives(v)[kind], tokenizer)
    texts = TEXTS[:2]
    notes = save_sentence_transformers(model, tmp_path / "theirs")
    assert any(note.endswith("embeddings do not read them") for note in notes)
    np.testing.assert_allclose(vectors(tmp_path / "theirs", texts), vectors(model, texts), atol=1e-6)
    listed = json.loads((tmp_path / "theirs/modules.json").read_text())
    assert [entry["type"].rpartition(".")[2] for entry in listed] == ["Transformer", "Pooling", "Normalize"]
    pooling = json.loads((tmp_path / "theirs/1_Pooling/config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["include_prompt", "pooling_mode_mean_tokens"]
    length = json.loads((tmp_path / "theirs/sentence_bert_config.json").read_text()).get("max_seq_length")
    assert length == model.encoder.max_length


def test_a_warm_start_says_that_the_modules_are_left_out(folder, tokenizer):
    sentence_folder(folder, after=[NORMALIZE])
    source = load(folder)
    fields = {"V": source.encoder.V, "D": 8, "N": 2, "H": 2, "F": 12, "positions": 24}
    v = tokenizer.vocabulary
    objective = MaskedLM(Encoder(**fields), Masking(v.mask, (0, v.size), (v.cls, v.sep)))
    like = jax.eval_shape(objective.init, jax.random.key(0), BATCH)
    note = warm_start(str(folder), objective, like, source.tokenizer).note
    assert "its head/sentence is left out: embeddings of the new model are the mean of all tokens" in note
