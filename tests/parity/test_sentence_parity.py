"""Embeddings of folders of sentence-transformers, against what it computed: see make_sentence_golden.py."""

import numpy as np
import pytest
from golden import FOLDER
from sentence_folders import KINDS, TEXTS, sentence_folder

from bertjax.checkpoints.trained import load
from bertjax.inference.embed import embed


@pytest.mark.parametrize("name", KINDS)
def test_vectors_are_those_of_sentence_transformers(name, tmp_path):
    with np.load(FOLDER / "sentence.npz") as file:
        expected = file[name]
    model = load(sentence_folder(tmp_path / "folder", **KINDS[name]))
    np.testing.assert_allclose(list(embed(model, TEXTS, say=lambda note: None)), expected, rtol=0, atol=1e-5)
