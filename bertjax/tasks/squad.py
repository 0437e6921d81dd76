"""Score answers as SQuAD's official scripts do, evaluate-v1.1.py and evaluate-v2.0.py (Rajpurkar et al. 2016 and 2018).

This needs no model and no JAX. Answers are decoded from logits in bertjax/tasks/answers.py.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.errors import InputError
from bertjax.serialization.bounded_json import Limits, parse_object
from bertjax.storage.files import read_given


def normalised(text: str) -> list[str]:
    """Return the words of an answer as both scripts compare them: lowercase, without punctuation and articles."""
    bare = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


_PUNCTUATION = set(string.punctuation)


def overlap(prediction: str, gold: str) -> float:
    """Return the F1 of the words of two answers; if one has no words, 1 if neither has, else 0."""
    ours, theirs = normalised(prediction), normalised(gold)
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


_LIMITS = Limits(2**26, 64, 2**22)  # of gold answers and predictions; SQuAD's largest file has 42 million bytes


class Gold(NamedTuple):
    """Gold answers by question id, [] for an unanswerable one. unanswerable: whether the data have such questions."""

    answers: dict[str, list[str]]
    unanswerable: bool


def read_gold(path: Path) -> Gold:
    """Read the gold answers of a SQuAD file. Raises InputError if it is not one."""
    content = _read_json(path)
    answers: dict[str, list[str]] = {}
    unanswerable = False
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for entry in paragraph["qas"]:
                    unanswerable |= "is_impossible" in entry or not entry["answers"]
                    # As text, like the keys of predictions, whatever their type in the data.
                    name, texts = str(entry["id"]), [answer["text"] for answer in entry["answers"]]
                    if name in answers:
                        raise InputError(
                            f"{path}: two questions have the id {name}: predictions cannot tell them apart"
                        )
                    if not all(isinstance(text, str) for text in texts):
                        raise InputError(f"{path}: question {name}: an answer is not a text")
                    answers[name] = texts
    except (TypeError, KeyError) as error:
        raise InputError(f"{path} is not a SQuAD file with answers: {type(error).__name__} {error}") from error
    if not answers:
        raise InputError(f"{path} has no question")
    return Gold(answers, unanswerable)


def read_answers(path: Path, kind: type = str) -> dict[str, Any]:
    """Read a JSON object of texts, or of numbers, by id. Raises InputError for anything else."""
    content = _read_json(path)
    wanted = (int, float) if kind is float else (str,)
    bad = next((key for key, value in content.items() if not isinstance(value, wanted) or value != value), None)
    if bad is not None:
        raise InputError(f"{path}: {bad!r} has {content[bad]!r:.60}, not a {'number' if kind is float else 'text'}")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    return parse_object(read_given(path, _LIMITS.bytes), f"{path}", _LIMITS, constants=True)


def score_predictions(
    gold: Gold, predictions: Mapping[str, str], null_odds: Mapping[str, float] | None = None, *, threshold: float = 1.0
) -> dict[str, float]:
    """Return `exact` and `f1` in percent over all questions; a missing prediction scores 0.

    For version 2 also over questions with an answer (HasAns_) and without (NoAns_). With `null_odds`, an answer whose
    odds exceed `threshold` counts as none, by default as in the official script, and best_exact and best_f1 are those
    at the best threshold. Raises InputError if odds lack a question.
    """
    # One function, despite its branches: the official scripts' options, in their order.
    known = gold.answers.keys() & predictions.keys()
    exact, f1 = ({id: score(gold, id, predictions.get(id)) for id in gold.answers} for score in (_exact, _f1))
    result: dict[str, float] = {}
    raw = exact, f1
    if null_odds is not None:
        lacking = next((id for id in gold.answers if id not in null_odds), None)
        if lacking is not None:
            raise InputError(f"the odds of no answer lack question {lacking}: are they of other predictions?")
        exact, f1 = (
            {id: float(not _has(gold, id)) if null_odds[id] > threshold else score for id, score in scores.items()}
            for scores in raw
        )
    result |= _means("", list(gold.answers), exact, f1)
    if gold.unanswerable:
        for name, wanted in (("HasAns_", True), ("NoAns_", False)):
            ids = [id for id in gold.answers if _has(gold, id) == wanted]
            result |= _means(name, ids, exact, f1) if ids else {}
    if null_odds is not None:
        for name, scores in zip(("exact", "f1"), raw, strict=True):
            best, at = _best_threshold(gold, predictions, scores, null_odds)
            result |= {f"best_{name}": best, f"best_{name}_thresh": at}
    return result | {"missing_ids": len(gold.answers) - len(known), "unknown_ids": len(predictions.keys() - known)}


def _has(gold: Gold, id: str) -> bool:
    return bool(gold.answers[id])


def _texts(gold: Gold, id: str) -> list[str]:
    """Return the answers that count; version 2 drops those of articles and punctuation only, and has [''] for none."""
    texts = gold.answers[id]
    return [text for text in texts if normalised(text)] or [""] if gold.unanswerable else texts


def _exact(gold: Gold, id: str, prediction: str | None) -> float:
    if prediction is None:
        return 0.0
    return max((float(normalised(prediction) == normalised(text)) for text in _texts(gold, id)), default=0.0)


def _f1(gold: Gold, id: str, prediction: str | None) -> float:
    if prediction is None:
        return 0.0
    if not gold.unanswerable and not normalised(prediction):
        return 0.0  # in evaluate-v1.1.py two empty answers do not agree
    return max((overlap(prediction, text) for text in _texts(gold, id)), default=0.0)


def _means(name: str, ids: Sequence[str], exact: Mapping[str, float], f1: Mapping[str, float]) -> dict[str, float]:
    """Return means in the order of the data, as the scripts compute them, equal to the last digit.

    Scores are added one after another, as `sum` did until Python 3.11; since 3.12 it carries the rounding errors along.
    """
    means = {
        key: 100.0 * reduce(add, (scores[id] for id in ids)) / len(ids)
        for key, scores in (("exact", exact), ("f1", f1))
    }
    return {f"{name}{key}": value for key, value in {**means, "total": len(ids)}.items()}


def _best_threshold(
    gold: Gold, predictions: Mapping[str, str], scores: Mapping[str, float], null_odds: Mapping[str, float]
) -> tuple[float, float]:
    """Return the best mean score and its threshold; predictions with odds above it count as no answer."""
    current = best = float(sum(not _has(gold, id) for id in gold.answers))
    at = 0.0
    for id in sorted((id for id in null_odds if id in scores), key=lambda id: null_odds[id]):
        if _has(gold, id):
            current += scores[id]
        elif predictions.get(id, "?"):
            current -= 1
        if current > best:
            best, at = current, null_odds[id]
    return 100.0 * best / len(scores), at
