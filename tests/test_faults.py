"""The named points of BERTJAX_FAULT, and that production passes them for nothing."""

import subprocess
import sys
import timeit

import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.errors import InputError
from bertjax.faults import fault, parse, poisoned


def test_without_the_variable_a_point_costs_nothing_and_does_nothing(monkeypatch):
    monkeypatch.delenv("BERTJAX_FAULT", raising=False)
    array = jnp.ones(3)
    assert poisoned("gradient", 1, array) is array
    assert min(timeit.repeat(lambda: fault("step", 1), number=1000, repeat=5)) / 1000 < 5e-6


def test_a_fault_happens_at_its_times_alone(monkeypatch):
    monkeypatch.setenv("BERTJAX_FAULT", "here:enospc@2-3,there:eacces,later:edquot@4-")
    fault("here")
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            fault("here")
    fault("here")
    with pytest.raises(PermissionError):
        fault("there", 5)
    fault("later", 3)
    with pytest.raises(OSError, match="quota"):
        fault("later", 400)
    fault("elsewhere")


def test_values_of_a_step_are_poisoned(monkeypatch):
    monkeypatch.setenv("BERTJAX_FAULT", "gradient:nan@3,gradient:scale=10@5")
    found = [float(poisoned("gradient", step, jnp.float32(2))) for step in range(2, 6)]
    np.testing.assert_array_equal(found, [2, np.nan, 2, 20])


def test_files_are_damaged(monkeypatch, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(9))
    monkeypatch.setenv("BERTJAX_FAULT", "a:flip,b:truncate,c:delete")
    fault("a", path=tmp_path)
    assert path.read_bytes() == bytes([0, 0, 0, 0, 1, 0, 0, 0, 0])
    fault("b", path=path)
    assert path.stat().st_size == 4
    fault("c", path=path)
    assert not path.exists()


def test_kill_ends_the_process_at_once(monkeypatch):
    program = "from bertjax.faults import fault\nfault('x', 1)\nprint('first')\nfault('x', 2)\nprint('second')"
    monkeypatch.setenv("BERTJAX_FAULT", "x:kill@2")
    done = subprocess.run([sys.executable, "-uc", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-9, "first\n")


@pytest.mark.parametrize("text", ["x", "x:explode", "x:kill@", "x:kill@b", "x:sleep=@3"])
def test_another_form_is_an_error(text):
    with pytest.raises(InputError, match="BERTJAX_FAULT"):
        parse(text)
