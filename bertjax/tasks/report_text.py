"""A report as text and as JSON."""

import json
from typing import Any

from bertjax.tasks.report import Report
from bertjax.wording import counted


def as_text(report: Report) -> str:
    """Format a report as text, classes as scikit-learn's classification_report."""
    lines = [f"{name:<24} {value:.4f}" for name, value in report.metrics.items()]
    lines += _table(report)
    if report.confusion:
        lines += ["", "confusion (rows: labels, columns: predictions)", *_matrix(report)]
    if report.calibration:
        lines += ["", f"calibration error  {report.calibration.error:.4f}"]
    if report.threshold and report.at:
        label, probability, _ = report.threshold
        found = "  ".join(f"{name} {value:.4f}" for name, value in report.at.metrics.items())
        lines += ["", f"with the threshold {probability:.4f} for {label}, chosen on other data: {found}"]
        lines += _table(report.at)
    return "\n".join(lines) + "\n"


def _table(report: Report) -> list[str]:
    if not report.classes:
        return []
    width = max(map(len, [*report.classes, "weighted"]))
    rows = [*report.classes.items(), *report.means.items()]
    lines = ["", f"{'':<{width}}  precision  recall      f1  support"]
    for number, (name, score) in enumerate(rows):
        lines += [""] if number == len(report.classes) else []
        lines.append(
            f"{name:<{width}}  {score.precision:9.4f}  {score.recall:6.4f}  {score.f1:6.4f}  {score.support:7,}"
        )
    return lines


MOST_CLASSES = 30
"""Most classes whose confusion is printed or drawn; JSON has all."""


def _matrix(report: Report) -> list[str]:
    if len(report.labels) > MOST_CLASSES:
        return [f"{counted(len(report.labels), 'classes')}: see the JSON"]
    width = max(map(len, report.labels))
    widths = [max(len(name), 6) for name in report.labels]
    head = "  ".join(f"{name:>{w}}" for name, w in zip(report.labels, widths, strict=True))
    rows = ("  ".join(f"{count:>{w},}" for count, w in zip(counts, widths, strict=True)) for counts in report.confusion)
    named = zip(report.labels, rows, strict=True)
    return [f"{'':<{width}}  {head}", *(f"{name:<{width}}  {row}" for name, row in named)]


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as JSON types: metrics by name, and what else the kind of task has."""
    found: dict[str, Any] = {**report.metrics, "rows": report.rows}
    for name in ("classes", "means"):
        if getattr(report, name):
            found[name] = {label: score._asdict() for label, score in getattr(report, name).items()}
    if report.confusion:
        found["confusion"] = {"labels": list(report.labels), "counts": report.confusion}
    if report.calibration:
        bins = [each._asdict() for each in report.calibration.bins]
        found["calibration"] = {"error": report.calibration.error, "bins": bins}
    if report.threshold and report.at:
        found["threshold"] = report.threshold._asdict() | {"scores": as_json(report.at)}
    return found


def json_text(report: Report) -> str:
    """Return the text of a JSON file with a report."""
    return json.dumps(as_json(report), indent=1, ensure_ascii=False) + "\n"
