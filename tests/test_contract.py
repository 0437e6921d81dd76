"""Every objective and every encoder of contract.py keeps the contract of docs/design.md.

The cases of one objective share what is compiled for it, so they form a group that stays in one process.
"""

import dataclasses
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import CONTRACT, ENCODERS, MASKING, B, L, V, make_batch, random_params, replace_fields, without_dropout

from bertjax.checkpoints.protocols import wrapped
from bertjax.masking import mask_tokens
from bertjax.models.language import word_table
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import BertLinear
from bertjax.rules import combine, name_of, partition
from bertjax.sharding import placement
from bertjax.sharding.collectives import gather_params
from bertjax.sharding.mesh import MeshShape, by_row
from bertjax.sharding.placement import compute_spec, storage_shardings, storage_spec
from bertjax.train import accumulated_gradient
from bertjax.types import average, total

KEY = jax.random.key(1)
STEPS = 120


class Case:
    """A row of the contract with a batch and parameters; its functions are compiled once for all tests."""

    def __init__(self, row):
        self.row, self.objective = row, row.objective
        self.batch = row.batch()
        self.params = jax.jit(self.objective.init)(KEY, self.batch)
        self.train = jax.jit(jax.value_and_grad(partial(self.objective.loss, train=True), has_aux=True))
        self.evaluate = jax.jit(partial(self.objective.loss, train=False))
        rates = (*getattr(self.objective, "frozen", ()), (".*", 1.0))
        self.trained = Optimizer(BertLinear(1e-2, 10, 200), rates=rates).trained


CASES = cache(lambda name: Case(CONTRACT[name]))


def grouped(names, what=""):
    """Let the cases of each name stay in one process."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(f"contract {what}{name}")) for name in names]


@pytest.fixture(params=grouped(CONTRACT))
def case(request):
    return CASES(request.param)


@pytest.fixture(params=grouped(name for name, row in CONTRACT.items() if row.devices))
def case_of_devices(request):
    return CASES(request.param)


@pytest.fixture(params=grouped(name for name, row in CONTRACT.items() if row.micro_batches))
def case_of_micro_batches(request):
    return CASES(request.param)


@pytest.fixture(params=grouped(name for name, row in CONTRACT.items() if row.bfloat16))
def case_in_bfloat16(request):
    return CASES(request.param)


@pytest.fixture(params=grouped(ENCODERS, "encoder "))
def encoder(request):
    return ENCODERS[request.param]()


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
    expected = case.row.initial(case.batch)
    assert expected
    for name, value in expected.items():
        assert abs(average(metrics[name]) / value - 1) < 0.05, name


def test_same_rng_same_loss_other_rng_other_draws(case):
    (once, _), _ = case.train(case.params, case.batch, KEY)
    (twice, _), _ = case.train(case.params, case.batch, KEY)
    (other, _), _ = case.train(case.params, case.batch, jax.random.key(2))
    assert once == twice != other
    found = [case.evaluate(case.params, case.batch, key) for key in (KEY, jax.random.key(2))]
    if case.row.drawn is None:
        assert_close(*found, rtol=0)
    else:
        one, other = (metrics[case.row.drawn].sum for _, metrics in found)
        assert (one != other).any() == case.row.redrawn


def test_without_train_there_is_no_dropout(case):
    plain = case.evaluate(case.params, case.batch, KEY)[0]
    assert plain == case.evaluate(case.params, case.batch, KEY)[0]
    assert plain != case.train(case.params, case.batch, KEY)[0][0]
    undropped = jax.jit(partial(without_dropout(case.objective).loss, train=True))
    np.testing.assert_allclose(plain, undropped(case.params, case.batch, KEY)[0], rtol=1e-6)


def test_contents_of_padding_do_not_matter(case):
    other = dict(case.batch)
    for mask in (name for name in case.batch if name.endswith("mask")):
        padded, of = case.batch[mask] == 0, mask.removesuffix("mask")
        noise = jax.random.randint(KEY, padded.shape, 4, V)
        names = [of + name for name in ("tokens", "types", "word_starts") if of + name in case.batch]
        other |= {
            name: jnp.where(padded, noise if name.endswith("tokens") else noise % 2, case.batch[name]) for name in names
        }
        assert not (other[f"{of}tokens"] == case.batch[f"{of}tokens"]).all()
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
    params, apply = {"params": random_params(encoder)}, jax.jit(encoder.apply)
    lengths = np.asarray(batch["mask"].sum(1))
    packed = {name: jnp.concatenate([batch[name][i, :n] for i, n in enumerate(lengths)])[None]
              for name in ("tokens", "types")}  # fmt: skip
    numbers = jnp.concatenate([jnp.full(n, i + 1) for i, n in enumerate(lengths)])[None]
    types = (batch["types"], packed["types"]) if getattr(encoder, "types", True) else (None, None)
    alone = apply(params, batch["tokens"], batch["mask"], types[0])
    together = apply(params, packed["tokens"], numbers, types[1])
    begin = 0
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(alone[i, :n], together[0, begin : begin + n], atol=1e-5)
        begin += n


def test_attention_does_not_cross_documents_or_see_padding(encoder):
    """By gradient: of every position's output with respect to every position's word vector."""
    tokens = jnp.arange(10, 22)[None]
    mask = jnp.array([[1, 1, 1, 2, 2, 2, 2, 3, 3, 0, 0, 0]])
    params = random_params(encoder)

    @jax.jit
    @jax.jacrev
    def influence(table):
        embeddings = params["embeddings"] | {"word": {"table": table}}
        x_BLD = encoder.apply({"params": params | {"embeddings": embeddings}}, tokens, mask)
        return jnp.abs(x_BLD[0]).sum(-1)

    seen = np.abs(np.asarray(influence(word_table(params)))[:, 10:22]).sum(-1) > 0
    np.testing.assert_array_equal(seen, np.asarray(mask[0])[:, None] == np.asarray(mask[0]))


def test_the_original_id_at_a_scored_position_does_not_reach_its_logit():
    """Change the hidden id: where it is replaced by the mask, the rest of the model sees no difference."""
    always = dataclasses.replace(MASKING, masked=1.0, random=0.0)
    batch = make_batch()
    masked = jax.jit(mask_tokens, static_argnums=2)(KEY, batch, always)
    place = (jnp.arange(B), masked.positions_BP[:, 0])
    changed = batch | {"tokens": batch["tokens"].at[place].set(77)}
    again = jax.jit(mask_tokens, static_argnums=2)(KEY, changed, always)
    np.testing.assert_array_equal(masked.tokens_BL, again.tokens_BL)
    assert (again.targets_BP[:, 0] == 77).all()


def test_every_trained_parameter_gets_a_gradient_and_no_other(case):
    _, gradient = case.train(case.params, case.batch, KEY)
    gradient, frozen = partition(case.trained, jax.device_get(gradient))
    assert not any(leaf.any() for leaf in jax.tree.leaves(frozen))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not [name_of(path) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient) if not leaf.any()]
    for path, table in jax.tree_util.tree_leaves_with_path(gradient):
        if name_of(path).endswith("position/table"):
            *_, inner = wrapped(case.objective)
            offset = inner.encoder.first_position
            assert table[offset : offset + L].any(-1).all() and not table[offset + L :].any()


@pytest.mark.broad
def test_loss_and_gradient_are_those_of_one_device_on_eight_that_split_everything(case_of_devices, monkeypatch):
    """Two groups of rows, two parts of what is stored, two of each matrix product."""
    case = case_of_devices
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


def test_every_sharded_parameter_is_in_a_row_of_the_contract_that_runs_on_devices(monkeypatch):
    """A parameter is split by its name and shape, so a row may be left out whose parameters another row has."""
    monkeypatch.setattr(placement, "SMALLEST", 1)
    mesh = MeshShape(fsdp=2, tensor=2).mesh(B)
    split_as = {True: set(), False: set()}
    for row in CONTRACT.values():
        params = jax.eval_shape(row.objective.init, KEY, row.batch())
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            name, shape = name_of(path), leaf.shape
            inner = re.sub(r"^.*?(encoder/|head/[^/]+/)", "", name)  # whatever the model and the head are called
            specs = compute_spec(mesh, name, shape), storage_spec(mesh, name, shape)
            split_as[row.devices] |= {(inner, *specs)}
    assert {row.devices for row in CONTRACT.values()} == {True, False}
    assert not split_as[False] - split_as[True]


LONG = 512  # elements that read or write one: too many for a sum in bfloat16


def relative_errors(gradient, expected):
    """Return by name how far each parameter, and each row of a table, is from what is expected, relative to its size.

    What is smaller than a thousandth of the largest parameter's, or than a quarter of the table's mean square row,
    counts as that large: a key's bias has no gradient but rounding, and of an id that is never a target terms cancel.
    What is nothing but rounding in float32 is left out: a bias that a softmax over positions cancels.
    """
    errors, largest = {}, max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(expected))
    for (path, there), here in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(gradient), strict=True
    ):
        if np.linalg.norm(there) < 1e-6 * largest:
            continue
        rows = len(there) if name_of(path).endswith("/table") else 1
        size, off = (np.linalg.norm(np.reshape(x, (rows, -1)), axis=-1) for x in (there, there - here))
        least = max(largest / 1000, np.sqrt(np.square(size).mean()) / 4)
        errors[name_of(path)] = float((off / np.maximum(size, least)).max())
    return errors


@pytest.mark.broad
def test_in_bfloat16_the_gradient_of_each_parameter_and_embedding_is_that_of_float32(case_in_bfloat16):
    """In long rows, within 4%: what many elements read or write is summed in float32.

    All pairs, numbers and several labels of a text are 1, since gradients of unlike labels cancel at random
    initialisation. Samples are those of noise alone.
    """
    case = case_in_bfloat16
    objective = replace_fields(without_dropout(case.objective), positions=LONG + 8)
    if hasattr(objective, "generator"):
        objective = dataclasses.replace(objective, temperature=1e6)
    batch = case.row.batch(rows=2, length=LONG)
    binary = {name: array for name, array in batch.items() if name in ("pair", "answerable")}
    binary |= {name: array for name, array in batch.items() if name == "labels" and array.dtype == jnp.float32}
    batch |= {name: jnp.ones_like(array) for name, array in binary.items()}
    rng = np.random.default_rng(0)

    def widened(path, leaf, like):  # the case's own, but for longer tables of positions
        drawn = np.std(leaf) * rng.normal(size=like.shape)
        leaf = leaf if leaf.shape == like.shape else jnp.asarray(drawn, leaf.dtype)
        return leaf if name_of(path).endswith(("scale", "bias")) else case.row.bfloat16 * leaf

    shapes = jax.eval_shape(objective.init, KEY, batch)
    params = jax.tree_util.tree_map_with_path(widened, case.params, shapes)
    both = objective, replace_fields(objective, dtype="bfloat16")

    @jax.jit
    def gradients(params):
        return [jax.grad(partial(one.loss, train=True), has_aux=True)(params, batch, KEY)[0] for one in both]

    expected, gradient = gradients(params)
    errors = relative_errors(gradient, expected)
    assert max(errors.values()) < 0.04, sorted(errors.items(), key=lambda each: -each[1])[:5]


def test_weights_sum_to_what_the_row_of_the_contract_says(case):
    (_, metrics), _ = case.train(case.params, case.batch, KEY)
    expected = case.row.weights(case.batch)
    assert expected.keys() == {name for name in metrics if name.startswith("loss/")}
    for name, bounds in expected.items():
        low, high = bounds if isinstance(bounds, tuple) else (bounds, bounds)
        assert 0 < low <= metrics[name].weight <= high, name
    real = metrics["tokens/real"]
    masks = [mask for name, mask in case.batch.items() if name.endswith("mask")]
    assert real.sum == sum(mask.sum() for mask in masks) and real.weight == sum(mask.size for mask in masks)


def test_weights_of_the_loss_depend_on_data_alone(case):
    other = jax.tree.map(lambda x: np.float32(1.5) * x + np.float32(0.1), jax.device_get(case.params))
    (loss, metrics), _ = case.train(case.params, case.batch, KEY)
    (changed, found), _ = case.train(other, case.batch, KEY)
    assert loss != changed
    for name in metrics:
        assert not name.startswith("loss/") or metrics[name].weight == found[name].weight, name


def test_rows_of_padding_weigh_nothing(case):
    emptied = case.batch | {"mask": case.batch["mask"].at[B // 2 :].set(0)}
    if "texts" in emptied:
        emptied |= {"texts": case.batch["texts"].at[B // 2 :].set(-1)}
    if not case.row.alone:
        first = jax.tree.map(lambda array: array[: B // 2], case.batch)
        assert_close(case.evaluate(case.params, first, KEY)[0], case.evaluate(case.params, emptied, KEY)[0], rtol=1e-5)
        return
    rows = [{name: array[np.full(B, i)] for name, array in case.batch.items()} for i in range(B // 2)]
    metrics = [case.evaluate(case.params, each, KEY)[1] for each in rows]
    found = case.evaluate(case.params, emptied, KEY)[1]
    for name in found:
        expected = sum(each[name].sum for each in metrics) / B
        np.testing.assert_allclose(found[name].sum, expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.broad
def test_gradients_accumulate_exactly_where_micro_batches_weigh_differently(case_of_micro_batches, monkeypatch):
    """On copies of the parameters too, and where each copy is split: they draw what one device would."""
    case, parts = case_of_micro_batches, 2
    mesh_shape = case.row.micro_batches
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
    micro = [
        ({name: array[part::parts] for name, array in case.batch.items()}, jax.random.fold_in(KEY, part))
        for part in range(parts)
    ]
    terms = tuple(name for name in metrics if name.startswith("loss/"))

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def share(params, batch, rng, weights):
        found = loss(params, batch, rng)[1]
        return sum(found[name].sum / weights[name] for name in terms), {name: found[name].weight for name in terms}

    weights = [share(case.params, *each, dict.fromkeys(terms, jnp.float32(1)))[1] for each in micro]
    whole = jax.tree.map(lambda *each: sum(each), *jax.device_get(weights))
    shares = jax.device_get([share(case.params, *each, whole)[0] for each in micro])
    assert_close(gradient, jax.tree.map(lambda *each: sum(each), *shares), rtol=1e-4, atol=1e-6)
    assert metrics["tokens/real"].sum == case.batch["mask"].sum()


def test_one_batch_can_be_overfitted(case):
    """With the same draws and the same dropout at every step, so that the compiled gradient serves.

    By Adam of clipped gradients in NumPy, on all parameters as one vector: there is nothing more to compile.
    """
    own, frozen = partition(case.trained, jax.device_get(case.params))
    leaves, tree = jax.tree.flatten(own)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    vector, loss = np.concatenate([leaf.ravel() for leaf in leaves]), np.inf
    mean, square = np.zeros_like(vector), np.zeros_like(vector)
    for step in range(1, STEPS + 1):
        own = [part.reshape(leaf.shape) for part, leaf in zip(np.split(vector, ends), leaves, strict=True)]
        (_, metrics), gradient = case.train(combine(jax.tree.unflatten(tree, own), frozen), case.batch, KEY)
        loss = sum(average(metrics[name]) for name in case.row.overfitted)
        if loss < 0.5:
            break
        g = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(partition(case.trained, gradient)[0])])
        g /= max(1, np.linalg.norm(g))
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        update = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-6)
        vector = (vector - 1e-2 * min(step / 10, 1) * update).astype(np.float32)
    assert loss < 0.5 and step > 1
