import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import SPECIALS, V, make_batch, random_params, small_xlnet, without_dropout

from bertjax.config import load_experiment
from bertjax.errors import InputError
from bertjax.models.heads import TiedHead
from bertjax.models.language import word_table
from bertjax.objectives.plm import PermutationLM
from bertjax.permutation import Permutation, permute
from bertjax.plan.step import plan
from bertjax.types import total

KEY = jax.random.key(0)
WINDOWS = without_dropout(
    PermutationLM(small_xlnet(), Permutation(functional=SPECIALS, parts=(5, 3), targets=3), memory=6)
)


@cache
def initialised(objective):
    """Return normal parameters, larger than at the start, so that every influence shows."""
    bias = jnp.zeros(objective.encoder.V)
    return {"encoder": random_params(objective.encoder, noise=0.1), "head": {"plm": {"bias": bias}}}


def by_hand(objective, params, batch, rng):
    """Run the windows of all rows one after another; return Σ nll, Σ weights, and the gradient of their quotient."""
    encoder, permutation, (B, L) = objective.encoder, objective.permutation, batch["tokens"].shape
    order_key, _ = jax.random.split(rng)
    C = L // permutation.window
    cut = {
        name: np.asarray(x).reshape(B * C, -1)
        for name, x in batch.items()
        if name in ("tokens", "mask", "types", "word_starts")
    }
    cut["example"] = (np.asarray(batch["example"], np.uint32)[:, None] * C + np.arange(C, dtype=np.uint32)).reshape(-1)
    cut["backward"] = np.repeat(np.asarray(batch["backward"]), C)
    cut = {name: jnp.asarray(x) for name, x in cut.items()}
    permuted = jax.jit(permute, static_argnums=2)(order_key, cut, permutation)
    memories = [encoder.empty_memory(B, objective.memory)]

    places = [np.arange(B) * C + number for number in range(C)]

    def window(params, memory, at):
        streams = encoder.apply(
            {"params": params["encoder"]}, cut["tokens"][at], cut["mask"][at], cut["types"][at],
            ranks_BL=permuted.ranks_BL[at], targets_BP=permuted.positions_BP[at], sign_B=1 - 2 * cut["backward"][at],
            memory=memory, reuse=permutation.parts[0], method="streams",
        )  # fmt: skip
        logits = streams.query_BPD @ word_table(params["encoder"]).T + params["head"]["plm"]["bias"][None, None]
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), permuted.targets_BP[at][..., None], -1)[..., 0]
        return (permuted.weights_BP[at] * nll).sum(), streams.memory

    remembered = jax.jit(lambda memory, at: window(params, memory, at)[1])
    for at in places[:-1]:
        memories.append(remembered(memories[-1], at))

    @jax.jit
    @jax.value_and_grad
    def loss(params, memory, at):
        return window(params, memory, at)[0] / permuted.weights_BP.sum()

    found = jax.device_get([loss(params, memory, at) for memory, at in zip(memories, places, strict=True)])
    value, gradient = jax.tree.map(lambda *each: sum(each), *found)
    return value, permuted.weights_BP.sum(), gradient


def test_the_loss_and_its_gradient_are_those_of_the_windows_one_by_one_with_fixed_memory():
    batch = make_batch(rows=4)
    params = initialised(WINDOWS)
    (loss, metrics), gradient = jax.jit(jax.value_and_grad(partial(WINDOWS.loss, train=True), has_aux=True))(
        params, batch, KEY
    )
    value, weight, expected = by_hand(WINDOWS, params, batch, KEY)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    assert metrics["loss/plm"].weight == weight
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 + 1e-4 * float(jnp.abs(b).max()))


def test_later_windows_depend_on_earlier_ones_through_memory():
    """Change a token of the first window's first part: with memory the loss of others changes, without it does not."""
    batch = make_batch(rows=1) | {"backward": jnp.zeros(1, jnp.int32)}
    L = batch["tokens"].shape[1]
    plain = batch["tokens"].at[0, 1].set(int(batch["tokens"][0, 1]) % 100 + 50)

    def later(objective, loss, tokens):
        """Score the last windows only: those that do not hold the changed token."""
        changed = batch | {"tokens": tokens, "word_starts": jnp.ones((1, L), jnp.int32)}
        first = changed | {"mask": batch["mask"].at[:, 8:].set(0)}
        whole, first = (loss(initialised(objective), each, KEY)[1]["loss/plm"].sum for each in (changed, first))
        return float(whole - first)

    def effect(objective):
        loss = jax.jit(partial(objective.loss, train=False))
        return abs(later(objective, loss, plain) - later(objective, loss, batch["tokens"]))

    assert effect(dataclasses.replace(WINDOWS, memory=0)) < 1e-4
    assert effect(WINDOWS) > 1e-3


def test_windows_of_a_row_are_permuted_each_for_itself():
    batch = make_batch(rows=2, length=32)
    batch = {name: x[:, :8] if x.ndim == 2 else x for name, x in batch.items()}
    row = {name: jnp.concatenate([x] * 4, axis=1) if x.ndim == 2 else x for name, x in batch.items()}
    windows = WINDOWS._windows(row)
    assert len(set(np.asarray(windows["example"]).tolist())) == 8
    permuted = permute(KEY, windows, WINDOWS.permutation)
    assert len(np.unique(np.asarray(permuted.ranks_BL[:4]), axis=0)) == 4


def test_the_head_is_the_tied_table_and_a_bias():
    x, table = jax.random.normal(KEY, (2, 3, 4)), jax.random.normal(KEY, (7, 4))
    head = TiedHead(7, "float32")
    params = head.init(KEY, x, table)["params"]
    assert jax.tree.map(jnp.shape, params) == {"bias": (7,)} and not params["bias"].any()
    np.testing.assert_allclose(
        head.apply({"params": {"bias": jnp.arange(7.0)}}, x, table), np.asarray(x @ table.T) + np.arange(7), rtol=1e-5
    )


def test_every_batch_of_the_published_run_is_half_backward_and_full(corpus):
    rows = [
        f"data={corpus}",
        "windows=3",
        "window=32",
        "targets=6",
        "memory=24",
        "batch_size=12",
        "steps=4",
        "warmup=1",
    ]
    small = [f"objective.encoder.{field}" for field in ("N=2", "D=32", "H=2", "F=64")]
    experiment = load_experiment("experiments/xlnet.py", [*rows, *small])
    batch = experiment.phases[0].rows.open("train").rows(np.arange(4))
    assert batch["tokens"].shape == (4, 96) and batch["mask"].all()
    assert batch["backward"].tolist() == [0, 1, 0, 1]
    params = jax.jit(experiment.objective.init)(KEY, batch)
    loss, metrics = jax.jit(partial(experiment.objective.loss, train=False))(params, batch, KEY)
    assert abs(float(loss) / np.log(experiment.objective.encoder.V) - 1) < 0.05
    assert 0.7 * 4 * 3 * 6 <= metrics["loss/plm"].weight <= 4 * 3 * 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(WINDOWS, memory=-1), "memory=-1"),
        (lambda: PermutationLM(small_xlnet(V=2), WINDOWS.permutation), "id 2, but .* V=2"),
        (lambda: Permutation(functional=(), parts=(8, 8), targets=16), "8 in a part of 8 tokens"),
        (
            lambda: load_experiment("experiments/xlnet.py", ["windows=2", "memory=384"]),
            "memory=384 is longer than its source",
        ),
        (lambda: load_experiment("experiments/xlnet.py", ["targets=511"]), "part of 256 tokens"),
        (lambda: load_experiment("experiments/xlnet.py", ["batch_size=8"]), "batch_size=8 a multiple of twice"),
        (lambda: load_experiment("experiments/xlnet.py", ["windows=3"]), "windows=3 1 or more"),
    ],
)
def test_contradictions_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.memory=2000", "memory=2000 is more than 8 windows leave to the last one, 1792 tokens"),
        ("objective.permutation.parts=100,100", "4096 tokens do not divide into windows"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_training(override, message):
    with pytest.raises(InputError, match=message):
        plan(load_experiment("experiments/xlnet.py", [override]))


def test_ids_of_the_vocabulary_are_checked_like_those_of_masking():
    assert PermutationLM(small_xlnet(V=V), WINDOWS.permutation).head.V == V


@pytest.mark.slow
def test_the_gradient_taken_window_by_window_is_that_of_all_windows_at_once():
    params, batch = initialised(WINDOWS), make_batch()

    def at_once(params):
        return total(WINDOWS.outputs(params, batch, KEY, train=True)[0])

    def in_turn(params):
        return 3 * WINDOWS.loss(params, batch, KEY, train=True)[0]

    for a, b in zip(*(jax.tree.leaves(jax.jit(jax.grad(f))(params)) for f in (at_once, in_turn)), strict=True):
        np.testing.assert_allclose(3 * a, b, rtol=2e-5, atol=1e-7)
