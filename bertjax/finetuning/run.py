"""Fine-tune a trained model on a task: several seeds through `fit`, each evaluated by the metrics of the task.

<workdir>/tokenizer/        the model's, which encodes the texts
          inputs.json       the digest of data and initial parameters, which all seeds share
          lock              locked while a run is going on
          seed-0/, …        one run each: see bertjax.run.workdir; its checkpoints are deleted once it has a result
          seed-0/result.json   metrics of its best and its last evaluation
          seed-0/best.json     its best evaluation so far
          seed-0/predictions/  of its best model, on each validation split
          best/             the best model of all seeds, to be loaded
          results.json      all results: median and quartiles over seeds, and the seeds that failed
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.checkpoints.trained import load
from bertjax.errors import InputError
from bertjax.finetuning.evaluator import TaskEvaluator, history_of
from bertjax.finetuning.labels import with_labels_of
from bertjax.finetuning.prepare import Prepared, as_input_errors, experiment_of, prepare, record_tokenizer
from bertjax.finetuning.recipe import FineTuning
from bertjax.finetuning.results import (
    Result,
    is_enough,
    last_metrics,
    read_best,
    read_json,
    read_result,
    summarise,
    table,
    timing,
    write_json,
)
from bertjax.inference.compatible import check_tokenizer
from bertjax.run.processes import (
    assert_equal_on_all,
    from_coordinator,
    is_coordinator,
    locked_by_coordinator,
    raising_on_all,
)
from bertjax.run.stop import StopRequest
from bertjax.run.workdir import record_experiment
from bertjax.run.writers import Progress
from bertjax.serialization.description import to_json
from bertjax.storage import files
from bertjax.storage.paths import path_of
from bertjax.tasks.rows import Encoded
from bertjax.tasks.scoring import constant_answer
from bertjax.train import fit
from bertjax.wording import counted


def finetune(
    tuning: FineTuning,
    workdir: str | Path,
    *,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
    experiment: str | Path = "",
) -> dict[str, Any]:
    """Run all seeds without a result, and return the content of `results.json`, earlier results included.

    experiment: the file of `tuning.init`, see `load`. Several processes train together, as in `fit`; process 0 alone
    writes results. Raises InputError for mistakes found before training, and Interrupted as `fit`. A seed that diverges
    is a result.
    """
    progress = progress or Progress(shown=is_coordinator())
    with raising_on_all():
        source = load(tuning.init, experiment)
        check_tokenizer(source, tuning.init)
    folder = path_of(workdir)
    with locked_by_coordinator(folder):
        with raising_on_all():
            tuning = with_labels_of(tuning, source, progress.say)
            if is_coordinator():
                record_tokenizer(tuning, source, folder)
        with raising_on_all():
            prepared = prepare(tuning, source, folder, progress)
            with as_input_errors():
                experiment_of(tuning, prepared, tuning.first_seed)
        assert_equal_on_all({"the recipe": to_json(tuning.recipe), "the data or the model": prepared.digest})
        with raising_on_all():
            earlier = _earlier(tuning, prepared, folder) if is_coordinator() else []
        results: dict[int, Result] = {result["seed"]: result for result in from_coordinator(earlier)}
        for seed in range(tuning.first_seed, tuning.first_seed + tuning.seeds):
            results[seed] = results.get(seed) or _run_seed(tuning, prepared, seed, folder, progress, stop)
            of_all = [result for _, result in sorted(results.items())]
            summary = _about(tuning, prepared) | summarise(of_all, tuning.task.metric_names[0])
            with raising_on_all():
                if is_coordinator():
                    write_json(folder / "results.json", summary)
                    files.write(folder / "results.md", table(summary))
                    _keep_best(folder, summary)
    return summary


def _earlier(tuning: FineTuning, prepared: Prepared, workdir: Path) -> list[Result]:
    """Load the existing results of seeds. Raises InputError if their settings, data or initial parameters differ.

    The digest of the inputs is written before the first seed is trained, so that it guards killed seeds as well.
    """
    path_of_inputs, inputs = workdir / "inputs.json", {"inputs": prepared.digest}
    seeds = any(workdir.glob("seed-*"))
    if seeds and read_json(path_of_inputs, f"choose another --workdir, or delete {workdir}") != inputs:
        raise InputError(
            f"{workdir} has seeds from other data than {tuning.data} or other parameters than {tuning.init}: "
            "choose another --workdir"
        )
    write_json(path_of_inputs, inputs)
    results = []
    for path in workdir.glob("seed-*/result.json"):
        found = read_result(path, tuning.task.metric_names[0])
        record_experiment(path.parent, experiment_of(tuning, prepared, found["seed"]))
        results.append(found)
    return results


def _run_seed(
    tuning: FineTuning, prepared: Prepared, seed: int, workdir: Path, progress: Progress, stop: StopRequest | None
) -> Result:
    """Train one seed and write its result."""
    folder, experiment = files.make_folder(workdir, f"seed-{seed}"), experiment_of(tuning, prepared, seed)
    progress.say(f"seed {seed}")
    evaluator = TaskEvaluator(tuning, prepared, folder, stop)
    result: Result = {"seed": seed}
    first = tuning.task.metric_names[0]
    over = is_enough(history_of(folder, first), tuning.patience)  # it was killed before it had a result
    try:
        source = prepared.splits["train"]
        if not over:
            fit(experiment, folder, progress=progress, evaluate=evaluator, make_step=prepared.make_step, source=source,
                stop=stop, enough=evaluator.enough)  # fmt: skip
    except FloatingPointError as error:
        result |= {"failed": str(error)}
    history = history_of(folder, first)
    if is_enough(history, tuning.patience) and history[-1][0] < experiment.steps:
        result |= {"ended": history[-1][0]}
        waited = counted(tuning.patience, "evaluations")
        progress.say(f"seed {seed}: no new best in {waited}: it ends at step {history[-1][0]}")
    with raising_on_all():
        if is_coordinator():
            result = _finished(result, folder, first, prepared.splits["validation"])
    found: Result = from_coordinator(result)
    return found


def _finished(result: Result, folder: Path, first: str, validation: Encoded) -> Result:
    """Write and return the result of a seed from what its run has logged, and delete its checkpoints."""
    last = last_metrics(folder)
    if "failed" not in result and last[first] <= constant_answer(validation):
        result |= {"failed": "no better than the best constant prediction"}
    result |= {"best": read_best(folder / "best.json") or {}, "last": last} | timing(folder)
    write_json(folder / "result.json", result)
    files.remove_folder(folder / "checkpoints")  # with the moments of Adam, three times the model
    return result


def _about(tuning: FineTuning, prepared: Prepared) -> Result:
    """Return the inputs of the results. programs: the number of row lengths, and so of compiled programs, by split."""
    return {
        "task": tuning.task.name,
        "init": tuning.init,
        "recipe": to_json(tuning.recipe),
        "train": len(prepared.splits["train"].examples),
        "validation": len(prepared.splits["validation"].examples),
        "programs": {name: len(np.unique(rows.buckets)) for name, rows in prepared.splits.items()},
    }


def _keep_best(folder: Path, summary: Mapping[str, Any]) -> None:
    """Move the best model of all seeds so far to `best`, and delete those of the others."""
    for result in summary["seeds"]:
        kept = folder / f"seed-{result['seed']}" / "best"
        if not kept.exists():
            continue
        if result["seed"] == summary["best_seed"]:
            files.move_folder(kept, folder / "best")
        else:
            files.remove_folder(kept)
