"""Strangers on the network of a run: what connects to the roll call, and what answers in place of process 0."""

import contextlib
import socket
import time
from threading import Thread

import pytest

from bertjax.errors import PassingError
from bertjax.run import processes
from bertjax.run.roll_call import _code

TOKEN = "BERTJAX_JOIN_TOKEN"


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


class Call:
    """The roll call of process 0 in a thread, and of others."""

    def __init__(self, count, timeout=10.0):
        self.port, self.count, self.timeout = free_port(), count, timeout
        self.found, self.threads = {}, []

    def start(self, *indices):
        for index in indices:
            self.threads.append(Thread(target=self._call, args=(index,)))
            self.threads[-1].start()

    def _call(self, index):
        try:
            processes.roll_call(f"localhost:{self.port}", self.count, index, timeout=self.timeout)
            self.found[index] = ""
        except PassingError as error:
            self.found[index] = str(error)

    def connect(self, said=b""):
        for _ in range(500):
            with contextlib.suppress(ConnectionRefusedError):
                stranger = socket.create_connection(("localhost", self.port), timeout=5)
                stranger.sendall(said)
                return stranger
            time.sleep(0.01)
        raise AssertionError("process 0 does not listen")

    def ended(self):
        for thread in self.threads:
            thread.join(30)
        return self.found


STRANGE = [b"1", b"2", b"3", b"1 4 00 00\n", b"99", b"-1", b"\x1b]0;x\x07\n", b"GET / HTTP/1.1\r\n\r\n", b"9" * 4000]


@pytest.mark.parametrize("token", ["", "secret"])
def test_numbers_of_strangers_do_not_count(monkeypatch, token):
    monkeypatch.setenv(TOKEN, token)
    call = Call(4, timeout=1.5)
    call.start(0, 2)
    strangers = [call.connect(said) for said in STRANGE]
    found = call.ended()
    assert set(found) == {0, 2} and all("processes 1, 3 of 4 never connected" in text for text in found.values())
    assert "connections were refused" in found[0] and found[0].isprintable()
    for stranger in strangers:
        stranger.close()


def test_silent_slow_and_many_connections_hold_nobody_up():
    call = Call(3)
    begun = time.monotonic()
    call.start(0)
    strangers = [call.connect(b"1 3"[: n % 4]) for n in range(120)]
    call.start(1, 2)
    assert call.ended() == {0: "", 1: "", 2: ""} and time.monotonic() - begun < 4
    for stranger in strangers:
        stranger.close()


def test_a_process_with_another_token_or_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setenv(TOKEN, "ours")
    call = Call(2, timeout=1.0)
    call.start(0)
    call.connect().close()  # it has read its token by now
    monkeypatch.setenv(TOKEN, "theirs")
    call.timeout = -3.0
    call.start(1)
    found = call.ended()
    assert "process 1 of 2 never connected" in found[0] and "connections were refused: other BERTJAX_JOIN" in found[0]
    assert "or refuses this process" in found[1] and "same BERTJAX_JOIN_TOKEN" in found[1]


def test_a_process_that_has_gone_again_is_missing():
    call = Call(3, timeout=1.0)
    call.start(0)
    with call.connect() as gone:
        nonce, ours = gone.recv(100).decode().strip(), "0" * 32
        gone.sendall(f"1 3 {ours} {_code('', 'call', nonce, ours, 1, 3)}\n".encode())
    call.start(2)
    found = call.ended()
    assert "process 1 of 3 never connected" in found[0] and found[0] == found[2]


def test_addresses_that_are_not_of_the_run_are_refused(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "10.0.0.1,10.0.0.2")
    call = Call(2, timeout=0.5)
    call.start(0, 1)
    found = call.ended()
    assert "process 1 (10.0.0.2) of 2 never connected" in found[0]
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "127.0.0.1,127.0.0.1")
    call = Call(2)
    call.start(0, 1)
    assert call.ended() == {0: "", 1: ""}


@pytest.mark.parametrize("answer", [b"\x1b]0;owned\x07\x1b[2Jprocesses 1 never\n", b"\xff\xfe", b"x" * 10_000_000, b""])
def test_the_answer_of_a_false_process_0_is_not_printed_nor_waited_for(answer):
    call = Call(2, timeout=-4.0)
    with socket.create_server(("localhost", call.port)) as false:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = false.accept()
                    with contextlib.suppress(OSError):
                        connection.sendall(b"0" * 32 + b"\n" + answer)

        Thread(target=serve, daemon=True).start()
        call.start(1)
        found = call.ended()
        assert "process 0 does not answer" in found[1] and found[1].isprintable()


def test_without_a_token_it_says_what_can_happen(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.warns(UserWarning, match=r"BERTJAX_JOIN_TOKEN is not set: .* Set it"), pytest.raises(PassingError):
        processes.roll_call(f"0.0.0.0:{free_port()}", 2, 0, timeout=0.05)


def test_a_port_that_is_taken_is_an_error():
    expected = pytest.raises(PassingError, match=r"cannot listen on port .* choose another port")
    with socket.create_server(("localhost", 0)) as other, expected:
        processes.roll_call(f"localhost:{other.getsockname()[1]}", 2, 0, timeout=1)
