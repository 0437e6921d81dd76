"""The examples of docs/notebooks.md run, one after the other."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from contract import random_params, small_bert

from bertjax.checkpoints.trained import Model
from bertjax.models.published import Published

PAGE = Path("docs/notebooks.md").read_text()


def test_every_example_of_the_page_runs(tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    encoder = small_bert(V=tokenizer.vocabulary.size)
    head = encoder.language_head()
    x_BPD, table = np.zeros((1, 1, encoder.D), np.float32), np.zeros((encoder.V, encoder.D), np.float32)
    own = head.init(jax.random.key(0), x_BPD, table)["params"]
    params = {"encoder": random_params(encoder), "head": {"mlm": own}}
    model = Model(Published(encoder, (("mlm", head),)), params, tokenizer, {})
    monkeypatch.setattr("bertjax.checkpoints.trained.load", lambda path: model)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, names)
    B, L = names["batch"]["tokens"].shape
    assert B == 2 and (names["batch"]["tokens"] == tokenizer.vocabulary.mask).sum() == 1
    assert names["probabilities_NBHLL"].shape == (2, B, 2, L, L) and names["states_NBLD"].shape == (3, B, L, 32)
    np.testing.assert_array_equal(names["states_NBLD"][-1], names["states_BLD"])
    np.testing.assert_allclose(names["same"], names["probabilities_NBHLL"], atol=1e-6)
    np.testing.assert_allclose(names["logits_BLV"], model.mlm_logits(names["batch"]), atol=1e-5)
    assert len(names["best"]) == 40
