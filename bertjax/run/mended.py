"""Mend the log of a run that is resumed: keep the lines up to its checkpoint, and state which are lost."""

import json
from collections.abc import Iterable, Iterator

from bertjax.serialization.bounded_json import parse_object


def mended(lines: Iterable[bytes], step: int, every: int) -> Iterator[tuple[bytes, str]]:
    """Yield the lines of a log up to a step, each with "", and a line of its own for what is lost, with its text.

    every: steps between lines from now on, 0 for never; earlier ones may be closer, or farther apart. What a kill
    leaves, a part of a last line after the checkpoint, is no loss, since the run writes that line again.
    """
    last, regular, unread = 0, list[int](), 0
    for line in lines:
        here = _step_of(line)
        if here is None:
            unread += bool(line.strip(b"\0\n "))
            continue
        if here[0] > step:
            continue
        if unread:
            yield _lost(last, f"{unread} line{'s' if unread > 1 else ''} after step {last} could not be read")
            unread = 0
        yield line.rstrip(b"\r\n"), ""
        last = max(last, here[0])
        if here[1]:
            regular.append(here[0])
    between = max(regular[-1] - regular[-2], every) if every and len(regular) > 1 else every
    if between > 0 and last + between <= step:
        reason = " and could not be read" if unread else ""
        yield _lost(step, f"the lines after step {last}, up to step {step}, are missing{reason}")


def _step_of(line: bytes) -> tuple[int, bool] | None:
    """Return the step of a line, and whether it is one of those written at intervals; None where it is no line."""
    try:
        found = parse_object(line, "the log", constants=True)
    except ValueError:
        return None
    step = found.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        return None
    return step, "loss" in found and "skipped" not in found


def _lost(step: int, text: str) -> tuple[bytes, str]:
    return json.dumps({"step": step, "lost": text}).encode(), text
