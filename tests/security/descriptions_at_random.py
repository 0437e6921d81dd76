"""Draw random descriptions, and watch what rebuilding them calls."""

import ast
import copy
import dataclasses
import os
import random
import sys
from contextlib import contextmanager
from pathlib import Path

import bertjax
from bertjax.serialization.closed_set import ALL
from bertjax.serialization.description import FORMER_FIELDS, FORMER_NAMES, _find, _hints, field_names

PACKAGE = Path(bertjax.__file__).parent


def _defined():
    """Return the names of all functions and classes of the package, without importing their modules."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(("bertjax", *path.relative_to(PACKAGE).with_suffix("").parts))
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield f"{module}.{node.name}"
            if isinstance(node, ast.Import):  # what a module imports is an attribute of it
                yield from (f"{module}.{(alias.asname or alias.name).split('.')[0]}" for alias in node.names)


ALLOWED = sorted(ALL.types | ALL.functions)
FORBIDDEN = [name for name in _defined() if name not in ALLOWED] + [
    "os.system", "subprocess.run", "builtins.eval", "builtins.exec", "importlib.import_module", "antigravity.x",
    "bertjax.serialization.description.importlib.import_module", "bertjax.models.layers.nn.Dense",
    "bertjax.storage.files.os.remove", "",
    ".", "bertjax", "bertjax.", "bertjax..x", "bertjax.models.encoder.Encoder.init", "bertjax/config", "\0", "é" * 100,
    "optax._src.transform.scale_by_lion", "optax.scale_by_adam", "jax.numpy.load", "pickle.loads",
]  # fmt: skip
SCALARS = [
    0, 1, 2, 3, 8, -1, 64, 512, 2**31, 2**63, 10**400, 0.0, 0.1, 0.5, 1e-12, -0.5, 1e308, float("inf"), float("nan"),
    True, False, None, "", "x", "float32", "bfloat16", "none", "../x", "/etc/passwd", "gs://x", "classify", "mean",
    "x" * 20_000, "\x1b[2J",
]  # fmt: skip


class Trees:
    """Random trees: honest ones with random nodes in them, and ones that are random throughout."""

    def __init__(self, seed, honest):
        self.count = int(os.environ.get("BERTJAX_FUZZ", "3000"))
        self._rng = random.Random(seed)
        self._honest = honest
        self._parts = [part for tree in honest for part in _nodes(tree)]
        for name in ALL.types:  # so that nothing is imported or evaluated later
            _hints(_find(name))
        for name in ALL.functions:
            _find(name)

    def draw(self):
        """Draw the next tree."""
        rng = self._rng
        if rng.random() < 0.3:
            return self._grown(4)
        tree = copy.deepcopy(rng.choice(self._honest if rng.random() < 0.5 else self._parts))
        for _ in range(rng.choice((0, 1, 1, 2, 5))):
            tree = self._with_another_node(tree)
        return tree

    def _with_another_node(self, tree):
        rng = self._rng
        places = [
            (node, key) for node in _nodes(tree) for key in (node if isinstance(node, dict) else range(len(node)))
        ]
        if not places:
            return self._grown(2)
        node, key = rng.choice(places)
        if isinstance(node, dict) and rng.random() < 0.1:
            node[rng.choice(("type", "function", "parent", "name", "judge", "x", "__class__"))] = node.pop(key)
        elif key in ("type", "function") and rng.random() < 0.8:
            node[key] = self._name()
        else:
            node[key] = self._grown(2) if rng.random() < 0.7 else copy.deepcopy(rng.choice(self._parts))
        return tree

    def _name(self):
        rng = self._rng
        return rng.choice(rng.choice((ALLOWED, ALLOWED, FORBIDDEN, sorted(FORMER_NAMES), SCALARS)))

    def _grown(self, depth):
        rng = self._rng
        kind = rng.random()
        if not depth or kind < 0.3:
            return rng.choice(SCALARS)
        if kind < 0.4:
            return [self._grown(depth - 1) for _ in range(rng.choice((0, 1, 2, 2, 70)))]
        if kind < 0.6:
            return {"function": self._name()}
        if kind < 0.65:
            return {rng.choice(("a", "type", "function")): self._grown(depth - 1) for _ in range(2)}
        name = self._name()
        fields = field_names(_find(name)) if name in ALL.types else [*FORMER_FIELDS.get(name, ()), "peak", "total"]
        return {"type": name} | {field: self._grown(depth - 1) for field in fields if rng.random() < 0.7}


def _nodes(tree):
    """List the containers in a tree."""
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    found = [tree] if isinstance(tree, dict | list) else []
    return found + [node for each in inside for node in _nodes(each)]


def built_of_allowed(value):
    """Tell whether a value is built of the closed set alone."""
    if isinstance(value, tuple):
        return all(map(built_of_allowed, value))
    if value is None or type(value) in (bool, int, float, str):
        return not isinstance(value, int | float) or (value == value and abs(value) < float("inf"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        return name in ALL.types and all(built_of_allowed(getattr(value, field)) for field in field_names(value))
    return f"{value.__module__}.{value.__qualname__}" in ALL.functions


_ACTS = (
    "import",
    "exec",
    "compile",
    "open",
    "os.",
    "subprocess.",
    "socket.",
    "shutil.",
    "ctypes.",
    "pickle.",
    "urllib.",
)
_watching: list[list[str]] = []


def _watch(event, arguments):
    if _watching and event.startswith(_ACTS):
        _watching[-1].append(f"{event} {arguments!r:.100}")


@contextmanager
def audited():
    """Yield a list of what Python's audit events tell of imports, files, code and processes within the block."""
    if not getattr(audited, "installed", False):
        sys.addaudithook(_watch)  # it cannot be removed
        audited.installed = True
    _watching.append([])
    try:
        yield _watching[-1]
    finally:
        _watching.pop()


_CHECKS = {
    "bertjax.data.pairs._check", "bertjax.data.windows._check", "bertjax.models.layers.check_encoder",
    "bertjax.models.language.takes_visible", "bertjax.objectives.rtd._same_tables", "bertjax.optim.schedules._check",
}  # fmt: skip
"""Functions that the constructors of the closed set call."""
_CHECKING = ("bertjax.serialization.description", "bertjax.serialization.closed_set", "bertjax.fields")


@contextmanager
def calls():
    """Yield a list of the functions of the package that are called in the block, but for those of the closed set.

    These are the rebuilding itself, the constructors and properties of the classes, and _CHECKS.
    """
    found: list[str] = []

    def see(frame, event, argument):
        if event != "call" or not frame.f_code.co_filename.startswith(f"{PACKAGE}/"):
            return
        module = frame.f_globals["__name__"]
        name = f"{module}.{frame.f_code.co_qualname.split('.<locals>')[0]}"
        owner = name.rpartition(".")[0]
        if module not in _CHECKING and owner not in ALL.types and name not in _CHECKS:
            found.append(name)

    sys.setprofile(see)
    try:
        yield found
    finally:
        sys.setprofile(None)
