"""A collection to search: queries, passages, and which of them belong together.

From three files, as BEIR has them (queries.jsonl, corpus.jsonl, qrels/test.tsv), or from a file of pairs, as those of
training: each anchor is a query, and every passage and hard negative of the file is searched.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.errors import InputError
from bertjax.tasks.own import ending_of, own_formats
from bertjax.tasks.reading import Notes, json_lines, lines, require_columns, table
from bertjax.tasks.text_pairs import read_groups
from bertjax.wording import counted

_IDS = ("id", "_id")
_PAIRS = (("query", "passage"), ("query-id", "corpus-id"))


@dataclass(frozen=True)
class Collection:
    """Texts, and of each query the gain of its relevant passages by their index.

    query_ids, passage_ids: their names in the files, or numbers from 1.
    """

    queries: tuple[str, ...]
    passages: tuple[str, ...]
    relevant: tuple[dict[int, float], ...]
    query_ids: tuple[str, ...]
    passage_ids: tuple[str, ...]

    def gains(self, ranked_QK: np.ndarray) -> np.ndarray:
        """Return the gains f64 [Q, K] of passages, given by their index in the order of a search."""
        rows = zip(self.relevant, ranked_QK, strict=True)
        return np.array([[gains.get(int(index), 0.0) for index in ranked] for gains, ranked in rows])

    def ideal(self, k: int) -> np.ndarray:
        """Return the k largest gains of each query f64 [Q, k], from the largest."""
        best = [sorted(gains.values(), reverse=True)[:k] for gains in self.relevant]
        return np.array([[*gains, *[0.0] * (k - len(gains))] for gains in best])


def read_collection(queries: Path, passages: Path, relevant: Path, notes: Notes) -> Collection:
    """Read a collection from files of texts with ids and a file of their ids in pairs, with a degree `score` if given.

    Queries without relevant passage are left out and counted. Raises InputError for ids that occur twice or nowhere.
    """
    asked, searched = (_by_id(path, notes) for path in (queries, passages))
    places = {name: index for index, name in enumerate(searched)}
    gains: dict[str, dict[int, float]] = {name: {} for name in asked}
    for origin, query, passage, score in _judgements(relevant, notes):
        for name, kind, known, file in ((query, "query", gains, queries), (passage, "passage", places, passages)):
            if name not in known:
                raise InputError(f"{origin}: no {kind} {name!r} in {file}: are the files of one collection?")
        if score > 0:
            gains[query][places[passage]] = score
        notes["judgements of degree 0 or less, of passages that are not relevant"] += score <= 0
    kept = [name for name, of_query in gains.items() if of_query]
    notes["queries left out, without relevant passage"] += len(gains) - len(kept)
    if not kept:
        raise InputError(f"{relevant} has no relevant passage for any query of {queries}")
    return Collection(
        tuple(asked[name] for name in kept), tuple(searched.values()), tuple(gains[name] for name in kept),
        tuple(kept), tuple(searched),
    )  # fmt: skip


def collection_of_pairs(path: Path, columns: tuple[str, ...], notes: Notes) -> Collection:
    """Make a collection of a file of pairs. Raises InputError where all have the same passage."""
    queries: dict[str, dict[int, float]] = {}
    passages: dict[str, int] = {}
    for _, (query, positive, *negatives) in read_groups(path, columns, notes):
        index = passages.setdefault(positive, len(passages))
        for text in negatives:
            passages.setdefault(text, len(passages))
        queries.setdefault(query, {})[index] = 1.0
    if len(passages) < 2:
        raise InputError(f"{path} has {len(passages)} different passages: nothing to search among")
    query_ids, passage_ids = (tuple(str(i + 1) for i in range(len(each))) for each in (queries, passages))
    return Collection(tuple(queries), tuple(passages), tuple(queries.values()), query_ids, passage_ids)


def read_passages(path: Path, notes: Notes) -> dict[str, str]:
    """Read texts by id: see `read_collection`; of a .txt each line is a text, named by its number."""
    return _by_id(path, notes)


def _by_id(path: Path, notes: Notes) -> dict[str, str]:
    found: dict[str, str] = {}
    for origin, name, text in _texts(path, notes):
        if not text:
            notes["texts left out, which are empty"] += 1
            continue
        if name in found:
            raise InputError(f"{origin}: another text has the id {name!r}: ids must be unique")
        found[name] = text
    if not found:
        raise InputError(f"{path} has no text")
    return found


def _texts(path: Path, notes: Notes) -> Iterator[tuple[str, str, str]]:
    """Yield (origin, id, text): the title, if there is one, before the text."""
    if ending_of(path) == ".txt":
        yield from ((f"{path}:{number}", str(number), line.strip()) for number, line in lines(path, notes))
        return
    for origin, row in _records(path, notes, ("text",)):
        named = next((name for name in _IDS if name in row), _IDS[0])
        require_columns(origin, row, (named, "text"))
        title, text = (_text(origin, name, row.get(name)) for name in ("title", "text"))
        yield origin, _text(origin, named, row[named]), f"{title} {text}".strip()


def _text(origin: str, name: str, value: Any) -> str:
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise InputError(f"{origin}: {name!r} is {str(value)[:40]!r}: it must be a text")
    return "" if value is None else str(value).strip()


def _judgements(path: Path, notes: Notes) -> Iterator[tuple[str, str, str, float]]:
    """Yield (origin, id of the query, id of the passage, degree)."""
    for origin, row in _records(path, notes):
        names = next((names for names in _PAIRS if {*names} <= row.keys()), _PAIRS[0])
        require_columns(origin, row, names)
        query, passage = (_text(origin, name, row[name]) for name in names)
        score = row.get("score", 1)
        try:
            degree = float(score)
        except (TypeError, ValueError) as error:
            raise InputError(f"{origin}: score is {score!r}: it must be a number") from error
        if not np.isfinite(degree):
            raise InputError(f"{origin}: score is {score!r}: it must be a finite number")
        yield origin, query, passage, degree


def _records(path: Path, notes: Notes, needed: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    match ending_of(path):
        case ".jsonl":
            yield from json_lines(path, notes)
        case ".csv" | ".tsv" as ending:
            quoted = ending == ".csv"
            yield from table(path, (), "," if quoted else "\t", quoted=quoted, notes=notes, needed=needed)
        case _:
            raise InputError(f"{path}: read are .jsonl, .csv and .tsv: convert it to one of these")


def read_scored_pairs(
    path: Path, columns: tuple[str, ...], label: str, notes: Notes
) -> tuple[list[tuple[str, str]], list[float]]:
    """Read pairs of texts and their scores from the columns of a file. Raises InputError for a score that is none."""
    if len(columns) != 2:
        raise InputError(f"columns {', '.join(columns)}: name two, of the texts that are compared")
    pairs, scores = [], []
    formats = own_formats("regress", columns, label, "")
    if ending_of(path) not in formats:
        raise InputError(f"{path}: pairs with scores are read from {', '.join(formats)}: convert it to one of these")
    for example in formats[ending_of(path)].read(path, notes):
        try:
            score = float(example.label)
        except ValueError as error:
            raise InputError(f"{example.origin}: {label}={example.label!r} is not a number") from error
        if not np.isfinite(score):
            raise InputError(f"{example.origin}: {label}={example.label!r} is not a finite number")
        pairs.append(example.texts)
        scores.append(score)
    if len(pairs) < 2:
        raise InputError(f"{path} has {counted(len(pairs), 'pairs')}: a correlation needs two or more")
    return pairs, scores
