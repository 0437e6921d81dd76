"""Rows of instruction pairs: a prompt that is given, and an answer to generate.

A row is [CLS] prompt [SEP] answer [SEP], and then [SEP] to the length of the batch, all of them tokens to predict, so
that a model learns where an answer ends (Nie et al. 2025, LLaDA GUIDELINES.md: EOS as padding counts as answer).
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from bertjax.data.source import Batch, empty_batch
from bertjax.data.tokenizer import Tokenizer, fingerprint, load_tokenizer
from bertjax.errors import EmptySplit, InputError
from bertjax.storage.files import open_given
from bertjax.storage.paths import path_of
from bertjax.tasks.reading import Notes, json_lines, require_columns, text_of
from bertjax.tasks.rows import bucket_lengths

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Instructions:
    """Pairs from JSON lines with the fields `prompt` and `answer`, at most `length` tokens in a row.

    data: a file, for training alone, or a folder with train.jsonl and perhaps validation.jsonl. tokenizer: a file or a
    folder. Pairs whose prompt leaves no room for an answer are dropped, and answers that are too long truncated, with
    no end; both are counted. `given` in a batch is 1 for the prompt and its special tokens, `types` 1 for the answer.
    """

    data: str
    tokenizer: str
    length: int
    features: ClassVar[tuple[str, ...]] = ("types", "given")
    group_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.length < 4:
            raise ValueError(f"rows of length {self.length} have no room for a pair: use at least 4")

    @property
    def corpus(self) -> str:
        """The file or folder of the data."""
        return self.data

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer. Raises InputError where none is named."""
        if not self.tokenizer:
            raise InputError("instruction pairs need a tokenizer, that of the model: give tokenizer=FOLDER")
        return load_tokenizer(self.tokenizer)

    def splits(self) -> tuple[str, ...]:
        """List the splits that the data have."""
        return tuple(split for split in SPLITS if self._file(split) is not None)

    def digest(self) -> str:
        """Return the SHA-256 of tokenizer and data, as 64 hexadecimal digits."""
        total = hashlib.sha256(fingerprint(self.load_tokenizer()).encode())
        for split in self.splits():
            with open_given(self._path(split)) as file:
                while chunk := file.read(2**20):
                    total.update(chunk)
        return total.hexdigest()

    def padding(self, n: int, length: int = 0) -> Batch:
        """Return n rows of padding, of full length unless it is given."""
        return empty_batch(n, length or self.length, 0, self.features)

    def open(self, split: str) -> "Pairs":
        """Read and encode a split. Raises InputError for missing or damaged data, EmptySplit where no pair fits."""
        return self.encode(split, self.load_tokenizer())

    def encode(self, split: str, tokenizer: Tokenizer) -> "Pairs":
        """Read and encode a split by a tokenizer, instead of that of the rows; errors as `open`."""
        v, texts, notes = tokenizer.vocabulary, [], Notes()
        for origin, record in json_lines(self._path(split), notes):
            require_columns(origin, record, ("prompt", "answer"))
            texts.append((text_of(origin, record, "prompt"), text_of(origin, record, "answer")))
        prompts, answers = (tokenizer.ids(list(column)) for column in (zip(*texts, strict=True) if texts else ((), ())))
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            room = self.length - len(prompt) - 2
            if room < 2:
                notes["pairs dropped, whose prompt leaves no room for an answer"] += 1
                continue
            notes[f"answers truncated to rows of {self.length} tokens"] += len(answer) >= room
            ids = np.array([v.cls, *prompt, v.sep, *[*answer, v.sep][:room]], np.int32)
            rows.append((ids, len(prompt) + 2))
        if not rows:
            raise EmptySplit(f"{self._path(split)} has no pair that fits rows of {self.length} tokens: increase length")
        return Pairs(self, v.pad, v.sep, rows, +notes)

    def _file(self, split: str) -> Path | None:
        path = path_of(self.data)
        if not path.is_dir():
            return path if split == "train" else None
        return path / f"{split}.jsonl" if (path / f"{split}.jsonl").exists() else None

    def _path(self, split: str) -> Path:
        path = self._file(split)
        if path is None or not path.exists():
            raise InputError(f"{self.data} has no {split} split: give a .jsonl, or a folder with train.jsonl")
        return path


@dataclass
class Pairs:
    """A source of encoded pairs, in rows as long as the bucket of the longest. rows: ids, and how many are given."""

    spec: Instructions
    pad: int
    end: int
    pairs: list[tuple[np.ndarray, int]]
    notes: Notes = field(default_factory=Notes)
    group_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        lengths = np.array(bucket_lengths(self.spec.length))
        self.buckets = lengths[np.searchsorted(lengths, [len(ids) for ids, _ in self.pairs])]

    def __len__(self) -> int:
        return len(self.pairs)

    def padding(self, n: int) -> Batch:
        """See Source.padding."""
        return self.rows(np.full(n, -1))

    def rows(self, index: np.ndarray) -> Batch:
        """Assemble rows by number, -1 for padding."""
        length = int(self.buckets[index[index >= 0]].max(initial=0)) or int(self.buckets.min())
        batch = self.spec.padding(len(index), length)
        batch["tokens"][:] = self.pad
        for i, row in enumerate(index):
            if row < 0:
                continue
            ids, given = self.pairs[row]
            batch["example"][i] = row
            batch["tokens"][i, : len(ids)], batch["tokens"][i, len(ids) :] = ids, self.end
            batch["mask"][i] = 1
            batch["given"][i, :given], batch["types"][i, given:] = 1, 1
        return batch
