"""The command predict, which applies a model to texts."""

import argparse
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import chain, islice
from typing import Any, TextIO

from bertjax import terminal
from bertjax.commands.arguments import command, plain, positive, takes_json, takes_model, tell, threshold
from bertjax.errors import InputError
from bertjax.storage.files import open_given
from bertjax.storage.paths import in_cloud, path_of
from bertjax.tasks.tags import SCHEMES
from bertjax.terminal import show_json
from bertjax.wording import counted

CHUNK = 16
"""Maximum number of batches that are read, sorted by length and predicted at once."""

LONGEST_LINE = 2**22
"""Maximum characters of a text on a line of its own."""


def add(commands: Any) -> None:
    """Add these commands."""
    predict = commands.add_parser("predict", help="predict with a model").add_subparsers(required=True, metavar="TASK")
    fill = _predicting(predict, "fill-mask", _fill_mask, "predict masked words",
                       'bertjax predict fill-mask --model runs/base "The capital of France is [MASK]."',
                       "a text with masks")  # fmt: skip
    fill.add_argument("--top", type=positive, default=5, metavar="K", help="predictions for each mask (default: 5)")

    embedding = _predicting(predict, "embed", _embed, "embed texts: their hidden states pooled as the folder says",
                            'bertjax predict embed --model minilm "A sentence." "Another one." --json',
                            "a text")  # fmt: skip
    embedding.add_argument(
        "--max-length",
        type=positive,
        default=0,
        metavar="N",
        help="truncate to N tokens (default: the length that the folder states; without one, refuse long texts)",
    )
    embedding.add_argument("--prompt", metavar="NAME", help="put a prompt of the model before each text, by its name; "
                           "'' for none (default: the model's default prompt, if any)")  # fmt: skip

    classify = _predicting(predict, "classify", _classify, "classify texts, or predict a number for each",
                           'bertjax predict classify --model runs/sst2/best "A fine film." --json',
                           "one text, or two separated by a tab")  # fmt: skip
    classify.add_argument("--threshold", type=threshold, metavar="P",
                          help="probability above which a label is predicted, if a text may have several: one for all, "
                          "or some by name as in toxic:0.3,insult:0.6 (default: 0.5)")  # fmt: skip
    tag = _predicting(predict, "tag", _tag, "tag the words of texts, and list the entities among them",
                      'bertjax predict tag --model runs/conll/best "Ada Lovelace lived in London."',
                      "a text")  # fmt: skip
    tag.add_argument("--aggregation", choices=("simple", "first"), default="",
                     help="simple: tag every piece and join them to entities, as in transformers; first: tag words at "
                     "their first pieces (default: simple for a Hugging Face folder, first for a run)")  # fmt: skip
    tag.add_argument("--scheme", choices=SCHEMES,
                     help="how labels name entities (default: as their names tell; words: they do not)")  # fmt: skip
    answer = _predicting(predict, "answer", _answer, "answer questions by spans of a context",
                         'bertjax predict answer --model runs/squad/best --context "Ada was born in 1815." "When was '
                         'Ada born?"', "a question; without --context, followed by a tab and its context")  # fmt: skip
    answer.add_argument("--context", metavar="TEXT", help="the context of all questions")
    answer.add_argument("--may-have-none", action="store_true", help="some questions have no answer in their context")
    answer.add_argument("--threshold", type=float, default=0.0, metavar="X",
                        help="odds above which no answer is predicted (default: 0)")  # fmt: skip
    answer.add_argument("--longest", type=positive, default=30, metavar="N",
                        help="maximum tokens of an answer (default: 30)")  # fmt: skip
    choose = _predicting(predict, "choose", _choose, "choose the best of several endings",
                         "bertjax predict choose --model runs/copa/best --input choices.tsv --json",
                         "a context and its endings, separated by tabs")  # fmt: skip
    for parser in (classify, tag, answer, choose):
        parser.add_argument("--max-length", type=positive, default=0, metavar="N",
                            help="maximum tokens of a row; longer texts are truncated, long contexts read in windows "
                            "(default: all positions of the model, or 512)")  # fmt: skip


def _predicting(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str, text: str
) -> argparse.ArgumentParser:
    parser = command(commands, name, run, summary, example)
    takes_model(parser)
    parser.add_argument("text", nargs="*", metavar="TEXT", help=f"{text}; default: lines of standard input")
    parser.add_argument("--input", metavar="FILE", help="a file with one of these on each line, instead")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="texts in a batch (default: 32)")
    takes_json(parser)
    return parser


def _predict(
    options: argparse.Namespace,
    run: Callable[[Any, list[Any]], Iterator[Any]],
    read: Callable[[str, str], tuple[str, ...]],
    show: Callable[[Any], str],
) -> None:
    """Predict on a stream of texts, and print the results in order.

    read: maps the origin of a text and the text to its parts, () to skip it. show: formats a result for people.
    """
    from bertjax.checkpoints.trained import load
    from bertjax.inference.compatible import check_texts, check_tokenizer

    model = load(options.model, options.experiment)
    check_tokenizer(model, options.model)
    reported: frozenset[str] = frozenset()
    notes: Counter[str] = Counter()
    lines = _texts(options, notes)
    batches = 1  # the first results come soon, later ones from more texts sorted by length
    while chunk := list(islice(lines, batches * options.batch_size)):
        batches = min(2 * batches, CHUNK)
        parts = [each for each in (read(origin, text) for origin, text in chunk) if each]
        notes["blank lines skipped"] += len(chunk) - len(parts)
        reported |= check_texts(model, chain.from_iterable(parts), tell, reported)
        given = [each[0] if len(each) == 1 else each for each in parts]
        for result in run(model, given):
            show_json(plain(result)) if options.json else terminal.show(show(result))
    for note, count in (+notes).items():
        tell(counted(count, note))


def _texts(options: argparse.Namespace, notes: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield (origin, text) from the arguments, or the lines of a file or of standard input."""
    if options.text and options.input:
        raise InputError("give texts either as arguments or with --input, not both")
    if options.text:
        yield from ((f"argument {n}", _checked_utf8(f"argument {n}", x)) for n, x in enumerate(options.text, 1))
        return
    where = options.input or "standard input"
    with _lines_of(options.input) if options.input else nullcontext(sys.stdin) as file:
        try:
            for number, line in enumerate(_bounded_lines(file), 1):
                if len(line) > LONGEST_LINE:
                    raise InputError(f"{where}:{number}: a line of over {LONGEST_LINE:,} characters: split it")
                if number == 1 and line.startswith("\ufeff"):
                    line = line[1:]
                yield f"{where}:{number}", _checked_utf8(f"{where}:{number}", line.rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8: convert it with iconv") from error


def _bounded_lines(file: Any) -> Iterator[str]:
    """Yield lines, of which no more is read than shows that one is too long; standard input may be any iterable."""
    return iter(partial(file.readline, LONGEST_LINE + 1), "") if hasattr(file, "readline") else iter(file)


def _lines_of(name: str) -> TextIO:
    """Open a file of UTF-8 on a disk or in Cloud Storage; line ends are kept."""
    path = path_of(name)
    if in_cloud(path):
        return io.TextIOWrapper(open_given(path), encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _checked_utf8(origin: str, text: str) -> str:
    """Return the text. Raises InputError for lone surrogates, as which Python keeps bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{origin} is not UTF-8: convert it with iconv") from error
    return text


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {"batch_size": options.batch_size, "max_length": options.max_length, "say": tell}


def _not_empty(origin: str, text: str) -> tuple[str, ...]:
    if not text.strip():
        raise InputError(f"{origin}: the text is empty: leave it out")
    return (text,)


def _by_tabs(least: int, most: int, expected: str) -> Callable[[str, str], tuple[str, ...]]:
    """Return a reader of texts with `least` to `most` parts, separated by tabs."""

    def read(origin: str, text: str) -> tuple[str, ...]:
        parts = tuple(text.split("\t"))
        if not least <= len(parts) <= most or not all(part.strip() for part in parts):
            raise InputError(
                f"{origin}: {len([p for p in parts if p.strip()])} texts, separated by tabs: give {expected}"
            )
        return parts

    return read


def _fill_mask(options: argparse.Namespace) -> None:
    from bertjax.inference.fill_mask import fill_mask

    def show(filled: Any) -> str:
        lines = ["   ".join(f"{guess.text} {guess.probability:.1%}" for guess in guesses) for guesses in filled.masks]
        return "\n".join([filled.text, *(f"    {line}" for line in lines)])

    _predict(options, lambda model, texts: fill_mask(model, texts, top=options.top, batch_size=options.batch_size),
             lambda origin, text: (text,) if text.strip() else (), show)  # fmt: skip


def _embed(options: argparse.Namespace) -> None:
    from bertjax.inference.embed import embed_and_count

    notes: Counter[str] = Counter()

    def run(model: Any, texts: list[str]) -> Iterator[dict[str, Any]]:
        vectors = embed_and_count(model, texts, notes, prompt=options.prompt, max_length=options.max_length,
                                  batch_size=options.batch_size)  # fmt: skip
        for text, vector in zip(texts, vectors, strict=True):
            yield {"text": text, "embedding": [round(float(number), 7) for number in vector]}

    def show(result: dict[str, Any]) -> str:
        numbers = result["embedding"]
        shown = " ".join(f"{number:+.4f}" for number in numbers[:8])
        return f"{result['text']}\n    {shown} … ({counted(len(numbers), 'numbers')})"

    _predict(options, run, lambda origin, text: (text,), show)  # blank ones too: line n has vector n
    for note, count in (+notes).items():
        tell(counted(count, note))


def _classify(options: argparse.Namespace) -> None:
    from bertjax.inference.predict import classify

    def show(result: Any) -> str:
        found = sorted(result.labels, key=lambda label: -result.scores[label])
        labels = ", ".join(f"{label} {result.scores[label]:.1%}" for label in found) or "no label"
        return f"{labels if result.label else f'{result.score:.4f}'}   {' | '.join(result.texts)}"

    def run(model: Any, texts: list[Any]) -> Iterator[Any]:
        return classify(model, texts, threshold=options.threshold, **_settings(options))

    _predict(options, run,
             _by_tabs(1, 2, "one text or two"), show)  # fmt: skip


def _tag(options: argparse.Namespace) -> None:
    from bertjax.inference.predict import tag

    def show(result: Any) -> str:
        if result.scheme == "words":
            return "\n".join([result.text, *(f"    {w.word}   {w.tag} {w.score:.1%}" for w in result.words)])
        entities = [f"    {n.kind} {n.text!r} {n.start}–{n.end} {n.score:.1%}" for n in result.names]
        return "\n".join([result.text, *(entities or ["    no entities"])])

    told: set[str] = set()

    def tell_once(sentence: str) -> None:
        if sentence not in told:
            tell(sentence)
        told.add(sentence)

    def run(model: Any, texts: list[str]) -> Iterator[Any]:
        settings = _settings(options) | {"say": tell_once, "scheme": SCHEMES.get(options.scheme)}
        return tag(model, texts, aggregation=options.aggregation, **settings)

    _predict(options, run, _not_empty, show)


def _answer(options: argparse.Namespace) -> None:
    from bertjax.inference.predict import answer

    def run(model: Any, questions: list[Any]) -> Iterator[Any]:
        return answer(model, questions, may_have_none=options.may_have_none, threshold=options.threshold,
                      longest=options.longest, **_settings(options))  # fmt: skip

    def show(result: Any) -> str:
        if not result.text:
            return f"{result.question}\n    no answer"
        return f"{result.question}\n    {result.text}   {result.start}–{result.end} {result.score:.1%}"

    pair = _by_tabs(2, 2, "a question and its context, or --context")
    if options.context is not None:
        _not_empty("--context", options.context)
        _predict(options, run, lambda origin, text: (*_not_empty(origin, text), options.context), show)
    else:
        _predict(options, run, pair, show)


def _choose(options: argparse.Namespace) -> None:
    from bertjax.inference.predict import choose

    def run(model: Any, rows: list[tuple[str, ...]]) -> Iterator[Any]:
        choices = [(context, endings) for context, *endings in rows]
        return choose(model, choices, **_settings(options))

    def show(result: Any) -> str:
        return f"{result.context}\n    {result.ending}   {result.scores[result.best]:.1%}"

    _predict(options, run, _by_tabs(3, 1000, "a context and at least two endings"), show)
