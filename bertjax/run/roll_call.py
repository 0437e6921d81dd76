"""Wait until all processes of a run have connected to process 0, and name those that have not.

JAX ends a process where others are missing, so this comes before JAX is asked to join. Whoever reaches the port can
connect to it, so nothing that arrives is trusted. Process 0 sends a nonce. Another process answers with its number, the
number of processes, a nonce of its own, and a code over these by the token that all processes share. The answer of
process 0 is the list of numbers that are missing, with a code over it, and never a text.
"""

import hmac
import ipaddress
import math
import os
import re
import secrets
import selectors
import socket
import time
import warnings
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from bertjax.errors import PassingError
from bertjax.wording import counted

TOKEN = "BERTJAX_JOIN_TOKEN"
"""The environment variable with the secret that the processes of a run share."""

_SECONDS = 5.0  # until a connection must have sent its number
_STRANGERS = 64  # connections without a number at one time: the oldest is closed
_CALL = re.compile(rb"([0-9]{1,6}) ([0-9]{1,6}) ([0-9a-f]{32}) ([0-9a-f]{64})\n")
_ANSWER = re.compile(rb"(-|[0-9]{1,6}(?:,[0-9]{1,6})*) ([0-9a-f]{64})\n")


@dataclass
class _Caller:
    """A connection to process 0. number: -1 until it has proved one."""

    connection: socket.socket
    nonce: str
    since: float
    said: bytes = b""
    number: int = -1
    answer_to: str = ""  # its nonce


def roll_call(address: str, count: int, index: int, timeout: float) -> None:
    """Wait until all processes have connected to process 0. Raises PassingError, on all that did, naming the others.

    address: host:port, on which nothing listens yet. The token is read from BERTJAX_JOIN_TOKEN; without it process 0
    warns, unless only processes of its own machine can connect.
    """
    host, _, port = address.rpartition(":")
    host, token, deadline = host.strip("[]"), os.environ.get(TOKEN, ""), time.monotonic() + timeout
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if index:
        missing, refused = _call(host, int(port), count, index, token, deadline), 0
    else:
        if not token and not _is_loopback(host):
            warnings.warn(
                f"{TOKEN} is not set: until all processes have connected, whoever reaches port {port} of this host can "
                "take the place of one. Set it to the same secret for all processes",
                stacklevel=3,
            )
        missing, refused = _answer_calls(host, int(port), count, token, addresses(hosts), deadline)
    if missing:
        names = [f"{n} ({hosts[n]})" if len(hosts) == count else str(n) for n in missing]
        others = f"; refused {counted(refused, 'connections')}: other {TOKEN}, number of processes, or address" * bool(
            refused
        )
        raise PassingError(
            f"{'process' if len(names) == 1 else 'processes'} {', '.join(names)} of {count} never connected: start the "
            f"same command on every host, and check that they reach port {port} of process 0{others}"
        )


def addresses(hosts: Collection[str]) -> frozenset[str]:
    """Return the addresses of the hosts, if all are given as addresses; none if they are unknown, or names."""
    try:
        return frozenset(str(ipaddress.ip_address(host)) for host in hosts)
    except ValueError:
        return frozenset()


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _code(token: str, *words: object) -> str:
    return hmac.new(token.encode(), " ".join(map(str, words)).encode(), "sha256").hexdigest()


def _answer_calls(
    host: str, port: int, count: int, token: str, known: Collection[str], deadline: float
) -> tuple[list[int], int]:
    """Accept connections until all others are connected; send them, and return, the numbers of those that are missing.

    known: addresses that may connect; all may if it is empty. Returns the number of connections that were refused too.
    """
    callers: list[_Caller] = []
    everyone, refused = set(range(1, count)), 0
    with _listen(host, port, count) as server, selectors.DefaultSelector() as ready:
        ready.register(server, selectors.EVENT_READ)
        while not everyone <= {caller.number for caller in callers} and (left := deadline - time.monotonic()) > 0:
            for key, _ in ready.select(min(left, 0.2)):
                if key.fileobj is not server:
                    refused += not _hear(key.data, count, token)
                elif caller := _accept(server, known):
                    callers.append(caller)
                    ready.register(caller.connection, selectors.EVENT_READ, caller)
                else:
                    refused += 1
            for caller in _surplus(callers):
                callers.remove(caller)
                ready.unregister(caller.connection)
                caller.connection.close()
    missing = sorted(everyone - {caller.number for caller in callers})
    text = ",".join(map(str, missing)) or "-"
    for caller in callers:
        with suppress(OSError), caller.connection as connection:
            if caller.number > 0:
                connection.settimeout(1)
                connection.sendall(f"{text} {_code(token, 'answer', caller.answer_to, text)}\n".encode())
    return missing, refused


def _listen(host: str, port: int, count: int) -> socket.socket:
    """Listen on this machine alone if the address is of it alone, else on all its networks.

    A name of this host may stand for its loopback address in its own tables, so it does not tell the network.
    """
    family, place = socket.AF_INET6 if ":" in host else socket.AF_INET, host if _is_loopback(host) else ""
    try:
        return socket.create_server((place, port), family=family, backlog=count + _STRANGERS)
    except OSError as error:
        raise PassingError(
            f"process 0 cannot listen on port {port}: {error.strerror}; end what uses it, or choose another port"
        ) from error


def _accept(server: socket.socket, known: Collection[str]) -> _Caller | None:
    """Accept a connection and send it a nonce; None where it fails, or comes from an address that is not known."""
    try:
        connection, peer = server.accept()
    except OSError:  # it has gone, or this process has too many files open
        time.sleep(0.01)
        return None
    nonce = secrets.token_hex(16)
    try:
        connection.setblocking(False)
        if known and str(ipaddress.ip_address(peer[0])) not in known:
            raise ValueError(f"{peer[0]} is not a host of this run")
        connection.sendall(f"{nonce}\n".encode())
    except (OSError, ValueError):
        connection.close()
        return None
    return _Caller(connection, nonce, time.monotonic())


def _hear(caller: _Caller, count: int, token: str) -> bool:
    """Read what a connection has sent; mark it as old, to be closed, where that is not a call of this run.

    Returns whether it may be one still. Nothing follows a call: whoever sends more, or closes, is no longer there.
    """
    try:
        received = caller.connection.recv(256)
    except OSError:
        received = b""
    caller.said += received
    there, call = caller.number > 0, _CALL.fullmatch(caller.said)
    if received and not there and call is None and len(caller.said) < 256 and b"\n" not in caller.said:
        return True  # a part of a call
    if not there and call:
        number, processes, nonce, code = (group.decode() for group in call.groups())
        ours = _code(token, "call", caller.nonce, nonce, number, processes)
        if hmac.compare_digest(ours, code) and int(processes) == count and 0 < int(number) < count:
            caller.number, caller.answer_to = int(number), nonce
            return True
    caller.number, caller.since = -1, -math.inf
    return there or not caller.said  # gone, or silent to its end: not refused


def _surplus(callers: list[_Caller]) -> list[_Caller]:
    """Return the connections to close: silent for too long, too many strangers, a third one of the same number."""
    now = time.monotonic()
    strangers = [caller for caller in callers if caller.number < 0]
    late = [caller for caller in strangers if now - caller.since > _SECONDS]
    many = [caller for caller in strangers if caller not in late][:-_STRANGERS]
    same = [caller for n in {caller.number for caller in callers} - {-1}
            for caller in [each for each in callers if each.number == n][:-2]]  # fmt: skip
    return late + many + same


def _call(host: str, port: int, count: int, index: int, token: str, deadline: float) -> list[int]:
    """Call process 0 until it answers; return the numbers that are missing.

    Raises PassingError where it does not answer, which is also where it is another program, or refuses this one.
    """
    end = deadline + 5  # it answers last
    while (left := end - time.monotonic()) > 0:
        with suppress(OSError, ValueError), socket.create_connection((host, port), timeout=min(left, 10)) as connection:
            nonce = _line(connection, 33, min(end, time.monotonic() + _SECONDS)).decode("ascii").strip()
            ours = secrets.token_hex(16)
            code = _code(token, "call", nonce, ours, index, count)
            connection.sendall(f"{index} {count} {ours} {code}\n".encode())
            answer = _ANSWER.fullmatch(_line(connection, 8 * count + 70, end))
            text, code = (group.decode() for group in answer.groups()) if answer else ("", "")
            if answer and hmac.compare_digest(_code(token, "answer", ours, text), code):
                return [] if text == "-" else [n for n in map(int, text.split(",")) if 0 < n < count]
        time.sleep(0.2)
    raise PassingError(
        f"process 0 does not answer at {host}:{port}, or refuses this process: start the same command there, with the "
        f"same number of processes and the same {TOKEN}, and check that this host reaches it"
    )


def _line(connection: socket.socket, most: int, end: float) -> bytes:
    """Read a line of at most so many bytes. Raises ValueError if it is longer or unfinished, TimeoutError if late."""
    said = b""
    while not said.endswith(b"\n"):
        connection.settimeout(max(end - time.monotonic(), 1e-3))
        received = connection.recv(min(4096, most + 1 - len(said)))
        said += received
        if not received or len(said) > most or time.monotonic() > end:
            raise ValueError("not a line")
    return said
