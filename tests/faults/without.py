"""Switch protections of bertjax off, to see that a drill fails without them; also for a command.

python tests/faults/without.py PROTECTION[,PROTECTION …] pretrain …
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax.numpy as jnp

from bertjax import train
from bertjax.checkpoints import checkpoint, newest, saving
from bertjax.data import corpus_rows, records, source
from bertjax.run import batches, checks, leaving, processes, state, stop, watch, workdir, writers


def _newest_alone(
    run: Path, read: Callable[[Path], Any], say: Any, together: Any = None
) -> tuple[Any, Path, list[Path]]:
    path = checkpoint.latest_step(run)
    return read(path), path, []


def _in_place(self: saving.BackgroundSaves, job: saving._Job) -> str:
    """Write a checkpoint under its own name at once, over what is there, and delete old ones before."""
    steps = self._finished()
    for _, path in steps[: len(steps) - self._keep + 1]:
        shutil.rmtree(path)
    self._write(self._folder / str(job.step), job.arrays, job.info)
    self._note(job.step)
    return ""


def _appended(lines: Iterator[bytes], step: int, every: int) -> Iterator[tuple[bytes, str]]:
    return ((line.rstrip(b"\n"), "") for line in lines)


_judge, _local_batches, _mended = train.judge, train.local_batches, writers.mended


def _all_usable(skips: Any, *rest: Any) -> Any:
    return jnp.bool_(True), _judge(skips, *rest)[1]._replace(in_a_row=jnp.int32(0))


def _from_the_first(*arguments: Any, start: int, **options: Any) -> Any:
    return _local_batches(*arguments, start=0, **options)


class _Asleep(watch.Watch):
    """A watch that ends nothing."""

    def _watch(self) -> None:
        self._closed.wait()

    def _listen(self) -> None:
        self._closed.wait()


class _AnyIndex:
    """An opened corpus that nothing was compared of."""

    def __init__(self, folder: str, split: str) -> None:
        pass


class _Unasked(batches.Inputs):
    """Batches that tell the other processes of no error."""

    def next(self, step: int, times: tuple[float, float]) -> Any:
        batch = super().next(step, times)
        if self.error is not None:
            raise self.error
        return batch


def _any_file(*arguments: Any) -> None:
    pass


class _Anything:
    """A digest that equals every other."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


def _any_info(folder: Path) -> dict[str, Any]:
    return checkpoint._read_json(folder)


PROTECTIONS: Mapping[str, tuple[tuple[Any, str, Any], ...]] = {
    "checksums": ((checkpoint, "verify", _any_file),),
    "reading back": ((checkpoint, "_read_back", _any_file),),
    "attempts": ((saving, "ATTEMPTS", 1),),
    "renaming": ((saving.BackgroundSaves, "_attempt", _in_place),),
    "deletion at once": ((saving.BackgroundSaves, "_delete", lambda self, path: shutil.rmtree(path)),),
    "search": tuple((module, "read_newest", _newest_alone) for module in (state, workdir, newest)),
    "mending": ((writers, "mended", _appended),),
    "emptied": ((state, "check_not_emptied", _any_file),),
    "names": ((checkpoint, "read_info", _any_info),),
    "order of data": ((train, "local_batches", _from_the_first),),
    "skipping": ((train, "judge", _all_usable),),
    "ids": ((source, "TokenReader", lambda path, dtype, ids: records.TokenReader(path, dtype)),),
    "shards": ((corpus_rows, "verify_shards", _any_file), (corpus_rows, "Corpus", _AnyIndex)),
    "indices": ((source, "file_digest", lambda path: _Anything()),),
    "watch": ((train, "Watch", _Asleep),),
    "aborts": ((leaving, "exit_at_aborts", _any_file),),
    "signals": ((stop, "SIGNALS", ()),),
    "comparing": tuple((module, "assert_equal_on_all", _any_file) for module in (checks, processes)),
    "stop with the rows": ((train, "Inputs", _Unasked),),
    "together": tuple((module, "raising_on_all", nullcontext) for module in (state, train, processes)),
}
"""By name: what takes the place of what."""


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Switch some protections off."""
    with ExitStack() as stack:
        for name in names:
            for place, attribute, other in PROTECTIONS[name]:
                stack.enter_context(patch.object(place, attribute, other))
        yield


def protected(on: bool, *names: str) -> Any:
    """Return a context in which these protections are on, or off."""
    return nullcontext() if on else without(*names)


if __name__ == "__main__":
    from bertjax.commands.main import main

    names, sys.argv[1:] = sys.argv[1].split(","), sys.argv[2:]
    with without(*filter(None, names)):
        sys.exit(main())
