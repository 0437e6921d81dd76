"""A language head is known by what it is, not by its name: sharded, checked in a warm start and exported under any."""

import dataclasses
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import MASKING, SMALL_HEADS, V, make_batch, small_bert, small_generator, small_neobert, small_xlnet
from jax.sharding import AbstractMesh

from bertjax.checkpoints import warm_start as starting
from bertjax.checkpoints.export import save_hf
from bertjax.checkpoints.trained import Model, load
from bertjax.errors import InputError
from bertjax.models.heads import LanguageHead
from bertjax.models.published import Published
from bertjax.objectives.mlm import MaskedLM
from bertjax.rules import VOCABULARY, name_of
from bertjax.sharding.mesh import AXES
from bertjax.sharding.placement import compute_spec

KEY = jax.random.key(0)


@dataclass(frozen=True)
class Denoising:
    """Masked LM whose language head has a name of its own."""

    inner: MaskedLM
    name: str = "denoise"

    @property
    def encoder(self):
        return self.inner.encoder

    @property
    def heads(self):
        return {self.name: self.inner.head}

    def init(self, rng, batch):
        params = self.inner.init(rng, batch)
        return {**params, "head": {self.name: params["head"]["mlm"]}}


def named(params):
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def random_params(objective):
    rng, shapes = np.random.default_rng(0), jax.eval_shape(objective.init, KEY, make_batch())
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) / 4, shapes)


@pytest.mark.parametrize("vocabulary", [200, 201])
@pytest.mark.parametrize(
    "encoder", [small_bert(tied_head=False), small_neobert(), small_xlnet()], ids=["transformed", "untied", "tied"]
)
def test_under_any_name_it_is_split_over_tensor_by_its_vocabulary(encoder, vocabulary):
    encoder = encoder.clone(V=vocabulary)
    mesh = AbstractMesh((1, 1, 1, 2), AXES)
    specs = []
    for objective in (MaskedLM(encoder, MASKING), Denoising(MaskedLM(encoder, MASKING))):
        (head,) = objective.heads
        shapes = named(jax.eval_shape(objective.init, KEY, make_batch()))
        found = {name: compute_spec(mesh, name, leaf.shape) for name, leaf in shapes.items()}
        wide = [name for name, leaf in shapes.items() if vocabulary in leaf.shape]
        assert len(wide) > 1 and all("tensor" in found[name] for name in wide)
        specs.append({name.replace(f"/{head}/", "/"): spec for name, spec in found.items()})
    assert specs[0] == specs[1]


@pytest.mark.parametrize("head", SMALL_HEADS)
def test_a_head_is_a_language_head_by_its_calls_and_its_parameters_alike(head):
    module, batch = SMALL_HEADS[head], make_batch()
    names = named(jax.eval_shape(Published(small_bert(), (("any", module),)).init, KEY, batch))
    matched = {name for name in names if re.search(VOCABULARY, name)}
    assert isinstance(module, LanguageHead) == bool(matched)
    assert all(V in names[name].shape for name in matched)


def test_a_warm_start_leaves_no_part_of_it_out_under_any_name(monkeypatch, tokenizer):
    source, ours = (Denoising(MaskedLM(small_bert(tied_head=tied), MASKING)) for tied in (False, True))
    monkeypatch.setattr(starting, "load_with", lambda path, code: Model(source, random_params(source), None, {}))
    monkeypatch.setattr(starting, "load_notes", lambda path, model: [])
    taken = starting.warm_start("x", source, jax.eval_shape(source.init, KEY, make_batch()), tokenizer).params
    assert "head/denoise/decoder" in taken
    with pytest.raises(InputError, match=r"untied language head, head/denoise/decoder, .* set tied_head=false"):
        starting.warm_start("x", ours, jax.eval_shape(ours.init, KEY, make_batch()), tokenizer)


def test_it_is_exported_under_the_name_of_its_family_or_refused_by_name(tokenizer, tmp_path):
    encoder = small_generator(V=tokenizer.vocabulary.size, tied_head=False)
    masked = MaskedLM(encoder, dataclasses.replace(MASKING, random_ids=(0, 20)))
    params = random_params(Denoising(masked))
    notes = save_hf(Model(Denoising(masked), params, tokenizer, {}), tmp_path / "written")
    assert notes == ["wrote head/denoise as head/mlm, the name it is read back by"]
    again, batch = load(tmp_path / "written"), {"tokens": jnp.arange(5, 15)[None], "mask": jnp.ones((1, 10), jnp.int32)}
    expected = masked.language_logits({**params, "head": {"mlm": params["head"]["denoise"]}}, batch)
    np.testing.assert_allclose(again.mlm_logits(batch), expected, rtol=1e-5, atol=1e-5)
    both = Published(encoder, (("one", masked.head), ("other", masked.head)))
    with pytest.raises(InputError, match="no electra class with the heads one, other"):
        save_hf(Model(both, random_params(both), tokenizer, {}), tmp_path / "both")
