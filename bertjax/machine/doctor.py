"""Check a machine before a run: its software, TPUs, devices, memory and disks, with a fix for each problem.

`collect` gathers facts, `diagnose` is a pure function of them. JAX is asked for its devices in a child process with a
timeout, since a TPU may answer late or never, and only if no process is using them: a running job keeps its TPU. The
processes that use a TPU are read from /proc, as tpu-info does: open device files, and the lock on libtpu's lock file.
"""

import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.machine.program_cache import cache_problem
from bertjax.machine.topology import CHIPS
from bertjax.machine.xla_flags import TPU_FLAGS, accelerator_expected, cache_folder, libtpu_init_args
from bertjax.storage.paths import in_cloud
from bertjax.wording import counted

LOCK = Path("/tmp/libtpu_lockfile")
_VARIABLES = re.compile(r"JAX_|XLA_|LIBTPU_|TPU_|MEGASCALE_|NPROC$|CUDA_VISIBLE_DEVICES$")
# PCI ids of Google's chips, from jax/_src/hardware_utils.py, and the generations that they are.
_CHIPS = {"0x0027": "v3", "0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e", "0x0076": "7x"}
_KINDS = {chip.kind: generation for generation, chip in CHIPS.items()}
_GIB = 2**30


@dataclass(frozen=True)
class Devices:
    """The devices of JAX, or the reason that they are unknown (`error`)."""

    platform: str = ""
    kinds: tuple[str, ...] = ()  # of local devices
    memory: tuple[int, ...] = ()  # bytes of each local device, where the platform reports them
    total: int = 0  # devices of all processes
    processes: int = 0
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """Facts about a machine. Sizes are bytes; facts that the system does not report are empty or 0."""

    python: str
    host: str
    packages: Mapping[str, str] = field(default_factory=dict)  # installed
    requirements: tuple[str, ...] = ()  # of bertjax: "jax<0.13,>=0.10"
    libtpu_wanted: str = ""  # version that the installed jax requires: "0.0.42.*"
    environment: Mapping[str, str] = field(default_factory=dict)
    memory: int = 0
    memory_available: int = 0
    disks: Mapping[str, int] = field(default_factory=dict)  # folder -> bytes free
    chips: tuple[str, ...] = ()  # generations of TPU chips on the PCI bus
    holders: Mapping[int, str] = field(default_factory=dict)  # process that uses a chip -> its command
    lock_owner: str = ""  # of libtpu's lock file, if another user owns it
    huge_pages: str = ""
    cache: str = ""
    cache_bytes: int = 0
    cache_problem: str = ""
    accelerator_expected: bool = False
    devices: Devices = Devices()


class Finding(NamedTuple):
    """A problem and its fix; `stops`: a run would fail, or not use the accelerator."""

    stops: bool
    problem: str
    fix: str


def diagnose(facts: Facts) -> list[Finding]:
    """Return the problems, the worst first."""
    found = [*_versions(facts), *_tpu(facts), *_devices(facts), *_room(facts), *_peers(facts.environment)]
    return sorted(found, key=lambda finding: not finding.stops)


def _versions(facts: Facts) -> Iterable[Finding]:
    if not (3, 11) <= _numbers(facts.python)[:2] <= (3, 13):
        yield Finding(False, f"Python {facts.python}: 3.11 to 3.13 are tested", "use one of these")
    if "bertjax" not in facts.packages:
        yield Finding(True, "bertjax is not installed, but checkpoints record its version", "pip install .")
    for requirement in facts.requirements:
        name = _name(requirement)
        wanted = requirement.removeprefix(name).split(";")[0].strip()
        there = facts.packages.get(name)
        if there is None or not _within(there, wanted):
            yield Finding(
                True, f"{name} is {there or 'not installed'}, required is {wanted}", f"pip install '{name}{wanted}'"
            )
    jax_, jaxlib = facts.packages.get("jax", ""), facts.packages.get("jaxlib", "")
    if _numbers(jax_) != _numbers(jaxlib):
        yield Finding(False, f"jax {jax_} with jaxlib {jaxlib}", f"pip install jax=={jax_} jaxlib=={jax_}")
    libtpu = facts.packages.get("libtpu")
    if libtpu and facts.libtpu_wanted and not libtpu.startswith(facts.libtpu_wanted.rstrip("*")):
        yield Finding(bool(facts.chips), f"libtpu {libtpu}, jax {jax_} requires {facts.libtpu_wanted}",
                      f"pip install 'jax[tpu]=={jax_}'")  # fmt: skip


def _tpu(facts: Facts) -> Iterable[Finding]:
    if not facts.chips:
        return
    if "libtpu" not in facts.packages and "TPU_LIBRARY_PATH" not in facts.environment:
        yield Finding(True, "TPU chips, but no libtpu", "pip install '.[tpu]'")
    if facts.environment.get("JAX_PLATFORMS", "tpu").startswith("cpu"):
        yield Finding(True, "JAX_PLATFORMS=cpu hides the TPU", "unset JAX_PLATFORMS")
    for process, command in facts.holders.items():
        yield Finding(
            True, f"process {process} is using the TPU: {command}", f"wait for it, or stop it: kill {process}"
        )
    if facts.lock_owner and not facts.holders:
        yield Finding(True, f"{LOCK} belongs to {facts.lock_owner}: libtpu cannot open it, and reports that the "
                      "TPU is in use", f"sudo rm {LOCK}")  # fmt: skip
    if facts.huge_pages and "[always]" not in facts.huge_pages:
        yield Finding(False, f"transparent huge pages are {facts.huge_pages}: TPUs initialise slowly",
                      'sudo sh -c "echo always > /sys/kernel/mm/transparent_hugepage/enabled"')  # fmt: skip
    generation = facts.chips[0]
    if "LIBTPU_INIT_ARGS" not in facts.environment and libtpu_init_args(generation):
        yield Finding(False, f"LIBTPU_INIT_ARGS is not set, Google advises flags for {generation}",
                      f"export LIBTPU_INIT_ARGS='{libtpu_init_args(generation)}'")  # fmt: skip


def _devices(facts: Facts) -> Iterable[Finding]:
    devices = facts.devices
    if devices.error and not facts.holders:
        yield Finding(True, f"no devices: {devices.error}", "on a slice of several hosts run it on all of "
                      "them (tpu/slices.py doctor NAME); see also: python -c 'import jax; jax.devices()'")  # fmt: skip
    if facts.chips and devices.platform == "cpu" and not facts.environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        yield Finding(
            True,
            f"{len(facts.chips)} TPU chips, but JAX uses the CPU",
            "pip install '.[tpu]', and fix the problems above",
        )
    elif facts.accelerator_expected and devices.platform == "cpu" and not facts.chips:
        yield Finding(
            True,
            "a GPU, but JAX uses the CPU",
            "pip install 'jax[cuda13]', or set JAX_PLATFORMS=cpu to use the CPU",
        )


def _room(facts: Facts) -> Iterable[Finding]:
    for folder, free in facts.disks.items():
        if free < 20 * _GIB:
            yield Finding(free < _GIB, f"{free / _GIB:.1f} GiB free in {folder}",
                          "free some space, or use another disk: a checkpoint of BERT-large takes 4 GiB")  # fmt: skip
    if 0 < facts.memory_available < 2 * _GIB:
        yield Finding(False, f"{facts.memory_available / _GIB:.1f} GiB of memory available", "stop other processes")
    if facts.cache_problem:
        problem, _, remedy = facts.cache_problem.rpartition(": ")
        yield Finding(False, f"{problem}; the cache is not used", remedy)


def _peers(environment: Mapping[str, str]) -> Iterable[Finding]:
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    number = environment.get("TPU_WORKER_ID", "")
    if hosts and not (number.isdecimal() and int(number) < len(hosts.split(","))):
        yield Finding(True, f"TPU_WORKER_ID={number!r} is not the index of one of {len(hosts.split(','))} hosts",
                      "unset both variables, or set them as the platform does")  # fmt: skip
    megascale = {name for name in environment if name.startswith("MEGASCALE_")}
    wanted = {"MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"}
    if megascale and not wanted <= megascale:
        missing = ", ".join(sorted(wanted - megascale))
        found = f"{', '.join(sorted(megascale))} without {missing}: a run would wait for slices that do not exist"
        yield Finding(True, found, "unset them: they are left over from another run")


def _within(version: str, wanted: str) -> bool:
    """Check a release number against comma-separated bounds, as in setup.cfg."""
    compare = {">=": tuple.__ge__, "<": tuple.__lt__, "==": tuple.__eq__}
    bounds = re.findall(r"(>=|==|<)\s*([\d.]+)", wanted)
    return all(compare[sign](_numbers(version), _numbers(bound)) for sign, bound in bounds)


def _numbers(version: str) -> tuple[int, ...]:
    release = re.split(r"[^\d.]", version, maxsplit=1)[0]
    numbers = [int(number) for number in release.split(".") if number]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def collect(folder: Path, *, seconds: float = 60.0, root: Path = Path("/")) -> Facts:
    """Gather facts; devices have `seconds` to answer. root: the folder of /proc, /sys and /tmp."""
    requirements = _requirements()
    memory = _memory(root)
    chips, holders = _chips(root), _holders(root)
    lock = root / LOCK.relative_to("/")
    huge_pages = root / "sys/kernel/mm/transparent_hugepage/enabled"
    cache = cache_folder()
    disks = (Path("/tmp"),) if in_cloud(folder) else (folder, Path("/tmp"))
    files = [path.stat().st_size for path in cache.rglob("*") if path.is_file()] if cache and cache.is_dir() else []
    return Facts(
        python=platform.python_version(),
        host=socket.gethostname(),
        packages=_installed(["bertjax", "jaxlib", "libtpu", *map(_name, requirements)]),
        requirements=requirements,
        libtpu_wanted=_libtpu_wanted(),
        environment=_environment(root),
        memory=memory.get("MemTotal", 0),
        memory_available=memory.get("MemAvailable", 0),
        disks={str(each): shutil.disk_usage(_existing(each)).free for each in disks},
        chips=chips,
        holders=holders,
        lock_owner=_other_owner(lock),
        huge_pages=huge_pages.read_text().strip() if huge_pages.exists() else "",
        cache=str(cache or "none, since this user has no home folder: set JAX_COMPILATION_CACHE_DIR"),
        cache_bytes=sum(files),
        cache_problem=cache_problem(cache) if cache else "",
        accelerator_expected=accelerator_expected(),
        devices=Devices(error="not asked, since a process is using them")
        if holders
        else ask_devices([sys.executable, "-P"], seconds),  # it imports nothing from the current folder
    )


def _requirements() -> tuple[str, ...]:
    try:
        return tuple(each for each in metadata.requires("bertjax") or () if "extra ==" not in each)
    except metadata.PackageNotFoundError:
        return ()


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _installed(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _environment(root: Path) -> dict[str, str]:
    """Return the variables that this process was started with: JAX sets some of its own when imported."""
    path = root / "proc/self/environ"
    texts = path.read_bytes().decode(errors="replace").split("\0") if path.exists() else []
    found = dict(text.split("=", 1) for text in texts if "=" in text) if path.exists() else dict(os.environ)
    return {name: value for name, value in sorted(found.items()) if _VARIABLES.match(name)}


def _libtpu_wanted() -> str:
    found = [re.match(r"libtpu\s*==\s*([\d.*]+)", each) for each in metadata.requires("jax") or ()]
    return next((match[1] for match in found if match), "")


def _existing(folder: Path) -> Path:
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def _memory(root: Path) -> dict[str, int]:
    path = root / "proc/meminfo"
    lines = re.findall(r"(\w+):\s+(\d+) kB", path.read_text()) if path.exists() else []
    return {name: 1024 * int(number) for name, number in lines}


def _chips(root: Path) -> tuple[str, ...]:
    """Return the generations of the TPU chips on the PCI bus."""
    ids = [
        (device / "device").read_text().strip()
        for device in sorted((root / "sys/bus/pci/devices").glob("*"))
        if (device / "vendor").exists() and (device / "vendor").read_text().strip() == "0x1ae0"
    ]
    return tuple(_CHIPS[each] for each in ids if each in _CHIPS)


def _holders(root: Path) -> dict[int, str]:
    """Return the processes that have a chip open, or hold libtpu's lock: of other users' only the lock is visible."""
    holders = set()
    for link in (root / "proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:  # the process ended meanwhile, or is another user's
            continue
        if re.fullmatch(r"/dev/(accel|vfio/)\d+", target):
            holders.add(int(link.parts[-3]))
    lock, locks = root / LOCK.relative_to("/"), root / "proc/locks"
    if lock.exists() and locks.exists():
        file = lock.stat()
        place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
        held = re.findall(r" (\d+) ([0-9a-f]+:[0-9a-f]+:\d+) ", locks.read_text())  # process -1: an invisible one
        holders |= {int(process) for process, where in held if where == place}
    return {process: _command(root, process) for process in sorted(holders)}


def _command(root: Path, process: int) -> str:
    try:
        words = (root / f"proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "of another user"
    return b" ".join(words).decode(errors="replace").strip()[:200]


def _other_owner(lock: Path) -> str:
    if not lock.exists() or os.access(lock, os.R_OK | os.W_OK):
        return ""
    return f"user {lock.stat().st_uid}"


_ASK = """
import json, jax
devices = jax.local_devices()
memory = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
print("\\n" + json.dumps({"platform": jax.default_backend(), "kinds": [device.device_kind for device in devices],
    "memory": memory, "total": jax.device_count(), "processes": jax.process_count()}))
"""


def ask_devices(python: Sequence[str], seconds: float) -> Devices:
    """Ask JAX for its devices, in a process that is killed with its children after `seconds`."""
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # leave the memory of a GPU to its users
    child = subprocess.Popen(
        [*python, "-c", _ASK],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, error = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return Devices(error=f"no answer within {seconds:g} seconds")
    if child.returncode:
        lines = error.strip().splitlines() or [f"exit code {child.returncode}"]
        return Devices(error=lines[-1][:300])
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return Devices(**found | {"kinds": tuple(found["kinds"]), "memory": tuple(found["memory"])})


def report(facts: Facts, findings: Sequence[Finding]) -> str:
    """Format facts, then findings, for a terminal."""
    text = "".join(f"{name:<14} {value}\n" for name, value in _rows(facts).items() if value)
    generation = _generation(facts)
    if generation:
        flags = [f"  --{flag.name}={flag.value}  {flag.purpose} ({flag.source})" for flag in TPU_FLAGS[generation]]
        text += "\n".join([f"advised in LIBTPU_INIT_ARGS for {generation}:", *(flags or ["  nothing"])]) + "\n"
    for finding in findings:
        text += f"{'WRONG' if finding.stops else 'better'}: {finding.problem}\n       {finding.fix}\n"
    return text + ("" if findings else "no problems found\n")


def _generation(facts: Facts) -> str:
    return facts.chips[0] if facts.chips else _KINDS.get(next(iter(facts.devices.kinds), ""), "")


def _rows(facts: Facts) -> dict[str, str]:
    devices = facts.devices
    kinds = {kind: devices.kinds.count(kind) for kind in dict.fromkeys(devices.kinds)}
    return {
        "host": f"{facts.host}, Python {facts.python}",
        "packages": ", ".join(f"{name} {version}" for name, version in facts.packages.items()),
        "devices": devices.error
        or f"{devices.platform}: {', '.join(f'{count} × {kind}' for kind, count in kinds.items())}; "
        f"{devices.total} in {counted(devices.processes, 'processes')}",
        "device memory": ", ".join(f"{size / _GIB:.1f} GiB" for size in dict.fromkeys(devices.memory) if size),
        "TPU chips": f"{len(facts.chips)} × {_generation(facts)}" if facts.chips else _no_chips(facts),
        "memory": f"{facts.memory / _GIB:.1f} GiB, {facts.memory_available / _GIB:.1f} available",
        "disk": ", ".join(f"{free / _GIB:.1f} GiB free in {folder}" for folder, free in facts.disks.items()),
        "huge pages": facts.huge_pages,
        "cache": f"{facts.cache} ({facts.cache_bytes / 2**20:.1f} MiB)",
        "environment": " ".join(f"{name}={value}" for name, value in facts.environment.items()),
    }


def _no_chips(facts: Facts) -> str:
    """Say why libtpu is not asked for a TPU, where it is installed."""
    quiet = "libtpu" in facts.packages and not facts.accelerator_expected and not facts.environment.get("JAX_PLATFORMS")
    return "none; libtpu is there for `plan`, and no TPU is looked for unless JAX_PLATFORMS=tpu" if quiet else ""


def as_json(facts: Facts, findings: Sequence[Finding]) -> dict[str, Any]:
    """Describe facts and findings with JSON types."""
    return {"facts": asdict(facts), "findings": [finding._asdict() for finding in findings]}
