"""Labels as pandas, spreadsheets and JSON write them: missing ones, and whole numbers as 1.0.

A column of numbers in which one is missing is a column of floats to pandas, so its labels are written as 0.0 and 1.0.
"""

import json
import math
import re
from collections import Counter
from typing import Any

MISSING = frozenset(("nan", "NaN", "-nan", "-NaN", "<NA>", "NaT", "#N/A", "#NA", "#N/A N/A"))
"""What pandas and spreadsheets write for a missing value, and nobody calls a class."""

_MAYBE_MISSING = frozenset(("None", "NULL", "null", "N/A", "n/a", "NA"))
"""What pandas also reads as missing, and somebody may call a class: a class, which is told."""


def label_of(given: Any, notes: Counter[str] | None = None) -> str:
    """Return a label as text: "" for a missing one, "1" for 1.0. given: a cell, or a text, number or null of JSON."""
    if given is None or (isinstance(given, float) and math.isnan(given)):
        return ""
    text = given.strip() if isinstance(given, str) else json.dumps(given)
    if text in MISSING:
        return ""
    if notes is not None and text in _MAYBE_MISSING:
        notes[f"labels {text!r}, taken as a class: leave the cell empty where a label is missing"] += 1
    return re.sub(r"(?<=\d)\.0+", "", text) if re.fullmatch(r"[+-]?\d+\.0+", text) else text
