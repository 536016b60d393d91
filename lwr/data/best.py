"""Keep the best passages of each query while a corpus is searched block by block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np

from lwr.formats.trec import Run, best_first, ranking_key


class BestPassages:
    """The best passages of each query so far. Ties are broken by `lwr.formats.trec.ranking_key`, also at the cut.

    Attributes:
        top_k: Number of passages that are kept per query.
        least: Lowest score of a passage that is kept.
    """

    def __init__(self, query_ids: Iterable[str], top_k: int, least: float):
        """Begin without passages; see the attributes."""
        self.top_k, self.least = top_k, least
        # (*ranking_key, passage id), best first
        self._kept: dict[str, list[tuple[float, float, str]]] = {query_id: [] for query_id in query_ids}

    def add(self, query_id: str, doc_ids: list[str], scores: np.ndarray) -> None:
        """Merge the passages of a block. scores: float32 [passages]."""
        kept = self._kept[query_id]
        least = -kept[-1][0] if len(kept) == self.top_k else self.least
        found = [(doc_ids[i], cast(float, scores[i])) for i in top_positions(scores, self.top_k, least)]
        new = [(*ranking_key(doc_id, score), doc_id) for doc_id, score in found]
        self._kept[query_id] = sorted([*kept, *new])[: self.top_k]

    def as_run(self) -> Run:
        """Return the passages of each query that has some."""
        return {
            query_id: best_first((doc_id, -negated) for negated, _, doc_id in kept)
            for query_id, kept in self._kept.items()
            if kept
        }


def top_positions(scores: np.ndarray, top_k: int, least: float) -> np.ndarray:
    """Return the positions of the `top_k` best scores, unsorted.

    Scores below `least` are left out; scores that tie with the last of the best are all included.
    """
    found = np.flatnonzero(scores >= np.float32(least))
    if len(found) > top_k:
        last = np.partition(scores[found], -top_k)[-top_k]
        found = found[scores[found] >= last]
    return found
