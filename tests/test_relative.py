"""The relative term of attention in each of its forms, against a slow loop over queries and keys."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import small_xlnet

from bertjax.config import load_experiment
from bertjax.flops import batch_shapes
from bertjax.layers import Sinusoids, fourier_series, relative_scores, rotated_scores, shifted_scores

H, K, W = 3, 4, 12
CASES = [(7, 0, None, None), (9, 6, None, None), (9, 6, 5, (1, -1)), (70, 40, None, (-1, 1)), (8, 3, 2, (1, -1))]


def made(L, memory, clamp, signs, seed=0):
    rng = np.random.default_rng(seed)
    q, kernel = rng.normal(size=(2, L, H, K)), rng.normal(size=(W, H, K))
    sign = None if signs is None else jnp.array(signs)
    return jnp.asarray(q, jnp.float32), jnp.asarray(kernel, jnp.float32), Sinusoids(W, clamp), sign


def by_loop(q, kernel, clamp, positions, memory, length, signs):
    """Score one query and key at a time: sines and cosines of their distance, written out."""
    q, kernel = np.asarray(q, np.float64), np.asarray(kernel, np.float64)
    scores = np.zeros((2, H, q.shape[1], memory + length))
    for row in range(2):
        for i, at in enumerate(positions[row]):
            for j in range(-memory, length):
                distance = (signs or (1, 1))[row] * (at - j)
                if clamp is not None:
                    distance = max(-clamp, min(clamp, distance))
                angles = [distance / 10000 ** (2 * m / W) for m in range(W // 2)]
                encoded = np.array([*map(np.sin, angles), *map(np.cos, angles)])
                scores[row, :, i, j + memory] = (q[row, i] * np.einsum("w,whk->hk", encoded, kernel)).sum(-1)
    return scores


@pytest.mark.parametrize(("L", "memory", "clamp", "signs"), CASES)
def test_every_form_is_the_slow_loop(L, memory, clamp, signs):
    q, kernel, function, sign = made(L, memory, clamp, signs)
    positions = np.tile(np.arange(L), (2, 1))
    expected = by_loop(q, kernel, clamp, positions, memory, L, signs)
    forms = {
        "rotated": rotated_scores(q, kernel, function, jnp.asarray(positions), memory, L, sign),
        "shifted": shifted_scores(q, kernel, function, memory, sign),
        "shifted in small blocks": shifted_scores(q, kernel, function, memory, sign, block=4),
        "chosen": relative_scores(q, kernel, function, memory, sign),
    }
    for name, found in forms.items():
        np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("L", "memory", "clamp", "signs"), CASES[2:4])
def test_the_gradients_of_both_forms_are_equal(L, memory, clamp, signs):
    q, kernel, function, sign = made(L, memory, clamp, signs)
    positions = jnp.broadcast_to(jnp.arange(L), (2, L))
    wish = jax.random.normal(jax.random.key(0), (2, H, L, memory + L))
    one, other = (
        jax.jit(jax.grad(lambda q, kernel, form=form: (form(q, kernel) * wish).sum(), argnums=(0, 1)))(q, kernel)
        for form in (
            lambda q, kernel: rotated_scores(q, kernel, function, positions, memory, L, sign),
            lambda q, kernel: relative_scores(q, kernel, function, memory, sign),
        )
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


def test_queries_may_stand_anywhere_and_in_any_order():
    q, kernel, function, sign = made(4, 0, None, (1, -1))
    positions = np.array([[8, 0, 3, 3], [1, 2, 9, 5]])
    found = rotated_scores(q, kernel, function, jnp.asarray(positions), 5, 10, sign)
    np.testing.assert_allclose(found, by_loop(q, kernel, None, positions, 5, 10, (1, -1)), atol=2e-5)


def test_any_function_of_distance_is_a_sum_of_waves():
    table = np.random.default_rng(0).normal(size=(13, 5)).astype(np.float32)
    frequencies, coefficients = fourier_series(table)
    angles = np.arange(-6, 7)[:, None] * frequencies
    np.testing.assert_allclose(np.concatenate([np.sin(angles), np.cos(angles)], -1) @ coefficients, table, atol=1e-5)


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name, [getattr(v.aval, "shape", ()) for v in equation.outvars]
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)


def test_no_form_gathers():
    q, kernel, function, sign = made(70, 8, 5, (1, -1))
    traced = jax.make_jaxpr(lambda q, kernel: relative_scores(q, kernel, function, 8, sign))(q, kernel)
    found = {name for name, _ in primitives(traced.jaxpr)}
    assert "dot_general" in found and not found & {"gather", "scatter", "scatter-add", "dynamic_slice"}


def test_a_tpu_program_rotates_and_others_shift():
    q, kernel, function, sign = made(70, 8, None, None)
    lowered = jax.jit(lambda q, kernel: relative_scores(q, kernel, function, 8, sign)).trace(q, kernel)
    tpu, cpu = (lowered.lower(lowering_platforms=(platform,)).as_text() for platform in ("tpu", "cpu"))
    assert "cosine" in tpu and "pad" not in tpu.replace("pad_", "")
    assert "cosine" not in cpu


def test_the_query_stream_has_the_rows_of_its_targets_and_no_more():
    """No array of the step has the query stream's attention over all positions: P rows, never L."""
    encoder, L, P = small_xlnet(N=1), 24, 5
    tokens = jnp.ones((2, L), jnp.int32)
    params = jax.eval_shape(encoder.init, jax.random.key(0), tokens, tokens)["params"]

    def shapes(targets):
        run = partial(encoder.apply, method="streams", ranks_BL=tokens, targets_BP=targets)
        traced = jax.make_jaxpr(lambda params: run({"params": params}, tokens, tokens))(params)
        return [shape for _, found in primitives(traced.jaxpr) for shape in found]

    one, two = shapes(None), shapes(tokens[:, :P])
    scores = (2, encoder.H, L, L)
    assert two.count(scores) == one.count(scores)
    assert two.count((2, encoder.H, P, L)) > 0 == one.count((2, encoder.H, P, L))


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_the_step_compiles_for_a_tpu_without_a_gather_over_pairs_of_positions(remat):
    """With the real compiler, which needs no TPU. What is gathered are rows of tables and elements of windows."""
    pytest.importorskip("libtpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental.topologies import get_topology_desc

    device = get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    here = jax.sharding.SingleDeviceSharding(device)
    overrides = ["windows=2", "memory=256", "batch_size=4", "objective.encoder.N=2", "dtype=bfloat16"]
    experiment = load_experiment("experiments/xlnet.py", [*overrides, f"objective.encoder.remat={remat}"])
    rows = experiment.phases[0].rows
    batch = batch_shapes(2, rows.length, rows.features)
    params = jax.eval_shape(experiment.objective.init, jax.random.key(0), batch)
    params, batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), (params, batch))
    loss = partial(experiment.objective.loss, rng=jax.random.key(0), train=True)
    step = jax.jit(jax.grad(lambda params, batch: loss(params, batch)[0])).lower(params, batch).compile()
    gathered = [line.split("=")[1] for line in step.as_text().splitlines() if " gather(" in line or " scatter(" in line]
    assert gathered
    for line in gathered:
        dimensions = line.split("[")[1].split("]")[0].split(",")
        assert sum(int(n) >= 512 for n in dimensions) < 2 or dimensions[-1] == "768", line
