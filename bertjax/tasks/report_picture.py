"""Draw a report as one SVG: scores by class, the confusion matrix, calibration."""

from collections.abc import Sequence
from html import escape

from bertjax.tasks.report import Calibration, Report
from bertjax.tasks.report_text import MOST_CLASSES
from bertjax.terminal import escaped
from bertjax.wording import counted

_COLOURS = {"precision": "#4477aa", "recall": "#66ccee", "f1": "#ee6677"}
"""Colours that the colour-blind can tell apart, as in plan/picture.py."""

_NAME, _BARS, _ROW, _SIDE, _GAP, _TOP = 150, 220, 34, 280, 50, 70


def picture(report: Report, title: str) -> str:
    """Return the report as a self-contained SVG; of over 30 classes those with the most rows."""
    panels: list[tuple[int, int, list[str]]] = []
    if report.classes:
        panels.append(_scores(report))
    if report.confusion:
        panels.append(_confusion(report))
    if report.calibration:
        panels.append(_calibration(report.calibration))
    height = _TOP + max((height for _, height, _ in panels), default=0) + 30
    width = max(700, sum(width + _GAP for width, _, _ in panels) + 20)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in report.metrics.items())
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/>{_text(20, 24, _short(title, 100), size=15)}',
        _text(20, 44, f"{counted(report.rows, 'rows')}: {shown}"),
    ]
    at = 20
    for panel_width, _, drawn in panels:
        lines += [f'<g transform="translate({at} {_TOP})">', *drawn, "</g>"]
        at += panel_width + _GAP
    return "\n".join([*lines, "</svg>", ""])


def _scores(report: Report) -> tuple[int, int, list[str]]:
    """Draw precision, recall and F1 as bars, a group for each class and mean."""
    most = sorted(report.classes, key=lambda name: -report.classes[name].support)[:MOST_CLASSES]
    rows = [(name, score) for name, score in report.classes.items() if name in most] + [*report.means.items()]
    lines = []
    for number, (name, color) in enumerate(_COLOURS.items()):
        lines.append(f'<rect x="{_NAME + number * 75}" y="-2" width="10" height="10" fill="{color}"/>')
        lines.append(_text(_NAME + number * 75 + 14, 8, name))
    for number, (name, score) in enumerate(rows):
        top = 20 + number * _ROW
        bold = name in report.means and name not in report.classes
        lines.append(_text(_NAME - 8, top + 13, _short(name, 22), end=True, bold=bold))
        lines.append(_text(_NAME - 8, top + 25, counted(score.support, "rows"), end=True, size=9, grey=True))
        for place, (part, color) in enumerate(_COLOURS.items()):
            value = getattr(score, part)
            y = top + place * 9
            lines.append(f'<rect x="{_NAME}" y="{y}" width="{value * _BARS:.1f}" height="8" fill="{color}"/>')
            lines.append(_text(int(_NAME + value * _BARS) + 4, y + 8, f"{value:.3f}", size=8))
    return _NAME + _BARS + 40, 20 + len(rows) * _ROW, lines


def _confusion(report: Report) -> tuple[int, int, list[str]]:
    """Draw a matrix whose cells are darker the more of their row's label they hold."""
    order = sorted(range(len(report.labels)), key=lambda label: -sum(report.confusion[label]))
    kept = sorted(order[:MOST_CLASSES])
    size = max(18, min(60, _SIDE // len(kept)))
    left = max(60, min(_NAME, 8 * max(len(report.labels[label]) for label in kept)))
    side, top = size * len(kept), 40
    note = f" of the {MOST_CLASSES} largest classes" if len(kept) < len(order) else ""
    lines = [_text(0, 8, f"labels (rows) and predictions (columns){note}")]
    for row, label in enumerate(kept):
        total = max(1, sum(report.confusion[label]))
        lines.append(_text(left - 6, top + row * size + size // 2 + 4, _short(report.labels[label], 18), end=True))
        for column, other in enumerate(kept):
            count = report.confusion[label][other]
            share = count / total
            x, y = left + column * size, top + row * size
            fill = f"rgb({int(255 - 187 * share)},{int(255 - 136 * share)},{int(255 - 85 * share)})"
            lines.append(f'<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="{fill}" stroke="#ddd"/>')
            colour = "white" if share > 0.6 else "black"
            if count:
                digits = max(7, min(12, size * 2 // (len(str(count)) + 1)))
                lines.append(_text(x + size // 2, y + size // 2 + 4, str(count), middle=True, size=digits, fill=colour))
    for column, label in enumerate(kept):
        x, y = left + column * size + size // 2, top + side + 12
        lines.append(
            f'<g transform="rotate(-35 {x} {y})">{_text(x, y, _short(report.labels[label], 18), end=True)}</g>'
        )
    return max(left + side, 270), top + side + 80, lines


def _calibration(found: Calibration) -> tuple[int, int, list[str]]:
    """Draw how often predictions are right by their probability: on the diagonal where it is true."""
    side, left, top = _SIDE, 40, 20
    most = max(each.rows for each in found.bins)
    lines = [_text(0, 8, f"calibration: expected error {found.error:.4f}")]
    lines.append(f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="#999"/>')
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = tick * side
        lines.append(_text(left - 6, int(top + side - at) + 4, f"{tick:g}", end=True, size=9))
        lines.append(_text(int(left + at), top + side + 14, f"{tick:g}", middle=True, size=9))
    for each in found.bins:
        x, width, height = left + each.low * side, (each.high - each.low) * side - 1, each.accuracy * side
        shade = 0.35 + 0.65 * each.rows / most
        lines.append(
            f'<rect x="{x:.1f}" y="{top + side - height:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="#4477aa" opacity="{shade:.2f}"><title>{counted(each.rows, "rows")}: probability '
            f"{each.confidence:.3f}, right {each.accuracy:.3f}</title></rect>"
        )
        lines.append(
            f'<circle cx="{left + each.confidence * side:.1f}" cy="{top + side - height:.1f}" r="3" fill="#ee6677"/>'
        )
    lines.append(
        f'<line x1="{left}" y1="{top + side}" x2="{left + side}" y2="{top}" stroke="black" stroke-dasharray="4 3"/>'
    )
    lines.append(_text(left + side // 2, top + side + 32, "probability of the prediction", middle=True))
    lines.append(
        _text(left + side // 2, top + side + 48, "bars: fraction that is right; darker: more rows", middle=True)
    )
    return left + side, top + side + 60, lines


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(
    x: int,
    y: int,
    text: str,
    *,
    size: int = 12,
    end: bool = False,
    middle: bool = False,
    bold: bool = False,
    grey: bool = False,
    fill: str = "",
) -> str:
    """Return a text element."""
    attributes: Sequence[str] = (
        f' font-size="{size}"' * (size != 12),
        ' text-anchor="end"' * end,
        ' text-anchor="middle"' * middle,
        ' font-weight="bold"' * bold,
        ' fill="#777"' * grey,
        f' fill="{fill}"' * bool(fill),
    )
    return f'<text x="{x}" y="{y}"{"".join(attributes)}>{escape(escaped(text))}</text>'
