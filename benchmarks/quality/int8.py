"""What do int8 and bfloat16 lose in quality, and how much time do they save? A Markdown table per data set.

    python benchmarks/quality/int8.py results scifact --arm minilm/start2/default --queries 100

For a grid whose models are trained. The candidates of test queries are scored at all exits in each precision, query by
query in turns, on the CPU. Differences of nDCG@10 are paired by query, with 95% bootstrap intervals; times are CPU
seconds of all threads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch

from lwr.common.exits import exit_name
from lwr.common.progress import show_progress
from lwr.common.provenance import processor_name
from lwr.config.section import ScoringPrecision
from lwr.evaluation.measures import measures_per_query, rankings
from lwr.evaluation.statistics.paired_tests import interval
from lwr.formats.beir import read_candidate_texts, read_qrels, read_queries, sample_queries
from lwr.formats.trec import read_run
from lwr.model.reranker import LayerwiseReranker

MEASURE = "nDCG@10"
PRECISIONS: tuple[ScoringPrecision, ...] = get_args(ScoringPrecision)


def main() -> None:
    """Print the tables of several data sets."""
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="the results folder of the grid")
    parser.add_argument("datasets", nargs="+", help="data sets that are trained on and ranked")
    parser.add_argument("--arm", default="minilm/start2/default", help="base model, start layer and variant")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the cell")
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=PRECISIONS,
        choices=PRECISIONS,
        help="float32 and those compared with it",
    )
    parser.add_argument("--queries", type=int, default=100, help="number of test queries, chosen by hash")
    options = parser.parse_args()
    for dataset in options.datasets:
        cell = options.results / "cells" / dataset / options.arm / f"seed{options.seed}"
        collection = options.results / "collections" / dataset
        table, seconds = compare(cell / "model", collection, options.queries, options.precisions)
        print(f"\n{dataset}, {options.arm}: {torch.get_num_threads()} threads of {processor_name()}\n")
        print(table.to_markdown(index=False, floatfmt=".4f"), "\n")
        for precision, of_precision in seconds.items():
            ratio = of_precision / seconds["float32"]
            print(f"{precision}: {of_precision:.1f} CPU seconds, {ratio:.2f} of float32's")


def compare(
    model: Path, collection: Path, queries: int, precisions: Sequence[ScoringPrecision]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Score in each of the precisions, float32 first; return a row per exit, and the CPU seconds of each precision."""
    rerankers = {
        precision: LayerwiseReranker.from_pretrained(model, device="cpu", precision=precision)
        for precision in precisions
    }
    exits = rerankers["float32"].exits
    run, texts = read_run(collection / "runs/test.trec"), read_queries(collection)
    sample = sample_queries(run, queries)
    passages = read_candidate_texts(collection, "test", {query_id: run[query_id] for query_id in sample})
    tables: list[pd.DataFrame] = []  # of a query and a precision
    seconds = dict.fromkeys(precisions, 0.0)
    for query_id in show_progress(sample, len(sample), "int8"):
        doc_ids = [doc_id for doc_id, _ in run[query_id]]
        for precision, reranker in rerankers.items():
            began = time.process_time()
            rows = list(reranker.prompt.rows([(texts[query_id], passages[doc_id]) for doc_id in doc_ids]))
            scores = reranker.score_rows(rows, exits)  # [exits, candidates]
            seconds[precision] += time.process_time() - began
            columns = {exit_name(k): of_exit for k, of_exit in zip(exits, scores, strict=True)}
            pairs = {"precision": precision, "query_id": query_id, "doc_id": doc_ids}
            tables.append(pd.DataFrame({**pairs, **columns}))
    scored = pd.concat(tables)
    qrels = read_qrels(collection, "test")
    judged = {query_id: qrels[query_id] for query_id in sample}
    rows = []
    for name in map(exit_name, exits):
        quality = {
            precision: measures_per_query(judged, rankings(of_precision, name), [MEASURE])
            .set_index("query_id")["value"]
            .sort_index()
            for precision, of_precision in scored.groupby("precision")
        }
        row: dict[str, str | float] = {"exit": name, "float32": quality["float32"].mean()}
        for precision in precisions[1:]:
            differences = (quality[precision] - quality["float32"]).to_numpy()
            low, high = interval(differences[None])
            row |= {precision: quality[precision].mean(), f"{precision} - float32": differences.mean()}
            row |= {f"{precision}, low": low, f"{precision}, high": high}
            row[f"{precision}, correlation in lists"] = _correlation(scored, name, precision)
        rows.append(row)
    return pd.DataFrame(rows), seconds


def _correlation(scored: pd.DataFrame, name: str, precision: str) -> float:
    """Return the mean over queries of the correlation of scores in a precision with those in float32."""
    of_exit = scored.pivot(index=["query_id", "doc_id"], columns="precision", values=name)
    by_query = of_exit.groupby(level="query_id")
    return float(np.mean([lists["float32"].corr(lists[precision]) for _, lists in by_query]))


if __name__ == "__main__":
    main()
