"""Prepare a fine-tuning: the state that all its seeds share, and the experiment of each."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.trained import Model
from bertjax.config import Experiment, Phase
from bertjax.data.coverage import evenly
from bertjax.data.tokenizer import Tokenizer, same_tokenizer, save_tokenizer, saved_tokenizer
from bertjax.errors import InputError
from bertjax.evaluate import logits_on_mesh
from bertjax.finetuning.build import build
from bertjax.finetuning.recipe import FineTuning
from bertjax.finetuning.weights import class_weights
from bertjax.inference.compatible import check_texts
from bertjax.inference.template_of import templates_of
from bertjax.models.published import Published
from bertjax.rules import Rules
from bertjax.run.writers import Progress
from bertjax.sharding.mesh import DATA_PARALLEL
from bertjax.tasks.examples import every_text
from bertjax.tasks.rows import Encoded, TaskRows
from bertjax.tasks.scoring import require_labels
from bertjax.train import Step, sharded_step
from bertjax.types import Objective, Params
from bertjax.wording import counted

MakeStep = Callable[[Experiment, Phase, jax.sharding.Mesh], Step]


class Prepared(NamedTuple):
    """The state that all seeds share.

    digest: of data, tokenizer and the parameters of `init`. splits: the encoded data. make_step, logits: compiled once,
    for the first seed.
    """

    model: Published
    objective: Objective
    config: dict[str, Any]
    tokenizer: Tokenizer
    rows: TaskRows
    digest: str
    splits: dict[str, Encoded]
    make_step: MakeStep
    logits: Callable[[Params, Any], Any]


def record_tokenizer(tuning: FineTuning, source: Model, folder: Path) -> None:
    """Write the tokenizer of the model into the work directory. Raises InputError if seeds there have another."""
    if any(folder.glob("seed-*")) and not same_tokenizer(saved_tokenizer(folder / "tokenizer"), source.text):
        raise InputError(
            f"{folder} has seeds with another tokenizer than that of {tuning.init}: choose another --workdir"
        )
    save_tokenizer(source.text, folder / "tokenizer")


def prepare(tuning: FineTuning, source: Model, folder: Path, progress: Progress) -> Prepared:
    """Build the objective and encode the data, with the tokenizer that `record_tokenizer` has written.

    Raises InputError if model, task and data do not fit together.
    """
    recipe, tokenizer = tuning.recipe, source.text
    longest = source.encoder.max_length
    if longest is not None and recipe.length > longest:
        raise InputError(f"recipe.length={recipe.length}, but {tuning.init} has {longest} positions: reduce it")
    mesh = DATA_PARALLEL.mesh(recipe.batch_size)
    with as_input_errors():
        built = build(tuning, source)
        rows = TaskRows(
            tuning.task, tuning.data, str(folder / "tokenizer"), templates_of(source), recipe.length,
            tuning.stride, tuning.question, tuning.ending, recipe.both_orders, recipe.unit_range, tuning.shortest,
            tuning.pool,
        )  # fmt: skip
    others = [split for split in rows.splits() if split.startswith("validation_")]
    splits = {split: rows.open(split) for split in ("train", "validation", *others)}
    for split, encoded in splits.items():
        if split != "train":
            require_labels(encoded.examples)
        for note, count in encoded.notes.items():
            progress.say(f"{tuning.task.name}, {split}: {counted(count, note)}")
        where = f"{tuning.task.name}, {split}: "
        check_texts(source, every_text(evenly(encoded.examples)), progress.say, where=where)
    if not len(splits["train"]):
        raise InputError(f"the training split of {tuning.data} has no example to train on: see the notes above")
    if tuning.class_weights:
        labels_R = splits["train"].labels
        assert labels_R is not None  # unlabelled examples are dropped
        built = build(tuning, source, class_weights(tuning.class_weights, tuning.task, labels_R))
        named = zip(tuning.task.labels, built.weights, strict=True)
        progress.say(f"weights of classes: {', '.join(f'{label} {weight:.4g}' for label, weight in named)}")
    digest = hashlib.sha256(f"{rows.digest()} {checkpoint.checksums(source.params)}".encode()).hexdigest()[:16]
    logits = logits_on_mesh(built.model.task_logits, mesh)
    return Prepared(*built[:3], tokenizer, rows, digest, splits, _shared(sharded_step), logits)


def _shared(make_step: MakeStep) -> MakeStep:
    """Return the step of the first call at every call: experiments of different seeds differ in nothing else."""
    made: list[Step] = []

    def make(experiment: Experiment, phase: Phase, mesh: jax.sharding.Mesh) -> Step:
        if not made:
            made.append(make_step(experiment, phase, mesh))
        return made[0]

    return make


@contextmanager
def as_input_errors() -> Iterator[None]:
    """Re-raise ValueErrors of constructors as InputErrors, which the commands print without a traceback."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{error}") from error


def experiment_of(tuning: FineTuning, prepared: Prepared, seed: int) -> Experiment:
    """Build the experiment of one seed. Raises ValueError for a recipe that does not fit the encoder."""
    recipe = tuning.recipe
    rows = len(prepared.splits["train"])
    steps = recipe.count(rows)
    often = max(1, round(rows / recipe.batch_size / tuning.evaluations))
    first: Rules = getattr(prepared.objective, "frozen", ())
    encoder = prepared.model.encoder
    shared = getattr(encoder, "shared", False)
    if 0 < recipe.frozen < encoder.N and shared:
        raise ValueError(
            f"frozen={recipe.frozen}: the layers of this encoder share their parameters: freeze all {encoder.N} or none"
        )
    return Experiment(
        prepared.objective,
        recipe.optimizer(encoder.N, steps, first, shared=shared),
        (Phase(steps, recipe.batch_size, prepared.rows),),
        seed=seed,
        init=tuning.init,
        run=dataclasses.replace(tuning.run, evaluate_every=min(often, steps), keep=1),
    )
