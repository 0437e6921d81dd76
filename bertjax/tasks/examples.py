"""Name what a task's data consist of, before any tokenizer: texts, tagged words, questions on a context, choices.

`origin` is `file:line`, or the place in a data set of another kind, for errors. Labels stand as the data spell them.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Texts(NamedTuple):
    """One text or two, to classify or to put a number on. label: empty where it is not known."""

    origin: str
    texts: tuple[str, ...]
    label: str = ""


class Words(NamedTuple):
    """A sentence in words. tags: one for each word, none where not known. document: its sentences share a number."""

    origin: str
    words: tuple[str, ...]
    tags: tuple[str, ...] = ()
    document: int = 0


class Answer(NamedTuple):
    """A text and the character of the context where it begins, -1 where it does not stand where the data say."""

    text: str
    start: int


class Question(NamedTuple):
    """A question on a context. answers: none where it has none in the context, or where they are not known."""

    origin: str
    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    labelled: bool = True


class Choice(NamedTuple):
    """A context and the ways to go on from it. label: the number of the right one, -1 where it is not known.

    Where the data have a question, each ending holds it too.
    """

    origin: str
    context: str
    endings: tuple[str, ...]
    label: int = -1


Example = Texts | Words | Question | Choice


def every_text(examples: Iterable[Example]) -> Iterator[str]:
    """Yield all texts of examples."""
    for example in examples:
        match example:
            case Texts(texts=texts):
                yield from texts
            case Words(words=words):
                yield " ".join(words)
            case Question(question=question, context=context):
                yield from (question, context)
            case Choice(context=context, endings=endings):
                yield from (context, *endings)


def is_labelled(example: Example) -> bool:
    """Return whether an example can be trained on."""
    match example:
        case Texts(label=label):
            return label != ""
        case Words(tags=tags):
            return bool(tags)
        case Question(labelled=labelled):
            return labelled
        case Choice(label=label):
            return label >= 0
