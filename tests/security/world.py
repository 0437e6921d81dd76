"""What surrounds a hostile folder: honest ones of every kind, an output folder, and files that nobody may touch."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hub_folders import CONFIG, bert_tensors, own_model, own_objectives, pretraining_tensors, write
from sentence_folders import sentence_folder
from texts import make_documents, wordpiece_files

from bertjax.checkpoints import checkpoint
from bertjax.config import Experiment, Phase, Run
from bertjax.data.build import BuildSettings, build
from bertjax.data.corpus import split_sentences
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.tokenizer import tokenizer_from_files
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import BertLinear
from bertjax.serialization.description import to_json

VOCABULARY = wordpiece_files()["vocab.txt"]
V = len(VOCABULARY.split(b"\n"))
SECRET = "correct horse battery staple"
REPOSITORY = Path(__file__).parents[2]

Command = tuple[str, ...]
"""Arguments of bertjax, with {given}, {out} and the names of honest folders; or "load" for bertjax.load."""

LOAD: Command = ("load", "{given}")
LOOK: Command = ("tokenizer", "inspect", "--model", "{given}", "good time")
EMBED: Command = ("predict", "embed", "--model", "{given}", "good time", "--json")
FILL: Command = ("predict", "fill-mask", "--model", "{given}", "good [MASK]")
CLASSIFY: Command = ("predict", "classify", "--model", "{given}", "good time")
EVALUATE: Command = ("evaluate", "--model", "{given}", "--data", "{corpus}", "--split", "train", "--batch-size", "8")
LABELS = ("--labels", "a:bad,b:good")
SCORE: Command = ("evaluate", "task", "own", "--model", "{given}", "--data", "{labelled}", *LABELS)
CONVERT: Command = ("convert", "{given}", "{out}")
EXPORT: Command = ("convert", "{given}", "{out}", "--to", "huggingface")
EXPORT_SENTENCE: Command = ("convert", "{given}", "{out}", "--to", "sentence-transformers")
FINETUNE: Command = (
    "finetune", f"{REPOSITORY}/experiments/own.py", "init={given}", "data={labelled}", "seeds=1", "epochs=1",
    "batch_size=8", "length=12", "labels=new", "--workdir", "{out}",
)  # fmt: skip
PRETRAIN: Command = (
    "pretrain", f"{REPOSITORY}/experiments/smoke.py", "data={corpus}", "steps=1", "batch_size=8", "length=16",
    *(f"objective.encoder.{size}" for size in ("D=8", "N=2", "H=2", "F=12", "positions=16")),
    "run.evaluate_batches=1", "init={given}", "--workdir", "{out}",
)  # fmt: skip
BUILD: Command = (
    "data", "build", "{given}", "--format", "plain", "--tokenizer", "{tokenizer}", "--workers", "0", "--out", "{out}",
)  # fmt: skip
BUILD_JSON: Command = (*BUILD[:4], "jsonl", *BUILD[5:])
BUILD_WITH: Command = (*BUILD[:2], "{texts}", *BUILD[3:6], "{given}", *BUILD[7:])
INSPECT: Command = ("data", "inspect", "{given}")
EVALUATE_ON: Command = ("evaluate", "--model", "{run}", "--data", "{given}", "--split", "train", "--batch-size", "8")
SCORE_ON: Command = ("evaluate", "task", "own", "--model", "{classifier}", "--data", "{given}", *LABELS)
FINETUNE_ON: Command = tuple(
    {"init={given}": "init={classifier}", "data={labelled}": "data={given}"}.get(word, word) for word in FINETUNE
)

OF_MODELS = (LOAD, LOOK, EMBED, FILL, CLASSIFY, EVALUATE, SCORE, CONVERT, EXPORT, EXPORT_SENTENCE, FINETUNE, PRETRAIN)
"""Every command that opens a model."""


@dataclass(frozen=True)
class Honest:
    """Folders as their makers meant them, as small as they can be."""

    run: Path  # a checkpoint of ours
    language: Path  # a BERT of transformers, with its pre-training heads
    classifier: Path
    sentence: Path  # of sentence-transformers
    tokenizer: Path
    corpus: Path
    texts: Path
    labelled: Path  # train.tsv, validation.tsv


@dataclass(frozen=True)
class World:
    """One input. given: the hostile folder; out: where a command may write; secret: what nobody may touch."""

    given: Path
    out: Path
    secret: Path
    honest: Honest

    def words(self, command: Command) -> list[str]:
        """Return a command for these folders."""
        return [word.format(given=self.given, out=self.out, **vars(self.honest)) for word in command]


@dataclass(frozen=True)
class Hostile:
    """An input. write: makes it; it is a folder, unless `write` makes a file.

    harmless: it may as well be read, since nothing but what it says of itself is wrong. message: a pattern of the
    refusal. megabytes, seconds: what a refusal may take. into: the commands write into the folder, and nowhere else.
    """

    write: Callable[[World], object]
    commands: tuple[Command, ...]
    harmless: bool = False
    message: str = ""
    megabytes: float = 100.0
    seconds: float = 1.5
    into: bool = False


def make_honest(folder: Path) -> Honest:
    """Write the honest folders."""
    tokenizer = tokenizer_from_files(wordpiece_files(), origin="the honest vocabulary")
    found = Honest(*(folder / name for name in Honest.__dataclass_fields__))
    build(make_documents(40), tokenizer, found.corpus, BuildSettings(split_sentences, holdout=0.1))
    objective = own_objectives(tokenizer.vocabulary)["BertForPreTraining"]
    rows = (Phase(1, 8, NextSentencePairs(str(found.corpus), 16, duplicates=1)),)
    experiment = Experiment(objective, bert_adam(BertLinear(1e-2, 1, 2)), rows, run=Run(evaluate_every=0))
    model = own_model(objective, tokenizer)
    checkpoint.export(found.run, model.params, experiment=to_json(experiment), tokenizer=tokenizer)
    config = CONFIG | {"vocab_size": V, "num_hidden_layers": 1}
    write(found.classifier, config, {name: x / 10 for name, x in bert_tensors(config).items()})
    config = CONFIG | {"vocab_size": V, "architectures": ["BertForPreTraining"]}
    write(found.language, config, pretraining_tensors(V) | {"cls.predictions.bias": np.zeros(V, np.float32)})
    sentence_folder(found.sentence)
    for each in (found.classifier, found.language, found.tokenizer):
        each.mkdir(exist_ok=True)
        (each / "vocab.txt").write_bytes(VOCABULARY)
    found.texts.mkdir()
    (found.texts / "a.txt").write_text("The good man has time. The week is long.\n" * 40)
    found.labelled.mkdir()
    for name in ("train", "validation"):
        rows_of_text = [f"the {word} is {text}\t{label}" for word in ("man", "woman", "week", "day")
                        for text, label in (("good good", "a"), ("bad bad", "b"))]  # fmt: skip
        (found.labelled / f"{name}.tsv").write_text("text\tlabel\n" + "\n".join(rows_of_text) + "\n")
    return found


def make_secret(folder: Path) -> Path:
    """Write what somebody who wants in would like to read, or to change."""
    (folder / "home/.ssh").mkdir(parents=True)
    for name in ("home/.bashrc", "home/.ssh/id_rsa", "passwords.txt", "vocab.txt", "config.json"):
        (folder / name).write_text(SECRET + "\n")
    return folder


def digest_of(folder: Path) -> str:
    """Return a digest of the names, modes and contents of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)} {path.lstat().st_mode}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def copied(source: str) -> Callable[[World], Path]:
    """Return a function that copies an honest folder to the hostile one."""

    def copy(world: World) -> Path:
        shutil.copytree(getattr(world.honest, source), world.given, dirs_exist_ok=True)
        return world.given

    return copy


def forged(change: Callable[[dict[str, Any], World], object]) -> Callable[[World], None]:
    """Return a function that writes a checkpoint of ours with another `info`, whose digest fits."""

    def forge(world: World) -> None:
        restate(copied("run")(world), lambda info: change(info, world))

    return forge


def restate(step_folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the `info` of a checkpoint, whose digest fits."""
    path = step_folder / "info" / "metadata"
    info = json.loads(path.read_text())["info"]
    info = change(info) or info
    path.write_text(json.dumps({"digest": checkpoint._digest(info), "info": info}))


def in_json(source: str, name: str, **changed: Any) -> Callable[[World], None]:
    """Return a function that writes an honest folder with other values in one of its JSON files; ... deletes a key."""

    def change(world: World) -> None:
        path = copied(source)(world) / name
        stated = json.loads(path.read_text()) if path.exists() else {}
        stated |= changed
        path.write_text(json.dumps({key: value for key, value in stated.items() if value is not ...}))

    return change


def with_file(source: str, name: str, content: bytes | str | Callable[[World], bytes | str]) -> Callable[[World], None]:
    """Return a function that writes an honest folder with one file of another content."""

    def put(world: World) -> None:
        path = copied(source)(world) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        given = content(world) if callable(content) else content
        path.unlink(missing_ok=True)
        path.write_bytes(given if isinstance(given, bytes) else given.encode())

    return put


def with_link(source: str, name: str, target: str) -> Callable[[World], None]:
    """Return a function that writes an honest folder with a link in place of a file or folder.

    target: below the secret folder, or absolute.
    """

    def link(world: World) -> None:
        path = copied(source)(world) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(world.secret / target)

    return link
