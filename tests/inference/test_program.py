"""A model's program, written and read back, computes what the model does, for rows of any number and length."""

import sys

import numpy as np
import pytest
from contract import make_batch, random_params, small_bert, small_deberta_v2, small_modernbert, small_xlnet

from bertjax.checkpoints.trained import Model
from bertjax.errors import InputError
from bertjax.inference.program import exported, load_program, save_program
from bertjax.models import layers
from bertjax.models.heads import Pooler
from bertjax.models.published import Published

BATCH = {name: x for name, x in make_batch(rows=3, length=32).items() if x.ndim == 2}


def model_of(encoder):
    return Model(Published(encoder), {"encoder": random_params(encoder, noise=0.05)}, None, {})


@pytest.mark.parametrize("make", [small_bert, small_modernbert, small_xlnet, small_deberta_v2])
def test_a_program_read_back_equals_the_model_whatever_the_shape(make, tmp_path):
    pytest.importorskip("flatbuffers")
    model = model_of(make())
    save_program(model, tmp_path / "model.jax", platforms="cpu")
    program = load_program(tmp_path / "model.jax")
    for rows, length in ((3, 32), (1, 9)):
        batch = {name: x[:rows, :length] for name, x in BATCH.items()}
        np.testing.assert_allclose(program(batch), model.encode(batch), atol=2e-6)
    with pytest.raises(InputError, match="the batch has no mask"):
        program({"tokens": BATCH["tokens"]})
    with pytest.raises(InputError, match="tokens has dtype float32"):
        program(BATCH | {"tokens": BATCH["tokens"] * 1.0})


def test_it_is_written_for_every_platform_and_for_no_longer_rows_than_the_model_has_positions():
    program = exported(model_of(small_bert()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    with pytest.raises(ValueError, match="l <= 64"):
        program.call(*[np.ones((1, 65), np.int32)] * 3)


def test_what_cannot_be_written_is_refused_with_the_remedy(tmp_path, monkeypatch):
    model = model_of(small_bert())
    with pytest.raises(InputError, match="output='pooled' is none of hidden, mlm_logits"):
        exported(model, "pooled")
    with pytest.raises(InputError, match="no language-model head"):
        exported(model, "mlm_logits")
    with pytest.raises(InputError, match="model is 'run': a Model is needed"):
        exported("run")
    pooler = Pooler(32, layers.TruncatedNormal(0.02), "float32")
    with pytest.raises(InputError, match="no task head"):
        exported(Model(Published(small_bert(), (("pooler", pooler),)), model.params, None, {}), "logits")
    (tmp_path / "text").write_text("no program")
    with pytest.raises(InputError, match=r"holds no program of jax\.export"):
        load_program(tmp_path / "text")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    with pytest.raises(InputError, match=r"pip install 'bertjax\[export\]'"):
        save_program(model, tmp_path / "model.jax")
