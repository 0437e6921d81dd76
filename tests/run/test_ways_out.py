"""Ways in which a run ends, each in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from test_processes import free_port

from bertjax import exits
from bertjax.checkpoints import checkpoint

SMOKE = ["experiments/smoke.py", "batch_size=8", "length=32", "run.log_every=1", "run.evaluate_every=0",
         "objective.encoder.N=1", "objective.encoder.D=32", "objective.encoder.F=64"]  # fmt: skip


def environment(**more):
    return os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": os.environ["BERTJAX_TEST_PROGRAMS"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    } | more  # fmt: skip


def command(corpus, folder, *words):
    return [sys.executable, "-m", "bertjax", "pretrain", *SMOKE, *words, f"data={corpus}", "--workdir", str(folder)]


def wait_for_step(folder, step, *running):
    deadline = time.monotonic() + 100
    log = folder / "log.jsonl"
    while not (log.exists() and len(log.read_bytes().splitlines()) >= step):
        assert time.monotonic() < deadline and all(process.poll() is None for process in running)
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_whose_reader_goes_away_is_done_as_any_other(corpus, tmp_path):
    words = " ".join(command(corpus, tmp_path / "run", "steps=20"))
    found = subprocess.run(["bash", "-c", f"{words} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}"], env=environment(),
                           stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert found.returncode == exits.DONE and len(found.stdout.splitlines()) == 1
    assert checkpoint.latest_step(tmp_path / "run").name == "20"
    assert (
        "messages are kept here alone, since standard error takes none" in (tmp_path / "run/messages.log").read_text()
    )


@pytest.mark.slow
def test_a_stop_in_a_blocked_input_saves_and_the_next_run_goes_on(corpus, tmp_path):
    run = subprocess.Popen(command(corpus, tmp_path, "steps=6"), env=environment(BERTJAX_FAULT="batch:hang@5"))
    wait_for_step(tmp_path, 3, run)
    time.sleep(0.5)
    for _ in range(3):
        run.send_signal(signal.SIGHUP)
    assert run.wait(60) == exits.PREEMPTED and checkpoint.latest_step(tmp_path).name == "4"
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "victim", "code"),
    [
        (signal.SIGKILL, 0, exits.PEERS_MISSING),
        (signal.SIGKILL, 1, exits.PEERS_MISSING),
        (signal.SIGSTOP, 0, exits.HUNG),
        (signal.SIGSTOP, 1, exits.HUNG),
        (signal.SIGTERM, 1, exits.PREEMPTED),
    ],
)
def test_where_one_of_two_processes_is_gone_or_stopped_the_other_ends_with_the_right_code(
    corpus, tmp_path, number, victim, code
):
    several = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    words = command(corpus, tmp_path, "steps=100000", "run.patience=4")
    several["BERTJAX_FAULT"] = "batch:sleep=0.05"  # a step that takes the processors from nobody
    running = [subprocess.Popen(words, env=environment(JAX_PROCESS_ID=str(n), **several)) for n in range(2)]
    try:
        wait_for_step(tmp_path, 5, *running)
        begun = time.monotonic()
        running[victim].send_signal(number)
        assert running[1 - victim].wait(60) == code
        print(f"{signal.Signals(number).name} to process {victim}: {time.monotonic() - begun:.1f} s")
        if number == signal.SIGTERM:
            assert running[victim].wait(20) == code
    finally:
        for process in running:
            process.kill()
            process.wait()
