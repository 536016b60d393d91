"""Replay a cascade's schedule on scores that exist already, without a forward pass and without torch.

Letters of shapes: N candidates of all queries, Q queries, C candidates of the query that has most of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from lwr.common.errors import BadInput
from lwr.common.exits import FIRST_STAGE, exit_name, fused_name, layers_in
from lwr.common.hashing import hash_share
from lwr.formats import parquet
from lwr.formats.fusion import CrossFittedFusion, Fusion, fold_of, fuse_scores, normalize_first_stage
from lwr.formats.trec import Run, scores_by_rank
from lwr.model.cascade_schedule import Schedule


@dataclass(frozen=True)
class Candidates:
    """The candidates of several queries as rectangles [Q, C]; shorter lists are padded at the end."""

    queries: list[str]
    docs: np.ndarray  # str [Q, C]; "" is padding
    tokens: np.ndarray  # float64 [Q, C], of the pair; 0 in padding
    # layer -> int [Q, C], each candidate's rank at that exit, from 0; C in padding. Layer 0 is the first stage.
    ranks: dict[int, np.ndarray]

    @property
    def deepest(self) -> int:
        """The last layer that has an exit."""
        return max(self.ranks)


def read_scores(path: Path) -> pd.DataFrame:
    """Read a table that `lwr score` wrote.

    Raises:
        BadInput: The file cannot be read as such, has no exit, or has a candidate twice for a query.
    """
    table = parquet.read(path, ["query_id", "doc_id", "tokens", FIRST_STAGE])
    if not layers_in(table):
        raise BadInput(f"{path}: no column of an exit (layer_k), only {', '.join(table)}; score again")
    if table.duplicated(["query_id", "doc_id"]).any():
        raise BadInput(f"{path}: a candidate is duplicated for one query; score again")
    return table


def read_candidates(
    scores: pd.DataFrame,
    queries: Sequence[str] | None = None,
    fusion: Fusion | CrossFittedFusion | None = None,
) -> Candidates:
    """Read candidates from a table that `lwr score` wrote.

    Candidates with equal scores are ordered as by `lwr.formats.trec`.

    Args:
        scores: Columns query_id, doc_id, tokens, and one per exit.
        queries: The queries wanted, in this order, also those without candidates; None: those of the table.
        fusion: Weights; exits then rank by their fused scores, and the first stage ranks, too, as layer 0.
    """
    layers = layers_in(scores.columns)
    queries = list(scores["query_id"].unique() if queries is None else queries)
    places = Rectangle.of(scores, queries)
    hashes = scores["doc_id"].map({doc: hash_share(doc) for doc in scores["doc_id"].unique()}).to_numpy(float)
    if fusion is None:
        columns = {layer: scores[exit_name(layer)].to_numpy(np.float32) for layer in layers}
    else:
        fused = add_fused(scores, fusion)
        columns = {0: scores[FIRST_STAGE].to_numpy(np.float32)}
        columns |= {layer: fused[fused_name(layer)].to_numpy() for layer in layers}
    return Candidates(
        queries,
        places.fill(scores["doc_id"].to_numpy(object), ""),
        places.fill(scores["tokens"].to_numpy(np.float64)),
        {layer: places.rank(column, hashes) for layer, column in columns.items()},
    )


@dataclass(frozen=True)
class Rectangle:
    """The places of the rows of a table of scores in rectangles [Q, C]."""

    rows: np.ndarray  # int [N], rows of the table that have a place
    query: np.ndarray  # int [N]
    column: np.ndarray  # int [N]
    shape: tuple[int, int]

    @classmethod
    def of(cls, scores: pd.DataFrame, queries: Sequence[str]) -> Self:
        """Lay out the candidates of `queries`, in this order; candidates of other queries have no place."""
        query = pd.Index(queries).get_indexer(scores["query_id"])
        rows = np.flatnonzero(query >= 0)
        query = query[rows]
        column = pd.Series(query).groupby(query).cumcount().to_numpy(np.int64)
        return cls(rows, query, column, (len(queries), int(column.max(initial=-1)) + 1))

    def fill(self, values: np.ndarray, padding: object = 0.0) -> np.ndarray:
        """Return a column of the table as a rectangle [Q, C] of the same type."""
        filled = np.full(self.shape, padding, dtype=values.dtype)
        filled[self.query, self.column] = values[self.rows]
        return filled

    def rank(self, scores: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Return the rank of each candidate in its list, from 0, int [Q, C]; C in padding."""
        best_first = np.lexsort((hashes[self.rows], -scores[self.rows], self.query))
        query = self.query[best_first]
        ranks = np.full(self.shape, self.shape[1])
        ranks[query, self.column[best_first]] = np.arange(len(query)) - np.searchsorted(query, query)
        return ranks


def add_fused(scores: pd.DataFrame, fusion: Fusion | CrossFittedFusion) -> pd.DataFrame:
    """Return the table with a column of fused scores for each exit, float64, such as `layer_4_fused`.

    Args:
        scores: Columns query_id, `first_stage`, and one per exit; every candidate of a query is in it.
        fusion: Weights for all queries, or weights that depend on the fold of a query.
    """
    features = {exit_name(layer): scores[exit_name(layer)].to_numpy(np.float64) for layer in fusion.layers}
    by_query = scores.groupby("query_id", sort=False)[FIRST_STAGE]
    features[FIRST_STAGE] = by_query.transform(normalize_first_stage).to_numpy(np.float64)
    if isinstance(fusion, Fusion):
        folds, fold = (fusion,), np.zeros(len(scores), dtype=int)
    else:
        folds = fusion.folds
        of_query = {query: fold_of(query, len(folds)) for query in scores["query_id"].unique()}
        fold = scores["query_id"].map(of_query).to_numpy(int)
    fused = {fused_name(layer): np.zeros(len(scores)) for layer in fusion.layers}
    for number, weights in enumerate(folds):
        rows = fold == number
        known = {name: values[rows] for name, values in features.items()}
        for layer in fusion.layers:
            fused[fused_name(layer)][rows] = fuse_scores(weights.weights(layer, True), known)
    return scores.assign(**fused)


def replay(candidates: Candidates, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """Compute the ranking in which a schedule ends, and the depth to which each candidate is read.

    Survivors are ranked by the last exit, before the candidates that were dropped at the exit before it, which are
    ranked by that exit, and so on.

    Returns:
        int [Q, C]: columns of `candidates` from best to worst, padding last.
        int [Q, C]: the layer at which a candidate was scored last; 0 for those that the first stage drops, and in
            padding.
    """
    alive = candidates.docs != ""  # [Q, C]
    worst = alive.shape[1]
    depth, rank = np.zeros(alive.shape, dtype=int), np.full(alive.shape, worst)
    for layer, survivors in [*schedule.keep, (schedule.last, 0)]:
        rank_among_alive = np.where(alive, candidates.ranks[layer], worst).argsort(axis=1).argsort(axis=1)
        depth = np.where(alive, layer, depth)
        # Those that survive are ranked before those that do not, so this is the final rank of the dropped ones.
        rank = np.where(alive, rank_among_alive, rank)
        alive = alive & (rank_among_alive < survivors)
    return rank.argsort(axis=1, kind="stable"), depth


def replay_run(
    scores: pd.DataFrame, schedule: Schedule, fusion: Fusion | CrossFittedFusion | None = None
) -> Run:
    """Return the run of a cascade, its queries sorted as `measures.rankings` sorts them."""
    candidates = read_candidates(scores, sorted(scores["query_id"].unique()), fusion)
    order, _ = replay(candidates, schedule)
    lengths = (candidates.docs != "").sum(axis=1)
    return {
        query: scores_by_rank(docs[ranked[:length]])
        for query, docs, ranked, length in zip(
            candidates.queries, candidates.docs, order, lengths, strict=True
        )
    }
