"""Arguments that several commands share, and results printed as text or JSON."""

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from bertjax.nearest import did_you_mean
from bertjax.terminal import message, show, show_json


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str
) -> argparse.ArgumentParser:
    """Add a command that calls `run`."""
    parser = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
    with_hints(parser)
    parser.set_defaults(run=run, parser=parser)
    return parser


def with_hints(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let a parser name the command or the option that was meant, in its errors."""
    plain = parser.error

    def error(message: str) -> NoReturn:
        plain(f"{message}{_hint(parser, message)}")

    parser.error = error  # type: ignore[method-assign]
    return parser


def _hint(parser: argparse.ArgumentParser, text: str) -> str:
    """Return what was meant, for an error of argparse: by the choices that it names, or the options in the help."""
    chosen = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", text)
    known = sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]*", parser.format_help())))
    given = [word.partition("=")[0] for word in sys.argv[1:] if re.match(r"--[a-z]", word)]
    wrong = [word for word in given if not any(name.startswith(word) for name in known)]
    for word in wrong:
        if meant := did_you_mean(word, known):
            return f"; {word}: {meant}"
    if chosen and (meant := did_you_mean(chosen[1], re.findall(r"[\w-]+", chosen[2]))):
        return f"; {meant}"
    if wrong and "key=value" in parser.format_usage():
        return f"; settings of an experiment are given without dashes, as {wrong[0].lstrip('-')}=VALUE"
    return ""


def takes_experiment(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for an experiment and its overrides."""
    parser.add_argument("experiment", metavar="EXPERIMENT", help="an experiment file, such as experiments/bert.py")
    parser.add_argument(
        "override",
        nargs="*",
        metavar="key=value",
        help="override arguments of its experiment(), or dotted fields such as objective.encoder.D",
    )


def takes_model(
    parser: argparse.ArgumentParser, help: str = "a work directory, a checkpoint, or a Hugging Face folder"
) -> None:
    """Add the option for a trained model."""
    parser.add_argument("--model", required=True, metavar="DIR", help=help)
    takes_code(parser)


def takes_code(parser: argparse.ArgumentParser) -> None:
    """Add the option for the code of a model's own parts."""
    parser.add_argument(
        "--experiment",
        default="",
        metavar="FILE",
        help="the experiment file of a model with classes or functions of your own; it is executed",
    )


def takes_json(parser: argparse.ArgumentParser) -> None:
    """Add the option to print results as JSON."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def positive(text: str) -> int:
    """Parse a positive integer, as a type of argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def names_in(text: str) -> tuple[str, ...]:
    """Return the names that an argument lists with commas between."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def threshold(text: str) -> float | dict[str, float] | str:
    """Parse one threshold, some by label such as `toxic:0.3,insult:0.6`, or `chosen`, as a type of argparse."""
    if text == "chosen":
        return text
    if ":" not in text:
        return float(text)
    pairs = [each.rpartition(":") for each in text.split(",")]
    return {label.strip(): float(limit) for label, _, limit in pairs}


def print_result(options: argparse.Namespace, values: dict[str, Any]) -> None:
    """Print named values, one a line, or as JSON with --json."""
    if options.json:
        show_json(values)
        return
    width = max(map(len, values))
    for name, value in values.items():
        show(f"{name:<{width}}  {readable(value)}")


def readable(value: Any) -> str:
    """Format a value for people."""
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.3e}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {readable(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(readable, value)) or "none"
    return str(value)


def plain(value: Any) -> Any:
    """Convert results, which are named tuples, to JSON types."""
    if hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def tell(sentence: str) -> None:
    """Print a note or warning to standard error; results go to standard output."""
    show(message(sentence), sys.stderr)
