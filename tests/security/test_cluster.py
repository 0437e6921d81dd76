"""Strangers on the network of a run, and what the scripts of tpu/ pass to workers and print of what comes back.

The tests of tpu/ use the stand-in for gcloud of tests/test_tpu.py.
"""

import contextlib
import json
import re
import socket
import stat
import subprocess
import sys
import time
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
from threading import Thread

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_tpu import TPU, ZONE, cloud  # noqa: F401

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
    assert re.search(r"; refused \d connections?: other BERTJAX_JOIN", found[0]) and found[0].isprintable()
    for stranger in strangers:
        stranger.close()


def test_silent_slow_and_many_connections_hold_nobody_up(monkeypatch):
    monkeypatch.setattr("bertjax.run.roll_call._SECONDS", 60.0)
    call = Call(3, timeout=40.0)
    begun = time.monotonic()
    call.start(0)
    strangers = [call.connect(b"1 3"[: n % 4]) for n in range(120)]
    call.start(1, 2)
    assert call.ended() == {0: "", 1: "", 2: ""} and time.monotonic() - begun < 20
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
    assert "process 1 of 2 never connected" in found[0] and re.search(r"refused \d connections?: other", found[0])
    assert "or refuses this process" in found[1] and "same BERTJAX_JOIN_TOKEN" in found[1]


def test_a_process_that_has_gone_again_is_missing():
    call = Call(3, timeout=2.0)
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


NAMES = ["--foo", "a; rm -rf x", "a b", "$(id)", "A", "a-", "-a", "a/../b", "a\nb", "", "a" * 64, "é", "a\x1b[2J", "1a"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_options_or_shell_words_are_refused(cloud, name):  # noqa: F811
    for words in (["state"], ["run", "--", name, "e.py"], ["create", "--type=v4-8"]):
        given = ["--", name] if "--" not in words else []
        done = cloud.run("slices.py", words[0], *ZONE, "--dry-run", *words[1:], *given, code=2)
        assert "+ gcloud" not in done.stderr and done.stderr.replace("\n", "").isprintable()
    assert not (cloud.folder / "calls").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["state", "bert", "--zone=a b"], "is not a zone"),
        (["state", "bert", "--zone=z", "--project=-p"], "is not a project"),
        (["create", "bert", "--zone=z", "--type=v4-²"], "no accelerator type"),
        (["create", "bert", "--zone=z", "--type=v4-8", "--runtime=x;y"], "is not a runtime"),
        (["create", "bert", "--zone=z", "--type=v4-8", "--flag=x; y"], "is not a flag"),
        (["create", "bert", "--zone=z", "--type=v4-8", "--slices=0"], "is not a number of slices"),
        (["logs", "bert", "--zone=z", "--worker=0 --command=id"], "is not a worker"),
        (["run", "bert", "--zone=z", "--gcs=gs://mine/../x", "--", "e.py"], "is not an address"),
        (["run", "bert", "--zone=z", "--corpus=/etc", "--", "e.py"], "is not an address"),
        (["fetch", "bert", "x", "--zone=z", "--gcs=gs://mine/*"], "is not an address"),
    ],
)
def test_other_words_of_commands_are_checked(cloud, words, message):  # noqa: F811
    assert message in cloud.run("slices.py", *words, "--dry-run", code=2).stderr


def test_words_of_the_run_are_quoted_and_a_folder_is_never_an_option(cloud):  # noqa: F811
    done = cloud.run("slices.py", "run", "bert", *ZONE, "--dry-run", "--", "e.py", "init=a; rm -rf ~")
    assert """'"'"'init=a; rm -rf ~'"'"'""" in done.stderr
    assert (
        f" {Path.cwd()}/-x --recurse" in cloud.run("slices.py", "fetch", *ZONE, "--dry-run", "bert", "--", "-x").stderr
    )


@pytest.fixture
def started(cloud, monkeypatch):  # noqa: F811
    """Return a function that starts a run on two workers, with options, and waits for its end."""
    monkeypatch.setenv("WORKERS", "2")
    target = ["bert", *ZONE]
    (cloud.folder / "trainer.py").write_text(
        "import json, os, pathlib\n"
        "pathlib.Path(os.environ['HOME'], 'environment.json').write_text(json.dumps(dict(os.environ)))\n"
    )
    for words in (["create", *target, "--type=v4-16"], ["state", *target], ["install", *target]):
        cloud.run("slices.py", *words)

    def start(*options):
        done = cloud.run("slices.py", "run", *target, "--gcs=gs://mine/run", *options, "--", "e.py", "steps=0")
        for _ in range(1000):
            found = cloud.run("slices.py", "status", *target).stdout
            if found.count('"ended"') == 2:
                return done
        raise AssertionError(found)

    return start


def test_values_of_variables_are_in_no_argument_and_are_not_printed(cloud, started, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("WANDB_API_KEY", "secret-1")
    (tmp_path / "env").write_text("# mine\nOTHER=secret-2 = x\n")
    (tmp_path / "env").chmod(0o600)
    done = started("--env=WANDB_API_KEY", f"--env-file={tmp_path / 'env'}", "--env=A=secret-3")
    homes = sorted((cloud.folder / "slices/bert").glob("worker-*"))
    seen = done.stdout + done.stderr + (cloud.folder / "calls").read_text()
    seen += "".join((home / "bertjax-runs/bert/output.log").read_text() for home in homes)
    seen += "".join((home / "bertjax-runs/bert/state.json").read_text() for home in homes)
    assert "secret" not in seen and "OTHER WANDB_API_KEY A" in done.stderr
    given = [json.loads((home / "environment.json").read_text()) for home in homes]
    for each in given:
        assert [each[name] for name in ("WANDB_API_KEY", "OTHER", "A")] == ["secret-1", "secret-2 = x", "secret-3"]
    tokens = {each[TOKEN] for each in given}
    assert len(tokens) == 1 and len(tokens.pop()) == 32
    for home in homes:
        assert not list(home.glob("*env*.json"))[1:] and not (home / "bertjax-env-bert.json").exists()
        for path in (home / "bertjax-runs/bert").rglob("*"):
            assert path.is_symlink() or not path.stat().st_mode & 0o077, path


def test_a_file_of_variables_that_others_may_read_is_refused(cloud, tmp_path):  # noqa: F811
    path = tmp_path / "env"
    path.write_text("A=secret\n")
    path.chmod(0o640)
    run = ["slices.py", "run", "bert", *ZONE, "--dry-run"]
    assert "chmod 600" in cloud.run(*run, f"--env-file={path}", "--", "e.py", code=2).stderr
    command = [sys.executable, "-S", str(TPU / "slices.py"), *run[1:], "--env-file=-", "--", "e.py"]
    done = subprocess.run(command, input="A=secret\nB=secret", capture_output=True, text=True)
    assert done.returncode == 0 and "+ variables: A B" in done.stderr and "secret" not in done.stderr
    path.chmod(0o600)
    path.write_text("secret line\n")
    for options in ([f"--env-file={path}"], ["--env", "A-B=secret"], ["--env", "NOT_SET_HERE"], ["--env-file=/none"]):
        done = cloud.run(*run, *options, "--", "e.py", code=2)
        assert "secret" not in done.stderr and "Traceback" not in done.stderr


def test_the_file_of_variables_is_of_this_user_alone(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(TPU))
    import slices

    seen = []

    def gcloud(target, *words, **options):
        if words[1] == "scp":
            path = Path(words[2])
            seen.append((stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)))
        return ""

    monkeypatch.setattr(slices, "gcloud", gcloud)
    slices.run(slices.Target("bert", "here", "", True, 1.0), ["e.py"], env={"A": "b"})
    assert seen == [(0o600, 0o700)]


def test_what_workers_print_is_escaped(cloud, started):  # noqa: F811
    started()
    home = cloud.folder / "slices/bert/worker-0"
    (home / "bertjax-venv/bin/bertjax").write_text("#!/bin/sh\nprintf 'fine\\n\\033]0;owned\\007\\302\\233'\n")
    out = cloud.run("slices.py", "doctor", "bert", *ZONE).stdout
    assert "fine\n\\x1b]0;owned\\x07\\x9b" in out
    (home / "bertjax-runs/bert/output.log").write_bytes(b"\x1b[2Jowned\xff\n")
    tail = cloud.folder / "bin/tail"
    tail.write_text("#!/bin/sh\ncat bertjax-runs/bert/output.log; exit 0\n")
    tail.chmod(0o755)
    assert cloud.run("slices.py", "logs", "bert", *ZONE).stdout == "\\x1b[2Jowned\ufffd\n"
    (home / "bertjax/tpu/worker.py").write_text('print(\'bertjax-status {"state": "\\x1b[2J"}\')')
    done = cloud.run("slices.py", "status", "bert", *ZONE)
    assert done.stdout.count("ended") == 1 and done.stderr.replace("\n", "").isprintable()
    (home / "bertjax/tpu/worker.py").write_text("import sys; sys.exit('\\x1b[2J')")
    assert "\x1b" not in cloud.run("slices.py", "stop", "bert", *ZONE, code=2).stderr


@pytest.mark.parametrize(
    "line",
    ["[]", "{", "[" * 4000, '{"state": 5}', '{"state": "ended", "code": "0"}', '{"step": 1e999}', '{"step": null}',
     '{"hosts": "2"}', '{"hosts": 0}', '{"hosts": true}', '{"state": "\x1b[2J"}', '{"a": "' + "x" * 5000 + '"}'],
)  # fmt: skip
def test_a_status_of_another_form_is_no_answer(monkeypatch, capsys, line):
    monkeypatch.syspath_prepend(str(TPU))
    import slices

    fine = 'bertjax-status {"state": "running", "step": 3, "hosts": 2, "host": "a"}'
    monkeypatch.setattr(slices, "gcloud", lambda *words, **options: f"{fine}\nbertjax-status {line}\n")
    target = slices.Target("bert", "here", "", False, 1.0)
    assert slices.status(target) == [{"state": "running", "step": 3, "hosts": 2, "host": "a"}]
    assert "a worker answered" in capsys.readouterr().err


def test_object_names_that_are_no_steps_are_reported_and_ignored(cloud):  # noqa: F811
    for name in ("x", "²", "..x", "9" * 200, "\x1b[2J", "-1", "10"):
        cloud.bucket(f"checkpoints/{name}").mkdir(parents=True)
        cloud.bucket(f"checkpoints/{name}/commit_success.txt").touch()
    cloud.bucket("log.jsonl").write_text('{"step": 10}\n')
    out = cloud.watch("--delete", steps=20)
    assert "done at step 20, 0 restart(s)" in out
    assert json.loads(cloud.bucket("given.json").read_text())["began"] == 10
    done = cloud.run("slices.py", "fetch", "bert", *ZONE, cloud.folder / "here", "--gcs=gs://mine/run")
    assert "ignored 'x'" in done.stderr and done.stderr.replace("\n", "").isprintable()
    assert sorted(path.name for path in (cloud.folder / "here/work/checkpoints").iterdir()) == ["10", "20"]


@pytest.mark.parametrize("line", ["[]", '{"step": null}', '{"step": 1e999}', '{"step": "²"}', "[" * 30_000, "\xff"])
def test_a_log_of_another_form_has_no_step(monkeypatch, tmp_path, line):
    monkeypatch.syspath_prepend(str(TPU))
    import worker

    (tmp_path / "work/checkpoints/²").mkdir(parents=True)
    (tmp_path / "work/log.jsonl").write_text('{"step": 7}\n' + line + "\n")
    assert worker.status(tmp_path)["step"] == 7
    assert worker._checkpoints(str(tmp_path / "work")) == []


def locked(name):
    """Return the versions of a lock file by package, after checking its form."""
    text = (TPU / name).read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        pinned, *hashes = line.split()
        assert hashes and all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", each) for each in hashes), line
        package, version = pinned.split("==")
        found[canonicalize_name(package)] = version
    assert "make lock" in text and "://" not in text and "index" not in text
    return found


def test_the_lock_is_of_what_the_package_needs_on_tpus():
    setup = ConfigParser()
    setup.read("setup.cfg")
    extras = setup["options.extras_require"]
    needed = [setup["options"]["install_requires"], extras["tpu"], extras["wandb"], extras.get("gcs", "")]
    versions = locked("requirements.lock")
    wanted = [Requirement(line) for text in needed for line in text.splitlines() if line and not line.startswith("#")]
    assert len(wanted) > 15
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(versions[name]), f"{requirement}: make lock"
    assert versions["libtpu"] and versions["setuptools"] == locked("tools.lock")["setuptools"]
    environment = {"python_version": "3.12", "sys_platform": "linux", "platform_machine": "x86_64", "extra": ""}
    checked = 0
    for name, version in versions.items():  # nothing that these need is missing
        with contextlib.suppress(metadata.PackageNotFoundError):
            if metadata.version(name) == version:
                for line in metadata.requires(name) or []:
                    requirement = Requirement(line)
                    if requirement.marker is None or requirement.marker.evaluate(environment):
                        assert canonicalize_name(requirement.name) in versions, f"{name} needs {requirement}: make lock"
                        checked += 1
    assert checked > 20


def test_workers_install_only_what_is_locked(monkeypatch):
    monkeypatch.syspath_prepend(str(TPU))
    import slices

    installs = [part for part in slices.INSTALL.split(" && ") if "pip install" in part]
    assert len(installs) == 4 and all("--require-hashes" in part or "--offline" in part for part in installs)
    assert all("--no-deps" in part for part in installs) and "[tpu]" not in slices.INSTALL
    assert re.fullmatch(r"3\.12\.\d+", slices.PYTHON) and slices.INSTALL.count(f"--python {slices.PYTHON}") == 1
    assert {"requirements.lock", "tools.lock"} == set(re.findall(r"bertjax/tpu/(\S+lock)", slices.INSTALL))


def test_the_manifest_for_kubernetes_gives_pods_no_more_than_they_need():
    network, job = yaml.safe_load_all((TPU / "jobset.yaml").read_text())
    (slices,) = job["spec"]["replicatedJobs"]
    pod = slices["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False and "hostNetwork" not in pod
    assert re.fullmatch(r"\w+@sha256:\w+", container["image"])
    context = container["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["SYS_RESOURCE"]} and "privileged" not in context
    assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
    places = {volume["name"]: set(volume) - {"name"} for volume in pod["volumes"]}
    assert set().union(*places.values()) == {"emptyDir"}
    variables = {each["name"]: each for each in container["env"]}
    assert variables["JAX_COMPILATION_CACHE_DIR"]["value"].startswith("/scratch/")
    assert "secretKeyRef" in variables[TOKEN]["valueFrom"]
    (inward,) = network["spec"]["ingress"]
    ours = {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": job["metadata"]["name"]}}
    assert inward == {"from": [{"podSelector": ours}]} and network["spec"]["podSelector"] == ours
    blocks = [to["ipBlock"] for rule in network["spec"]["egress"] for to in rule["to"] if "ipBlock" in to]
    assert all("except" in block or block["cidr"].endswith("/32") for block in blocks) and len(blocks) == 4
