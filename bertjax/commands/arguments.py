"""Say what commands have in common: arguments that several take, results as lines or as JSON."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str
) -> argparse.ArgumentParser:
    """Add a command that `run` carries out."""
    parser = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
    parser.set_defaults(run=run)
    return parser


def takes_experiment(parser: argparse.ArgumentParser) -> None:
    """Let a command take an experiment and what it changes of it."""
    parser.add_argument("experiment", metavar="EXPERIMENT", help="an experiment file, such as experiments/bert.py")
    parser.add_argument("override", nargs="*", metavar="key=value",
                        help="arguments of its experiment(), or dotted fields such as objective.encoder.D")  # fmt: skip


def takes_model(
    parser: argparse.ArgumentParser, what: str = "the work folder of a run, one checkpoint, or a Hugging Face folder"
) -> None:
    """Let a command take a trained model."""
    parser.add_argument("--model", required=True, metavar="DIR", help=what)


def takes_json(parser: argparse.ArgumentParser) -> None:
    """Let a command print its result as JSON."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def positive(text: str) -> int:
    """Read a number from 1 on, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def print_result(options: argparse.Namespace, values: dict[str, Any]) -> None:
    """Print named values, a line each, or as JSON where asked."""
    if options.json:
        print(json.dumps(values, ensure_ascii=False))
        return
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:<{width}}  {readable(value)}")


def readable(value: Any) -> str:
    """Write a value for a reader."""
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.3e}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {readable(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(readable, value))
    return str(value)


def plain(value: Any) -> Any:
    """Turn results, which are named tuples, into what JSON knows."""
    if hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def tell(sentence: str) -> None:
    """Say something beside the results, which go to standard output."""
    print(sentence, file=sys.stderr, flush=True)
