import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bertjax.errors import ReplicasDiffer
from bertjax.run import replicas
from bertjax.run.replicas import check_repeatable, check_replicas
from bertjax.run.saves import Saves
from bertjax.run.state import State
from bertjax.sharding.mesh import MeshShape

MESH = MeshShape(fsdp=2).mesh(8)  # four replicas


def placed(spec, *, flipped=(), dtype=jnp.float32):
    """Place 8 numbers on all devices; on those in `flipped` the lowest bit of one of them is another."""
    sharding, host = NamedSharding(MESH, spec), np.arange(1, 9).astype(dtype)
    parts = []
    for device, index in sharding.addressable_devices_indices_map((8,)).items():
        part = host[index].copy()
        if device.id in flipped:
            part[-1:].view(f"u{part.itemsize}")[:] ^= 1
        parts.append(jax.device_put(part, device))
    return jax.make_array_from_single_device_arrays((8,), sharding, parts)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("fsdp")])
def test_one_flipped_bit_in_one_replica_is_found_and_its_device_named(spec, dtype):
    good = {"a": placed(spec, dtype=dtype), "count": placed(PartitionSpec())}
    check_replicas(good)
    with pytest.raises(ReplicasDiffer, match=r"replicas of b differ: that of device 5 of process 0 is not"):
        check_replicas(good | {"b": placed(spec, flipped={5}, dtype=dtype)})


def test_a_state_whose_replicas_differ_is_not_saved(tmp_path):
    params = {"a": placed(PartitionSpec(), flipped={2})}
    state = State(np.int32(3), params, {})
    with pytest.raises(ReplicasDiffer, match="params/a differ: that of device 2 of process 0"):
        Saves(tmp_path, None, {}, None, before=[lambda: pytest.fail("saved")]).save(state)


def test_a_save_that_cannot_wait_finds_the_comparison_compiled(tmp_path):
    params = {"new": placed(PartitionSpec())}
    state = State(np.int32(3), params, {})
    before = replicas._program.cache_info().misses
    Saves(tmp_path, None, {}, None, before=[]).resumed(state)
    for thread in threading.enumerate():
        if thread.name == "compile the check of replicas":
            thread.join()
    assert replicas._program.cache_info().misses == before + 1
    check_replicas({"params": params, "optimizer": {}})
    assert replicas._program.cache_info().misses == before + 1


def test_without_a_majority_all_are_named():
    odd = {device.id for device in MESH.devices.flat[:4]}
    with pytest.raises(ReplicasDiffer) as found:
        check_replicas([placed(PartitionSpec(), flipped=odd)])
    assert str(found.value).count("of process 0") == 8


def test_parts_without_a_copy_differ_as_they_like():
    check_replicas([jax.device_put(jnp.arange(8.0), NamedSharding(MESH, PartitionSpec(("data", "fsdp"))))])


def test_a_computation_with_two_results_is_found():
    results = iter([np.uint32([1, 2]), np.uint32([1, 2]), np.uint32([1, 2]), np.uint32([1, 3])])
    check_repeatable(lambda: next(results), 6)
    with pytest.raises(ReplicasDiffer, match="the gradient of step 7 was computed twice, with two results"):
        check_repeatable(lambda: next(results), 7)
