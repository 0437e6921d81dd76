"""The command predict, which applies a model to texts."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from bertjax import terminal
from bertjax.commands.arguments import (
    command,
    names_in,
    plain,
    positive,
    print_result,
    takes_json,
    takes_model,
    tell,
    threshold,
    with_hints,
)
from bertjax.commands.retrieval import Search, shown, takes_passages
from bertjax.errors import InputError
from bertjax.tasks.tags import SCHEMES
from bertjax.terminal import show_json
from bertjax.wording import counted

if TYPE_CHECKING:
    from bertjax.commands.inputs import Expected, Row
    from bertjax.tasks.reading import Notes

CHUNK = 16
"""Maximum number of batches that are read, sorted by length and predicted at once."""


def add(commands: Any) -> None:
    """Add these commands."""
    predict = with_hints(commands.add_parser("predict", help="predict with a model")).add_subparsers(
        required=True, metavar="TASK"
    )
    fill = _predicting(predict, "fill-mask", _fill_mask, "predict masked words",
                       'bertjax predict fill-mask --model runs/base "The capital of France is [MASK]."',
                       "a text with masks")  # fmt: skip
    fill.add_argument("--top", type=positive, default=5, metavar="K", help="predictions for each mask (default: 5)")

    filling = _predicting(predict, "infill", _infill, "fill holes of several tokens, step by step",
                          'bertjax predict infill --model runs/diffusion "The [MASK:8] sat on the [MASK:2]."',
                          "a text with holes: [MASK:8] is one of 8 tokens")  # fmt: skip
    _sampling(filling, temperature=0.0)
    filling.add_argument("--states", action="store_true", help="show the text after each step too")
    writing = _predicting(predict, "generate", _generate, "continue texts by a number of tokens",
                          'bertjax predict generate --model runs/diffusion --length 32 "It was a dark night, and"',
                          "a prompt, which may be empty")  # fmt: skip
    writing.add_argument("--length", type=positive, required=True, metavar="N", help="tokens to generate")
    writing.add_argument("--count", type=positive, default=1, metavar="K", help="texts for each prompt (default: 1)")
    writing.add_argument("--judge", metavar="DIR", help="a masked diffusion model: afterwards print the bound of the "
                         "texts' perplexity under it, and the entropy of their tokens")  # fmt: skip
    _sampling(writing, temperature=1.0)

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

    takes_passages(
        _predicting(predict, "search", _search, "search passages for those that are nearest to a query",
                    'bertjax predict search --model runs/embed --passages passages.txt "What time is it?"', "a query")
    )  # fmt: skip

    _add_labelling(predict)


def _add_labelling(predict: Any) -> None:
    """Add the commands that predict labels, spans and choices."""
    classify = _predicting(predict, "classify", _classify, "classify texts, or predict a number for each",
                           'bertjax predict classify --model runs/sst2/best "A fine film." --json',
                           "one text, or two separated by a tab")  # fmt: skip
    classify.add_argument("--threshold", type=threshold, metavar="P",
                          help="probability above which a label is predicted, if a text may have several: one for all, "
                          "or some by name as in toxic:0.3,insult:0.6 (default: 0.5); of two labels: chosen, for that "
                          "which fine-tuning chose, or a number for the second")  # fmt: skip
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
                         'Ada born?"', "a question; without --context, followed by a tab and its context",
                         "question,context")  # fmt: skip
    answer.add_argument("--context", metavar="TEXT", help="the context of all questions")
    answer.add_argument("--may-have-none", action="store_true", help="some questions have no answer in their context")
    answer.add_argument("--threshold", type=float, default=0.0, metavar="X",
                        help="odds above which no answer is predicted (default: 0)")  # fmt: skip
    answer.add_argument("--longest", type=positive, default=30, metavar="N",
                        help="maximum tokens of an answer (default: 30)")  # fmt: skip
    choose = _predicting(predict, "choose", _choose, "choose the best of several endings",
                         "bertjax predict choose --model runs/copa/best --input choices.csv --columns premise,a,b",
                         "a context and its endings, separated by tabs", "")  # fmt: skip
    for parser in (classify, tag, answer, choose):
        parser.add_argument("--max-length", type=positive, default=0, metavar="N",
                            help="maximum tokens of a row; longer texts are truncated, long contexts read in windows "
                            "(default: all positions of the model, or 512)")  # fmt: skip


def _sampling(parser: argparse.ArgumentParser, temperature: float) -> None:
    """Add the options of sampling."""
    parser.add_argument("--sampler", choices=tuple(_SAMPLERS), default="confident",
                        help="the tokens to fill at a step: the surest ones, random ones, each by its chance at this "
                        "time (cached: the model is asked again only where a token changed), one, or some that are "
                        "masked again later (default: %(default)s)")  # fmt: skip
    parser.add_argument("--steps", type=positive, metavar="N", help="steps (default: one for each token)")
    parser.add_argument("--block", type=positive, metavar="N", help="fill blocks of N tokens, from left to right")
    parser.add_argument("--temperature", type=float, default=temperature, metavar="T",
                        help="0 for the likeliest tokens (default: %(default)s)")  # fmt: skip
    parser.add_argument("--top-k", type=positive, metavar="K", help="draw among the K likeliest tokens")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P",
                        help="draw among the likeliest tokens with this probability together (default: 1)")  # fmt: skip
    parser.add_argument("--guidance", type=float, default=0.0, metavar="S",
                        help="scale of classifier-free guidance, which runs the model twice (default: 0)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: 0)")


def _predicting(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
    example: str,
    text: str,
    columns: str = "text",
) -> argparse.ArgumentParser:
    parser = command(commands, name, run, summary, example)
    takes_model(parser)
    parser.add_argument("text", nargs="*", metavar="TEXT", help=f"{text}; default: lines of standard input")
    parser.add_argument("--input", metavar="FILE", help="instead: a table, .csv, .tsv or .jsonl, or a .txt with one of "
                        "these on a line; also .gz, .zst")  # fmt: skip
    parser.add_argument("--columns", default="", metavar="NAMES", help="the columns of the table with the texts, "
                        f"separated by commas{f' (default: {columns})' if columns else ''}")  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="write the results to this .csv or .jsonl, with the columns of "
                        f"the input{', or the vectors to this .npy' if name == 'embed' else ''}")  # fmt: skip
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="texts in a batch (default: 32)")
    takes_json(parser)
    return parser


def _predict(
    options: argparse.Namespace,
    run: "Callable[[Any, list[Any], Notes], Iterator[Any]]",
    expected: "Expected",
    show: Callable[[Any], str],
    cells: Callable[[Any], dict[str, Any]],
    *,
    as_json: Callable[[Any], Any] = plain,
    vectors: bool = False,
    checking: "Callable[[Any], Callable[[str], Any]] | None" = None,
) -> None:
    """Predict on a stream of texts; print the results in order, or write them to --out.

    run: (model, texts, notes) -> results, one for each; notes counts what happened to texts. show, cells, as_json: a
    result for people, as columns of a file, as JSON. vectors: the results may be written to an .npy. checking: model ->
    a function that raises InputError for a text that cannot be predicted on: of many texts it is left out and counted.
    """
    from bertjax.checkpoints.trained import load
    from bertjax.commands.inputs import open_input
    from bertjax.commands.outputs import check_out, results_file
    from bertjax.inference.compatible import check_texts, check_tokenizer

    notes: Counter[str] = Counter()
    columns = names_in(options.columns)
    given = open_input(options.text, options.input, columns, expected, notes)
    out = check_out(options.out, options.input, vectors=vectors) if options.out else None
    model = load(options.model, options.experiment)
    check_tokenizer(model, options.model)
    check = None if checking is None or options.text or (out and out.suffix == ".npy") else checking(model)
    refused: list[str] = []
    rows = _readable(given.rows, check, refused, notes, "left without a prediction" if out else "skipped")
    reported: frozenset[str] = frozenset()
    report, done = _progress(given.total, shown=out is not None or not sys.stdout.isatty()), 0
    predicted = 0
    batches = 1  # the first results come soon, later ones from more texts sorted by length
    with results_file(out, given.columns, given.delimiter, notes) if out else nullcontext() as write:
        while chunk := list(islice(rows, batches * options.batch_size)):
            batches = min(2 * batches, CHUNK)
            texts = [row.texts for row in chunk if row.texts]
            predicted += len(texts)
            reported |= check_texts(model, chain.from_iterable(texts), tell, reported)
            results = iter(run(model, [each[0] if len(each) == 1 else each for each in texts], notes))
            for row in chunk:
                result = next(results) if row.texts else None
                if write:
                    write(row.record, None if result is None else cells(result))
                elif result is not None:
                    show_json(as_json(result)) if options.json else terminal.show(show(result))
            done += len(chunk)
            report(done)
        if refused and not predicted:
            raise InputError(refused[0])
    for note, count in (+notes).items():
        tell(counted(count, note))
    if out:
        print_result(options, {"rows": done, "out": str(out)})


def _readable(
    rows: "Iterator[Row]", check: Callable[[str], Any] | None, refused: list[str], notes: "Notes", left: str
) -> "Iterator[Row]":
    """Yield rows, those with a text that `check` refuses as blank ones; count both. refused: receives the first error.

    left: what happens to them, for people.
    """
    for row in rows:
        if not row.texts:
            notes[f"blank texts, {left}"] += 1
        elif check:
            try:
                for text in row.texts:
                    check(text)
            except InputError as error:
                if not refused:
                    refused.append(f"{row.origin}: {error}")
                notes[f"texts refused, {left}, such as {refused[0]}"] += 1
                row = row._replace(texts=())
        yield row


def _progress(total: int, *, shown: bool) -> Callable[[int], None]:
    """Return a function that shows how many texts are done, and how long the rest takes; not of what is done soon."""
    from bertjax.run.writers import Progress, duration

    progress, begun = Progress(shown=shown), time.monotonic()

    def report(done: int) -> None:
        seconds = time.monotonic() - begun
        if seconds > _SOON and done < (total or done + 1):
            rate = done / seconds
            left = f" of {counted(total, 'texts')}  {duration((total - done) / rate)} left" if total else " texts"
            progress.line(f"{done:,}{left}  {rate:,.1f} texts/s")

    return report


_SOON = 3  # seconds


def _settings(options: argparse.Namespace, notes: "Notes") -> dict[str, Any]:
    return {"batch_size": options.batch_size, "max_length": options.max_length, "say": tell, "notes": notes}


def _of_text(words: str, **more: Any) -> "Expected":
    """Return what a prediction on one text takes."""
    from bertjax.commands.inputs import Expected

    return Expected(1, 1, words, ("text",), ("text",), **more)


def _fill_mask(options: argparse.Namespace) -> None:
    from bertjax.inference.fill_mask import fill_mask, reading_masked

    def run(model: Any, texts: list[str], notes: "Notes") -> Iterator[Any]:
        return fill_mask(model, texts, top=options.top, batch_size=options.batch_size)

    def show(filled: Any) -> str:
        lines = ["   ".join(f"{guess.text} {guess.probability:.1%}" for guess in guesses) for guesses in filled.masks]
        return "\n".join([filled.text, *(f"    {line}" for line in lines)])

    def cells(filled: Any) -> dict[str, Any]:
        return {"predicted": [guesses[0].text for guesses in filled.masks], "filled": filled.best,
                "masks": plain(filled.masks)}  # fmt: skip

    _predict(options, run, _of_text("a text with masks"), show, cells, checking=reading_masked)


_SAMPLERS: dict[str, Callable[[Any, int | None], tuple[Any, Any]]] = {
    "confident": lambda of, steps: (of.Confident(steps), of.EveryStep()),
    "random": lambda of, steps: (of.Randomly(steps), of.EveryStep()),
    "ancestral": lambda of, steps: (of.Ancestral(steps), of.EveryStep()),
    "cached": lambda of, steps: (of.Ancestral(steps), of.WhenChanged()),
    "first-hitting": lambda of, steps: (of.FirstHitting(), of.EveryStep()),
    "remask": lambda of, steps: (of.Remasking(steps), of.WhenChanged()),
}
"""By name: a function of the module of samplers and a number of steps, to a sampler and when it asks the model."""


def _sampling_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of sampling as `infill` takes them. Raises InputError for those that contradict each other."""
    from bertjax import diffusion

    if options.sampler == "first-hitting" and options.steps:
        raise InputError("first-hitting takes one step for each token: leave out --steps")
    try:
        draw = diffusion.Draw(options.temperature, options.top_k, options.top_p)
    except ValueError as error:
        raise InputError(f"--{str(error).replace('_', '-').replace('=', ' ', 1)}") from error
    sampler, ask = _SAMPLERS[options.sampler](diffusion, options.steps)
    sampler = diffusion.InBlocks(options.block, sampler) if options.block else sampler
    if not 0 <= options.guidance < float("inf"):
        raise InputError(f"--guidance {options.guidance} must be 0 or more")
    return {"sampler": sampler, "draw": draw, "ask": ask, "guidance": options.guidance, "seed": options.seed,
            "batch_size": options.batch_size}  # fmt: skip


def _infill(options: argparse.Namespace) -> None:
    from bertjax.inference.infill import checking_holes, infill

    sampling = _sampling_of(options)

    def run(model: Any, texts: list[str], notes: "Notes") -> Iterator[Any]:
        return infill(model, texts, states=options.states, **sampling)

    def show(found: Any) -> str:
        return "\n".join([found.filled, *(f"    {state}" for state in found.states)])

    def cells(found: Any) -> dict[str, Any]:
        return {"predicted": found.holes, "filled": found.filled} | ({"states": found.states} if found.states else {})

    _predict(options, run, _of_text("a text with holes"), show, cells,
             checking=lambda model: checking_holes(model, sampling["sampler"]))  # fmt: skip


def _generate(options: argparse.Namespace) -> None:
    from bertjax.inference.infill import checking_holes, generate, with_hole
    from bertjax.inference.judge import generative_perplexity, load_judge

    sampling = _sampling_of(options)
    written: list[str] = []
    judge = load_judge(options.judge) if options.judge else None

    def run(model: Any, prompts: list[str], notes: "Notes") -> Iterator[Any]:
        repeated = [prompt for prompt in prompts for _ in range(options.count)]
        found = generate(model, repeated, length=options.length, **sampling)
        while group := list(islice(found, options.count)):
            written.extend(each.filled for each in group if judge)
            yield group

    def show(group: Any) -> str:
        return "\n".join(found.filled for found in group)

    def cells(group: Any) -> dict[str, Any]:
        return {"predicted": [found.filled for found in group]}

    def checking(model: Any) -> Callable[[str], None]:
        check = checking_holes(model, sampling["sampler"])
        return lambda prompt: check(with_hole(prompt, options.length))

    _predict(options, run, _of_text("a prompt", blank=True), show, cells, checking=checking)
    if judge and written:
        for name, value in generative_perplexity(judge, written, batch_size=options.batch_size).items():
            tell(f"{name}  {value:,.4f}")


def _embed(options: argparse.Namespace) -> None:
    from bertjax.inference.embed import checking_lengths, embed_and_count

    def run(model: Any, texts: list[str], notes: "Notes") -> Iterator[Any]:
        vectors = embed_and_count(model, texts, notes, prompt=options.prompt, max_length=options.max_length,
                                  batch_size=options.batch_size)  # fmt: skip
        return zip(texts, vectors, strict=True)

    def as_json(result: tuple[str, Any]) -> dict[str, Any]:
        return {"text": result[0], "embedding": [round(float(number), 7) for number in result[1]]}

    def show(result: tuple[str, Any]) -> str:
        text, vector = result
        shown = " ".join(f"{number:+.4f}" for number in vector[:8])
        return f"{text}\n    {shown} … ({counted(len(vector), 'numbers')})"

    # Blank texts too: line n has vector n.
    _predict(options, run, _of_text("a text", blank=True), show, lambda result: {"embedding": result[1]},
             as_json=as_json, vectors=True,
             checking=lambda model: checking_lengths(model, options.prompt, options.max_length))  # fmt: skip


def _search(options: argparse.Namespace) -> None:
    _predict(options, Search(options), _of_text("a query"), shown, lambda result: {"passages": result["passages"]})


def _classify(options: argparse.Namespace) -> None:
    from bertjax.commands.inputs import Expected
    from bertjax.inference.as_trained import predicts_of
    from bertjax.inference.predict import classify

    several = False  # whether a text may have several labels

    def show(result: Any) -> str:
        found = sorted(result.labels, key=lambda label: -result.scores[label])
        labels = ", ".join(f"{label} {result.scores[label]:.1%}" for label in found) or "no label"
        return f"{labels if result.label else f'{result.score:.4f}'}   {' | '.join(result.texts)}"

    def cells(result: Any) -> dict[str, Any]:
        if not result.label:
            return {"predicted": result.score}
        if not several:
            return {"predicted": result.label, "probability": result.score, "probabilities": result.scores}
        return {"predicted": list(result.labels), "probabilities": result.scores}

    def run(model: Any, texts: list[Any], notes: "Notes") -> Iterator[Any]:
        nonlocal several
        several = predicts_of(model) == "multi_label_classification"
        return classify(model, texts, threshold=options.threshold, **_settings(options, notes))

    _predict(options, run, Expected(1, 2, "one text or two", ("text",), ("text", "text2")), show, cells)


def _tag(options: argparse.Namespace) -> None:
    from bertjax.inference.predict import tag

    def show(result: Any) -> str:
        if result.scheme == "words":
            return "\n".join([result.text, *(f"    {w.word}   {w.tag} {w.score:.1%}" for w in result.words)])
        entities = [f"    {n.kind} {n.text!r} {n.start}–{n.end} {n.score:.1%}" for n in result.names]
        return "\n".join([result.text, *(entities or ["    no entities"])])

    def cells(result: Any) -> dict[str, Any]:
        return {"words": plain(result.words), "entities": plain(result.names)}

    told: set[str] = set()

    def tell_once(sentence: str) -> None:
        if sentence not in told:
            tell(sentence)
        told.add(sentence)

    def run(model: Any, texts: list[str], notes: "Notes") -> Iterator[Any]:
        settings = _settings(options, notes) | {"say": tell_once, "scheme": SCHEMES.get(options.scheme)}
        return tag(model, texts, aggregation=options.aggregation, **settings)

    _predict(options, run, _of_text("a text"), show, cells)


def _answer(options: argparse.Namespace) -> None:
    from bertjax.commands.inputs import Expected
    from bertjax.inference.predict import answer

    def run(model: Any, questions: list[Any], notes: "Notes") -> Iterator[Any]:
        if options.context is not None:
            questions = [(question, options.context) for question in questions]
        return answer(model, questions, may_have_none=options.may_have_none, threshold=options.threshold,
                      longest=options.longest, **_settings(options, notes))  # fmt: skip

    def show(result: Any) -> str:
        if not result.text:
            return f"{result.question}\n    no answer"
        return f"{result.question}\n    {result.text}   {result.start}–{result.end} {result.score:.1%}"

    def cells(result: Any) -> dict[str, Any]:
        return {"predicted": result.text, "start": result.start, "end": result.end, "probability": result.score,
                "null_odds": result.null_odds}  # fmt: skip

    pair = ("question", "context")
    expected = Expected(2, 2, "a question and its context, or --context", pair, pair)
    if options.context is not None:
        if not options.context.strip():
            raise InputError("--context: the text is empty: leave it out")
        expected = Expected(1, 1, "a question", pair[:1], pair[:1])
    _predict(options, run, expected, show, cells)


def _choose(options: argparse.Namespace) -> None:
    from bertjax.commands.inputs import Expected
    from bertjax.inference.predict import choose

    def run(model: Any, rows: list[tuple[str, ...]], notes: "Notes") -> Iterator[Any]:
        choices = [(context, endings) for context, *endings in rows]
        return choose(model, choices, **_settings(options, notes))

    def show(result: Any) -> str:
        return f"{result.context}\n    {result.ending}   {result.scores[result.best]:.1%}"

    def cells(result: Any) -> dict[str, Any]:
        return {"predicted": result.best, "ending": result.ending, "probability": result.scores[result.best],
                "probabilities": result.scores}  # fmt: skip

    expected = Expected(3, 1000, "a context and at least two endings", (), ("context", "endings"), lists=True)
    _predict(options, run, expected, show, cells)
