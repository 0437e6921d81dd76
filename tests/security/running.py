"""Run commands on a hostile folder, under the watch."""

import re
import sys
import traceback
import warnings
from dataclasses import dataclass
from typing import Any

import bertjax
from bertjax.commands.main import main
from bertjax.errors import InputError
from security.watch import TooLong, Watch, watching
from security.world import SECRET, Command, Hostile, World, digest_of

REFUSED, RAISED = 2, -1
CONTROL = re.compile(r"[^\n\t -~\u00a0-\U0010ffff]")
"""Characters that a terminal obeys: C0 without line feed and tab, delete, and C1."""
_LONGEST = 5000  # characters of a line of a refusal
_TRACED = 3.0  # seconds: a run may have been traced before it meets its data
_READ = (10.0, 600.0)  # seconds and megabytes of what is read: it is compiled


@dataclass(frozen=True)
class Outcome:
    """The end of one command. code: as the command returned it, RAISED where it raised, with the trace."""

    code: int
    out: str
    err: str
    watch: Watch
    trace: str = ""


def run(world: World, command: Command, capsys, limit: float = 300, *, into: bool = False) -> Outcome:
    """Run a command under the watch.

    limit: seconds after which it is stopped. into: it writes into the given folder, and not to the output.
    """
    words, trace = world.words(command), ""
    partial = world.out.with_name(f"{world.out.name}.orbax-checkpoint-tmp")  # becomes the output folder
    writable = (world.given,) if into else (world.out, partial)
    capsys.readouterr()
    with warnings.catch_warnings(), watching(writable, world.secret, world.given.parent / "cwd", limit) as watch:
        warnings.showwarning = _show
        warnings.simplefilter("always", UserWarning)
        try:
            code = _load(words[1]) if words[0] == "load" else main(words)
        except TooLong:
            code, trace = RAISED, "it took too long"
        except BaseException:  # noqa: BLE001 a library in Rust raises panics that are no Exception
            code, trace = RAISED, traceback.format_exc()
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err, watch, trace)


def _show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
    """Print a warning as Python does; pytest would keep it."""
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def _load(folder: str) -> int:
    try:
        bertjax.load(folder)
    except InputError as error:
        print(str(error).encode("unicode_escape").decode())  # the command escapes what it prints
        return REFUSED
    return 0


def faults(world: World, hostile: Hostile, command: Command, outcome: Outcome, before: str) -> list[str]:
    """List what must not happen, and did. before: the digest of the secret folder."""
    found = list(dict.fromkeys(outcome.watch.violations)) + _faults_of_the_end(hostile, outcome)
    text = outcome.out + outcome.err
    shown = outcome.err if "--json" in command else text  # JSON is exact, but on a terminal
    if control := CONTROL.search(shown):
        found.append(f"a control character in the output: {control!r}")
    if digest_of(world.secret) != before:
        found.append("the secret folder was changed")
    if SECRET in text:
        found.append("the secret was printed")
    carried = [path for path in world.out.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    found += [f"the secret was carried into {path}" for path in carried]
    found += [f"code of the folder ran: {path}" for path in world.given.rglob("*ran")]
    seconds, megabytes = (hostile.seconds, hostile.megabytes) if outcome.code == REFUSED else _READ
    seconds += _TRACED if command[0] in ("pretrain", "finetune") else 0.0
    if outcome.watch.seconds > seconds:
        found.append(f"{outcome.watch.seconds:.1f} seconds of CPU")
    if outcome.watch.megabytes > megabytes:
        found.append(f"{outcome.watch.megabytes:.0f} MB")
    return found


def _faults_of_the_end(hostile: Hostile, outcome: Outcome) -> list[str]:
    """List what is wrong with the exit code and the message."""
    text = outcome.out + outcome.err
    if outcome.code == RAISED:
        return [f"no refusal but an error: {outcome.trace[-1500:]}"]
    if outcome.code != REFUSED:
        # A tokenizer is shown where there is no model, with a note.
        read = outcome.code == 0 and (hostile.harmless or "note: no model: " in outcome.err)
        read |= outcome.code == 1 and hostile.harmless and "no better than the best constant" in text  # one step
        return [] if read else [f"exit code {outcome.code}: {text[-600:]}"]
    if not text.strip():
        return ["no word of why"]
    longest = max(map(len, text.splitlines()))
    found = [f"a line of {longest:,} characters"] if longest > _LONGEST else []
    return found + ([] if re.search(hostile.message, text) else [f"refused for another reason: {text[-600:]}"])
