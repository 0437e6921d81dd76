"""Fine-tune a trained model on a task: several seeds through `fit`, each judged by the task's own metric.

<workdir>/tokenizer/        the model's, with which the texts are encoded
          seed-0/, …        a run each: see bertjax.workdir; its checkpoints go once its result is there
          seed-0/result.json   the metrics of its best evaluation and of its last one
          best/             the best model of all seeds, to be loaded, and what it predicts on the validation split
          results.json      all of it: median and quartiles over seeds, which of them failed
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from bertjax import checkpoint
from bertjax.answers import write_predictions
from bertjax.compatible import check_texts, check_tokenizer
from bertjax.config import Experiment, Phase, to_json
from bertjax.data.examples import Choice, Example, Question, Texts, Words
from bertjax.data.source import Batch
from bertjax.data.supervised import Encoded, TaskRows
from bertjax.data.tokenizer import Tokenizer, save_tokenizer
from bertjax.errors import InputError
from bertjax.export import architecture_of
from bertjax.huggingface.heads import task_head
from bertjax.judge import Judgement, constant_answer, judged
from bertjax.layouts import is_cls_last, layout_of
from bertjax.model import Model, load
from bertjax.models.xlnet import XLNet
from bertjax.objectives import supervised
from bertjax.objectives.sift import SiFT
from bertjax.objectives.supervised import BeamSpans, Score, Supervised
from bertjax.published import Published
from bertjax.recipe import FineTuning
from bertjax.report import Progress
from bertjax.rules import Rules
from bertjax.sharding import Layout as Mesh
from bertjax.sharding import gathered, place_batch
from bertjax.spans import BeamSpanHead, electra_span_head, xlnet_span_head
from bertjax.train import fit
from bertjax.types import Objective, Params
from bertjax.workdir import claimed

_SCORES: Mapping[str, tuple[str, Score]] = {
    "classify": ("classify", supervised.classes),
    "regress": ("classify", supervised.numbers),
    "tag": ("tags", supervised.tags),
    "span": ("span", supervised.spans),
    "choice": ("choice", supervised.options),
}
"""Kind of task -> its head among published.TASKS, and how it is scored."""


class Prepared(NamedTuple):
    """What all seeds have in common. config: what a model that comes of it is written with."""

    objective: Objective
    model: Published
    config: dict[str, Any]
    tokenizer: Tokenizer
    rows: TaskRows
    splits: dict[str, Encoded]


def finetune(tuning: FineTuning, workdir: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Run all seeds that have no result yet, and return what `results.json` holds.

    Raises InputError for whatever can be told before training, Interrupted as `fit`. A seed that diverges is a result.
    """
    progress = progress or Progress()
    source = load(tuning.init)
    check_tokenizer(source, tuning.init)
    with claimed(workdir) as folder:
        prepared = prepare(tuning, source, folder, progress)
        results = []
        for seed in range(tuning.first_seed, tuning.first_seed + tuning.seeds):
            results.append(_run_seed(tuning, prepared, seed, folder, progress))
            summary = summarise(tuning, prepared, results)
            _write_json(folder / "results.json", summary)
            (folder / "results.md").write_text(table(summary))
            _keep_best(folder, summary)
    return summary


def prepare(tuning: FineTuning, source: Model, folder: Path, progress: Progress) -> Prepared:
    """Build the objective and encode the data. Raises InputError where model, task and data do not go together."""
    recipe, tokenizer = tuning.recipe, source.text
    longest = source.encoder.max_length
    if longest is not None and recipe.length > longest:
        raise InputError(f"recipe.length={recipe.length}, but {tuning.init} has {longest} positions: use fewer")
    save_tokenizer(tokenizer, folder / "tokenizer")
    layout = layout_of(source)
    rows = TaskRows(
        tuning.task, tuning.data, str(folder / "tokenizer"), layout, recipe.length,
        tuning.stride, tuning.question, tuning.ending, recipe.both_orders,
    )  # fmt: skip
    others = [split for split in rows.splits() if split.startswith("validation_")]
    splits = {split: rows.open(split) for split in ("train", "validation", *others)}
    for split, encoded in splits.items():
        for what, count in encoded.notes.items():
            progress.say(f"{tuning.task.name}, {split}: {count:,} {what}")
    check_texts(source, texts_of(splits["train"].examples), progress.say)
    model, objective, config = build(tuning, source)
    return Prepared(objective, model, config, tokenizer, rows, splits)


def build(tuning: FineTuning, source: Model) -> tuple[Published, Objective, dict[str, Any]]:
    """Put the head of the task on the encoder of a trained model; say what of that model is taken over."""
    task, recipe = tuning.task, tuning.recipe
    name, score = _SCORES[task.kind]
    notes = source.config.get("huggingface", {})
    original, architecture = dict(notes.get("config", {})), architecture_of(source)
    heads = dict(getattr(source.objective, "heads", {}))
    cls_last = is_cls_last(source)
    encoder = source.encoder.clone(dtype=tuning.dtype)
    classes = {"classify": len(task.labels), "tag": len(task.labels), "span": 2}.get(task.kind, 1)
    if tuning.head == "plain":
        head, pooler_of, class_name = task_head(name, encoder, heads, classes, original, architecture)
    else:
        name, score = "beams", BeamSpans()
        head, pooler_of, class_name = conditional_head(tuning.head, encoder, cls_last=cls_last), "", ""
        if encoder.__class__ is XLNet and tuning.head == "xlnet":
            class_name = "XLNetForQuestionAnswering"
    if recipe.dropout is not None:
        rates = {field: recipe.dropout for field in ("dropout", "input_dropout") if getattr(head, field, 0)}
        head = head.clone(**cast(Any, {"dropout": recipe.dropout} | rates))
    labels = task.labels if task.kind in ("classify", "tag") else ()
    model = Published(encoder, ((name, head),), cls_last, labels)
    inherited: Rules = ((r".*", True),)
    if name in heads and not _same_classes(source.objective, heads[name], head, labels):
        inherited = ((r"^head/\w+/classifier/", False), *inherited)
    if recipe.renewed:
        inherited = ((r"^head/\w+/pooler/", False), *inherited)
    plain = Supervised(model, score, inherited, recipe.renewed, pooler_of)
    objective = SiFT(plain, weight=recipe.adversary) if recipe.adversary else plain
    if original:
        kept = {key: value for key, value in original.items() if key != "architectures"}
        notes = {"config": kept | ({"architectures": [class_name]} if class_name else {}), "ignored": {}}
    config = {"objective": to_json(model), "architecture": architecture} | ({"huggingface": notes} if original else {})
    return model, objective, config


def texts_of(examples: Sequence[Example]) -> Iterator[str]:
    """Yield all texts of examples."""
    for example in examples:
        match example:
            case Texts(texts=texts):
                yield from texts
            case Words(words=words):
                yield " ".join(words)
            case Question(question=question, context=context):
                yield from (question, context)
            case Choice(context=context, endings=endings):
                yield from (context, *endings)


def _same_classes(objective: Any, theirs: Any, ours: Any, labels: tuple[str, ...]) -> bool:
    """Tell whether the classes of a trained head are those of the task, as far as they have names."""
    given = getattr(objective, "labels", ())
    named = any(not re.fullmatch(r"LABEL_\d+", label) for label in given)
    return getattr(theirs, "C", 0) == getattr(ours, "C", 0) and (not named or given == labels)


def conditional_head(family: str, encoder: Any, *, cls_last: bool) -> BeamSpanHead:
    """Make the span head of XLNet or of ELECTRA for any encoder."""
    if family == "xlnet":
        head = xlnet_span_head(encoder.D, encoder.initializer, encoder.dtype)
    else:
        head = electra_span_head(encoder.D, encoder.dtype)
    return head.clone(position=-1 if cls_last else 0)


def experiment_of(tuning: FineTuning, prepared: Prepared, seed: int) -> Experiment:
    """Describe the run of one seed."""
    recipe = tuning.recipe
    rows = len(prepared.splits["train"])
    steps = recipe.count(rows)
    often = max(1, round(rows / recipe.batch_size / tuning.evaluations))
    first: Rules = getattr(prepared.objective, "frozen", ())
    return Experiment(
        prepared.objective,
        recipe.optimizer(prepared.model.encoder.N, steps, first),
        (Phase(steps, recipe.batch_size, prepared.rows),),
        seed=seed,
        init=tuning.init,
        run=dataclasses.replace(tuning.run, evaluate_every=min(often, steps), keep=1),
    )


def _run_seed(tuning: FineTuning, prepared: Prepared, seed: int, workdir: Path, progress: Progress) -> dict[str, Any]:
    """Train one seed, or read its result where it has one already."""
    folder = workdir / f"seed-{seed}"
    if (folder / "result.json").exists():
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return found
    progress.say(f"seed {seed}")
    judge = _Judge(tuning, prepared, folder)
    result: dict[str, Any] = {"seed": seed}
    try:
        fit(experiment_of(tuning, prepared, seed), folder, progress=progress, judge=judge)
    except FloatingPointError as error:
        result |= {"failed": str(error)}
    best = _read_json(folder / "best.json")
    last, first = _last_metrics(folder), tuning.task.metrics[0]
    if "failed" not in result and last[first] <= constant_answer(prepared.splits["validation"]):
        result |= {"failed": "no better than always the same answer"}
    result |= {"best": best, "last": last} | _timing(folder)
    _write_json(folder / "result.json", result)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # with moments, three times the model
    return result


class _Judge:
    """Judge the model of a run by the metrics of its task, and keep the best."""

    def __init__(self, tuning: FineTuning, prepared: Prepared, folder: Path) -> None:
        self._tuning, self._prepared, self._folder = tuning, prepared, folder
        self._mesh = Mesh().mesh(tuning.recipe.batch_size)
        self._logits = jax.jit(lambda params, batch: prepared.model.task_logits(gathered(params), batch))

    def __call__(self, step: int, params: Params) -> Mapping[str, float]:
        """Return the metrics; the model with the best first one is written to `best`."""

        def logits(batch: Batch) -> Any:
            return self._logits(params, place_batch(batch, self._mesh, len(batch["tokens"])))

        metrics: dict[str, float] = {}
        judgements = {}
        for split, encoded in self._prepared.splits.items():
            if split == "train":
                continue
            judgements[split] = judged(encoded, logits, self._tuning.recipe.batch_size)
            of_split = split.removeprefix("validation")  # MNLI has a second one, of other genres
            metrics |= {f"{name}{of_split}": value for name, value in judgements[split].metrics.items()}
        best = _read_json(self._folder / "best.json")
        first = self._tuning.task.metrics[0]
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
            _write_predictions(self._folder / "predictions" / split, self._prepared.splits[split], judgement)
        _write_json(self._folder / "best.json", {"step": step, "metrics": dict(metrics)})


def _write_predictions(folder: Path, encoded: Encoded, judgement: Judgement) -> None:
    """Write what was predicted: of SQuAD the official files, else a JSON line an example."""
    task = encoded.rows_of.task
    if task.kind == "span":
        write_predictions(folder, judgement.predicted, unanswerable=task.unanswerable)
        return
    folder.mkdir(parents=True, exist_ok=True)
    names = task.labels if task.kind == "classify" else ()
    lines = [
        {"example": example.origin, "predicted": names[said] if names else said}
        for example, said in zip(encoded.examples, judgement.predicted, strict=True)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _timing(folder: Path) -> dict[str, float]:
    """Add up what the run's timing says: milliseconds of a step, and the share of them that it waited for data."""
    path = folder / "timing.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not lines:  # too short a run to be timed
        return {}
    step_ms, wait_ms = (float(np.mean([line[name] for line in lines])) for name in ("step_ms", "data_wait_ms"))
    return {"step_ms": round(step_ms, 2), "data_wait": round(wait_ms / step_ms, 4)}


def _last_metrics(folder: Path) -> dict[str, float]:
    """Read the metrics of the last evaluation from the log of a run."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = [line for line in lines if any(name.startswith("validation/") for name in line)]
    return (
        {name.removeprefix("validation/"): value for name, value in found[-1].items() if name != "step"}
        if found
        else {}
    )


def summarise(tuning: FineTuning, prepared: Prepared, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the results of seeds together: median and quartiles of the last evaluation, over the seeds that learned."""
    learned = [result for result in results if "failed" not in result]
    first = tuning.task.metrics[0]
    metrics = {}
    for name in learned[0]["last"] if learned else ():
        values = [result["last"][name] for result in learned]
        if values:
            q1, median, q3 = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
            metrics[name] = {
                "median": median,
                "q1": q1,
                "q3": q3,
                "best": max(r["best"]["metrics"][name] for r in learned),
            }
    judged = learned or [result for result in results if result["best"]]  # better one that failed than none
    best = max(judged, key=lambda result: result["best"]["metrics"][first], default=None)
    return {
        "task": tuning.task.name,
        "init": tuning.init,
        "recipe": to_json(tuning.recipe),
        "train": len(prepared.splits["train"].examples),
        "validation": len(prepared.splits["validation"].examples),
        "programs": {name: len(np.unique(rows.buckets)) for name, rows in prepared.splits.items()},
        "metrics": metrics,
        "best_seed": best["seed"] if best else None,
        "failed": {result["seed"]: result["failed"] for result in results if "failed" in result},
        "seeds": results,
    }


def table(summary: Mapping[str, Any]) -> str:
    """Write a summary as a table in Markdown."""
    names = next((list(result["last"]) for result in summary["seeds"] if result["last"]), [])
    lines = [
        f"# {summary['task']} from {summary['init']}",
        "",
        f"| seed | {' | '.join(names)} | at its best | step | note |",
        f"|---|{'---:|' * (len(names) + 2)}---|",
    ]
    for result in summary["seeds"]:
        last, best = result["last"], result["best"]
        cells = [f"{last[name]:.4f}" if name in last else "–" for name in names]
        at_best = f"{best['metrics'][names[0]]:.4f} | {best['step']}" if best and names else "– | –"
        lines.append(f"| {result['seed']} | {' | '.join(cells)} | {at_best} | {result.get('failed', '')} |")
    for what in ("median", "q1", "q3"):
        cells = [f"{summary['metrics'][name][what]:.4f}" if name in summary["metrics"] else "–" for name in names]
        lines.append(f"| {what} | {' | '.join(cells)} | | | |")
    lines += ["", f"{len(summary['seeds'])} seeds, {len(summary['failed'])} failed; metrics of the last evaluation."]
    return "\n".join(lines) + "\n"


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


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file at once: a kill leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    partial.replace(path)
