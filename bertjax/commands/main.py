"""The command `bertjax`. Each of its commands is a function of the package.

Errors that a user can fix are printed as one line, with exit code 2. Other exit codes: 1 a run diverged, 3 a plan does
not fit its devices, 75 a process could not connect to the others of its run, 130 (Ctrl-C) or 143 (SIGTERM) a run was
stopped after its checkpoint.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

import bertjax
from bertjax.commands import machines, predicting, texts, training
from bertjax.errors import InputError, PassingError

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: tpu/watch.py restarts such a run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parse(arguments)
    options.own_process = arguments is None
    try:
        options.run(options)
    except InputError as error:
        print(f"bertjax: {error}", file=sys.stderr)
        return TRY_AGAIN if isinstance(error, PassingError) else 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"bertjax: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print(
            "bertjax: a worker process was killed (out of memory?): run it again with fewer --workers", file=sys.stderr
        )
        return 2
    except FloatingPointError as error:
        print(f"bertjax: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbertjax: stopped", file=sys.stderr)
        return 130
    return getattr(options, "exit_code", 0)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command, with overrides before or after options, which argparse alone does not support."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "override") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.override += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bertjax", description="Pre-train and use encoder language models in JAX.")
    parser.add_argument("--version", action="version", version=f"bertjax {bertjax.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in (training, predicting, texts, machines):
        group.add(commands)
    return parser
