"""Fine-tune a trained model on a task: several seeds through `fit`, each judged by the task's own metric.

<workdir>/tokenizer/        the model's, with which the texts are encoded
          seed-0/, …        a run each: see bertjax.run.workdir; its checkpoints go once its result is there
          seed-0/result.json   the metrics of its best evaluation and of its last one
          seed-0/predictions/  what its best model says of each validation split
          best/             the best model of all seeds, to be loaded
          results.json      all of it: median and quartiles over seeds, which of them failed
"""

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.export import architecture_of
from bertjax.checkpoints.trained import Model, load
from bertjax.config import Experiment, Phase
from bertjax.data.coverage import evenly
from bertjax.data.source import Batch
from bertjax.data.tokenizer import Tokenizer, fingerprint, load_tokenizer, save_tokenizer
from bertjax.description import to_json
from bertjax.errors import InputError
from bertjax.finetuning.recipe import FineTuning
from bertjax.finetuning.results import (
    Result,
    last_metrics,
    read_json,
    summarise,
    table,
    timing,
    write_json,
    write_predicted,
)
from bertjax.huggingface.heads import TaskHead, task_head
from bertjax.inference.compatible import check_texts, check_tokenizer
from bertjax.inference.template_of import is_cls_last, templates_of
from bertjax.models.published import Published
from bertjax.models.span_heads import xlnet_span_head
from bertjax.models.xlnet import XLNet
from bertjax.objectives import supervised
from bertjax.objectives.sift import SiFT
from bertjax.objectives.supervised import BeamSpans, Score, Supervised
from bertjax.rules import Rules, name_of
from bertjax.run.workdir import claimed, record_experiment
from bertjax.run.writers import Progress
from bertjax.sharding.collectives import gather_params
from bertjax.sharding.mesh import MeshShape, place_batch
from bertjax.tasks.examples import every_text
from bertjax.tasks.rows import Encoded, TaskRows
from bertjax.tasks.scoring import Judgement, constant_answer, judged, need_labels
from bertjax.train import Step, fit, sharded_step
from bertjax.types import Objective, Params

_SCORES: Mapping[str, tuple[str, Score]] = {
    "classify": ("classify", supervised.classes),
    "regress": ("classify", supervised.numbers),
    "tag": ("tags", supervised.tags),
    "span": ("span", supervised.spans),
    "choice": ("choice", supervised.options),
}
"""Kind of task -> its head among published.TASKS, and how it is scored."""


class Built(NamedTuple):
    """A model with the head of a task, what trains it, and what is written beside its parameters."""

    model: Published
    objective: Objective
    config: dict[str, Any]


MakeStep = Callable[[Experiment, Phase, jax.sharding.Mesh], Step]


class Prepared(NamedTuple):
    """What all seeds have in common.

    digest: of data, tokenizer and the parameters of `init`. splits: the encoded data. make_step, logits: compiled once,
    by the first seed.
    """

    model: Published
    objective: Objective
    config: dict[str, Any]
    tokenizer: Tokenizer
    rows: TaskRows
    digest: str  # of data and of the parameters to begin with
    splits: dict[str, Encoded]
    make_step: MakeStep
    logits: Callable[[Params, Any], Any]


def finetune(tuning: FineTuning, workdir: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Run all seeds that have no result yet, and return what `results.json` holds: of these and those of earlier runs.

    Raises InputError for whatever can be told before training, Interrupted as `fit`. A seed that diverges is a result.
    """
    progress = progress or Progress()
    source = load(tuning.init)
    check_tokenizer(source, tuning.init)
    with claimed(workdir) as folder:
        prepared = prepare(tuning, source, folder, progress)
        with _mendable():
            experiment_of(tuning, prepared, tuning.first_seed)
        results = _earlier(tuning, prepared, folder)
        for seed in range(tuning.first_seed, tuning.first_seed + tuning.seeds):
            results[seed] = results.get(seed) or _run_seed(tuning, prepared, seed, folder, progress)
            of_all = [result for _, result in sorted(results.items())]
            summary = _about(tuning, prepared) | summarise(of_all, tuning.task.metric_names[0])
            write_json(folder / "results.json", summary)
            (folder / "results.md").write_text(table(summary))
            _keep_best(folder, summary)
    return summary


def prepare(tuning: FineTuning, source: Model, folder: Path, progress: Progress) -> Prepared:
    """Build the objective and encode the data. Raises InputError where model, task and data do not go together."""
    recipe, tokenizer = tuning.recipe, source.text
    longest = source.encoder.max_length
    if longest is not None and recipe.length > longest:
        raise InputError(f"recipe.length={recipe.length}, but {tuning.init} has {longest} positions: use fewer")
    if any(folder.glob("seed-*")) and fingerprint(load_tokenizer(folder / "tokenizer")) != fingerprint(tokenizer):
        raise InputError(f"{folder} has seeds with another tokenizer than that of {tuning.init}: choose another one")
    save_tokenizer(tokenizer, folder / "tokenizer")
    with _mendable():
        built = build(tuning, source)
        rows = TaskRows(
            tuning.task, tuning.data, str(folder / "tokenizer"), templates_of(source), recipe.length,
            tuning.stride, tuning.question, tuning.ending, recipe.both_orders, recipe.unit_range,
        )  # fmt: skip
    others = [split for split in rows.splits() if split.startswith("validation_")]
    splits = {split: rows.open(split) for split in ("train", "validation", *others)}
    for split, encoded in splits.items():
        if split != "train":
            need_labels(encoded)
        for what, count in encoded.notes.items():
            progress.say(f"{tuning.task.name}, {split}: {count:,} {what}")
        where = f"{tuning.task.name}, {split}: "
        check_texts(source, every_text(evenly(encoded.examples)), progress.say, where=where)
    if not len(splits["train"]):
        raise InputError(f"nothing in the training split of {tuning.data} can be learned from: see what is said above")
    digest = hashlib.sha256(f"{rows.digest()} {checkpoint.checksums(source.params)}".encode()).hexdigest()[:16]
    logits = jax.jit(lambda params, batch: built.model.task_logits(gather_params(params), batch))
    return Prepared(*built, tokenizer, rows, digest, splits, _made_once(sharded_step), logits)


def _made_once(make_step: MakeStep) -> MakeStep:
    """Give all seeds, whose experiments differ in nothing else, the step that the first of them makes."""
    made: list[Step] = []

    def make(experiment: Experiment, phase: Phase, mesh: jax.sharding.Mesh) -> Step:
        if not made:
            made.append(make_step(experiment, phase, mesh))
        return made[0]

    return make


@contextmanager
def _mendable() -> Iterator[None]:
    """Turn what objects refuse at construction into what a user is told to mend."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{error}") from error


def build(tuning: FineTuning, source: Model) -> Built:
    """Put the head of the task on the encoder of a trained model; say what of that model is taken over."""
    task, recipe = tuning.task, tuning.recipe
    encoder, cls_last = source.encoder.clone(dtype=tuning.dtype), is_cls_last(source)
    if recipe.encoder_dropout is not None:
        encoder = encoder.clone(dropout=recipe.encoder_dropout, attention_dropout=recipe.encoder_dropout)
    name, score = _SCORES[task.kind] if tuning.head is None else ("beams", BeamSpans())
    head = _head(tuning, source, encoder, name)
    labels = task.labels if task.kind in ("classify", "tag") else ()
    model = Published(encoder, ((name, head.module),), cls_last, labels)
    inherited: Rules = ((r".*", True),)
    theirs = getattr(source.objective, "heads", {}).get(name)
    if theirs is not None and (recipe.unit_range or not _same_classes(source.objective, theirs, head.module, labels)):
        inherited = ((r"^head/\w+/classifier/", False), *inherited)
    if recipe.renewed:
        inherited = ((r"^head/\w+/pooler/", False), *inherited)
    plain = Supervised(model, score, inherited, recipe.renewed, head.pooler_of)
    objective = SiFT(plain, weight=recipe.adversary) if recipe.adversary else plain
    config = {"objective": to_json(model), "architecture": architecture_of(source)}
    if original := _original(source):
        kept = {key: value for key, value in original.items() if key != "architectures"}
        named = {"architectures": [head.class_name]} if head.class_name else {}
        config["huggingface"] = {"config": kept | named, "ignored": {}}
    return Built(model, objective, config)


def _original(source: Model) -> dict[str, Any]:
    """Return config.json of the Hugging Face folder that a model came from at first; empty where from none."""
    return dict(source.config.get("huggingface", {}).get("config", {}))


def _head(tuning: FineTuning, source: Model, encoder: Any, name: str) -> TaskHead:
    """Make the head of the task, with the dropout of the recipe."""
    task, dropout = tuning.task, tuning.recipe.dropout
    if tuning.head is None:
        classes = {"classify": len(task.labels), "tag": len(task.labels), "span": 2}.get(task.kind, 1)
        heads = dict(getattr(source.objective, "heads", {}))
        head = task_head(name, encoder, heads, classes, _original(source), architecture_of(source))
    else:
        # Of conditional heads transformers has XLNet's alone.
        theirs = isinstance(encoder, XLNet) and tuning.head is xlnet_span_head
        made = tuning.head(encoder, -1 if is_cls_last(source) else 0)
        head = TaskHead(made, "", "XLNetForQuestionAnswering" if theirs else "")
    if dropout is None:
        return head
    others = {field: dropout for field in ("input_dropout",) if getattr(head.module, field, 0)}
    return head._replace(module=head.module.clone(**cast(Any, {"dropout": dropout} | others)))


def _same_classes(objective: Any, theirs: Any, ours: Any, labels: tuple[str, ...]) -> bool:
    """Tell whether the classes of a trained head are those of the task, as far as they have names."""
    given = getattr(objective, "labels", ())
    named = any(not re.fullmatch(r"LABEL_\d+", label) for label in given)
    return getattr(theirs, "C", 0) == getattr(ours, "C", 0) and (not named or given == labels)


def experiment_of(tuning: FineTuning, prepared: Prepared, seed: int) -> Experiment:
    """Describe the run of one seed."""
    recipe = tuning.recipe
    rows = len(prepared.splits["train"])
    steps = recipe.count(rows)
    often = max(1, round(rows / recipe.batch_size / tuning.evaluations))
    first: Rules = getattr(prepared.objective, "frozen", ())
    encoder = prepared.model.encoder
    if 0 < recipe.frozen < encoder.N and getattr(encoder, "shared", False):
        raise ValueError(f"frozen={recipe.frozen}: all layers of this encoder are one, so all {encoder.N} are or none")
    return Experiment(
        prepared.objective,
        recipe.optimizer(encoder.N, steps, first),
        (Phase(steps, recipe.batch_size, prepared.rows),),
        seed=seed,
        init=tuning.init,
        run=dataclasses.replace(tuning.run, evaluate_every=min(often, steps), keep=1),
    )


def _earlier(tuning: FineTuning, prepared: Prepared, workdir: Path) -> dict[int, Result]:
    """Read the results that are there, by seed. Raises InputError for one of other settings, data or parameters.

    What it is of is written before the first seed is trained, so a seed that was killed is not gone on with either.
    """
    begun, inputs = workdir / "inputs.json", {"inputs": prepared.digest}
    if any(workdir.glob("seed-*")) and read_json(begun) != inputs:
        raise InputError(
            f"{workdir} has seeds from other data than {tuning.data} or other parameters than {tuning.init}: "
            "choose another --workdir"
        )
    write_json(begun, inputs)
    results = {}
    for path in workdir.glob("seed-*/result.json"):
        found = read_json(path)
        record_experiment(path.parent, experiment_of(tuning, prepared, found["seed"]))
        results[found["seed"]] = found
    return results


def _run_seed(tuning: FineTuning, prepared: Prepared, seed: int, workdir: Path, progress: Progress) -> Result:
    """Train one seed."""
    folder, experiment = workdir / f"seed-{seed}", experiment_of(tuning, prepared, seed)
    progress.say(f"seed {seed}")
    judge = _Judge(tuning, prepared, folder)
    result: Result = {"seed": seed}
    try:
        source = prepared.splits["train"]
        fit(experiment, folder, progress=progress, judge=judge, make_step=prepared.make_step, source=source)
    except FloatingPointError as error:
        result |= {"failed": str(error)}
    best = read_json(folder / "best.json")
    last, first = last_metrics(folder), tuning.task.metric_names[0]
    if "failed" not in result and last[first] <= constant_answer(prepared.splits["validation"]):
        result |= {"failed": "no better than always the same answer"}
    result |= {"best": best, "last": last} | timing(folder)
    write_json(folder / "result.json", result)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # with moments, three times the model
    return result


class _Judge:
    """Judge the model of a run by the metrics of its task, and keep the best."""

    def __init__(self, tuning: FineTuning, prepared: Prepared, folder: Path) -> None:
        self._tuning, self._prepared, self._folder = tuning, prepared, folder
        self._mesh = MeshShape().mesh(tuning.recipe.batch_size)

    def __call__(self, step: int, params: Params) -> Mapping[str, float]:
        """Return the metrics; the model with the best first one is written to `best`."""
        task, recipe = self._tuning.task, self._tuning.recipe
        if recipe.unit_range and task.scale:
            params = _in_range(params, task.scale)

        def logits(batch: Batch) -> Any:
            return self._prepared.logits(params, place_batch(batch, self._mesh, len(batch["tokens"])))

        metrics: dict[str, float] = {}
        judgements = {}
        for split, encoded in self._prepared.splits.items():
            if split == "train":
                continue
            judgements[split] = judged(
                encoded, logits, recipe.batch_size, longest=self._tuning.longest, threshold=self._tuning.threshold
            )
            of_split = split.removeprefix("validation")  # MNLI has a second one, of other genres
            metrics |= {f"{name}{of_split}": value for name, value in judgements[split].metrics.items()}
        best = read_json(self._folder / "best.json")
        first = task.metric_names[0]
        if not best or metrics[first] > best["metrics"][first]:
            self._keep(step, params, metrics, judgements)
        return metrics

    def _keep(
        self, step: int, params: Params, metrics: Mapping[str, float], judgements: Mapping[str, Judgement]
    ) -> None:
        partial = self._folder / "best.partial"
        shutil.rmtree(partial, ignore_errors=True)
        experiment = self._prepared.config | {"step": step, "metrics": dict(metrics)}
        checkpoint.export(partial, params, experiment=experiment, tokenizer=self._prepared.tokenizer)
        shutil.rmtree(self._folder / "best", ignore_errors=True)
        partial.rename(self._folder / "best")
        for split, judgement in judgements.items():
            write_predicted(self._folder / "predictions" / split, self._prepared.splits[split], judgement)
        write_json(self._folder / "best.json", {"step": step, "metrics": dict(metrics)})


def _in_range(params: Params, scale: tuple[float, float]) -> Params:
    """Let a model that learned shares of a range predict numbers of that range, by its last layer."""
    low, high = scale

    def stretched(path: Any, leaf: Any) -> Any:
        if not re.search(r"^head/\w+/classifier/", name_of(path)):
            return leaf
        return leaf * (high - low) + (low if name_of(path).endswith("/bias") else 0.0)

    return cast(Params, jax.tree_util.tree_map_with_path(stretched, params))


def _about(tuning: FineTuning, prepared: Prepared) -> Result:
    """Say what the results are of. programs: how many lengths rows come in, so many programs are compiled."""
    return {
        "task": tuning.task.name,
        "init": tuning.init,
        "recipe": to_json(tuning.recipe),
        "train": len(prepared.splits["train"].examples),
        "validation": len(prepared.splits["validation"].examples),
        "programs": {name: len(np.unique(rows.buckets)) for name, rows in prepared.splits.items()},
    }


def _keep_best(folder: Path, summary: Mapping[str, Any]) -> None:
    """Let `best` be the best model of all seeds so far; those of the others go."""
    for result in summary["seeds"]:
        kept = folder / f"seed-{result['seed']}" / "best"
        if not kept.exists():
            continue
        if result["seed"] == summary["best_seed"]:
            shutil.rmtree(folder / "best", ignore_errors=True)
            kept.rename(folder / "best")
        else:
            shutil.rmtree(kept)
