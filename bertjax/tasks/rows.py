"""Turn examples of a task into rows: which a trainer, an evaluation and a prediction all take.

The arrays are named in bertjax/types.py. Everything is encoded once, when the rows are opened; batches are as long as
the bucket of their longest row. Texts that are too long are cut in the way of each kind, and counted.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bertjax.data.pairs import truncate
from bertjax.data.source import Batch
from bertjax.data.templates import Framed, Templates, framed, specials
from bertjax.data.tokenizer import Encoding, Tokenizer, fingerprint, load_tokenizer
from bertjax.errors import InputError
from bertjax.tasks.examples import Choice, Example, Question, Texts, Words
from bertjax.tasks.formats import Notes
from bertjax.tasks.table import Task, available, digest, load_examples
from bertjax.tasks.tags import to_iob2

_STEPS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


def bucket_lengths(longest: int) -> tuple[int, ...]:
    """List the lengths that rows come in, up to `longest`: two for each doubling, so few programs are compiled."""
    return (*(length for length in _STEPS if length < longest), longest)


@dataclass(frozen=True)
class TaskRows:
    """Rows of a task, in tokens of a tokenizer, laid out as a family does.

    data: a folder, or TFDS, as for load_examples. tokenizer: a file, or a folder with one. length: of the longest row.
    stride: pieces from one window of a context to the next. question, ending: pieces of the longest question and of the
    longest ending of a choice. both_orders: train on each pair of texts in both orders (ELECTRA, on MRPC and STS-B).
    unit_range: train on numbers as shares of their task's range, 0 to 1 (RoBERTa and ELECTRA, on STS-B).
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
    group_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        taken = self.question if self.task.kind == "span" else 0
        if self.length - taken < 8:
            beside = f" beside a question of {taken}" if taken else ""
            raise ValueError(f"rows of length {self.length} have no room{beside}: use longer ones")
        if self.unit_range and self.task.scale is None:
            raise ValueError(f"unit_range: task {self.task.name} predicts no number of a range, so leave it out")
        if min(self.stride, self.question, self.ending) < 1:
            raise ValueError(f"stride={self.stride}, question={self.question}, ending={self.ending}: all ≥ 1")

    @property
    def corpus(self) -> str:
        """Where the data are."""
        return self.data

    @property
    def features(self) -> tuple[str, ...]:
        """See Rows.features."""
        return tuple(name for name in self.padding(1) if name not in ("tokens", "mask", "example"))

    def padding(self, n: int, length: int = 0) -> Batch:
        """Make n rows of padding, of full length where none is given: all the arrays of a batch, labels included."""
        shape = (n, length or self.length)
        sequences = (n, self.task.options, shape[1]) if self.task.kind == "choice" else shape
        batch: Batch = {name: np.zeros(sequences, np.int32) for name in ("tokens", "mask", "types")}
        batch["example"] = np.zeros(n, np.uint32)
        batch["labels"] = _empty_labels(self.task, *shape)
        if self.task.kind == "span":
            batch["answerable"], batch["context"] = np.zeros(n, np.int32), np.zeros(shape, np.int32)
        return batch

    def load_tokenizer(self) -> Tokenizer:
        """Read the tokenizer."""
        return load_tokenizer(self.tokenizer)

    def splits(self) -> tuple[str, ...]:
        """Name the splits that are there."""
        return available(self.task, self.data)

    def digest(self) -> str:
        """Identify what the rows are made of, tokenizer and data: 64 hexadecimal digits."""
        read = fingerprint(self.load_tokenizer()) + digest(self.task, self.data)
        return hashlib.sha256(read.encode()).hexdigest()

    def open(self, split: str) -> "Encoded":
        """Read and encode a split; what is not labelled is left out of train, and counted."""
        loaded = load_examples(self.task, self.data, split)
        examples, notes = loaded.examples, loaded.notes
        if split == "train":
            examples = [example for example in examples if is_labelled(example)]
            notes["examples without label, left out of training"] += len(loaded.examples) - len(examples)
            if self.both_orders:
                turned = [
                    x._replace(texts=x.texts[::-1]) for x in examples if isinstance(x, Texts) and len(x.texts) > 1
                ]
                examples = [*examples, *turned]
        encoded = encode_examples(self, examples, self.load_tokenizer())
        if split == "train" and self.unit_range and self.task.scale and encoded.labels is not None:
            low, high = self.task.scale
            encoded.labels = (encoded.labels - low) / (high - low)
        encoded.notes.update(+notes)
        return encoded


def _empty_labels(task: Task, n: int, length: int) -> np.ndarray:
    if task.kind == "tag":
        return np.full((n, length), -1, np.int32)
    shape = (n, 2) if task.kind == "span" else (n,)
    return np.zeros(shape, np.float32 if task.kind == "regress" else np.int32)


def is_labelled(example: Example) -> bool:
    """Tell whether an example can be learned from."""
    match example:
        case Texts(label=label):
            return label != ""
        case Words(tags=tags):
            return bool(tags)
        case Question(labelled=labelled):
            return labelled
        case Choice(label=label):
            return label >= 0


class Window(NamedTuple):
    """Pieces start .. start + size of a context, in a row where the first of them stands at `at`, padding left out."""

    start: int
    size: int
    at: int


@dataclass
class Sequences:
    """Token sequences end to end. tokens i32, types i8 [T]; s is bounds[s] .. bounds[s + 1]."""

    tokens: np.ndarray
    types: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Framed]) -> "Sequences":
        """Join framed rows."""
        sizes = [len(row.tokens) for row in rows]
        nothing = np.zeros(0, np.int32)
        return cls(
            np.concatenate([nothing, *(row.tokens for row in rows)]),
            np.concatenate([nothing, *(row.types for row in rows)]).astype(np.int8),
            np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        )


@dataclass
class Encoded:
    """Serve the rows of encoded examples. Row r shows (a part of) example `of[r]`.

    labels: of each row; of tags [T] beside the tokens, -1 where none is scored. words: i32 [T], of which word of its
    example a piece is the first, else -1 (tag). windows: of each row (span). contexts: of each question its pieces
    (span). notes: what was cut or left out -> how often.
    """

    spec: TaskRows
    pad: int
    examples: list[Example]
    example_of_row: np.ndarray
    sequences: Sequences
    first: np.ndarray  # i64 [R + 1]: row r is the sequences first[r] .. first[r + 1], one but for choices
    labels: np.ndarray | None
    words: np.ndarray | None = None
    windows: list[Window] = field(default_factory=list)
    contexts: list[Encoding] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    group_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        sizes = np.diff(self.sequences.bounds)
        longest = np.maximum.reduceat(sizes, self.first[:-1]) if len(sizes) else sizes
        lengths = np.array(bucket_lengths(self.spec.length))
        self.buckets = lengths[np.searchsorted(lengths, longest)]

    def __len__(self) -> int:
        return len(self.example_of_row)

    def rows(self, index: np.ndarray) -> Batch:
        """Assemble rows by number, -1 for one of padding, as long as the bucket of the longest of them.

        Without labels where not all examples have one.
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
        """Say where in a row of `length` the words of its example begin: positions, and which words these are."""
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
    wanted = {"classify": Texts, "regress": Texts, "tag": Words, "span": Question, "choice": Choice}[rows.task.kind]
    for example in examples:
        if not isinstance(example, wanted):
            raise InputError(f"{example.origin}: not what a task of kind {rows.task.kind} is made of")
    encoders: dict[str, Callable[..., Encoded]] = {"tag": _tags, "span": _questions, "choice": _choices}
    encoded = encoders.get(rows.task.kind, _texts)(rows, list(examples), tokenizer, notes)
    encoded.notes = +notes
    return encoded


def _encoded(
    rows: TaskRows, examples: list[Any], tokenizer: Tokenizer, sequences: list[Framed], labels: Any, **more: Any
) -> Encoded:
    each = np.arange(len(examples))
    of_rows, first = more.pop("example_of_row", each), more.pop("first", np.arange(len(sequences) + 1))
    return Encoded(rows, tokenizer.vocabulary.pad, examples, of_rows, Sequences.of(sequences), first, labels, **more)


def _texts(rows: TaskRows, examples: list[Texts], tokenizer: Tokenizer, notes: Notes) -> Encoded:
    """Encode one text or two; of two the longer one is shortened until both fit, as in run_classifier.py."""
    task, v = rows.task, tokenizer.vocabulary
    encoded = [
        tokenizer.ids([example.texts[part] for example in examples if len(example.texts) > part]) for part in (0, 1)
    ]
    ids = [iter(column) for column in encoded]
    sequences = []
    for example in examples:
        a, b = next(ids[0]), next(ids[1]) if len(example.texts) > 1 else []
        template = rows.templates.pair if len(example.texts) > 1 else rows.templates.text
        room = rows.length - specials(template)
        kept_a, kept_b = truncate(len(a), len(b), room)
        notes[f"texts cut to {rows.length} tokens"] += kept_a + kept_b < len(a) + len(b)
        notes["texts of which the vocabulary has no piece"] += not a or (len(example.texts) > 1 and not b)
        sequences.append(framed(template, v, a[:kept_a], b[:kept_b]))
    labels = None
    if all(example.label for example in examples):
        read = task.value if task.kind == "regress" else task.number
        kind = np.float32 if task.kind == "regress" else np.int32
        labels = np.array([read(example.origin, example.label) for example in examples], kind)
    return _encoded(rows, examples, tokenizer, sequences, labels)


def _choices(rows: TaskRows, examples: list[Choice], tokenizer: Tokenizer, notes: Notes) -> Encoded:
    """Encode a sequence for each option: of an ending the last pieces stay, of a context the first (race_utils.py)."""
    v, template = tokenizer.vocabulary, rows.templates.option
    contexts = tokenizer.ids([example.context for example in examples])
    endings = iter(tokenizer.ids([ending for example in examples for ending in example.endings]))
    longest = min(rows.ending, rows.length - specials(template))
    sequences, first = [], [0]
    for example, context in zip(examples, contexts, strict=True):
        if len(example.endings) > rows.task.options:
            raise InputError(
                f"{example.origin}: {len(example.endings)} options, but task {rows.task.name} has {rows.task.options}"
            )
        for _ in example.endings:
            ending = next(endings)
            notes[f"options cut to their last {longest} tokens"] += len(ending) > longest
            ending = ending[-longest:]
            room = rows.length - specials(template) - len(ending)
            notes[f"contexts cut to fit {rows.length} tokens"] += len(context) > room
            sequences.append(framed(template, v, context[:room], ending))
        first.append(len(sequences))
    labels = np.array([example.label for example in examples], np.int32)
    return _encoded(
        rows, examples, tokenizer, sequences, labels if (labels >= 0).all() else None, first=np.array(first, np.int64)
    )


def _tags(rows: TaskRows, examples: list[Words], tokenizer: Tokenizer, notes: Notes) -> Encoded:
    """Encode sentences in words, scored at the first piece of each; the rest of the row is context of its document.

    A sentence longer than a row goes on in further rows, so every word is scored once. Neighbouring sentences fill what
    room there is, half before and half behind (google-research/bert issue 223).
    """
    template, v = rows.templates.text, tokenizer.vocabulary
    room = rows.length - specials(template)
    pieces = [_pieces_of_words(example, tokenizer, notes) for example in examples]
    sequences, of = [], []
    words: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for begin, end in _documents(examples):
        ids = np.concatenate([ids for ids, _ in pieces[begin:end]])
        bounds = np.concatenate([[0], np.cumsum([len(ids) for ids, _ in pieces[begin:end]])])
        for number in range(begin, end):
            firsts = pieces[number][1]
            marked = np.full(len(pieces[number][0]), -1)
            marked[firsts] = np.arange(len(firsts))
            tags = np.full(len(marked), -1)
            if examples[number].tags:
                tags[firsts] = _tag_numbers(rows.task, examples[number], notes)
            cuts = list(_cuts(firsts, len(marked), room))
            notes[f"sentences longer than {rows.length} tokens, in several rows"] += len(cuts) > 1
            for left, right in cuts:
                start, stop = (int(bounds[number - begin]) + place for place in (left, right))
                before, behind = _around(start, stop, len(ids), room)
                row = framed(template, v, ids[start - before : stop + behind].tolist())
                sequences.append(row)
                of.append(number)
                for column, values in ((words, marked), (labels, tags)):
                    whole = np.full(len(row.tokens), -1, np.int32)
                    whole[row.a + before : row.a + before + right - left] = values[left:right]
                    column.append(whole)
    nothing = np.zeros(0, np.int32)
    known = all(example.tags for example in examples)
    flat_words, flat_labels = (np.concatenate([nothing, *column]) for column in (words, labels))
    return _encoded(
        rows,
        examples,
        tokenizer,
        sequences,
        flat_labels if known else None,
        example_of_row=np.array(of, np.int64),
        words=flat_words,
    )


def _tag_numbers(task: Task, example: Words, notes: Notes) -> list[int]:
    """Number the tags of a sentence, in whatever scheme they are; IOB2 is what is learned."""
    for place, tag in enumerate(example.tags, 1):
        if tag != "O" and not re.fullmatch(r"[BIELSU]-.+", tag):
            where = f"{example.origin}, word {place}"
            raise InputError(f"{where}: {tag!r} is no tag: O, or B-, I-, E-, S-, L-, U- and a type")
    tags = to_iob2(example.tags)
    notes["tags in another scheme than IOB2, converted"] += sum(a != b for a, b in zip(tags, example.tags, strict=True))
    return [task.number(f"{example.origin}, word {place}", tag) for place, tag in enumerate(tags, 1)]


def _pieces_of_words(example: Words, tokenizer: Tokenizer, notes: Notes) -> tuple[np.ndarray, np.ndarray]:
    """Encode a sentence: ids of its pieces, and where each word begins. A word without any piece becomes unknown."""
    text = " ".join(example.words)
    sizes = np.array([len(word) for word in example.words])
    # The space before a word belongs to it, as in the pieces of vocabularies that carry their spaces.
    word_of = np.repeat(np.arange(len(sizes)), sizes + (np.arange(len(sizes)) > 0))
    encoding = tokenizer.encode(text)
    last = np.maximum(encoding.offsets[:, 1] - 1, encoding.offsets[:, 0])
    owners = word_of[np.minimum(last, len(word_of) - 1)]
    ids = encoding.ids
    missing = np.setdiff1d(np.arange(len(sizes)), owners)
    notes["words of which the vocabulary has no piece, read as unknown"] += len(missing)
    places = np.searchsorted(owners, missing)
    ids = np.insert(ids, places, tokenizer.vocabulary.unk)
    owners = np.insert(owners, places, missing)
    return ids, np.searchsorted(owners, np.arange(len(sizes)))


def _documents(examples: Sequence[Words]) -> Iterator[tuple[int, int]]:
    """Yield the runs of sentences of each document."""
    begin = 0
    for number in range(1, len(examples) + 1):
        if number == len(examples) or examples[number].document != examples[begin].document:
            yield begin, number
            begin = number


def _cuts(firsts: np.ndarray, size: int, room: int) -> Iterator[tuple[int, int]]:
    """Cut a sentence of `size` pieces into runs of whole words that fit; of a longer word, what is first of it fits."""
    begin = 0
    while size - begin > room:
        ends = firsts[(firsts > begin) & (firsts <= begin + room)]
        end = int(ends[-1]) if len(ends) else begin + room
        yield begin, end
        begin = end
    if begin < size:
        yield begin, size


def _around(start: int, stop: int, size: int, room: int) -> tuple[int, int]:
    """Share the room that is left between what stands before and what stands behind."""
    left = room - (stop - start)
    before = min(start, left // 2)
    behind = min(size - stop, left - before)
    return min(start, left - behind), behind


def _questions(rows: TaskRows, examples: list[Question], tokenizer: Tokenizer, notes: Notes) -> Encoded:
    """Encode questions, each with the windows of its context: a row a window. google-research/bert run_squad.py.

    A window without the whole answer has its label at the <cls>. The answer's pieces are those that share a character
    with it: what "improving the answer span" by search finds there.
    """
    template, v = rows.templates.question, tokenizer.vocabulary
    contexts = {context: tokenizer.encode(context) for context in dict.fromkeys(x.context for x in examples)}
    questions = tokenizer.ids([example.question for example in examples])
    sequences, of, windows, labels = [], [], [], []
    for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
        context = contexts[example.context]
        ids = context.ids.tolist()
        notes[f"questions cut to {rows.question} tokens"] += len(question) > rows.question
        question = question[: rows.question]
        answer = _pieces_of_answer(example, context)
        for start, size in sliding_windows(len(ids), rows.length - specials(template) - len(question), rows.stride):
            row = framed(template, v, question, ids[start : start + size])
            sequences.append(row)
            of.append(number)
            windows.append(Window(start, size, row.b))
            inside = answer is not None and start <= answer[0] and answer[1] < start + size
            span = [row.b + answer[0] - start, row.b + answer[1] - start] if inside and answer else [row.cls, row.cls]
            labels.append([*span, inside])
    held = [contexts[example.context] for example in examples]
    numbers = np.array(labels, np.int32).reshape(-1, 3)
    known = all(example.labelled for example in examples)
    return _encoded(
        rows, examples, tokenizer, sequences, numbers if known else None,
        example_of_row=np.array(of, np.int64), windows=windows, contexts=held,
    )  # fmt: skip


def sliding_windows(size: int, room: int, stride: int) -> Iterable[tuple[int, int]]:
    """Cut `size` pieces into windows of at most `room`, as (start, size), a new one every `stride`."""
    start = 0
    while True:
        held = min(size - start, room)
        yield start, held
        if start + held >= size:
            return
        start += min(held, stride)


def _pieces_of_answer(example: Question, context: Encoding) -> tuple[int, int] | None:
    """Find the first and the last piece of the first answer that is in the context; none where there is none."""
    answer = next((answer for answer in example.answers if answer.start >= 0), None)
    if answer is None:
        return None
    touched = np.flatnonzero(
        (context.offsets[:, 0] < answer.start + len(answer.text)) & (context.offsets[:, 1] > answer.start)
    )
    return (int(touched[0]), int(touched[-1])) if len(touched) else None
