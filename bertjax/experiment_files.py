"""Find the experiment files that come with bertjax: in its checkout, or installed from a wheel."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from bertjax.errors import InputError
from bertjax.nearest import did_you_mean


def experiment_files() -> dict[str, Path]:
    """Return the experiment files of this installation by name: {"bert": Path(".../experiments/bert.py"), …}."""
    checkout = Path(__file__).parents[1] / "experiments"
    found = list(checkout.glob("*.py")) if (checkout.parent / "setup.cfg").exists() else _installed()
    return {path.stem: path for path in sorted(found) if "\ndef experiment(" in path.read_text()}


def find_experiment(path: str | Path) -> Path:
    """Return the file at this path, or the file that comes with bertjax under this name.

    Raises InputError where there is neither: the message names the files beside it, or those of bertjax.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"{path!r:.60} is no path: give the file of an experiment as a text or a Path")
    path = Path(path)
    if path.is_file():
        return path
    published = experiment_files()
    if str(path) in published:
        return published[str(path)]
    known = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent != Path() else []
    meant = did_you_mean(str(path), known) or did_you_mean(path.stem, published)
    if meant:
        hint = f"; {meant}"
    elif known:
        hint = f"; beside it: {', '.join(known)}"
    else:
        hint = f"; bertjax comes with {', '.join(published)}: give one of these names" if published else ""
    raise InputError(f"no experiment file {path}{hint}")


def _installed() -> list[Path]:
    """Return the Python files that the wheel has put under share/bertjax/experiments."""
    try:
        listed = files("bertjax") or []
    except PackageNotFoundError:
        return []
    places = [Path(str(file.locate())) for file in listed if file.parts[-3:-1] == ("bertjax", "experiments")]
    return [place for place in places if place.suffix == ".py"]
