"""The command `bertjax`. Each of its commands is a function of the package.

Errors that a user can fix are printed as one line. The exit codes are in exits.py.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

import bertjax
from bertjax import exits
from bertjax.commands import comparing, machines, predicting, texts, training
from bertjax.commands.arguments import with_hints
from bertjax.errors import ProcessFailed, exit_code_of
from bertjax.machine.program_cache import without_foreign_programs
from bertjax.machine.tpu_probe import without_tpu_probe
from bertjax.terminal import escaped, message


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if arguments is None:
        _occupy_standard_descriptors()
        sys.unraisablehook = _tell_of_unraisable
    options = _parse(arguments)
    options.own_process = arguments is None
    if options.own_process:
        without_tpu_probe()
    if warning := without_foreign_programs():
        _tell(message(warning))
    try:
        options.run(options)
        code = getattr(options, "exit_code", exits.DONE)
    except BrokenPipeError as error:
        code = _failed(error) if options.run in training.TRAIN else exits.DONE  # the reader of our results has closed
    except BrokenProcessPool:
        _tell("bertjax: a worker process was killed (out of memory?): run it again with fewer --workers")
        code = exits.MISTAKE
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 an unknown one has an exit code and a traceback
        code = _failed(error)
    _flush()
    return _ending(code) if arguments is None and options.run in training.TOGETHER else code


def _ending(code: int) -> int:
    """Return the exit code of a command that is to end now, whatever its threads and other processes do."""
    from bertjax.run.leaving import decide, end_within

    code = decide(code)
    if code == exits.STOPPED:  # Python may end with 130 after a KeyboardInterrupt that an extension has seen
        os._exit(code)
    # A writer may send its last values; others ask process 0 why it ends; those that are gone ask nothing.
    end_within({exits.DONE: 600, exits.PEERS_MISSING: 1}.get(code, 10), code)
    return code


def _failed(error: BaseException) -> int:
    """Tell of an error, in one line where a message is all that a user needs, and return its exit code."""
    code = exit_code_of(error)
    if isinstance(error, KeyboardInterrupt):
        _tell("\nbertjax: stopped")
    elif code == exits.FAILED and not isinstance(error, OSError | ProcessFailed):
        _tell(escaped("".join(traceback.format_exception(error)).rstrip()))
    else:
        notes = [note for note in getattr(error, "__notes__", ()) if "JAX has removed its internal frames" not in note]
        _tell(message("; ".join([f"bertjax: {error}", *notes])))
    return code


def _tell(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads it: the exit code stays
        if sys.stderr is not None:
            print(text, file=sys.stderr)


def _occupy_standard_descriptors() -> None:
    """Open those of descriptors 0 to 2 that the caller closed, so that no file of ours gets the output of a library."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one


def _tell_of_unraisable(found: "sys.UnraisableHookArgs") -> None:
    """Print an exception that nobody can catch, but for those of reads that go on after one of them has failed.

    A damaged checkpoint has a message of its own; TensorStore would print dozens of tracebacks before it.
    """
    if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(found)


def _flush() -> None:
    """Flush output, or drop it where nobody reads it, since Python would exit with 120 for what is left."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command, with overrides before or after options, which argparse alone does not support."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "override") or any(word.startswith("-") for word in rest)):
        getattr(options, "parser", parser).error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.override += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bertjax", description="Pre-train and use encoder language models in JAX.")
    parser.add_argument("--version", action="version", version=f"bertjax {bertjax.__version__}")
    with_hints(parser)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in (training, comparing, predicting, texts, machines):
        group.add(commands)
    return parser
