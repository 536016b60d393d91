"""Evaluate a scored split: a TREC run of every exit and chosen cascade, and their measures per query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lwr.common.atomic import atomic
from lwr.common.exits import all_exits_in, layers_in, model_exits_in
from lwr.common.hashing import sha256
from lwr.common.progress import format_share, log
from lwr.evaluation.arm_files import check_weights, read_arm_fusion, read_chosen_cascades
from lwr.evaluation.measures import measures_per_query, rankings, tie_shares
from lwr.evaluation.schedules.replay import add_fused, read_scores, replay_run
from lwr.formats import parquet
from lwr.formats.beir import Qrels, Split, answerable_queries, read_qrels
from lwr.formats.trec import write_run


def evaluate(
    scores: Path,
    collection: Path,
    split: Split,
    measures: Sequence[str],
    cascade: Path,
    cell: dict[str, str | int],
    out: Path,
    runs: Path,
    fusion: Path | None = None,
) -> None:
    """Write the measures of every exit per query as Parquet, and a TREC run per exit.

    The exits are the first stage and the layers, compressed or not, named like the columns of `scores`; with weights,
    each layer's fused scores, such as `layer_4_fused`; and the chosen cascades, as `read_chosen_cascades`
    names them. `ties` is added to `measures`: the share of a query's candidates whose score another candidate also has.

    Args:
        scores: Parquet that `lwr score` wrote.
        collection: BEIR folder with the judgements.
        split: The split that was scored.
        measures: Names as ir_measures has them.
        cascade: JSON that `lwr cascade` wrote.
        cell: Columns and values that are the same in each row.
        out: Parquet file with the columns of `cell`, split, exit, query_id, measure, value.
        runs: Folder for the runs: `layer_4.trec` and so on.
        fusion: JSON that `lwr fuse` wrote. Queries of dev get the weights that were fitted without them. None: no
            scores are fused.

    Raises:
        BadInput: An input cannot be read, does not belong to the others, or has a candidate twice for a query.
    """
    qrels = read_qrels(collection, split)
    table = read_scores(scores)
    _log_queries_without_candidates(qrels, split, set(table["query_id"]))
    chosen = read_chosen_cascades(cascade, layers_in(table))
    check_weights(cascade, chosen.values(), fusion)
    weights = None
    if fusion is not None:
        weights = read_arm_fusion(fusion, model_exits_in(table), cross_fitted=split == "dev")
        table = add_fused(table, weights)
    exits = all_exits_in(table)
    by_exit = {exit: rankings(table, exit) for exit in exits}
    for exit, choice in chosen.items():
        run = replay_run(table, choice.schedule, weights if choice.fused else None)
        by_exit[exit] = {query: dict(ranked) for query, ranked in run.items()}
    values = [measures_per_query(qrels, run, measures).assign(exit=exit) for exit, run in by_exit.items()]
    ties = [tie_shares(table, exit).assign(exit=exit) for exit in exits]
    results = pd.concat([*values, *ties]).assign(**cell, split=split)
    results = results[results["query_id"].isin(answerable_queries(qrels))]
    with atomic(runs) as draft:
        for exit, run in by_exit.items():
            ranked = {query: list(docs.items()) for query, docs in run.items()}
            write_run(draft / f"{exit}.trec", ranked, exit)
    inputs = {"scores": scores, "cascade": cascade, "qrels": collection / f"qrels/{split}.tsv"}
    if fusion is not None:
        inputs["fusion"] = fusion
    parquet.write(
        out,
        results[[*cell, "split", "exit", "query_id", "measure", "value"]],
        {name: sha256(file) for name, file in inputs.items()},
    )


def _log_queries_without_candidates(qrels: Qrels, split: Split, ranked: set[str]) -> None:
    """Log how many queries with a relevant passage have no candidate; their measures are 0 at every exit."""
    judged = answerable_queries(qrels).keys()
    if without := sorted(judged - ranked):
        count = f"{len(without)} of the {len(judged)} queries of {split} ({format_share(len(without), len(judged))})"
        log(
            f"evaluate: WARNING: {count} have no candidate, such as {without[0]!r}; every measure counts them as 0"
        )
