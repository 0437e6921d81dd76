"""docs/design.md lists exactly the modules of the package, in the order of their imports."""

import ast
import importlib
import re
from pathlib import Path

PAGE = Path("docs/design.md").read_text()
PACKAGE = Path("bertjax")


def listed():
    """Return the modules of the page's list in order, as paths from the package."""
    (block,) = (block for block in re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL) if "\ntrain.py " in block)
    folder, found = "", []
    for line in block.splitlines():
        if re.match(r"\w", line):
            folder = line.split()[0] if line.split()[0].endswith("/") else ""
        names = re.match(r"(?:\s*[\w/]+\.py)*", line)[0].split()
        found += [f"{folder}{name}" for name in names]
    return found


def test_the_page_lists_exactly_the_modules_of_the_package():
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    modules = {name for name in modules if not name.endswith(("__init__.py", "__main__.py"))}
    assert sorted(listed()) == sorted(modules)


def test_no_import_goes_against_the_order_of_the_page():
    order = list(dict.fromkeys(re.split(r"/|\.py", name)[0] for name in listed()))
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in order:  # __init__ and __main__
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in (name for name in modules if name.startswith("bertjax.")):
                imported = module.split(".")[1]
                assert order.index(imported) <= order.index(room), (
                    f"{path} imports {module}, which the page lists below it"
                )


def test_other_names_of_files_on_the_page_exist():
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert any((folder / name).exists() for folder in (PACKAGE, Path("tests"), Path())), name


def test_the_table_of_steps_names_functions_that_exist_in_its_files():
    rows = re.findall(r"^\| [^|]* \| (`[\w/]+\.py`[^|]*) \| (`[^|]*`) \|$", PAGE, flags=re.MULTILINE)
    assert len(rows) >= 20
    for files, names in rows:
        paths = re.findall(r"`([\w/]+)\.py`", files)
        modules = [importlib.import_module(f"bertjax.{path.replace('/', '.')}") for path in paths]
        for name in re.findall(r"`([\w.]+)`", names):
            first, _, attribute = name.partition(".")
            found = [getattr(module, first) for module in modules if hasattr(module, first)]
            assert found and (not attribute or hasattr(found[0], attribute)), (files, name)
