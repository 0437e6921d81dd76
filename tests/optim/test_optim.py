import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contract import MASKING, make_batch, small_albert, small_bert

from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import Optimizer, bert_adam, lamb, stable_adamw
from bertjax.optim.schedules import BertLinear, Schedule
from bertjax.rules import EVERYTHING, NOT_NORM_NOR_BIAS, STACKED, match, name_of

CONSTANT = Schedule(1.0, 0, 100, decay=0)


def params_and_gradients(steps=5):
    objective = MaskedLM(small_bert(), MASKING, pair=True)
    params = objective.init(jax.random.key(0), make_batch())
    params = jax.tree.map(lambda x: x + 0.01, params)
    rng = np.random.default_rng(0)
    return params, [
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params) for _ in range(steps)
    ]


def run(optimizer, params, gradients):
    tx = optimizer.transform()
    state = tx.init(params)
    update = jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def flat(tree):
    return {name_of(path): np.asarray(leaf, np.float64) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_bert_adam_is_the_published_formula_in_numpy():
    params, gradients = params_and_gradients()
    found = flat(run(bert_adam(BertLinear(1e-2, 2, 10)), params, gradients))
    w, m, v = flat(params), dict.fromkeys(found, 0.0), dict.fromkeys(found, 0.0)
    for step, gradient in enumerate(map(flat, gradients)):
        norm = np.sqrt(sum(np.square(g).sum() for g in gradient.values()))
        rate = 1e-2 * (step / 2 if step < 2 else 1 - step / 10)
        for name, g in gradient.items():
            g = g / max(1, norm)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            decay = 0 if name.endswith(("bias", "scale")) else 0.01
            w[name] = w[name] - rate * (m[name] / (np.sqrt(v[name]) + 1e-6) + decay * w[name])
    for name in found:
        np.testing.assert_allclose(found[name], w[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_adamw_equals_that_of_optax():
    params, gradients = params_and_gradients()
    decayed = match(NOT_NORM_NOR_BIAS, params)
    reference = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0, eps=1e-6, weight_decay=0.01, mask=decayed))
    state, expected = reference.init(params), params
    for gradient in gradients:
        updates, state = reference.update(gradient, state, expected)
        expected = optax.apply_updates(expected, updates)
    found = run(Optimizer(CONSTANT), params, gradients)
    for name, value in flat(expected).items():
        np.testing.assert_allclose(flat(found)[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_lamb_is_the_published_formula_for_every_layer_by_itself():
    params, gradients = params_and_gradients()
    found = flat(run(lamb(CONSTANT, clip=0.0, weight_decay=0.1), params, gradients))
    w = dict(tensors(flat(params)))
    m, v = dict.fromkeys(w, 0.0), dict.fromkeys(w, 0.0)
    for gradient in gradients:
        for name, g in tensors(flat(gradient)):
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            u = m[name] / (np.sqrt(v[name]) + 1e-6)
            if name.partition(":")[0].endswith(("bias", "scale")):
                w[name] = w[name] - u
            else:
                u = u + 0.1 * w[name]
                w[name] = w[name] - np.linalg.norm(w[name]) / np.linalg.norm(u) * u
    for name, value in tensors(found):
        np.testing.assert_allclose(value, w[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_stable_adamw_holds_back_every_tensor_of_every_layer_by_itself():
    """As optimi writes it, with averages that correct themselves; gradients jump in some tensors, once."""
    params, gradients = params_and_gradients()

    def jump(path, g):
        return g.at[:1].multiply(30.0) if name_of(path).endswith(("query/kernel", "word/table")) else g

    gradients[3] = jax.tree_util.tree_map_with_path(jump, gradients[3])
    peak, decay, eps = 1e-2, 1e-3, 1e-6
    optimizer = stable_adamw(Schedule(peak, 2, 10), b2=0.98, eps=eps, weight_decay=decay / peak)
    found = flat(run(optimizer, params, gradients))
    w = dict(tensors(flat(params)))
    m, v, held = dict.fromkeys(w, 0.0), dict.fromkeys(w, 0.0), set()
    for step, gradient in enumerate(gradients, start=1):
        scheduled = peak * (step - 1) / 2 if step <= 2 else peak * (11 - step) / 8
        first, second = (b * (1 - b ** (step - 1)) / (1 - b**step) for b in (0.9, 0.98))
        for name, g in tensors(flat(gradient)):
            m[name] = first * m[name] + (1 - first) * g
            v[name] = second * v[name] + (1 - second) * g * g
            rms = np.sqrt((g * g / np.maximum(v[name], eps**2)).mean())
            held |= {name} if rms > 1.5 else set()
            if not name.partition(":")[0].endswith(("bias", "scale")):
                w[name] = w[name] * (1 - scheduled / peak * decay)
            w[name] = w[name] - scheduled / max(1, rms) * m[name] / (np.sqrt(v[name]) + eps)
    kernel = "encoder/layers/attention/query/kernel"
    assert f"{kernel}:0" in held and f"{kernel}:1" not in held  # the jump is that of the first layer
    for name, value in tensors(found):
        np.testing.assert_allclose(value, w[name], rtol=2e-5, atol=2e-6, err_msg=name)


def tensors(named):
    """Cut stacked parameters into the tensors of each layer."""
    for name, value in named.items():
        if "/layers/" in name:
            yield from ((f"{name}:{n}", part) for n, part in enumerate(value))
        else:
            yield name, value


def test_lamb_leaves_a_tensor_of_zeros_its_plain_update():
    params = {"a": {"kernel": jnp.zeros((3, 3))}}
    moved = run(lamb(CONSTANT, clip=0.0), params, [jax.tree.map(jnp.ones_like, params)])
    np.testing.assert_allclose(moved["a"]["kernel"], -0.1 / (np.sqrt(0.001) + 1e-6), rtol=1e-5)


def test_norms_and_biases_are_not_decayed_and_everything_else_is():
    for encoder in (small_bert(), small_albert()):
        params = jax.eval_shape(MaskedLM(encoder, MASKING, pair=True).init, jax.random.key(0), make_batch())
        decayed = flat_values(match(NOT_NORM_NOR_BIAS, params))
        assert {name for name, value in decayed.items() if value} == {
            name for name in decayed if name.endswith(("kernel", "table"))
        }
        stacked = flat_values(match(STACKED, params))
        assert any(stacked.values()) != encoder.shared
        assert all(flat_values(match(EVERYTHING, params)).values())


def flat_values(tree):
    return {name_of(path): value for path, value in jax.tree_util.tree_leaves_with_path(tree)}


def test_rates_multiply_the_learning_rate_by_name_and_zero_freezes():
    params, gradients = params_and_gradients(2)
    plain = Optimizer(CONSTANT, weight_decay=0.0, clip=0.0)
    rules = ((r"^encoder/embeddings/", 0.0), (r"^head/", 2.0), (r".*", 1.0))
    once, scaled = (flat(run(o, params, gradients)) for o in (plain, dataclasses.replace(plain, rates=rules)))
    before = flat(params)
    for name in before:
        factor = 0.0 if name.startswith("encoder/embeddings/") else 2.0 if name.startswith("head/") else 1.0
        np.testing.assert_allclose(scaled[name] - before[name], factor * (once[name] - before[name]), atol=1e-5)


def test_no_clipping_where_clip_is_zero():
    params, gradients = params_and_gradients(1)
    big = [jax.tree.map(lambda g: 1e3 * g, gradients[0])]
    # Uncorrected Adam is blind to the scale of the gradient but for eps: clipping shows through a large eps.
    optimizer = bert_adam(CONSTANT, eps=1.0, weight_decay=0.0)
    clipped, free = (flat(run(o, params, big)) for o in (optimizer, dataclasses.replace(optimizer, clip=0.0)))
    name = "head/mlm/bias"
    assert np.abs(free[name] - flat(params)[name]).max() > 100 * np.abs(clipped[name] - flat(params)[name]).max()
