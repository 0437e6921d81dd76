"""Draw curves of several runs as one SVG, which needs no library and no network."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
"""Colours that the colour-blind can tell apart; further curves have the same ones, dashed."""

DASHES = ("", "6 3", "2 2", "8 2 2 2")

MOST_POINTS = 400
"""Points of a curve: of longer ones the means of as many equal parts."""

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 560, 300, 62, 12, 14, 44
_EARLY = 0.05  # of a curve: an early, high loss does not decide the scale


class Curve(NamedTuple):
    """A curve: its number, which decides its colour, its name, x and y."""

    number: int
    name: str
    x: np.ndarray
    y: np.ndarray


def chart(curves: Sequence[Curve], x_label: str, y_label: str) -> str:
    """Draw curves with their axes; "" where no point is finite. What lies above the scale is cut off."""
    drawn = [curve for curve in map(_thinned, curves) if len(curve.x)]
    if not drawn:
        return ""
    x_ticks = _ticks(0.0, max(float(curve.x.max()) for curve in drawn))
    low, high = min(float(curve.y.min()) for curve in drawn), max(_settled(curve) for curve in drawn)
    y_ticks = _ticks(low, max(low, high))
    (left, right), (bottom, top) = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])
    wide, high_ = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(x: float) -> float:
        return _LEFT + (x - left) / ((right - left) or 1) * wide

    def up(y: float) -> float:
        return _TOP + (1 - (y - bottom) / ((top - bottom) or 1)) * high_

    lines = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">']
    for tick in y_ticks:
        lines.append(f'<path class="grid" d="M{_LEFT} {up(tick):.1f}H{_WIDTH - _RIGHT}"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{_short(tick, y_ticks)}</text>')
    for tick in x_ticks:
        lines.append(f'<path class="grid" d="M{across(tick):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        place = f'x="{across(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle"'
        lines.append(f"<text {place}>{_short(tick, x_ticks)}</text>")
    lines.append(f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    # A nested svg cuts off what lies outside of it, without ids, which would have to be unique on the page.
    lines.append(f'<svg x="{_LEFT}" y="{_TOP}" width="{wide}" height="{high_}">')
    for curve in drawn:
        points = [(across(float(x)) - _LEFT, up(float(y)) - _TOP) for x, y in zip(curve.x, curve.y, strict=True)]
        lines.append(_line(curve, points))
    return "\n".join([*lines, "</svg>", "</svg>"])


def style(number: int) -> str:
    """Return the attributes of the line of a run."""
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return f'stroke="{COLOURS[number % len(COLOURS)]}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _line(curve: Curve, points: Sequence[tuple[float, float]]) -> str:
    title = f"<title>{escape(curve.name)}</title>"
    if len(points) == 1:
        ((x, y),) = points
        colour = COLOURS[curve.number % len(COLOURS)]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}">{title}</circle>'
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{text}" fill="none" stroke-width="1.6" {style(curve.number)}>{title}</polyline>'


def _thinned(curve: Curve) -> Curve:
    """Return a curve of its finite points, of which there are MOST_POINTS at most."""
    finite = np.isfinite(curve.x) & np.isfinite(curve.y)
    x, y = curve.x[finite], curve.y[finite]
    if len(x) > MOST_POINTS:
        x, y = (np.array([part.mean() for part in np.array_split(each, MOST_POINTS)]) for each in (x, y))
    return curve._replace(x=x, y=y)


def _settled(curve: Curve) -> float:
    """Return the largest value after the beginning of a curve."""
    late = curve.y[curve.x > curve.x.max() * _EARLY]
    return float((late if len(late) else curve.y).max())


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers from below `low` to above `high`."""
    span = (high - low) or abs(high) or 1.0
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _short(tick: float, ticks: Sequence[float]) -> str:
    """Format a tick, such as 2.5, 40k, 1.2G or 3e-04, as precisely as its distance to the next needs."""
    largest, distance = max(map(abs, ticks)), abs(ticks[1] - ticks[0])
    if tick == 0:
        return "0"
    if largest < 1e-2 or largest >= 1e16:
        digits = max(0, math.floor(math.log10(abs(tick)) + 1e-9) - math.floor(math.log10(distance) + 1e-9))
        return f"{tick:.{min(digits, 3)}e}"
    unit, name = next((u, n) for u, n in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")) if
                      largest >= (u if u == 1 else 10 * u) or u == 1)  # fmt: skip
    digits = max(0, -math.floor(math.log10(distance / unit) + 1e-9))
    text = f"{tick / unit:.{digits}f}"
    other = f"{tick / unit:.{digits + 1}f}"
    return (text if math.isclose(float(text), tick / unit, rel_tol=1e-6, abs_tol=1e-9) else other) + name
