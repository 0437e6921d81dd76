"""The command `bertjax`: thin, every command is a function of the package.

Errors that a user can mend are one line and exit code 2; a run that diverged exits with 1, one that was stopped after
its checkpoint with 130 (Ctrl-C) or 143 (SIGTERM), a plan that does not fit its devices exits with 3.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertjax.errors import InputError

if TYPE_CHECKING:
    from bertjax.data.corpus import Bad, Document

NOT_FITTING = 3
"""The exit code of a plan for devices with too little memory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _parse(arguments)
    try:
        options.run(options)
    except InputError as error:
        print(f"bertjax: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"bertjax: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print(
            "bertjax: a worker process was killed (out of memory?): run it again with fewer --workers", file=sys.stderr
        )
        return 2
    except FloatingPointError as error:
        print(f"bertjax: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbertjax: stopped", file=sys.stderr)
        return 130
    return getattr(options, "exit_code", 0)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command; overrides may stand on either side of options, which argparse alone does not allow."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "override") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.override += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bertjax", description="Pre-train and use encoder language models in JAX.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    pretrain = _command(commands, "pretrain", _pretrain, "train an experiment, or go on with it",
                        "bertjax pretrain experiments/bert.py size=base data=corpus/ --workdir runs/base")  # fmt: skip
    _experiment(pretrain)
    pretrain.add_argument("--workdir", required=True, metavar="DIR", help="where checkpoints and logs go")

    finetune = _command(commands, "finetune", _finetune, "fine-tune a model on a task, with several seeds",
                        "bertjax finetune experiments/glue.py task=sst2 init=bert-base/ data=glue/ "
                        "--workdir runs/sst2")  # fmt: skip
    _experiment(finetune)
    finetune.add_argument("--workdir", required=True, metavar="DIR", help="where models, logs and results go")
    _json(finetune)

    evaluate = _command(commands, "evaluate", _evaluate, "evaluate a model on held-out text, or score predictions",
                        "bertjax evaluate --model runs/base")  # fmt: skip
    evaluate.add_argument("--model", metavar="DIR", help="the work folder of a run, or one checkpoint")
    evaluate.add_argument("--data", metavar="CORPUS", help="of the model's tokenizer (default: what it was trained on)")
    evaluate.add_argument("--split", default="validation", help="which split (default: %(default)s)")
    evaluate.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="rows at a time (default: 32)")
    _json(evaluate)

    scored = evaluate.add_subparsers(title="predictions of others, without a model", metavar="TASK")
    squad = _command(scored, "squad", _evaluate_squad, "score answers as SQuAD's official scripts do",
                     "bertjax evaluate squad --data dev-v2.0.json --predictions predictions.json --json")  # fmt: skip
    squad.add_argument("--data", required=True, type=Path, metavar="JSON", help="the questions with their answers")
    squad.add_argument("--predictions", required=True, type=Path, metavar="JSON", help="an answer for each id")
    squad.add_argument("--null-odds", type=Path, metavar="JSON",
                       help="how likely each id has no answer, by any number: adds the best thresholds")  # fmt: skip
    squad.add_argument("--null-threshold", type=float, default=1.0, metavar="X",
                       help="odds above which an answer counts as none (default: 1.0, as officially)")  # fmt: skip
    _json(squad)

    predict = commands.add_parser("predict", help="use a model").add_subparsers(required=True, metavar="TASK")
    fill = _command(predict, "fill-mask", _fill_mask, "guess masked words",
                    'bertjax predict fill-mask --model runs/base "The capital of France is [MASK]."')  # fmt: skip
    _model(fill)
    fill.add_argument("text", nargs="*", metavar="TEXT", help="texts with masks; default: lines of standard input")
    fill.add_argument("--top", type=_positive, default=5, metavar="K", help="guesses for each mask (default: 5)")
    _json(fill)

    embedding = _command(predict, "embed", _embed, "embed texts: the mean of their hidden states, of length 1",
                         'bertjax predict embed --model minilm "A sentence." "Another one." --json')  # fmt: skip
    _model(embedding)
    embedding.add_argument("text", nargs="*", metavar="TEXT", help="texts; default: lines of standard input")
    embedding.add_argument(
        "--max-length", type=_positive, default=0, metavar="N", help="cut texts to N tokens (default: refuse long ones)"
    )
    embedding.add_argument(
        "--batch-size", type=_positive, default=32, metavar="N", help="texts at a time (default: 32)"
    )
    _json(embedding)

    data = commands.add_parser("data", help="build and look at corpora").add_subparsers(required=True, metavar="ACTION")
    build = _command(data, "build", _build, "turn text into a corpus",
                     "bertjax data build wiki/ --format wikiextractor --tokenizer vocab.txt --out corpus/")  # fmt: skip
    _text_input(build)
    build.add_argument("--tokenizer", required=True, metavar="T",
                       help="vocab.txt, vocab.json, tokenizer.json, a .model file, or a folder with one")  # fmt: skip
    build.add_argument("--out", required=True, type=Path, metavar="DIR", help="the new corpus")
    build.add_argument("--holdout", type=float, default=0.01, help="share of documents held out (default: 0.01)")
    build.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="default: one a core")
    build.add_argument("--seed", type=int, default=0, help="of the choice of held-out documents (default: 0)")
    build.add_argument("--shard-tokens", type=int, default=2**26, metavar="N", help="tokens a shard (default: 2^26)")
    _json(build)
    inspect = _command(data, "inspect", _inspect, "show what a corpus holds", "bertjax data inspect corpus/")
    inspect.add_argument("corpus", metavar="DIR")
    _json(inspect)

    tokenizers = commands.add_parser("tokenizer", help="train tokenizers")
    tokenizer = tokenizers.add_subparsers(required=True, metavar="ACTION")
    train = _command(tokenizer, "train", _train_tokenizer, "train a vocabulary",
                     "bertjax tokenizer train wiki/ --format wikiextractor --kind wordpiece --size 30522 --lowercase "
                     "--out tokenizer/")  # fmt: skip
    _text_input(train)
    train.add_argument("--kind", choices=("wordpiece", "bpe", "unigram"), default="wordpiece")
    train.add_argument("--size", type=int, required=True, metavar="V", help="pieces in the vocabulary")
    train.add_argument("--lowercase", action="store_true", help="lower-case and strip accents")
    train.add_argument("--sample-bytes", type=int, default=2**29, metavar="N", help="text to train on (default: 2^29)")
    train.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the tokenizer")
    _json(train)

    convert = _command(commands, "convert", _convert, "write a model, or one part of it, to a folder of its own",
                       "bertjax convert runs/electra:discriminator discriminator/")  # fmt: skip
    convert.add_argument(
        "source", metavar="SRC", help="a work folder, one checkpoint, `folder:part`, or a Hugging Face folder"
    )
    convert.add_argument("destination", metavar="DST", help="a new folder")
    convert.add_argument("--to", choices=("bertjax", "huggingface"), default="bertjax",
                         help="huggingface: config.json, model.safetensors and tokenizer files for transformers "
                         "(default: %(default)s)")  # fmt: skip

    plan = _command(commands, "plan", _plan, "count parameters and work, see what fits a TPU slice, without running",
                    "bertjax plan experiments/bert.py size=large dtype=bfloat16 --topology v5e:4x4")  # fmt: skip
    _experiment(plan)
    plan.add_argument(
        "--topology", metavar="SLICE", help="compile the step for a TPU slice, as v5e:4x4 or v3-8, and describe it; "
        "exit code 3 where it does not fit. Needs no TPU, but libtpu: pip install '.[plan]'",
    )  # fmt: skip
    plan.add_argument("--search", action="store_true",
                      help="find the largest batch of a device that fits, for each way to recompute")  # fmt: skip
    plan.add_argument("--picture", type=Path, metavar="FILE", help="draw the memory of a device as SVG")
    _json(plan)

    doctor = _command(commands, "doctor", _doctor, "say what is wrong with this machine, and how to mend it",
                      "bertjax doctor --workdir runs/base")  # fmt: skip
    doctor.add_argument("--workdir", type=Path, default=Path(), metavar="DIR", help="whose disk (default: this folder)")
    doctor.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="for devices to answer (default: %(default)g)"
    )
    _json(doctor)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
    parser.set_defaults(run=run)
    return parser


def _experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="an experiment file, such as experiments/bert.py")
    parser.add_argument("override", nargs="*", metavar="key=value",
                        help="arguments of its experiment(), or dotted fields such as objective.encoder.D")  # fmt: skip


def _model(
    parser: argparse.ArgumentParser, what: str = "the work folder of a run, one checkpoint, or a Hugging Face folder"
) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help=what)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _text_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="+", metavar="INPUT", help="files or folders (.gz and .zst too), or a TFDS name")
    parser.add_argument(
        "--format", required=True, choices=("plain", "sentences", "wikiextractor", "jsonl", "markdown", "tfds"),
        help="plain: a document a file; sentences: a sentence a line, blank lines between documents; jsonl: a document "
        "a line; markdown: a book a file",
    )  # fmt: skip
    parser.add_argument("--text-field", default="text", metavar="NAME", help="of jsonl and tfds (default: text)")
    parser.add_argument("--data-dir", metavar="DIR", help="where TFDS keeps its data sets")
    parser.add_argument("--longest-line", type=int, default=10**6, metavar="BYTES", help="longer lines are bad input")
    parser.add_argument("--skip-bad", action="store_true", help="count and leave out what cannot be read")


def _documents(options: argparse.Namespace) -> tuple["Iterator[Document | Bad]", list[Any], int]:
    """Open the input: its documents, what identifies it, and its size in bytes, as far as known."""
    from bertjax.data import corpus

    if options.format == "tfds":
        names = [corpus.tfds(name, options.text_field, options.data_dir) for name in options.input]
        return chain.from_iterable(names), [options.text_field, options.data_dir, *options.input], 0
    readers = {
        "plain": corpus.plain,
        "sentences": corpus.sentences,
        "wikiextractor": corpus.wikiextractor,
        "jsonl": corpus.json_lines(options.text_field),
        "markdown": corpus.markdown,
    }
    files = corpus.find_files(options.input)
    read = readers[options.format]
    identity: list[Any] = [options.format, options.text_field, options.longest_line]
    identity += [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    size = sum(file.stat().st_size * (4 if file.suffix in (".gz", ".zst") else 1) for file in files)
    return chain.from_iterable(read(file, options.longest_line) for file in files), identity, size


def _pretrain(options: argparse.Namespace) -> None:
    from bertjax import processes
    from bertjax.compiler import keep_compiled_programs
    from bertjax.config import load_experiment
    from bertjax.report import Progress
    from bertjax.train import Interrupted, fit

    processes.join()
    keep_compiled_programs()
    experiment = load_experiment(options.experiment, options.override)
    progress = Progress(shown=processes.first())
    try:
        state = fit(experiment, options.workdir, progress=progress)
    except Interrupted as stopped:
        progress.say(str(stopped))
        options.exit_code = 128 + stopped.signal
        return
    progress.say(f"done: {int(state.step):,} steps, model in {options.workdir}")


def _finetune(options: argparse.Namespace) -> None:
    from bertjax.compiler import keep_compiled_programs
    from bertjax.config import load_described
    from bertjax.finetune import finetune, table
    from bertjax.recipe import FineTuning
    from bertjax.report import Progress
    from bertjax.train import Interrupted

    keep_compiled_programs()
    progress = Progress()
    try:
        summary = finetune(load_described(options.experiment, options.override, FineTuning), options.workdir)
    except Interrupted as stopped:
        progress.say(str(stopped))
        options.exit_code = 128 + stopped.signal
        return
    print(json.dumps(summary, ensure_ascii=False) if options.json else table(summary))


def _evaluate(options: argparse.Namespace) -> None:
    from bertjax.compiler import keep_compiled_programs
    from bertjax.config import from_json
    from bertjax.data.records import read_manifest
    from bertjax.data.source import evaluation_batches
    from bertjax.data.tokenizer import fingerprint
    from bertjax.evaluate import evaluator
    from bertjax.infer import load
    from bertjax.sharding import ROWS_ALONE
    from bertjax.types import Objective

    keep_compiled_programs()
    if options.model is None:
        raise InputError("evaluate what? a model, --model DIR, or predictions: bertjax evaluate squad --help")
    model = load(options.model)
    if not isinstance(model.objective, Objective):
        raise InputError(
            f"{options.model} alone has no loss to evaluate: evaluate the run it is part of, or train it (init=)"
        )
    rows = from_json(model.config["phases"][-1]["rows"])
    rows = dataclasses.replace(rows, corpus=options.data or rows.corpus)
    manifest = read_manifest(rows.corpus)
    if manifest.tokenizer != fingerprint(model.text):
        raise InputError(
            f"corpus {rows.corpus} was built with another tokenizer than the model's: build it with "
            f"--tokenizer FOLDER of the corpus that {options.model} was trained on"
        )
    mesh = ROWS_ALONE.mesh(options.batch_size)
    batches = evaluation_batches(rows.open(options.split), options.batch_size, rows.features, model.text.vocabulary.pad)
    _print(options, evaluator(model.objective, mesh, options.batch_size)(model.params, batches))


def _evaluate_squad(options: argparse.Namespace) -> None:
    from bertjax.squad import read_answers, read_gold, score_predictions

    gold, predictions = read_gold(options.data), read_answers(options.predictions)
    if not gold.answers.keys() & predictions.keys():
        raise InputError(f"{options.predictions} answers no question of {options.data}: are they of another data set?")
    odds = read_answers(options.null_odds, float) if options.null_odds else None
    _print(options, score_predictions(gold, predictions, odds, threshold=options.null_threshold))


def _fill_mask(options: argparse.Namespace) -> None:
    from bertjax.compiler import keep_compiled_programs
    from bertjax.infer import fill_mask, load

    keep_compiled_programs()
    model = load(options.model)
    texts = options.text or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    for filled in fill_mask(model, texts, top=options.top):
        if options.json:
            masks = [[guess._asdict() for guess in guesses] for guesses in filled.masks]
            print(json.dumps(filled._asdict() | {"masks": masks}, ensure_ascii=False), flush=True)
            continue
        print(filled.text)
        for guesses in filled.masks:
            print("   ", "   ".join(f"{guess.text} {guess.probability:.1%}" for guess in guesses), flush=True)


def _embed(options: argparse.Namespace) -> None:
    from bertjax.compiler import keep_compiled_programs
    from bertjax.embedding import embed
    from bertjax.infer import load

    keep_compiled_programs()
    model = load(options.model)
    texts = options.text or [line.rstrip("\n") for line in sys.stdin]  # a blank one too: line n has vector n
    vectors = embed(model, texts, max_length=options.max_length, batch_size=options.batch_size)
    for text, vector in zip(texts, vectors, strict=True):
        numbers = [round(float(number), 7) for number in vector]
        if options.json:
            print(json.dumps({"text": text, "embedding": numbers}, ensure_ascii=False), flush=True)
            continue
        print(text)
        print("   ", " ".join(f"{number:+.4f}" for number in numbers[:8]), f"… ({len(numbers)} numbers)", flush=True)


def _build(options: argparse.Namespace) -> None:
    from bertjax.data.build import BuildSettings, build, one_sentence
    from bertjax.data.corpus import split_sentences
    from bertjax.data.tokenizer import load_tokenizer
    from bertjax.report import Progress

    settings = BuildSettings(
        split_sentences=one_sentence if options.format == "sentences" else split_sentences,
        holdout=options.holdout,
        seed=options.seed,
        skip_bad=options.skip_bad,
        workers=options.workers,
        shard_tokens=options.shard_tokens,
    )
    tokenizer = load_tokenizer(options.tokenizer)
    documents, identity, _ = _documents(options)
    progress, begun = Progress(), time.monotonic()

    def report(read: int, tokens: int) -> None:
        rate = tokens / max(1e-9, time.monotonic() - begun)
        progress.line(f"{read:,} documents  {tokens:,} tokens  {rate:,.0f} tokens/s")

    manifest = build(documents, tokenizer, options.out, settings, identity=identity, report=report)
    totals = {count: manifest.total(count) for count in ("documents", "sentences", "tokens")}
    _print(options, totals | {"dropped": manifest.dropped, "seconds": round(time.monotonic() - begun, 1)})


def _inspect(options: argparse.Namespace) -> None:
    from bertjax.data.inspect import inspect_corpus

    _print(options, inspect_corpus(options.corpus))


def _train_tokenizer(options: argparse.Namespace) -> None:
    from bertjax.data import vocabulary
    from bertjax.data.tokenizer import fingerprint, load_tokenizer

    train = {
        "wordpiece": vocabulary.train_wordpiece,
        "bpe": vocabulary.train_byte_level_bpe,
        "unigram": vocabulary.train_unigram,
    }[options.kind]
    documents, _, size = _documents(options)
    done = vocabulary.train_vocabulary(
        documents, train, size=options.size, lowercase=options.lowercase, input_bytes=size,
        sample_bytes=options.sample_bytes, skip_bad=options.skip_bad, out=options.out,
    )  # fmt: skip
    tokenizer = load_tokenizer(options.out)
    _print(options, done | {"vocabulary": tokenizer.vocabulary.size, "fingerprint": fingerprint(tokenizer)})


def _convert(options: argparse.Namespace) -> None:
    from bertjax.infer import convert

    for line in convert(options.source, options.destination, to=options.to):
        print(line, file=sys.stderr)


def _plan(options: argparse.Namespace) -> None:
    import jax

    from bertjax.config import load_experiment
    from bertjax.plan import plan, plan_on, search
    from bertjax.planned import explained, pictured, searched
    from bertjax.report import Progress
    from bertjax.topology import parse_slice

    if not options.topology and (options.search or options.picture):
        raise InputError("--search and --picture ask what fits a slice: name it with --topology, as v5e:4x4")
    if options.picture and not options.picture.parent.is_dir():
        raise InputError(f"--picture {options.picture}: there is no folder {options.picture.parent}: make it first")
    jax.config.update("jax_platforms", "cpu")  # nothing runs: leave a TPU that may be here to others
    experiment = load_experiment(options.experiment, options.override)
    if not options.topology:
        _print(options, plan(experiment))
        return
    on, say = parse_slice(options.topology), Progress().say
    planned = search(experiment, on, say) if options.search else plan_on(experiment, on, say)
    if options.picture:
        options.picture.write_text(pictured(planned, on))
    if options.json:
        print(json.dumps(planned))
    else:
        print("\n".join(searched(planned, on) if options.search else explained(planned, on)))
    options.exit_code = 0 if planned["fits"] else NOT_FITTING


def _doctor(options: argparse.Namespace) -> None:
    from bertjax.doctor import as_json, collect, diagnose, report

    facts = collect(options.workdir, seconds=options.seconds)
    findings = diagnose(facts)
    print(json.dumps(as_json(facts, findings)) if options.json else report(facts, findings), end="\n" * options.json)
    options.exit_code = 2 if any(finding.stops for finding in findings) else 0


def _print(options: argparse.Namespace, values: dict[str, Any]) -> None:
    if options.json:
        print(json.dumps(values, ensure_ascii=False))
        return
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:<{width}}  {_readable(value)}")


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.3e}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(_readable, value))
    return str(value)
