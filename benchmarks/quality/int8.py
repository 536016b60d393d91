"""What do int8 and bfloat16 lose in quality, and how much time do they save? A Markdown table per data set.

    python benchmarks/quality/int8.py results scifact --arm minilm/start2/default --queries 100

For a grid whose models are trained. The candidates of test queries are scored at all exits in each precision, query by
query in turns, on the CPU. A row of the table is a ranking by these scores: of each exit, of each fused exit where the
grid has weights of fused scores, and of the schedules that `lwr cascade` chose. Compressed passages are not scored, so
that schedules that compress are left out, and counted. A row has the nDCG@10 in float32, and for each precision the
difference to that and to the deepest exit alone in float32, paired by query with 95% bootstrap intervals. Times are CPU
seconds of all threads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch

from lwr.common.exits import FIRST_STAGE, Arm, exit_name, fused_name, label, layers_in
from lwr.common.progress import show_progress
from lwr.common.provenance import processor_name
from lwr.common.results_tree import ResultsTree
from lwr.config.section import ScoringPrecision
from lwr.evaluation.arm_files import ChosenCascade, read_chosen_cascades
from lwr.evaluation.measures import Rankings, measures_per_query, rankings
from lwr.evaluation.schedules.replay import add_fused, replay_run
from lwr.evaluation.statistics.paired_tests import interval
from lwr.formats.beir import read_candidate_texts, read_qrels, read_queries, sample_queries
from lwr.formats.fusion import Fusion
from lwr.formats.trec import read_run
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import read_fusion_of
from lwr.reporting.advise import format_difference
from lwr.reporting.fused import name_schedule

MEASURE = "nDCG@10"


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
        default=("bfloat16", "int8"),
        choices=get_args(ScoringPrecision),
        help="those that are compared with float32",
    )
    parser.add_argument("--queries", type=int, default=100, help="number of test queries, chosen by hash")
    options = parser.parse_args()
    precisions: list[ScoringPrecision] = list(dict.fromkeys(["float32", *options.precisions]))
    tree = ResultsTree(options.results)
    base_model, start, variant = options.arm.split("/")
    for dataset in options.datasets:
        arm = Arm(dataset, base_model, int(start.removeprefix("start")), variant)
        model = tree.arm(arm) / f"seed{options.seed}" / "model"
        collection = tree.collection(dataset)
        scores, seconds = score(model, collection, options.queries, precisions)
        exits = layers_in(scores)
        fusion_file, cascade_file = tree.fusion(arm, dataset), tree.cascade(arm, dataset)
        fusion = None
        if fusion_file.is_file():
            fusion = replace(read_fusion_of(fusion_file, exits), compressed={})
        chosen = list(read_chosen_cascades(cascade_file, exits).values()) if cascade_file.is_file() else []
        schedules = [each for each in chosen if each.schedule.compression is None]
        qrels = read_qrels(collection, "test")
        judged = {query_id: qrels[query_id] for query_id in scores["query_id"].unique()}
        quality: dict[str, dict[str, np.ndarray]] = {}
        for precision in precisions:
            ranked = rank(scores[scores["precision"] == precision], exits, fusion, schedules)
            quality[precision] = {
                name: measures_per_query(judged, run, [MEASURE])["value"].to_numpy()
                for name, run in ranked.items()
            }
        print(f"\n{dataset}, {options.arm}: {len(judged)} queries, ", end="")
        print(f"{torch.get_num_threads()} threads of {processor_name()}\n")
        print(compare(quality, label(exit_name(exits[-1]))).to_markdown(index=False, disable_numparse=True))
        print()
        if len(schedules) < len(chosen):
            print(
                f"{len(chosen) - len(schedules)} of {len(chosen)} chosen schedules compress passages: left out"
            )
        print(f"float32: {seconds['float32']:.1f} CPU seconds")
        for precision in precisions[1:]:
            told = correlate(scores, exits, precision)
            print(
                f"{precision}: {seconds[precision] / seconds['float32']:.2f} of that; correlation in lists: {told}"
            )


def score(
    model: Path, collection: Path, queries: int, precisions: Sequence[ScoringPrecision]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Score test queries in each of the precisions.

    Returns:
        A table as `lwr score` writes it, with the column precision; and the CPU seconds of each precision.
    """
    rerankers: dict[str, LayerwiseReranker] = {
        precision: LayerwiseReranker.from_pretrained(model, device="cpu", precision=precision)
        for precision in precisions
    }
    run, texts = read_run(collection / "runs/test.trec"), read_queries(collection)
    sample = sample_queries(run, queries)
    passages = read_candidate_texts(collection, "test", {query_id: run[query_id] for query_id in sample})
    tables: list[pd.DataFrame] = []  # of a query and a precision
    seconds: dict[str, float] = dict.fromkeys(precisions, 0.0)
    for query_id in show_progress(sample, len(sample), "int8"):
        doc_ids, first_stage = zip(*run[query_id], strict=True)
        for precision, reranker in rerankers.items():
            began = time.process_time()
            rows = list(reranker.prompt.rows([(texts[query_id], passages[doc_id]) for doc_id in doc_ids]))
            scores = reranker.score_rows(rows, reranker.exits)  # [exits, candidates]
            seconds[precision] += time.process_time() - began
            pairs = {"precision": precision, "query_id": query_id, "doc_id": doc_ids}
            pairs |= {"tokens": list(map(len, rows)), FIRST_STAGE: first_stage}
            columns = dict(zip(map(exit_name, reranker.exits), scores, strict=True))
            tables.append(pd.DataFrame({**pairs, **columns}))
    return pd.concat(tables, ignore_index=True), seconds


def rank(
    scores: pd.DataFrame, exits: Sequence[int], fusion: Fusion | None, schedules: Sequence[ChosenCascade]
) -> dict[str, Rankings]:
    """Rank by the scores of one precision: name -> rankings.

    Args:
        scores: A table as `lwr score` writes it.
        exits: The layers with a head.
        fusion: The weights of fused scores; None: nothing is fused.
        schedules: Schedules to replay.
    """
    names = list(map(exit_name, exits))
    if fusion is not None:
        scores = add_fused(scores, fusion)
        names += map(fused_name, exits)
    ranked = {label(name): rankings(scores, name) for name in names}
    for each in schedules:
        run = replay_run(scores, each.schedule, fusion if each.fused else None)
        ranked[name_schedule(str(each.schedule), each.fused)] = {query: dict(run[query]) for query in run}
    return ranked


def compare(quality: dict[str, dict[str, np.ndarray]], deepest: str) -> pd.DataFrame:
    """Return a row of formatted values for each ranking.

    Args:
        quality: Precision, float32 among them -> name of the ranking -> float64 [queries].
        deepest: The name of the ranking by the deepest exit alone.
    """
    in_float32 = quality["float32"]
    others = [precision for precision in quality if precision != "float32"]
    rows = []
    for name, reference in in_float32.items():
        row = {MEASURE: name, "float32": f"{reference.mean():.3f}"}
        for precision in others:
            row[f"{precision} - float32"] = format_mean(quality[precision][name] - reference)
        for precision in others:
            to_deepest = format_mean(quality[precision][name] - in_float32[deepest])
            row[f"{precision} - {deepest} in float32"] = to_deepest
        rows.append(row)
    return pd.DataFrame(rows)


def format_mean(differences: np.ndarray) -> str:
    """Format the mean of paired differences, float64 [queries], with its interval."""
    low, high = interval(differences[None])
    return format_difference({"difference": differences.mean(), "low": low, "high": high})


def correlate(scores: pd.DataFrame, exits: Sequence[int], precision: str) -> str:
    """Say how scores in a precision correlate with those in float32 within a list: the mean over queries, by exit."""
    told = []
    for exit in map(exit_name, exits):
        of_exit = scores.pivot(index=["query_id", "doc_id"], columns="precision", values=exit)
        by_query = of_exit.groupby(level="query_id")
        correlation = np.mean([lists["float32"].corr(lists[precision]) for _, lists in by_query])
        told.append(f"{label(exit)} {correlation:.3f}")
    return ", ".join(told)


if __name__ == "__main__":
    main()
