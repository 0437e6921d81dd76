import os
import signal
import subprocess
import sys
import threading

import pytest

from bertjax.run.stop import stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop_and_the_second_acts_at_once(number):
    class ActedAtOnce(Exception):
        pass

    def act(number, frame):
        raise ActedAtOnce

    before = signal.signal(number, act)
    try:
        with pytest.raises(ActedAtOnce), stop_requests() as request:
            assert request.signal == 0
            os.kill(os.getpid(), number)
            assert request.signal == number
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is act
    finally:
        signal.signal(number, before)


def test_handlers_are_restored_if_no_signal_arrived():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_requests():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


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
import sys, time
from bertjax.run.stop import stop_requests
with stop_requests() as request:
    print("ready", flush=True)
    while not request.signal:
        time.sleep(0.01)
    print("asked", flush=True)
    sum(range(10**15))  # does not return to the interpreter
"""


def test_a_second_sigterm_ends_a_process_that_does_not_return_to_the_interpreter():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        for word in ("ready", "asked"):
            assert process.stdout.readline() == f"{word}\n"
            process.terminate()
        assert process.wait(20) == -signal.SIGTERM
