"""Metrics of retrieval, from the gains of the passages in the order in which a search ranked them.

gains_QK: of each of Q queries the gain of the passage at ranks 1 to K: 0 for one that is not relevant, 1 for a relevant
one, or its degree. Each metric is the mean over queries. As trec_eval has them: gains are linear, and the discount of
rank r is 1 / log2(1 + r) (Järvelin and Kekäläinen 2002).
"""

import numpy as np


def recall(gains_QK: np.ndarray, relevant_Q: np.ndarray, k: int) -> float:
    """Return the fraction of a query's relevant passages, of which there are `relevant_Q`, among its first k."""
    found_Q = (gains_QK[:, :k] > 0).sum(1)
    return float(np.mean(found_Q / relevant_Q))


def reciprocal_rank(gains_QK: np.ndarray, k: int) -> float:
    """Return 1 / the rank of the first relevant passage, 0 where the first k have none (MRR)."""
    hits_QK = gains_QK[:, :k] > 0
    first_Q = hits_QK.argmax(1) + 1
    return float(np.mean(np.where(hits_QK.any(1), 1 / first_Q, 0)))


def ndcg(gains_QK: np.ndarray, ideal_QK: np.ndarray, k: int) -> float:
    """Return the discounted sum of the first k gains over that of the best order, `ideal_QK`: gains from the largest.

    ideal_QK has k columns or more, and zeros behind a query's relevant passages.
    """
    discounts_K = 1 / np.log2(np.arange(k) + 2)
    sums_Q, best_Q = (x[:, :k] @ discounts_K[: x[:, :k].shape[1]] for x in (gains_QK, ideal_QK))
    return float(np.mean(sums_Q / best_Q))
