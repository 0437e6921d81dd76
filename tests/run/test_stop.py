import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from bertjax import exits
from bertjax.run.stop import SIGNALS, Interrupted, stop_requests


@pytest.fixture(autouse=True)
def _nothing_ignored():
    """Let SIGHUP end the process, also where nohup started the tests: what is ignored stays so."""
    before = signal.getsignal(signal.SIGHUP)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(number):
    os.kill(os.getpid(), number)


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_for_a_stop_and_later_ones_are_only_counted(number):
    before, said, ended = signal.getsignal(number), [], []
    with stop_requests(end=lambda *ending: ended.append(ending), say=said.append) as request:
        assert request.signal == 0
        for each in (number, number, signal.SIGTERM):
            send(each)
            assert request.signal == number
            wait_for(lambda: request.count == len(said))
        wait_for(lambda: request.count == 3)
    assert signal.getsignal(number) == before and not ended
    assert [text.split(":")[0].split()[1:] for text in said] == [[], ["again"], ["again"]]


def test_ctrl_c_and_other_signals_have_the_codes_of_a_saved_checkpoint():
    codes = {number: Interrupted(3, number).exit_code for number in SIGNALS}
    assert codes.pop(signal.SIGINT) == exits.INTERRUPTED and set(codes.values()) == {exits.PREEMPTED}


def test_without_a_checkpoint_within_the_grace_the_process_ends_with_a_code_of_its_own():
    ended = []
    with stop_requests(grace=0.05, end=lambda *ending: ended.append(ending)) as request:
        send(signal.SIGTERM)
        wait_for(lambda: ended)
    assert ended[0][0] == exits.STOPPED and request.count == 1


def test_a_checkpoint_that_has_begun_is_finished_unless_a_signal_arrives_after_the_grace():
    ended = []
    with stop_requests(grace=0.05, end=lambda *ending: ended.append(ending)) as request:
        request.saving = True
        send(signal.SIGTERM)
        send(signal.SIGINT)
        wait_for(lambda: request.count == 2)
        time.sleep(0.15)
        assert not ended
        send(signal.SIGTERM)
        wait_for(lambda: ended)
    assert ended[0][0] == exits.STOPPED and request.signal == signal.SIGTERM


def test_a_long_step_may_end_before_the_grace_counts():
    with stop_requests(grace=10) as request:
        request.step_seconds = 40
        send(signal.SIGTERM)
        assert -90 <= request.overdue(10) < -89


def test_where_nothing_is_lost_a_signal_raises_at_once_also_one_that_came_before():
    with stop_requests() as request:
        with pytest.raises(KeyboardInterrupt), request.raising():
            send(signal.SIGUSR1)
            threading.Event().wait(10)
        assert request.signal == signal.SIGUSR1 and not request.at_once
        send(signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt), request.raising():
            raise AssertionError


def test_signals_that_the_caller_ignores_stay_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as request:
            send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and not request.signal
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_restored_if_no_signal_arrived():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_requests():
        assert not set(before) & {signal.getsignal(number) for number in SIGNALS}
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "Ctrl-C: stopping after a checkpoint of the step that is running, or without one if that takes over 25 s"),
        ({"saving": True}, "Ctrl-C: stopping once the checkpoint is saved"),
        ({"starting": True}, "Ctrl-C: stopping now, as there is no step to save yet"),
    ],
)
def test_a_signal_is_acknowledged_with_what_happens_next(state, said):
    told = []
    with stop_requests(say=told.append) as request:
        for name, value in state.items():
            setattr(request, name, value)
        send(signal.SIGINT)
        wait_for(lambda: told)
    assert told[0].startswith(said)


def test_outside_the_main_thread_nothing_is_caught():
    found = []

    def use():
        with stop_requests() as request:
            found.append((request.signal, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [(0, before)]


PROGRAM = """
import ctypes
from functools import partial
from bertjax.run.leaving import end
from bertjax.run.stop import stop_requests
from bertjax.run.writers import Progress
progress = Progress()
with stop_requests(grace=0.3, end=partial(end, progress), say=progress.note):
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    print("ready", flush=True)
    lock(mutex)  # for ever: no signal interrupts this
"""


def test_a_process_that_does_not_return_to_the_interpreter_ends_within_the_bound_with_its_stacks():
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.terminate()
            assert process.wait(20) == exits.STOPPED
            said = process.stderr.read()
        finally:
            process.kill()
    assert "SIGTERM: stopping after a checkpoint" in said and "no checkpoint could be begun within" in said
    assert "Thread 0x" in said and 'File "<string>", line 12' in said
