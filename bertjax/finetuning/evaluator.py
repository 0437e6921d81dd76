"""Evaluate a model during fine-tuning by the metrics of its task, and keep the best."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax

from bertjax.checkpoints import checkpoint
from bertjax.data.source import Batch
from bertjax.finetuning.prepare import Prepared
from bertjax.finetuning.recipe import FineTuning
from bertjax.finetuning.results import evaluations, is_enough, read_best, write_json
from bertjax.rules import name_of
from bertjax.run.processes import from_coordinator, is_coordinator, raising_on_all, stopping_together
from bertjax.run.stop import StopRequest
from bertjax.storage import files
from bertjax.tasks.predictions import write_predictions
from bertjax.tasks.report import Threshold, best_threshold
from bertjax.tasks.scoring import Evaluated, evaluate_rows
from bertjax.types import Params


class TaskEvaluator:
    """Evaluate the model of a run by the metrics of its task, and keep the best."""

    def __init__(self, tuning: FineTuning, prepared: Prepared, folder: Path, stop: StopRequest | None = None) -> None:
        self._tuning, self._prepared, self._folder = tuning, prepared, folder
        self._history: list[tuple[int, float]] | None = None  # of the first metric, by step
        self._check = stopping_together(stop)

    def __call__(self, step: int, params: Params) -> Mapping[str, float]:
        """Return the metrics of all validation splits; export the model to `best` if the first metric is the best.

        Every process computes the same metrics, of all rows; process 0 alone reads and writes files.
        """
        task, recipe = self._tuning.task, self._tuning.recipe
        if recipe.unit_range and task.scale:
            params = _in_range(params, task.scale)

        def logits(batch: Batch) -> Any:
            self._check()
            return self._prepared.logits(params, batch)

        metrics: dict[str, float] = {}
        results = {}
        for split, encoded in self._prepared.splits.items():
            if split == "train":
                continue
            results[split] = evaluate_rows(
                encoded, logits, recipe.batch_size, longest=self._tuning.longest, threshold=self._tuning.threshold
            )
            of_split = split.removeprefix("validation")  # MNLI has a second one, of other genres
            metrics |= {f"{name}{of_split}": value for name, value in results[split].metrics.items()}
        best = from_coordinator(read_best(self._folder / "best.json") if is_coordinator() else None)
        first = task.metric_names[0]
        if self._history is None:  # of a resumed run, the evaluations before this one
            self._history = [each for each in history_of(self._folder, first) if each[0] < step]
        self._history.append((step, metrics[first]))
        if not best or metrics[first] > best["metrics"][first]:
            self._keep(step, params, metrics, results)
        return metrics

    def enough(self) -> bool:
        """Return whether the last `patience` evaluations brought no new best one."""
        return is_enough(self._history or [], self._tuning.patience)

    def _keep(self, step: int, params: Params, metrics: Mapping[str, float], results: Mapping[str, Evaluated]) -> None:
        partial = self._folder / "best.partial"
        with raising_on_all():
            if is_coordinator():
                files.remove_folder(partial)
        experiment = self._prepared.config | {"step": step, "metrics": dict(metrics)}
        if threshold := _threshold(results["validation"]):
            experiment["threshold"] = threshold._asdict()
        checkpoint.export(partial, params, experiment=experiment, tokenizer=self._prepared.tokenizer)
        with raising_on_all():
            if not is_coordinator():
                return
            files.move_folder(partial, self._folder / "best")
            for split, result in results.items():
                write_predictions(files.make_folder(self._folder, f"predictions/{split}"), result)
            write_json(self._folder / "best.json", {"step": step, "metrics": dict(metrics)})


def history_of(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Return step and metric of all evaluations so far, the same on all processes."""
    with raising_on_all():
        found = evaluations(folder, metric) if is_coordinator() else []
    return [(step, value) for step, value in from_coordinator(found)]


def _threshold(validation: Evaluated) -> Threshold | None:
    """Choose the threshold of two classes on the validation split."""
    task, chances_RC = validation.task, validation.probabilities
    if task.kind != "classify" or len(task.labels) != 2 or chances_RC is None:
        return None
    return best_threshold(task.labels, chances_RC, validation.gold)


def _in_range(params: Params, scale: tuple[float, float]) -> Params:
    """Rescale the last layer of a model trained on targets in 0 .. 1, so that it predicts numbers of the range."""
    low, high = scale

    def rescaled(path: Any, leaf: Any) -> Any:
        if not re.search(r"^head/\w+/classifier/", name_of(path)):
            return leaf
        return leaf * (high - low) + (low if name_of(path).endswith("/bias") else 0.0)

    return cast(Params, jax.tree_util.tree_map_with_path(rescaled, params))
