"""An objective whose draws depend on the whole batch: they are the same however the batch is divided."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import make_batch

from bertjax.random import global_rows, stratified, with_global_rows
from bertjax.run.state import State
from bertjax.sharding.collectives import sums_per_replica
from bertjax.sharding.mesh import MeshShape, by_row, replicated
from bertjax.train import train_step
from bertjax.types import Mean, total

B = 16
KEY = jax.random.key(3)


@dataclasses.dataclass(frozen=True)
class DrawsATime:
    """Predict the time of each row, one of each stratum of the global batch, by one parameter."""

    def init(self, rng, batch):
        return {"time": jnp.zeros([])}

    def loss(self, params, batch, rng, *, train):
        time_B = stratified(rng, batch)
        metrics = {"loss/time": Mean(((params["time"] - time_B) ** 2).sum(), jnp.float32(len(time_B)))}
        drawn = jnp.zeros(B).at[batch["example"]].set(time_B)  # by example: parts can be added up
        return total(metrics), metrics | {"drawn": Mean(drawn, jnp.float32(1))}


def stepped(shape, parts):
    """Make a step on a mesh: the drawn times by example, the loss, the parameter after the update."""
    objective, tx = DrawsATime(), optax.sgd(0.5)
    mesh = shape.mesh(B // parts, jax.devices()[: shape.data * shape.fsdp])
    batch = make_batch(rows=B) | {"example": jnp.arange(B, dtype=jnp.uint32)[::-1]}
    params = objective.init(KEY, batch)

    def loss(params, batch, rng):
        return objective.loss(params, batch, rng, train=True)

    with jax.set_mesh(mesh):
        state = jax.device_put(State(jnp.int32(0), params, tx.init(params)), replicated(mesh))
        batch, key = jax.device_put(batch, by_row(mesh)), jax.device_put(KEY, replicated(mesh))
        step = jax.jit(train_step, static_argnames=("loss", "tx", "parts"))
        state, metrics = step(state, batch, loss=loss, tx=tx, key=key, parts=parts)
    term = metrics["loss/time"]
    return np.asarray(metrics["drawn"].sum), float(term.sum / term.weight), float(state.params["time"])


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("shape", [MeshShape(data=1), MeshShape(data=2), MeshShape(data=8), MeshShape(data=2, fsdp=2)])
def test_times_loss_and_update_are_those_of_one_device(shape, parts):
    key = jax.random.fold_in(KEY, 0)  # of step 0
    expected = (jax.random.uniform(key) + jnp.arange(B, dtype=jnp.float32) / B) % 1
    drawn, loss, parameter = stepped(shape, parts)
    np.testing.assert_array_equal(drawn, expected[::-1])
    np.testing.assert_allclose(loss, (expected**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(parameter, expected.mean(), rtol=1e-6)


def test_rows_are_numbered_from_first_to_last_and_keep_their_numbers_in_parts():
    batch = make_batch(rows=6)
    whole = global_rows(KEY, batch)
    assert whole.number_B.tolist() == list(range(6)) and int(whole.size) == 6
    part = {name: array[1::2] for name, array in with_global_rows(KEY, batch).items()}
    key, number_B, size = global_rows(jax.random.key(4), part)
    assert number_B.tolist() == [1, 3, 5] and int(size) == 6 and key == KEY


def test_rows_that_a_replica_sees_keep_their_numbers():
    def numbered(params, batch, rng):
        rows = global_rows(rng, batch)
        return rows.size, rows.number_B

    with jax.set_mesh(MeshShape(data=4).mesh(B, jax.devices()[:4])):
        sizes, number_B = jax.jit(sums_per_replica(numbered))({}, make_batch(rows=B), KEY)
    assert int(sizes) == 4 * B and number_B.tolist() == list(range(B))


def test_one_time_falls_into_each_stratum():
    time_B = np.sort(stratified(KEY, make_batch(rows=50)))
    assert (np.floor(time_B * 50) == np.arange(50)).all() and time_B[0] >= 0 and time_B[-1] < 1
