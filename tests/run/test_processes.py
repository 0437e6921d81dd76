import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from processes_program import experiment

from bertjax import exits, train
from bertjax.checkpoints.trained import load
from bertjax.commands.main import main
from bertjax.errors import InputError, PassingError
from bertjax.run import processes
from bertjax.run.stop import Interrupted
from bertjax.sharding import placement
from bertjax.sharding.mesh import DATA_PARALLEL, MeshShape
from bertjax.train import fit

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def two(corpus, tmp_path_factory):
    """Run the program, which ends in a hang, in two processes of two devices each; return its folder."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONPATH": f"{HERE.parents[1]}:{HERE.parent}",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2"),
    }
    command = [sys.executable, str(HERE / "processes_program.py"), corpus, str(folder)]
    running = [
        subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(n)}, stderr=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == exits.HUNG, said[-3000:]
    return folder


@contextmanager
def stopping_after(step):
    """Ask this process to stop while a step is made ready."""
    place, calls = train.place_batch, count(1)

    def stopping(*arguments):
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return place(*arguments)

    train.place_batch = stopping
    try:
        yield
    finally:
        train.place_batch = place


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_as_one_does_example_for_example_also_where_its_mesh_changes(
    two, corpus, tmp_path, monkeypatch
):
    """The one splits everything over eight devices, is stopped, and goes on with replicas; one device reads both."""
    monkeypatch.setattr(placement, "SMALLEST", 1)
    with stopping_after(2), pytest.raises(Interrupted):
        fit(experiment(corpus, MeshShape(fsdp=2, tensor=2)), tmp_path)
    fit(experiment(corpus, DATA_PARALLEL), tmp_path)
    ours, theirs = logged(tmp_path), logged(two / "straight")
    assert len(ours) == len(theirs) == 6  # each line once, though two could have written it
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys() and "stop" not in a
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-4, err_msg=name)
    one, other = load(tmp_path).params, load(two / "straight").params
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.slow
def test_all_processes_stop_after_the_same_step_and_resume_bit_by_bit(two):
    said = [json.loads((two / f"{n}.json").read_text())["stopped"] for n in range(2)]
    assert said[0] == said[1] and "stopped after step 1" in said[0]
    assert (two / "stopped/log.jsonl").read_bytes() == (two / "straight/log.jsonl").read_bytes()


@pytest.mark.slow
def test_a_checkpoint_that_one_process_alone_cannot_read_is_set_aside_by_all(two):
    """Both went on from step 2, and made steps 3 and 4 again: the log of the test above has been written twice."""
    names = {path.name for path in (two / "stopped/checkpoints").iterdir()}
    assert {"2", "4", "4.damaged"} <= names
    for name in ("messages.log", "messages-1.log"):
        said = (two / "stopped" / name).read_text()
        assert re.search(r"passed over: .*4 is damaged \(.*Input/output error", said) and "from step 2" in said


@pytest.mark.slow
def test_a_difference_between_processes_is_an_error_on_both_that_names_the_odd_one(two):
    for number in range(2):
        found = json.loads((two / f"{number}.json").read_text())
        assert "the experiment differs on process 1" in found["experiment"]
        assert "(seed is 1, not 0): make it the same" in found["experiment"]
        assert "the work directory differs on process 1" in found["folder"]
        assert found["long"].startswith("process 1 on") and found["long"].endswith("long and not cut")
        assert found["corpus"].startswith("process 1 on") and "nowhere is not a corpus" in found["corpus"]
        assert "init" not in found


@pytest.mark.slow
def test_two_processes_fine_tune_together_and_score_every_example_once(two):
    """The validation split has 21 texts in batches of 8, on 4 devices: the metrics are those of one process."""
    first, second = (json.loads((two / f"{n}.json").read_text()) for n in range(2))
    assert first["tuned"] == second["tuned"] and first["tuned"] == json.loads((two / "tuned/results.json").read_text())
    (seed,) = first["tuned"]["seeds"]
    assert not (two / "tuned/seed-0/checkpoints").exists()
    written = (two / "tuned/seed-0/predictions/validation/predictions.jsonl").read_text().splitlines()
    predicted = [json.loads(line) for line in written]
    assert [each["example"] for each in predicted] == [f"{two}/data/dev.csv:{n}" for n in range(2, 23)]
    right = sum(each["predicted"] == ("yes", "no")[n % 2] for n, each in enumerate(predicted))
    # Seeds come from the digest of a model that two processes trained, so how much is learnt differs by rounding.
    assert seed["best"]["metrics"] == {"accuracy": right / 21}
    assert json.loads(first["task"])["accuracy"] == right / 21
    assert second["task"] == second["text"] == ""
    assert "the recipe differs on process 1" in second["odd"] and "learning_rate" in first["odd"]


@pytest.mark.slow
def test_the_held_out_loss_of_two_processes_is_that_of_one(two, capsys):
    assert main(["evaluate", "--model", str(two / "straight"), "--batch-size", "8", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    found = json.loads(json.loads((two / "0.json").read_text())["text"])
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


@pytest.fixture
def versions_again():
    """Let versions be read again after a test that has changed them."""
    yield
    processes.versions.cache_clear()


def test_the_process_that_differs_is_named_with_the_differing_facts(tmp_path, monkeypatch, versions_again):
    def facts(code="x = 1", numpy="2.0", data=("aa",), folder="process 7 on a"):
        (tmp_path / "odd.py").write_text(code)
        monkeypatch.setattr(processes, "__file__", str(tmp_path / "run" / "processes.py"))
        installed = [("jax", "0.10.2"), ("numpy", numpy), (None, None)]  # the last as where METADATA is missing
        packages = [SimpleNamespace(name=name, version=version) for name, version in installed]
        monkeypatch.setattr(processes.importlib.metadata, "distributions", lambda: packages)
        processes.versions.cache_clear()
        return {"the data": list(data), "the work directory": folder} | processes.versions()

    assert not processes.disagreement({"process 0": facts(), "process 1": facts(), "process 2": facts()})
    for odd, said in {
        "code": (
            "x = 2",
            r"the code of bertjax differs on process 1 from the other .*\(odd.py is \"\w+\", not",
        ),
        "numpy": ("2.1", r"the environment differs on process 1 .*\(numpy is \"2.1\", not \"2.0\"\): make it"),
        "data": (("ab",), r"the data differs on process 1 .*\(0 is \"ab\", not \"aa\"\)"),
        "folder": ("", r"the work directory differs on process 1 .*\(it is \"\", not \"process 7 on a\"\)"),
    }.items():
        value, message = said
        found = processes.disagreement({"process 0": facts(), "process 1": facts(**{odd: value}), "process 2": facts()})
        assert re.fullmatch(f"{message}.*", found), found
    several = processes.disagreement({"process 0": facts(), "process 1": facts(numpy="3", folder="")})
    assert "the work directory differs" in several and "the environment differs" in several


def test_all_source_files_of_the_package_are_compared():
    code = processes.versions()["the code of bertjax"]
    assert {"train.py", "run/processes.py", "data/source.py"} <= code.keys()


@pytest.mark.slow
def test_an_error_in_the_data_of_one_process_ends_all_after_the_same_step_with_a_checkpoint(two):
    for name in ("unevaluated", "failed"):  # in the validation data, in those of training
        first, second = (json.loads((two / f"{n}.json").read_text())[name] for n in range(2))
        assert first[:2] == [exits.FAILED, "ProcessFailed"] and second[:2] == [exits.FAILED, "OSError"]
        assert re.search(r"process 1 on \S+: OSError: ", first[2])
    assert "; the checkpoint of step 2 is saved" in first[2]
    assert (two / "failed/log.jsonl").read_bytes() == (two / "straight/log.jsonl").read_bytes()


@pytest.mark.slow
def test_a_signal_to_one_process_interrupts_an_evaluation_of_all(two):
    found = [json.loads((two / f"{n}.json").read_text())["evaluating"] for n in range(2)]
    assert found[0] == found[1] and "stopped after step 2, checkpoint saved" in found[0][0] and found[0][1] == 0


@pytest.mark.slow
def test_the_slow_one_of_two_processes_is_named(two):
    last = json.loads((two / "failed/timing.jsonl").read_text().splitlines()[-1])
    assert last["slowest_host"].startswith("process 1 on") and last["slowest_host_data_wait_ms"] >= 300
    assert last["slowest_host_ms"] >= last["slowest_host_data_wait_ms"] and last["step_ms_p50"] <= last["step_ms_p99"]


@pytest.mark.slow
def test_a_hang_of_one_process_ends_all_with_the_stacks_of_each(two):
    """The exit codes are those that the program ends with."""
    for name, place in (("messages.log", "flush"), ("messages-1.log", "_act")):
        text = (two / "hung" / name).read_text()
        assert re.search(r"hung: step [45] took over 2 s", text) and f"in {place}\n" in text and "in _watch\n" in text


@pytest.mark.slow
def test_two_processes_start_from_a_trained_model(two):
    first = logged(two / "init")[0]["loss"]
    assert first < logged(two / "straight")[0]["loss"] - 0.1


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_an_error_of_a_collective_whose_peer_is_gone_has_the_code_for_that(kind, monkeypatch):
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    with pytest.raises(kind) as found, processes.telling_others():
        raise kind("UNKNOWN: Gloo AllGather failed: [gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    assert found.value.exit_code == exits.PEERS_MISSING


def test_processes_that_never_connect_are_named():
    address, found = f"localhost:{free_port()}", {}

    def call(index):
        try:
            processes.roll_call(address, 4, index, timeout=1.5)
        except PassingError as error:
            found[index] = str(error)

    threads = [Thread(target=call, args=(index,)) for index in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert set(found) == {0, 2}
    assert all("processes 1, 3 of 4 never connected" in text for text in found.values())


@pytest.fixture
def unnamed(monkeypatch):
    """Take away the variables that identify processes."""
    for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)


def test_this_jax_has_the_private_function_that_detects_a_cluster(unnamed, monkeypatch):
    """Run with each supported JAX; without the function the fallback below takes over."""
    assert processes._detect_cluster(1) == ("", 1, 0)
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "node[3-4]", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    address, count, index = processes._detect_cluster(1)
    assert re.fullmatch(r"node3:\d+", address) and (count, index) == (2, 1)


PRIVATE = "jax._src.clusters.cluster"


@pytest.mark.parametrize("module", [None, SimpleNamespace(), SimpleNamespace(ClusterEnv=SimpleNamespace())])
def test_without_the_private_function_jax_joins_by_itself_and_says_what_is_lost(unnamed, monkeypatch, module):
    given = []
    monkeypatch.setitem(sys.modules, PRIVATE, module)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: given.append(options))
    with pytest.warns(UserWarning, match="cannot name missing ones: .* set JAX_COORDINATOR_ADDRESS"):
        processes.join(timeout=7)
    assert given == [{"initialization_timeout": 7}]


def test_without_the_private_function_missing_processes_are_an_error_too(unnamed, monkeypatch):
    def initialize(**options):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setitem(sys.modules, PRIVATE, None)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(PassingError, match="cannot join the processes of this run: DEADLINE_EXCEEDED"):
        processes.join(timeout=1)


def test_without_the_private_function_a_process_alone_is_alone(unnamed):
    """With JAX as it is, in a process of its own, since it may not have been asked for devices yet."""
    program = """
from bertjax.run import processes
def detect(timeout): raise ImportError("no module")
processes._detect_cluster = detect
processes.join(timeout=1)
import jax
print(jax.process_count())
"""
    found = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=100)
    assert found.stdout == "1\n", found.stderr


def test_a_missing_variable_of_the_processes_is_an_error(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(InputError, match="set JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID too"):
        processes.join()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ADDRESS", "localhost", "JAX_COORDINATOR_ADDRESS=localhost is not host:port"),
        ("ADDRESS", "localhost:65536", "JAX_COORDINATOR_ADDRESS=localhost:65536 has no port from 1 to 65535"),
        ("NUM_PROCESSES", "two", "JAX_NUM_PROCESSES=two is not a number"),
        ("PROCESS_ID", "1.0", "JAX_PROCESS_ID=1.0 is not a number"),
        ("PROCESS_ID", "2", "JAX_PROCESS_ID=2 is not one of 2 processes"),
    ],
)
def test_variables_with_wrong_values_are_named(monkeypatch, name, text, message):
    given = {"ADDRESS": "localhost:1", "NUM_PROCESSES": "2", "PROCESS_ID": "1"} | {name: text}
    for key, value in given.items():
        monkeypatch.setenv(f"JAX_{'COORDINATOR_' * (key == 'ADDRESS')}{key}", value)
    with pytest.raises(InputError, match=re.escape(message)):
        processes.join(timeout=1)
