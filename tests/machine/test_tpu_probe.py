"""libtpu, which `plan` needs, is not asked for a TPU where there is none."""

import os

import pytest

from bertjax.machine import tpu_probe
from bertjax.machine.tpu_probe import without_tpu_probe


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without an accelerator, on which libtpu is installed."""
    for name in list(os.environ):
        if name.startswith(("TPU_", "JAX_PLATFORMS", "CUDA_", "LIBTPU_", "PJRT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(tpu_probe, "find_spec", lambda name: "there" if name == "libtpu" else None)
    (tmp_path / "sys/bus/pci/devices/0").mkdir(parents=True)
    (tmp_path / "sys/bus/pci/devices/0/vendor").write_text("0x8086\n")
    (tmp_path / "dev/vfio").mkdir(parents=True)
    (tmp_path / "dev/vfio/vfio").touch()
    return tmp_path


def test_jax_looks_for_no_tpu_where_nothing_tells_of_one(machine):
    assert without_tpu_probe(machine) and os.environ["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize("sign", ["dev/accel0", "dev/vfio/0", "dev/nvidiactl"])
def test_it_looks_where_there_is_a_device(machine, sign):
    (machine / sign).touch()
    assert not without_tpu_probe(machine) and not os.environ["JAX_PLATFORMS"]


def test_it_looks_where_the_bus_a_variable_or_another_plugin_tells_of_one(machine, monkeypatch):
    vendor = machine / "sys/bus/pci/devices/0/vendor"
    vendor.write_text("0x1ae0\n")
    assert not without_tpu_probe(machine)
    vendor.write_text("0x8086\n")
    with monkeypatch.context() as patch:
        patch.setenv("TPU_WORKER_ID", "0")
        assert not without_tpu_probe(machine)
    with monkeypatch.context() as patch:
        patch.setattr(tpu_probe, "find_spec", lambda name: "there")
        assert not without_tpu_probe(machine)
    with monkeypatch.context() as patch:
        patch.setattr(tpu_probe, "find_spec", lambda name: None)
        assert not without_tpu_probe(machine)
    with monkeypatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "tpu,cpu")
        assert not without_tpu_probe(machine) and os.environ["JAX_PLATFORMS"] == "tpu,cpu"
