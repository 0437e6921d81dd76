"""Rows of a task, encoded from its examples, for training, evaluation and prediction alike.

The arrays of a batch are named in bertjax/types.py. All examples are encoded once, when the rows are opened; a batch is
padded to the bucket of its longest row. Each kind of example has its own encoder and its own way of truncation, in
bertjax/tasks/encode/; truncated rows are counted.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from bertjax.data.source import Batch
from bertjax.data.templates import Templates
from bertjax.data.tokenizer import Encoding, Tokenizer, fingerprint, load_tokenizer
from bertjax.errors import InputError
from bertjax.tasks.encode.choices import encode_choices
from bertjax.tasks.encode.questions import encode_questions
from bertjax.tasks.encode.sequences import Sequences, Tokenized, Window
from bertjax.tasks.encode.tags import encode_tags
from bertjax.tasks.encode.texts import encode_texts
from bertjax.tasks.examples import Choice, Example, Question, Texts, Words, is_labelled
from bertjax.tasks.loading import available, digest, load_examples
from bertjax.tasks.pooling import Pool
from bertjax.tasks.reading import Notes
from bertjax.tasks.task import Task

_STEPS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


def bucket_lengths(longest: int) -> tuple[int, ...]:
    """List the bucket lengths up to `longest`: two for each doubling, so that few programs are compiled."""
    return (*(length for length in _STEPS if length < longest), longest)


@dataclass(frozen=True)
class TaskRows:
    """Rows of a task in tokens of a tokenizer, with special tokens and segments as in `templates`.

    data: a folder, or TFDS, as for load_examples. tokenizer: a file or folder. length: maximum tokens of a row.
    stride: tokens between the starts of consecutive windows of a context. question, ending: maximum tokens of a
    question and of an ending of a choice. both_orders: train on each pair in both orders (ELECTRA, on MRPC and STS-B).
    unit_range: train on targets scaled from their task's range to 0 .. 1 (RoBERTa and ELECTRA, on STS-B). shortest:
    rows are padded to this many tokens at least, or to the longest of their split: with `length` all are of one length.
    pool: a text of more than `length` tokens is not truncated, but a row for each of its windows, whose logits it
    joins.
    """

    task: Task
    data: str
    tokenizer: str
    templates: Templates
    length: int
    stride: int = 128
    question: int = 64
    ending: int = 128
    both_orders: bool = False
    unit_range: bool = False
    shortest: int = 0
    pool: Pool | None = None
    group_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        taken = self.question if self.task.kind == "span" else 0
        if self.length - taken < 8:
            beside = f" beside a question of {taken}" if taken else ""
            raise ValueError(f"rows of length {self.length} have no room{beside}: increase length")
        if self.unit_range and self.task.scale is None:
            raise ValueError(f"unit_range: task {self.task.name} has no range of targets (scale), so leave it out")
        if min(self.stride, self.question, self.ending) < 1:
            given = f"stride={self.stride}, question={self.question}, ending={self.ending}"
            raise ValueError(f"{given}: stride, question and ending must each be at least 1")
        if not 0 <= self.shortest <= self.length:
            raise ValueError(f"shortest={self.shortest} must be from 0 to length={self.length}")
        if self.pool and self.task.kind not in ("classify", "multilabel", "regress"):
            raise ValueError(f"long texts are joined from windows for classify, multilabel and regress, not for "
                             f"{self.task.kind}: leave it out")  # fmt: skip

    @property
    def corpus(self) -> str:
        """The folder or TFDS name of the data."""
        return self.data

    @property
    def features(self) -> tuple[str, ...]:
        """See Rows.features."""
        return tuple(name for name in self.padding(1) if name not in ("tokens", "mask", "example"))

    def padding(self, n: int, length: int = 0) -> Batch:
        """Return a batch of n padding rows, labels included, of the full length unless `length` is given."""
        shape = (n, length or self.length)
        sequences = (n, self.task.options, shape[1]) if self.task.kind == "choice" else shape
        batch: Batch = {name: np.zeros(sequences, np.int32) for name in ("tokens", "mask", "types")}
        batch["example"] = np.zeros(n, np.uint32)
        batch["labels"] = _empty_labels(self.task, *shape)
        if self.task.kind == "span":
            batch["answerable"], batch["context"] = np.zeros(n, np.int32), np.zeros(shape, np.int32)
        return batch

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer."""
        return load_tokenizer(self.tokenizer)

    def splits(self) -> tuple[str, ...]:
        """List the splits that the data have."""
        return available(self.task, self.data)

    def digest(self) -> str:
        """Return the SHA-256 of tokenizer and data, as 64 hexadecimal digits."""
        read = fingerprint(self.load_tokenizer()) + digest(self.task, self.data)
        return hashlib.sha256(read.encode()).hexdigest()

    def open(self, split: str) -> "Encoded":
        """Load and encode a split. Unlabelled examples are dropped from `train`, and counted."""
        loaded = load_examples(self.task, self.data, split)
        examples, notes = loaded.examples, loaded.notes
        if split == "train":
            examples = [example for example in examples if is_labelled(example)]
            notes["unlabelled examples dropped from training"] += len(loaded.examples) - len(examples)
            if self.both_orders:
                swapped = [
                    x._replace(texts=x.texts[::-1]) for x in examples if isinstance(x, Texts) and len(x.texts) > 1
                ]
                examples = [*examples, *swapped]
        encoded = encode_examples(self, examples, self.load_tokenizer())
        if split == "train" and self.unit_range and self.task.scale and encoded.labels is not None:
            low, high = self.task.scale
            encoded.labels = (encoded.labels - low) / (high - low)
        encoded.notes.update(+notes)
        return encoded


def _empty_labels(task: Task, n: int, length: int) -> np.ndarray:
    if task.kind == "tag":
        return np.full((n, length), -1, np.int32)
    if task.kind == "multilabel":
        return np.zeros((n, len(task.labels)), np.float32)
    shape = (n, 2) if task.kind == "span" else (n,)
    return np.zeros(shape, np.float32 if task.kind == "regress" else np.int32)


@dataclass
class Encoded:
    """A source of rows of encoded examples; row r contains (a part of) example `example_of_row[r]`.

    sequences .. contexts: see Tokenized. notes: examples truncated, dropped or repaired, by reason.
    """

    spec: TaskRows
    pad: int
    examples: list[Example]
    sequences: Sequences
    example_of_row: np.ndarray
    first: np.ndarray
    labels: np.ndarray | None
    words: np.ndarray | None = None
    windows: Sequence[Window] = ()
    contexts: Sequence[Encoding] = ()
    notes: Notes = field(default_factory=Notes)
    group_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        sizes = np.diff(self.sequences.bounds)
        longest = np.maximum.reduceat(sizes, self.first[:-1]) if len(sizes) else sizes
        lengths = np.array(bucket_lengths(self.spec.length))
        buckets = lengths[np.searchsorted(lengths, longest)]
        self.buckets = np.maximum(buckets, min(self.spec.shortest, int(buckets.max(initial=0))))

    def __len__(self) -> int:
        return len(self.example_of_row)

    def padding(self, n: int) -> Batch:
        """See Source.padding."""
        return self.rows(np.full(n, -1))

    def rows(self, index: np.ndarray) -> Batch:
        """Assemble rows by number, -1 for padding, padded to the bucket of the longest of them.

        The batch has no labels unless all examples are labelled.
        """
        length = int(self.buckets[index[index >= 0]].max(initial=0)) or int(self.buckets.min(initial=16))
        batch = self.spec.padding(len(index), length)
        batch["tokens"][:] = self.pad
        flat = {name: batch[name].reshape(-1, length) for name in ("tokens", "mask", "types")}
        options = max(1, self.spec.task.options)
        for i, row in enumerate(index):
            if row < 0:
                continue
            batch["example"][i] = row
            for place, sequence in enumerate(range(self.first[row], self.first[row + 1])):
                begin, end = self.sequences.bounds[sequence : sequence + 2]
                at = self._place(int(end - begin), length)
                flat["tokens"][i * options + place, at] = self.sequences.tokens[begin:end]
                flat["types"][i * options + place, at] = self.sequences.types[begin:end]
                flat["mask"][i * options + place, at] = 1
            self._label(batch, i, int(row), at.start, slice(begin, end), at)
        if self.labels is None:
            del batch["labels"]
        return batch

    def _place(self, size: int, length: int) -> slice:
        return slice(length - size, length) if self.spec.templates.left else slice(0, size)

    def _label(self, batch: Batch, i: int, row: int, shift: int, flat: slice, at: slice) -> None:
        kind = self.spec.task.kind
        if kind == "tag" and self.labels is not None:
            batch["labels"][i, at] = self.labels[flat]
        elif kind == "span":
            window = self.windows[row]
            batch["context"][i, shift + window.at : shift + window.at + window.size] = 1
            if self.labels is not None:
                batch["labels"][i] = self.labels[row, :2] + shift
                batch["answerable"][i] = self.labels[row, 2]
        elif self.labels is not None:
            batch["labels"][i] = self.labels[row]

    def first_pieces(self, row: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return positions of the first pieces of words in a row padded to `length`, and the words' numbers."""
        assert self.words is not None
        begin, end = self.sequences.bounds[row : row + 2]
        words = self.words[begin:end]
        places = np.flatnonzero(words >= 0)
        return places + self._place(int(end - begin), length).start, words[places]


def encode_examples(rows: TaskRows, examples: Sequence[Example], tokenizer: Tokenizer) -> Encoded:
    """Encode examples of the kind of `rows.task`; of `rows`, data and tokenizer are not read.

    Raises InputError for an unknown label, or an example of another kind.
    """
    notes = Notes()
    wanted = {"tag": Words, "span": Question, "choice": Choice}.get(rows.task.kind, Texts)
    for example in examples:
        if not isinstance(example, wanted):
            raise InputError(
                f"{example.origin}: a {type(example).__name__}, but a task of kind {rows.task.kind} takes "
                f"{wanted.__name__} examples"
            )
    encoded = _encode(rows, examples, tokenizer, notes)
    return Encoded(rows, tokenizer.vocabulary.pad, list(examples), *encoded, notes=+notes)


def _encode(rows: TaskRows, examples: Any, tokenizer: Tokenizer, notes: Notes) -> Tokenized:
    task, templates, length = rows.task, rows.templates, rows.length
    match task.kind:
        case "tag":
            return encode_tags(examples, tokenizer, notes, task=task, templates=templates, length=length)
        case "span":
            return encode_questions(
                examples, tokenizer, notes,
                templates=templates, length=length, stride=rows.stride, longest_question=rows.question,
            )  # fmt: skip
        case "choice":
            return encode_choices(
                examples, tokenizer, notes, task=task, templates=templates, length=length, ending=rows.ending
            )
        case _:
            stride = rows.stride if rows.pool else 0
            return encode_texts(
                examples, tokenizer, notes, task=task, templates=templates, length=length, stride=stride
            )
