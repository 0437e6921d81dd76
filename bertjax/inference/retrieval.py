"""Search passages by their embeddings, and evaluate embeddings: by retrieval, and by the similarity of pairs.

The search is exact: every query is compared with every passage, a block of queries at a time.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bertjax.checkpoints.trained import Model
from bertjax.errors import InputError
from bertjax.inference.embed import embed_and_count
from bertjax.models.sentence import sentence_head
from bertjax.tasks.collection import Collection
from bertjax.tasks.metrics import pearson, spearman
from bertjax.tasks.ranking import ndcg, recall, reciprocal_rank
from bertjax.texts import several
from bertjax.wording import counted

_BLOCK = 256
"""Queries that are compared with all passages at once."""

QUERY, PASSAGE = ("query",), ("passage", "document", "corpus")
"""The names of prompts of each role, of which the first that a model has is used, as in sentence-transformers."""


class Hit(NamedTuple):
    """A passage that a search found: its place among the passages, and the similarity of its vector to the query's."""

    place: int
    score: float


def vectors(
    model: Model,
    texts: str | Sequence[str],
    role: tuple[str, ...] = (),
    *,
    width: int = 0,
    max_length: int = 0,
    batch_size: int = 32,
    say: Callable[[str], None] = print,
) -> np.ndarray:
    """Return the embeddings of texts, f32 [N, D], in order; see `embed`. Texts of similar lengths share a batch.

    role: names of prompts, of which the first that the model has is put before each text; else its default prompt, if
    it has one. width: keep so many first dimensions. Raises InputError as `embed`, and for more than there are.
    """
    texts = several(texts)
    head, _ = sentence_head(model.objective, model.params)
    prompt = next((name for name in role if name in dict(head.prompts)), None)
    order = np.argsort([len(text) for text in texts], kind="stable")
    notes: Counter[str] = Counter()
    ordered = [texts[index] for index in order]
    found = list(embed_and_count(model, ordered, notes, prompt=prompt, max_length=max_length, batch_size=batch_size))
    for note, count in (+notes).items():
        say(counted(count, note))
    vectors_ND = np.empty((len(texts), len(found[0]) if found else 0), np.float32)
    vectors_ND[order] = found
    if width > vectors_ND.shape[1]:
        raise InputError(f"width={width}, but the vectors have {vectors_ND.shape[1]} dimensions: reduce it")
    return vectors_ND[:, : width or None]


def similarities(model: Model, one_QD: np.ndarray, other_PD: np.ndarray) -> np.ndarray:
    """Return the similarity of each vector to each other one, f32 [Q, P]: the cosine, or what its folder says.

    Raises InputError for another one that the folder names.
    """
    kind = model.config.get("huggingface", {}).get("similarity") or "cosine"
    if kind not in ("cosine", "dot"):
        raise InputError(f"similarity_fn_name={kind!r} is not supported: set it to cosine or dot")
    if kind == "cosine":
        one_QD, other_PD = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (one_QD, other_PD))
    return one_QD @ other_PD.T


def rank(model: Model, queries_QD: np.ndarray, passages_PD: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices i64 [Q, K] and the similarities f32 [Q, K] of the `top` passages of each query, best first.

    K is `top`, or the number of passages if that is smaller. Of equal ones the first goes first.
    """
    k = min(top, len(passages_PD))
    indices, scores = [np.zeros((0, k), np.int64)], [np.zeros((0, k), np.float32)]
    for start in range(0, len(queries_QD), _BLOCK):
        scores_QP = similarities(model, queries_QD[start : start + _BLOCK], passages_PD)
        best_QK = np.sort(np.argpartition(-scores_QP, k - 1, axis=1)[:, :k], axis=1)
        of_best_QK = np.take_along_axis(scores_QP, best_QK, axis=1)
        order_QK = np.argsort(-of_best_QK, axis=1, kind="stable")
        indices.append(np.take_along_axis(best_QK, order_QK, axis=1))
        scores.append(np.take_along_axis(of_best_QK, order_QK, axis=1))
    return np.concatenate(indices), np.concatenate(scores)


def search(
    model: Model,
    queries: str | Sequence[str],
    passages: str | Sequence[str] | np.ndarray,
    *,
    top: int = 10,
    max_length: int = 0,
    batch_size: int = 32,
    say: Callable[[str], None] = print,
) -> list[list[Hit]]:
    """Return the `top` passages of each query, best first. passages: texts, or their `vectors`, computed before."""
    settings = {"max_length": max_length, "batch_size": batch_size}
    if not isinstance(passages, np.ndarray):
        passages = vectors(model, passages, PASSAGE, say=say, **settings)
    if not len(passages):
        raise InputError("there is no passage to search: give one or more")
    indices, scores = rank(model, vectors(model, queries, QUERY, say=say, **settings), passages, top)
    return [[Hit(int(i), float(x)) for i, x in zip(*each, strict=True)] for each in zip(indices, scores, strict=True)]


def evaluate_retrieval(
    model: Model,
    collection: Collection,
    *,
    width: int = 0,
    max_length: int = 0,
    batch_size: int = 32,
    say: Callable[[str], None] = print,
) -> Mapping[str, float | int]:
    """Return NDCG and MRR at 10, recall at 1, 10 and 100, and the numbers of queries and passages."""
    queries_QD, passages_PD = (
        vectors(model, texts, role, width=width, max_length=max_length, batch_size=batch_size, say=say)
        for texts, role in ((collection.queries, QUERY), (collection.passages, PASSAGE))
    )
    ranked_QK, _ = rank(model, queries_QD, passages_PD, top=100)
    gains_QK, relevant_Q = collection.gains(ranked_QK), np.array([len(each) for each in collection.relevant])
    found: dict[str, float | int] = {
        "ndcg@10": ndcg(gains_QK, collection.ideal(10), 10),
        "mrr@10": reciprocal_rank(gains_QK, 10),
    }
    found |= {f"recall@{k}": recall(gains_QK, relevant_Q, k) for k in (1, 10, 100)}
    return found | {"queries": len(collection.queries), "passages": len(collection.passages)}


def evaluate_similarity(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    scores: Sequence[float],
    *,
    width: int = 0,
    max_length: int = 0,
    batch_size: int = 32,
    say: Callable[[str], None] = print,
) -> Mapping[str, float | int]:
    """Return the correlations, of ranks (Spearman) and linear (Pearson), of similarities with the scores of pairs."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    place = {text: index for index, text in enumerate(texts)}
    found_ND = vectors(model, texts, width=width, max_length=max_length, batch_size=batch_size, say=say)
    one_ND, other_ND = (found_ND[[place[pair[side]] for pair in pairs]] for side in (0, 1))
    similar_N = np.array([similarities(model, a[None], b[None])[0, 0] for a, b in zip(one_ND, other_ND, strict=True)])
    given_N = np.array(scores)
    return {"spearman": spearman(given_N, similar_N), "pearson": pearson(given_N, similar_N), "pairs": len(pairs)}
