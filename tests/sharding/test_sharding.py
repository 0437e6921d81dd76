import math
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from contract import MASKING, SPECIALS, B, make_batch, small_bert, small_neobert, small_xlnet
from jax.sharding import AbstractMesh, PartitionSpec

from bertjax.errors import InputError
from bertjax.flops import model_flops
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.plm import PermutationLM
from bertjax.permutation import Permutation
from bertjax.plan.costs import collectives
from bertjax.plan.hlo import Program
from bertjax.sharding import placement
from bertjax.sharding.collectives import gather_params
from bertjax.sharding.mesh import AXES, DATA_PARALLEL, MeshShape, by_row, held_rows, replicated
from bertjax.sharding.placement import compute_spec, storage_shardings, storage_spec
from bertjax.train import accumulated_gradient

P = PartitionSpec


def described(**sizes):
    return AbstractMesh(tuple(sizes.get(name, 1) for name in AXES), AXES)


def test_a_mesh_shape_is_parsed_and_formatted():
    shape = MeshShape.parse("fsdp:8,tensor:2")
    assert shape == MeshShape(fsdp=8, tensor=2) == MeshShape.parse(str(shape))
    assert MeshShape.parse("") == DATA_PARALLEL
    for wrong in ("fsdp", "fsdp:x", "model:2", "fsdp:2,fsdp:4", "fsdp:-1"):
        with pytest.raises(InputError, match="is no axis and size"):
            MeshShape.parse(wrong)
    with pytest.raises(ValueError, match="1 device or more"):
        MeshShape(fsdp=0)
    with pytest.raises(InputError, match=r"mesh=fsdp:0: .* 1 device or more"):
        MeshShape.parse("fsdp:0")


def test_a_mesh_has_all_devices_and_rows_divide_over_it():
    assert dict(MeshShape(fsdp=2, tensor=2).mesh(8).shape) == {"slice": 1, "data": 2, "fsdp": 2, "tensor": 2}
    assert dict(MeshShape(slices=2, tensor=4).mesh(8).shape) == {"slice": 2, "data": 1, "fsdp": 1, "tensor": 4}
    with pytest.raises(InputError, match="does not fit 8 devices"):
        MeshShape(fsdp=3).mesh(8)
    with pytest.raises(InputError, match="does not fit 8 devices"):
        MeshShape(data=2, fsdp=2).mesh(8)
    with pytest.raises(InputError, match="12 rows does not divide over 8 devices"):
        DATA_PARALLEL.mesh(12)
    of_slices = [SimpleNamespace(slice_index=number // 4) for number in range(8)]
    with pytest.raises(InputError, match="mesh=slices:1, but the devices are of 2 slices: set slices:2"):
        DATA_PARALLEL.mesh(8, of_slices)


@pytest.mark.parametrize(
    ("name", "shape", "product", "rest"),
    [
        ("encoder/layers/attention/query/kernel", (24, 1024, 16, 64), P(None, None, "tensor", None),
         P(None, "fsdp", "tensor", None)),
        ("encoder/layers/attention/query/bias", (24, 16, 64), P(None, "tensor", None), P(None, "tensor", None)),
        ("encoder/layers/attention/output/kernel", (24, 16, 64, 1024), P(None, "tensor", None, None),
         P(None, "tensor", None, "fsdp")),
        ("encoder/layers/feedforward/narrow/kernel", (24, 4096, 1024), P(None, "tensor", None),
         P(None, "tensor", "fsdp")),
        ("encoder/layers/attention_norm/scale", (24, 1024), P(), P()),
        ("generator/encoder/layers/attention/query/kernel", (12, 256, 3, 64), P(), P(None, "fsdp", None, None)),
        # A vocabulary is split where it is used, also if it does not divide; at rest only what divides is.
        ("encoder/embeddings/word/table", (30522, 1024), P("tensor", None), P("tensor", "fsdp")),
        ("encoder/embeddings/word/table", (30523, 1024), P("tensor", None), P(None, "tensor")),
        ("head/mlm/bias", (30523,), P("tensor"), P()),
        ("head/mlm/decoder", (30522, 1024), P("tensor", None), P("tensor", "fsdp")),
    ],
)  # fmt: skip
def test_partition_specs_follow_names_and_shapes(name, shape, product, rest):
    mesh = described(data=2, fsdp=4, tensor=2)
    assert compute_spec(mesh, name, shape) == product
    assert storage_spec(mesh, name, shape) == rest
    if name.startswith("encoder/layers/"):  # a layer sees the same of its slice
        sliced = name.removeprefix("encoder/layers/")
        assert [*storage_spec(mesh, sliced, shape[1:])] == [*rest[1:]] and [*compute_spec(mesh, sliced, shape[1:])] == [
            *product[1:]
        ]


def test_rows_without_other_axes_keep_everything_on_every_device():
    params = jax.eval_shape(MaskedLM(small_bert(D=128), MASKING).init, jax.random.key(0), make_batch())
    assert all(s.spec == P() for s in jax.tree.leaves(storage_shardings(DATA_PARALLEL.mesh(8), params)))
    with jax.set_mesh(DATA_PARALLEL.mesh(8)):
        assert gather_params(params) is params


WINDOWS = PermutationLM(small_xlnet(N=1), Permutation(functional=SPECIALS, parts=(10, 6), targets=4), memory=7)

# An odd vocabulary, heads that do not divide by 8, rematerialised layers.
ODD = MaskedLM(small_bert(V=201, H=4, remat="dots"), MASKING, pair=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh_shape", "objective"),
    [
        ("fsdp:8", ODD),
        ("tensor:8", ODD),
        ("slices:2,tensor:4", ODD),
        ("fsdp:4,tensor:2", MaskedLM(small_bert(V=201, tied_head=False), MASKING)),
        ("tensor:2", MaskedLM(small_neobert(V=201), MASKING)),
        ("slices:2,fsdp:2", WINDOWS),
    ],
)
def test_loss_and_gradient_are_those_of_one_device_however_parameters_are_split(mesh_shape, objective, monkeypatch):
    """Padding reaches nothing. tests/test_contract.py does it for all objectives on fsdp:2,tensor:2."""
    monkeypatch.setattr(placement, "SMALLEST", 1)
    batch = make_batch()
    params = objective.init(jax.random.key(0), batch)

    def loss(params):
        return objective.loss(gather_params(params), batch_on, jax.random.key(2), train=True)

    batch_on = batch
    one = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    mesh = MeshShape.parse(mesh_shape).mesh(B)
    batch_on, places = jax.device_put(batch, by_row(mesh)), storage_shardings(mesh, params)
    with jax.set_mesh(mesh):
        split = jax.jit(jax.value_and_grad(loss, has_aux=True))(jax.device_put(params, places))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize(("objective", "parts"), [(MaskedLM(small_bert(N=1), MASKING), 4), (WINDOWS, 1)])
def test_gradients_of_micro_batches_and_of_windows_are_summed_over_devices_once(objective, parts):
    batch, mesh = make_batch(rows=32), DATA_PARALLEL.mesh(8)
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    loss, places = partial(objective.loss, train=True), (replicated(mesh), by_row(mesh), replicated(mesh))
    gradient = partial(accumulated_gradient, loss, parts=parts) if parts > 1 else jax.grad(loss, has_aux=True)
    with jax.set_mesh(mesh):
        text = jax.jit(gradient, in_shardings=places).lower(params, batch, jax.random.key(0)).compile().as_text()
    moved = sum(one.bytes * one.times for one in collectives(Program(text)))
    gradients = 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert gradients <= moved <= gradients + 1024


def test_every_row_of_a_batch_is_held_once():
    np.testing.assert_array_equal(held_rows(MeshShape(fsdp=2, tensor=2).mesh(16), 16), np.arange(16))


def test_model_flops_do_not_depend_on_the_mesh():
    batch = make_batch(rows=8)
    alone = model_flops(WINDOWS, batch)
    with jax.set_mesh(DATA_PARALLEL.mesh(8)):
        assert model_flops(WINDOWS, batch) == alone
