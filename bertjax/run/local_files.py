"""Keep the files that a run appends to on a disk, where its work directory is in Cloud Storage, and upload them.

An object cannot be appended to. So process 0 writes log, timing, TensorBoard's events and traces into a folder of its
own machine, and before each checkpoint and at the end the files that have changed are uploaded, each whole.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bertjax import files
from bertjax.errors import InputError
from bertjax.paths import explained, in_cloud
from bertjax.run.processes import is_coordinator
from bertjax.run.writers import Progress

_CONTINUED = ("log.jsonl", "timing.jsonl", "wandb_id")  # which a resumed run reads


class LocalFiles:
    """The folder that a run writes its logs into: the work directory itself, where that is on a disk."""

    def __init__(self, folder: Path, workdir: Path, progress: Progress) -> None:
        self.folder, self._workdir, self._progress = folder, workdir, progress
        self._uploaded: dict[Path, tuple[int, int]] = {}

    def upload(self) -> bool:
        """Upload the files that have changed; return whether that succeeded. A failure is reported, and ends no run."""
        if self.folder == self._workdir:
            return True
        try:
            for path in files.files_below(self.folder):
                found = path.stat()
                version = found.st_size, found.st_mtime_ns
                if self._uploaded.get(path) != version:
                    files.upload(path, self._workdir / path.relative_to(self.folder).as_posix())
                    self._uploaded[path] = version
        except (InputError, OSError) as error:
            self._progress.say(f"warning: the logs in {self.folder} were not uploaded: {error}")
            return False
        return True


@contextmanager
def local_files(workdir: Path, progress: Progress) -> Iterator[LocalFiles]:
    """Yield the folder for the logs of a run, with those that are in the work directory; upload them at the end.

    Where that fails they are kept, and the message names the folder.
    """
    if not in_cloud(workdir) or not is_coordinator():
        yield LocalFiles(workdir, workdir, progress)
        return
    local = LocalFiles(Path(tempfile.mkdtemp(prefix="bertjax-run-")), workdir, progress)
    with explained(workdir):
        for name in _CONTINUED:
            if (workdir / name).exists():
                files.write(local.folder / name, (workdir / name).read_bytes())
    try:
        yield local
    finally:
        if local.upload():
            shutil.rmtree(local.folder, ignore_errors=True)
