"""Write runs beside each other as one page of HTML: it needs no network, runs no script, and escapes what runs say."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from bertjax.report.arrays import Run, Table, differences
from bertjax.report.chart import Curve, chart, style
from bertjax.run.writers import duration
from bertjax.wording import counted

AXES = {"step": "steps", "tokens": "tokens", "flops": "FLOPs"}

KINDS = {"validation": "held-out", "train": "training"}

TIMING = {
    "tokens_per_second": "tokens per second",
    "step_ms": "ms per step",
    "step_ms_p99": "ms per step, 99th percentile",
    "data_wait_ms": "ms per step waiting for data",
    "utilisation": "share of the devices' peak",
    "real_tokens": "share of tokens that are not padding",
}

_MOST_CHARTS = 60
_LONGEST = 300  # characters of a value in a table

_STYLE = """
body { font: 15px/1.45 sans-serif; margin: 0 auto; max-width: 1240px; padding: 1em; color: #222; background: #fff }
h2 { margin: 1.6em 0 .4em } h3 { font-size: 1em; margin: .8em 0 .2em } p.none { color: #777 }
table { border-collapse: collapse; font-size: 13px } .scroll { overflow-x: auto }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, .texts td, .texts th { text-align: left }
.texts td { font-family: monospace; overflow-wrap: anywhere; max-width: 28em }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(480px, 1fr)); gap: 0 1.5em }
svg { max-width: 100%; font: 12px sans-serif } .grid { stroke: #e2e2e2 }
.key { position: sticky; top: 0; background: #fff; padding: .5em 0; border-bottom: 1px solid #ddd; z-index: 1 }
.key span { margin-right: 1.4em; white-space: nowrap } .key svg { width: 2.2em; height: .7em; margin-right: .4em }
input, .by { display: none }
label { cursor: pointer; padding: .1em .7em; border: 1px solid #999; border-radius: 3px; margin-right: .3em }
#by-step:checked ~ main .by-step, #by-tokens:checked ~ main .by-tokens, #by-flops:checked ~ main .by-flops {
  display: block }
#by-step:checked ~ .key [for=by-step], #by-tokens:checked ~ .key [for=by-tokens],
#by-flops:checked ~ .key [for=by-flops] { background: #ddd }
"""


def page(runs: Sequence[Run]) -> str:
    """Return the page, as the text of an HTML file."""
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        # Should something of a run ever get past `escape`, nothing of it is loaded or executed.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{escape(counted(len(runs), 'runs'))}</title><style>{_STYLE}</style></head><body>",
        *(f'<input type="radio" name="by" id="by-{x}"{" checked" * (x == "step")}>' for x in AXES),
        f'<div class="key">{_key(runs)} by '
        + "".join(f'<label for="by-{x}">{name}</label>' for x, name in AXES.items())
        + "</div><main>",
        "<h1>Runs</h1>",
        _table(["run", *SUMMARY], [[run.name, *summary(run).values()] for run in runs]),
        *_notes(runs),
        "<h2>Loss</h2>",
        *_charts(runs, _main_metrics(runs)),
        "<h2>Time</h2>",
        *_charts(runs, [("timing", name, label) for name, label in TIMING.items()]),
        *_differences(runs),
        *_events(runs),
        *_other_metrics(runs),
        "</main></body></html>",
    ]
    return "\n".join(lines) + "\n"


SUMMARY = (
    "steps", "tokens", "FLOPs", "parameters", "loss", "held-out loss", "lowest held-out loss", "at step", "tokens/s",
    "ms per step", "waiting for data", "of peak", "time",
)  # fmt: skip


def summary(run: Run) -> dict[str, str]:
    """Return what a run has come to as texts, by the names of SUMMARY; "" for what is not known."""
    return {name: "" if value is None else _SHOWN[name](value) for name, value in totals(run).items()}


def totals(run: Run) -> dict[str, float | None]:
    """Return what a run has come to, by the names of SUMMARY; shares of 1, time in seconds, None for the unknown."""
    held_out, timing = run.validation.get("loss", np.array([])), run.timing
    finite = np.flatnonzero(np.isfinite(held_out))
    best = finite[np.argmin(held_out[finite])] if len(finite) else None
    step_ms, waiting = _median(timing, "step_ms"), _median(timing, "data_wait_ms")
    last = {name: _last(run.train, name) for name in ("tokens", "flops", "loss")}
    values = (
        run.steps,
        last["tokens"],
        last["flops"],
        run.parameters or None,
        last["loss"],
        float(held_out[finite[-1]]) if len(finite) else None,
        float(held_out[best]) if best is not None else None,
        int(run.validation["step"][best]) if best is not None else None,
        _median(timing, "tokens_per_second"),
        step_ms,
        waiting / step_ms if waiting is not None and step_ms else None,
        _median(timing, "utilisation"),
        _seconds(timing),
    )
    return dict(zip(SUMMARY, values, strict=True))


def _median(table: Table, name: str) -> float | None:
    values = table.get(name, np.array([]))
    return float(np.nanmedian(values)) if np.isfinite(values).any() else None


def _last(table: Table, name: str) -> float | None:
    values = table.get(name, np.array([]))
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def _seconds(timing: Table) -> float | None:
    """Return the seconds of all steps: the mean of each logged interval times its steps."""
    steps, step_ms = timing["step"], timing.get("step_ms", np.array([]))
    if not np.isfinite(step_ms).any():
        return None
    return float(np.nansum(step_ms * np.diff(steps, prepend=0.0)) / 1000)


def _count(value: float) -> str:
    return f"{value:.3g}" if value >= 1e5 else f"{value:,.0f}"


_SHOWN: Mapping[str, Callable[[float], str]] = dict(
    zip(
        SUMMARY,
        ("{:,}".format, _count, _count, "{:,}".format, *["{:.4f}".format] * 3, "{:,}".format, "{:,.0f}".format,
         "{:,.1f}".format, *["{:.1%}".format] * 2, duration),
        strict=True,
    )
)  # fmt: skip


def _key(runs: Sequence[Run]) -> str:
    line = '<svg viewBox="0 0 30 8"><path d="M0 4H30" stroke-width="3" {}/></svg>'
    return "".join(f"<span>{line.format(style(n))}{escape(run.name)}</span>" for n, run in enumerate(runs))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(_cut(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><tr>{titles}</tr>{body}</table></div>'


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        for note in run.notes:
            yield f"<p>{escape(run.name)}: {escape(_cut(note))}</p>"


def _main_metrics(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """Return (table, name, title) of the held-out loss, or of the first metric of a task, and of the training loss."""
    found = []
    for kind, title in KINDS.items():
        names = _names(runs, kind)
        found += [(kind, name, f"{title}: {name}") for name in ["loss"] * ("loss" in names) or names[:1]]
    return found


def _other_metrics(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the charts of all other metrics, folded."""
    main = {(kind, name) for kind, name, _ in _main_metrics(runs)}
    for kind, title in KINDS.items():
        others = [name for name in _names(runs, kind) if (kind, name) not in main][:_MOST_CHARTS]
        if others:
            yield f"<details><summary><b>All other metrics, {title}</b> ({len(others)})</summary>"
            yield from _charts(runs, [(kind, name, name) for name in others])
            yield "</details>"


def _names(runs: Sequence[Run], kind: str) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in getattr(run, kind) if name not in AXES))


def _charts(runs: Sequence[Run], chosen: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Yield the charts of values, each as (table, name, title); of those alone that a run has."""
    known = [each for each in chosen if each[1] in _names(runs, each[0])]
    yield '<div class="charts">' if known else '<p class="none">none logged</p><div>'
    for kind, name, title in known:
        tables = [getattr(run, kind) for run in runs]
        yield f"<div><h3>{escape(_cut(title))}</h3>{_by_axes(runs, tables, name)}</div>"
    yield "</div>"


def _by_axes(runs: Sequence[Run], tables: Sequence[Table], name: str) -> str:
    """Draw a metric of all runs that have it by each of the axes, of which the page shows one."""
    drawn = []
    for axis, label in AXES.items():
        curves = [
            Curve(number, run.name, table[axis], table[name])
            for number, (run, table) in enumerate(zip(runs, tables, strict=True))
            if name in table
        ]
        picture = chart(curves, label, _cut(name)) or f'<p class="none">not known by {label}</p>'
        drawn.append(f'<div class="by by-{axis}">{picture}</div>')
    return "".join(drawn)


def _differences(runs: Sequence[Run]) -> Iterator[str]:
    if len(runs) < 2:
        return
    found: Mapping[str, list[Any]] = differences(runs)
    yield "<h2>Differences of their experiments</h2>"
    if not found:
        yield '<p class="none">none</p>'
        return
    rows = [[name, *values] for name, values in found.items()]
    yield _table(["setting", *(run.name for run in runs)], rows, "texts")


def _events(runs: Sequence[Run]) -> Iterator[str]:
    rows = [[run.name, f"{step:,}", text] for run in runs for step, text in run.events[:1000]]
    if rows:
        yield f"<h2>Events</h2>{_table(['run', 'step', 'event'], rows, 'texts')}"
