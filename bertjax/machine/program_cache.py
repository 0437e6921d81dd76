"""Whether a folder of compiled programs may be used: JAX runs what it finds there, so it is as good as code."""

import os
import stat
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def cache_problem(folder: Path) -> str:
    """Return why JAX must not run the programs in a folder, with the remedy; "" where nobody else can write there.

    A folder that does not exist is nobody's. The superuser is trusted.
    """
    try:
        kinds = folder.lstat(), folder.stat()
    except OSError:
        return ""
    owner = next((each.st_uid for each in kinds if each.st_uid not in (0, os.geteuid())), None)
    if owner is not None:
        return (
            f"{folder} belongs to another user ({owner}), and JAX runs the programs in it: set {VARIABLE} to your own"
        )
    if stat.S_IMODE(kinds[1].st_mode) & 0o022:
        return f"other users can write to {folder}, and JAX runs the programs in it: chmod go-w {folder}"
    return ""


def without_foreign_programs() -> str:
    """Make JAX, before it is imported, ignore a cache of compiled programs that others can write to.

    Returns a warning, or "" where the cache that the environment names is this user's alone, or in Cloud Storage.
    """
    chosen = os.environ.get(VARIABLE, "")
    problem = cache_problem(Path(chosen)) if chosen and "://" not in chosen else ""
    if problem:
        del os.environ[VARIABLE]
    return f"the cache of compiled programs is not used: {problem}" if problem else ""
