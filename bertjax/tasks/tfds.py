"""Read labelled data from TFDS by name, without TensorFlow, and make examples of its records.

A record's class numbers become names before anything else looks at it: data sets number their classes differently.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bertjax.errors import InputError
from bertjax.tasks.choices import chosen, copa_choice, race_questions
from bertjax.tasks.examples import Answer, Example, Question, Texts
from bertjax.tasks.formats import INCOMPLETE, Squad, tagged, without_breaks
from bertjax.tasks.reading import Notes


def plain(value: Any, feature: Any) -> Any:
    """Turn what TFDS gives into texts, numbers, lists and dicts; numbers of classes into names, unknown ones ''."""
    if isinstance(value, Mapping):
        inner = getattr(feature, "feature", feature)  # of a sequence of records: a record of sequences
        return {key: plain(item, inner[key]) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    if getattr(value, "ndim", 0) or isinstance(value, list | tuple):
        return [plain(item, getattr(feature, "feature", feature)) for item in value]
    names = getattr(feature, "names", None)
    if names is not None:
        return names[int(value)] if int(value) >= 0 else ""
    return value.item() if hasattr(value, "item") else value


class Records(Protocol):
    """How to make examples of a record of TFDS, whose class numbers are names already."""

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """Yield what a record holds."""
        ...


@dataclass(frozen=True)
class Columns:
    """Make texts of the fields of a record. skip_incomplete: leave out records with an empty text, and count them."""

    texts: tuple[str, ...]
    label: str = "label"
    skip_incomplete: bool = False

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """See Records.examples."""
        texts = tuple(without_breaks(record[name]) for name in self.texts)
        if not all(texts) and self.skip_incomplete:
            notes[INCOMPLETE] += 1
            return
        if not all(texts):
            raise InputError(f"{origin}: an empty text among {', '.join(self.texts)}")
        yield Texts(origin, texts, str(record[self.label]) if self.label else "")


@dataclass(frozen=True)
class Tagged:
    """Make tagged sentences of `tokens` and `ner`."""

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """See Records.examples."""
        yield tagged(origin, tuple(record["tokens"]), tuple(record["ner"]), 0)


@dataclass(frozen=True)
class Questions:
    """Make questions with their contexts."""

    unanswerable: bool

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """See Records.examples."""
        given = record["answers"]
        answers = tuple(Answer(*pair) for pair in zip(given["text"], map(int, given["answer_start"]), strict=True))
        question = Question(origin, record["id"], record["question"], record["context"], answers)
        yield Squad(self.unanswerable).checked(question, notes)


@dataclass(frozen=True)
class Articles:
    """Make the choices of an article of RACE."""

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """See Records.examples."""
        yield from race_questions(origin, record, notes)


@dataclass(frozen=True)
class Alternatives:
    """Make the choices of COPA."""

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """See Records.examples."""
        names = ["choice1", "choice2"]
        if record["label"] not in ("", *names):
            raise InputError(f"{origin}: the label is {record['label']!r}, neither of {', '.join(names)}")
        label = names.index(record["label"]) if record["label"] else -1
        endings = (record["choice1"], record["choice2"])
        yield copa_choice(origin, record["premise"], record["question"], endings, label)


@dataclass(frozen=True)
class Lettered:
    """Make the choices of ARC."""

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """See Records.examples."""
        choices = record["choices"]
        right = choices["label"].index(record["answerKey"]) if record["answerKey"] else ""
        yield chosen(origin, record["question"], tuple(choices["text"]), str(right))
