"""Watch a process while it opens what somebody else made.

Python reports imports, code, files, processes and sockets to an audit hook. A hook can never be removed, so one is
installed in a process, and judges events only inside `watching`. Libraries in C++ report nothing to it: for them the
kernel tells who opened a file outside (inotify), and memory and time are measured.
"""

import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import struct
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bertjax

LIBRARIES = tuple(
    {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {os.path.realpath(Path(sys.base_prefix) / "lib")}
)
PACKAGE = os.path.realpath(Path(bertjax.__file__).parent)
REPOSITORY = Path(__file__).parents[2]
CODE = (*LIBRARIES, PACKAGE, os.path.realpath(REPOSITORY / "tests"), os.path.realpath(REPOSITORY / "experiments"))
"""Where code may come from. An experiment is code that a user chose, and none of these inputs may choose one."""

BAIT = frozenset({"antigravity", "this", "turtledemo", "idlelib", "lib2to3", "xmlrpc", "smtpd"})
"""Modules that are installed, and that nothing but a hostile name asks for."""

PROCESSES = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
    "os.kill", "os.killpg", "signal.pthread_kill",
)  # fmt: skip
NETWORK = (
    "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.gethostbyaddr", "urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect",
)  # fmt: skip
CHANGES = {
    "os.mkdir": (0,), "os.rmdir": (0,), "os.remove": (0,), "os.rename": (0, 1), "os.symlink": (1,), "os.link": (1,),
    "os.chmod": (0,), "os.chown": (0,), "os.truncate": (0,), "os.utime": (0,), "os.setxattr": (0,),
    "os.removexattr": (0,), "os.mkfifo": (0,), "os.mknod": (0,),
}  # fmt: skip
"""Events that change a folder, and which of their arguments are paths."""
OTHER = ("builtins.input", "pickle.find_class", "os.chdir", "sys.settrace", "sys.setprofile", "winreg.OpenKey")

_MOST_MEMORY = 2**31  # bytes that an input may take before it fails; the tests themselves expect far less
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/tty")


@dataclass
class Watch:
    """The judgement of one input. writable: what may be written; secret: what may not even be read."""

    writable: tuple[str, ...]
    secret: str
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0  # of CPU
    megabytes: float = 0.0  # above what the process held before

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Judge one event."""
        if event == "open":
            self._open(*arguments[:3])
        elif event in CHANGES and not (event == "os.mkdir" and os.path.isdir(arguments[0])):  # mkdir -p asks often
            for index in CHANGES[event]:
                self._change(event, arguments[index], arguments[-1], arguments)
        elif event == "import":
            module, file = arguments[:2]
            if module.partition(".")[0] in BAIT or (file and not _inside(os.path.realpath(file), CODE)):
                self.violations.append(f"import of {module} {file or ''}")
        elif event in ("exec", "compile"):
            self._code(event, arguments, sys._getframe(2))  # of who compiles or executes
        elif event in PROCESSES or event in NETWORK or event in OTHER:
            self.violations.append(f"{event} {arguments!r}"[:300])
        elif event == "socket.__new__" and arguments[1] != 1:  # not of this machine: AF_UNIX, as event loops use
            self.violations.append(f"a socket of family {arguments[1]}")

    def _open(self, path: Any, mode: Any, flags: Any) -> None:
        if isinstance(path, int):
            return
        path, flags = os.fsdecode(path), flags if isinstance(flags, int) else 0
        writes = any(letter in "wax+" for letter in mode) if isinstance(mode, str) else bool(flags & _WRITING)
        if mode is None and not os.path.isabs(path):
            return  # perhaps below a folder that is open already; what it changes is found by inotify
        follows = not (flags & os.O_NOFOLLOW or flags & os.O_EXCL)
        if writes:
            self._change("open for writing of", path, -1, (), follows=follows)
        real = os.path.realpath(path)
        if _inside(real, (self.secret,)) and follows:
            self.violations.append(f"open of {path} outside")
        if real.startswith("/dev/") and real not in _DEVICES and not _inside(real, ("/dev/shm",)):
            self.violations.append(f"open of the device {real}")

    def _change(self, event: str, path: Any, folder: Any, arguments: Any, *, follows: bool = False) -> None:
        if isinstance(path, int):
            return
        path = os.fsdecode(path)
        if not os.path.isabs(path) and isinstance(folder, int) and folder >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        parent, name = os.path.split(os.path.abspath(path))
        real = os.path.realpath(path) if follows else os.path.join(os.path.realpath(parent), name)
        compiled = "__pycache__" in real and _inside(real, CODE)
        if not (_inside(real, self.writable) or compiled or real in _DEVICES):
            self.violations.append(f"{event} {path}" + (f" -> {real}" if real != path else ""))

    def _code(self, event: str, arguments: tuple[Any, ...], frame: Any) -> None:
        """Judge code by the file that it comes from; code without a file by the file of who made it."""
        given = arguments[1] if event == "compile" else getattr(arguments[0], "co_filename", "")
        name = os.fsdecode(given) if isinstance(given, str | bytes) else ""
        if name.startswith("<frozen "):
            return
        if os.path.isabs(name):
            if not _inside(os.path.realpath(name), CODE) or Path(name).stem in BAIT or Path(name).parent.name in BAIT:
                self.violations.append(f"{event} of {name}")
            return
        caller = frame.f_code.co_filename
        if not (caller.startswith("<frozen ") or _inside(os.path.realpath(caller), LIBRARIES)):
            self.violations.append(f"{event} of {name!r} by {caller}")


def _inside(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)


_judge: Watch | None = None
_installed = False
_busy = threading.local()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    watch = _judge
    if watch is None or getattr(_busy, "judging", False):
        return
    _busy.judging = True
    try:
        watch.see(event, arguments)
    except Exception as error:  # noqa: BLE001 the fault is shown, and raised nowhere else
        watch.violations.append(f"the watch failed at {event} {arguments!r}: {error!r}"[:300])
    finally:
        _busy.judging = False


class TooLong(BaseException):
    """An input held the process for longer than anybody would wait. No code catches it."""


@contextlib.contextmanager
def watching(writable: tuple[Path, ...], secret: Path, cwd: Path, limit: float) -> Iterator[Watch]:
    """Judge everything that happens inside, in all threads, in the working folder `cwd`.

    writable: beside these, only a temporary folder of its own and the user's own caches. limit: seconds after
    which TooLong is raised.
    """
    global _judge, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        opened = stack.enter_context(_Opened(secret))
        caches = (os.environ["BERTJAX_TEST_PROGRAMS"], os.environ["XDG_CACHE_HOME"])  # the user's own
        allowed = (*map(str, writable), scratch, *caches)
        watch = Watch(tuple(map(os.path.realpath, allowed)), os.path.realpath(secret))
        stack.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
        tempfile.tempdir = scratch
        stack.enter_context(contextlib.chdir(cwd))
        stack.enter_context(_limits(limit, cwd.parent / "given"))
        begun, before = time.process_time(), _forget_the_peak()
        _judge = watch
        try:
            yield watch
        finally:
            _judge = None  # first, so that no alarm raises any more
            watch.seconds, watch.megabytes = time.process_time() - begun, (_status("VmHWM") - before) / 1024
            watch.violations += [f"{name} outside was {what}" for name, what in opened.events()]


@contextlib.contextmanager
def _limits(seconds: float, given: Path) -> Iterator[None]:
    """Raise TooLong after some seconds, and fail what takes very much memory."""
    most = resource.getrlimit(resource.RLIMIT_DATA)
    previous = signal.signal(signal.SIGALRM, lambda number, frame: _too_long(given))
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (2**10 * _status("VmData") + _MOST_MEMORY, most[1]))
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        # Where a library in C++ never comes back.
        faulthandler.dump_traceback_later(4 * seconds, exit=True, file=sys.__stderr__)
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_DATA, most)


def _too_long(folder: Path) -> None:
    """Free the threads that wait for a queue to be written, which nothing else ends, and raise TooLong."""
    for path in [path for path in folder.rglob("*") if path.is_fifo()]:
        with contextlib.suppress(OSError):  # nobody waits for this one
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    if _judge is not None:
        raise TooLong


def _forget_the_peak() -> int:
    """Let the kernel begin a new peak of this process's memory, and return what it holds, in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)


_EVENTS = {0x20: "opened", 0x2: "changed", 0x4: "changed", 0x100: "created", 0x200: "deleted", 0xC0: "moved"}


class _Opened:
    """Tell which files below a folder were opened or changed, by whatever code of whatever process (inotify(7))."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self._handle = self._library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._folders = {}
        for each in [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]:
            watched = self._library.inotify_add_watch(self._handle, os.fsencode(each), sum(_EVENTS))
            assert watched >= 0, os.strerror(ctypes.get_errno())
            self._folders[watched] = each

    def __enter__(self) -> "_Opened":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def events(self) -> list[tuple[str, str]]:
        """Return what happened until now: (name, what)."""
        found = []
        while True:
            try:
                data = os.read(self._handle, 2**16)
            except BlockingIOError:
                return list(dict.fromkeys(found))
            while data:
                watched, mask, _, length = struct.unpack_from("iIII", data)
                name = data[16 : 16 + length].rstrip(b"\0").decode(errors="replace")
                what = next((word for bit, word in _EVENTS.items() if mask & bit), "touched")
                if watched in self._folders:
                    found.append((str(self._folders[watched] / name), what))
                data = data[16 + length :]
