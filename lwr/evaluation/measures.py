"""Measure rankings per query with ir_measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import ir_measures
import numpy as np
import pandas as pd

from lwr.common.exits import ARM_COLUMNS, is_fused
from lwr.formats import parquet
from lwr.formats.beir import Qrels, answerable_queries
from lwr.formats.trec import best_first

Rankings = dict[str, dict[str, float]]  # query id -> passage id -> score, best first


def rankings(scores: pd.DataFrame, column: str) -> Rankings:
    """Rank the passages of each query by a column of a table of scores; scores returned decrease strictly.

    Ties are broken by `trec.best_first`, which uses neither relevance nor the order of the first stage: a constant
    scorer gets the quality of a random order.
    """
    return {
        query_id: dict(best_first(zip(group["doc_id"], group[column], strict=True), is_fused(column)))
        for query_id, group in scores.groupby("query_id", sort=True)
    }


def measures_per_query(qrels: Qrels, run: Rankings, measures: Sequence[str]) -> pd.DataFrame:
    """Measure a run; every query with a relevant document has a row, 0 where the run lacks it.

    Returns:
        A table with the columns query_id, measure, value (float64).
    """
    judged = answerable_queries(qrels)
    parsed = {ir_measures.parse_measure(name): name for name in measures}
    values = {
        (metric.query_id, parsed[metric.measure]): metric.value
        for metric in ir_measures.iter_calc(list(parsed), judged, run)
    }
    rows = [(query, name, values[query, name]) for name in measures for query in sorted(judged)]
    return pd.DataFrame(rows, columns=["query_id", "measure", "value"])


def tie_shares(scores: pd.DataFrame, column: str) -> pd.DataFrame:
    """Compute the share of a query's candidates whose score another candidate of the query also has.

    Returns:
        A table with the columns query_id, measure (`ties`), value.
    """
    as_runs_compare = scores.astype({column: "float64" if is_fused(column) else "float32"})
    tied = as_runs_compare.duplicated(["query_id", column], keep=False)
    shares = tied.groupby(scores["query_id"], sort=True).mean()
    return pd.DataFrame({"query_id": shares.index, "measure": "ties", "value": shares.to_numpy()})


def read_measures(files: Sequence[Path]) -> pd.DataFrame:
    """Read files of `lwr evaluate` into one table.

    Returns:
        A table with the columns `ARM_COLUMNS`, seed, split, exit, query_id, measure, value.
    """
    columns = [*ARM_COLUMNS, "seed", "split", "exit", "query_id", "measure", "value"]
    texts = [name for name in columns if name not in ("start_layer", "seed", "value")]
    return pd.concat([parquet.read(file, columns, texts) for file in files], ignore_index=True)


@dataclass(frozen=True)
class RankMeasure:
    """A measure of many rankings of the same candidates, which needs only the positions of the relevant ones.

    ir_measures takes dictionaries, which is too slow for the thousands of schedules that a search tries. Letters of
    shapes: Q queries, C candidates and R relevant candidates of the query that has most of them.
    """

    family: str  # one of `CHOOSING_MEASURES`
    cutoff: int
    columns: np.ndarray  # int [Q, R], of the relevant candidates; padded by any column
    gains: np.ndarray  # float64 [Q, R]; 0 in padding
    ideal: np.ndarray  # float64 [Q], what the measure is divided by
    discounts: np.ndarray  # float64 [C + 1], of each position from 0; 0 from the cutoff on

    @classmethod
    def of(cls, name: str, queries: Sequence[str], docs: np.ndarray, qrels: Qrels) -> Self:
        """Look up the relevant ones among candidates.

        Args:
            name: Name of a measure of one of the `CHOOSING_MEASURES`, with a cutoff and the parameter `rel` alone.
            queries: The queries; each is judged.
            docs: str [Q, C], their candidates; "" is padding.
            qrels: The judgements.
        """
        measure = ir_measures.parse_measure(name)
        family = str(measure.NAME)
        cutoff = measure.params.get("cutoff", 10**9)
        least = measure.params.get("rel", 1)

        def gain(grade: int) -> float:
            return max(grade, 0) if family == "nDCG" else float(grade >= least)

        of_docs = [
            [gain(qrels[query].get(doc, 0)) for doc in listed]
            for query, listed in zip(queries, docs, strict=True)
        ]
        all_gains = np.array(of_docs, dtype=np.float64).reshape(docs.shape)
        relevant = int((all_gains > 0).sum(axis=1).max(initial=0))
        columns = np.argsort(all_gains == 0, axis=1, kind="stable")[:, :relevant]
        positions = np.arange(docs.shape[1] + 1)
        discount = 1 / np.log2(positions + 2) if family == "nDCG" else 1 / (positions + 1)
        best = [sorted(map(gain, qrels[query].values()), reverse=True) for query in queries]
        return cls(
            family,
            cutoff,
            columns,
            np.take_along_axis(all_gains, columns, axis=1),
            np.array([_ideal(family, gains, cutoff) for gains in best]),
            np.where(positions < cutoff, discount, 0),
        )

    def compute(self, positions: np.ndarray) -> np.ndarray:
        """Compute the measure of a ranking, float64 [Q]. positions: int [Q, C], of each candidate, from 0."""
        return self.compute_from_relevant(np.take_along_axis(positions, self.columns, axis=1))

    def compute_from_relevant(self, positions: np.ndarray) -> np.ndarray:
        """Compute the measure of a ranking, float64 [Q]. positions: int [Q, R], of `columns` alone."""
        discounts = self.discounts[positions]
        match self.family:
            case "nDCG":
                total = (self.gains * discounts).sum(axis=1)
            case "AP":
                last = len(self.discounts) - 1
                ordered = np.sort(np.where(self.gains > 0, positions, last), axis=1)
                found = np.arange(1, ordered.shape[1] + 1)
                total = (found * np.where(ordered < last, self.discounts[ordered], 0)).sum(axis=1)
            case "RR":
                total = (self.gains * discounts).max(axis=1, initial=0)
            case "Success":
                total = (self.gains * (discounts > 0)).max(axis=1, initial=0)
            case _:  # P, R
                total = (self.gains * (discounts > 0)).sum(axis=1)
        return np.divide(total, self.ideal, out=np.zeros_like(total), where=self.ideal > 0)


def _ideal(family: str, gains: Sequence[float], cutoff: int) -> float:
    """Return what a measure is divided by. gains: of all judged passages of a query, best first."""
    match family:
        case "nDCG":
            return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:cutoff], start=1))
        case "P":
            return cutoff
        case "R" | "AP":
            return sum(gains)
    return 1
