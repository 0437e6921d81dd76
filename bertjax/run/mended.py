"""Mend the log of a run that is resumed: keep the lines up to its checkpoint, and state which are lost."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bertjax.serialization.bounded_json import parse_object
from bertjax.wording import counted


def mended(lines: Iterable[bytes], step: int, every: int) -> Iterator[tuple[bytes, str]]:
    """Yield the lines of a log up to a step, each with "", and a line of its own for what is lost, with its text.

    every: steps between lines from now on, 0 for never; earlier ones may be closer, or farther apart. What a kill
    leaves, a part of a last line after the checkpoint, is no loss, since the run writes that line again. Lines that
    are out of order, as where a log is there twice, are dropped.
    """
    read = _Read()
    for line in lines:
        found = _parsed(line)
        if found is None:
            read.unread += bool(line.strip(b"\0\n "))
        elif found["step"] <= step and read.in_order(found, line):
            if read.unread:
                yield _lost(read.last, f"{counted(read.unread, 'lines')} after step {read.last} could not be read")
                read.unread = 0
                read.explained.append(read.last)
            yield line.rstrip(b"\r\n"), ""
            read.add(found, line)
    missing = [text for text in _missing(read, step, every) if text not in read.told]
    yield from (_lost(step, text) for text in missing)


@dataclass
class _Read:
    """The lines of a log that were read so far.

    last: the step of the last one. regular: the steps of lines that are written at intervals; explained: those after
    which there may be none, since they were skipped, or are lost as a line says. told: all that is said to be lost.
    unread, dropped: numbers of lines, since the last one and in all. of_last: the lines of the last step.
    """

    last: int = 0
    regular: list[int] = field(default_factory=list)
    explained: list[int] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    unread: int = 0
    dropped: int = 0
    of_last: set[bytes] = field(default_factory=set)

    def in_order(self, found: Mapping[str, Any], line: bytes) -> bool:
        right: bool = found["step"] > self.last or (found["step"] == self.last and line not in self.of_last)
        self.dropped += not right
        return right

    def add(self, found: Mapping[str, Any], line: bytes) -> None:
        self.of_last = (self.of_last if found["step"] == self.last else set()) | {line}
        self.last = found["step"]
        if "skipped" in found or "lost" in found:
            self.explained.append(self.last)
            self.told.add(str(found.get("lost", "")))
        elif "loss" in found:
            self.regular.append(self.last)


def _missing(read: _Read, step: int, every: int) -> Iterator[str]:
    """Describe lines that were dropped, or are missing: in holes wider than the intervals around, and at the end."""
    if read.dropped:
        yield f"{counted(read.dropped, 'lines')} out of order, up to step {read.last}, dropped"
    gaps = [end - begin for begin, end in pairwise([0, *read.regular])]
    for number in range(1, len(gaps) - 1):
        begin, end = read.regular[number - 1], read.regular[number]
        wide = gaps[number] > max(gaps[number - 1], gaps[number + 1], every)
        if wide and not any(begin <= each < end for each in read.explained):
            yield f"the lines between steps {begin} and {end} are missing"
    between = max(gaps[-1], every) if every and len(gaps) > 1 else every
    if between > 0 and read.last + between <= step:
        reason = " and could not be read" if read.unread else ""
        yield f"the lines after step {read.last}, up to step {step}, are missing{reason}"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the values of a line, with its step; None where it is no line."""
    try:
        found = parse_object(line, "the log", constants=True)
    except ValueError:
        return None
    step = found.get("step")
    return found if isinstance(step, int) and not isinstance(step, bool) else None


def _lost(step: int, text: str) -> tuple[bytes, str]:
    return json.dumps({"step": step, "lost": text}).encode(), text
