"""Keep the files that a run appends to on a disk, where its work directory is in Cloud Storage, and upload them.

An object cannot be appended to. So each process writes its messages, and process 0 the log, timing, TensorBoard's
events and traces, into a folder of its own machine. Before each checkpoint and at the end the files that have changed
are uploaded, each whole; messages also within seconds, since they tell how a run ended.
"""

import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bertjax.run.processes import is_coordinator, messages_path
from bertjax.run.writers import Progress
from bertjax.storage import files
from bertjax.storage.paths import in_cloud

_CONTINUED = ("log.jsonl", "timing.jsonl", "wandb_id")  # which process 0 of a resumed run reads or appends to

_LARGEST = 2**30  # bytes of a log that is continued: a line of ours has some 500, a run some ten thousand lines

_EACH = 2.0  # seconds between uploads of messages

_NEW = 60.0  # seconds in which a folder may be made, and not locked yet

_KEPT = "not-uploaded"
"""A file in a folder whose logs could not be uploaded, which no later run deletes."""


class LocalFiles:
    """The folder that a run writes its logs into: the work directory itself, where that is on a disk."""

    def __init__(self, folder: Path, workdir: Path, progress: Progress) -> None:
        self.folder, self._workdir, self._progress = folder, workdir, progress
        self._uploaded: dict[Path, tuple[int, int]] = {}
        self._one_at_a_time, self._ended = threading.Lock(), threading.Event()
        if folder != workdir:
            threading.Thread(target=self._upload_messages, daemon=True, name="upload messages").start()

    def upload(self, pattern: str = "*") -> bool:
        """Upload the files that have changed; return whether that succeeded. A failure is reported, and ends no run."""
        if self.folder == self._workdir:
            return True
        try:
            with self._one_at_a_time:
                for path in files.files_below(self.folder, pattern):
                    version = files.version_of(path)
                    if self._uploaded.get(path) != version:
                        files.upload(path, self._workdir / path.relative_to(self.folder).as_posix())
                        self._uploaded[path] = version
        except Exception as error:  # noqa: BLE001 gcsfs raises several kinds that have no common class
            if pattern == "*":
                self._progress.say(f"warning: the logs in {self.folder} were not uploaded: {error}")
            return False
        return True

    def end(self) -> None:
        """Upload all, and delete the folder, unless that fails."""
        self._ended.set()
        if self.folder == self._workdir:
            return
        if self.upload():
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            with suppress(OSError):
                (self.folder / _KEPT).touch()

    def _upload_messages(self) -> None:
        while not self._ended.wait(_EACH):
            self.upload("messages*")


@contextmanager
def local_files(workdir: Path, progress: Progress) -> Iterator[LocalFiles]:
    """Yield the folder for the logs of a run, with those that are in the work directory; upload them at the end.

    Where that fails they are kept, and the message names the folder. What runs that were killed have left on this
    machine is deleted.
    """
    folder, held = workdir, None
    if in_cloud(workdir):
        _delete_left(Path(tempfile.gettempdir()))
        folder = Path(tempfile.mkdtemp(prefix="bertjax-run-"))
        held = _locked(folder)
        for name in (*(_CONTINUED if is_coordinator() else ()), messages_path(folder).name):
            if (workdir / name).exists():
                with files.open_inside(workdir, name, _LARGEST) as file, files.writing(folder / name) as copy:
                    shutil.copyfileobj(file, copy)
    local = LocalFiles(folder, workdir, progress)
    try:
        yield local
    finally:
        local.end()
        if held is not None:
            os.close(held)


def _locked(folder: Path) -> int | None:
    """Lock a folder while this process lives; return what is to be closed, None where another one has it locked."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _delete_left(home: Path) -> None:
    """Delete the folders of runs of this user that are gone, but for those whose logs could not be uploaded."""
    for folder in home.glob("bertjax-run-*"):
        with suppress(OSError):  # a link, or deleted meanwhile
            found = folder.lstat()
            new = time.time() - found.st_mtime < _NEW
            if found.st_uid == os.getuid() and not new and not (folder / _KEPT).exists():
                handle = _locked(folder)
                if handle is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(handle)
