"""The scripts of tpu/ against a cloud that is a folder: a stand-in `gcloud` creates, preempts and loses slices.

A worker is a folder that serves as its home: what ssh runs there runs here. Trainings are real processes.
"""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TPU = Path("tpu").absolute()
ZONE = ["--zone", "here"]

GCLOUD = """
import json, os, pathlib, re, shutil, subprocess, sys, time
cloud = pathlib.Path(os.environ["CLOUD"])
words = sys.argv[1:]
with (cloud / "calls").open("a") as calls:
    calls.write(" ".join(words) + "\\n")
flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)

def local(path):
    return cloud / "buckets" / path[5:] if path.startswith("gs://") else pathlib.Path(path)

def fail(text):
    sys.exit("ERROR: " + text)

def plan(name):  # a file of lines, each for one call
    path = cloud / name
    lines = path.read_text().splitlines() if path.exists() else []
    if lines:
        path.write_text("\\n".join(lines[1:]))
        return lines[0]
    return ""

def storage(verb, *rest):
    if verb == "rsync":
        source, target = (local(word) for word in rest if not word.startswith("--"))
        for path in source.rglob("*"):
            name = str(path.relative_to(source))
            if path.is_file() and not ("exclude" in flags and re.match(flags["exclude"], name)):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target / name)
    elif verb == "ls":
        folder, pattern = rest[0].split("/*")
        found = sorted(local(folder).glob("*" + pattern))
        print("\\n".join("gs://" + str(path.relative_to(cloud / "buckets")) for path in found))
        if not found:
            fail("One or more URLs matched no objects.")

if words[0] == "storage":
    storage(*words[1:])
    sys.exit()

group, verb, name = words[2], words[3], words[4]
path = cloud / "slices" / name.removesuffix(":") / "slice.json"
if verb == "create":
    why = plan("create")
    if why and why != "ok":
        fail(why)
    if path.exists():
        fail("ALREADY_EXISTS")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"state": "PROVISIONING", "type": flags["accelerator-type"],
                                "nodes": int(flags.get("node-count", 1)), "workers": int(os.environ["WORKERS"])}))
    sys.exit()
scp = [word for word in words if re.match(r"[\\w-]+:", word) and not word.startswith("--")]
if verb == "scp":
    path = cloud / "slices" / scp[0].split(":")[0] / "slice.json"
if group == "tpu-vm":
    path = cloud / "slices" / name.split("-")[0] / "slice.json"
if not path.exists():
    fail("NOT_FOUND: no resource " + name)
there = json.loads(path.read_text())
homes = [path.parent / f"worker-{number}" for number in range(there["nodes"] * there["workers"])]

def preempt(state):
    for home in homes:
        for record in home.glob("bertjax-runs/*/state.json"):
            found = json.loads(record.read_text())
            try:
                os.killpg(found["supervisor"], 9)
            except ProcessLookupError:
                pass
        shutil.rmtree(home, ignore_errors=True)
    path.write_text(json.dumps(there | {"state": state}))

if verb == "describe" and group == "tpu-vm":
    addresses = [{"ipAddress": f"10.0.0.{number}"} for number in range(there["workers"])]
    print(json.dumps({"state": there.get("node", "READY"), "networkEndpoints": addresses}))
elif verb == "describe" and flags["format"] == "json":
    kind = {"node": {"acceleratorType": there["type"]}}
    several = {"multisliceParams": {"nodeCount": there["nodes"], "nodeIdPrefix": name}}
    print(json.dumps({"tpu": {"nodeSpec": [kind | (several if there["nodes"] > 1 else {"nodeId": name})]}}))
elif verb == "describe":
    state = plan("states") or "ACTIVE"
    if state == "SUSPENDED":
        while not (local("gs://mine/run/checkpoints/10/commit_success.txt")).exists():
            time.sleep(0.02)
        preempt(state)
    elif there["state"] != "SUSPENDED":
        path.write_text(json.dumps(there | {"state": state}))
        for home in homes * (state == "ACTIVE"):
            home.mkdir(exist_ok=True)
    print(json.loads(path.read_text())["state"])
elif verb == "delete":
    assert "--force" in words and "--quiet" in words
    preempt("gone")
    shutil.rmtree(path.parent)
elif verb == "scp" and "--recurse" in words:
    source = homes[0] / words[4].split(":")[1]
    shutil.copytree(source, pathlib.Path(words[5]) / source.name)
elif verb == "scp":
    for home in homes:
        shutil.copy(next(word for word in words if word.startswith("/")), home)
elif verb == "ssh":
    if plan("ssh") == "dead":
        homes = homes[:-1]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    codes = [
        subprocess.run(["bash", "-c", flags["command"]], cwd=home, env=environment | {"HOME": str(home)}).returncode
        for home in (homes if flags["worker"] == "all" else homes[:1])
    ]
    sys.exit(max(codes))
"""

TRAINER = '''
"""Train: ten steps to a checkpoint, from the newest one on, as far as the file `lives` lets this life."""
import json, os, pathlib, resource, shutil, signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
place = sys.argv[sys.argv.index("--workdir") + 1]
cloudy = place.startswith("gs://")
work = pathlib.Path(os.environ["CLOUD"]) / "buckets" / place[5:] if cloudy else pathlib.Path(place)
logs = pathlib.Path(os.environ["TMPDIR"]) / "bertjax-run-x" if cloudy else work
end = int(next(word for word in sys.argv if word.startswith("steps=")).split("=")[1])
(work / "checkpoints").mkdir(parents=True, exist_ok=True)
while not os.environ["HOME"].endswith("worker-0"):  # the others compute with the first, which writes
    time.sleep(0.01)
    if stopped or list(work.glob("ended-*")):
        sys.exit(143 if stopped else 0)
logs.mkdir(exist_ok=True)
step = max((int(path.name) for path in (work / "checkpoints").iterdir() if path.name in ("10", "20", "30")), default=0)
(work / "given.json").write_text(json.dumps({
    "began": step, "words": sys.argv[1:], "flags": os.environ["LIBTPU_INIT_ARGS"],
    "stack": resource.getrlimit(resource.RLIMIT_STACK),
    "cache": os.environ["JAX_COMPILATION_CACHE_DIR"]}))
lives = pathlib.Path(os.environ["CLOUD"]) / "lives"
lines = lives.read_text().splitlines()
limit, code = map(int, lines[0].split())
lives.write_text("\\n".join(lines[1:] or lines))
print(f"from step {step}", flush=True)
def save():
    partial = work / f"checkpoints/{step}.orbax-checkpoint-tmp"
    partial.mkdir()
    (partial / "params").write_text(str(step))
    (partial / "commit_success.txt").touch()
    partial.rename(work / f"checkpoints/{step}")
    shutil.rmtree(work / f"checkpoints/{step - 20}", ignore_errors=True)
    if cloudy:
        shutil.copy(logs / "log.jsonl", work)
while step < min(end, limit):
    step += 1
    with (logs / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": step}) + "\\n")
    if step % 10 == 0:
        save()
if code == 0 and step < end:  # hangs there until it is stopped
    while not stopped:
        time.sleep(0.01)
    code = 143
(work / f"ended-{code}").touch()
sys.exit(code)
'''

PYTHON = f"""#!/bin/sh
case "$*" in
    "-m uv venv"*) mkdir -p bertjax-venv/bin
        printf '#!/bin/sh\\nexec {sys.executable} -S "$CLOUD/trainer.py" "$@"\\n' > bertjax-venv/bin/bertjax
        printf '#!/bin/sh\\necho "--flags $*"\\n' > bertjax-venv/bin/python
        chmod +x bertjax-venv/bin/*; exit 0;;
    "-m pip"*|"-m uv"*) exit 0;;
esac
exec {sys.executable} -S "$@"
"""


class Cloud:
    def __init__(self, folder, monkeypatch):
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        (folder / "gcloud.py").write_text(GCLOUD)
        (folder / "trainer.py").write_text(TRAINER)
        for name, text in {
            "gcloud": f'#!/bin/sh\nexec {sys.executable} -S {folder / "gcloud.py"} "$@"\n',
            "python3": PYTHON,
            "sudo": f'#!/bin/sh\necho "$@" >> {folder / "sudo"}\n',
        }.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        monkeypatch.setenv("CLOUD", str(folder))
        monkeypatch.setenv("WORKERS", "1")
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        self.plan(lives=["1000 0"])

    def plan(self, **lines):
        for name, each in lines.items():
            (self.folder / name).write_text("\n".join(each))

    def run(self, script, *words, code=0):
        command = [sys.executable, "-S", str(TPU / script), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def watch(self, *words, steps=30, code=0, **named):
        options = [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]
        return self.run("watch.py", "bert", *ZONE, "--type=v5litepod-16", "--interval=0.05", "--gcs=gs://mine/run",
                        *options, *words, "--", "experiments/bert.py", f"steps={steps}",
                        code=code).stdout  # fmt: skip

    def calls(self, pattern):
        return re.findall(pattern, (self.folder / "calls").read_text())

    def bucket(self, name):
        return self.folder / "buckets/mine/run" / name

    def close(self):
        for record in self.folder.glob("slices/*/worker-*/bertjax-runs/*/state.json"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(json.loads(record.read_text())["supervisor"], signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    made = Cloud(tmp_path, monkeypatch)
    yield made
    made.close()


def test_a_run_without_quota_at_first_and_preempted_later_ends_as_any_other(cloud, tmp_path):
    cloud.plan(create=["RESOURCE_EXHAUSTED: Quota limit 'TPUV5s' has been exceeded. Limit: 16 in zone here.", "ok"],
               states=["ACTIVE", "PROVISIONING", *["ACTIVE"] * 8, "SUSPENDED"], lives=["15 0", "1000 0"])  # fmt: skip
    out = cloud.watch("--delete", "--spot", "--env=A=b", corpus="gs://mine/wiki")
    assert "Quota limit 'TPUV5s' has been exceeded" in out and "the slice is SUSPENDED" in out
    assert "done at step 30, 2 restart(s)" in out
    created = cloud.calls("queued-resources create .*")
    assert len(created) == 3 and set(created) == {
        "queued-resources create bert --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite "
        "--node-id=bert --spot --zone=here"
    }
    given = json.loads(cloud.bucket("given.json").read_text())
    home = str(cloud.folder / "slices/bert/worker-0")
    assert given["words"] == ["pretrain", "experiments/bert.py", "steps=30", "data=gs://mine/wiki",
                              "--workdir", "gs://mine/run"]  # fmt: skip
    assert given["flags"] == "--flags -P -m bertjax.machine.xla_flags v5e --slices 1" and given["began"] == 10
    soft, most = given["stack"]
    assert soft == most or most != resource.RLIM_INFINITY
    assert given["cache"] == f"{home}/bertjax-runs/bert/cache"
    assert sorted(path.name for path in cloud.bucket("checkpoints").iterdir()) == ["20", "30"]
    assert not (cloud.folder / "sudo").exists()
    cloud.bucket("checkpoints/40").mkdir()  # not finished
    cloud.bucket("checkpoints/40/params").touch()
    assert not (cloud.folder / "slices/bert").exists()
    cloud.run("slices.py", "fetch", "bert", *ZONE, tmp_path / "here", "--gcs=gs://mine/run")
    assert sorted(path.name for path in (tmp_path / "here/work/checkpoints").iterdir()) == ["20", "30"]
    assert (tmp_path / "here/work/checkpoints/30/params").read_text() == "30"
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["work"]


def test_a_dead_worker_has_its_slice_replaced(cloud, monkeypatch):
    monkeypatch.setenv("WORKERS", "2")
    cloud.plan(ssh=["", "", "", "dead", "dead"], lives=["15 0", "1000 0"])
    out = cloud.watch(looks=2)
    assert "not all workers answered, 2 times" in out and "done at step 30, 1 restart(s)" in out


def test_permanent_errors_of_gcloud_are_not_retried(cloud):
    cloud.plan(create=["PERMISSION_DENIED: tpu.nodes.create"])
    assert "PERMISSION_DENIED" in cloud.watch(code=2) and len(cloud.calls("resources create")) == 1


def test_several_hosts_work_in_one_folder_of_cloud_storage(cloud, monkeypatch):
    monkeypatch.setenv("WORKERS", "2")
    target = ["bert", *ZONE]
    cloud.run("slices.py", "create", *target, "--type=v4-16", "--slices=2")
    assert "--node-count=2 --node-prefix=bert" in cloud.calls("create .*")[0]
    assert cloud.run("slices.py", "state", *target).stdout == "ACTIVE\n"
    cloud.run("slices.py", "install", *target)
    words = ["run", *target, "--env=LIBTPU_INIT_ARGS=mine"]
    refused = cloud.run("slices.py", *words, "--", "e.py", "steps=0", code=2)
    assert "bert has 4 workers: they need --gcs" in refused.stderr
    cloud.run("slices.py", *words, "--gcs=gs://mine/run/", "--", "e.py", "steps=0")
    start = cloud.calls(r"worker.py start .*")[0]
    assert "--generation=v4 --hosts=4 --slices=2 --gcs=gs://mine/run " in start
    while True:
        statuses = [json.loads(line) for line in cloud.run("slices.py", "status", *target).stdout.splitlines()]
        if all(each["state"] == "ended" for each in statuses):
            break
    assert len(statuses) == 4 and {each["code"] for each in statuses} == {0}
    assert json.loads(cloud.bucket("given.json").read_text())["flags"] == "mine"
    assert not (cloud.folder / "sudo").exists()


@pytest.mark.parametrize("place", [[], ["--gcs=gs://mine/run"]])
def test_a_run_is_stopped_after_a_checkpoint_and_copied(cloud, place):
    cloud.plan(lives=["15 0"])
    target = ["bert", *ZONE]
    for words in (["create", *target, "--type=v3-8"], ["state", *target], ["install", *target]):
        cloud.run("slices.py", *words)
    cloud.run("slices.py", "run", *target, *place, "--", "e.py", "steps=99")
    while '"step": 15' not in cloud.run("slices.py", "status", *target).stdout:
        pass
    cloud.run("slices.py", "stop", *target)
    assert '"code": 143' in (found := cloud.run("slices.py", "status", *target).stdout) and '"step": 15' in found
    if place:
        assert len(cloud.bucket("log.jsonl").read_bytes().split()) == 20
    cloud.run("slices.py", "fetch", *target, cloud.folder / "here", *place)
    assert (cloud.folder / "here/work/checkpoints/10/params").read_text() == "10"
    assert (cloud.folder / "here/work/log.jsonl").exists()
    cloud.run("slices.py", "delete", *target)
    assert "NOT_FOUND" in cloud.run("slices.py", "status", *target, code=2).stderr


def test_a_dry_run_prints_every_command_and_runs_none(cloud):
    done = cloud.run("watch.py", "bert", *ZONE, "--type=v6e-16", "--dry-run", "--", "e.py", "steps=1")
    commands = [line[2:] for line in done.stderr.splitlines() if line.startswith("+ ")]
    assert {command.split()[4] for command in commands if command.startswith("gcloud")} >= {
        "create", "describe", "ssh", "scp", "delete"
    }  # fmt: skip
    assert not (cloud.folder / "calls").exists()
    for words in (["logs", "bert"], ["fetch", "bert", "x", "--gcs=gs://b/r"], ["doctor", "bert"]):
        assert cloud.run("slices.py", *words[:2], *ZONE, "--dry-run", *words[2:]).stderr.startswith("+ gcloud")
    assert not (cloud.folder / "calls").exists()


class Script:
    """What a slice answers, look by look, in place of `slices`."""

    def __init__(self, monkeypatch, looks):
        monkeypatch.syspath_prepend(str(TPU))
        import watch

        self.module, self.looks, self.done = watch, list(looks), []
        for name in ("install", "stop", "delete"):
            monkeypatch.setattr(watch.slices, name, lambda target, name=name: self.done.append(name))
        monkeypatch.setattr(watch.slices, "state", lambda target: "ACTIVE")
        monkeypatch.setattr(watch.slices, "status", self.status)
        self.clock = 0.0
        monkeypatch.setattr(watch.time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(watch.time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.clock += seconds

    def status(self, target):
        look = self.looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return look

    def watch(self, *, delete=False, **patience):
        target = self.module.Target("bert", "here", "", False, 1.0)
        wanted = self.module.Patience(**{"interval": 60, "restarts": 2, "looks": 2, "stall": 3600} | patience)
        run = lambda: self.done.append("run")  # noqa: E731
        return self.module.watch(
            target, create=lambda: self.done.append("create"), run=run, patience=wanted, delete=delete
        )


ABSENT = [{"state": "absent", "step": -1}]


def look(state, step, code=None, hosts=1):
    one = {"state": state, "step": step, "hosts": hosts}
    return [one if code is None else one | {"code": code}]


def test_restarts_are_granted_only_for_progress(monkeypatch):
    crashes = [look("ended", step, code=70) for step in (10, 20, 30)]
    script = Script(monkeypatch, [ABSENT, *crashes, look("ended", 40, code=0)])
    assert script.watch() == 0 and script.done == ["install", "run", *["stop", "install", "run"] * 3]
    script = Script(monkeypatch, [ABSENT, look("running", 5), *[look("ended", 5, code=70)] * 9])
    assert script.watch() == 1 and script.done.count("run") == 3


def test_a_mistake_and_a_diverged_run_are_not_tried_again(monkeypatch, capsys):
    script = Script(monkeypatch, [ABSENT, look("ended", 9, code=1)])
    assert script.watch() == 1 and script.done == ["install", "run"] and "diverged" in capsys.readouterr().out
    script = Script(monkeypatch, [ABSENT, look("ended", -1, code=2)])
    assert script.watch() == 2 and script.done == ["install", "run"]
    assert "a mistake in the command" in capsys.readouterr().out


def test_exit_code_2_is_a_mistake_only_if_no_host_failed_otherwise(monkeypatch):
    judge = Script(monkeypatch, []).module.judge

    def verdict(*codes):
        return judge([each for code in codes for each in look("running" if code is None else "ended", 3, code, 2)])

    assert verdict(2, 2) == verdict(2, 0) == verdict(1, 1) == "final" and verdict(0, 0) == "done"
    assert verdict(2, None) == judge(look("ended", 3, 2, 2) + look("starting", -1, None, 2)) == "running"
    assert verdict(2, 75) == verdict(2, 134) == verdict(None, 75) == verdict(75, 75) == verdict(143, 130) == "broken"
    assert judge(look("ended", 3, 2, 2) + look("lost", 3, None, 2)) == "broken"
    assert judge(look("ended", 3, 0, 2) + look("ended", 3, None, 2)) == "broken"


def test_a_mistake_that_shows_on_the_slice_says_that_it_is_billed(cloud, monkeypatch):
    monkeypatch.setenv("WORKERS", "2")
    target = ["bert", *ZONE, "--type=v5litepod-16", "--interval=0.05"]
    out = cloud.run("watch.py", *target, "--", "e.py", code=2).stdout
    assert "bert has 2 workers: they need --gcs" in out and "is billed, until: slices.py delete bert" in out
    cloud.run("watch.py", *target, "--gcs=mine/run", "--", "e.py", code=2)
    assert len(cloud.calls("queued-resources create")) == 1


def test_a_slice_that_cannot_be_deleted_is_named(monkeypatch, capsys):
    script = Script(monkeypatch, [])
    failing = []

    def delete(target):
        script.done.append("delete")
        if failing:
            raise failing.pop()

    monkeypatch.setattr(script.module.slices, "delete", delete)
    offline, gone = (script.module.CloudError(["delete"], 1, text) for text in ("Connection reset", "NOT_FOUND: bert"))
    refused = script.module.CloudError(["delete"], 1, "PERMISSION_DENIED")
    for errors, ending, times, code in (
        ([offline], 0, 2, 0), ([gone], 0, 1, 0), ([offline] * 2, 0, 2, 1), ([refused], 0, 1, 1), ([refused], 2, 1, 2)
    ):  # fmt: skip
        script.looks, script.done[:], failing[:] = [look("ended", 4, code=ending)], [], errors
        assert script.watch(delete=True) == code and script.done == ["delete"] * times
        said = capsys.readouterr().out
        assert ("still exists, and is billed, until: slices.py delete bert --zone here" in said) == (
            code == 1 or ending == 2
        )


def test_without_gcloud_it_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for words in (["state", "bert"], ["fetch", "bert", str(tmp_path), "--gcs=gs://b/r"], ["logs", "bert"]):
        command = [sys.executable, "-S", str(TPU / "slices.py"), *words, *ZONE]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and "gcloud is not installed, or not in PATH: https://" in done.stderr
        assert "Traceback" not in done.stderr
    monkeypatch.syspath_prepend(str(TPU))
    import slices

    with pytest.raises(slices.CloudError) as caught:
        slices.state(slices.Target("bert", "here", "", False, 1.0))
    assert caught.value.final


def test_a_hanging_run_is_restarted(monkeypatch):
    looks = [ABSENT, *[look("running", 7)] * 4, look("running", 8), look("ended", 9, code=0)]
    script = Script(monkeypatch, looks)
    assert script.watch(stall=150) == 0 and script.done == ["install", "run", "stop", "install", "run"]


def test_workers_that_are_lost_or_do_not_answer(monkeypatch):
    script = Script(monkeypatch, [])
    error = script.module.CloudError(["ssh"], 255, "Connection timed out")
    missing = look("running", 3, hosts=2)
    script.looks = [look("lost", 3), error, look("running", 3), error, missing, ABSENT, look("ended", 4, code=0)]
    assert script.watch() == 0
    assert script.done == ["stop", "install", "run", "delete", "install", "run"]
    assert script.module.judge(look("running", 1, hosts=2) + look("ended", 1, code=0, hosts=2)) == "running"
    assert script.module.judge(look("running", 1, hosts=2) + ABSENT) == "broken"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--type=v9-8"], "no accelerator type 'v9-8': v2-N"),
        (["--type=v3-32", "--slices=2"], "cannot be joined"),
    ],
)
def test_kinds_that_are_not_offered_are_named(cloud, words, message):
    assert message in cloud.run("slices.py", "create", "bert", *ZONE, *words, code=2).stderr
    assert not (cloud.folder / "calls").exists()


def test_the_page_names_commands_and_options_that_exist(cloud):
    text = (TPU / "README.md").read_text().replace("\\\n", " ")
    commands = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("python tpu/")]
    assert len(commands) >= 10
    for _, script, *words in commands:
        cloud.run(Path(script).name, *words[: words.index("--") if "--" in words else None], "--dry-run",
                  *(words[words.index("--") :] if "--" in words else []))  # fmt: skip
    assert not (cloud.folder / "calls").exists()


def test_the_worker_finds_the_log_of_a_run_in_cloud_storage(tmp_path, monkeypatch):
    """Where `bertjax.run.local_files` writes it: in a folder below TMPDIR."""
    monkeypatch.syspath_prepend(str(TPU))
    import worker

    (prefix,) = re.findall(r'mkdtemp\(prefix="([\w-]+)"\)', Path("bertjax/run/local_files.py").read_text())
    log = tmp_path / f"tmp/{prefix}abc/log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 12}\n{"step": 1')
    assert worker.status(tmp_path)["step"] == 12


def test_variables_are_deleted_also_where_the_run_is_refused(cloud):
    secrets, home = cloud.folder / "variables.json", {"HOME": str(cloud.folder)}
    for name, message in (("bert", "several hosts need one work directory"), ("a b", "is not a slice name")):
        secrets.write_text('{"A": "b"}')
        command = [sys.executable, "-S", str(TPU / "worker.py"), "start", name, "--hosts=2", "--generation=v4"]
        done = subprocess.run([*command, "--environment=variables.json", "e.py"], env=os.environ | home, text=True,
                              capture_output=True)  # fmt: skip
        assert done.returncode and message in done.stderr and not secrets.exists()


@pytest.fixture
def stubborn(tmp_path, monkeypatch):
    """A training that ignores SIGTERM, and whose supervisor is gone; the state of its run, and its process."""
    monkeypatch.syspath_prepend(str(TPU))
    import worker

    trains = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(100)"
    supervises = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', {trains!r}]); print(p.pid)"
    command = [sys.executable, "-S", "-c", supervises]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) as gone:
        child = int("".join(gone.stdout.readline() for _ in range(2)))
    state = {"state": "running", "supervisor": gone.pid, "child": child, "child_started": ticks(child)}
    worker._record(tmp_path, **state)
    yield worker, state
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def ticks(process):
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[19])


def runs(process):
    path = Path(f"/proc/{process}/stat")
    return path.exists() and path.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_training_without_a_supervisor_is_killed_after_the_seconds(stubborn, tmp_path):
    worker, state = stubborn
    assert worker.status(tmp_path)["state"] == "lost" and runs(state["child"])
    begun = time.monotonic()
    assert worker.stop(tmp_path, 0.3) == 0 and time.monotonic() - begun >= 0.3 and not runs(state["child"])
    assert worker.stop(tmp_path, 0.3) == 0


def test_a_process_that_has_the_number_of_a_former_run_is_left_alone(stubborn, tmp_path):
    worker, state = stubborn
    worker._record(tmp_path, **state | {"child_started": state["child_started"] - 1})
    assert worker.stop(tmp_path, 0.1) == 0 and runs(state["child"])
