"""The commands that train and evaluate: pretrain, finetune, evaluate."""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from bertjax import exits
from bertjax.commands import scoring
from bertjax.commands.arguments import (
    command,
    positive,
    print_result,
    takes_code,
    takes_experiment,
    takes_json,
    tell,
)
from bertjax.commands.retrieval import add_evaluations
from bertjax.errors import Diverged, InputError
from bertjax.storage.paths import path_of
from bertjax.terminal import show, show_json
from bertjax.wording import counted

if TYPE_CHECKING:
    from bertjax.config import Experiment
    from bertjax.run.stop import StopRequest
    from bertjax.run.writers import Progress


def add(commands: Any) -> None:
    """Add these commands."""
    pretrain = command(commands, "pretrain", _pretrain, "train an experiment, or resume it",
                        "bertjax pretrain experiments/bert.py size=base data=corpus/ --workdir runs/base")  # fmt: skip
    takes_experiment(pretrain)
    pretrain.add_argument("--workdir", required=True, metavar="DIR", help="work directory, for checkpoints and logs")

    finetune = command(commands, "finetune", _finetune, "fine-tune a model on a task, with several seeds",
                        "bertjax finetune experiments/glue.py task=sst2 init=bert-base/ data=glue/ "
                        "--workdir runs/sst2")  # fmt: skip
    takes_experiment(finetune)
    finetune.add_argument(
        "--workdir", required=True, metavar="DIR", help="work directory, for models, logs and results"
    )
    finetune.add_argument(
        "--init-experiment",
        default="",
        metavar="FILE",
        help="the experiment file of init, where its encoder is a class of your own; it is executed",
    )
    takes_json(finetune)

    new = command(commands, "new-experiment", _new_experiment, "begin an experiment of your own, as a commented copy",
                  "bertjax new-experiment mine.py --like bert")  # fmt: skip
    new.add_argument("path", metavar="FILE", help="the file to write, such as mine.py")
    new.add_argument("--like", default="bert", metavar="NAME",
                     help="an experiment that comes with bertjax, or a file (default: %(default)s)")  # fmt: skip

    look = command(commands, "inspect-batch", _inspect_batch, "look at the batch on which a run diverged",
                   "bertjax inspect-batch runs/base")  # fmt: skip
    look.add_argument("run_folder", metavar="DIR", help="work directory of the run")
    takes_code(look)
    takes_json(look)

    evaluate = command(commands, "evaluate", _evaluate, "evaluate a model on held-out text or a task, or predictions",
                        "bertjax evaluate --model runs/base")  # fmt: skip
    evaluate.add_argument("--model", metavar="DIR", help="a work directory, or a checkpoint")
    takes_code(evaluate)
    evaluate.add_argument("--data", metavar="CORPUS", help="a corpus (default: that of training)")
    evaluate.add_argument("--split", default="validation", help="the split (default: %(default)s)")
    evaluate.add_argument("--batch-size", type=positive, default=32, metavar="N", help="rows in a batch (default: 32)")
    evaluate.add_argument("--draws", type=positive, metavar="N", help="of masked diffusion: estimates of the bound on "
                          "each row's likelihood (default: 8)")  # fmt: skip
    takes_json(evaluate)

    scored = evaluate.add_subparsers(title="instead of held-out text", metavar="ACTION")
    scoring.add_to(scored)
    _add_squad(scored)
    add_evaluations(scored)


def _add_squad(scored: Any) -> None:
    squad = command(scored, "squad", _evaluate_squad, "score answers as SQuAD's official scripts do",
                     "bertjax evaluate squad --data dev-v2.0.json --predictions predictions.json --json")  # fmt: skip
    squad.add_argument("--data", required=True, metavar="JSON", help="the questions with gold answers")
    squad.add_argument("--predictions", required=True, metavar="JSON", help="predicted answers by id")
    squad.add_argument("--null-odds", metavar="JSON",
                       help="scores of no answer by id, on any scale: adds the best thresholds")  # fmt: skip
    squad.add_argument("--null-threshold", type=float, metavar="X",
                       help="score above which no answer is predicted (default: 1.0, as officially)")  # fmt: skip
    takes_json(squad)


def _new_experiment(options: argparse.Namespace) -> None:
    from bertjax.new_experiment import write_experiment

    for line in write_experiment(options.path, options.like):
        tell(line)


def _inspect_batch(options: argparse.Namespace) -> None:
    from bertjax.inspect_batch import inspect_batch

    print_result(options, inspect_batch(options.run_folder, options.experiment))


def _pretrain(options: argparse.Namespace) -> None:
    with _training() as (stop, progress):
        from bertjax.machine.xla_flags import keep_compiled_programs
        from bertjax.run import processes
        from bertjax.train import fit

        processes.join()
        keep_compiled_programs(tell)
        with processes.telling_others(), processes.raising_on_all():  # one without the corpus fails on all
            experiment = _loaded(options)
        progress.shown = processes.is_coordinator()
        try:
            state = fit(experiment, options.workdir, progress=progress, stop=stop)
        except FloatingPointError as error:
            raise Diverged(f"{error}; earlier checkpoints are kept in {options.workdir}") from error
        progress.say(f"done: {counted(int(state.step), 'steps')}, model in {options.workdir}")


def _loaded(options: argparse.Namespace) -> "Experiment":
    """Build the experiment. A run that has begun reads sizes from its own checkpoint where the model in `init` is gone.

    It does not read that model's parameters again, so its folder may have been deleted.
    """
    from bertjax.checkpoints.checkpoint import has_checkpoint
    from bertjax.checkpoints.described import Init
    from bertjax.checkpoints.trained import part_of
    from bertjax.config import load_experiment

    *_, given = "", *(text.removeprefix("init=") for text in options.override if text.startswith("init="))
    if not given or part_of(Init.parse(given).source)[0].exists() or not has_checkpoint(path_of(options.workdir)):
        return load_experiment(options.experiment, options.override)
    others = [text for text in options.override if not text.startswith("init=")]
    experiment = load_experiment(options.experiment, [*others, f"init={options.workdir}"])
    return dataclasses.replace(experiment, init=given)


def _finetune(options: argparse.Namespace) -> None:
    with _training() as (stop, progress):
        from bertjax.config import load_described
        from bertjax.finetuning.recipe import FineTuning
        from bertjax.finetuning.results import table
        from bertjax.finetuning.run import finetune
        from bertjax.finetuning.sweep import sweep, sweep_table
        from bertjax.machine.xla_flags import keep_compiled_programs
        from bertjax.run import processes

        processes.join()
        keep_compiled_programs(tell)
        with processes.telling_others(), processes.raising_on_all():
            tuning = load_described(options.experiment, options.override, FineTuning)
        progress.shown = processes.is_coordinator()
        run, as_table = (sweep, sweep_table) if len(tuning.rates) > 1 else (finetune, table)
        summary = run(tuning, options.workdir, progress=progress, stop=stop, experiment=options.init_experiment)
        coordinator = processes.is_coordinator()
    failed = summary["failed"]
    if failed is True or (failed and len(failed) == len(summary["seeds"])):
        options.exit_code = exits.DIVERGED
    if coordinator:
        with suppress(BrokenPipeError):  # the results are in the work directory
            show_json(summary) if options.json else show(as_table(summary))
            sys.stdout.flush()


@contextmanager
def _training() -> Iterator[tuple["StopRequest", "Progress"]]:
    """Catch signals before anything is imported that takes time, and keep what ends the run."""
    from functools import partial

    from bertjax.run.leaving import end
    from bertjax.run.stop import stop_requests
    from bertjax.run.writers import Progress

    progress = Progress()
    with stop_requests(end=partial(end, progress), say=progress.note) as stop:
        stop.at_once = stop.starting = True
        try:
            from bertjax.machine.xla_flags import sum_in_float32

            sum_in_float32()
            yield stop, progress
        except BaseException as error:
            progress.record(f"ended: {type(error).__name__}: {error}")
            raise


def _evaluate(options: argparse.Namespace) -> None:
    from bertjax.data.source import evaluation_batches
    from bertjax.evaluate import evaluator
    from bertjax.likelihood import bound
    from bertjax.machine.xla_flags import keep_compiled_programs
    from bertjax.objectives.diffusion import MaskedDiffusion
    from bertjax.run import processes
    from bertjax.sharding.mesh import DATA_PARALLEL, held_rows

    if options.model is None:
        raise InputError("nothing to evaluate: pass --model DIR, or score predictions (bertjax evaluate squad --help)")
    processes.join()
    keep_compiled_programs(tell)
    with processes.telling_others():
        with processes.raising_on_all():
            model, source = _model_and_rows(options)
            if options.draws and not isinstance(model.objective, MaskedDiffusion):
                raise InputError(f"--draws is of masked diffusion, and {options.model} is none: leave it out")
            mesh = DATA_PARALLEL.mesh(options.batch_size)
        held = held_rows(mesh, options.batch_size)
        batches = evaluation_batches(source, options.batch_size, held=held)
        values = evaluator(model.objective, mesh, options.batch_size)(model.params, batches)
        if isinstance(model.objective, MaskedDiffusion):
            bounded = bound(model.objective, mesh, options.batch_size, draws=options.draws or 8, tokenizer=model.text)
            values |= bounded(model.params, evaluation_batches(source, options.batch_size, held=held))
    if processes.is_coordinator():
        print_result(options, values)


def _model_and_rows(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load the model to evaluate, and open the split that it is evaluated on. Raises InputError if they do not fit."""
    from bertjax.checkpoints.trained import load_with
    from bertjax.config import own_code
    from bertjax.data.records import corpus_tokenizer, read_manifest
    from bertjax.data.tokenizer import fingerprint, same_tokenizer
    from bertjax.models.sentence import SENTENCE
    from bertjax.serialization.closed_set import ROWS
    from bertjax.serialization.description import from_json
    from bertjax.storage.paths import in_cloud, path_of
    from bertjax.tasks.instructions import Instructions
    from bertjax.tasks.rows import TaskRows
    from bertjax.types import Objective

    code = own_code(options.experiment) if options.experiment else {}
    model = load_with(options.model, code)
    if not isinstance(model.objective, Objective):
        if SENTENCE in getattr(model.objective, "heads", {}):
            raise InputError(
                f"{options.model} computes embeddings: evaluate them with bertjax evaluate retrieval, or similarity"
            )
        raise InputError(
            f"{options.model} alone has no loss to evaluate: evaluate the run that it is part of, or train it (init=)"
        )
    if not model.config.get("phases"):
        raise InputError(f"{options.model} has no rows to evaluate on: evaluate the run that it comes from")
    rows = from_json(model.config["phases"][-1]["rows"], ROWS, "rows", code)
    if isinstance(rows, TaskRows):
        raise InputError(f"{options.model} was fine-tuned on a task: evaluate it with bertjax evaluate task")
    if isinstance(rows, Instructions):
        if not options.data:
            raise InputError(f"{options.model} was trained on prompts and answers: pass --data FILE with some")
        split = options.split if path_of(options.data).is_dir() else "train"
        return model, dataclasses.replace(rows, data=options.data).encode(split, model.text)
    if not options.data and in_cloud(rows.corpus) and not in_cloud(options.model):
        raise InputError(
            f"the corpus of {options.model} is {rows.corpus}: pass --data {rows.corpus} to read it there, if you trust "
            "who made this model"
        )
    if not options.data and not (path_of(rows.corpus or ".") / "manifest.json").is_file():
        raise InputError(f"the corpus of {options.model}, {rows.corpus!r}, is not here: pass --data DIR")
    rows = dataclasses.replace(rows, corpus=options.data or rows.corpus)
    manifest = read_manifest(rows.corpus)
    if manifest.tokenizer != fingerprint(model.text) and not same_tokenizer(corpus_tokenizer(rows.corpus), model.text):
        raise InputError(
            f"corpus {rows.corpus} was built with another tokenizer than the model's: build it with "
            f"--tokenizer FOLDER of the corpus that {options.model} was trained on"
        )
    return model, rows.open(options.split)


def _evaluate_squad(options: argparse.Namespace) -> None:
    from bertjax.tasks.squad import read_answers, read_gold, score_predictions

    if options.model is not None:
        raise InputError("predictions are scored without a model: leave out --model")
    if options.null_threshold is not None and options.null_odds is None:
        raise InputError("--null-threshold needs --null-odds: give both, or neither")
    gold, predictions = read_gold(path_of(options.data)), read_answers(path_of(options.predictions))
    if not gold.answers.keys() & predictions.keys():
        raise InputError(
            f"{options.predictions} has no answer to a question of {options.data}: is it of another data set?"
        )
    odds = read_answers(path_of(options.null_odds), float) if options.null_odds else None
    threshold = 1.0 if options.null_threshold is None else options.null_threshold
    print_result(options, score_predictions(gold, predictions, odds, threshold=threshold))


TRAIN = (_pretrain, _finetune)
"""The commands that print no results while they run: output that nobody reads does not end them."""

TOGETHER = (*TRAIN, _evaluate, scoring.evaluate_task)
"""The commands that may run as several processes: they end within a bound, whatever the other processes do."""
