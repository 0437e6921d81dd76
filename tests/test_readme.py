"""What the README and the other pages show is run or looked up, so that it stays true."""

import dataclasses
import importlib
import inspect
import re
import runpy
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from bertjax.commands.main import main
from bertjax.config import Experiment, load_experiment
from bertjax.finetuning.recipe import FineTuning

README = Path("README.md")
PAGES = [
    README,
    *(Path(name) for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted(Path("docs").glob("*.md")),
]
PAGES += [Path(folder, "README.md") for folder in ("experiments", "benchmarks", "tpu")]
ALL = pytest.mark.parametrize("page", PAGES, ids=str)
NEEDED = ("data", "init", "teacher")  # folders that are not there


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def shell_lines(page):
    """Return the commands of a page, as words, without comments; variables are filled in."""
    text = "\n".join(blocks(page, "sh"))
    for name, value in re.findall(r'^(\w+)="(.*?)"', text, flags=re.DOTALL | re.MULTILINE):
        text = text.replace(f"${name} ", f"{value} ")
    text = re.sub(r"\\\n", " ", re.sub(r" #.*", "", text))
    return [re.sub(r'"[^"]*"', "TEXT", line).split() for line in text.splitlines()]


def bertjax_lines(page):
    return [words[1:] for words in shell_lines(page) if words[:1] == ["bertjax"]]


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 105 and len(text.split()) <= 900
    prose = [line for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines() if not line.startswith("|")]
    assert max(map(len, prose)) <= 110


def test_the_notebook_runs():
    (code,) = blocks(README, "python")
    names = {}
    exec(code, names)
    assert abs(names["loss"] - 10.33) < 0.1  # ln 30522
    assert names["masked"].positions_BP.shape == (4, 10)


def test_the_loaded_model_of_the_readme_has_the_methods_shown():
    import bertjax
    from bertjax.checkpoints.trained import Model

    (code,) = blocks(README, "py")
    assert set(re.findall(r"model\.(\w+)\(", code)) <= set(dir(Model))
    assert set(re.findall(r"bertjax\.(\w+)\(", code)) <= set(bertjax.__all__)


def test_figures_of_the_readme_are_those_of_the_benchmarks():
    measured = Path("benchmarks/README.md").read_text()
    rows = [line for line in README.read_text().splitlines() if "python benchmarks/" in line]
    assert 0 < len(rows) <= 5
    for row in rows:
        _, _, figure, command, _ = row.split("|")
        script, *options = command.strip(" `").split()[1:]
        assert Path(script).exists() and script in measured
        assert all(name in measured for name in options if name.startswith("--")), row
        assert figure.strip() in measured.replace("**", ""), row


@ALL
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        target, _, heading = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        if heading:
            lines = re.findall(r"^#+ (.*)", path.read_text(), flags=re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines]
            assert heading in slugs, (link, slugs)


@ALL
def test_paths_that_are_named_exist(page):
    text = page.read_text().replace("bertjax/tpu/", "tpu/")  # a copy of the repository on a machine of its own
    rooms = "experiments|benchmarks|tpu|docs|bertjax|tests"
    for path in re.findall(rf"(?<![\w/.])(?:{rooms})/[\w/]*\w\.(?:py|md|yaml)", text):
        assert Path(path).exists(), path
    targets = re.findall(r"`make ([a-z]+)`", text) + [line[1] for line in shell_lines(page) if line[:1] == ["make"]]
    makefile = Path("Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


@ALL
def test_names_of_code_are_those_of_the_source(page):
    """Look up each name in backticks with a capital inside or an underscore, so that a renaming reaches the pages."""
    if page.name == "CHANGELOG.md" or page.parent.name == "tpu":  # former names, those of Google
        return
    text = re.sub(r"```.*?```|\S+\.py|LIBTPU_INIT_ARGS=\S+", "", page.read_text(), flags=re.DOTALL)
    names = {part for code in re.findall(r"`([^`\n]+)`", text) for part in re.findall(r"_?[A-Za-z]\w+", code)}
    names = {name for name in names if re.search(r"[a-z][A-Z]|\w{2}_\w", name)}
    missing = {name for name in names if name not in words_of_the_source()}
    assert not missing, missing


@cache
def words_of_the_source():
    files = [file for folder in ("bertjax", "experiments", "tests", "tpu") for file in Path(folder).rglob("*.py")]
    files += [path for path in (Path("setup.cfg"), Path("Makefile"))]
    return {word for file in files for word in re.findall(r"\w+", file.read_text())}


@ALL
def test_commands_and_their_options_exist(page, capsys):
    for words in bertjax_lines(page):
        of_evaluate = words[0] == "evaluate" and words[1:2] and not words[1].startswith("-")
        nested = words[0] in ("tokenizer", "data", "predict") or of_evaluate
        command = words[: 2 if nested else 1]
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--help"])
        assert stopped.value.code == 0
        known = capsys.readouterr().out
        for option in (word for word in words if word.startswith("--")):
            assert option in known, (command, option)
    for words in shell_lines(page):
        if words[:1] == ["python"] and Path(words[1]).exists():
            source = Path(words[1]).read_text()
            assert all(word in source for word in words[2:] if word.startswith("--")), words


@ALL
def test_overrides_set_arguments_and_fields_that_exist(page):
    for command, path, *words in (words for words in bertjax_lines(page) if "experiments/" in " ".join(words[1:2])):
        overrides = dict(word.partition("=")[::2] for word in words if re.match(r"[\w.]+=", word))
        parameters = inspect.signature(runpy.run_path(path)["experiment"]).parameters
        kind = FineTuning if command == "finetune" else Experiment
        fields = {field.name for field in dataclasses.fields(kind)}
        for key in overrides:
            assert key in parameters or key.partition(".")[0] in fields, (path, key)
            if key.startswith(("recipe.", "run.")):
                part = {field.name: field.type for field in dataclasses.fields(kind)}[key.partition(".")[0]]
                assert key.partition(".")[2] in {field.name for field in dataclasses.fields(part)}, (path, key)
        required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
        if kind is Experiment and not required:
            load_experiment(path, [f"{key}={value}" for key, value in overrides.items() if key not in NEEDED])


def test_tables_of_fine_tuning_name_fields_of_the_recipe():
    names = re.findall(r"`recipe\.(\w+)", Path("docs/fine-tuning.md").read_text())
    (recipe,) = (field.type for field in dataclasses.fields(FineTuning) if field.name == "recipe")
    assert names and set(names) <= {field.name for field in dataclasses.fields(recipe)}


def test_the_modules_of_the_changelog_exist():
    rows = re.findall(r"^\| [^|]*`bertjax[^|]* \| (.*) \|$", Path("CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert len(rows) > 10
    for cell in rows:
        package = ""
        for name in re.findall(r"`(\.?[\w.]+)`", cell):
            if name.startswith("bertjax."):
                package = name.rpartition(".")[0]
            elif not name.startswith("."):
                continue
            path = name if name.startswith("bertjax.") else package + name
            assert find_object(path), (path, cell)


def find_object(path):
    """Return a module, or what it defines, or None."""
    with suppress(ImportError):
        return importlib.import_module(path)
    module, _, name = path.rpartition(".")
    with suppress(ImportError):
        return getattr(importlib.import_module(module), name, None)
    return None
