"""Begin an experiment of one's own: a copy of one that comes with bertjax, with comments on what to change where.

The copy is made from the experiment itself, which is tested, so it cannot fall behind it: comments are put before the
lines that they are about, and the code is not touched.
"""

import ast
import inspect
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import bertjax
from bertjax.errors import InputError
from bertjax.experiment_files import find_experiment

NOTES = {
    "experiment": "The arguments are set by key=value on the command line, with these defaults; fields of what is\n"
    "returned too, by dotted names: run.checkpoint_every=500.",
    "masking": "Which tokens are hidden, and by what they are replaced; `unit` may be a function of yours:\n"
    "docs/extending-masking.md.",
    "encoder": "The model: sizes and parts are its fields; or a Linen module of yours: docs/extending-encoder.md.",
    "objective": "What is learned: a dataclass with `init` and `loss`; one of yours: docs/extending-objective.md.",
    "optimizer": "Moments, schedule and decay; rules on names of parameters say what is decayed, slowed or frozen.",
    "phases": "Steps, rows in a batch, and how rows are cut from the corpus; rows of yours: docs/extending-rows.md.",
    "FineTuning": "A task, its data, the model to start from, the recipe; a task of yours: docs/extending-task.md.",
}
"""By the name of a function, a variable, an argument or a class: the comment before its first line."""


def write_experiment(path: str | Path, like: str) -> list[str]:
    """Write the file, and return notes on how to go on. Raises InputError where it exists, or `like` does not."""
    path, source = Path(path), find_experiment(like)
    if path.suffix != ".py" or {'"', "\\", "\n"} & set(str(path)):
        raise InputError(f"{str(path)!r} is no name of an experiment file: let it end in .py, without quotes")
    text = _commented(source, path)
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(f"{path} exists: choose another name, or delete it") from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    plan, *run = _commands(ast.parse(text), path)
    return [f"{path}: written, as {source.name} with comments", f"next: {'; '.join([plan, *run][:2])}"]


def _commented(source: Path, path: Path) -> str:
    """Return the text of an experiment with a docstring and comments for somebody who changes it."""
    text = source.read_text()
    tree, lines = ast.parse(text), text.splitlines()
    comments = dict(_comments(tree, lines))
    first = tree.body[0].end_lineno if ast.get_docstring(tree) is not None else 0
    kept = [(*comments.get(number, ()), line) for number, line in enumerate(lines, 1) if number > (first or 0)]
    return "\n".join(chain(_docstring(tree, source, path), *kept)) + "\n"


def _docstring(tree: ast.Module, source: Path, path: Path) -> Iterator[str]:
    title = (inspect.cleandoc(ast.get_docstring(tree) or source.stem)).splitlines()[0]
    yield f'"""My experiment, begun as {source.name} of bertjax {bertjax.__version__}.'
    yield ""
    yield from (f"    {command}" for command in _commands(tree, path))
    yield ""
    yield f"It was: {title}"
    yield "The pages docs/extending*.md of bertjax's repository have worked examples for each part."
    yield "Where the model has classes or functions of this file, the commands that use it need both:"
    yield f"--model runs/{path.stem}{'/best' * _is_finetuning(_function(tree))} --experiment {path}"
    yield '"""'


def _commands(tree: ast.Module, path: Path) -> Iterator[str]:
    """Yield the commands that plan and run an experiment, with the arguments that have no default."""
    function = _function(tree)
    names = [each.arg for each in function.args.args]
    required = names[: len(names) - len(function.args.defaults)]
    needed = "".join(f" {name}=…" for name in required)
    if _is_finetuning(function):
        yield f"bertjax finetune {path}{needed} --workdir runs/{path.stem}"
        return
    yield f"bertjax plan {path}{needed}"
    data = " data=corpus/" if "data" in names and "data" not in required else ""
    yield f"bertjax pretrain {path}{needed}{data} --workdir runs/{path.stem}"


def _function(tree: ast.Module) -> ast.FunctionDef:
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "experiment")


def _is_finetuning(function: ast.FunctionDef) -> bool:
    return isinstance(function.returns, ast.Name) and function.returns.id == "FineTuning"


def _comments(tree: ast.Module, lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield by the number of a line the comments before it; each note once, where its name begins a line."""
    told = set()
    for node in ast.walk(tree):
        name, number = _name_of(node), getattr(node, "lineno", 0)
        if name not in NOTES or name in told:
            continue
        line = lines[number - 1]
        indent = len(line) - len(line.lstrip())
        if getattr(node, "col_offset", -1) == indent:
            told.add(name)
            yield number, [f"{' ' * indent}# {each}" for each in NOTES[name].splitlines()]


def _name_of(node: ast.AST) -> str:
    if isinstance(node, ast.FunctionDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    if isinstance(node, ast.keyword):
        return node.arg or ""
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
        return node.value.func.id
    return ""
