"""Rows of pairs for contrastive training: an anchor, its own passage, and hard negatives where there are any.

Read from the columns of a .csv or .tsv, the fields of a .jsonl, or SQuAD's .json, whose questions are anchors and whose
paragraphs are passages. With one column each text is a pair with itself (SimCSE). Texts are encoded once each; rows of
similar lengths share a batch, which is padded to one of a few sizes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bertjax.data.source import Batch
from bertjax.data.templates import Templates, framed, specials
from bertjax.data.tokenizer import Tokenizer, fingerprint, load_tokenizer
from bertjax.data.tokenizer_classes import CONFIG
from bertjax.errors import EmptySplit, InputError
from bertjax.serialization.bounded_json import parse_object
from bertjax.storage.files import open_given, real_path
from bertjax.storage.paths import path_of
from bertjax.tasks.encode.sequences import Sequences
from bertjax.tasks.examples import Question
from bertjax.tasks.formats import Squad
from bertjax.tasks.own import PACKED, ending_of
from bertjax.tasks.reading import Notes, describe_defect, json_lines, require_columns, table
from bertjax.tasks.rows import bucket_lengths

ENDINGS = (".csv", ".tsv", ".jsonl", ".json")
PAIR = ("anchor", "positive")
"""The columns of a pair, unless others are named."""
_OF_SQUAD = (PAIR, ("question", "context"))
_FILES = {"train": ("train",), "validation": ("validation", "dev")}
TOKENS = ("tokens", "mask", "types")


class Group(NamedTuple):
    """Texts of a row: an anchor, its own passage, hard negatives. origin: file:line, for errors."""

    origin: str
    texts: tuple[str, ...]


def read_groups(path: Path, columns: tuple[str, ...], notes: Notes) -> Iterator[Group]:
    """Yield the rows of a file; those without anchor or passage are dropped and counted, as are blank negatives.

    A field of a .jsonl after the second may be a list of negatives. Raises InputError for another kind of file, for
    columns that it does not have, and where SQuAD's fields are named otherwise.
    """
    for origin, cells in _cells(path, columns, notes):
        texts = [text.strip() for text in cells]
        needed = min(2, len(columns))
        if not all(texts[:needed]):
            notes["rows dropped for an empty text"] += 1
            continue
        texts = texts * 2 if len(columns) == 1 else texts
        notes["empty negatives left out"] += len(texts[2:]) - len([text for text in texts[2:] if text])
        yield Group(origin, (*texts[:2], *filter(None, texts[2:])))


def _cells(path: Path, columns: tuple[str, ...], notes: Notes) -> Iterator[tuple[str, list[str]]]:
    """Yield the texts of the columns of each row, the lists of JSON among them one after another."""
    match ending_of(path):
        case ".csv" | ".tsv" as ending:
            quoted = ending == ".csv"
            for origin, row in table(path, (), "," if quoted else "\t", quoted=quoted, notes=notes, needed=columns):
                if None in row.values():
                    raise InputError(f"{origin}: {describe_defect(row, ())}")
                yield origin, [row[name] or "" for name in columns]
        case ".jsonl":
            for origin, record in json_lines(path, notes):
                require_columns(origin, record, columns)
                yield origin, [text for i, name in enumerate(columns) for text in _texts(origin, record, name, i)]
        case ".json":
            if columns not in _OF_SQUAD:
                raise InputError(
                    f"{path}: a .json is read as SQuAD's, with columns=question,context and not "
                    f"{','.join(columns)}: write other data as JSON lines (.jsonl)"
                )
            for question in Squad(True).read(path, Notes()):
                assert isinstance(question, Question)
                answered = bool(question.answers)
                notes["questions dropped whose paragraph does not answer them"] += not answered
                if answered:
                    yield question.origin, [question.question, question.context]
        case _:
            raise InputError(f"{path}: pairs are read from {', '.join(ENDINGS)}: convert it to one of these")


def _texts(origin: str, record: dict[str, Any], name: str, place: int) -> list[str]:
    """Return the texts of a field: one, or from the third column on a list of them."""
    value = record[name]
    if isinstance(value, str) or value is None:
        return [value or ""]
    if place < 2 or not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        allowed = "a text" if place < 2 else "a text or a list of texts"
        raise InputError(f"{origin}: {name!r} is {str(value)[:40]!r}: it must be {allowed}")
    return value


@dataclass(frozen=True)
class TextPairs:
    """Rows of pairs in tokens of a tokenizer.

    data: a file, or a folder with a file train and, if there is one, validation (or dev). validation: a file, instead
    of the folder's. columns: the anchor, its passage, hard negatives; one column pairs each text with itself.
    negatives: the most hard negatives of a row; more are left out and counted. length, anchor_length: the most tokens
    of a passage and of an anchor. prompts: put before anchors and before passages.
    Raises ValueError for columns named twice or none, and for lengths without room for a token.
    """

    data: str
    tokenizer: str
    templates: Templates
    columns: tuple[str, ...] = PAIR
    length: int = 128
    anchor_length: int = 128
    negatives: int = 0
    prompts: tuple[str, str] = ("", "")
    validation: str = ""
    group_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.columns or len({*self.columns}) < len(self.columns) or not all(self.columns):
            raise ValueError(f"columns={','.join(self.columns)}: name the columns of the texts, each once")
        least = specials(self.templates.text) + 1
        if min(self.length, self.anchor_length) < least:
            raise ValueError(
                f"length={self.length}, anchor_length={self.anchor_length}: a text needs {least} tokens or more"
            )
        if self.negatives < 0:
            raise ValueError(f"negatives={self.negatives} must be 0 or more")
        if self.negatives and len(self.columns) < 3:
            raise ValueError(f"negatives={self.negatives}, but columns={','.join(self.columns)} name none: add theirs")

    @property
    def corpus(self) -> str:
        """The file or folder of the data."""
        return self.data

    @property
    def features(self) -> tuple[str, ...]:
        """See Rows.features."""
        return tuple(name for name in self.padding(1) if name not in ("tokens", "mask", "example"))

    def padding(self, n: int, length: int = 0) -> Batch:
        """Return a batch of n rows of padding of the full size, or of the size whose passages have this length."""
        width = length or self.length
        batch: Batch = {name: np.zeros((n, self._anchor_length(width)), np.int32) for name in TOKENS}
        batch |= {f"passage_{name}": np.zeros((n, 1 + self.negatives, width), np.int32) for name in TOKENS}
        batch["texts"] = np.full((n, 2 + self.negatives), -1, np.int32)
        batch["example"] = np.zeros(n, np.uint32)
        return batch

    def _anchor_length(self, length: int) -> int:
        """Return the most tokens of an anchor beside passages of this length: as large a part, in whole eights."""
        return min(self.anchor_length, -(-self.anchor_length * length // self.length // 8) * 8)

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer."""
        return load_tokenizer(self.tokenizer)

    def splits(self) -> tuple[str, ...]:
        """List the splits that the data have."""
        return tuple(split for split in _FILES if self._file(split) is not None)

    def digest(self) -> str:
        """Return the SHA-256 of tokenizer and data, as 64 hexadecimal digits."""
        total = hashlib.sha256(fingerprint(self.load_tokenizer()).encode())
        for split in self.splits():
            with open_given(self._found(split)) as file:
                total.update(split.encode() + hashlib.file_digest(file, "sha256").digest())  # type: ignore[arg-type]
        return total.hexdigest()

    def _file(self, split: str) -> Path | None:
        data = path_of(self.data)
        if split == "validation" and self.validation:
            return path_of(self.validation)
        if not data.is_dir():
            return data if split == "train" else None
        endings = [f"{ending}{packed}" for ending in ENDINGS for packed in ("", *PACKED)]
        names = [f"{name}{ending}" for ending in endings for name in _FILES[split]]
        found = next((name for name in names if (data / name).is_file()), None)
        if found is not None:
            real_path(data, found)
        return None if found is None else data / found

    def _found(self, split: str) -> Path:
        """Return the file of a split. Raises InputError where there is none."""
        path = self._file(split)
        if path is None or not path.is_file():
            where = f"no file {path}" if path is not None else f"no file {split} ({', '.join(ENDINGS)}) in {self.data}"
            raise InputError(f"{where}: check data=FILE or FOLDER and validation=FILE")
        return path

    def open(self, split: str) -> "Paired":
        """Read and encode a split.

        Raises EmptySplit where it has no pair, InputError where no row has a passage that differs from its own.
        """
        notes: Notes = Notes()
        path = self._found(split)
        groups = list(read_groups(path, self.columns, notes))
        if not groups:
            raise EmptySplit(f"{path} has no pair of texts")
        return _encoded(self, groups, self.load_tokenizer(), notes, path)

    def count(self) -> int:
        """Return the number of training rows."""
        return sum(1 for _ in read_groups(self._found("train"), self.columns, Notes()))


@dataclass
class Paired:
    """A source of rows of pairs.

    rows_RT: i32 [R, 2 + negatives], for each row the numbers of its texts, -1 for none. anchors, passages: the tokens
    of text number n, if it is one of these. sizes: of passages in a batch with this row. notes: see ReportsDataIssues.
    """

    spec: TextPairs
    pad: int
    rows_RT: np.ndarray
    anchors: Sequences
    passages: Sequences
    notes: Notes = field(default_factory=Notes)
    group_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        anchor_R = np.diff(self.anchors.bounds)[self.rows_RT[:, 0]]
        lengths = np.append(np.diff(self.passages.bounds), 0)  # the last for -1, no text
        passage_R = lengths[self.rows_RT[:, 1:]].max(1)
        spec, sizes = self.spec, np.array(bucket_lengths(self.spec.length))
        room = np.array([spec._anchor_length(size) for size in sizes])
        fits = np.maximum(np.searchsorted(sizes, passage_R), np.searchsorted(room, anchor_R))
        self.buckets = sizes[fits]

    def __len__(self) -> int:
        return len(self.rows_RT)

    def padding(self, n: int) -> Batch:
        """See Source.padding."""
        return self.rows(np.full(n, -1))

    def rows(self, index: np.ndarray) -> Batch:
        """Assemble rows by number, -1 for padding, in the smallest size that all of them fit."""
        length = int(self.buckets[index[index >= 0]].max(initial=0)) or int(self.buckets.min(initial=16))
        batch = self.spec.padding(len(index), length)
        batch["tokens"][:], batch["passage_tokens"][:] = self.pad, self.pad
        for place, row in enumerate(index):
            if row < 0:
                continue
            batch["example"][place], batch["texts"][place] = row, self.rows_RT[row]
            self._put(batch, "", place, self.anchors, self.rows_RT[row, 0])
            for k, text in enumerate(self.rows_RT[row, 1:]):
                if text >= 0:
                    self._put(batch, "passage_", (place, k), self.passages, text)
        return batch

    def _put(self, batch: Batch, prefix: str, place: Any, texts: Sequences, number: int) -> None:
        begin, end = texts.bounds[number : number + 2]
        size = end - begin
        batch[f"{prefix}tokens"][place][:size] = texts.tokens[begin:end]
        batch[f"{prefix}types"][place][:size] = texts.types[begin:end]
        batch[f"{prefix}mask"][place][:size] = 1


def _encoded(spec: TextPairs, groups: Sequence[Group], tokenizer: Tokenizer, notes: Notes, path: Path) -> Paired:
    """Number the texts, encode each once in each role, and count what was cut or occurs several times."""
    numbers: dict[str, int] = {}
    rows_RT = np.full((len(groups), 2 + spec.negatives), -1, np.int32)
    for row, group in enumerate(groups):
        kept = group.texts[: 2 + spec.negatives]
        notes[f"hard negatives left out, beyond negatives={spec.negatives} of a row"] += len(group.texts) - len(kept)
        rows_RT[row, : len(kept)] = [numbers.setdefault(text, len(numbers)) for text in kept]
    anchors, passages = rows_RT[:, 0], rows_RT[:, 1:]
    if len(np.unique(passages[passages >= 0])) < 2:
        raise InputError(f"{path}: all rows have the same passage, so there is nothing to tell apart: add others")
    _, counts = np.unique(rows_RT[:, 1], return_counts=True)
    if len(spec.columns) > 1:
        notes["passages of several anchors, which are not compared with them as negatives"] += int((counts > 1).sum())
        notes["anchors equal to their own passage"] += int((anchors == rows_RT[:, 1]).sum())
    notes["rows equal to an earlier one"] += len(rows_RT) - len(np.unique(rows_RT, axis=0))
    texts = list(numbers)
    roles = (
        (np.unique(anchors), spec.prompts[0], spec.anchor_length),
        (np.unique(passages[passages >= 0]), spec.prompts[1], spec.length),
    )
    of_anchors, of_passages = (_sequences(spec, texts, *role, tokenizer, notes) for role in roles)
    return Paired(spec, tokenizer.vocabulary.pad, rows_RT, of_anchors, of_passages, +notes)


def _sequences(
    spec: TextPairs, texts: list[str], chosen: np.ndarray, prompt: str, length: int, tokenizer: Tokenizer, notes: Notes
) -> Sequences:
    """Encode the chosen texts with a prompt; the sequences of all others are empty."""
    config = parse_object(tokenizer.files.get(CONFIG, b"{}"), CONFIG)
    from_left = config.get("truncation_side") == "left"
    room = length - specials(spec.templates.text)
    nothing = framed((), tokenizer.vocabulary, [])
    rows = [nothing] * len(texts)
    for number, ids in zip(chosen, tokenizer.ids([prompt + texts[number] for number in chosen]), strict=True):
        notes[f"texts truncated to {length} tokens"] += len(ids) > room
        notes["texts without any token in the vocabulary"] += not ids
        kept = ids[len(ids) - room :] if from_left and len(ids) > room else ids[:room]
        rows[number] = framed(spec.templates.text, tokenizer.vocabulary, kept)
    return Sequences.of(rows)
