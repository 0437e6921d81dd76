"""Inject faults at named points, to try how a run survives them: a no-op unless BERTJAX_FAULT is set.

    BERTJAX_FAULT="checkpoint.write:enospc@2-4,update:kill@17,gradient:nan@37"

Each fault is `point:action@times`, with `=number` after an action that takes one. The times are steps at points that
belong to a step, else passes through the point in this process, from 1 on: `17`, `2-4`, `9-` for all from 9 on, and all
without `@`. By step: `batch` before a process reads its rows, `update` before the update; `loss`, `gradient` (nan, inf,
scale). By number: `evaluation`, of its batches. Counted: `checkpoint.begin`, `.write`, `.written` (before it is read
back), `.commit`, `.delete`, `.read` (its description), `.arrays` (params or optimizer).
"""

import errno
import os
import re
import signal
import time
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.errors import InputError

_ERRORS = {name.lower(): getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EACCES", "EROFS", "EIO", "ESTALE")}
_ACTIONS = {"kill", "term", "exit", "sleep", "hang", "nan", "inf", "scale", "flip", "truncate", "delete", *_ERRORS}
_FORM = re.compile(r"([a-z_.]+):([a-z]+)(?:=([\d.e+]+))?(?:@(\d+)(-(\d*))?)?")
_passes: Counter[str] = Counter()


class Fault(NamedTuple):
    """One fault of BERTJAX_FAULT: at times first … last of its point."""

    action: str
    number: float | None
    first: int
    last: float


def fault(point: str, time_: int | None = None, path: Path | None = None) -> None:
    """Do what BERTJAX_FAULT asks for at this point.

    time_: the step, else the passes through the point are counted. path: a file, or the folder of files, to damage.
    kill: SIGKILL to this process; term: SIGTERM. exit=CODE: without any cleaning up. sleep=SECONDS, hang. enospc,
    edquot, eacces, erofs, eio, estale: an OSError. flip: one bit of the largest file; truncate: it to half; delete: it.
    """
    text = os.environ.get("BERTJAX_FAULT")
    if not text:
        return
    found = parse(text).get(point, ())
    if not found:
        return
    if time_ is None:
        _passes[point] += 1
        time_ = _passes[point]
    for each in found:
        if each.first <= time_ <= each.last:
            _act(each, point, path)


def poisoned(point: str, step: Any, value: Any) -> Any:
    """Return an array that is traced into a step, or one with nan, inf, or `scale` times its values, in its place.

    step: the number of the step, traced too. The fault is part of the compiled program.
    """
    text = os.environ.get("BERTJAX_FAULT")
    if not text:
        return value
    import jax.numpy as jnp

    for action, number, first, last in parse(text).get(point, ()):
        if action in ("nan", "inf", "scale"):
            due = (step >= first) & (step <= min(last, 2**31 - 1))
            wrong = value * jnp.asarray(1e3 if number is None else number, value.dtype)
            wrong = wrong if action == "scale" else jnp.full_like(value, float(action))
            value = jnp.where(due, wrong, value)
    return value


@lru_cache(maxsize=8)
def parse(text: str) -> dict[str, list[Fault]]:
    """Parse BERTJAX_FAULT: point -> its faults. Raises InputError for another form."""
    faults: dict[str, list[Fault]] = {}
    for each in filter(None, text.split(",")):
        match = _FORM.fullmatch(each.strip())
        if match is None or match[2] not in _ACTIONS:
            raise InputError(
                f"BERTJAX_FAULT: {each!r} is not point:action[=number][@first[-[last]]], with an action of "
                f"{', '.join(sorted(_ACTIONS))}"
            )
        point, action, number, first, span, last = match.groups()
        end = float("inf") if first is None or (span and not last) else int(last or first)
        faults.setdefault(point, []).append(Fault(action, float(number) if number else None, int(first or 0), end))
    return faults


def _act(fault: Fault, point: str, path: Path | None) -> None:
    if fault.action in ("kill", "term"):
        os.kill(os.getpid(), signal.SIGKILL if fault.action == "kill" else signal.SIGTERM)
    elif fault.action == "exit":
        os._exit(int(fault.number or 0))
    elif fault.action == "sleep":
        time.sleep(fault.number or 1)
    elif fault.action == "hang":
        while True:
            time.sleep(60)
    elif fault.action in _ERRORS:
        code = _ERRORS[fault.action]
        raise OSError(code, f"{os.strerror(code)} (BERTJAX_FAULT)", str(path or point))
    elif fault.action in ("flip", "truncate", "delete") and path is not None:
        _damage(fault.action, path)


def _damage(action: str, path: Path) -> None:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    if not files:
        return
    largest = max(files, key=lambda each: (each.stat().st_size, str(each)))
    content = bytearray(largest.read_bytes())
    if action == "delete":
        largest.unlink()
    elif action == "truncate":
        largest.write_bytes(content[: len(content) // 2])
    elif content:
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
