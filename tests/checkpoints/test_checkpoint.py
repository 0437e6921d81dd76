import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bertjax.checkpoints import checkpoint
from bertjax.data.tokenizer import fingerprint
from bertjax.errors import InputError
from bertjax.random import hash_bits
from bertjax.sharding.mesh import DATA_PARALLEL, replicated


def make_state():
    rng = np.random.default_rng(0)
    params = {"encoder": {"kernel": jnp.asarray(rng.normal(size=(16, 24)), jnp.float32)}, "bias": jnp.zeros(8)}
    optimizer = {"mu": jax.tree.map(lambda x: (x * 3).astype(jnp.bfloat16), params), "count": jnp.int32(7)}
    return params, optimizer


@pytest.fixture
def saved(tmp_path, tokenizer):
    """Save two checkpoints; return the folder of the run."""
    with checkpoint.open_checkpoints(tmp_path / "checkpoints", keep=3, keep_every=0) as manager:
        for step in (5, 10):
            checkpoint.save(manager, step, *make_state(), experiment={"objective": {}}, tokenizer=tokenizer, data=["d"])
    return tmp_path


def read_all(folder):
    params, optimizer = make_state()
    info = checkpoint.read_info(folder)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, optimizer))
    return [
        checkpoint.restore(folder, item, each, info) for item, each in zip(("params", "optimizer"), like, strict=True)
    ]


def test_restored_arrays_equal_saved_arrays(saved, tokenizer):
    newest = checkpoint.latest_step(saved)
    assert newest.name == "10"
    assert checkpoint.latest_step(saved / "checkpoints") == checkpoint.latest_step(newest) == newest
    for found, given in zip(jax.tree.leaves(read_all(newest)), jax.tree.leaves(list(make_state())), strict=True):
        assert found.dtype == given.dtype
        np.testing.assert_array_equal(found, given)
    info = checkpoint.read_info(newest)
    assert info["step"] == 10 and info["experiment"] == {"objective": {}} and info["data"] == ["d"]
    assert fingerprint(checkpoint.saved_tokenizer(newest, info)) == info["fingerprint"] == fingerprint(tokenizer)


def test_a_flipped_bit_anywhere_is_an_error_or_harmless_and_never_other_weights(saved):
    newest = checkpoint.latest_step(saved)
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    data = [path for path in files if path.parent.name == "d" or "ocdbt.process" in str(path.parent)]
    rng = np.random.default_rng(0)
    before = jax.tree.leaves(list(make_state()))
    detected = 0
    trials = [(path, int(rng.integers(path.stat().st_size * 8))) for path in files for _ in range(3)]
    trials += [(path, int(rng.integers(path.stat().st_size * 8))) for path in data for _ in range(6)]
    for path, bit in trials:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = jax.tree.leaves(read_all(newest))
            assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(found, before, strict=True)), path
        except InputError as error:
            detected += 1
            assert str(newest) in str(error) and "move that folder away to go on from step 5" in str(error)
        path.write_bytes(content)
    assert detected > len(trials) // 4  # the others hit padding and bytes that are not read


def test_truncated_and_missing_files_are_errors(saved):
    newest = checkpoint.latest_step(saved)
    files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size > 200]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(InputError, match="damaged"):
        read_all(newest)
    shutil.rmtree(newest / "params")
    with pytest.raises(InputError, match="damaged"):
        read_all(newest)


def test_the_checksum_changes_with_any_element_and_with_their_order():
    params, _ = make_state()
    plain = checkpoint.checksums(params)
    kernel = np.asarray(params["encoder"]["kernel"])
    for changed in (kernel + np.eye(16, 24, dtype=np.float32) * 1e-7, kernel[::-1], kernel[:, ::-1], -kernel):
        found = checkpoint.checksums({"encoder": {"kernel": jnp.asarray(changed)}, "bias": params["bias"]})
        assert found["encoder/kernel"] != plain["encoder/kernel"] and found["bias"] == plain["bias"]


def test_the_checksum_does_not_depend_on_the_sharding():
    mesh = DATA_PARALLEL.mesh(8)
    params, _ = make_state()
    plain = checkpoint.checksums(params)
    split = NamedSharding(mesh, PartitionSpec("data"))
    assert checkpoint.checksums(jax.device_put(params, split)) == plain
    assert checkpoint.checksums(jax.device_put(params, replicated(mesh))) == plain


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((), "float32"), ((0, 3), "float32"), ((70001,), "bfloat16"), ((300, 401), "int32"), ((3, 5, 9000), "float32")],
)
def test_the_checksum_is_that_of_earlier_versions_and_no_array_is_copied_for_it(shape, dtype):
    """It is computed in chunks, whatever remains of the last; former versions summed the hashes of a whole array."""
    x = jnp.asarray(np.random.default_rng(0).integers(-999, 999, shape), dtype)
    rows = jnp.atleast_1d(x)
    bits = (rows if dtype == "int32" else rows.view(f"u{rows.dtype.itemsize}")).astype(jnp.uint32)
    whole = hash_bits(jax.random.key(0), rows.shape, bits).sum(dtype=jnp.uint32)
    assert checkpoint.checksums({"x": x}) == {"x": f"{int(whole):08x}"}
    program = checkpoint._checksums.lower({"x": jnp.zeros((2000, 1000))}, frozenset()).compile()
    assert program.memory_analysis().temp_size_in_bytes < 10 * checkpoint._CHUNK < 8_000_000


def test_a_checkpoint_of_eight_devices_restores_on_one(tmp_path, tokenizer):
    params, optimizer = make_state()
    spread = jax.device_put((params, optimizer), NamedSharding(DATA_PARALLEL.mesh(8), PartitionSpec()))
    with checkpoint.open_checkpoints(tmp_path / "checkpoints", keep=1, keep_every=0) as manager:
        checkpoint.save(manager, 1, *spread, experiment={"objective": {}}, tokenizer=tokenizer, data=[])
    here = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), params)
    step = checkpoint.latest_step(tmp_path)
    found = checkpoint.restore(step, "params", like, checkpoint.read_info(step))
    assert all(leaf.devices() == {jax.devices()[3]} for leaf in jax.tree.leaves(found))


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        checkpoint.latest_step(tmp_path)


@pytest.mark.parametrize("trouble", [MemoryError, PermissionError])
def test_errors_that_are_not_damage_are_not_called_damage(saved, monkeypatch, trouble):
    newest = checkpoint.latest_step(saved)
    info = checkpoint.read_info(newest)

    def fail(*arguments):
        raise trouble("not enough")

    monkeypatch.setattr(checkpoint.ocp.StandardCheckpointer, "restore", fail)
    with pytest.raises(trouble, match="not enough"):
        checkpoint.restore(newest, "params", make_state()[0], info)


def test_the_name_of_a_step_counts_among_the_checkpoints_of_a_run_alone(saved, tmp_path):
    newest = checkpoint.latest_step(saved)
    for name in ("²", "2024"):
        copy = shutil.copytree(newest, tmp_path / "copies" / name)
        assert checkpoint.read_info(copy) == checkpoint.read_info(newest)
    with pytest.raises(InputError, match="is that of step 10, under another name"):
        checkpoint.read_info(shutil.copytree(newest, tmp_path / "checkpoints" / "2024"))


def test_other_versions_of_packages_are_named():
    now = checkpoint.other_versions({})
    assert now == "" == checkpoint.other_versions({"versions": checkpoint._versions()})
    then = checkpoint._versions() | {"jax": "0.1"}
    assert re.fullmatch(r"jax 0\.1 \(now \S+\)", checkpoint.other_versions({"versions": then}))
