"""Texts as a user gives them: one or several, and one where several are meant. Imports no JAX."""

from collections.abc import Iterable
from typing import Any

from bertjax.errors import InputError
from bertjax.fields import with_article

Text = str | tuple[str, ...]
"""A text, or a pair of texts."""


def several(texts: str | Iterable[str], name: str = "texts") -> list[str]:
    """Return a list of texts; a `str` is one text. Raises InputError for anything else."""
    found = [texts] if isinstance(texts, str) else _listed(texts, name)
    for number, text in enumerate(found, 1):
        if not isinstance(text, str):
            raise InputError(f"{name}: number {number} is {_shown(text)}, not a text")
    return found


def several_or_pairs(texts: str | Iterable[str | Iterable[str]], name: str = "texts") -> list[Any]:
    """Return a list of texts and of tuples of texts; a `str` is one text. Raises InputError for anything else."""
    found = [texts] if isinstance(texts, str) else _listed(texts, name)
    return [text if isinstance(text, str) else tuple(several(text, f"{name}, number {n}")) for n, text in _all(found)]


def several_questions(questions: Iterable[Any]) -> list[tuple[str, str]]:
    """Return a list of pairs, question and context; one pair is one question. Raises InputError for anything else."""
    found = []
    for number, pair in _all(_one_or_listed(questions, "questions", "(question, context)")):
        question, context = several(_pair(pair, f"question {number}", "a question and its context"))
        found.append((question, context))
    return found


def several_choices(choices: Iterable[Any]) -> list[tuple[str, list[str]]]:
    """Return a list of pairs, a context and its endings; one pair is one choice. Raises InputError for others."""
    found = []
    for number, choice in _all(_one_or_listed(choices, "choices", "(context, endings)")):
        context, endings = _pair(choice, f"choice {number}", "a context and a list of its endings")
        if not isinstance(context, str) or isinstance(endings, str):
            raise InputError(f"choice {number} is not a context and a list of its endings")
        found.append((context, several(endings, f"the endings of choice {number}")))
    return found


def _pair(value: Any, name: str, form: str) -> list[Any]:
    parts = [value] if isinstance(value, str) else _listed(value, name)
    if len(parts) != 2:
        raise InputError(f"{name} is {_shown(value)} of {len(parts)} parts: give {form}")
    return parts


def _one_or_listed(given: Any, name: str, form: str) -> list[Any]:
    """Return a list of pairs: a pair that begins with a text is one."""
    if isinstance(given, str):
        raise InputError(f"{name} is a text: give a list of pairs {form}")
    found = _listed(given, name)
    return [tuple(found)] if len(found) == 2 and isinstance(found[0], str) else found


def _listed(given: Any, name: str) -> list[Any]:
    if isinstance(given, bytes | dict) or not isinstance(given, Iterable):
        raise InputError(f"{name} is {_shown(given)}: give a text, or a list of texts")
    return list(given)


def _all(found: list[Any]) -> list[tuple[int, Any]]:
    return list(enumerate(found, 1))


def _shown(value: Any) -> str:
    plain = isinstance(value, str | int | float | None)
    return f"{value!r:.60}" if plain else with_article(type(value).__name__)
