import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import (
    ENCODERS,
    LIKE_TAGS,
    MASKING,
    OBJECTIVES,
    B,
    L,
    V,
    batch_for,
    make_batch,
    replace_fields,
    small_bert,
    without_dropout,
)

from bertjax.masking import mask_tokens, rounded, tokens
from bertjax.models.language import word_table
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import BertLinear
from bertjax.rules import name_of, partition
from bertjax.run.state import State
from bertjax.sharding import placement
from bertjax.sharding.collectives import gather_params
from bertjax.sharding.mesh import MeshShape, by_row
from bertjax.sharding.placement import storage_shardings
from bertjax.train import accumulated_gradient, train_step
from bertjax.types import Mean, average, total

KEY = jax.random.key(1)


class Case:
    """An objective with a batch and parameters; its functions are compiled once for all tests."""

    def __init__(self, objective):
        self.objective = objective
        self.recipe = getattr(objective, "objective", objective)  # what is inside a wrapper
        self.batch = batch_for(objective)
        self.params = jax.jit(objective.init)(KEY, self.batch)
        self.train = jax.jit(jax.value_and_grad(partial(objective.loss, train=True), has_aux=True))
        self.evaluate = jax.jit(partial(objective.loss, train=False))


CASES = cache(lambda name: Case(OBJECTIVES[name]))


@pytest.fixture(params=OBJECTIVES)
def case(request):
    return CASES(request.param)


@pytest.fixture(params=[name for name in OBJECTIVES if name not in LIKE_TAGS])
def unlike(request):
    return CASES(request.param)


@pytest.fixture(params=ENCODERS)
def encoder(request):
    return ENCODERS[request.param]()


def rates(objective):
    return (*getattr(objective, "frozen", ()), (".*", 1.0))


def assert_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_loss_is_a_finite_float32_scalar_and_the_sum_of_its_terms(case):
    (loss, metrics), _ = case.train(case.params, case.batch, KEY)
    assert loss.shape == () and loss.dtype == jnp.float32 and np.isfinite(loss)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(case.params))
    np.testing.assert_allclose(loss, total(metrics), rtol=1e-6)


def test_the_loss_at_random_init_is_that_of_a_uniform_guess(case):
    (_, metrics), _ = case.train(case.params, case.batch, KEY)
    guesses = {"loss/mlm": V, "cross_entropy/mlm": V, "loss/plm": V, "loss/pair": 2, "cross_entropy/rtd": 2}
    guesses |= {"loss/classify": 3, "loss/tags": 5, "loss/choice": 2}
    found = {name: average(metrics[name]) / np.log(guess) for name, guess in guesses.items() if name in metrics}
    weight = getattr(case.recipe, "generator_weight", getattr(case.recipe, "mlm_weight", 1))
    found["loss/mlm"] = found.get("loss/mlm", 1) / weight
    for name, ratio in found.items():
        assert abs(ratio - 1) < 0.05, name


def test_same_rng_same_loss_other_rng_other_mask(case):
    (once, _), _ = case.train(case.params, case.batch, KEY)
    (twice, _), _ = case.train(case.params, case.batch, KEY)
    (other, _), _ = case.train(case.params, case.batch, jax.random.key(2))
    assert once == twice != other
    drawn = getattr(case.recipe, "masking", None) or getattr(case.recipe, "permutation", None)
    if drawn is None:  # fine-tuning drops, and draws nothing else
        return
    targets = [
        next(mean.sum for name, mean in case.evaluate(case.params, case.batch, key)[1].items() if "targets" in name)
        for key in (KEY, jax.random.key(2))
    ]
    assert (targets[0] == targets[1]).all() == (drawn.seed is not None)


def test_without_train_nothing_is_dropped(case):
    plain = case.evaluate(case.params, case.batch, KEY)[0]
    assert plain == case.evaluate(case.params, case.batch, KEY)[0]
    assert plain != case.train(case.params, case.batch, KEY)[0][0]
    undropped = jax.jit(partial(without_dropout(case.objective).loss, train=True))
    np.testing.assert_allclose(plain, undropped(case.params, case.batch, KEY)[0], rtol=1e-6)


def test_contents_of_padding_do_not_matter(case):
    noise = jax.random.randint(KEY, case.batch["tokens"].shape, 4, V)
    padded = case.batch["mask"] == 0
    other = case.batch | {name: jnp.where(padded, noise if name == "tokens" else noise % 2, case.batch[name])
                          for name in ("tokens", "types", "word_starts")}  # fmt: skip
    assert not (other["tokens"] == case.batch["tokens"]).all()
    given, changed = case.train(case.params, case.batch, KEY), case.train(case.params, other, KEY)
    assert_close(given, changed, rtol=1e-5, atol=1e-6)


def test_order_of_rows_does_not_matter(case):
    order = np.random.default_rng(0).permutation(B)
    shuffled = {name: array[order] for name, array in case.batch.items()}
    assert_close(
        case.evaluate(case.params, case.batch, KEY), case.evaluate(case.params, shuffled, KEY), rtol=1e-5, atol=1e-6
    )


def test_a_packed_row_equals_its_documents_alone(encoder):
    batch = make_batch(rows=3, length=20)
    params = encoder.init(KEY, batch["tokens"], batch["mask"])["params"]
    lengths = np.asarray(batch["mask"].sum(1))
    packed = {name: jnp.concatenate([batch[name][i, :n] for i, n in enumerate(lengths)])[None]
              for name in ("tokens", "types")}  # fmt: skip
    numbers = jnp.concatenate([jnp.full(n, i + 1) for i, n in enumerate(lengths)])[None]
    types = (batch["types"], packed["types"]) if getattr(encoder, "types", True) else (None, None)
    alone = encoder.apply({"params": params}, batch["tokens"], batch["mask"], types[0])
    group_size = encoder.apply({"params": params}, packed["tokens"], numbers, types[1])
    begin = 0
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(alone[i, :n], group_size[0, begin : begin + n], atol=1e-5)
        begin += n


def test_nothing_is_seen_across_documents_or_from_padding(encoder):
    """By gradient: of every position's output with respect to every position's word vector."""
    tokens = jnp.arange(10, 22)[None]
    mask = jnp.array([[1, 1, 1, 2, 2, 2, 2, 3, 3, 0, 0, 0]])
    params = jax.jit(encoder.init)(KEY, tokens, mask)["params"]

    @jax.jit
    @jax.jacrev
    def influence(table):
        embeddings = params["embeddings"] | {"word": {"table": table}}
        x_BLD = encoder.apply({"params": params | {"embeddings": embeddings}}, tokens, mask)
        return jnp.abs(x_BLD[0]).sum(-1)

    seen = np.asarray(jnp.abs(influence(word_table(params))[:, 10:22]).sum(-1)) > 0
    np.testing.assert_array_equal(seen, np.asarray(mask[0])[:, None] == np.asarray(mask[0]))


def test_the_original_id_at_a_scored_position_does_not_reach_its_logit():
    """Change the hidden id: where it is replaced by the mask, the rest of the model sees no difference."""
    always = dataclasses.replace(MASKING, masked=1.0, random=0.0)
    batch = make_batch()
    masked = mask_tokens(KEY, batch, always)
    place = (jnp.arange(B), masked.positions_BP[:, 0])
    changed = batch | {"tokens": batch["tokens"].at[place].set(77)}
    again = mask_tokens(KEY, changed, always)
    np.testing.assert_array_equal(masked.tokens_BL, again.tokens_BL)
    assert (again.targets_BP[:, 0] == 77).all()


def test_every_trained_parameter_gets_a_gradient_and_no_other(case):
    _, gradient = case.train(case.params, case.batch, KEY)
    gradient, frozen = partition(Optimizer(BertLinear(1, 0, 1), rates=rates(case.objective)).trained, gradient)
    assert not any(leaf.any() for leaf in jax.tree.leaves(frozen))
    dead = [
        name_of(path) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient) if not jnp.abs(leaf).max() > 0
    ]
    assert not dead
    for path, table in jax.tree_util.tree_leaves_with_path(gradient):
        if name_of(path).endswith("position/table"):
            offset = getattr(case.objective, "encoder", small_bert()).first_position
            assert (jnp.abs(table[offset : offset + L]).sum(-1) > 0).all() and not table[offset + L :].any()


@pytest.mark.slow
def test_loss_and_gradient_are_those_of_one_device_on_eight_that_split_everything(unlike, monkeypatch):
    """Two groups of rows, two parts of what is stored, two of each matrix product."""
    case = unlike
    monkeypatch.setattr(placement, "SMALLEST", 1)
    mesh = MeshShape(fsdp=2, tensor=2).mesh(B)
    assert mesh.size == 8

    def loss(params, batch, rng):
        return case.objective.loss(gather_params(params), batch, rng, train=True)

    one = case.train(case.params, case.batch, KEY)
    params = jax.device_put(case.params, storage_shardings(mesh, case.params))
    with jax.set_mesh(mesh):
        train = jax.jit(jax.value_and_grad(loss, has_aux=True))
        eight = train(params, jax.device_put(case.batch, by_row(mesh)), KEY)
    assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(eight[1]))
    assert_close(one, eight, rtol=2e-5, atol=5e-7)


def test_weights_sum_to_what_the_masking_says(case):
    (_, metrics), _ = case.train(case.params, case.batch, KEY)
    masking = getattr(case.recipe, "masking", None)
    lengths = np.asarray(case.batch["mask"].sum(1))
    if hasattr(case.objective, "score"):
        scored = (case.batch["labels"] >= 0).sum() if "loss/tags" in metrics else B
        assert all(mean.weight == scored for name, mean in metrics.items() if name.startswith("loss/"))
    elif masking is None:
        assert 0 < metrics["loss/plm"].weight <= B * case.objective.permutation.targets * L / 16
    elif masking.count is rounded and masking.unit is tokens:
        assert metrics["loss/mlm"].weight == sum(max(1, round(masking.rate * n)) for n in lengths.tolist())
    real = metrics["tokens/real"]
    assert real.sum == case.batch["mask"].sum() and real.weight == case.batch["mask"].size


def test_weights_of_the_loss_depend_on_data_alone(case):
    other = jax.tree.map(lambda x: 1.5 * x + 0.1, case.params)
    (loss, metrics), _ = case.train(case.params, case.batch, KEY)
    (changed, found), _ = case.train(other, case.batch, KEY)
    assert loss != changed
    for name in metrics:
        assert not name.startswith("loss/") or metrics[name].weight == found[name].weight, name


def test_rows_of_padding_weigh_nothing(case):
    emptied = case.batch | {"mask": case.batch["mask"].at[B // 2 :].set(0)}
    rows = [{name: array[i : i + 1].repeat(B, 0) for name, array in case.batch.items()} for i in range(B // 2)]
    metrics = [case.evaluate(case.params, each, KEY)[1] for each in rows]
    found = case.evaluate(case.params, emptied, KEY)[1]
    for name in found:
        expected = sum(each[name].sum for each in metrics) / B
        np.testing.assert_allclose(found[name].sum, expected, rtol=1e-5, atol=1e-5, err_msg=name)


# One of each objective, for it is the objective that weighs. Some are on copies of the parameters, one of which splits
# each over two devices: they draw what one device would.
WEIGHED = {
    "bert": MeshShape(data=2),
    "xlnet": MeshShape(data=2),
    "electra": MeshShape(data=1),
    "deberta v3, remat dots": MeshShape(data=2, fsdp=2),
    "sift": MeshShape(data=2),
    "distillation": MeshShape(data=1),
    "tags": MeshShape(data=2),
    "beam spans": MeshShape(data=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHED)
def test_gradients_accumulate_exactly_where_micro_batches_weigh_differently(name, monkeypatch):
    case, mesh_shape, parts = CASES(name), WEIGHED[name], 2
    monkeypatch.setattr(placement, "SMALLEST", 1)
    loss = partial(case.objective.loss, train=True)

    def on_devices(params, batch, rng):
        return loss(gather_params(params), batch, rng)

    mesh = mesh_shape.mesh(B // parts, jax.devices()[: mesh_shape.data * mesh_shape.fsdp])
    places = storage_shardings(mesh, case.params), by_row(mesh)
    with jax.set_mesh(mesh):
        accumulate = jax.jit(partial(accumulated_gradient, on_devices, parts=parts))
        gradient, metrics = accumulate(*jax.device_put((case.params, case.batch), places), rng=KEY)
    # By hand: the same micro-batches and keys; their sums and weights are added up before they are divided.
    micro = [{name: array[part::parts] for name, array in case.batch.items()} for part in range(parts)]
    rngs = [jax.random.fold_in(KEY, part) for part in range(parts)]

    @jax.jit
    @jax.grad
    def whole(params):
        found = [loss(params, m, r)[1] for m, r in zip(micro, rngs, strict=True)]
        terms = [name for name in found[0] if name.startswith("loss/")]
        return sum(sum(each[name].sum for each in found) / sum(each[name].weight for each in found) for name in terms)

    assert_close(gradient, whole(case.params), rtol=1e-4, atol=1e-6)
    assert metrics["tokens/real"].sum == case.batch["mask"].sum()


def test_one_batch_can_be_overfitted(case):
    objective = replace_fields(without_dropout(case.objective), seed=3)
    optimizer = Optimizer(BertLinear(1e-2, 10, 200), rates=rates(objective))
    tx, trained = optimizer.transform(), optimizer.trained
    update = partial(train_step, loss=partial(objective.loss, train=True), tx=tx, key=KEY, trained=trained)
    step = jax.jit(update, donate_argnums=0)
    state = State(
        jnp.int32(0), jax.tree.map(jnp.copy, case.params), jax.jit(tx.init)(partition(trained, case.params)[0])
    )
    for _ in range(120):
        state, metrics = step(state, case.batch)
    task = sum((average(mean) for name, mean in metrics.items() if name.startswith("loss/")), 0.0)
    assert average(metrics.get("loss/mlm", metrics.get("loss/plm", Mean(task, 1)))) < 0.5
    assert int(state.step) == 120
    before, after = (jax.tree.leaves(partition(trained, params)[1]) for params in (case.params, state.params))
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
