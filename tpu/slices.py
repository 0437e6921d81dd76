"""Create, use and delete TPU slices, one queued resource each, by gcloud commands that are printed before they run.

    python tpu/slices.py create bert --zone us-central2-b --type v4-32 --spot
    python tpu/slices.py install bert --zone us-central2-b
    python tpu/slices.py run bert --zone us-central2-b --corpus gs://mine/wiki --gcs gs://mine/runs/base \\
        -- experiments/bert.py size=base dtype=bfloat16
    python tpu/slices.py logs bert --zone us-central2-b

Needs gcloud and Python 3.10; bertjax need not be installed here. See README.md beside this file.
"""

import argparse
import contextlib
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import words as texts
from words import checked, printable

# Accelerator type -> generation, and the runtime version that Google lists for it (cloud.google.com/tpu/docs/runtimes).
GENERATIONS = {"v2": "v2", "v3": "v3", "v4": "v4", "v5litepod": "v5e", "v5p": "v5p", "v6e": "v6e"}
RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
PARTS = ("bertjax", "experiments", "tpu", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
PYTHON = "3.12.16"  # of the workers; uv knows the hashes of Python's builds
# TPU VMs have Python 3.10; uv brings the other one. Every package is installed in the version and with a hash of the
# lock files beside this file, so that a restart next month runs what runs today. setuptools comes first: it builds the
# packages that have no wheel.
_UV = "python3 -m uv pip install --quiet --python bertjax-venv/bin/python"
INSTALL = " && ".join((
    "mkdir -p bertjax",
    "tar -xzf bertjax.tar.gz -C bertjax",
    "python3 -m pip install --user --quiet --require-hashes --no-deps -r bertjax/tpu/tools.lock",
    f'(test "$(bertjax-venv/bin/python -V 2>&1)" = "Python {PYTHON}" || '
    f"python3 -m uv venv --quiet --clear --python {PYTHON} bertjax-venv)",
    f"{_UV} --require-hashes --no-deps -r bertjax/tpu/tools.lock",
    f"{_UV} --require-hashes --no-deps --no-build-isolation -r bertjax/tpu/requirements.lock",
    f"{_UV} --offline --no-deps --no-build-isolation --editable bertjax",
))  # fmt: skip
STATES = ("absent", "starting", "running", "ended", "lost")


class CloudError(Exception):
    """gcloud failed; `final`: retrying would not help."""

    def __init__(self, words: Sequence[str], code: int, error: str, *, final: bool = False) -> None:
        super().__init__(printable(f"exit code {code}: {error.strip()[-2000:] or shlex.join(words)}"))
        self.final = final or bool(
            re.search(r"PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|unrecognized arguments", error)
        )
        self.missing = "NOT_FOUND" in error
        self.exists = "ALREADY_EXISTS" in error


@dataclass(frozen=True)
class Target:
    """A queued resource, and the options of gcloud for it. Raises ValueError for names that the cloud does not have."""

    name: str
    zone: str
    project: str
    dry_run: bool
    seconds: float  # timeout of one gcloud command

    def __post_init__(self) -> None:
        """Check what becomes a part of commands."""
        checked("slice name", self.name)
        checked("zone", self.zone)
        if self.project:
            checked("project", self.project)


@dataclass(frozen=True)
class Hosts:
    """The hosts of one or several slices: the generation of the chips, and the number of slices and of workers."""

    generation: str
    slices: int
    workers: int


def gcloud(target: Target, *words: str, seconds: float | None = None) -> str:
    """Print and run a command of `gcloud compute tpus`, and return its output; a dry run only prints it.

    Raises CloudError if it fails or exceeds its timeout.
    """
    command = ["gcloud", "compute", "tpus", *words, f"--zone={target.zone}"]
    command += [f"--project={target.project}"] * bool(target.project)
    return _call(target, command, seconds or target.seconds)


def _call(target: Target, command: Sequence[str], seconds: float | None) -> str:
    say(command)
    if target.dry_run:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds)
    except FileNotFoundError as error:
        raise _not_installed(command) from error
    except subprocess.TimeoutExpired as error:
        raise CloudError(command, 124, f"no answer within {error.timeout:g} seconds") from error
    if done.returncode:
        raise CloudError(command, done.returncode, done.stderr)
    return done.stdout


def say(command: Sequence[str]) -> None:
    """Print a command as a shell would read it."""
    print("+", printable(shlex.join(command)), file=sys.stderr, flush=True)


def _not_installed(command: Sequence[str]) -> CloudError:
    text = "gcloud is not installed, or not in PATH: https://cloud.google.com/sdk/docs/install"
    return CloudError(command, 127, text, final=True)


def ssh(target: Target, command: str, *, worker: str = "all", seconds: float | None = None) -> str:
    """Run a shell command on all workers of all slices, or on one worker of the first slice."""
    where = ("--node=all", "--worker=all") if worker == "all" else ("--node=0", f"--worker={worker}")
    return gcloud(target, "queued-resources", "ssh", target.name, *where, f"--command={command}", seconds=seconds)


def create(
    target: Target, kind: str, *, slices: int = 1, spot: bool = False, runtime: str = "", more: Sequence[str] = ()
) -> None:
    """Request one or several slices of a kind. Raises ValueError for a kind that this API does not offer."""
    chosen = checked("runtime", runtime or RUNTIMES[generation(kind)])
    if slices < 1:
        raise ValueError(f"--slices={slices} is not a number of slices")
    if slices > 1 and generation(kind) in ("v2", "v3"):
        raise ValueError(f"slices of {kind} cannot be joined: use v4 or later")
    nodes = ("--node-id=" + target.name,) if slices == 1 else (f"--node-count={slices}", f"--node-prefix={target.name}")
    words = ["queued-resources", "create", target.name, f"--accelerator-type={kind}", f"--runtime-version={chosen}"]
    gcloud(target, *words, *nodes, *["--spot"] * spot, *(checked("flag", flag) for flag in more))


def generation(kind: str) -> str:
    """Return the generation of an accelerator type, such as v5e for v5litepod-16. Raises ValueError if unknown."""
    prefix, _, size = kind.rpartition("-")
    if prefix not in GENERATIONS or not re.fullmatch("[0-9]{1,5}", size):
        known = ", ".join(f"{each}-N" for each in GENERATIONS)
        raise ValueError(f"no accelerator type {kind!a}: {known} (7x has no queued resources: see README.md, GKE)")
    return GENERATIONS[prefix]


def state(target: Target) -> str:
    """Return the state of the queued resource, such as ACTIVE; NONE if there is none."""
    try:
        found = gcloud(target, "queued-resources", "describe", target.name, "--format=value(state.state)")
    except CloudError as error:
        if error.missing:
            return "NONE"
        raise
    return found.strip()


def hosts(target: Target) -> Hosts:
    """Look up the workers of all slices. Raises CloudError if a slice is not ready, for example preempted."""
    text = gcloud(target, "queued-resources", "describe", target.name, "--format=json")
    if target.dry_run:
        return Hosts("GENERATION", 1, 1)
    specs = json.loads(text)["tpu"]["nodeSpec"]
    names = [name for spec in specs for name in _node_names(spec)]
    workers = 0
    for name in names:
        node = json.loads(gcloud(target, "tpu-vm", "describe", name, "--format=json"))
        if node["state"] != "READY":
            raise CloudError(["tpu-vm", "describe", name], 1, f"slice {name} is {node['state']}")
        workers += len(node["networkEndpoints"])
    kind = specs[0]["node"]["acceleratorType"].rsplit("/", 1)[-1]
    return Hosts(generation(kind), len(names), workers)


def _node_names(spec: dict) -> list[str]:
    several = spec.get("multisliceParams")
    if not several:
        return [checked("slice name", spec["nodeId"])]
    return [checked("slice name", f"{several['nodeIdPrefix']}-{number}") for number in range(int(several["nodeCount"]))]


def install(target: Target) -> None:
    """Copy the code of this repository to all workers and install it there, with libtpu."""
    with tempfile.TemporaryDirectory() as folder:
        archive = str(Path(folder) / "bertjax.tar.gz")
        root = Path(__file__).resolve().parent.parent
        say(["tar", "-czf", archive, "-C", str(root), *PARTS])
        if not target.dry_run:
            with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
                for part in PARTS:
                    packed.add(root / part, part, filter=lambda each: None if "__pycache__" in each.name else each)
        everywhere = ("--node=all", "--worker=all")
        gcloud(target, "queued-resources", "scp", archive, f"{target.name}:", *everywhere)
    ssh(target, INSTALL, seconds=1800)


def run(
    target: Target, words: Sequence[str], *, gcs: str = "", corpus: str = "", env: Mapping[str, str] | None = None
) -> None:
    """Start `bertjax pretrain WORDS` on all workers; it keeps running when this computer sleeps.

    gcs: the work directory, passed as --workdir; without it a disk of the only worker. corpus: passed as data=. env:
    variables of the run; they are sent in a file, since everybody on a machine may read the arguments of commands.
    Raises ValueError where several workers have no work directory in Cloud Storage.
    """
    places = [checked("address", place).rstrip("/") if place else "" for place in (gcs, corpus)]
    found, env = hosts(target), dict(env or {})
    if found.workers > 1 and not gcs:
        raise ValueError(
            f"{target.name} has {found.workers} workers: they need --gcs gs://BUCKET/FOLDER, which all reach"
        )
    if found.workers > 1:  # how the processes know each other; see bertjax/run/roll_call.py
        env.setdefault("BERTJAX_JOIN_TOKEN", secrets.token_hex(16))
    command = ["python3", "bertjax/tpu/worker.py", "start", target.name, f"--generation={found.generation}"]
    command += [f"--hosts={found.workers}", f"--slices={found.slices}", *[f"--gcs={places[0]}"] * bool(gcs)]
    if env:
        command += [f"--environment={_send(target, env)}"]
    ssh(target, shlex.join([*command, "--", *words, *[f"data={places[1]}"] * bool(corpus)]))


def _send(target: Target, env: Mapping[str, str]) -> str:
    """Copy variables to all workers, in a file that only this user may read there; print their names alone."""
    name = f"bertjax-env-{target.name}.json"
    print("+ variables:", *env, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(dict(env), file)
        gcloud(target, "queued-resources", "scp", str(path), f"{target.name}:", "--node=all", "--worker=all")
    return name


def status(target: Target) -> list[dict]:
    """Return the status of the run on every worker; without workers that do not answer, or answer something else."""
    text = ssh(target, f"python3 bertjax/tpu/worker.py status {shlex.quote(target.name)} || echo bertjax-status '{{}}'")
    found = []
    for line in text.split("\n"):
        if line.startswith("bertjax-status "):
            if (one := _status(line.removeprefix("bertjax-status "))) is None:
                print(f"slices: a worker answered {printable(line[:200])}", file=sys.stderr, flush=True)
            else:
                found.append(one)
    return found


def _status(text: str) -> dict | None:
    """Return a status that a worker has written; None for anything else."""
    try:
        found = json.loads(text) if len(text) < 4096 else None
    except (ValueError, RecursionError):
        return None
    ranges = {"step": range(-1, 10**12), "hosts": range(1, 10**5), "code": range(256)}
    if not isinstance(found, dict) or found.get("state", "absent") not in STATES:
        return None
    numbers = {key: value for key, value in found.items() if key in ranges}
    if any(type(value) is not int or value not in ranges[key] for key, value in numbers.items()):
        return None
    return {key: str(found[key])[:255] for key in ("host", "state") if key in found} | numbers


def stop(target: Target) -> None:
    """Stop the run on all workers, after a checkpoint."""
    ssh(target, f"test ! -e bertjax/tpu/worker.py || python3 bertjax/tpu/worker.py stop {shlex.quote(target.name)}")


def fetch(target: Target, folder: str, gcs: str) -> None:
    """Copy the work directory to FOLDER/work: from Cloud Storage if `gcs` is given, else from worker 0.

    Of the checkpoints in Cloud Storage only finished ones are copied.
    """
    work = Path(folder).absolute() / "work"  # absolute: else it may look like an option, or like a folder of a host
    if not target.dry_run:
        (work if gcs else work.parent).mkdir(parents=True, exist_ok=True)
    if not gcs:  # scp copies it into the folder, under its own name
        source = f"{target.name}:bertjax-runs/{target.name}/work"
        there = ("--recurse", "--node=0", "--worker=0")
        gcloud(target, "queued-resources", "scp", source, str(work.parent), *there, seconds=3600)
        return
    gcs = checked("address", gcs).rstrip("/")
    _storage(target, "rsync", "--recursive", r"--exclude=^(checkpoints/.*|lock)", gcs, str(work))
    lines = _storage(target, "ls", f"{gcs}/checkpoints/*/commit_success.txt").split("\n")
    steps, others = texts.steps_among(line.split("/")[-2] for line in lines if line.startswith(f"{gcs}/checkpoints/"))
    for name in others:
        print(f"slices: ignored {name!a} in {gcs}/checkpoints", file=sys.stderr, flush=True)
    for step in steps:
        (work / f"checkpoints/{step}").mkdir(parents=True, exist_ok=True)
        _storage(target, "rsync", "--recursive", f"{gcs}/checkpoints/{step}", f"{work}/checkpoints/{step}")


def _storage(target: Target, *words: str) -> str:
    return _call(target, ["gcloud", "storage", *words], None)  # no timeout: a copy may be large


def delete(target: Target) -> None:
    """Delete the queued resource and its slices, with their disks."""
    gcloud(target, "queued-resources", "delete", target.name, "--force", "--quiet", seconds=1800)


def logs(target: Target, worker: str, lines: int) -> None:
    """Follow the output of one worker until Ctrl-C, with what a terminal would act on escaped."""
    command = ["gcloud", "compute", "tpus", "queued-resources", "ssh", target.name, f"--zone={target.zone}"]
    command += [f"--project={target.project}"] * bool(target.project) + ["--node=0"]
    command += [f"--worker={checked('worker', worker)}"]
    remote = ["tail", "-n", str(lines), "-F", f"bertjax-runs/{target.name}/output.log"]
    command += [f"--command={shlex.join(remote)}"]
    say(command)
    if target.dry_run:
        return
    try:
        following = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError as error:
        raise _not_installed(command) from error
    with following, contextlib.suppress(KeyboardInterrupt):
        assert following.stdout is not None
        while line := following.stdout.readline(2**16):
            print(printable(line.decode(errors="replace")), end="", flush=True)
    if following.returncode > 0:
        raise CloudError(command, following.returncode, "the output of the worker has ended")


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command."""
    parser.add_argument("name", help="of the queued resource")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", default="", help="default: gcloud's own")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="timeout of one gcloud command (default: %(default)g)"
    )


def add_create(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe a slice."""
    parser.add_argument("--type", required=True, help="accelerator type, such as v3-8, v4-32, v5litepod-16, v6e-64")
    parser.add_argument(
        "--slices",
        type=int,
        default=1,
        help="number of slices, joined over the data centre network; the run needs mesh=slices:N",
    )
    parser.add_argument("--spot", action="store_true", help="cheaper, but may be preempted")
    parser.add_argument("--runtime", default="", help="default: the one that Google lists for the generation")
    parser.add_argument(
        "--flag", action="append", default=[], help="another flag of `gcloud … create`, such as --flag=--internal-ips"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe a run."""
    parser.add_argument("--gcs", default="", metavar="gs://…", help="its work directory; several workers need it")
    parser.add_argument("--corpus", default="", metavar="gs://…", help="a corpus of `bertjax data build`: data=")
    texts.add_variables(parser)
    parser.add_argument(
        "words", nargs="+", metavar="EXPERIMENT key=value", help="arguments of `bertjax pretrain`, after --"
    )


def target_of(options: argparse.Namespace) -> Target:
    """Return the target of parsed arguments."""
    return Target(options.name, options.zone, options.project, options.dry_run, options.seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Create, use and delete TPU slices.")
    commands = parser.add_subparsers(dest="command", required=True)
    described = {
        "create": "request a slice",
        "state": "print the state of the request",
        "install": "install this repository on all workers",
        "doctor": "run `bertjax doctor` on all workers",
        "run": "start a training on all workers",
        "status": "print the status of the training, one line per worker",
        "logs": "follow the output of a worker",
        "stop": "stop the training after a checkpoint",
        "fetch": "copy the work directory to FOLDER/work",
        "delete": "delete the slice and its disks",
    }
    for name, text in described.items():
        command = commands.add_parser(name, help=text, description=text)
        add_target(command)
        if name == "create":
            add_create(command)
        elif name == "run":
            add_run(command)
        elif name == "logs":
            command.add_argument("--worker", default="0")
            command.add_argument("--lines", type=int, default=50)
        elif name == "fetch":
            command.add_argument("folder", help="the work directory becomes FOLDER/work")
            command.add_argument("--gcs", default="", metavar="gs://…", help="the work directory of the run")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 2 if gcloud failed or an argument is wrong."""
    options = _parser().parse_args(arguments)
    try:
        _do(options, target_of(options))
    except (CloudError, ValueError) as error:
        print(f"slices: {error}", file=sys.stderr)
        return 2
    return 0


def _do(options: argparse.Namespace, target: Target) -> None:
    if options.command == "create":
        create(
            target, options.type, slices=options.slices, spot=options.spot, runtime=options.runtime, more=options.flag
        )
    elif options.command == "run":
        run(
            target,
            options.words,
            gcs=options.gcs,
            corpus=options.corpus,
            env=texts.variables(options.env, options.env_file),
        )
    elif options.command == "doctor":
        print(printable(ssh(target, "hostname; bertjax-venv/bin/bertjax doctor || true")), end="")
    elif options.command == "status":
        print(*(json.dumps(each) for each in status(target)), sep="\n")
    elif options.command == "state":
        print(state(target))
    elif options.command == "logs":
        logs(target, options.worker, options.lines)
    elif options.command == "fetch":
        fetch(target, options.folder, options.gcs)
    else:
        {"install": install, "stop": stop, "delete": delete}[options.command](target)


if __name__ == "__main__":
    sys.exit(main())
