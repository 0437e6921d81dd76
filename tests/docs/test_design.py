"""docs/design.md names every module, and none that is not there, in an order that no import goes against."""

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


def test_the_page_lists_every_module_and_no_other():
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
                    f"{path} imports {module}: which does not stand above it on the page"
                )


def test_other_names_of_files_on_the_page_exist():
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert any((folder / name).exists() for folder in (PACKAGE, Path("tests"), Path())), name


def test_what_happens_where_is_there():
    rows = re.findall(r"^\| [^|]* \| `([\w/]+)\.py`[^|]* \| (`[^|]*`) \|$", PAGE, flags=re.MULTILINE)
    assert len(rows) >= 10
    for module, names in rows:
        found = importlib.import_module(f"bertjax.{module.replace('/', '.')}")
        assert all(hasattr(found, name) for name in re.findall(r"\w+", names)), (module, names)
