"""Run on every worker of a TPU slice: start a training, report its status, stop it.

Started by slices.py over ssh; needs only Python 3.10, which TPU VMs have. In the home folder:

    bertjax/                 the code                  bertjax-venv/   its virtual environment
    bertjax-runs/NAME/       output.log, state.json
    bertjax-runs/NAME/work/  the work directory of a run on one worker, unless it is in Cloud Storage
    bertjax-runs/NAME/cache/ compiled programs: JAX runs them, so this machine alone writes there
    bertjax-runs/NAME/tmp/   logs of a run in Cloud Storage, until they are uploaded

No other user of the machine can read a run. bertjax reads and writes gs:// itself, so nothing is copied here.
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

from words import checked, printable, steps_among

SETUP_FAILED = 75  # exit code of a run that did not start: EX_TEMPFAIL of sysexits.h
KILL_SECONDS = 30.0  # for the system to end killed processes, which let go of their chips first


def main() -> int:
    """Run one command."""
    options = _parse()
    variables = _taken(options.environment) if options.command == "start" else "{}"  # before anything is refused
    run = Path.home() / "bertjax-runs" / checked("slice name", options.name)
    os.umask(0o077)  # what a run writes is of this user alone
    if options.command == "start":
        return start(run, options, variables)
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
        command.add_argument("--hosts", type=int, required=True)
        command.add_argument("--slices", type=int, default=1)
        command.add_argument("--generation", required=True)
        command.add_argument("--gcs", default="", help="the work directory, which several hosts need")
        command.add_argument("--environment", default="", help="a file of variables, as JSON; it is deleted")
        command.add_argument("words", nargs="+")
    for name in ("status", "stop"):
        command = commands.add_parser(name)
        command.add_argument("name")
        command.add_argument("--seconds", type=float, default=120.0)
    return parser.parse_args()


def _taken(name: str) -> str:
    """Return the text of a file in the home folder, which holds secrets, and delete it."""
    if not name:
        return "{}"
    path = Path.home() / name
    try:
        return path.read_text()
    finally:
        path.unlink(missing_ok=True)


def start(run: Path, options: argparse.Namespace, variables: str) -> int:
    """Start `supervise` with the same arguments in a new session, which outlives the ssh connection.

    variables: those of the run, as JSON.
    """
    if status(run)["state"] in ("starting", "running"):
        print(f"{run.name} is running already", file=sys.stderr)
        return 2
    if options.hosts > 1 and not options.gcs:
        print("several hosts need one work directory: --gcs gs://BUCKET/FOLDER", file=sys.stderr)
        return 2
    run.mkdir(parents=True, exist_ok=True)
    run.chmod(0o700)
    (run / "state.json").unlink(missing_ok=True)
    words = [sys.executable, __file__, "supervise", *sys.argv[2:]]
    with (run / "output.log").open("a") as log:
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin as pipe:  # others may read arguments
        pipe.write(variables.encode())
    while not (run / "state.json").exists() and child.poll() is None:
        time.sleep(0.01)
    if child.poll():
        print(printable((run / "output.log").read_text(errors="replace")[-2000:]), file=sys.stderr)
    return child.poll() or 0


def supervise(run: Path, options: argparse.Namespace) -> int:
    """Train, and record the exit code and the step of the newest checkpoint."""
    variables: dict[str, str] = json.load(sys.stdin)
    known = {"supervisor": os.getpid(), "supervisor_started": _started(os.getpid()), "hosts": options.hosts}
    _record(run, state="starting", **known)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a machine that shuts down signals the training too
    workdir, code = options.gcs or str(run / "work"), SETUP_FAILED
    try:
        shutil.rmtree(run / "tmp", ignore_errors=True)  # of a run that was killed: its log is in its work directory
        for name in ("tmp", "cache"):
            (run / name).mkdir(exist_ok=True)
        command = [str(Path.home() / "bertjax-venv/bin/bertjax"), "pretrain", *options.words, "--workdir", workdir]
        _say(command)
        variables = environment(options, run, variables)
        child = subprocess.Popen(command, cwd=Path.home() / "bertjax", env=variables, stdin=subprocess.DEVNULL,
                                 preexec_fn=_before_exec)  # fmt: skip
        _record(run, state="running", child=child.pid, child_started=_started(child.pid), **known)
        code = child.wait()
        known["step"] = max([-1, *_checkpoints(workdir)])
    except (OSError, subprocess.SubprocessError) as error:
        print(f"worker: {error}", file=sys.stderr, flush=True)
    _record(run, state="ended", code=code if code >= 0 else 128 - code, **known)
    return 0


def _before_exec() -> None:
    """Restore SIGTERM for the training, and lift the stack limit, which libtpu would exceed on some programs."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if resource.getrlimit(resource.RLIMIT_STACK)[1] == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def environment(options: argparse.Namespace, run: Path, variables: dict[str, str]) -> dict[str, str]:
    """Return the environment of the run: the user's variables, the published flags of libtpu, folders of this run."""
    variables = os.environ | variables
    if "LIBTPU_INIT_ARGS" not in variables:
        python = str(Path.home() / "bertjax-venv/bin/python")
        words = [python, "-P", "-m", "bertjax.machine.xla_flags", options.generation, "--slices", str(options.slices)]
        variables["LIBTPU_INIT_ARGS"] = _output(*words).strip()
    variables.setdefault("JAX_COMPILATION_CACHE_DIR", str(run / "cache"))
    return variables | {"TMPDIR": str(run / "tmp")}  # where `status` finds the log


def status(run: Path) -> dict[str, object]:
    """Return the state of the run on this worker, absent, starting, running, ended or lost, and its last step.

    The step is that of the newest log line, or of the newest checkpoint at the end, -1 without any. Processes that do
    not write the log have none. lost: it ended without recording a code.
    """
    found: dict[str, object] = {"host": os.uname().nodename, "state": "absent", "step": _last_logged(run)}
    path = run / "state.json"
    if not path.exists():
        return found
    state = json.loads(path.read_text())
    found |= {"state": state["state"]} | {key: state[key] for key in ("code", "hosts") if key in state}
    found["step"] = max(found["step"], state.get("step", -1))
    if state["state"] != "ended" and not _alive(state, "supervisor"):
        found["state"] = "lost"
    return found


def stop(run: Path, seconds: float) -> int:
    """Stop the training after a checkpoint, and kill the run after `seconds`, also where its supervisor is gone.

    Returns 0 when both are gone, 1 where the system has not ended them: the devices are not free then.
    """
    path = run / "state.json"
    if not path.exists():
        return 0
    state = json.loads(path.read_text())
    if state["state"] not in ("starting", "running"):
        return 0
    if _alive(state, "child"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(state["child"], signal.SIGTERM)
        _wait(state, seconds)
    if _any_alive(state):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(state["supervisor"], signal.SIGKILL)  # the leader of the session of the training
        _wait(state, KILL_SECONDS)
    if _any_alive(state):
        print(f"{run.name} has not ended {KILL_SECONDS:g} s after it was killed", file=sys.stderr)
        return 1
    return 0


def _wait(state: dict, seconds: float) -> None:
    """Wait until the processes of a run are gone, for `seconds` at most."""
    end = time.monotonic() + seconds
    while _any_alive(state) and time.monotonic() < end:
        time.sleep(0.1)


def _record(run: Path, **state: object) -> None:
    partial = run / "state.json.partial"
    partial.write_text(json.dumps(state | {"boot": _boot()}))
    partial.replace(run / "state.json")


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _any_alive(state: dict) -> bool:
    return _alive(state, "supervisor") or _alive(state, "child")


def _alive(state: dict, name: str) -> bool:
    """Return whether a process that the state records is there: of the same boot and start, as numbers are reused."""
    if name not in state or state["boot"] != _boot():
        return False
    started = _started(state[name])
    return started is not None and started == state.get(f"{name}_started", started)  # older versions record none


def _started(process: int) -> int | None:
    """Return when a process started, in clock ticks since the boot; None where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()  # from the third on
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _checkpoints(workdir: str) -> list[int]:
    """Return the steps of the checkpoints in a work directory; other names are reported, and ignored."""
    folder = f"{workdir}/checkpoints"
    if workdir.startswith("gs://"):
        command = ["gcloud", "storage", "ls", f"{folder}/*/commit_success.txt"]  # that of finished ones
        _say(command)
        listed = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=120)
        if listed.returncode and "matched no objects" not in listed.stderr:
            raise OSError(f"{folder} was not listed: {printable(listed.stderr[-500:])}")
        names = [line.split("/")[-2] for line in listed.stdout.split("\n") if line.startswith(f"{folder}/")]
    else:
        names = os.listdir(folder) if os.path.isdir(folder) else []
    steps, others = steps_among(names)
    for name in others:
        print(f"worker: ignored {name!a} in {folder}", file=sys.stderr, flush=True)
    return steps


def _last_logged(run: Path) -> int:
    """Return the last step in the log of a run, which process 0 writes: in its work directory, or before an upload."""
    steps = [-1]
    for log in [run / "work/log.jsonl", *run.glob("tmp/bertjax-run-*/log.jsonl")]:
        with contextlib.suppress(OSError), log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2**16))
            for line in file.read().splitlines()[-2:]:  # the last may be incomplete
                with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
                    steps.append(int(json.loads(line)["step"]))
    return max(steps)


def _output(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _say(words: list[str]) -> None:
    print("+", printable(shlex.join(words)), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
