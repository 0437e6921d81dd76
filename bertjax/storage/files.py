"""Open files of folders that others made, and write our own files: a link in a folder leads to no other place.

A folder that the user names may be a link itself. Within it a link is followed where it stays in the folder, or leads
to the blobs beside the snapshots of a Hugging Face cache, and nowhere else. Only regular files are opened: a FIFO would
wait for ever, a device may act. What is written is first a new file of another name, so that neither a link nor a
reader ever sees half of it.

In Cloud Storage there are neither links nor special files, and an object appears when it is whole, so there the same
functions only read and write.
"""

import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO, cast

from bertjax.errors import InputError
from bertjax.storage.paths import explained, file_system, in_cloud

LARGEST_TEXT = 2**22
"""Bytes of a description, a config, an index or a header; real ones have a few hundred thousand."""

_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE = 0o666  # less what the user's umask takes away


def real_path(home: Path, name: str | Path) -> Path:
    """Return where a file or folder of `home` is. Raises InputError where it is missing or a link leads it outside."""
    if in_cloud(home):
        return _object(home, name)
    return Path(*_located(home, name))


def resolved(path: Path) -> Path:
    """Return where a path leads. Raises InputError for a circle of links, and for a NUL in the name."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # for a circle RuntimeError until Python 3.12
        raise InputError(f"{str(path)!r} cannot be opened: {error}") from error


def open_inside(home: Path, name: str | Path, most: int | None = None) -> BinaryIO:
    """Open a file of a folder for reading; `name` is its path below `home`.

    Raises InputError where it is missing, a link leads it outside, it is not a regular file, or has over `most` bytes.
    """
    if in_cloud(home):
        return _opened_object(_object(home, name), most)
    path = home / name
    base, *parts = _located(home, name)
    if not parts:
        raise InputError(f"{path} is a folder: a file is needed there")
    folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:  # none of them is a link, unless somebody changes the folder at this moment
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _SAFE, dir_fd=folder)
            os.close(folder)
            folder = below
        return _opened(path, parts[-1], most, folder)
    finally:
        os.close(folder)


def read_inside(home: Path, name: str | Path, most: int = LARGEST_TEXT) -> bytes:
    """Read a file of a folder, of at most `most` bytes. Raises InputError as `open_inside`."""
    return _content(open_inside(home, name, most), home / name, most)


def open_given(path: Path, most: int | None = None) -> BinaryIO:
    """Open a file that the user names, links included. Raises InputError unless it is a regular file, as above."""
    if in_cloud(path):
        return open_inside(path.parent, path.name, most)
    real = resolved(path)
    return open_inside(real.parent, real.name, most)


def read_given(path: Path, most: int = LARGEST_TEXT) -> bytes:
    """Read a file that the user names, of at most `most` bytes. Raises InputError as `open_given`."""
    return _content(open_given(path, most), path, most)


def files_below(home: Path, pattern: str = "*") -> list[Path]:
    """List the regular files below a folder, sorted. Raises InputError where a link leads one of them outside."""
    if in_cloud(home):
        with explained(home):
            names = file_system().find(os.fspath(home))
        below = [home / each[len(os.fspath(home).removeprefix("gs://").rstrip("/")) + 1 :] for each in names]
        return sorted(path for path in below if fnmatch(path.name, pattern))
    found = sorted(path for path in home.rglob(pattern) if path.is_file())
    for path in found:
        if path.is_symlink():
            real_path(home, path.relative_to(home))
    return found


def check_tree(home: Path, name: str | Path = "") -> None:
    """Check a folder or file below `home` before a library opens it by its name: it holds regular files and folders.

    Raises InputError for anything else, and for a link that leads outside.
    """
    if in_cloud(home):
        return
    top = real_path(home, name)
    if not stat.S_ISREG(top.lstat().st_mode) and not stat.S_ISDIR(top.lstat().st_mode):
        raise _not_plain(home / name)
    for folder, folders, files in os.walk(top):
        for each in (*folders, *files):
            path = Path(folder, each)
            linked = path.is_symlink()
            mode = (real_path(home, Path(name) / path.relative_to(top)) if linked else path).lstat().st_mode
            if not stat.S_ISREG(mode) and (linked or not stat.S_ISDIR(mode)):
                raise _not_plain(path)


def user_cache() -> Path | None:
    """Return the folder of bertjax's caches of this user; None without a home, as for many users of containers."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bertjax"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        return None


def make_folder(home: Path, name: str | Path) -> Path:
    """Create a folder below `home`, and those between, unless they exist. Raises InputError where one is a link."""
    if in_cloud(home):
        return home / name
    home.mkdir(parents=True, exist_ok=True)
    path = home
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink():
            raise InputError(f"{path} is a link to {os.readlink(path)}: replace it by a folder, or choose another")
        path.mkdir(exist_ok=True)
    return path


def write(path: Path, content: bytes | str) -> None:
    r"""Write a file, as `writing`; halves of surrogate pairs, which JSON may hold and no encoding has, as \ud800."""
    with writing(path) as file:
        file.write(utf8(content) if isinstance(content, str) else content)


def utf8(text: str) -> bytes:
    r"""Encode a text in UTF-8. A half of a surrogate pair becomes \ud800, which is how JSON spells it in ASCII."""
    return text.encode(errors="backslashreplace")


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that becomes `path` when the block ends; after an error there is what was there before.

    It replaces a link, and does not follow it. Raises InputError where a folder is in its place.
    """
    if in_cloud(path):
        with tempfile.NamedTemporaryFile() as local:
            yield cast(BinaryIO, local)
            local.flush()
            upload(Path(local.name), path)
        return
    partial = _partial(path)
    try:
        with _created(partial) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, IsADirectoryError):
            raise InputError(f"{path} is a folder, where a file is to be written: move it away") from error
        raise


@contextmanager
def written_by_name(path: Path) -> Iterator[Path]:
    """Yield a new name, for a library that writes a file by its name; the file becomes `path`, as with `writing`."""
    if in_cloud(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, path.name)
            upload(Path(folder, path.name), path)
        return
    partial = _partial(path)
    try:
        with _created(partial) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield partial
        with os.fdopen(os.open(partial, os.O_RDONLY | _SAFE), "rb") as file:
            os.fchmod(file.fileno(), mode)  # some libraries write it for its owner alone
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def upload(local: Path, path: Path) -> None:
    """Write a file of this machine, or all files below a folder, to a place in Cloud Storage, each whole."""
    with explained(path):
        if local.is_dir():
            for file in files_below(local):
                file_system().put_file(os.fspath(file), os.fspath(path / file.relative_to(local).as_posix()))
        else:
            file_system().put_file(os.fspath(local), os.fspath(path))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder on a disk to write to, which does not exist: `folder` itself, or one that becomes it at the end.

    The second is uploaded, or moved into `folder` where that is a mount point or its parent may not be changed; nothing
    is after an error. A link is followed. Raises InputError where the folder exists and is not empty.
    """
    if not in_cloud(folder) and folder.is_symlink():
        folder = resolved(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: choose a new folder")
    if in_cloud(folder):
        with tempfile.TemporaryDirectory() as local:
            yield Path(local, folder.name)
            upload(Path(local, folder.name), folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rmdir()  # because writers create it
    except FileNotFoundError:
        pass
    except OSError:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as within:
            yield Path(within, folder.name)
            for path in Path(within, folder.name).iterdir():
                path.rename(folder / path.name)
        return
    yield folder


def remove_folder(folder: Path) -> None:
    """Delete a folder with all that is in it, if it is there."""
    if not in_cloud(folder):
        if folder.is_symlink():
            folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        with explained(folder):
            file_system().rm(os.fspath(folder), recursive=True)


def version_of(path: Path) -> tuple[int, int]:
    """Return the bytes of a file, and a number that changes with its content: of its last change, in nanoseconds.

    In Cloud Storage the number is the generation of the object.
    """
    if not in_cloud(path):
        found = path.stat()
        return found.st_size, found.st_mtime_ns
    with explained(path):
        described = file_system().info(os.fspath(path))
        return int(described["size"]), int(described["generation"])


def size_below(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    if not in_cloud(folder):
        return sum(path.stat().st_size for path in files_below(folder))
    with explained(folder):
        return int(file_system().du(os.fspath(folder)))


def move_file(path: Path, to: Path) -> None:
    """Rename a file, in place of what is there."""
    if not in_cloud(path):
        path.replace(to)
        return
    with explained(path):
        file_system().mv(os.fspath(path), os.fspath(to))


def move_folder(folder: Path, to: Path) -> None:
    """Move a folder, in place of what is there.

    In Cloud Storage objects are copied one by one, within the service, those of the folder itself last: so what tells
    that a checkpoint is finished comes after all the rest.
    """
    remove_folder(to)
    if not in_cloud(folder):
        folder.rename(to)
        return
    with explained(to):
        for path in sorted(files_below(folder), key=lambda path: -len(path.parts)):
            file_system().cp_file(os.fspath(path), os.fspath(to / path.relative_to(folder).as_posix()))
        remove_folder(folder)


def open_append(path: Path) -> TextIO:
    """Open a text file of our own to append lines, created if need be; it can be read too.

    Raises InputError for a link, a second name of another file, and anything but a regular file.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link to {os.readlink(path)}: delete it; a run writes into its own folder alone")
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _SAFE, _MODE)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise _not_plain(path)
    return cast(TextIO, os.fdopen(descriptor, "a+", buffering=1, encoding="utf-8"))


def _object(home: Path, name: str | Path) -> Path:
    """Return the path of an object, or of what looks like a folder. Raises InputError where there is none."""
    parts = PurePosixPath(name).parts
    if ".." in parts or PurePosixPath(name).is_absolute():
        raise InputError(f"{name!r} is not below {home}")
    path = home / name
    with explained(path):
        if not path.exists():
            raise InputError(f"{path} is missing")
    return path


def _opened_object(path: Path, most: int | None) -> BinaryIO:
    with explained(path):
        found = file_system().info(os.fspath(path))
        if found["type"] != "file":
            raise InputError(f"{path} is a folder: a file is needed there")
        if most is not None and found["size"] > most:
            raise _too_large(path, found["size"], most)
        return io.BufferedReader(cast(Any, path.open("rb")))  # whose readline() takes no limit


def _located(home: Path, name: str | Path) -> tuple[str, ...]:
    """Return the real folder that is opened, and the components of the real path below it."""
    path, base = home / name, resolved(home)
    real = resolved(path)
    if not os.path.lexists(real):
        raise InputError(f"{path} is missing")
    for allowed in (base, *_blobs(base)):
        if real == allowed or allowed in real.parents:
            return (str(allowed), *real.relative_to(allowed).parts)
    raise InputError(f"{path} is a link to {real}, outside the folder: copy the file there instead")


def _blobs(home: Path) -> tuple[Path, ...]:
    """Return the folder of the blobs, to which a Hugging Face cache links, if a folder is in a snapshot of one."""
    snapshot = next((each for each in (home, *home.parents) if each.parent.name == "snapshots"), None)
    return () if snapshot is None else (snapshot.parent.parent / "blobs",)


def _opened(path: Path, name: str, most: int | None, folder: int) -> BinaryIO:
    """Open a file by its name in a folder that is open; `path` names it in errors."""
    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise _not_plain(path)  # not even opened
    descriptor = os.open(name, os.O_RDONLY | _SAFE, dir_fd=folder)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or (most is not None and found.st_size > most):
        os.close(descriptor)
        raise _too_large(path, found.st_size, most or 0) if stat.S_ISREG(found.st_mode) else _not_plain(path)
    return cast(BinaryIO, os.fdopen(descriptor, "rb"))


def _content(opened: BinaryIO, path: Path, most: int) -> bytes:
    with opened as file, explained(path):
        content = file.read(most + 1)
    if len(content) > most:  # it grew, or its system states no size
        raise _too_large(path, len(content), most)
    return content


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _created(path: Path) -> BinaryIO:
    """Create a file; what a killed process left under its name, or a link of that name, is deleted before."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, _MODE)
    return cast(BinaryIO, os.fdopen(descriptor, "wb"))


def _not_plain(path: Path) -> InputError:
    return InputError(f"{path} is not a plain file of one name: delete it, or copy its content into a new file")


def _too_large(path: Path, size: int, most: int) -> InputError:
    return InputError(f"{path} has {size:,} bytes: no real one is over {most:,}")
