import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import make_batch, small_crammed, small_modernbert, small_mosaicbert, small_neobert

from bertjax.checkpoints.trained import load
from bertjax.config import Experiment, Phase, Run, load_experiment
from bertjax.data.rows import PackedDocuments
from bertjax.masking import Masking
from bertjax.models import layers
from bertjax.models.language import word_table
from bertjax.models.modern import Modern, Norms, post_norm
from bertjax.models.positions import Alibi, Rotary, ScaledSinusoids, alibi_slopes, rotate, sinusoids, turns
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import stable_adamw
from bertjax.optim.schedules import Schedule
from bertjax.plan.step import plan
from bertjax.rules import name_of
from bertjax.serialization.description import from_json, to_json
from bertjax.train import fit

KEY = jax.random.key(0)
PUBLISHED = {
    "modernbert size=base": 149_655_232,
    "modernbert size=large": 395_881_664,
    "modernbert size=17m": 16_913_600,
    "modernbert size=32m": 32_081_344,
    "modernbert size=68m": 68_457_664,
    "modernbert size=150m stage=extend": 149_655_232,
    "modernbert size=400m stage=decay": 395_881_664,
    "modernbert size=1b": 1_031_314_112,
    "neobert": 245_136_954,
    "mosaicbert": 137_400_384,
    "crammed": 119_589_889,
}


def init(encoder, seed=0):
    batch = make_batch()
    params = jax.jit(encoder.init)(jax.random.key(seed), batch["tokens"], batch["mask"])["params"]
    return louder(params)


def louder(params):
    """Make parameters larger than at the start, so that every influence shows."""
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1) * rng.normal(size=x.shape).astype("f"), params)


def run(encoder, params, *inputs):
    return jax.jit(encoder.apply)({"params": params}, *inputs)


def named(tree):
    return {name_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_sizes_have_the_published_number_of_parameters(model):
    family, *overrides = model.split()
    planned = plan(load_experiment(f"experiments/{family}.py", overrides))
    assert planned["params"] == PUBLISHED[model]


def test_the_stages_of_modernbert_are_those_of_the_published_runs():
    def stage(*overrides):
        experiment = load_experiment("experiments/modernbert.py", overrides)
        schedule, rotary = experiment.optimizer.learning_rate, experiment.objective.encoder.positions
        rates = [float(schedule(jnp.int32(step))) for step in (0, experiment.steps // 2, experiment.steps)]
        phase = experiment.phases[0]
        return phase.rows.length, phase.batch_size, (rotary.theta, rotary.local_theta), rates, experiment.optimizer

    length, rows, thetas, rates, optimizer = stage("size=base")
    assert (length, rows, thetas) == (1024, 4608, (1e4, 1e4))
    np.testing.assert_allclose(rates, [0, 8e-4, 8e-4], rtol=1e-6)
    assert optimizer.weight_decay == pytest.approx(0.0125) and optimizer.clip == 0 and optimizer.b2 == 0.98
    *_, rates, optimizer = stage("size=large")
    np.testing.assert_allclose(rates, [0, 5e-4, 5e-5], rtol=1e-6)
    assert optimizer.weight_decay == pytest.approx(0.02)
    length, rows, thetas, rates, _ = stage("size=base", "stage=extend")
    assert (length, rows, thetas) == (8192, 576, (160_000, 10_000))
    np.testing.assert_allclose(rates, [3e-4] * 3, rtol=1e-6)
    rates = stage("size=base", "stage=decay")[3]
    np.testing.assert_allclose(rates, [3e-4, 3e-7 + (3e-4 - 3e-7) * (1 - 0.5**0.5), 3e-7], rtol=1e-4)
    _, rows, thetas, rates, _ = stage("size=68m", "stage=extend")
    assert (rows, thetas) == (4608, (160_000, 160_000))
    np.testing.assert_allclose([rates[0], rates[2]], [3e-3, 1.5e-3], rtol=1e-6)


# Rotary positions.


def test_pairs_are_turned_by_position_times_frequency():
    """As complex numbers: a pair (x_i, x_{i + K/2}) at position p is multiplied by e^{i p theta^(-2i/K)}."""
    rng = np.random.default_rng(0)
    x, positions, K, theta = rng.normal(size=(2, 5, 3, 8)), rng.integers(0, 4000, (2, 5)), 8, 160_000.0
    pairs = x[..., :4] + 1j * x[..., 4:]
    for i in range(4):
        pairs[..., i] *= np.exp(1j * positions[..., None] / theta ** (2 * i / K))
    found = rotate(jnp.asarray(x, jnp.float32), turns(jnp.asarray(positions), K, theta))
    np.testing.assert_allclose(found, np.concatenate([pairs.real, pairs.imag], -1), atol=2e-3)
    near = rotate(jnp.asarray(x, jnp.float32), turns(jnp.asarray(positions % 50), K, theta))
    norms = np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(near, axis=-1), norms, rtol=1e-5)


def test_scores_of_rotated_queries_and_keys_depend_on_distances_alone():
    q, k = jax.random.normal(KEY, (2, 1, 6, 2, 8))
    positions = jnp.array([[0, 1, 2, 5, 9, 30]])

    def scores(shift):
        turn = turns(positions + shift, 8, 10_000.0)
        return jnp.einsum("BLHK,BMHK->BHLM", rotate(q, turn), rotate(k, turn))

    np.testing.assert_allclose(scores(0), scores(77), atol=1e-4)
    assert jnp.abs(scores(0) - jnp.einsum("BLHK,BMHK->BHLM", q, k)).max() > 0.1


def test_global_and_local_layers_have_thetas_of_their_own():
    batch, encoder = make_batch(rows=2), small_modernbert(N=2)
    params, inputs = init(encoder), (batch["tokens"], batch["mask"])

    one, local, both = (
        run(dataclasses.replace(encoder, positions=Rotary(*thetas)), params, *inputs)
        for thetas in ((50.0,), (50.0, 7.0), (7.0, 50.0))
    )
    assert jnp.abs(one - local).max() > 1e-3 and jnp.abs(one - both).max() > 1e-3


# Windows.


def influence(encoder, params, L):
    """Say by gradient on which words the output at each position depends: [L, L]."""
    tokens = jnp.arange(10, 10 + L)[None]

    @jax.jit
    @jax.jacrev
    def slope(table):
        embeddings = params["embeddings"] | {"word": {"table": table}}
        x_BLD = encoder.apply({"params": params | {"embeddings": embeddings}}, tokens, jnp.ones_like(tokens))
        return jnp.abs(x_BLD[0]).sum(-1)

    return np.asarray(jnp.abs(slope(word_table(params))[:, 10 : 10 + L]).sum(-1)) > 0


@pytest.mark.parametrize("L", [20, 41])  # whole scores, and blocks
def test_local_attention_covers_reach_tokens_to_each_side_and_the_token_itself(L):
    """Nothing mixes positions but the second layer, when the values of the first are zero."""
    encoder = small_modernbert(N=2, reach=3, D=8)
    params = init(encoder)
    values = params["layers"]["attention"]["value"]["kernel"] * np.array([0, 1], "f")[:, None, None, None]
    attention = params["layers"]["attention"] | {"value": {"kernel": values}}
    params = params | {"layers": params["layers"] | {"attention": attention}}
    distance = np.abs(np.arange(L)[:, None] - np.arange(L)[None])
    np.testing.assert_array_equal(influence(encoder, params, L), distance <= 3)
    everywhere = dataclasses.replace(encoder, global_every=1)
    assert influence(everywhere, params, L).all()


def test_the_published_window_is_64_tokens_the_token_and_64_tokens():
    encoder = load_experiment("experiments/modernbert.py").objective.encoder
    assert (encoder.reach, encoder.global_every) == (64, 3)
    q = k = v = jax.random.normal(KEY, (1, 600, 1, 2))
    mask = jnp.ones((1, 600), jnp.int32)

    @jax.jit
    @jax.grad
    def slope(v):
        return layers.local_attention(q, k, v, mask, 64)[0, 300].sum()

    np.testing.assert_array_equal(np.flatnonzero(np.abs(slope(v)[0, :, 0]).sum(-1)), np.arange(236, 365))


@pytest.mark.parametrize("L", [17, 24, 39])
def test_blocks_of_windows_equal_whole_scores_with_a_mask(L):
    """In value and gradient, over packed documents and padding."""
    reach, rng = 2, np.random.default_rng(L)
    q, k, v = jnp.asarray(rng.normal(size=(3, 3, L, 2, 4)), jnp.float32)
    documents = np.sort(rng.integers(1, 4, (3, L)), axis=1)
    documents[1, L - 5 :] = 0
    mask = jnp.asarray(documents, jnp.int32)
    near = np.abs(np.arange(L)[:, None] - np.arange(L)[None]) <= reach
    visible = jnp.asarray((documents[:, :, None] == documents[:, None]) & near)
    wish = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    def blocks(q, k, v):
        return layers.local_attention(q, k, v, mask, reach)

    def whole(q, k, v):
        return layers.attention(q, k, v, visible, lambda p: p)

    @partial(jax.jit, static_argnums=0)
    def pulled(f, q, k, v):
        mixed, pull = jax.vjp(f, q, k, v)
        return mixed, *pull(wish)

    for a, b in zip(pulled(blocks, q, k, v), pulled(whole, q, k, v), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_work_on_windows_grows_with_the_row_not_with_its_square():
    def flops(L):
        x = jax.ShapeDtypeStruct((1, L, 1, 8), jnp.float32)
        mask = jax.ShapeDtypeStruct((1, L), jnp.int32)
        run = jax.jit(lambda q, mask: layers.local_attention(q, q, q, mask, 64))
        return run.lower(x, mask).compile().cost_analysis()["flops"]

    assert flops(4096) / flops(1024) == pytest.approx(4, rel=0.05)


# Linear biases.


@pytest.mark.parametrize("H", [1, 2, 3, 8, 12, 16, 20])
def test_slopes_are_those_of_the_published_recursion(H):
    """Written as the authors describe it: a geometric series; else the lower power's, then every second of the next."""

    def slopes(n):
        if n & (n - 1) == 0:
            return [2 ** (-8 * (i + 1) / n) for i in range(n)]
        lower = 1 << (n.bit_length() - 1)
        return slopes(lower) + slopes(2 * lower)[::2][: n - lower]

    np.testing.assert_allclose(alibi_slopes(H), slopes(H), rtol=1e-12)


def test_twelve_heads_have_the_slopes_of_eight_and_four_between():
    expected = [2.0**-h for h in range(1, 9)] + [2.0 ** -(h + 0.5) for h in range(4)]
    np.testing.assert_allclose(alibi_slopes(12), expected, rtol=1e-12)


# Waves.


def test_waves_are_sines_at_even_and_cosines_at_odd_places():
    positions = np.array([[0, 1, 5, 127]])
    found = sinusoids(jnp.asarray(positions), 6)
    for place in range(6):
        angle = positions / 10_000 ** (place // 2 * 2 / 6)
        np.testing.assert_allclose(found[..., place], (np.cos if place % 2 else np.sin)(angle), atol=1e-5)


# The whole models, written down a second time.


def normalised(x, p, encoder):
    centred = x - x.mean(-1, keepdims=True) if encoder.norms.normalise is layers.layer_norm else x
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + encoder.norms.eps) * p["scale"]
    return y + p.get("bias", 0)


def gelu(x):
    return x * np.vectorize(math.erf)(x / 2**0.5) / 2 + x / 2


def silu(x):
    return x / (1 + np.exp(-x))


def attended(x, p, encoder, theta, reach):
    """One row, one document: loops over heads, complex numbers for rotary positions."""
    L, K = len(x), encoder.D // encoder.H
    distance = np.abs(np.arange(L)[:, None] - np.arange(L)[None])
    total = np.zeros_like(x)
    for h in range(encoder.H):
        q, k, v = (x @ p[name]["kernel"][:, h] + p[name].get("bias", np.zeros((h + 1, 1)))[h]
                   for name in ("query", "key", "value"))  # fmt: skip
        scores = q @ k.T
        if isinstance(encoder.positions, Rotary):
            angles = np.arange(L)[:, None] * theta ** (-np.arange(K // 2) / (K // 2))
            q, k = ((y[:, : K // 2] + 1j * y[:, K // 2 :]) * np.exp(1j * angles) for y in (q, k))
            scores = (q @ k.conj().T).real
        scores = scores / np.sqrt(K)
        if isinstance(encoder.positions, Alibi):
            scores = scores - alibi_slopes(encoder.H)[h] * distance
        chances = np.exp(scores - scores.max(-1, keepdims=True)) * (distance <= reach)
        total += chances / chances.sum(-1, keepdims=True) @ v @ p["output"]["kernel"][h]
    return total + p["output"].get("bias", 0)


def fed(x, p, encoder):
    h, gate = (x @ p[name]["kernel"] + p[name].get("bias", 0) for name in ("widen", "gate"))
    activated = (gelu if encoder.activation is layers.gelu else silu)(h)
    return (activated * gate) @ p["narrow"]["kernel"] + p["narrow"].get("bias", 0)


def by_hand(encoder, params, tokens, types):
    """Return the hidden states of one row, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    embeddings, stack = p["embeddings"], p["layers"]
    x = embeddings["word"]["table"][tokens]
    if encoder.types:
        x = x + embeddings["type"]["table"][types]
    if isinstance(encoder.positions, ScaledSinusoids):
        angles = np.arange(len(x))[:, None] / 10_000 ** (np.arange(encoder.D) // 2 * 2 / encoder.D)
        x = x + embeddings["position_scale"] * np.where(np.arange(encoder.D) % 2, np.cos(angles), np.sin(angles))
    if encoder.norms.embedding:
        x = normalised(x, embeddings["norm"], encoder)
    for n in range(encoder.N):
        layer = {name: jax.tree.map(lambda leaf: leaf[n], stack[name]) for name in ("attention", "feedforward")}  # noqa: B023
        feed_norm = jax.tree.map(lambda leaf: leaf[n], stack["feedforward_norm"])  # noqa: B023
        local = n % encoder.global_every != 0
        theta = 0.0
        if isinstance(encoder.positions, Rotary):
            theta = encoder.positions.local_theta if local else encoder.positions.theta
        reach = encoder.reach if local else len(x)
        missing = 0 if encoder.norms.first else 1
        attention_norm = jax.tree.map(lambda leaf: leaf[n - missing], stack["attention_norm"])  # noqa: B023
        if encoder.residual is post_norm:
            x = normalised(x + attended(x, layer["attention"], encoder, theta, reach), attention_norm, encoder)
            x = normalised(x + fed(x, layer["feedforward"], encoder), feed_norm, encoder)
        else:
            read = x if n < missing else normalised(x, attention_norm, encoder)
            x = x + attended(read, layer["attention"], encoder, theta, reach)
            x = x + fed(normalised(x, feed_norm, encoder), layer["feedforward"], encoder)
    return normalised(x, p["final_norm"], encoder) if encoder.norms.final else x


MODELS = {
    "modernbert": small_modernbert,
    "neobert": small_neobert,
    "mosaicbert": small_mosaicbert,
    "crammed": small_crammed,
}


@pytest.mark.parametrize("family", MODELS)
def test_hidden_states_and_logits_are_those_of_the_papers_written_down_again(family):
    encoder = MODELS[family](D=12, H=3, F=10)
    params, batch = init(encoder), make_batch(rows=1, length=19)
    found = run(encoder, params, batch["tokens"], batch["mask"], batch["types"])[0]
    hidden = by_hand(encoder, params, np.asarray(batch["tokens"][0]), np.asarray(batch["types"][0]))
    np.testing.assert_allclose(found, hidden, atol=2e-5)

    head, table = encoder.language_head(), word_table(params)
    p = louder(jax.jit(head.init)(KEY, found[None], table).get("params", {}))
    logits = run(head, p, found[None], table)[0]
    if family == "crammed":
        assert p == {}
        expected = hidden @ table.T
    elif family == "neobert":
        expected = hidden @ p["decoder"]["kernel"] + p["decoder"]["bias"]
    else:
        assert ("bias" in p["transform"]) == ("bias" in p["norm"]) == (family == "mosaicbert")
        activated = gelu(hidden @ p["transform"]["kernel"] + p["transform"].get("bias", 0))
        expected = normalised(activated, p["norm"], encoder) @ table.T + p["bias"]
    np.testing.assert_allclose(logits, expected, atol=5e-5)


def test_the_first_layer_of_modernbert_has_no_norm_before_attention():
    encoder = small_modernbert(N=5)
    shapes = {name: leaf.shape for name, leaf in named(init(encoder)).items()}
    assert shapes["layers/attention_norm/scale"] == (4, 32) and shapes["layers/feedforward_norm/scale"] == (5, 32)
    assert {shape[0] for name, shape in shapes.items() if name.startswith("layers/attention/")} == {5}
    assert not [name for name in shapes if name.endswith("bias")]


def test_parameters_are_initialised_as_published():
    encoder = small_modernbert(D=64, F=128, N=8, output_initializer=layers.TruncatedNormal(0.005))
    batch = make_batch()
    for name, leaf in named(jax.jit(encoder.init)(KEY, batch["tokens"], batch["mask"])["params"]).items():
        if name.endswith("scale"):
            assert (leaf == 1).all()
            continue
        stddev = 0.005 if "output" in name or "narrow" in name else 0.02
        assert leaf.std() == pytest.approx(stddev * 0.8796, rel=0.05) and np.abs(leaf).max() <= 2 * stddev
        assert not name.startswith("layers/") or not (leaf[0] == leaf[1]).any()
    uniform = layers.Uniform(0.02)(KEY, (500,))
    assert 0.018 < uniform.max() <= 0.02 and -0.02 <= uniform.min() < -0.018


@pytest.mark.parametrize("N", [2, 4])
def test_a_layer_is_independent_of_its_group_in_the_scan(N):
    """Of N layers in groups of three all or one are a rest; with all of them global that changes nothing."""
    batch, encoder = make_batch(rows=2), small_modernbert(N=N, global_every=3, reach=100, positions=Rotary(50.0))
    params = init(encoder)
    found, expected = (
        run(dataclasses.replace(encoder, global_every=every), params, batch["tokens"], batch["mask"])
        for every in (3, 1)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_remat_changes_no_gradient():
    batch, encoder = make_batch(rows=2), small_modernbert(N=2)
    params = init(encoder)

    def gradient(encoder):
        def loss(params):
            x_BLD = encoder.apply({"params": params}, batch["tokens"], batch["mask"], train=True, rngs={"dropout": KEY})
            return jnp.square(x_BLD[:, 3]).sum() + x_BLD[:, 9].sum()

        return jax.jit(jax.grad(loss))(params)

    plain, *recomputed = (
        named(gradient(dataclasses.replace(encoder, remat=remat))) for remat in ("none", "dots", "full")
    )
    for name, leaf in plain.items():
        for other in recomputed:
            atol = 1e-5 * np.abs(leaf).max() + 1e-6
            np.testing.assert_allclose(other[name], leaf, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("family", MODELS)
def test_a_description_is_rebuilt(family):
    assert from_json(to_json(MODELS[family]())) == MODELS[family]()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"H": 5}, "H=5 heads"),
        ({"N": 0}, "N=0"),
        ({"reach": 0}, "reach=0"),
        ({"H": 32}, "heads of width 1 have no pairs"),
        ({"positions": ScaledSinusoids(), "D": 33, "H": 3}, "width D=33 has no pairs"),
        ({"positions": Alibi(), "global_every": 2}, "windows do not go together"),
        ({"positions": Alibi(), "local": (True, False)}, "windows do not go together"),
        ({"local": (True,) * 3}, "local=.* must be a period of 1 to N=2 layers"),
        ({"local": (True, False), "global_every": 2}, "local=.* with global_every=1"),
        ({"N": 1}, "norms.first=false"),
        ({"residual": post_norm}, "norms.first=false"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"remat": "some"}, "remat='some'"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_contradictions_are_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        Modern(**({"V": 10, "D": 32, "N": 2, "H": 2, "F": 8} | fields))
    with pytest.raises(ValueError, match=r"local_theta=-1.0 must be above 0"):
        Rotary(10.0, -1.0)
    assert Norms() == Norms(first=False)


def test_a_model_whose_head_has_no_parameters_is_saved_loaded_and_fills_masks(corpus, tokenizer, tmp_path):
    v = tokenizer.vocabulary
    objective = MaskedLM(small_crammed(V=v.size), Masking(v.mask, (0, v.size), rate=0.25))
    phases, run = (Phase(2, 8, PackedDocuments(corpus, 32)),), Run(evaluate_batches=1)
    state = fit(Experiment(objective, stable_adamw(Schedule(1e-3, 1, 2, start=1e-4)), phases, run=run), tmp_path)
    model = load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, dict(state.params), dict(model.params))
    batch = {"tokens": jnp.full((1, 5), v.mask), "mask": jnp.ones((1, 5), jnp.int32)}
    assert model.mlm_logits(batch).shape == (1, 5, v.size)
