"""The format of a corpus on disk: a flat token stream in ArrayRecord shards, an index of sentences, a manifest.

    corpus/
      manifest.json                                     counts, tokenizer fingerprint, SHA-256 of every file
      tokenizer/                                        the files of the tokenizer
      corpus-train.array_record-00000-of-00004          records of CHUNK tokens: `tokens` u16 or u32, `flags` u8
      corpus-train-00000-of-00004.sentences.npy         i32, tokens in each sentence
      corpus-train-00000-of-00004.documents.npy         i32, sentences in each document
      dataset_info.json, features.json                  so that TFDS reads the folder too

A record is a `tf.train.Example` of two byte strings. Its wire format is written and read here by hand, some ten lines,
so that neither TensorFlow nor TFDS is imported to train. ArrayRecord hashes every record, so a flipped bit is an error.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from bertjax.data.held_out import Split
from bertjax.data.tokenizer import Tokenizer, Vocabulary, saved_tokenizer
from bertjax.data.tokenizer_bounds import MOST_IDS
from bertjax.errors import InputError
from bertjax.serialization.bounded_json import LARGE, parse_object
from bertjax.serialization.typed_json import typed
from bertjax.storage import files
from bertjax.storage.paths import in_cloud, path_of, storage_problem
from bertjax.wording import counted

FORMAT = 1
CHUNK = 1024  # tokens a record: a row of 128 or 512 touches one or two
DOCUMENT, SENTENCE, WORD = 1, 2, 4  # flags: this token begins one


@dataclass(frozen=True)
class Shard:
    """Counts of one shard; sha256: of the record file and the two index files."""

    tokens: int
    sentences: int
    documents: int
    sha256: tuple[str, str, str]

    def __post_init__(self) -> None:
        if min(self.tokens, self.sentences, self.documents) < 0:
            raise ValueError(f"{self.tokens} tokens, {self.sentences} sentences and {self.documents} documents")


@dataclass(frozen=True)
class Manifest:
    """The description of a corpus.

    tokenizer: its fingerprint. splits: split -> shards. words, unknown: of all splits, for rates. dropped: reason ->
    how often the reader skipped something for it. split_key: the function of `held_out.py` whose key drew the splits.
    repeats: documents whose text is that of an earlier one, None where they were not counted. A corpus of by_number is
    written as before version 0.2, without these two.
    """

    tokenizer: str
    vocabulary: Vocabulary
    splits: dict[str, tuple[Shard, ...]]
    words: int
    unknown: int
    dropped: dict[str, int]
    split_key: str = "by_number"
    repeats: int | None = None

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The dtype of token ids on disk."""
        return np.uint16 if self.vocabulary.size <= 2**16 else np.uint32

    def total(self, count: str) -> int:
        """Return the total of a count over the shards of all splits: tokens, sentences or documents."""
        return sum(getattr(shard, count) for shards in self.splits.values() for shard in shards)


PARTIAL = re.compile(r"(train|validation)-\d{5}\.(records|sentences|documents)\.partial", re.ASCII)
"""Matches the names of the files of a shard while it is built."""


def shard_name(split: str, index: int, count: int) -> str:
    """Return the name of a record file, as TFDS names it."""
    return f"corpus-{split}.array_record-{index:05d}-of-{count:05d}"


def index_name(split: str, index: int, count: int, unit: str) -> str:
    """Return the name of an index file; `unit` is sentences or documents."""
    return f"corpus-{split}-{index:05d}-of-{count:05d}.{unit}.npy"


def _size(folder: Path, split: str, count: int) -> int:
    return sum(files.version_of(folder / shard_name(split, index, count))[0] for index in range(count))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, last of all files: a folder without it is not a corpus."""
    splits = {
        split: {
            "name": split,
            "shardLengths": [str(-(-shard.tokens // CHUNK)) for shard in shards],
            "numBytes": str(_size(folder, split, len(shards))),
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
        for split, shards in manifest.splits.items()
    }
    info = {"name": "corpus", "version": "1.0.0", "fileFormat": "array_record", "splits": list(splits.values())}
    files.write(folder / "dataset_info.json", json.dumps(info))
    files.write(folder / "features.json", json.dumps(_tfds_features(manifest)))
    described = {"format": FORMAT} | asdict(manifest) | {"vocabulary": manifest.vocabulary._asdict()}
    if manifest.split_key == "by_number":
        del described["split_key"], described["repeats"]
    described["totals"] = {count: manifest.total(count) for count in ("tokens", "sentences", "documents")}
    files.write(folder / "manifest.json", json.dumps(described, indent=1))


def _tfds_features(manifest: Manifest) -> dict[str, Any]:
    def tensor(dtype: str) -> dict[str, Any]:
        name = "tensorflow_datasets.core.features.tensor_feature.Tensor"
        return {
            "pythonClassName": name,
            "tensor": {"shape": {"dimensions": ["-1"]}, "dtype": dtype, "encoding": "bytes"},
        }

    return {
        "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "content": {"features": {"tokens": tensor(np.dtype(manifest.dtype).name), "flags": tensor("uint8")}},
        "proto_cls": "tensorflow_datasets.FeaturesDict",
    }


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a corpus. Raises InputError if the folder is not a corpus, or of another format."""
    if not str(folder):
        raise InputError("no corpus given: build one with `bertjax data build`, then pass data=FOLDER")
    path = path_of(folder) / "manifest.json"
    if not path.is_file():
        unfinished = (path.parent / "progress.json").is_file()
        hint = "its build was interrupted: run it again" if unfinished else "build one with `bertjax data build`"
        raise InputError(f"{folder} is not a corpus (no manifest.json): {hint}")
    try:
        described = _read_manifest(path)
        if described["format"] != FORMAT:
            raise InputError(
                f"{path} has format {described['format']}, but this version reads {FORMAT}: build it again"
            )
        del described["format"]
        described.pop("totals", None)  # for people
        manifest = typed(described, Manifest, "it")
        typed(described["splits"], dict[Split, Any], "splits")  # which become names of files
        _check_counts(manifest)
        return manifest
    except (ValueError, KeyError) as error:
        if isinstance(error, InputError) and str(path) in str(error):
            raise
        raise InputError(f"{path} is damaged ({error}): build the corpus again") from error


def _check_counts(manifest: Manifest) -> None:
    """Raise ValueError for counts that no corpus has."""
    v = manifest.vocabulary
    if not 0 < v.size <= MOST_IDS or not all(0 <= index < v.size for index in v[1:]):
        raise ValueError(f"its vocabulary is {v}")
    shards = [shard for found in manifest.splits.values() for shard in found]
    counts = [count for shard in shards for count in (shard.tokens, shard.sentences, shard.documents)]
    if min((manifest.words, manifest.unknown, *counts)) < 0:
        raise ValueError("it has negative counts")


def _read_manifest(path: Path) -> dict[str, Any]:
    content = files.read_inside(path.parent, path.name, LARGE.bytes)
    try:
        return parse_object(content, f"{path}", LARGE)
    except InputError as error:
        raise InputError(f"{path} is damaged: build the corpus again ({error})") from error


def corpus_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer that a corpus was built with."""
    return saved_tokenizer(path_of(folder) / "tokenizer")


def manifest_digest(folder: str | Path) -> str:
    """Return the SHA-256 of a corpus's manifest, which contains those of all its files."""
    return hashlib.sha256(files.read_inside(path_of(folder), "manifest.json", LARGE.bytes)).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, read in chunks."""
    with files.open_inside(path.parent, path.name) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


class ShardWriter:
    """A writer of one shard, with one record and the index in memory: append documents, close, read its counts."""

    def __init__(self, folder: Path, split: str, index: int, dtype: Any) -> None:
        self.paths = [folder / f"{split}-{index:05d}.{part}.partial" for part in ("records", "sentences", "documents")]
        self.paths[0].unlink(missing_ok=True)  # of a killed build, or a link, which the library would follow
        self._writer = ArrayRecordWriter(str(self.paths[0]), "group_size:1")
        self._dtype = dtype
        self._tokens = np.zeros(0, dtype)
        self._flags = np.zeros(0, np.uint8)
        self._sentences: list[np.ndarray] = []
        self._documents: list[np.ndarray] = []
        self.count = 0

    def add(self, tokens: np.ndarray, flags: np.ndarray, sentences: np.ndarray, documents: np.ndarray) -> None:
        """Append whole documents: their tokens and flags, tokens per sentence, sentences per document."""
        self._sentences.append(sentences)
        self._documents.append(documents)
        self.count += len(tokens)
        self._tokens = np.concatenate([self._tokens, tokens.astype(self._dtype)])
        self._flags = np.concatenate([self._flags, flags])
        whole = len(self._tokens) - len(self._tokens) % CHUNK
        self._write(whole)

    def _write(self, end: int) -> None:
        for begin in range(0, end, CHUNK):
            part = slice(begin, min(begin + CHUNK, end))
            self._writer.write(encode_record(self._tokens[part], self._flags[part]))
        self._tokens, self._flags = self._tokens[end:], self._flags[end:]

    def close(self) -> Shard:
        """Finish the files, still under their partial names."""
        self._write(len(self._tokens))
        self._writer.close()
        sentences = np.concatenate([np.zeros(0, np.int32), *self._sentences])
        documents = np.concatenate([np.zeros(0, np.int32), *self._documents])
        for path, array in zip(self.paths[1:], (sentences, documents), strict=True):
            with files.writing(path) as file:
                np.save(file, array)
        records_digest, sentences_digest, documents_digest = map(file_digest, self.paths)
        digests = records_digest, sentences_digest, documents_digest
        return Shard(self.count, len(sentences), len(documents), digests)


_LEAST = 40  # bytes of a record in a file: the header of its chunk in Riegeli's format


class TokenReader:
    """A reader of slices of the token stream of one shard, whose ids are all below `ids`.

    Raises InputError if the file is damaged.
    """

    def __init__(self, path: Path, dtype: Any, ids: int = 2**32) -> None:
        self._path, self._dtype, self._ids = path, dtype, ids
        try:
            if not files.real_path(path.parent, path.name).is_file():  # a FIFO would wait for ever
                raise InputError(f"{path} is not a regular file: build the corpus again")
            # These options are ArrayRecord's own advice for random access.
            self._reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
            self.records = int(self._reader.num_records())  # as the file says
            if self.records * _LEAST > files.version_of(path)[0]:
                raise ValueError(f"{counted(self.records, 'records')} in a file of this size")
        except InputError:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            raise self._problem(error, f"{path} cannot be read: build the corpus again") from error

    def _problem(self, error: Exception, otherwise: str) -> InputError:
        return (storage_problem(self._path, error) if in_cloud(self._path) else None) or InputError(otherwise)

    def read(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and flags [length] from position `start`."""
        first, last = start // CHUNK, (start + length - 1) // CHUNK
        try:
            found = [self._decoded(record) for record in self._reader.read(list(range(first, last + 1)))]
            if any(len(tokens) != CHUNK for tokens, _ in found[: self.records - 1 - first]):
                raise ValueError("a record within the shard is not full")
        except (RuntimeError, ValueError, IndexError) as error:
            message = f"{self._path} is damaged around token {start}: build the corpus again"
            raise self._problem(error, message) from error
        tokens = np.concatenate([np.zeros(0, self._dtype), *(tokens for tokens, _ in found)])
        flags = np.concatenate([np.zeros(0, np.uint8), *(flags for _, flags in found)])
        begin = start - first * CHUNK
        if begin + length > len(tokens):
            raise InputError(f"{self._path} ends before token {start + length}: build the corpus again")
        return tokens[begin : begin + length], flags[begin : begin + length]

    def _decoded(self, record: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and flags of a record. Raises ValueError unless these are as many, at most CHUNK, and known."""
        of_tokens, of_flags = decode_record(record)
        tokens, flags = np.frombuffer(of_tokens, self._dtype), np.frombuffer(of_flags, np.uint8)
        if len(tokens) != len(flags) or len(tokens) > CHUNK:
            raise ValueError(f"a record has {counted(len(tokens), 'tokens')} and {counted(len(flags), 'flags')}")
        if len(tokens) and int(tokens.max()) >= self._ids:  # a lookup would take another one's vector, without a word
            raise ValueError(f"a record has the id {tokens.max()}, but the vocabulary has {self._ids}")
        return tokens, flags


def encode_record(tokens: np.ndarray, flags: np.ndarray) -> bytes:
    """Serialise a tf.train.Example {tokens: bytes, flags: bytes}."""

    def entry(name: str, value: bytes) -> bytes:
        # Features.feature is a map: an entry is {1: key, 2: Feature {1: BytesList {1: value}}}.
        return _field(1, _field(1, name.encode()) + _field(2, _field(1, _field(1, value))))

    return _field(1, entry("tokens", tokens.tobytes()) + entry("flags", flags.tobytes()))


def decode_record(record: bytes) -> tuple[bytes, bytes]:
    """Parse the output of `encode_record`: the bytes of tokens and of flags. Raises ValueError for anything else."""
    (entries,) = _fields(record)
    found = {}
    for entry in _fields(entries):
        name, feature = _fields(entry)
        ((value,),) = (_fields(bytes_list) for bytes_list in _fields(feature))
        found[name] = value
    if found.keys() != {b"tokens", b"flags"}:
        raise ValueError("not a record of tokens and flags")
    return found[b"tokens"], found[b"flags"]


def _field(number: int, payload: bytes) -> bytes:
    """Write a length-delimited protobuf field."""
    length, size = b"", len(payload)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


def _fields(message: bytes) -> list[bytes]:
    """Split a message into the payloads of its fields, all length-delimited. Raises ValueError where it ends early."""
    payloads, position = [], 0
    while position < len(message):
        size, shift, position = 0, 0, position + 1
        while position < len(message) and message[position] > 127 and shift < _LONGEST_SIZE:
            size |= (message[position] & 127) << shift
            shift, position = shift + 7, position + 1
        if position == len(message) or shift == _LONGEST_SIZE:
            raise ValueError("a field has no size")
        size |= message[position] << shift
        payloads.append(message[position + 1 : position + 1 + size])
        position += 1 + size
    if position > len(message):
        raise ValueError("the last field ends after its record")
    return payloads


_LONGEST_SIZE = 63  # bits of a size in protobuf
