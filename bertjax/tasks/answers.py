"""Decode answers to questions from the logits of windows of their contexts: google-research/bert run_squad.py.

Where we deviate: the best starts and ends are searched inside the context only, not filtered afterwards; an answer's
text is taken from the context by the offsets of its pieces, not recovered by aligning characters; a question without a
candidate has no answer, instead of the word "empty".
"""

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertjax.storage import files
from bertjax.tasks.examples import Question
from bertjax.tasks.rows import Encoded


class WindowScores(NamedTuple):
    """Candidates of one window: spans of pieces starts .. ends [n], their scores [n], and the scores of no answer."""

    starts: np.ndarray
    ends: np.ndarray
    start_scores: np.ndarray
    end_scores: np.ndarray
    null_start: float
    null_end: float


def window_scores(encoded: Encoded, row: int, start_L: np.ndarray, end_L: np.ndarray, *, n_best: int) -> WindowScores:
    """Combine the `n_best` starts and ends of a row's context; no answer has both at <cls>.

    start_L, end_L: logits of the row, padded to any length.
    """
    window, left = encoded.windows[row], encoded.spec.templates.left
    size = int(np.diff(encoded.sequences.bounds[row : row + 2])[0])
    first = window.at + (len(start_L) - size if left else 0)
    cls = len(start_L) - 1 if left else 0
    inside_start, inside_end = (np.asarray(x, np.float64)[first : first + window.size] for x in (start_L, end_L))
    best_starts, best_ends = (np.argsort(-x, kind="stable")[:n_best] for x in (inside_start, inside_end))
    starts, ends = (x.reshape(-1) for x in np.meshgrid(best_starts, best_ends, indexing="ij"))
    kept = ends >= starts
    starts, ends = starts[kept], ends[kept]
    null = float(start_L[cls]), float(end_L[cls])
    return WindowScores(starts, ends, inside_start[starts], inside_end[ends], *null)


class Guess(NamedTuple):
    """An answer: characters start .. end of the context, empty for no answer, with the scores of start and end."""

    text: str
    start: int
    end: int
    start_score: float
    end_score: float
    probability: float


class Answered(NamedTuple):
    """The answer to a question, and the n best, best first. null_odds: score of no answer minus that of the best."""

    id: str
    answer: Guess
    best: tuple[Guess, ...]
    null_odds: float


def answer_questions(
    encoded: Encoded, scores: Mapping[int, WindowScores], *, n_best: int = 20, longest: int = 30, threshold: float = 0.0
) -> list[Answered]:
    """Return the answer of every question, given the scores of all its rows.

    A piece counts only in the window where it has the most context around it. Answers have at most `longest` pieces.
    If a task has unanswerable questions, no answer is predicted if its score exceeds the best by more than `threshold`;
    its score is the lowest of all windows. Raises ValueError if the scores of a row are missing.
    """
    missing = next((row for row in range(len(encoded)) if row not in scores), None)
    if missing is not None:
        raise ValueError(f"row {missing} of {len(encoded)} has no scores: those of all windows are needed")
    bounds = np.searchsorted(encoded.example_of_row, np.arange(len(encoded.examples) + 1))
    answered = []
    for number, question in enumerate(encoded.examples):
        assert isinstance(question, Question)
        rows = range(int(bounds[number]), int(bounds[number + 1]))
        each = [scores[row] for row in rows]
        null = min(each, key=lambda window: window.null_start + window.null_end)
        none = Guess("", 0, 0, null.null_start, null.null_end, 0.0)
        guesses = _guesses(encoded, question.context, rows, each, longest)
        if encoded.spec.task.unanswerable:
            answered.append(_answered_or_not(question.id, guesses, none, n_best, threshold))
        else:
            best = _softmax(_distinct(guesses, n_best) or [none])
            answered.append(Answered(question.id, best[0], best, 0.0))
    return answered


def _guesses(
    encoded: Encoded, context: str, rows: range, scores: Sequence[WindowScores], longest: int
) -> Iterator[Guess]:
    """Yield the candidates of a question, best first."""
    windows = [encoded.windows[row] for row in rows]
    offsets = encoded.contexts[encoded.example_of_row[rows[0]]].offsets
    owner = widest_context([(window.start, window.size) for window in windows], len(offsets))
    firsts, lasts, places = (
        np.concatenate(column)
        for column in zip(
            *(
                (window.start + each.starts, window.start + each.ends, np.full(len(each.starts), place))
                for place, (window, each) in enumerate(zip(windows, scores, strict=True))
            ),
            strict=True,
        )
    )
    start_scores, end_scores = (np.concatenate([each[part] for each in scores]) for part in (2, 3))
    kept = np.flatnonzero((owner[firsts] == places) & (lasts - firsts < longest))
    for index in kept[np.argsort(-(start_scores + end_scores)[kept], kind="stable")]:
        begin, end = int(offsets[firsts[index], 0]), int(offsets[lasts[index], 1])
        text = context[begin:end]
        begin += len(text) - len(text.lstrip())
        if text := text.strip():
            yield Guess(text, begin, begin + len(text), float(start_scores[index]), float(end_scores[index]), 0.0)


def widest_context(windows: Sequence[tuple[int, int]], size: int) -> np.ndarray:
    """Return for each of `size` pieces the index of the window (start, size) with its maximum context, first if equal.

    The context is the minimum of the pieces to its left and right in the window, plus 0.01 of the window's size.
    """
    pieces = np.arange(size)
    width = np.full((len(windows), size), -np.inf)
    for place, (start, held) in enumerate(windows):
        inside = slice(start, start + held)
        width[place, inside] = np.minimum(pieces[inside] - start, start + held - 1 - pieces[inside]) + 0.01 * held
    return width.argmax(0)


def _distinct(guesses: Iterable[Guess], n_best: int) -> list[Guess]:
    """Return the first `n_best` guesses with different texts."""
    best: dict[str, Guess] = {}
    for guess in guesses:
        if len(best) == n_best:
            break
        best.setdefault(guess.text, guess)
    return list(best.values())


def _softmax(guesses: Sequence[Guess]) -> tuple[Guess, ...]:
    """Set the probabilities of guesses: the softmax of their scores."""
    if not guesses:
        return ()
    totals = np.array([guess.start_score + guess.end_score for guess in guesses])
    shares = np.exp(totals - totals.max())
    return tuple(x._replace(probability=float(p)) for x, p in zip(guesses, shares / shares.sum(), strict=True))


def _answered_or_not(id: str, guesses: Iterable[Guess], none: Guess, n_best: int, threshold: float) -> Answered:
    """Answer a question that may have no answer, which is listed by its rank, or last."""
    null = none.start_score + none.end_score
    ranked = heapq.merge(guesses, [none], key=lambda guess: -(guess.start_score + guess.end_score))
    listed = _distinct(ranked, n_best)
    if all(guess.text for guess in listed):
        listed.append(none)
    best = _softmax(listed)
    some = next((guess for guess in best if guess.text), None)
    odds = null - (some.start_score + some.end_score if some else 0.0)
    answer = some if some is not None and odds <= threshold else next(guess for guess in best if not guess.text)
    return Answered(id, answer, best, odds)


def decided(answered: Answered, odds: float, threshold: float) -> Answered:
    """Decide by a classifier whether a question has an answer: `odds` is the logit of no answer.

    The remaining probability is distributed over the spans by the softmax of their scores.
    """
    found = [guess for guess in answered.best if guess.text]
    absent = 1 / (1 + math.exp(-odds)) if found else 1.0
    spans = [guess._replace(probability=guess.probability * (1 - absent)) for guess in _softmax(found)]
    none = next(guess for guess in answered.best if not guess.text)._replace(probability=absent)
    best = sorted([*spans, none], key=lambda guess: -guess.probability)
    return Answered(answered.id, spans[0] if spans and odds <= threshold else none, tuple(best), odds)


def write_answers(folder: Path, answered: Sequence[Answered], *, unanswerable: bool) -> None:
    """Write predictions.json, nbest_predictions.json and, for unanswerable questions, null_odds.json."""
    folder.mkdir(parents=True, exist_ok=True)
    nbest = {
        each.id: [
            {"text": x.text, "probability": x.probability, "start_logit": x.start_score, "end_logit": x.end_score}
            for x in each.best
        ]
        for each in answered
    }
    written: dict[str, Any] = {
        "predictions": {each.id: each.answer.text for each in answered},
        "nbest_predictions": nbest,
    }
    if unanswerable:
        written["null_odds"] = {each.id: each.null_odds for each in answered}
    for name, content in written.items():
        files.write(folder / f"{name}.json", json.dumps(content, indent=4, ensure_ascii=False) + "\n")
