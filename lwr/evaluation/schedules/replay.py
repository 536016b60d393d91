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
from lwr.common.exits import FIRST_STAGE, compression_steps, fused_name, layer_of, layers_in, model_exits_in
from lwr.common.hashing import hash_share
from lwr.evaluation.measures import RankMeasure
from lwr.formats import parquet
from lwr.formats.beir import Qrels
from lwr.formats.fusion import CrossFittedFusion, Fusion, fold_of, fuse_scores, normalize_first_stage
from lwr.formats.trec import Run, scores_by_rank
from lwr.model.cascade_schedule import Schedule


@dataclass(frozen=True)
class Candidates:
    """The candidates of several queries as rectangles [Q, C]; shorter lists are padded at the end."""

    queries: list[str]
    docs: np.ndarray  # str [Q, C]; "" is padding
    tokens: np.ndarray  # float64 [Q, C], of the pair; 0 in padding
    # float64 [Q, C], those of the tokens that compression averages; 0 if no exit is compressed
    passage_tokens: np.ndarray
    # name of an exit or `first_stage` -> int [Q, C], each candidate's rank there, from 0; C in padding
    ranks: dict[str, np.ndarray]
    # float64 [Q, C], the number of windows of a pair, and the tokens of the last; None if passages are cut
    windows: np.ndarray | None = None
    last_tokens: np.ndarray | None = None

    @property
    def layers(self) -> list[int]:
        """The layers that have an exit, ascending."""
        return sorted(layers_in(self.ranks))

    @property
    def deepest(self) -> int:
        """The last layer that has an exit."""
        return self.layers[-1]


def candidates_of(scores: pd.DataFrame) -> Run:
    """Return the candidates of a table that `lwr score` wrote, with the first stage's scores."""
    return {
        query: list(zip(ranked["doc_id"], ranked[FIRST_STAGE], strict=True))
        for query, ranked in scores.groupby("query_id", sort=False)
    }


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
        scores: Columns query_id, doc_id, tokens, one per exit, passage_tokens if exits are compressed, and windows and
            last_tokens if passages are read in windows.
        queries: The queries wanted, in this order, also those without candidates; None: those of the table.
        fusion: Weights; exits then rank by their fused scores, and the first stage ranks, too.
    """
    exits = model_exits_in(scores.columns)
    queries = list(scores["query_id"].unique() if queries is None else queries)
    places = Rectangle.of(scores, queries)
    hashes = scores["doc_id"].map({doc: hash_share(doc) for doc in scores["doc_id"].unique()}).to_numpy(float)
    if fusion is None:
        columns = {exit: scores[exit].to_numpy(np.float32) for exit in exits}
    else:
        fused = add_fused(scores, fusion)
        columns = {FIRST_STAGE: scores[FIRST_STAGE].to_numpy(np.float32)}
        columns |= {exit: fused[_fused_column(exit)].to_numpy() for exit in exits}
    tokens = places.fill(scores["tokens"].to_numpy(np.float64))
    has_compressed, has_windows = "passage_tokens" in scores, "windows" in scores
    return Candidates(
        queries,
        places.fill(scores["doc_id"].to_numpy(object), ""),
        tokens,
        places.fill(scores["passage_tokens"].to_numpy(np.float64))
        if has_compressed
        else np.zeros_like(tokens),
        {exit: places.rank(column, hashes) for exit, column in columns.items()},
        places.fill(scores["windows"].to_numpy(np.float64)) if has_windows else None,
        places.fill(scores["last_tokens"].to_numpy(np.float64)) if has_windows else None,
    )


def measure_exits(
    seeds: Sequence[pd.DataFrame],
    qrels: Qrels,
    measure: str,
    fusion: Fusion | CrossFittedFusion | None = None,
) -> dict[str, np.ndarray]:
    """Measure every exit on the judged queries.

    Args:
        seeds: The table of scores of each seed; all have the same exits.
        qrels: The judgements.
        measure: The measure.
        fusion: As for `read_candidates`.

    Returns:
        Name of an exit, or `first_stage` if it ranks -> float64 [seeds, queries], the queries sorted.
    """
    by_exit: dict[str, list[np.ndarray]] = {}
    for scores in seeds:
        candidates = read_candidates(scores, sorted(qrels), fusion)
        ranked = RankMeasure.of(measure, candidates.queries, candidates.docs, qrels)
        for exit, ranks in candidates.ranks.items():
            by_exit.setdefault(exit, []).append(ranked.compute(ranks))
    return {exit: np.stack(of_seeds) for exit, of_seeds in by_exit.items()}


def _fused_column(exit: str) -> str:
    return fused_name(layer_of(exit), compression_steps(exit))


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
    features = {exit: scores[exit].to_numpy(np.float64) for exit in fusion.exits}
    by_query = scores.groupby("query_id", sort=False)[FIRST_STAGE]
    features[FIRST_STAGE] = by_query.transform(normalize_first_stage).to_numpy(np.float64)
    if isinstance(fusion, Fusion):
        folds, fold = (fusion,), np.zeros(len(scores), dtype=int)
    else:
        folds = fusion.folds
        of_query = {query: fold_of(query, len(folds)) for query in scores["query_id"].unique()}
        fold = scores["query_id"].map(of_query).to_numpy(int)
    fused = {exit: np.zeros(len(scores)) for exit in fusion.exits}
    for number, weights in enumerate(folds):
        rows = fold == number
        known = {name: values[rows] for name, values in features.items()}
        for exit, column in fused.items():
            of_exit = weights.weights(layer_of(exit), True, compression_steps(exit))
            column[rows] = fuse_scores(of_exit, known)
    return scores.assign(**{_fused_column(exit): column for exit, column in fused.items()})


def replay(candidates: Candidates, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """Compute the ranking in which a schedule ends, and the depth to which each candidate is read.

    Survivors are ranked by the last exit, before the candidates that were dropped at the exit before it, which are
    ranked by that exit, and so on. Behind a compression, exits rank by their scores of compressed passages.

    Raises:
        BadInput: The compression of the schedule was not scored.

    Returns:
        int [Q, C]: columns of `candidates` from best to worst, padding last.
        int [Q, C]: the layer at which a candidate was scored last; 0 for those that the first stage drops, and in
            padding.
    """
    if missing := {
        exit for layer in schedule.layers if (exit := schedule.exit_at(layer)) not in candidates.ranks
    }:
        raise BadInput(
            f"schedule {schedule} needs scores of {min(missing)}, which are missing; name its compression in "
            "score.widths, and score again"
        )
    alive = candidates.docs != ""  # [Q, C]
    worst = alive.shape[1]
    depth, rank = np.zeros(alive.shape, dtype=int), np.full(alive.shape, worst)
    for layer, survivors in [*schedule.keep, (schedule.last, 0)]:
        rank_among_alive = (
            np.where(alive, candidates.ranks[schedule.exit_at(layer)], worst).argsort(axis=1).argsort(axis=1)
        )
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
