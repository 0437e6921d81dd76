"""Print what comes from files of others: a terminal would act on some characters in names, labels, texts and errors."""

import json
import re
import sys
from typing import Any, TextIO

# Control characters but tab and line feed, marks that reorder or break lines, and halves of surrogate pairs, which
# cannot be printed at all. Joiners and marks of direction that belong to a script's spelling (U+200C, U+200D) stay.
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")
_LONGEST_MESSAGE = 4000  # characters


def escaped(text: str) -> str:
    r"""Return a text with \x1b or \u202e in place of each character that a terminal acts on; tabs and lines stay."""
    return _ACTING.sub(lambda found: _escape(found.group()), text)


def message(text: str) -> str:
    """Return an error or a note as it is printed: escaped, and shortened in the middle, where a name is too long."""
    if len(text) > _LONGEST_MESSAGE:
        half = _LONGEST_MESSAGE // 2
        text = f"{text[:half]} … {text[-half:]}"
    return escaped(text)


def show(text: str, file: TextIO | None = None) -> None:
    """Print a text for people, escaped, at once."""
    print(escaped(text), file=file or sys.stdout, flush=True)


def show_json(value: Any) -> None:
    r"""Print a value as JSON on one line, at once: exactly, but on a terminal with \u001b for what it would act on.

    Halves of surrogate pairs, which no encoding has, are always written as \ud800.
    """
    text = json.dumps(value, ensure_ascii=False)
    spelled = _ACTING if sys.stdout.isatty() else _SURROGATES
    print(spelled.sub(lambda found: f"\\u{ord(found.group()):04x}", text), flush=True)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
