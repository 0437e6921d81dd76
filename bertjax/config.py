"""Describe an experiment with plain objects, build it from a Python file, change it from the command line, dump it.

There is no configuration language: an experiment file has a function `experiment(...) -> Experiment`. Overrides
`key=value` go to the arguments of that function; dotted ones (`objective.encoder.D=256`, `phases.0.batch_size=32`) to
fields of the objects that it built.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bertjax.amendments import STEPS, Amendment
from bertjax.counters import CONTINUED, Counters
from bertjax.data.source import Rows
from bertjax.errors import InputError
from bertjax.experiment_files import find_experiment
from bertjax.fields import check_fields
from bertjax.nearest import did_you_mean
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import lengthened
from bertjax.optim.skipping import Spikes
from bertjax.serialization.description import EXPERIMENT, Code, field_names, own_names, to_json
from bertjax.sharding.mesh import DATA_PARALLEL, MeshShape
from bertjax.types import Objective


@dataclass(frozen=True)
class Phase:
    """Train `steps` updates on batches of `batch_size` rows, each in `accumulate` micro-batches.

    Attributes:
        steps: updates
        batch_size: rows of a batch, over all devices
        rows: what rows are made of: see bertjax/data
        accumulate: micro-batches of a batch
    """

    steps: int
    batch_size: int
    rows: Rows
    accumulate: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.steps, self.batch_size, self.accumulate) < 1:
            raise ValueError(
                "steps, batch_size and accumulate must each be at least 1, but "
                f"steps={self.steps}, batch_size={self.batch_size}, accumulate={self.accumulate}"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}")
        group_size = self.rows.group_size
        if self.batch_size // self.accumulate % group_size:
            raise ValueError(
                f"batch_size={self.batch_size} in {self.accumulate} micro-batches: these rows come in groups of "
                f"{group_size} (both directions of a text): use a multiple of {group_size * self.accumulate}"
            )


@dataclass(frozen=True)
class Run:
    """Logging, evaluation and checkpoints of a run. Nothing here changes the numbers, so a resumed run may change it.

    All intervals are in steps; 0: never, except that a run always ends with a checkpoint and an evaluation.
    """

    log_every: int = 10
    evaluate_every: int = 1000
    evaluate_batches: int = 100  # of the validation split, always the same rows; 0: all of it
    checkpoint_every: int = 1000
    keep: int = 3  # number of newest checkpoints to keep
    keep_every: int = 0  # also keep every checkpoint at a multiple of this
    tensorboard: bool = False
    wandb: str = ""  # project to log to
    peak_tflops: float = 0.0  # peak of one device, for utilisation; 0: looked up by its name
    platform: str = ""  # the platform to require: tpu, gpu or cpu
    tolerance: int = 10  # skipped steps in a row after which the run ends as diverged
    recompute_every: int = 0  # compute a gradient twice, to see whether the devices repeat it bit by bit; 0: never
    patience: float = 1800.0  # seconds for a step, without compilation, until the run ends as hung; 0: no limit
    profile: tuple[int, ...] = ()  # first and last step to trace into <run>/profile, such as 20,22

    def __post_init__(self) -> None:
        check_fields(self)
        if self.tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance}: the run ends after 1 or more skipped steps in a row")
        if self.keep < 1:
            raise ValueError(f"keep={self.keep}: keep at least the newest checkpoint")
        if self.platform not in ("", "tpu", "gpu", "cpu"):
            raise ValueError(f"platform={self.platform!r} is none of tpu, gpu, cpu")
        intervals = ("log_every", "evaluate_every", "checkpoint_every", "keep_every", "recompute_every")
        for name in (*intervals, "evaluate_batches"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative: use 0 for never")
        if not self.patience >= 0:
            raise ValueError(f"patience={self.patience} is not a number of seconds: use 0 for no limit")
        if self.profile and not (len(self.profile) == 2 and 1 <= self.profile[0] <= self.profile[1]):
            raise ValueError(f"profile={self.profile}: give the first and the last step to trace, such as 20,22")


@dataclass(frozen=True)
class Experiment:
    """Everything that defines a run: objective, optimiser, phases, seed, and how it is run.

    Attributes:
        objective: a model with its loss
        optimizer: an optim.Optimizer
        phases: in order
        seed: of initialisation, order of rows, masks and dropout
        init: a trained model to start from: a work folder, `folder:part`; or `folder,optimizer`
        mesh: of the devices, such as mesh=fsdp:8,tensor:2; numbers change by rounding alone
        run: logging, evaluation and checkpoints
        counters: where rows and streams begin in later phases and after `init`
        amend: changes on the way, such as optimizer.learning_rate.peak:5e-5@37
        extend: make a run that has begun longer: the number of its steps in all; becomes an amendment
    """

    objective: Objective
    optimizer: Optimizer
    phases: tuple[Phase, ...]
    seed: int = 0
    init: str = ""
    mesh: MeshShape = DATA_PARALLEL
    run: Run = Run()
    counters: Counters = CONTINUED
    amend: tuple[Amendment, ...] = ()
    extend: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.phases:
            raise ValueError("an experiment needs at least one phase")
        if self.extend < 0:
            raise ValueError(f"extend={self.extend} is not a number of steps")
        steps = sum(phase.steps for phase in self.phases)
        if steps > self.optimizer.learning_rate.total:
            raise ValueError(
                f"the phases have {steps} steps, but the learning rate ends at step "
                f"{self.optimizer.learning_rate.total}: raise its `total` first, or set the experiment's own `steps`"
            )
        for each in sorted(self.amend, key=lambda each: each.step):
            if each.name == STEPS:
                if not (each.step <= steps + 1 and int(each.value) > steps):
                    raise ValueError(f"amend={each}: a run of {steps} steps is made longer, before its end or there")
                steps = int(each.value)
            last = max(self.steps, self.extend)
            if not 1 <= each.step <= last:
                longer = "" if self.extend else "; of a run that was made longer give its extend=STEPS again"
                raise ValueError(f"amend={each}: step {each.step} is none of the steps 1 to {last}{longer}")
            if self.at(each.step).optimizer.trained != self.optimizer.trained:
                raise ValueError(f"amend={each}: which parameters are trained cannot change on the way")
        # Weight decay would change parameters that the objective does not train.
        frozen = getattr(self.objective, "frozen", ())
        if self.optimizer.rates[: len(frozen)] != frozen:
            raise ValueError(
                f"{type(self.objective).__name__} does not train {', '.join(name for name, _ in frozen)}: put "
                f"{frozen} first in the optimizer's rates"
            )

    @property
    def steps(self) -> int:
        """Number of steps of all phases, as the run is amended."""
        return sum(phase.steps for phase in self.amended_phases)

    @property
    def amended_phases(self) -> tuple[Phase, ...]:
        """The phases; where the run was made longer its last phase is."""
        _, *totals = 0, *(int(each.value) for each in self.amend if each.name == STEPS)
        if not totals:
            return self.phases
        *before, last = self.phases
        return (*before, dataclasses.replace(last, steps=max(totals) - sum(phase.steps for phase in before)))

    def at(self, step: int) -> "Experiment":
        """Return the experiment as it is at the update of a step: with what is amended up to then, without `amend`."""
        due = sorted((each for each in self.amend if each.step <= step), key=lambda each: each.step)
        plain: Experiment = dataclasses.replace(self, amend=()) if self.amend else self
        for each in due:
            if each.name == STEPS:
                plain = plain._longer(int(each.value))
            else:
                plain = _replace(plain, [(each.name.split("."), each.value, f"amend={each}")])
        return plain

    def _longer(self, steps: int) -> "Experiment":
        """Return an experiment without amendments whose last phase and rates are longer, to so many steps in all."""
        *before, last = self.phases
        more = steps - self.steps
        rate = lengthened(self.optimizer.learning_rate, more)
        phases = (*before, dataclasses.replace(last, steps=last.steps + more))
        return dataclasses.replace(
            self, phases=phases, optimizer=dataclasses.replace(self.optimizer, learning_rate=rate)
        )


Described = TypeVar("Described")


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Build the experiment that a file describes: see `load_described`."""
    return load_described(path, overrides, Experiment)


def load_described(path: str | Path, overrides: Sequence[str], kind: type[Described]) -> Described:
    """Build the object of type `kind` that `experiment()` of a file returns, with `key=value` overrides.

    A file that comes with bertjax is also found by its name alone, as "bert". Raises InputError for a missing file, a
    file without `experiment`, an unknown key (with the nearest known one), a value of the wrong type, and every
    ValueError at construction.
    """
    build = _experiment_function(find_experiment(path))
    parameters = get_type_hints(build)
    parameters.pop("return", None)
    arguments: dict[str, Any] = {}
    dotted: list[tuple[str, str]] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"override {override!r} is not of the form key=value")
        if "." in key or (key not in parameters and key in _scalar_names(kind)):
            dotted.append((key, text))
        elif key in parameters:
            arguments[key] = _parse(key, text, parameters[key])
        else:
            raise InputError(_unknown(key, [*parameters, *_dotted_names(kind)], f"{path}"))
    missing = [name for name in _required(build) if name not in arguments]
    if missing:
        raise InputError(f"{path} needs {', '.join(f'{name}=…' for name in missing)}")
    try:
        experiment = build(**arguments)
        experiment = _replace(experiment, [(key.split("."), text, key) for key, text in dotted])
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {error}") from error
    if not isinstance(experiment, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise InputError(f"{path}: experiment() returned {type(experiment).__name__}, not {article} {kind.__name__}")
    return experiment


def own_code(path: str | Path) -> Code:
    """Import an experiment file, and return its classes and functions by the names that descriptions give them.

    Those that the file imports are among them, by themselves or with a module of the user's own, but for those of
    bertjax and of Python's own library, which no model is built of. Raises InputError where there is no such file.
    """
    module = _imported(find_experiment(path))
    imported = [each for each in vars(module).values() if isinstance(each, types.ModuleType) and _file_of(each)]
    return {name: each for one in (module, *imported) for name, each in _code_of(one).items()}


def code_behind(experiment: Any) -> Code:
    """Return the classes and functions of the experiment files that the parts of an experiment come from."""
    return {name: each for module in _modules_behind(experiment) for name, each in _code_of(module).items()}


def sources(experiment: Any) -> dict[str, str]:
    """Return the text of the user's own files that the parts of an experiment come from: {"my_objective.py": …}.

    Of several files of one name the first is among them.
    """
    files = [path for module in _modules_behind(experiment) if (path := _file_of(module))]
    return {path.name: path.read_text() for path in reversed(files)}


def _modules_behind(experiment: Any) -> list[types.ModuleType]:
    names = {name.rpartition(".")[0] for name in own_names(to_json(experiment))}
    return [sys.modules[name] for name in sorted(names & sys.modules.keys())]


def _file_of(module: types.ModuleType) -> Path | None:
    """Return the file of a module of the user's own, None for one of Python, of bertjax or of an installed package."""
    path = Path(getattr(module, "__file__", None) or "")
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return path if path.is_file() and not installed and module.__name__.partition(".")[0] not in _CLOSED else None


_CLOSED = {"bertjax", *sys.stdlib_module_names}


def _code_of(module: types.ModuleType) -> Code:
    found = [each for each in vars(module).values() if callable(each) and hasattr(each, "__qualname__")]
    named = {f"{each.__module__}.{each.__qualname__}": each for each in found}
    return {name: each for name, each in named.items() if name.partition(".")[0] not in _CLOSED}


def _imported(path: Path) -> types.ModuleType:
    """Import an experiment file as a module, which dataclasses with annotations as texts look up by its name."""
    spec = importlib.util.spec_from_file_location(f"{EXPERIMENT}{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no experiment file: it must be Python and end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _experiment_function(path: Path) -> Callable[..., Experiment]:
    module = _imported(path)
    function = getattr(module, "experiment", None)
    if not inspect.isfunction(function):
        raise InputError(f"{path} has no function experiment(): it must return a bertjax.Experiment")
    return function


def _required(build: Callable[..., Experiment]) -> list[str]:
    parameters = inspect.signature(build).parameters.values()
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty]


def _dotted_names(kind: type) -> list[str]:
    scalar = _scalar_names(kind)
    return [f"{name}.…" for name in field_names(kind) if name not in scalar] + scalar


def _scalar_names(kind: type) -> list[str]:
    hints = get_type_hints(kind)
    return [name for name in field_names(kind) if hints[name] in _READERS or hints[name] == tuple[Amendment, ...]]


def _unknown(key: str, known: Sequence[str], owner: str) -> str:
    hint = did_you_mean(key, known) or f"known: {', '.join(known)}"
    return f"unknown override {key!r} of {owner}; {hint}"


_Override = tuple[list[str], str, str]
"""(keys that lead to a field, the text to set it to, the whole override as the user wrote it)"""


def _replace(value: Any, overrides: Sequence[_Override]) -> Any:
    """Return a copy of `value` with fields replaced, parsed from texts as the fields' types.

    All at once, so that two fields that must agree can be changed in one command.
    """
    by_key: dict[str, list[_Override]] = {}
    for keys, text, full_key in overrides:
        by_key.setdefault(keys[0], []).append((keys[1:], text, full_key))
    if not by_key:
        return value
    changed = {key: _replaced_part(value, key, inner) for key, inner in by_key.items()}
    if isinstance(value, tuple):
        return tuple(changed.get(str(index), old) for index, old in enumerate(value))
    return dataclasses.replace(value, **changed)


def _replaced_part(value: Any, key: str, overrides: Sequence[_Override]) -> Any:
    """Return the new value of one field, or of one item of a tuple; of several overrides of it the last counts."""
    full_key = overrides[0][2]
    if isinstance(value, tuple):
        if not key.isdecimal() or int(key) >= len(value):
            raise InputError(f"override {full_key!r}: {key!r} is not an index below {len(value)}")
        old = value[int(key)]
        annotation = type(old)
    elif not dataclasses.is_dataclass(value):
        raise InputError(f"override {full_key!r}: {type(value).__name__} has no field {key!r}")
    elif key not in field_names(value):
        raise InputError(_unknown(key, field_names(value), f"{type(value).__name__} (in {full_key!r})"))
    else:
        old, annotation = getattr(value, key), get_type_hints(type(value))[key]
    whole = [text for keys, text, _ in overrides if not keys]
    return _parse(full_key, whole[-1], annotation) if whole else _replace(old, overrides)


def _parse(key: str, text: str, annotation: Any) -> Any:
    """Parse `text` as a value of type `annotation`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and text.lower() == "none":
            return None
        return _parse(key, text, next(argument for argument in arguments if argument is not type(None)))
    if origin is Literal:
        if text not in arguments:
            hint = did_you_mean(text, arguments, "; ")
            raise InputError(f"override {key}={text}: choose one of {', '.join(arguments)}{hint}")
        return text
    if origin is tuple and arguments[0] in _READERS:
        parts = Amendment.separate(text) if arguments[0] is Amendment else text.strip("()[]").split(",")
        return tuple(_parse(key, part, arguments[0]) for part in parts if part.strip())
    if annotation not in _READERS:
        raise InputError(f"override {key!r} names an object, not a number or a text: set its fields, or edit the file")
    try:
        return _READERS[annotation](text)
    except InputError:
        raise
    except (ValueError, KeyError) as error:
        raise InputError(f"override {key}={text}: {text!r} is not of type {annotation.__name__}") from error


_READERS: dict[Any, Callable[[str], Any]] = {
    bool: lambda text: {"true": True, "false": False}[text.lower()],
    int: int,
    float: float,
    str: str,
    MeshShape: MeshShape.parse,
    Spikes: Spikes.parse,
    Amendment: Amendment.parse,
}
