"""The command `evaluate task`, which scores a fine-tuned model on labelled data and reports on it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertjax.commands.arguments import (
    command,
    names_in,
    positive,
    print_result,
    takes_json,
    takes_model,
    tell,
    threshold,
)
from bertjax.errors import InputError
from bertjax.storage.paths import path_of
from bertjax.tasks.tags import SCHEMES
from bertjax.terminal import show, show_json

if TYPE_CHECKING:
    from bertjax.checkpoints.trained import Model
    from bertjax.tasks.report import Threshold
    from bertjax.tasks.scoring import Evaluated
    from bertjax.tasks.task import Task


def add_to(scored: Any) -> None:
    """Add `task` to the command evaluate."""
    of_task = command(scored, "task", evaluate_task, "evaluate a fine-tuned model on labelled data",
                       "bertjax evaluate task own --model runs/mine/best --data test.csv --out report/")  # fmt: skip
    of_task.add_argument(
        "name", metavar="TASK", help="the name of a task, such as sst2 or wnut17; own for your own data"
    )
    takes_model(of_task)
    of_task.add_argument("--data", required=True, metavar="DATA",
                         help="the folder of its files, tfds or tfds:FOLDER; of own also a labelled file")  # fmt: skip
    of_task.add_argument("--split", default="", help="a labelled split of a folder (default: validation)")
    of_task.add_argument("--out", metavar="DIR", help="write report.txt, .json, .svg and predictions.jsonl into this "
                         "folder")  # fmt: skip
    of_task.add_argument("--batch-size", type=positive, default=32, metavar="N", help="rows in a batch (default: 32)")
    of_task.add_argument("--max-length", type=positive, default=0, metavar="N",
                         help="maximum tokens of a row (default: all positions of the model, or 512)")  # fmt: skip
    of_task.add_argument("--threshold", type=threshold, metavar="P",
                         help="probability above which a label is predicted, if a text may have several: one for all, "
                         "or some by name as in toxic:0.3,insult:0.6 (default: 0.5); of two labels, a second report at "
                         "this threshold (default: that of the validation split in fine-tuning)")  # fmt: skip
    of_task.add_argument("--threshold-from", metavar="FILE",
                         help="choose the threshold of two labels on this labelled file (of own)")  # fmt: skip
    of_task.add_argument("--labels", default="", metavar="PAIRS",
                         help="labels of the data and of the model, such as neg:NEGATIVE,pos:POSITIVE, if they have "
                         "other names; of entities, types such as PERSON:PER")  # fmt: skip
    of_task.add_argument("--scheme", choices=SCHEMES,
                         help="how the model's labels name entities (default: as their names tell)")  # fmt: skip
    own = of_task.add_argument_group("a task of your own (TASK is own), as in experiments/own.py")
    own.add_argument("--kind", choices=("classify", "multilabel", "regress", "tag", "span", "choice"),
                     help="(default: that of the model)")  # fmt: skip
    own.add_argument("--columns", default="text", metavar="NAMES", help="columns of the texts, separated by commas")
    own.add_argument("--label", default="label", metavar="NAME", help="the column of the label (default: %(default)s)")
    own.add_argument("--separator", default=",", metavar="TEXT", help="between the labels of a text (default: a comma)")
    own.add_argument("--tags", choices=("entities", "words"), default="",
                     help="whether tags are entities or of words (default: as their names tell)")  # fmt: skip
    takes_json(of_task)


def evaluate_task(options: argparse.Namespace) -> None:
    """Score a model on labelled data, and print a report or write it to --out."""
    from bertjax.checkpoints.trained import load
    from bertjax.inference.as_trained import threshold_of_two
    from bertjax.inference.compatible import check_tokenizer
    from bertjax.inference.score import score
    from bertjax.machine.xla_flags import keep_compiled_programs
    from bertjax.run import processes
    from bertjax.storage import files
    from bertjax.tasks.report import best_threshold

    processes.join()
    keep_compiled_programs(tell)
    with processes.telling_others():
        with processes.raising_on_all():
            out = _out_folder(options.out) if options.out else None
            model = load(options.model, options.experiment)
            check_tokenizer(model, options.model)
            task, data, split = _task(options, model, options.data)
            of_two = threshold_of_two(model, options.threshold)
            if options.threshold_from:
                chosen_on = _chosen_on(options, model)
            if out and processes.is_coordinator():
                files.make_folder(out, "")  # what cannot be written is told before work is lost

        def scored(task: "Task", data: str, split: str) -> "Evaluated":
            return score(model, task, data, split, threshold=None if of_two else options.threshold,
                         labels=names_in(options.labels), scheme=SCHEMES.get(options.scheme),
                         batch_size=options.batch_size, max_length=options.max_length,
                         say=tell if processes.is_coordinator() else lambda sentence: None)  # fmt: skip

        if options.threshold_from:
            on = scored(*chosen_on)
            of_two = best_threshold(on.task.labels, on.probabilities, on.gold)
        found = scored(task, data, split)
    if processes.is_coordinator():
        _report(options, out, found, of_two)


def _report(options: argparse.Namespace, out: Path | None, found: "Evaluated", of_two: "Threshold | None") -> None:
    from bertjax.storage import files
    from bertjax.tasks.predictions import write_predictions
    from bertjax.tasks.report import report_on
    from bertjax.tasks.report_picture import picture
    from bertjax.tasks.report_text import as_json, as_text, json_text

    report = report_on(found, of_two)
    if out:
        write_predictions(out, found)
        files.write(out / "report.txt", as_text(report))
        files.write(out / "report.json", json_text(report))
        files.write(out / "report.svg", picture(report, f"{options.model} on {options.data}"))
    show_json(as_json(report)) if options.json else show(as_text(report).rstrip("\n"))
    if out and not options.json:
        print_result(options, {"written to": str(out)})


def _out_folder(name: str) -> Path:
    folder = path_of(name)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {name} is a file: name a folder for the report")
    return folder


def _chosen_on(options: argparse.Namespace, model: "Model") -> tuple["Task", str, str]:
    """Return the task of the file on which the threshold is chosen. Raises InputError where there is none to choose."""
    from bertjax.inference.as_trained import head_of, kind_of, labels_of

    if options.name != "own" or options.threshold is not None:
        raise InputError("--threshold-from is for a task of your own (own), instead of --threshold")
    if kind_of(model) != "classify" or len(labels_of(model, head_of(model, "classify").C)) != 2:
        raise InputError("--threshold-from: a threshold is chosen for models with two labels that exclude each other")
    if not path_of(options.threshold_from).is_file():
        raise InputError(f"--threshold-from {options.threshold_from}: there is no such file")
    return _task(options, model, options.threshold_from)


def _task(options: argparse.Namespace, model: "Model", data: str) -> tuple["Task", str, str]:
    """Return the task, its data and its split."""
    from bertjax.inference.as_trained import kind_of
    from bertjax.tasks.own import own_task, task_of_file
    from bertjax.tasks.table import find_task

    split = options.split or "validation"
    if options.name != "own":
        return find_task(options.name), data, split
    if not data.startswith("tfds") and not path_of(data).exists():
        raise InputError(f"{data}: there is no such file or folder")
    kind = options.kind or kind_of(model)
    columns = names_in(options.columns)
    more = {"separator": options.separator, "tags": options.tags}
    if not data.startswith("tfds") and path_of(data).is_file():
        if options.split and data == options.data:
            raise InputError(f"--split {options.split}: {data} is one file, which has no splits: leave it out")
        known = getattr(model.objective, "labels", ())
        return task_of_file(kind, data, columns, options.label, known=known, **more), str(path_of(data).parent), "file"
    return own_task(kind, data, columns, options.label, split=split, **more), data, split
