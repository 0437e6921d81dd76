"""Parse a compiled program: the operations that XLA:TPU schedules, how often each runs, and its estimated cycles.

Only the text of an executable has loops, collectives and the compiler's own estimates: `cost_analysis` counts the body
of a loop once and has no collectives. The parser takes care of these:

- a loop counts as often as it runs: by the trip count that the compiler notes, else from the counter's start, step and
  bound, wherever in a fusion these are; a loop whose trip count depends on data counts once, and is named;
- the text of a kernel may contain lines that look like the end of a computation;
- arrays in on-chip memory, S(1) in a layout, are not in HBM.
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import NamedTuple


class Op(NamedTuple):
    """One operation, as text; `shape` is one array, or a tuple of arrays in brackets."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    literal: str  # the text in the brackets of the operation: the value of a constant
    attributes: str
    root: bool  # its computation returns it


Computation = Mapping[str, Op]
"""The operations of one computation by name, in order."""


class Shape(NamedTuple):
    """One array: its dtype, its sizes, and whether it is in HBM."""

    dtype: str
    sizes: tuple[int, ...]
    in_hbm: bool

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> float:
        """The size, without the padding of layouts."""
        return self.elements * _bits(self.dtype) / 8


class Step(NamedTuple):
    """An operation, its computation, how often it runs, and the fusion that it is part of."""

    op: Op
    scope: Computation
    times: float
    within: Op | None = None


class Program:
    """The text of a compiled program, parsed."""

    def __init__(self, text: str) -> None:
        self.header = text.partition("\n")[0]
        self.computations, self.entry = _parse(text)

    @cached_property
    def schedule(self) -> tuple[Step, ...]:
        """All scheduled operations, those of loop bodies included, those inside of fusions not."""
        return tuple(self._steps(self.entry, 1.0))

    @cached_property
    def unknown_loops(self) -> tuple[str, ...]:
        """The loops whose trip count depends on data: they count once."""
        loops = [step.op for step in self.schedule if step.op.opcode == "while"]
        return tuple(source(op) for op in loops if self.rounds(op) is None)

    def _steps(self, name: str, times: float) -> Iterator[Step]:
        scope = self.computations[name]
        for op in scope.values():
            yield Step(op, scope, times)
            if op.opcode == "while":
                rounds = times * (self.rounds(op) or 1)
                yield from self._steps(called(op, "condition"), rounds)
                yield from self._steps(called(op, "body"), rounds)
            elif op.opcode == "call":
                yield from self._steps(called(op, "to_apply"), times)
            elif op.opcode == "conditional":
                branches = [tuple(self._steps(branch, times)) for branch in _branches(op)]
                yield from max(branches, key=lambda steps: sum(cycles(step.op) * step.times for step in steps))

    def rounds(self, loop: Op) -> int | None:
        """Return the trip count of a loop; None where it depends on data."""
        noted = re.search(r"known_trip_count[^\d]+(\d+)", loop.attributes)
        if noted:
            return int(noted[1])
        condition, body = (self.computations[called(loop, part)] for part in ("condition", "body"))
        test = self._resolve(condition, root(condition), {})
        if not isinstance(test, _Test):
            return None
        scope = next(scope for scope in self.computations.values() if scope.get(loop.name) is loop)
        start = self._resolve(scope, scope[loop.operands[0]], {}, test.place)
        after = self._resolve(body, root(body), {}, test.place)
        if not isinstance(start, int) or not isinstance(after, _Counter) or after.place != test.place:
            return None
        if after.added == 0 or (test.bound - start) * after.added < 0:
            return None
        return math.ceil((test.bound - start) / after.added)

    def _resolve(self, scope: Computation, op: Op, given: Mapping[int, "_Value"], index: int | None = None) -> "_Value":
        """Evaluate an op to an integer, the counter of a loop plus an integer, or the test that ends a loop; else None.

        given: the values of the parameters of a fused computation. index: the element, of an op that is a tuple.
        """

        def operand(number: int) -> "_Value":
            return self._resolve(scope, scope[op.operands[number]], given)

        match op.opcode:
            case "constant" if re.fullmatch(r"-?\d+", op.literal):
                return int(op.literal)
            case "parameter":
                return given.get(int(op.literal)) if given or index is None else _Counter(index, 0)
            case "get-tuple-element":
                place = int(re.findall(r"index=(\d+)", op.attributes)[0])
                return self._resolve(scope, scope[op.operands[0]], given, place)
            case "tuple" if index is not None:
                return operand(index)
            case "copy" | "bitcast" | "reshape" | "convert":
                return operand(0)
            case "fusion":
                inner = self.computations[called(op, "calls")]
                inputs = {number: operand(number) for number in range(len(op.operands))}
                return self._resolve(inner, root(inner), inputs, index)
            case "add":
                return _added(operand(0), operand(1))
            case "compare":
                return _test(operand(0), operand(1), op.attributes)
        return None

    def inside(self, step: Step) -> Iterator[Step]:
        """Yield a step, and the operations inside of it if it is a fusion or asynchronous."""
        yield step
        if "calls=" in step.op.attributes:
            inner = self.computations[called(step.op, "calls")]
            for op in inner.values():
                yield from self.inside(Step(op, inner, step.times, step.op))

    @property
    def aliased(self) -> int:
        """The number of outputs that alias an input."""
        return len(re.findall(r"\{[\d, ]*\}: \(\d+, \{[\d, ]*\}, (?:may|must)-alias\)", self.header))


class _Counter(NamedTuple):
    place: int  # in the loop's state
    added: int


class _Test(NamedTuple):
    place: int
    bound: int  # the first value of the counter at which the loop ends


_Value = int | _Counter | _Test | None


def _added(a: _Value, b: _Value) -> _Value:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if isinstance(a, int):
        a, b = b, a
    return _Counter(a.place, a.added + b) if isinstance(a, _Counter) and isinstance(b, int) else None


_REVERSED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}
_PAST = {"LT": 0, "NE": 0, "GT": 0, "LE": 1, "GE": -1}  # how far past the other side the counter stops


def _test(a: _Value, b: _Value, attributes: str) -> _Value:
    """Read a comparison of a counter with an integer, in either order."""
    found = re.search(r"direction=(\w+)", attributes)
    direction = found[1] if found else ""
    if isinstance(a, int):
        a, b, direction = b, a, _REVERSED.get(direction, "")
    if not isinstance(a, _Counter) or not isinstance(b, int) or direction not in _PAST:
        return None
    return _Test(a.place, b - a.added + _PAST[direction])


def _parse(text: str) -> tuple[dict[str, dict[str, Op]], str]:
    computations: dict[str, dict[str, Op]] = {}
    entry, scope = "", None
    lines: list[str] = []

    def close() -> None:
        if lines and scope is not None:
            op = _operation("\n".join(lines))
            scope[op.name] = op
        lines.clear()

    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{\s*$", line)
        if head:
            close()
            scope = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif re.match(r"\s+(ROOT )?%?[\w.\-]+ = (\(|\w+\[)", line):
            close()
            lines.append(line)
        elif lines:
            lines.append(line)  # the text of a kernel goes on; the bracket that ends a computation does no harm
    close()
    if not entry:
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    return computations, entry


def _operation(text: str) -> Op:
    root_and_name, _, rest = text.partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = re.sub(r"/\*.*?\*/", "", rest[opening + 1 : closing])
    names = re.findall(r"%([\w.\-]+)", inside) or [name.strip() for name in inside.split(",") if name.strip()]
    opcode = rest[:opening]
    return Op(
        name=root_and_name.split()[-1].lstrip("%"),
        opcode=opcode,
        shape=shape,
        operands=() if opcode in ("constant", "parameter", "iota") else tuple(names),
        literal=inside,
        attributes=rest[closing + 1 :],
        root=root_and_name.split()[0] == "ROOT",
    )


def _closing(text: str, opening: int) -> int:
    """Return the index of the bracket that closes the one at `opening`."""
    depth = 0
    for place in re.finditer(r"[()]", text[opening:]):
        depth += 1 if place[0] == "(" else -1
        if depth == 0:
            return opening + place.start()
    raise ValueError(f"a bracket is never closed: {text[:80]}")


def shapes(text: str) -> list[Shape]:
    """Parse a shape: one array, or those of a tuple."""
    found = []
    for dtype, sizes, layout in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?", text):
        numbers = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        found.append(Shape(dtype, numbers, "S(" not in layout))
    return found


def _bits(dtype: str) -> int:
    if dtype in ("pred",):
        return 8
    if dtype in ("token", "opaque"):
        return 0
    number = re.match(r"[a-z]+(\d+)", dtype)
    if not number:
        raise ValueError(f"unknown dtype {dtype!r} in a compiled program")
    return int(number[1])


def cycles(op: Op) -> int:
    """Return the compiler's estimate of the cycles of one run; 0 where it has none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', op.attributes)
    return int(found[1]) if found else 0


def source(op: Op) -> str:
    """Return the operation of the model that an op comes from, as JAX names it."""
    found = re.search(r'op_name="([^"]*)"', op.attributes)
    return found[1] if found else op.name


def called(op: Op, attribute: str) -> str:
    """Return the name of the computation that an attribute of an op refers to: `calls`, `body`, `condition`."""
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", op.attributes)
    if not found:
        raise ValueError(f"{op.name}: {op.opcode} without {attribute}")
    return found[1]


def _branches(op: Op) -> list[str]:
    several = re.search(r"branch_computations=\{([^}]*)\}", op.attributes)
    if several:
        return [name.strip().lstrip("%") for name in several[1].split(",")]
    return [called(op, "true_computation"), called(op, "false_computation")]


def root(scope: Computation) -> Op:
    """Return the root of a computation."""
    return next(op for op in scope.values() if op.root)


def parameter(scope: Computation, number: int) -> Op | None:
    """Return a parameter of a computation; None if it is unused."""
    return next((op for op in scope.values() if op.opcode == "parameter" and op.literal == str(number)), None)
