"""A cascade's schedule replayed on scores that are there already: who survives, follows from them. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lwr.common.hashing import hash_share
from lwr.formats.trec import Run, scores_by_rank
from lwr.model.cascade_schedule import Schedule


@dataclass(frozen=True)
class Candidates:
    """The candidates of some queries as rectangles [queries, widest list]; short lists are filled up."""

    queries: list[str]
    docs: np.ndarray  # str; "" where filled up
    tokens: np.ndarray  # float64, of the pair; 0 where filled up
    places: dict[int, np.ndarray]  # layer -> int, each candidate's place in the ranking of that exit, from 0


def read_candidates(scores: pd.DataFrame, queries: Sequence[str] | None = None) -> Candidates:
    """Of a table that `lwr score` wrote. queries: these, in this order, also those without candidates; None: its own.

    Ties go by `trec.sort_key`'s rule, as everywhere.
    """
    layers = [int(column.removeprefix("layer_")) for column in scores.columns if column.startswith("layer_")]
    scores = scores.assign(
        hash=scores["doc_id"].map({doc: hash_share(doc) for doc in scores["doc_id"].unique()})
    )
    lists = dict(iter(scores.groupby("query_id", sort=False)))
    queries = list(lists) if queries is None else list(queries)
    shape = len(queries), max((len(lists[query]) for query in queries if query in lists), default=0)

    docs, tokens = np.full(shape, "", dtype=object), np.zeros(shape)
    places = {k: np.full(shape, shape[1]) for k in layers}
    for row, query in enumerate(queries):
        if query in lists:
            listed = lists[query]
            docs[row, : len(listed)], tokens[row, : len(listed)] = listed["doc_id"], listed["tokens"]
            for k in layers:
                best_first = np.lexsort((listed["hash"], -listed[f"layer_{k}"].to_numpy(np.float32)))
                places[k][row, best_first] = np.arange(len(listed))
    return Candidates(queries, docs, tokens, places)


def replay(candidates: Candidates, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """The ranking that a schedule ends in, and how deep each candidate is read.

    int [queries, widest list]: columns of `candidates` from best to worst, those filled up last. Survivors go by
    their places at the last exit, before those who left at the exit before, by their places there, and so on.
    int [queries, widest list]: the layer where a candidate was scored last; 0 where filled up.
    """
    alive = candidates.docs != ""
    read, place = np.zeros(alive.shape, dtype=int), np.full(alive.shape, alive.shape[1])
    for layer, survivors in [*schedule.keep, (schedule.last, 0)]:
        read, place = np.where(alive, layer, read), np.where(alive, candidates.places[layer], place)
        among_alive = np.where(alive, place, alive.shape[1]).argsort(axis=1).argsort(axis=1)
        alive = alive & (among_alive < survivors)
    return np.lexsort((place, -read)), read


def replay_all(scores: pd.DataFrame, schedule: Schedule) -> Run:
    """The run of a cascade, its queries sorted as `measures.rankings` sorts them."""
    candidates = read_candidates(scores, sorted(scores["query_id"].unique()))
    order, read = replay(candidates, schedule)
    sizes = (read > 0).sum(axis=1)
    return {
        query: scores_by_rank(docs[ranked[:size]])
        for query, docs, ranked, size in zip(candidates.queries, candidates.docs, order, sizes, strict=True)
    }
