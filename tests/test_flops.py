import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import MASKING, small_albert, small_bert

from bertjax.config import load_experiment
from bertjax.flops import abstract_params, batch_shapes, model_flops
from bertjax.objectives.diffusion import MaskedDiffusion
from bertjax.objectives.mlm import MaskedLM


@pytest.mark.parametrize("encoder", [small_bert(), small_bert(remat="full"), small_albert()], ids=repr)
def test_the_count_is_the_textbook_formula(encoder):
    B, L = 4, 40
    objective = MaskedLM(encoder, MASKING, pair=True)
    D, F, N, V, E = encoder.D, encoder.F, encoder.N, encoder.V, encoder.embedding_width
    layer = 2 * L * (4 * D * D + 2 * D * F) + 2 * 2 * L * L * D
    head = 2 * MASKING.slots(L) * (D * E + E * V)
    project = 2 * L * E * D if encoder.E else 0
    pair = 2 * (D * D + 2 * D)
    expected = 3 * B * (N * layer + head + project + pair)
    assert model_flops(objective, batch_shapes(B, L, ("types", "pair"))) == expected


def test_the_head_of_diffusion_is_counted_for_the_slots_of_the_batch():
    B, L, encoder = 5, 33, small_bert()
    D, F, N, V = encoder.D, encoder.F, encoder.N, encoder.V
    layer = 2 * L * (4 * D * D + 2 * D * F) + 2 * 2 * L * L * D
    for share, slots in ((0.6, 99), (1.0, 165)):
        objective = MaskedDiffusion(encoder, 3, slots=share)
        expected = 3 * (B * N * layer + 2 * slots * (D * D + D * V))
        assert model_flops(objective, batch_shapes(B, L, ())) == expected


def test_batch_shapes_are_those_of_a_source(corpus):
    from bertjax.data.pairs import NextSentencePairs

    rows = NextSentencePairs(corpus, 16)
    batch = rows.open("train").rows(np.arange(3))
    shapes = batch_shapes(3, 16, rows.features)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: (shape.shape, shape.dtype) for name, shape in shapes.items()
    }
    assert all(isinstance(shape, jax.ShapeDtypeStruct) for shape in shapes.values())


ONE_LAYER = {
    "xlnet": ["batch_size=2", "windows=1", "memory=0", "objective.encoder.N=1", "objective.encoder.remat=none"],
    "electra": ["batch_size=2", "size=base", "objective.generator.N=1", "objective.discriminator.N=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ONE_LAYER)
def test_the_compiled_step_does_no_more_than_the_model_asks_for(family):
    """At the width of the base models; one layer, since XLA counts the body of a loop once."""
    experiment = load_experiment(f"experiments/{family}.py", ONE_LAYER[family])
    rows = experiment.phases[0].rows
    batch = batch_shapes(experiment.phases[0].batch_size, rows.length, rows.features)
    params = jax.eval_shape(experiment.objective.init, jax.random.key(0), batch)
    loss = partial(experiment.objective.loss, rng=jax.random.key(0), train=True)
    compiled = jax.jit(jax.grad(lambda params, batch: loss(params, batch)[0])).lower(params, batch).compile()
    assert 0.85 < compiled.cost_analysis()["flops"] / model_flops(experiment.objective, batch) < 1.15


def test_the_query_stream_costs_less_than_a_third_more():
    """By FLOPs at the published sizes: windows of 512 with 85 targets, of which both streams share all but the rows."""
    experiment = load_experiment("experiments/xlnet.py", ["batch_size=2", "windows=1", "memory=0"])
    batch = batch_shapes(2, 512, ("types",))
    two = model_flops(experiment.objective, batch)
    e, P = experiment.objective.encoder, 85
    layer = 2 * (4 * e.D**2 + 2 * e.D * e.F) + 2 * (3 * 512 + 64) * e.D + 2 * 2 * e.D  # with the shifted term, segments
    one = 3 * 2 * (e.N * (512 * layer + 2 * (512 + 512) * e.D**2) + 2 * P * e.D * e.V)
    assert 1.1 < two / one < 1.35


def test_a_run_traces_an_objective_once_and_one_without_a_hash_each_time():
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Counted:
        held: object

        def init(self, rng, batch):
            return {"w": jnp.zeros(batch["tokens"].shape[1])}

        def loss(self, params, batch, rng, *, train):
            calls.append(train)
            return params["w"].sum(), {}

    batch = batch_shapes(2, 8, ())
    for held, expected in ((1, 1), (np.ones(1), 2)):
        calls.clear()
        for _ in range(2):
            assert abstract_params(Counted(held), batch)["w"].shape == (8,)
        assert len(calls) == expected
