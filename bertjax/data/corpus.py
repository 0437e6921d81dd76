"""Read documents in several text formats, and split them into sentences.

A reader yields the `Document`s of a file, and a `Bad` for every file or record that it cannot read, which the caller
skips or raises. Files may be compressed with gzip (.gz) or zstd (.zst). Memory is bounded: a document of over four
million characters or a million lines is divided, so that a corpus in one long file can have a held-out split too.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bertjax.data.text_files import open_bytes
from bertjax.data.tfds_folders import check_data_set
from bertjax.errors import InputError
from bertjax.serialization.bounded_json import Limits, parse
from bertjax.storage.files import files_below, real_path
from bertjax.storage.paths import in_cloud, path_of

_LONGEST_DOCUMENT = 2**22  # characters after which the next line starts a new document
_MOST_LINES = 2**20  # of a document, likewise
LONGEST_LINE = 10**6  # bytes; a longer line is most likely minified or binary data
_SKIPPED = 2**26  # bytes of a line that is too long; where it is longer still, the rest of the file is not read
_JSON = Limits(2**25, 64, 2**18)  # of a line


class Document(NamedTuple):
    """A document. origin: `file:line` of its beginning. lines: its paragraphs, or its sentences."""

    origin: str
    lines: list[str]


class Bad(NamedTuple):
    """Input that could not be read: its place, and the reason with the fix."""

    origin: str
    reason: str


Reader = Callable[[Path, int], Iterator[Document | Bad]]
"""Reads the documents of one file, given its path and the maximum bytes of a line."""

_Line = tuple[int, str | Bad | None]
"""A line and its number, or None at the end of a document."""


def find_files(inputs: Sequence[str | Path]) -> list[Path | Bad]:
    """List the files of `inputs` in a fixed order; folders are searched recursively, without hidden files.

    What cannot be searched or opened is listed as bad: a folder without permission, a link to nothing. Raises
    InputError for a path that does not exist, for a folder without files, and for one with a link that leads out of it.
    """
    files: list[Path | Bad] = []
    for given in map(path_of, inputs):
        if given.is_dir():
            found = sorted(_below(given))
            if not found:
                raise InputError(f"folder {given} is empty: put the text files there, or give another folder")
            files += [Bad(str(path), reason) if reason else path for path, reason in found]
        elif given.is_file():
            files.append(given)
        else:
            raise InputError(f"no file or folder {given}: check the path")
    return files


def _below(home: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files below a folder, each with the reason why it cannot be read, or ""."""
    if in_cloud(home):
        found = [(path, path.relative_to(home).parts) for path in files_below(home)]
        yield from ((path, "") for path, parts in found if not any(part.startswith(".") for part in parts))
        return
    closed: list[OSError] = []
    for here, folders, names in os.walk(home, onerror=closed.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(here, name).is_symlink()]  # to folders: not followed
        for name in [name for name in names if not name.startswith(".")] + links:
            path = Path(here, name)
            try:
                if path.is_symlink() and not path.exists():
                    yield path, f"a link to {os.readlink(path)}, which is not there: is its disk mounted?"
                    continue
                real_path(home, path.relative_to(home))  # a link to elsewhere in this folder is listed there too
                if name not in links:
                    yield path, "" if path.is_file() else "not a regular file: move it out of the folder"
            except OSError as error:
                yield path, f"cannot be opened: {error.strerror}"
    for each in closed:
        yield Path(each.filename), f"the folder cannot be searched: {each.strerror}"


def plain(path: Path, longest_line: int = LONGEST_LINE) -> Iterator[Document | Bad]:
    """Read a file as one document, each line a paragraph."""
    return _documents(path, chain([(1, "")], _lines(path, longest_line)))


def sentences(path: Path, longest_line: int = LONGEST_LINE) -> Iterator[Document | Bad]:
    """Read BERT's input format: one sentence per line, blank lines between documents."""

    def cut(lines: Iterable[_Line]) -> Iterator[_Line]:
        for number, line in lines:
            yield number, None if isinstance(line, str) and not line.strip() else line

    return _documents(path, cut(_lines(path, longest_line)))


def wikiextractor(path: Path, longest_line: int = LONGEST_LINE) -> Iterator[Document | Bad]:
    """Read WikiExtractor's output: `<doc …>`, the title, paragraphs, `</doc>`."""

    def cut(lines: Iterable[_Line]) -> Iterator[_Line]:
        # One function, despite its branches: each of them is one kind of line of the format.
        inside, stray, number = False, False, 0
        for number, line in lines:
            if isinstance(line, str) and line.startswith("<doc "):
                if inside:
                    yield number, Bad(f"{path}:{number}", "a <doc> begins inside another: the file is damaged")
                if inside or stray:
                    yield number, None
                inside, stray = True, False
                yield number, ""
            elif isinstance(line, str) and line.startswith("</doc>"):
                inside = False
                yield number, None
            elif inside:
                yield number, line
            elif isinstance(line, Bad) or (line and line.strip()):
                stray = True
                outside = Bad(f"{path}:{number}", "text outside <doc> … </doc>: is this WikiExtractor output?")
                yield number, line if isinstance(line, Bad) else outside
        if inside:
            yield number, Bad(f"{path}:{number}", "the last <doc> is never closed: the file is truncated")

    return _documents(path, cut(_lines(path, longest_line)))


def markdown(path: Path, longest_line: int = LONGEST_LINE) -> Iterator[Document | Bad]:
    """Read a Markdown book as one document: heading marks and rules are removed, wrapped lines are joined.

    A paragraph ends at a blank line, a heading, a rule, or where it is longer than `longest_line`. Marks inside the
    text (emphasis, links, lists) stay as they are.
    """

    def clean(lines: Iterable[_Line]) -> Iterator[_Line]:
        yield 1, ""
        paragraph: list[str] = []
        first, size = 0, 0
        for number, line in chain(lines, [(0, "")]):
            text = line if isinstance(line, str) and not re.fullmatch(r"\s*([-*_]\s*){3,}", line) else ""
            heading = re.match(r"#{1,6}\s+", text)
            if paragraph and (not text.strip() or heading or size > longest_line):
                yield first, " ".join(paragraph)
                paragraph, size = [], 0
            if heading:
                yield number, text[heading.end() :]
            elif text.strip():
                first = first if paragraph else number
                paragraph.append(text)
                size += len(text)
            if isinstance(line, Bad):
                yield number, line

    return _documents(path, clean(_lines(path, longest_line)))


def json_lines(field: str) -> Reader:
    """Build a reader of JSON lines, each a document with its text in `field`; lines of the text are paragraphs."""

    def read(path: Path, longest_line: int = LONGEST_LINE) -> Iterator[Document | Bad]:
        def cut(lines: Iterable[_Line]) -> Iterator[_Line]:
            for number, line in lines:
                if isinstance(line, str):
                    if not line.strip():
                        continue
                    text = _text_of(line, field, f"{path}", number)
                    if isinstance(text, str):
                        yield number, ""
                        for paragraph in _split_lines(text):
                            yield number, _checked(paragraph, f"{path}:{number}", longest_line)
                    else:
                        yield number, text
                else:
                    yield number, line
                yield number, None

        return _documents(path, cut(_lines(path, _JSON.bytes)))

    return read


def _text_of(line: str, field: str, path: str, number: int) -> str | Bad:
    """Return the text in a field of a JSON object."""
    try:
        record = parse(line, path, _JSON, first_line=number, constants=True)
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            return Bad(f"{path}:{number}", f"no text in field {field!r}: name it with --text-field")
        text.encode()  # JSON can contain a lone surrogate, which is not text
        return text
    except ValueError as error:
        return Bad(f"{path}:{number}", f"not JSON: {str(error).removeprefix(f'{path}:{number}: ')}")


_LINE_END = re.compile("\r\n|[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")


def _split_lines(text: str) -> Iterator[str]:
    """Yield `text.splitlines()` one by one: all at once they can take eight times the memory of the text."""
    begin = 0
    for end in _LINE_END.finditer(text):
        yield text[begin : end.start()]
        begin = end.end()
    if begin < len(text):
        yield text[begin:]


def open_split(name: str, split: str, data_dir: str | None) -> tuple[Any, Any]:
    """Return the source of a split of a TFDS data set, and its info. ArrayRecord files need no TensorFlow.

    Nothing is downloaded. Raises InputError if it cannot be found or is not prepared, or names code of others.
    """
    check_data_set(name, data_dir)
    import tensorflow_datasets as tfds  # slow to import, and needed by this reader alone

    try:
        source: Any = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        home = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        problem = _unprepared(name, data_dir) or f"no TFDS data set {name!r} under {home}: {reason}"
        place = f", data_dir={data_dir!r}" if data_dir else ""
        raise InputError(
            f"{problem.rstrip('.')}; it is prepared once, as ArrayRecord, where TensorFlow is installed: python -c "
            f"\"import tensorflow_datasets as tfds; tfds.builder({name!r}{place}, file_format='array_record')"
            '.download_and_prepare()"'
        ) from error
    return source, source.dataset_info


def _unprepared(name: str, data_dir: str | None) -> str:
    """Return where a data set that TFDS knows would be, "" where it is prepared, or not known."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name, data_dir=data_dir)
        folder, prepared = builder.data_path, builder.is_prepared()
        kind = str(getattr(builder.info.file_format, "value", ""))
    except Exception:  # noqa: BLE001 whatever TFDS raises, it does not know this data set
        return ""
    if not prepared:
        return f"TFDS data set {name!r} is not prepared in {folder}"
    return "" if kind == "array_record" else f"TFDS data set {name!r} is prepared as {kind} in {folder}"


def tfds(name: str, field: str, data_dir: str | None = None) -> Iterator[Document | Bad]:
    """Read the train split of a TFDS data set by name, each example a document with its text in `field`.

    Works without TensorFlow on data sets prepared as ArrayRecord. Raises InputError if it cannot be found.
    """
    examples, _ = open_split(name, "train", data_dir)
    for index in range(len(examples)):
        origin = f"{name}[{index}]"
        text = examples[index].get(field)
        if not isinstance(text, bytes | str):
            yield Bad(origin, f"no text in field {field!r}: name it with --text-field")
            continue
        try:
            text = text.decode("utf-8") if isinstance(text, bytes) else text
        except UnicodeDecodeError:
            yield Bad(origin, "not UTF-8")
            continue
        lines = ((index, _checked(line, origin, LONGEST_LINE)) for line in _split_lines(text))
        for document in _documents(Path(name), chain([(index, "")], lines)):
            yield document._replace(origin=origin)


def _lines(path: Path, longest: int) -> Iterator[_Line]:
    """Yield the checked lines of a file with their numbers; a line of over `longest` bytes is skipped unread."""
    number = 0
    try:
        with open_bytes(path) as file:
            while raw := file.readline(longest + 2):
                number += 1
                origin = f"{path}:{number}"
                if len(raw) > longest + 1 and not raw.endswith(b"\n"):
                    yield number, Bad(origin, f"a line of over {longest} bytes: split it, or increase --longest-line")
                    if not _skip_line(file):
                        raise OSError(f"line {number:,} has over {_SKIPPED:,} bytes: this is no text file")
                    continue
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    yield number, Bad(origin, f"not UTF-8 (byte {raw[error.start]:#04x}): convert it with iconv")
                    continue
                yield number, _checked(text.rstrip("\r\n"), origin, longest)
    except OSError as error:
        yield number, Bad(f"{path}:{number}", f"the rest cannot be read: {error}")


def _skip_line(file: BinaryIO) -> bool:
    """Read to the end of a line, and return whether it was reached."""
    return any(not part or part.endswith(b"\n") for part in (file.readline(2**16) for _ in range(_SKIPPED // 2**16)))


def _checked(text: str, origin: str, longest: int) -> str | Bad:
    if "\0" in text:
        return Bad(origin, "a NUL byte: is this a text file?")
    if len(text) > longest:
        return Bad(origin, f"a line of over {longest} bytes: split it, or increase --longest-line")
    return text


def _documents(path: Path, lines: Iterable[_Line]) -> Iterator[Document | Bad]:
    """Group lines into documents. A document with a bad line, or without text, is bad.

    A bad line is told at once, since the caller may want no more, and the rest of its document is left out.
    """
    gathered: list[str] = []
    origin, size, count, bad, found = "", 0, 0, False, False
    for number, line in chain(lines, [(0, None)]):
        if isinstance(line, Bad):
            if not bad:
                yield line
            bad, found, origin = True, True, origin or line.origin
            gathered = []
        elif line is not None:
            origin = origin or f"{path}:{number}"
            gathered += [] if bad else [line]
            size, count = size + len(line), count + 1
        if origin and (line is None or size > _LONGEST_DOCUMENT or count > _MOST_LINES):
            if not bad:
                yield _with_text(Document(origin, gathered))
            origin, gathered, size, count, bad, found = "", [], 0, 0, False, True
    if not found:
        yield Bad(str(path), "no document in the file")


def _with_text(document: Document) -> Document | Bad:
    has_text = any(line.strip() for line in document.lines)
    return document if has_text else Bad(document.origin, "a document without text")


_BOUNDARY = re.compile(
    r"""(?<=[.!?…])["'”’»)\]]*(?=\s+["'“‘«(\[]*(?:[A-Z0-9]|[^\x00-\x7f]))|(?<=[。！？])["”’」』）]*(?!["”’」』）])"""
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'“‘])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|Sr|Jr|Gen|Col|Lt|Capt|Sgt|Rev|Hon|Gov|Sen|Rep|vs|etc|e\.g|i\.e|"
    r"cf|al|approx|ca|No|Nos|Vol|Fig|Figs|Eq|Sec|Ch|pp|p|ed|eds|Inc|Ltd|Co|Corp|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|"
    r"Nov|Dec|[A-Z](?:\.[A-Z])+)\.$"
)


def split_sentences(paragraph: str) -> list[str]:
    """Split a paragraph after sentence ends, by a heuristic for European scripts and CJK full stops.

    A stop ends a sentence where white space and then a capital, a digit or an opening quote follow, unless the word
    before it is a known abbreviation or an initial. Every sentence but the first keeps the white space before it, so
    that joining the pieces gives the paragraph back.
    """
    pieces, begin = [], 0
    for match in _BOUNDARY.finditer(paragraph):
        end = match.end()
        before = paragraph[max(begin, end - 12) : match.start()]
        if before.endswith(".") and _ABBREVIATION.search(before):
            continue
        if paragraph[begin:end].strip():
            pieces.append(paragraph[begin:end])
            begin = end
    if paragraph[begin:].strip():
        pieces.append(paragraph[begin:])
    return pieces
