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
from contextlib import nullcontext
from itertools import chain, islice
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
    fill = _predicting(predict, "fill-mask", _fill_mask, "guess masked words",
                       'bertjax predict fill-mask --model runs/base "The capital of France is [MASK]."',
                       "a text with masks")  # fmt: skip
    fill.add_argument("--top", type=_positive, default=5, metavar="K", help="guesses for each mask (default: 5)")

    embedding = _predicting(predict, "embed", _embed, "embed texts: the mean of their hidden states, of length 1",
                            'bertjax predict embed --model minilm "A sentence." "Another one." --json',
                            "a text")  # fmt: skip
    embedding.add_argument(
        "--max-length", type=_positive, default=0, metavar="N", help="cut texts to N tokens (default: refuse long ones)"
    )

    _predicting(predict, "classify", _classify, "classify texts, or put a number on them",
                'bertjax predict classify --model runs/sst2/best "A fine film." --json',
                "a text, or two with a tab between")  # fmt: skip
    _predicting(predict, "tag", _tag, "tag the words of texts, with the names among them",
                'bertjax predict tag --model runs/conll/best "Ada Lovelace lived in London."', "a text")  # fmt: skip
    answer = _predicting(predict, "answer", _answer, "answer questions by pieces of a context",
                         'bertjax predict answer --model runs/squad/best --context "Ada was born in 1815." "When was '
                         'Ada born?"', "a question; without --context a tab and its context follow")  # fmt: skip
    answer.add_argument("--context", metavar="TEXT", help="of all questions")
    answer.add_argument("--may-have-none", action="store_true", help="some questions have no answer in their context")
    answer.add_argument("--threshold", type=float, default=0.0, metavar="X",
                        help="odds above which there is none (default: 0)")  # fmt: skip
    _predicting(predict, "choose", _choose, "choose between ways to go on",
                "bertjax predict choose --model runs/copa/best --input choices.tsv --json",
                "a context and its endings, with tabs between")  # fmt: skip

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

    tokenizers = commands.add_parser("tokenizer", help="train tokenizers, and look at them")
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

    looking = _command(tokenizer, "inspect", _inspect_tokenizer, "show what a model's tokenizer makes of texts",
                       'bertjax tokenizer inspect --model bert-base-uncased "Магия реальна!"')  # fmt: skip
    _model(looking)
    looking.add_argument("text", nargs="*", metavar="TEXT", help="texts; without any, the vocabulary is described")
    _json(looking)

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


def _predicting(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str, text: str
) -> argparse.ArgumentParser:
    parser = _command(commands, name, run, summary, example)
    _model(parser)
    parser.add_argument("text", nargs="*", metavar="TEXT", help=f"{text}; default: lines of standard input")
    parser.add_argument("--input", metavar="FILE", help="a file of such, a line each, instead")
    parser.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="texts at a time (default: 32)")
    _json(parser)
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
    from bertjax import processes
    from bertjax.compiler import keep_compiled_programs
    from bertjax.config import load_described
    from bertjax.finetune import finetune, table
    from bertjax.recipe import FineTuning
    from bertjax.report import Progress
    from bertjax.train import Interrupted

    processes.join()
    processes.only_one("fine-tuning")
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
    from bertjax.model import load
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


def _predict(
    options: argparse.Namespace,
    run: Callable[[Any, list[Any]], Iterator[Any]],
    read: Callable[[str, str], tuple[str, ...]],
    show: Callable[[Any], str],
) -> None:
    """Run a model over texts as they come in, and print what it says of each, in order.

    read: where a text stands, the text -> its parts, none to pass over it. show: a result -> lines for a reader.
    """
    from bertjax.belongs import check_texts, check_tokenizer
    from bertjax.model import load

    model = load(options.model)
    check_tokenizer(model, options.model)
    said: frozenset[str] = frozenset()
    lines = _texts(options)
    while chunk := list(islice(lines, CHUNK * options.batch_size)):
        parts = [each for each in (read(origin, text) for origin, text in chunk) if each]
        said |= check_texts(model, chain.from_iterable(parts), _tell, said)
        given = [each[0] if len(each) == 1 else each for each in parts]
        for result in run(model, given):
            print(json.dumps(_plain(result), ensure_ascii=False) if options.json else show(result), flush=True)


CHUNK = 16
"""Batches of texts that are read, sorted by length and answered together."""


def _texts(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield texts, each with where it stands: of the arguments, of a file, or of standard input, a line each."""
    if options.text and options.input:
        raise InputError("texts come as arguments or from --input: give one of the two")
    if options.text:
        yield from ((f"argument {number}", text) for number, text in enumerate(options.text, 1))
        return
    where = options.input or "standard input"
    with Path(where).open(encoding="utf-8-sig") if options.input else nullcontext(sys.stdin) as file:
        try:
            for number, line in enumerate(file, 1):
                yield f"{where}:{number}", line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8: convert it with iconv") from error


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    """Turn results, which are named tuples, into what JSON knows."""
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _whole(origin: str, text: str) -> tuple[str, ...]:
    if not text.strip():
        raise InputError(f"{origin}: an empty text: leave it out")
    return (text,)


def _by_tabs(least: int, most: int, what: str) -> Callable[[str, str], tuple[str, ...]]:
    """Read a text of some parts with tabs between."""

    def read(origin: str, text: str) -> tuple[str, ...]:
        parts = tuple(text.split("\t"))
        if not least <= len(parts) <= most or not all(part.strip() for part in parts):
            raise InputError(f"{origin}: {len([p for p in parts if p.strip()])} texts, separated by tabs: give {what}")
        return parts

    return read


def _fill_mask(options: argparse.Namespace) -> None:
    from bertjax.fill import fill_mask

    def show(filled: Any) -> str:
        lines = ["   ".join(f"{guess.text} {guess.probability:.1%}" for guess in guesses) for guesses in filled.masks]
        return "\n".join([filled.text, *(f"    {line}" for line in lines)])

    _predict(options, lambda model, texts: fill_mask(model, texts, top=options.top, batch_size=options.batch_size),
             lambda origin, text: (text,) if text.strip() else (), show)  # fmt: skip


def _embed(options: argparse.Namespace) -> None:
    from bertjax.embedding import embed

    def run(model: Any, texts: list[str]) -> Iterator[dict[str, Any]]:
        vectors = embed(model, texts, max_length=options.max_length, batch_size=options.batch_size)
        for text, vector in zip(texts, vectors, strict=True):
            yield {"text": text, "embedding": [round(float(number), 7) for number in vector]}

    def show(result: dict[str, Any]) -> str:
        numbers = result["embedding"]
        shown = " ".join(f"{number:+.4f}" for number in numbers[:8])
        return f"{result['text']}\n    {shown} … ({len(numbers)} numbers)"

    _predict(options, run, lambda origin, text: (text,), show)  # a blank one too: line n has vector n


def _classify(options: argparse.Namespace) -> None:
    from bertjax.predict import classify

    def show(result: Any) -> str:
        said = f"{result.label} {result.score:.1%}" if result.label else f"{result.score:.4f}"
        return f"{said}   {' | '.join(result.texts)}"

    _predict(options, lambda model, texts: classify(model, texts, batch_size=options.batch_size, say=_tell),
             _by_tabs(1, 2, "one text or two"), show)  # fmt: skip


def _tag(options: argparse.Namespace) -> None:
    from bertjax.predict import tag

    def show(result: Any) -> str:
        names = [f"    {n.kind} {n.text!r} {n.start}–{n.end} {n.score:.1%}" for n in result.names]
        return "\n".join([result.text, *(names or ["    no names"])])

    _predict(options, lambda model, texts: tag(model, texts, batch_size=options.batch_size, say=_tell), _whole, show)


def _answer(options: argparse.Namespace) -> None:
    from bertjax.predict import answer

    def run(model: Any, questions: list[Any]) -> Iterator[Any]:
        return answer(model, questions, may_have_none=options.may_have_none, threshold=options.threshold,
                      batch_size=options.batch_size, say=_tell)  # fmt: skip

    def show(result: Any) -> str:
        if not result.text:
            return f"{result.question}\n    no answer"
        return f"{result.question}\n    {result.text}   {result.start}–{result.end} {result.score:.1%}"

    pair = _by_tabs(2, 2, "a question and its context, or --context")
    _predict(options, run, pair if options.context is None else lambda _, text: (text, options.context), show)


def _choose(options: argparse.Namespace) -> None:
    from bertjax.predict import choose

    def run(model: Any, rows: list[tuple[str, ...]]) -> Iterator[Any]:
        choices = [(context, endings) for context, *endings in rows]
        return choose(model, choices, batch_size=options.batch_size, say=_tell)

    def show(result: Any) -> str:
        return f"{result.context}\n    {result.ending}   {result.scores[result.best]:.1%}"

    _predict(options, run, _by_tabs(3, 1000, "a context and two endings or more"), show)


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


def _inspect_tokenizer(options: argparse.Namespace) -> None:
    from bertjax.belongs import check_tokenizer
    from bertjax.data.look import look, summary
    from bertjax.frames import layout_of
    from bertjax.model import load

    model = load(options.model)
    check_tokenizer(model, options.model)
    if not options.text:
        _print(options, summary(model.text))
    for text in options.text:
        found = look(model.text, text, layout_of(model))
        if options.json:
            print(json.dumps(_plain(found), ensure_ascii=False), flush=True)
            continue
        print(text)
        print(f"    {'piece':<16} {'id':>7} mask segment offsets")
        for token in found.tokens:
            place = f"{token.start}–{token.end}" if token.start is not None else "special"
            print(f"    {token.piece:<16} {token.id:>7} {token.mask:>4} {token.segment:>7} {place}")
        print(f"    decoded: {found.decoded!r} ({found.round_trip})")
        for name, script in found.scripts.items():
            print(f"    {name}: {_readable(script)}")
        for warning in found.warnings:
            print(f"    warning: {warning}")


def _convert(options: argparse.Namespace) -> None:
    from bertjax.export import convert

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
