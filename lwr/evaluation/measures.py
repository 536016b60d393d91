"""Measure rankings per query with ir_measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ir_measures
import pandas as pd

from lwr.common.exits import ARM_COLUMNS
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
        query_id: dict(best_first(zip(group["doc_id"], group[column], strict=True)))
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
    tied = scores.astype({column: "float32"}).duplicated(["query_id", column], keep=False)  # as runs compare
    shares = tied.groupby(scores["query_id"], sort=True).mean()
    return pd.DataFrame({"query_id": shares.index, "measure": "ties", "value": shares.to_numpy()})


def read_measures(files: Sequence[Path]) -> pd.DataFrame:
    """Read files of `lwr evaluate` into one table.

    Returns:
        A table with the columns `ARM_COLUMNS`, seed, split, exit, query_id, measure, value.
    """
    columns = [*ARM_COLUMNS, "seed", "split", "exit", "query_id", "measure", "value"]
    return pd.concat([parquet.read(file, columns) for file in files], ignore_index=True)
