"""Build the wheel and install it where no checkout is, beside the dependencies that are installed here."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from bertjax.errors import InputError
from bertjax.experiment_files import experiment_files, find_experiment

ROOT = Path(__file__).parents[1]


def run(*command, cwd, code=0):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for name in ("bertjax", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(
        sys.executable,
        "-P",
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        "dist",
        ".",
        cwd=source,
    )
    return next((source / "dist").glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_experiment_files(wheel):
    held = zipfile.ZipFile(wheel).namelist()
    package = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("bertjax/**/*.py")]
    assert not {*package, "bertjax/py.typed"} - set(held)
    shipped = {Path(name).name for name in held if "/share/bertjax/experiments/" in name}
    assert shipped == {path.name for path in ROOT.glob("experiments/*.*")}


@pytest.mark.slow
def test_the_wheel_runs_in_a_clean_environment_and_finds_experiments_by_name(wheel, tmp_path):
    run(sys.executable, "-P", "-m", "venv", "--without-pip", "clean", cwd=tmp_path)
    (packages,) = tmp_path.glob("clean/lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run(sys.executable, "-P", "-m", "pip", "--python", "clean/bin/python", "install", "--no-deps", wheel, cwd=tmp_path)
    bertjax = tmp_path / "clean/bin/bertjax"
    assert "pretrain" in run(bertjax, "--help", cwd=tmp_path)
    version = run(bertjax, "--version", cwd=tmp_path).strip()
    assert version == "bertjax " + wheel.name.split("-")[1]
    assert f"version = {version.split()[1]}\n" in (ROOT / "setup.cfg").read_text()
    where = run(tmp_path / "clean/bin/python", "-P", "-c", "import bertjax; print(bertjax.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(packages)
    assert "4,433,468" in run(bertjax, "plan", "bert", "size=tiny", cwd=tmp_path)  # parameters
    missing = run(bertjax, "plan", "brt", cwd=tmp_path, code=2)
    assert "no experiment file brt; did you mean 'bert'?" in missing


def test_an_experiment_is_found_by_its_path_or_its_name(tmp_path, monkeypatch):
    assert find_experiment("bert") == ROOT / "experiments/bert.py"
    assert {"albert", "glue", "xlnet"} <= experiment_files().keys() and "python_docs" not in experiment_files()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").write_text("a file of this path goes first")
    assert find_experiment("bert") == Path("bert")
    with pytest.raises(InputError, match=r"no experiment file experiments/bert\.py; did you mean 'bert'\?"):
        find_experiment("experiments/bert.py")
    with pytest.raises(InputError, match="no experiment file quite_another; bertjax comes with albert, bert, "):
        find_experiment("quite_another")


def test_commits_are_formatted_by_the_version_that_checks_them():
    (version,) = re.findall(r"ruff ==([\d.]+)\n", (ROOT / "setup.cfg").read_text())
    assert f"rev: v{version}\n" in (ROOT / ".pre-commit-config.yaml").read_text()
