"""Read labelled data from TFDS by name, without TensorFlow, and convert its records to examples.

Class numbers are converted to names first, since data sets number their classes differently.
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
    """Convert a value of TFDS to texts, numbers, lists and dicts, and class numbers to names, '' if unknown."""
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
    """Protocol for converters of TFDS records, after `plain`, to examples."""

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """Yield the examples of a record."""
        ...


@dataclass(frozen=True)
class Columns:
    """Convert fields of a record to texts. skip_incomplete: drop and count records with an empty text."""

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
            raise InputError(f"{origin}: a text of {', '.join(self.texts)} is empty")
        yield Texts(origin, texts, str(record[self.label]) if self.label else "")


@dataclass(frozen=True)
class Tagged:
    """Convert `tokens` and `ner` to tagged sentences."""

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """See Records.examples."""
        yield tagged(origin, tuple(record["tokens"]), tuple(record["ner"]), 0)


@dataclass(frozen=True)
class Questions:
    """Convert records of SQuAD to questions."""

    unanswerable: bool

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """See Records.examples."""
        given = record["answers"]
        answers = tuple(Answer(*pair) for pair in zip(given["text"], map(int, given["answer_start"]), strict=True))
        question = Question(origin, record["id"], record["question"], record["context"], answers)
        yield Squad(self.unanswerable).checked(question, notes)


@dataclass(frozen=True)
class Articles:
    """Convert articles of RACE to choices."""

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """See Records.examples."""
        yield from race_questions(origin, record, notes)


@dataclass(frozen=True)
class Alternatives:
    """Convert records of COPA to choices."""

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """See Records.examples."""
        names = ["choice1", "choice2"]
        if record["label"] not in ("", *names):
            raise InputError(f"{origin}: the label is {record['label']!r}, not one of {', '.join(names)}")
        label = names.index(record["label"]) if record["label"] else -1
        endings = (record["choice1"], record["choice2"])
        yield copa_choice(origin, record["premise"], record["question"], endings, label)


@dataclass(frozen=True)
class Lettered:
    """Convert records of ARC to choices."""

    def examples(self, origin: str, record: Mapping[str, Any], notes: Notes) -> Iterator[Example]:
        """See Records.examples."""
        choices = record["choices"]
        right = choices["label"].index(record["answerKey"]) if record["answerKey"] else ""
        yield chosen(origin, record["question"], tuple(choices["text"]), str(right))
