"""Examples of tasks, before tokenisation: texts, tagged words, questions on contexts, choices.

`origin` is `file:line`, or the place in another kind of data set, for errors. Labels are spelled as in the data.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Texts(NamedTuple):
    """One text or a pair, for classification or regression.

    label: empty if unknown. labels: any number of them, instead; None if unknown.
    """

    origin: str
    texts: tuple[str, ...]
    label: str = ""
    labels: tuple[str, ...] | None = None


class Words(NamedTuple):
    """A sentence of words. tags: one for each word, () if unknown. document: number shared by its sentences."""

    origin: str
    words: tuple[str, ...]
    tags: tuple[str, ...] = ()
    document: int = 0


class Answer(NamedTuple):
    """An answer and its first character in the context, -1 if the data give a place where it does not occur."""

    text: str
    start: int


class Question(NamedTuple):
    """A question on a context. answers: () if it has none in the context, or if they are unknown."""

    origin: str
    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    labelled: bool = True


class Choice(NamedTuple):
    """A context and its possible endings. label: the index of the correct one, -1 if unknown.

    If the data have a question, it is part of each ending.
    """

    origin: str
    context: str
    endings: tuple[str, ...]
    label: int = -1


Example = Texts | Words | Question | Choice


def every_text(examples: Iterable[Example]) -> Iterator[str]:
    """Yield all texts of the examples."""
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
        case Texts(label=label, labels=labels):
            return label != "" or labels is not None
        case Words(tags=tags):
            return bool(tags)
        case Question(labelled=labelled):
            return labelled
        case Choice(label=label):
            return label >= 0
