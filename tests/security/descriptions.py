"""Checkpoints of ours whose description names what it may not, or sizes that nothing has."""

from collections.abc import Callable
from typing import Any

from security import world as w
from security.world import Hostile, World, forged

EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


def _objective(**changed: Any) -> Callable[[World], None]:
    """Change fields of the objective; {given} in a text is the folder."""

    def change(info: dict[str, Any], world: World) -> None:
        (world.given / "evil.py").write_text(EVIL)
        info["experiment"]["objective"] |= {name: _placed(value, world) for name, value in changed.items()}

    return forged(change)


def _encoder(**changed: Any) -> Callable[[World], None]:
    return forged(lambda info, world: info["experiment"]["objective"]["encoder"].update(changed))


def _instead(objective: Any) -> Callable[[World], None]:
    def change(info: dict[str, Any], world: World) -> None:
        (world.given / "evil.py").write_text(EVIL)
        info["experiment"]["objective"] = _placed(objective, world)

    return forged(change)


def _rows(**changed: Any) -> Callable[[World], None]:
    return forged(lambda info, world: info["experiment"]["phases"][0]["rows"].update(changed))


def _placed(value: Any, world: World) -> Any:
    if isinstance(value, str):
        return value.replace("{given}", str(world.given)).replace("{secret}", str(world.secret))
    if isinstance(value, list):
        return [_placed(item, world) for item in value]
    return {key: _placed(item, world) for key, item in value.items()} if isinstance(value, dict) else value


def _called(function: str, argument: Any) -> Callable[[World], None]:
    """Let a function be called as the head of a discriminator, which is given the encoder."""
    return _instead({
        "type": "bertjax.objectives.rtd.Discriminator", "encoder": argument,
        "discriminator_head": {"function": function},
    })  # fmt: skip


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


_OPENS = (w.LOAD, w.LOOK, w.EMBED, w.EVALUATE, w.CONVERT, w.FINETUNE, w.PRETRAIN)
_SOME = (w.LOAD, w.CONVERT)
_FUNCTION = "bertjax.config.load_experiment"

INPUTS = {
    "an experiment file as a head": Hostile(_called(_FUNCTION, "{given}/evil.py"), _OPENS),
    "the command line as a head": Hostile(
        _called(
            "bertjax.commands.main.main",
            [
                "data",
                "build",
                "{secret}",
                "--format",
                "plain",
                "--tokenizer",
                "{secret}/vocab.txt",
                "--workers",
                "0",
                "--out",
                "{secret}/new",
            ],
        ),
        _OPENS,
    ),
    "a class of an experiment file in the folder": Hostile(_instead({"type": "experiment_evil.Objective"}), _OPENS),
    "a function of an experiment file in the folder": Hostile(
        _called("experiment_evil.head", "{given}/evil.py"), _OPENS
    ),
    "a process as a head": Hostile(_called("bertjax.machine.doctor.ask_devices", ["/bin/sh"]), _SOME),
    "a writer of files as a head": Hostile(_called("bertjax.huggingface.folder.write_folder", "{secret}/x"), _SOME),
    "a reader of files as a head": Hostile(
        _called("bertjax.data.records.file_digest", "{secret}/passwords.txt"), _SOME
    ),
    "a loader as a head": Hostile(_called("bertjax.checkpoints.trained.load", "{secret}"), _SOME),
    "an importing module as a head": Hostile(_called("bertjax.__main__.main", []), _SOME),
    "a function of the standard library": Hostile(_called("os.system", "touch {secret}/new"), _SOME),
    "a module that acts when it is imported": Hostile(_called("this.x", 1), _SOME),
    "a function behind a module of the package": Hostile(
        _called("bertjax.config.importlib.import_module", "this"), _SOME
    ),
    "a builtin": Hostile(_called("builtins.exec", "open('{secret}/new', 'w')"), _SOME),
    "a module of the working folder": Hostile(_called("json.x", 1), _SOME),
    "a name with empty parts": Hostile(_called("bertjax..config.load_experiment", "{given}/evil.py"), _SOME),
    "a private function": Hostile(_called("bertjax.config._experiment_function", "{given}/evil.py"), _SOME),
    "a method": Hostile(_called("bertjax.sharding.mesh.MeshShape.parse", "data:1"), _SOME),
    "an activation that opens a file": Hostile(_encoder(activation={"function": _FUNCTION}), _SOME),
    "an initialiser that opens a file": Hostile(
        _encoder(initializer={"function": "bertjax.experiment_files.find_experiment"}), _SOME
    ),
    "a corruption that opens a file": Hostile(_objective(corrupt={"function": _FUNCTION}), _SOME),
    "a class that is no part of an experiment": Hostile(
        _objective(masking={"type": "bertjax.tasks.task.Part", "split": "x", "files": [], "format": None}), _SOME
    ),
    "a text as the encoder": Hostile(_objective(encoder="{given}/evil.py"), _SOME),
    "a list as the name of a class": Hostile(_objective(encoder={"type": ["bertjax.models.encoder.Encoder"]}), _SOME),
    "a number as the name of a function": Hostile(_encoder(activation={"function": 7}), _SOME),
    "a name of control characters": Hostile(_objective(encoder={"type": "bertjax.\x1b[2J\x9b31m\r"}), _OPENS),
    "a name of a megabyte": Hostile(_objective(encoder={"type": "bertjax." + "a" * 10**6}), _SOME),
    "an unknown field": Hostile(_encoder(evil=1), _SOME),
    "no encoder": Hostile(_instead({"type": "bertjax.objectives.mlm.MaskedLM"}), _SOME),
    "a list as the objective": Hostile(_instead([1, 2]), _SOME),
    "null as the objective": Hostile(_instead(None), _SOME),
    "no objective": Hostile(forged(lambda info, world: info["experiment"].pop("objective") and None), _SOME),
    "a list as the experiment": Hostile(forged(lambda info, world: info.update(experiment=[])), _SOME),
    "a list as the info": Hostile(forged(lambda info, world: [1]), _SOME),
    "a billion layers": Hostile(_encoder(N=10**9), _OPENS),
    "a vocabulary of all bytes": Hostile(_encoder(V=2**62), _SOME),
    "a width of a million": Hostile(_encoder(D=10**6, H=1), _SOME),
    "a number beyond integers": Hostile(_encoder(D=10**30), _SOME),
    "negative sizes": Hostile(_encoder(F=-4), _SOME),
    "no heads": Hostile(_encoder(H=0), _SOME),
    "heads that do not divide": Hostile(_encoder(H=3), _SOME),
    "a size as a text": Hostile(_encoder(V="20"), _SOME),
    "a size as a fraction": Hostile(_encoder(V=20.5), _SOME),
    "a size as a truth value": Hostile(_encoder(N=True), _SOME),
    "a dropout of text": Hostile(_encoder(dropout="0.1"), _SOME),
    "a dropout that is no number": Hostile(_encoder(dropout=float("nan")), _SOME, harmless=True),
    "an epsilon without end": Hostile(_encoder(norm_eps=float("inf")), _SOME, harmless=True),
    "rows without end": Hostile(_rows(length=10**15), (w.LOAD, w.EVALUATE)),
    "rows of negative length": Hostile(_rows(length=-1), (w.LOAD, w.EVALUATE)),
    "rows of a class of readers": Hostile(_rows(type="bertjax.tasks.formats.JsonLines"), (w.LOAD, w.EVALUATE)),
    "rows that name a function": Hostile(_rows(corpus={"function": _FUNCTION}), (w.LOAD, w.EVALUATE)),
    "no phases": Hostile(forged(lambda info, world: info["experiment"].update(phases=[])), (w.EVALUATE,)),
    "phases of another type": Hostile(forged(lambda info, world: info["experiment"].update(phases={"0": 1})), _SOME),
    "lists in lists": Hostile(_objective(pair=_deep(200)), _SOME),
    "a million items": Hostile(_objective(pair=[0] * 10**6), _SOME),
}
