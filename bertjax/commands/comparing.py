"""The command that compares runs: report."""

import argparse
from typing import Any

from bertjax.commands.arguments import command, takes_code, takes_json, tell
from bertjax.errors import InputError
from bertjax.storage.paths import path_of
from bertjax.terminal import message, show, show_json


def add(commands: Any) -> None:
    """Add this command."""
    report = command(commands, "report", _report, "compare runs: curves, held-out loss, time, differences",
                     "bertjax report runs/small runs/base --out report.html")  # fmt: skip
    report.add_argument("runs", nargs="+", metavar="RUN", help="work directories, also of runs that are going on")
    report.add_argument("--out", default="", metavar="FILE", help="write one page of HTML, which needs no network")
    takes_code(report)
    takes_json(report)


def _report(options: argparse.Namespace) -> None:
    import jax

    from bertjax.report.arrays import read
    from bertjax.report.page import SUMMARY, page, summary, totals
    from bertjax.storage import files

    jax.config.update("jax_platforms", "cpu")  # nothing runs, so leave a TPU of this machine to others
    out = path_of(options.out) if options.out else None
    if out is not None and out.is_dir():
        raise InputError(f"--out {out} is a folder: give the name of a file, such as {out / 'report.html'}")
    runs = read(options.runs, options.experiment)
    for run in runs:
        for note in run.notes:
            tell(f"{run.name}: {note}")
    if out is not None:
        try:
            files.write(out, page(runs))
        except OSError as error:
            raise InputError(f"cannot write --out {out}: {error.strerror}") from error
        tell(f"{out}: written")
    if options.json:
        show_json({run.name: {"folder": run.folder} | totals(run) for run in runs})
        return
    rows = [("run", *SUMMARY), *((message(run.name), *summary(run).values()) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    kept = [number for number, column in enumerate(zip(*rows[1:], strict=True)) if any(column)]
    for row in rows:
        cells = [row[n].ljust(widths[n]) if n == 0 else row[n].rjust(widths[n]) for n in kept]
        show("  ".join(cells).rstrip())
