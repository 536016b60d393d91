"""Replay a cascade's schedule on scores that exist already, without a forward pass and without torch.

Letters of shapes: Q queries, C candidates of the query that has most of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lwr.common.exits import exit_name, layers_in
from lwr.common.hashing import hash_share
from lwr.formats.trec import Run, scores_by_rank
from lwr.model.cascade_schedule import Schedule


@dataclass(frozen=True)
class Candidates:
    """The candidates of several queries as rectangles [Q, C]; shorter lists are padded at the end."""

    queries: list[str]
    docs: np.ndarray  # str [Q, C]; "" is padding
    tokens: np.ndarray  # float64 [Q, C], of the pair; 0 in padding
    # layer -> int [Q, C], each candidate's rank at that exit, from 0; C in padding
    ranks: dict[int, np.ndarray]


def read_candidates(scores: pd.DataFrame, queries: Sequence[str] | None = None) -> Candidates:
    """Read candidates from a table that `lwr score` wrote.

    Candidates with equal scores are ordered as by `lwr.formats.trec`.

    Args:
        scores: Columns query_id, doc_id, tokens, and one per exit.
        queries: The queries wanted, in this order, also those without candidates; None: those of the table.
    """
    layers = layers_in(scores.columns)
    hashes = {doc: hash_share(doc) for doc in scores["doc_id"].unique()}
    scores = scores.assign(hash=scores["doc_id"].map(hashes))
    lists = dict(iter(scores.groupby("query_id", sort=False)))
    queries = list(lists) if queries is None else list(queries)
    longest = max((len(lists[query]) for query in queries if query in lists), default=0)
    shape = len(queries), longest

    docs, tokens = np.full(shape, "", dtype=object), np.zeros(shape)
    ranks = {layer: np.full(shape, longest) for layer in layers}
    for row, query in enumerate(queries):
        if query not in lists:
            continue
        listed = lists[query]
        docs[row, : len(listed)], tokens[row, : len(listed)] = listed["doc_id"], listed["tokens"]
        for layer in layers:
            at_exit = listed[exit_name(layer)].to_numpy(np.float32)
            best_first = np.lexsort((listed["hash"], -at_exit))
            ranks[layer][row, best_first] = np.arange(len(listed))
    return Candidates(queries, docs, tokens, ranks)


def replay(candidates: Candidates, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """Compute the ranking in which a schedule ends, and the depth to which each candidate is read.

    Survivors are ranked by the last exit, before the candidates that were dropped at the exit before it, which are
    ranked by that exit, and so on.

    Returns:
        int [Q, C]: columns of `candidates` from best to worst, padding last.
        int [Q, C]: the layer at which a candidate was scored last; 0 in padding.
    """
    alive = candidates.docs != ""  # [Q, C]
    worst = alive.shape[1]
    depth, rank = np.zeros(alive.shape, dtype=int), np.full(alive.shape, worst)
    for layer, survivors in [*schedule.keep, (schedule.last, 0)]:
        depth = np.where(alive, layer, depth)
        rank = np.where(alive, candidates.ranks[layer], rank)
        rank_among_alive = np.where(alive, rank, worst).argsort(axis=1).argsort(axis=1)
        alive = alive & (rank_among_alive < survivors)
    return np.lexsort((rank, -depth)), depth


def replay_run(scores: pd.DataFrame, schedule: Schedule) -> Run:
    """Return the run of a cascade, its queries sorted as `measures.rankings` sorts them."""
    candidates = read_candidates(scores, sorted(scores["query_id"].unique()))
    order, depth = replay(candidates, schedule)
    lengths = (depth > 0).sum(axis=1)
    return {
        query: scores_by_rank(docs[ranked[:length]])
        for query, docs, ranked, length in zip(
            candidates.queries, candidates.docs, order, lengths, strict=True
        )
    }
