"""Facts made by hand and folders that look like /proc, /sys and /tmp: what is found wrong, and that nothing hangs."""

import dataclasses
import json
import os
import sys
import time

import pytest

from bertjax.commands.main import main
from bertjax.machine import doctor
from bertjax.machine.doctor import Devices, Facts, ask_devices, collect, diagnose, report

GIB = 2**30
HEALTHY = Facts(
    python="3.12.1",
    host="worker-0",
    packages={"bertjax": "0.1.0", "jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.42.1", "numpy": "2.4.0"},
    requirements=("jax<0.13,>=0.10", "numpy (>=2,<3) ; python_version > '3'"),
    libtpu_wanted="0.0.42.*",
    environment={"LIBTPU_INIT_ARGS": ""},
    memory=200 * GIB,
    memory_available=190 * GIB,
    disks={"/home": 80 * GIB},
    chips=("v5e",) * 4,
    huge_pages="[always] madvise never",
    cache="/home/.cache",
    accelerator_expected=True,
    devices=Devices("tpu", ("TPU v5 lite",) * 4, (16 * GIB,) * 4, 16, 4),
)


def found(**changes):
    return diagnose(dataclasses.replace(HEALTHY, **changes))


def test_a_healthy_machine_has_no_findings():
    assert not diagnose(HEALTHY)
    text = report(HEALTHY, [])
    assert "no problems found" in text and "4 × TPU v5 lite; 16 in 4 processes" in text and "16.0 GiB" in text
    assert "--xla_tpu_enable_async_collective_fusion=true" in text


@pytest.mark.parametrize(
    ("changes", "stops", "problem", "fix"),
    [
        ({"python": "3.14.0"}, False, "Python 3.14.0", "use one of these"),
        ({"packages": HEALTHY.packages | {"numpy": "1.26.4"}}, True, "numpy is 1.26.4, required", "pip install 'numpy"),
        ({"packages": HEALTHY.packages | {"jax": "0.13", "jaxlib": "0.13"}}, True, "jax is 0.13", "'jax<0.13,>=0.10'"),
        ({"packages": {name: v for name, v in HEALTHY.packages.items() if name != "bertjax"}}, True, "not inst", "pip"),
        ({"packages": HEALTHY.packages | {"jaxlib": "0.10.1"}}, False, "jaxlib 0.10.1", "jaxlib==0.10.2"),
        ({"packages": HEALTHY.packages | {"libtpu": "0.0.30"}}, True, "requires 0.0.42", "jax[tpu]==0.10.2"),
        ({"packages": {name: v for name, v in HEALTHY.packages.items() if name != "libtpu"}}, True, "libtpu", "[tpu]"),
        ({"environment": {"JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": ""}}, True, "hides the TPU", "unset"),
        ({"environment": {}}, False, "LIBTPU_INIT_ARGS is not set", "fuse_all_reduce=true"),
        ({"holders": {7: "python train"}, "devices": Devices(error="held")}, True, "process 7 is using", "kill 7"),
        ({"lock_owner": "user 12"}, True, "belongs to user 12", "sudo rm /tmp/libtpu_lockfile"),
        ({"huge_pages": "always [madvise] never"}, False, "initialise slowly", "echo always"),
        ({"devices": Devices(error="no answer within 60 seconds")}, True, "no answer", "slices.py doctor"),
        ({"devices": Devices("cpu", ("cpu",), (0,), 1, 1)}, True, "4 TPU chips, but JAX uses the CPU", "[tpu]"),
        ({"devices": Devices("cpu", ("cpu",), (0,), 1, 1), "chips": ()}, True, "a GPU, but JAX uses", "cuda"),
        ({"disks": {"/home": GIB // 2}}, True, "0.5 GiB free", "free some space"),
        ({"disks": {"/home": 5 * GIB}}, False, "5.0 GiB free", "free some space"),
        ({"memory_available": GIB}, False, "1.0 GiB of memory", "stop other"),
        ({"cache_problem": "other users can write to x: chmod go-w x"}, False, "other users can write", "chmod go-w x"),
        ({"environment": HEALTHY.environment | {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "2"}}, True,
         "TPU_WORKER_ID='2'", "unset both"),
        ({"environment": HEALTHY.environment | {"MEGASCALE_NUM_SLICES": "2"}}, True,
         "without MEGASCALE_COORDINATOR_ADDRESS, MEGASCALE_SLICE_ID", "unset them"),
    ],
)  # fmt: skip
def test_each_problem_is_reported_with_its_fix(changes, stops, problem, fix):
    (finding,) = found(**changes)
    assert finding.stops == stops and problem in finding.problem and fix in finding.fix


def test_findings_that_stop_a_run_come_first():
    assert [finding.stops for finding in found(huge_pages="never", lock_owner="user 3")] == [True, False]
    assert "WRONG: " in report(HEALTHY, found(lock_owner="user 3"))


def test_devices_that_do_not_answer_are_given_up_after_the_timeout():
    begun = time.monotonic()
    devices = ask_devices([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)
    assert devices == Devices(error="no answer within 0.2 seconds") and time.monotonic() - begun < 10
    assert "Boom" in ask_devices([sys.executable, "-c", "raise SystemExit('Boom')"], 20).error


@pytest.fixture
def machine(tmp_path):
    """Make the files of a TPU VM with two chips, one held by process 41, and a lock held by 42."""
    for path, text in {
        "proc/self/environ": "TPU_WORKER_ID=0\0HOME=/root\0JAX_PLATFORMS=tpu\0",
        "proc/meminfo": "MemTotal: 1024 kB\nMemAvailable: 512 kB\n",
        "proc/41/cmdline": "python\0train.py\0",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "tmp/libtpu_lockfile": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for number, (vendor, device) in enumerate([("0x1ae0", "0x0063"), ("0x1ae0", "0x0063"), ("0x8086", "0x1237")]):
        folder = tmp_path / f"sys/bus/pci/devices/{number}"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(vendor + "\n")
        (folder / "device").write_text(device + "\n")
    (tmp_path / "proc/41/fd").mkdir()
    os.symlink("/dev/accel0", tmp_path / "proc/41/fd/5")
    os.symlink("/dev/null", tmp_path / "proc/41/fd/6")
    lock = (tmp_path / "tmp/libtpu_lockfile").stat()
    place = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
    lines = [f"42 {place}", f"-1 {place}", f"43 ff:0f:{lock.st_ino}"]  # no one that is seen; another disk's
    (tmp_path / "proc/locks").write_text("".join(f"1: FLOCK  ADVISORY  WRITE {line} 0 EOF\n" for line in lines))
    return tmp_path


def test_processes_using_a_tpu_are_read_from_proc_without_opening_devices(machine, monkeypatch):
    monkeypatch.setattr(doctor, "ask_devices", lambda *_: pytest.fail("the TPU is held"))
    facts = collect(machine / "not" / "yet", root=machine)
    assert facts.chips == ("v5e", "v5e") and facts.holders == {41: "python train.py", 42: "of another user"}
    assert facts.environment == {"JAX_PLATFORMS": "tpu", "TPU_WORKER_ID": "0"}
    assert (facts.memory, facts.memory_available) == (2**20, 2**19) and "[madvise]" in facts.huge_pages
    assert any(finding.problem == "process 41 is using the TPU: python train.py" for finding in diagnose(facts))
    assert all("no devices" not in finding.problem for finding in diagnose(facts))


def test_a_system_without_proc_is_described_too(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(doctor, "ask_devices", lambda *_: Devices("cpu", ("cpu",), (0,), 1, 1))
    facts = collect(tmp_path, root=tmp_path)
    assert facts.environment["JAX_PLATFORMS"] == "cpu" and "HOME" not in facts.environment


def test_devices_are_asked_where_nothing_holds_them(machine, monkeypatch):
    (machine / "proc/41/fd/5").unlink()
    (machine / "proc/locks").write_text("")
    answer = Devices("tpu", ("TPU v5 lite",) * 2, (0, 0), 2, 1)
    monkeypatch.setattr(doctor, "ask_devices", lambda python, seconds: answer)
    facts = collect(machine, seconds=3, root=machine)
    assert facts.devices == answer and not facts.holders and facts.libtpu_wanted.startswith("0.0.")


def test_the_command_prints_findings_and_returns_their_exit_code(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "collect", lambda folder, *, seconds: HEALTHY)
    assert main(["doctor"]) == 0 and "no problems found" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "collect", lambda folder, *, seconds: dataclasses.replace(HEALTHY, lock_owner="user 3"))
    assert main(["doctor", "--workdir", str(tmp_path), "--json"]) == 2
    read = json.loads(capsys.readouterr().out)
    assert read["facts"]["chips"] == ["v5e"] * 4 and read["findings"][0]["fix"] == "sudo rm /tmp/libtpu_lockfile"
