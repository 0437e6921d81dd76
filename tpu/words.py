"""Check the words that become a part of commands on other machines, and escape the text that comes from there.

A name that begins with a hyphen would be an option of gcloud, and one with a semicolon two commands of a shell.
"""

import argparse
import os
import re
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

_FORMS = {
    "slice name": (r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", "at most 63 of a-z, 0-9 and -, a letter first, no hyphen last"),
    "zone": (r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", "a zone, such as us-central2-b"),
    "project": (r"[a-z0-9]([-a-z0-9.:]{0,98}[a-z0-9])?", "the id of a project"),
    "runtime": (r"[a-z0-9]([-a-z0-9._]{0,98}[a-z0-9])?", "a runtime version, such as v2-alpha-tpuv5"),
    "worker": (r"[0-9]{1,6}", "the number of a worker"),
    "flag": (r"--[a-z][-a-z0-9]*(=[^\x00-\x1f\x7f]*)?", "a flag of gcloud, such as --flag=--reserved"),
    "address": (
        r"gs://[a-z0-9]([-_.a-z0-9]{0,220}[a-z0-9])?(/(?!\.{1,2}(/|$))[-\w.=+@,:~]+)*/?",
        "gs://BUCKET/FOLDER of letters, digits and any of -_.=+@,:~",
    ),
}
_STEP = re.compile(r"[0-9]{1,12}")


def checked(kind: str, text: str) -> str:
    """Return a word of a kind of `_FORMS`, such as a slice name. Raises ValueError for one that is not of it."""
    form, meaning = _FORMS[kind]
    if not re.fullmatch(form, text, re.ASCII):
        raise ValueError(f"{text!a} is not {'an' if kind[0] in 'aeiou' else 'a'} {kind}: {meaning}")
    return text


def step_of(name: str) -> int | None:
    """Return the step that a folder or an object is named after; None for other names."""
    return int(name) if _STEP.fullmatch(name) else None


def steps_among(names: Iterable[str]) -> tuple[list[int], list[str]]:
    """Return the steps among names, sorted, and the other names."""
    found = {name: step_of(name) for name in names}
    return sorted({step for step in found.values() if step is not None}), [
        n for n, step in found.items() if step is None
    ]


def printable(text: str) -> str:
    """Escape all that a terminal would act on, such as a change of its title; lines and tabs stay."""
    return "".join(
        each if each in "\n\t" or each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )


def variables(given: Sequence[str], file: str = "") -> dict[str, str]:
    """Return environment variables from NAME=VALUE or NAME, whose value is this environment's, and from a file.

    The file has lines NAME=VALUE, and only its owner may read it; "-" is standard input. Raises ValueError, with no
    value in its message.
    """
    found: dict[str, str] = {}
    for line in [*_lines(file), *given]:
        name, equals, value = line.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            # What should be a name may be a value.
            raise ValueError(f"the name of a variable{f' in {file}' * (line not in given)} is not of A-Z, 0-9 and _")
        if not equals and name not in os.environ:
            raise ValueError(f"{name!r} is not set here: write NAME=VALUE, or export it")
        found[name] = value if equals else os.environ[name]
    if odd := [name for name, value in found.items() if "\0" in value]:
        raise ValueError(f"the value of {odd[0]} has a zero byte")
    return found


def _lines(file: str) -> list[str]:
    if not file:
        return []
    path = Path(file)
    try:
        mode = stat.S_IFREG if file == "-" else path.stat().st_mode
        text = sys.stdin.read() if file == "-" else path.read_text() if stat.S_ISREG(mode) else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {file!a}") from error
    if not stat.S_ISREG(mode) or mode & 0o077:
        raise ValueError(f"{file!a} must be a file that nobody else may read: chmod 600 {file}")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if any("=" not in line for line in lines):
        raise ValueError(f"a line of {file!a} is not NAME=VALUE")
    return lines


def add_variables(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for environment variables."""
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="environment variable of the run, such as LIBTPU_INIT_ARGS=…; NAME alone takes its value from here",
    )  # fmt: skip
    parser.add_argument(
        "--env-file", default="", metavar="FILE", help="lines NAME=VALUE; only you may read it; - is standard input"
    )
