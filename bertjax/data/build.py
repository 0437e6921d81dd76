"""Build a corpus from documents: split into sentences, tokenise in parallel processes, write shards in input order.

The main process reads and writes, the workers split and tokenise. The result depends on the input alone, not on the
number of workers. A build that was interrupted resumes after its last finished shard when it is run again.
"""

import dataclasses
import fcntl
import json
import multiprocessing
import os
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertjax.data.corpus import Bad, Document
from bertjax.data.held_out import DocumentKey, Repeats, Split, by_number, by_text, split_of, text_hash
from bertjax.data.records import (
    DOCUMENT,
    PARTIAL,
    SENTENCE,
    WORD,
    Manifest,
    Shard,
    ShardWriter,
    index_name,
    shard_name,
    write_manifest,
)
from bertjax.data.tokenizer import Tokenizer, fingerprint, save_tokenizer, saved_tokenizer
from bertjax.errors import InputError
from bertjax.serialization.bounded_json import LARGE, parse_object
from bertjax.serialization.typed_json import typed
from bertjax.storage import files
from bertjax.storage.lease import leased
from bertjax.storage.paths import in_cloud

_LOCK = "lock"  # the object that locks a build in Cloud Storage
_SAFE_PATH = "PYTHONSAFEPATH"  # as python -P
_BATCH = 2**18  # characters sent to a worker at a time

SplitSentences = Callable[[str], list[str]]


def one_sentence(line: str) -> list[str]:
    """Return the line as its only sentence, for input with one sentence per line."""
    return [line] if line.strip() else []


@dataclass(frozen=True)
class BuildSettings:
    """Settings of a build.

    holdout: fraction of documents in the validation split, drawn by `seed` and what `key` returns. An unfinished build
    keeps the `key` that it began with.
    """

    split_sentences: SplitSentences
    holdout: float = 0.01
    seed: int = 0
    skip_bad: bool = False  # skip and count documents that cannot be read, instead of raising
    workers: int = 0  # processes beside this one, 0 for none
    shard_tokens: int = 2**26
    key: DocumentKey = by_text

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise InputError(f"holdout={self.holdout} must be in [0, 1)")
        if self.workers < 0 or self.shard_tokens < 1:
            raise InputError(f"workers={self.workers} must be at least 0, shard_tokens={self.shard_tokens} at least 1")


class Block(NamedTuple):
    """Tokenised documents: ids, flags, tokens per sentence, sentences per document."""

    tokens: np.ndarray
    flags: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray


class _Batch(NamedTuple):
    documents: list[tuple[Document, str]]  # with their splits
    read: int  # documents read from the input up to the end of this batch, bad ones included
    dropped: Counter[str]


class _Result(NamedTuple):
    blocks: dict[str, Block]
    words: int
    unknown: int
    dropped: Counter[str]


@dataclass
class _Progress:
    """The content of progress.json, from which a build resumes after the last finished shard."""

    settings: dict[str, object]
    read: int = 0
    words: int = 0
    unknown: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    shards: list[dict[str, Shard]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        files.write(folder / "progress.json", json.dumps(asdict(self), indent=1))


def build(
    documents: Iterable[Document | Bad],
    tokenizer: Tokenizer,
    out: Path,
    settings: BuildSettings,
    *,
    identity: object = None,
    report: Callable[[int, int], None] = lambda documents, tokens: None,
) -> Manifest:
    """Build the corpus `out` from `documents`, and return its manifest.

    identity: identifies the input, as JSON types; a build resumes only if it is unchanged. report: called with the
    numbers of documents read and tokens written so far.
    Raises InputError for bad input unless `skip_bad`, if there is nothing to tokenise, and if `out` contains another
    corpus or an unfinished build with other input or settings.
    """
    with _held(out) as (scratch, check):
        return _build(documents, tokenizer, out, scratch, settings, identity, report, check)


@contextmanager
def _held(out: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Create the folder and lock it: two builds in one folder would write the same files.

    Yields the folder in which shards are made: the same, or one on a disk from which they are uploaded one by one,
    because ArrayRecord writes to no object store. And a function that raises InputError where another process has taken
    the lock over.
    """
    if in_cloud(out):
        with (
            leased(out / _LOCK, "build") as lease,
            tempfile.TemporaryDirectory(prefix="bertjax-build-") as scratch,
        ):
            yield Path(scratch), lease.check
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; choose another folder for the corpus") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system when the process ends
        yield out, lambda: None  # the system keeps the lock
    except BlockingIOError as error:
        raise InputError(f"another build is running in {out}: wait for it, or choose another folder") from error
    finally:
        os.close(handle)


def _build(
    documents: Iterable[Document | Bad],
    tokenizer: Tokenizer,
    out: Path,
    scratch: Path,
    settings: BuildSettings,
    identity: object,
    report: Callable[[int, int], None],
    check_lock: Callable[[], None],
) -> Manifest:
    tokenizer_id, settings = fingerprint(tokenizer), _with_begun_key(out, settings)
    progress = _begin(out, tokenizer, {"tokenizer": tokenizer_id, "input": identity} | _described(settings))
    repeats = Repeats()
    batches = _batches(iter(documents), progress.read, settings, repeats)
    writers: dict[str, ShardWriter] = {}
    written = sum(shard.tokens for shards in progress.shards for shard in shards.values())
    read, words, unknown, dropped = progress.read, progress.words, progress.unknown, Counter(progress.dropped)
    dtype = np.uint16 if tokenizer.vocabulary.size <= 2**16 else np.uint32

    def finish_shards() -> None:
        progress.shards.append({split: writer.close() for split, writer in writers.items()})
        check_lock()
        _upload_shards(writers, out)
        check_lock()
        progress.read, progress.words, progress.unknown, progress.dropped = read, words, unknown, dict(dropped)
        progress.save(out)
        writers.clear()

    for batch, result in _tokenized(batches, tokenizer, out / "tokenizer", settings):
        for split, block in result.blocks.items():
            if not len(block.tokens):
                continue
            if split not in writers:
                writers[split] = ShardWriter(scratch, split, len(progress.shards), dtype)
            writers[split].add(*block)
            written += len(block.tokens)
        read, words, unknown = batch.read, words + result.words, unknown + result.unknown
        dropped += batch.dropped + result.dropped
        report(read, written)
        if sum(writer.count for writer in writers.values()) >= settings.shard_tokens:
            finish_shards()
    if writers:
        finish_shards()
    if not written:
        raise InputError(f"no documents to build from: {sum(dropped.values())} were skipped as unreadable or empty")
    check_lock()
    manifest = Manifest(
        tokenizer=tokenizer_id,
        vocabulary=tokenizer.vocabulary,
        splits=_rename_shards(out, progress.shards),
        words=words,
        unknown=unknown,
        dropped=dict(sorted(dropped.items())),
        split_key=settings.key.__name__,
        repeats=repeats.count(),
    )
    check_lock()
    write_manifest(out, manifest)
    (out / "progress.json").unlink()
    return manifest


def _upload_shards(writers: Mapping[str, ShardWriter], out: Path) -> None:
    """Upload finished shards of a corpus in Cloud Storage, and delete them from this machine."""
    if in_cloud(out):
        for path in chain.from_iterable(writer.paths for writer in writers.values()):
            files.upload(path, out / path.name)
            path.unlink()


def _described(settings: BuildSettings) -> dict[str, object]:
    """Describe the settings that determine the result; skip_bad may be set later, for the bad input met then."""
    described = {name: getattr(settings, name) for name in ("holdout", "seed", "shard_tokens")}
    described["split_sentences"] = settings.split_sentences.__name__
    # Builds before version 0.2 did not name theirs.
    return described if settings.key is by_number else described | {"key": settings.key.__name__}


def _with_begun_key(out: Path, settings: BuildSettings) -> BuildSettings:
    """Return the settings with the key that the unfinished build in the folder began with, if there is one."""
    path = out / "progress.json"
    if not path.exists() or not _read_progress(out).shards:
        return settings
    name = _read_progress(out).settings.get("key", by_number.__name__)
    begun = next((key for key in (by_text, by_number, settings.key) if key.__name__ == name), settings.key)
    return dataclasses.replace(settings, key=begun)


def _read_progress(out: Path) -> _Progress:
    path = out / "progress.json"
    try:
        found = parse_object(files.read_inside(out, path.name, LARGE.bytes), path.name, LARGE)
        progress = typed(found, _Progress, path.name)
        typed(found.get("shards", []), list[dict[Split, Any]], "shards")  # which become names of files
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): delete the folder to build it again") from error
    return progress


def _begin(out: Path, tokenizer: Tokenizer, settings: dict[str, object]) -> _Progress:
    """Prepare the folder: resume the same build, start a new one, or raise InputError."""
    if (out / "manifest.json").exists():
        raise InputError(f"{out} already contains a corpus: choose another folder, or delete this one")
    settings = json.loads(json.dumps(settings))
    path = out / "progress.json"
    if path.exists():
        saved = _read_progress(out)
        if saved.settings != settings and saved.shards:
            changed = [key for key in settings if saved.settings.get(key) != settings[key]]
            raise InputError(
                f"{out} contains an unfinished build with another {', '.join(changed)}: resume that one, or "
                "delete the folder"
            )
        if saved.settings == settings:
            return saved
        _clear_unbuilt(out)  # of an attempt that has built nothing, such as one with a mistake in its arguments
    if any(path.name != _LOCK for path in out.iterdir()):
        raise InputError(f"{out} is not empty: choose another folder for the corpus")
    try:
        save_tokenizer(tokenizer, out / "tokenizer")
        progress = _Progress(settings)
        progress.save(out)
    except OSError as error:
        _clear_unbuilt(out)
        raise InputError(f"cannot write to {out}: {error.strerror}") from error
    return progress


def _clear_unbuilt(out: Path) -> None:
    """Delete what an attempt without a finished shard has left, where there is nothing else in the folder."""
    names = [path.name for path in out.iterdir() if path.name != _LOCK]
    if all(name in ("tokenizer", "progress.json") or PARTIAL.fullmatch(name) for name in names):
        for name in sorted(names, key=lambda name: name == "progress.json"):  # the last, as it tells what the rest is
            files.remove_folder(out / name) if name == "tokenizer" else (out / name).unlink()


def _batches(
    documents: Iterator[Document | Bad], done: int, settings: BuildSettings, repeats: Repeats
) -> Iterator[_Batch]:
    """Group documents into batches for the workers, choose the split of each, and skip or refuse bad ones.

    The first `done` documents are in finished shards: they are only added to `repeats`, as all others.
    """
    batch: list[tuple[Document, str]] = []
    dropped: Counter[str] = Counter()
    size, read = 0, done
    for number, document in enumerate(documents, start=1):
        text = 0 if isinstance(document, Bad) else text_hash(document.lines)
        repeats.add(text)
        if number <= done:
            continue
        read = number
        if isinstance(document, Bad):
            if not settings.skip_bad:
                raise InputError(f"{document.origin}: {document.reason} (or skip such input with --skip-bad)")
            dropped[document.reason.partition(":")[0]] += 1
            continue
        batch.append((document, split_of(settings.key(number, text), settings.seed, settings.holdout)))
        size += sum(map(len, document.lines))
        if size >= _BATCH:
            yield _Batch(batch, read, dropped)
            batch, size, dropped = [], 0, Counter()
    yield _Batch(batch, read, dropped)


def _tokenized(
    batches: Iterator[_Batch], tokenizer: Tokenizer, tokenizer_folder: Path, settings: BuildSettings
) -> Iterator[tuple[_Batch, _Result]]:
    """Tokenise batches, in order; at most two per worker are in flight, so that memory stays bounded."""
    if not settings.workers:
        for batch in batches:
            yield batch, tokenize(batch.documents, tokenizer, settings.split_sentences)
        return
    # Else each worker would first import modules from the current folder, such as a pickle.py.
    safe = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = safe or "1"
    pool = ProcessPoolExecutor(
        settings.workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer_folder, settings.split_sentences),
    )
    pending: deque[tuple[_Batch, Future[_Result]]] = deque()
    try:
        for batch in batches:
            pending.append((batch, pool.submit(_work, batch.documents)))
            if len(pending) > 2 * settings.workers:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if not safe:
            del os.environ[_SAFE_PATH]


_worker: tuple[Tokenizer, SplitSentences]  # in a worker process, set when it starts


def _start_worker(tokenizer_folder: Path, split_sentences: SplitSentences) -> None:
    import os
    import signal

    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C and stops the pool
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core, without threads of its own
    _worker = (saved_tokenizer(tokenizer_folder), split_sentences)


def _end_with_parent() -> None:
    """End this worker where the process that started it was killed, and can no longer end it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(documents: list[tuple[Document, str]]) -> _Result:
    return tokenize(documents, *_worker)


def tokenize(documents: list[tuple[Document, str]], tokenizer: Tokenizer, split_sentences: SplitSentences) -> _Result:
    """Split and tokenise documents, each with the name of its split."""
    blocks: dict[str, Block] = {}
    words = unknown = 0
    dropped: Counter[str] = Counter()
    for wanted in sorted({split for _, split in documents}):
        texts: list[str] = []
        owners: list[int] = []  # the document of each sentence
        chosen = [document for document, split in documents if split == wanted]
        for owner, document in enumerate(chosen):
            found = [sentence for line in document.lines for sentence in split_sentences(line)]
            texts += found
            owners += [owner] * len(found)
        encoded = tokenizer.ids(texts)
        lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
        tokens = np.fromiter((index for ids in encoded for index in ids), np.uint32, int(lengths.sum()))
        kept = lengths > 0
        sentences, owners_kept = lengths[kept], np.array(owners, np.int64)[kept]
        per_document = np.bincount(owners_kept, minlength=len(chosen))
        starts = np.cumsum(sentences) - sentences
        flags = tokenizer.word_rule(tokens).astype(np.uint8) * WORD
        flags[starts] = SENTENCE | WORD
        first_sentence = (np.cumsum(per_document) - per_document)[per_document > 0]
        flags[starts[first_sentence]] |= DOCUMENT
        blocks[wanted] = Block(tokens, flags, sentences, per_document[per_document > 0].astype(np.int32))
        words += sum(len(text.split()) for text in texts)
        unknown += int((tokens == tokenizer.vocabulary.unk).sum())
        dropped["a document without tokens"] += int((per_document == 0).sum())
    return _Result(blocks, words, unknown, +dropped)


def _rename_shards(out: Path, shards: list[dict[str, Shard]]) -> dict[str, tuple[Shard, ...]]:
    """Rename the shards to their final names, which include their number; skip those already renamed."""
    splits: dict[str, tuple[Shard, ...]] = {}
    for split in sorted({split for found in shards for split in found}):
        kept = [(number, found[split]) for number, found in enumerate(shards) if split in found]
        for index, (number, _) in enumerate(kept):
            final = {"records": shard_name(split, index, len(kept))}
            final |= {part: index_name(split, index, len(kept), part) for part in ("sentences", "documents")}
            for part, name in final.items():
                partial = out / f"{split}-{number:05d}.{part}.partial"
                if partial.exists():
                    files.move_file(partial, out / name)
        splits[split] = tuple(shard for _, shard in kept)
    return splits
