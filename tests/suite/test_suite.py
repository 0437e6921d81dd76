"""What the suite relies on is tested too: that it ends when it is told to, groups its tests, and refuses skips."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PLUGINS = """
import pytest
from suite import groups, skips, termination

pytest_addoption = skips.add_option

def pytest_configure(config):
    config.pluginmanager.register(groups)
    config.pluginmanager.register(skips)
    termination.install()
"""


@pytest.fixture
def suite(tmp_path):
    """Begin pytest on a file with these tests, in a folder of its own."""

    def begin(code, *options):
        (tmp_path / "conftest.py").write_text(PLUGINS)
        (tmp_path / "test_it.py").write_text(code)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(tmp_path)]
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    yield begin


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_suite_that_is_terminated_ends_with_all_its_children(suite, tmp_path, workers):
    """The test catches the signal, as `fit` does, once from itself and once from outside, and waits for a child."""
    code = f"""
import os, signal, subprocess

def test_stop():
    received = []
    signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    os.kill(os.getpid(), signal.SIGTERM)
    assert received
    child = subprocess.Popen(["sleep", "100"])
    with open("{tmp_path}/begun", "w") as file:
        print(child.pid, file=file)
    child.wait()
    child.wait(100)
"""
    running = suite(code, "-n", workers)
    while not (begun := tmp_path / "begun").exists() or not begun.read_text().endswith("\n"):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    began = time.monotonic()
    running.communicate(timeout=60)
    assert running.returncode == 143 and time.monotonic() - began < 10
    state = Path(f"/proc/{begun.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_skip_is_an_error_unless_it_is_expected(suite):
    code = """
import pytest

@pytest.mark.skipif(True, reason="needs a moon")
def test_moon(): pass

def test_sun(): pytest.importorskip("sun_that_is_not_there")
"""
    assert "2 skipped" in suite(code).communicate()[0]
    assert "2 skipped" in suite(code, "--expected-skip=a moon", "--expected-skip=sun_that").communicate()[0]
    running = suite(code, "--expected-skip=a moon")
    output, _ = running.communicate()
    assert "1 failed, 1 skipped" in output and "not for a reason that is expected" in output and running.returncode == 1


def test_tests_of_a_group_run_in_one_worker_one_after_another(suite, tmp_path):
    code = f"""
import os
import pytest

@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in "abc"])
def test_it(name, part):
    with open("{tmp_path}/order", "a") as file:
        print(os.environ.get("PYTEST_XDIST_WORKER"), name, file=file)
"""
    assert "9 passed" in suite(code).communicate()[0]
    order = tmp_path / "order"
    assert [line.split()[1] for line in order.read_text().splitlines()] == [*"aaabbbccc"]
    order.unlink()
    assert "9 passed" in suite(code, "-n", "2", "--dist", "loadgroup").communicate()[0]
    lines = order.read_text().splitlines()
    assert len(set(lines)) == 3 and all(lines.count(line) == 3 for line in lines)


def test_every_test_is_in_one_loop_of_those_that_ci_runs():
    makefile, run = ((TESTS.parent / name).read_text() for name in ("Makefile", ".ci/run"))
    chosen = dict(re.findall(r"^(\w+): .*\n\t\$\(PYTEST\)(.*)$", makefile, re.MULTILINE))
    assert chosen["test"] == " -m 'not slow'" and chosen["slow"] == " -m slow"
    assert re.findall(r"^make (\w+) EXTRAS", run, re.MULTILINE) == ["test", "slow"]
    assert "make test " in (TESTS.parent / "README.md").read_text()


def test_every_test_that_needs_packages_which_ci_has_not_is_in_make_parity():
    makefile = (TESTS.parent / "Makefile").read_text().replace("\\\n", "")
    (listed,) = re.findall(r"^PARITY = (.*)$", makefile, re.MULTILINE)
    needs = re.compile(r"importorskip\([\"'](torch|transformers|sentence_transformers)[\"']\)")
    needing = [path for path in TESTS.rglob("test_*.py") if needs.search(path.read_text())]
    assert len(needing) > 3
    for path in needing:
        relative = path.relative_to(TESTS.parent)
        assert {str(relative), *map(str, relative.parents)} & set(listed.split()), path


def test_no_two_files_of_tests_have_one_name():
    """Python would take the second for the first, whose tests alone would be collected."""
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]
