"""Run on every worker of a TPU slice: start a training, copy its work directory to Cloud Storage, report its status.

Started by slices.py over ssh; needs only Python 3.10, which TPU VMs have. In the home folder:

    bertjax/                 the code                  bertjax-venv/   its virtual environment
    bertjax-data/CORPUS/     copied from --corpus, on every worker
    bertjax-runs/NAME/       output.log, state.json
    bertjax-runs/NAME/cache/ compiled programs: JAX runs them, so this machine alone writes there
    bertjax-runs/NAME/share/ work/, on worker 0; the others mount it over NFS, since all hosts write to one checkpoint
                             and need the same folder. It is exported to their addresses, while the run goes on

No other user of the machine can read these folders.

bertjax reads and writes local folders, not gs:// paths. So worker 0 copies from --gcs before the run, and to it every
--push-seconds and at the end. A checkpoint in the bucket is valid only with the marker `complete/STEP`, which is
written last and deleted first: a worker that dies during a copy leaves no checkpoint that looks complete.
"""

import argparse
import contextlib
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from words import checked, ip_address, printable, steps_among

SETUP_FAILED = 75  # exit code of a run that did not start: EX_TEMPFAIL of sysexits.h


def main() -> int:
    """Run one command."""
    options = _parse()
    run = Path.home() / "bertjax-runs" / checked("slice name", options.name)
    os.umask(0o077)  # what a run writes is of this user alone
    if options.command == "start":
        return start(run, options)
    if options.command == "supervise":
        return supervise(run, options)
    if options.command == "stop":
        return stop(run, options.seconds)
    print("bertjax-status " + json.dumps(status(run)), flush=True)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run on a worker of a TPU slice; see slices.py.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "supervise"):
        command = commands.add_parser(name)
        command.add_argument("name")
        command.add_argument("--addresses", required=True, help="of all workers, that of worker 0 of slice 0 first")
        command.add_argument("--slices", type=int, default=1)
        command.add_argument("--generation", required=True)
        command.add_argument("--gcs", default="")
        command.add_argument("--corpus", default="")
        command.add_argument("--push-seconds", type=float, default=300.0)
        command.add_argument("--mount-seconds", type=float, default=900.0)
        command.add_argument("--environment", default="", help="a file of variables, as JSON; it is deleted")
        command.add_argument("words", nargs="+")
    for name in ("status", "stop"):
        command = commands.add_parser(name)
        command.add_argument("name")
        command.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    if "addresses" in options:
        options.addresses = [ip_address(each) for each in options.addresses.split(",")]
    return options


def start(run: Path, options: argparse.Namespace) -> int:
    """Start `supervise` with the same arguments in a new session, which outlives the ssh connection."""
    if status(run)["state"] in ("starting", "running"):
        print(f"{run.name} is running already", file=sys.stderr)
        return 2
    run.mkdir(parents=True, exist_ok=True)
    run.chmod(0o700)
    (run / "state.json").unlink(missing_ok=True)
    variables = "{}"
    if options.environment:
        path = Path.home() / options.environment
        variables = path.read_text()
        path.unlink()
    words = [sys.executable, __file__, "supervise", *sys.argv[2:]]
    with (run / "output.log").open("a") as log:
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
    assert child.stdin is not None
    with (
        contextlib.suppress(BrokenPipeError),
        child.stdin as pipe,
    ):  # others may read arguments, and the variables of the supervisor go to gcloud too
        pipe.write(variables.encode())
    while not (run / "state.json").exists() and child.poll() is None:
        time.sleep(0.01)
    if child.poll():
        print(printable((run / "output.log").read_text(errors="replace")[-2000:]), file=sys.stderr)
    return child.poll() or 0


def supervise(run: Path, options: argparse.Namespace) -> int:
    """Prepare folders, train, copy to Cloud Storage meanwhile, and record the exit code."""
    variables = json.load(sys.stdin)
    hosts = len(options.addresses)
    known = {"supervisor": os.getpid(), "hosts": hosts}
    _record(run, state="starting", **known)
    # A machine that shuts down signals the training too: stay alive to copy the checkpoint that it saves.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    primary = hosts == 1 or options.addresses[0] in _output("hostname", "-I").split()
    share, code = run / "share", SETUP_FAILED
    try:
        corpus = prepare(run, options, primary=primary)
        command = [str(Path.home() / "bertjax-venv/bin/bertjax"), "pretrain", *options.words]
        command += [f"data={corpus}"] * bool(corpus) + ["--workdir", str(share / "work")]
        _say(command)
        variables = environment(options, run / "cache", variables)
        child = subprocess.Popen(command, cwd=Path.home() / "bertjax", env=variables, stdin=subprocess.DEVNULL,
                                 preexec_fn=_before_exec)  # fmt: skip
        _record(run, state="running", child=child.pid, **known)
        while True:
            try:
                code = child.wait(options.push_seconds)
                break
            except subprocess.TimeoutExpired:
                if primary and options.gcs:
                    _try_to_push(share, options.gcs)
        if primary and options.gcs and not _try_to_push(share, options.gcs) and code == 0:
            code = SETUP_FAILED  # done, but the last copy failed
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"worker: {error}", file=sys.stderr, flush=True)
    if hosts > 1:
        part(share, primary=primary)
    _record(run, state="ended", code=code if code >= 0 else 128 - code, **known)
    return 0


def _before_exec() -> None:
    """Restore SIGTERM for the training, and lift the stack limit, which libtpu would exceed on some programs."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if resource.getrlimit(resource.RLIMIT_STACK)[1] == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def prepare(run: Path, options: argparse.Namespace, *, primary: bool) -> str:
    """Create the folders of a run, shared among hosts and filled from Cloud Storage. Returns the path of the corpus."""
    share, hosts = run / "share", options.addresses
    share.mkdir(exist_ok=True)
    (run / "cache").mkdir(exist_ok=True)
    if primary:
        (share / "work").mkdir(exist_ok=True)
        if options.gcs:
            pull(share, options.gcs)
        if len(hosts) > 1:
            export(share, hosts[1:])
    elif not os.path.ismount(share):
        mount(share, hosts[0], options.mount_seconds)
    if not options.corpus:
        return ""
    corpus = Path.home() / "bertjax-data" / options.corpus.rstrip("/").split("/")[-1]
    corpus.mkdir(parents=True, exist_ok=True)
    _run("gcloud", "storage", "rsync", "--recursive", options.corpus.rstrip("/"), str(corpus))
    return str(corpus)


def environment(options: argparse.Namespace, cache: Path, variables: dict[str, str]) -> dict[str, str]:
    """Return the environment of the run: the user's variables, the published flags of libtpu, the compilation cache."""
    variables = os.environ | variables
    if "LIBTPU_INIT_ARGS" not in variables:
        python = str(Path.home() / "bertjax-venv/bin/python")
        words = [python, "-m", "bertjax.machine.xla_flags", options.generation, "--slices", str(options.slices)]
        variables["LIBTPU_INIT_ARGS"] = _output(*words).strip()
    variables.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    return variables


def export(share: Path, addresses: list[str]) -> None:
    """Export the folder over NFS to the other workers, and to nobody else; they write as this user."""
    _run("sudo", "apt-get", "install", "--yes", "--quiet", "nfs-kernel-server")
    withdraw()  # what a run has left that was killed
    options = f"rw,sync,no_subtree_check,all_squash,anonuid={os.getuid()},anongid={os.getgid()}"
    _run("sudo", "exportfs", "-o", options, *(f"{address}:{share}" for address in addresses))


def withdraw() -> None:
    """Withdraw all exports that no file of /etc lists: those of runs."""
    _run("sudo", "exportfs", "-r")


def part(share: Path, *, primary: bool) -> None:
    """Withdraw the export, or unmount it, after the run; a failure is reported: the next start withdraws it too."""
    try:
        if primary:
            withdraw()
        elif os.path.ismount(share):
            _run("sudo", "umount", "--lazy", str(share))
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"worker: {error}", file=sys.stderr, flush=True)


def mount(share: Path, primary: str, seconds: float) -> None:
    """Mount the folder of worker 0, retrying until it is exported, after its copy from Cloud Storage."""
    _run("sudo", "apt-get", "install", "--yes", "--quiet", "nfs-common")
    end = time.monotonic() + seconds
    while True:
        try:
            return _run("sudo", "mount", "-t", "nfs", "-o", "vers=4,hard", f"{primary}:{share}", str(share))
        except subprocess.CalledProcessError:
            if time.monotonic() > end:
                raise
            time.sleep(min(10, seconds))


def pull(share: Path, gcs: str) -> None:
    """Copy a run from Cloud Storage, with those of its checkpoints that are complete.

    Does nothing if this disk has a checkpoint as new, as after a reboot: its log is newer.
    """
    here, there = _steps(share / "work"), _complete(gcs)
    if (here and here[-1] >= max(there, default=-1)) or not _listed(gcs):
        return
    exclude = r"^(work/checkpoints|complete|cache)/.*"
    _run("gcloud", "storage", "rsync", "--recursive", f"--exclude={exclude}", gcs, str(share))
    for step in there:
        folder = share / f"work/checkpoints/{step}"
        if not folder.exists():
            partial = share / "work/pulled.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _run("gcloud", "storage", "rsync", "--recursive", f"{gcs}/work/checkpoints/{step}", str(partial))
            folder.parent.mkdir(exist_ok=True)
            partial.rename(folder)


def push(share: Path, gcs: str) -> None:
    """Copy a run to Cloud Storage, and delete checkpoints there that are deleted here.

    The log is copied first, so that it has every step before a checkpoint.
    """
    here, there = _steps(share / "work"), _complete(gcs)
    exclude = r"^work/(checkpoints/.*|lock|pulled\.partial/.*)"
    _run("gcloud", "storage", "rsync", "--recursive", f"--exclude={exclude}", str(share), gcs)
    for step in here:
        if step not in there:
            _run("gcloud", "storage", "rsync", "--recursive", str(share / f"work/checkpoints/{step}"),
                 f"{gcs}/work/checkpoints/{step}")  # fmt: skip
            _run("gcloud", "storage", "cp", "-", f"{gcs}/complete/{step}", text=str(step))
    for step in there:
        if step not in here:
            _run("gcloud", "storage", "rm", f"{gcs}/complete/{step}")
            _run("gcloud", "storage", "rm", "--recursive", f"{gcs}/work/checkpoints/{step}")


def _try_to_push(share: Path, gcs: str) -> bool:
    """Copy the run to Cloud Storage, and report a failure: the next copy may succeed. Returns whether it did."""
    try:
        push(share, gcs)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"worker: not copied to {gcs}: {error}", file=sys.stderr, flush=True)
        return False
    return True


def status(run: Path) -> dict[str, object]:
    """Return the state of the run on this worker, absent, starting, running, ended or lost, and its last step.

    The step is that of the newest checkpoint or log line, -1 without any; lost: it ended without recording a code.
    """
    found: dict[str, object] = {"host": os.uname().nodename, "state": "absent", "step": _last_step(run / "share/work")}
    path = run / "state.json"
    if not path.exists():
        return found
    state = json.loads(path.read_text())
    found |= {"state": state["state"]} | {key: state[key] for key in ("code", "hosts") if key in state}
    if state["state"] != "ended" and not (state["boot"] == _boot() and _alive(state["supervisor"])):
        found["state"] = "lost"
    return found


def stop(run: Path, seconds: float) -> int:
    """Stop the training after a checkpoint, wait for its copy, and kill the run after `seconds`."""
    path = run / "state.json"
    if not path.exists():
        return 0
    state = json.loads(path.read_text())
    if state["state"] not in ("starting", "running") or state["boot"] != _boot():
        return 0
    if "child" in state and _alive(state["child"]):
        os.kill(state["child"], signal.SIGTERM)
        end = time.monotonic() + seconds
        while _alive(state["supervisor"]) and time.monotonic() < end:
            time.sleep(0.1)
    if _alive(state["supervisor"]):
        os.killpg(state["supervisor"], signal.SIGKILL)  # the leader of the session of the training
        if state["hosts"] > 1 and shutil.which("exportfs"):
            withdraw()
    return 0


def _record(run: Path, **state: object) -> None:
    partial = run / "state.json.partial"
    partial.write_text(json.dumps(state | {"boot": _boot()}))
    partial.replace(run / "state.json")


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _steps(work: Path) -> list[int]:
    folder = work / "checkpoints"
    return steps_among(path.name for path in folder.iterdir())[0] if folder.is_dir() else []


def _last_step(work: Path) -> int:
    try:
        return max([_last_logged(work / "log.jsonl"), *_steps(work)])
    except OSError:  # worker 0 has withdrawn the folder
        return -1


def _last_logged(log: Path) -> int:
    if not log.exists():
        return -1
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2**16))
        lines = file.read().splitlines()[-2:]  # the last may be incomplete
    steps = [-1]
    for line in lines:
        try:
            steps.append(int(json.loads(line)["step"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return max(steps)


def _complete(gcs: str) -> list[int]:
    """Return the steps whose checkpoints in Cloud Storage are complete; other names are reported, and ignored."""
    steps, others = steps_among(line.removeprefix(f"{gcs}/complete/") for line in _listed(f"{gcs}/complete"))
    for name in others:
        print(f"worker: ignored {name!a} in {gcs}/complete", file=sys.stderr, flush=True)
    return steps


def _listed(gcs: str) -> list[str]:
    """List the objects under an address, maybe none. Raises CalledProcessError if the listing fails."""
    words = ["gcloud", "storage", "ls", f"{gcs}/**"]
    _say(words)
    found = subprocess.run(words, capture_output=True, text=True)
    if found.returncode and "matched no objects" not in found.stderr:
        raise subprocess.CalledProcessError(found.returncode, words, found.stdout, found.stderr)
    return [line for line in found.stdout.splitlines() if line.startswith("gs://")]


def _run(*words: str, text: str = "") -> None:
    _say(words)
    subprocess.run(words, check=True, input=text, text=True)


def _output(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _say(words: list[str] | tuple[str, ...]) -> None:
    print("+", printable(shlex.join(words)), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
