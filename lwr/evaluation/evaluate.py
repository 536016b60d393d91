"""One scored split: TREC runs of every exit and of the cascade, and what they are worth per query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput
from lwr.common.exits import exits_in, layers_in
from lwr.common.hashing import sha256
from lwr.evaluation.arm_files import read_chosen_schedule
from lwr.evaluation.measures import measures_per_query, rankings, tie_shares
from lwr.evaluation.replay import replay_all
from lwr.formats import parquet
from lwr.formats.beir import Split, answerable_queries, read_qrels
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
) -> None:
    """Write Parquet: the cell's columns, split, exit, query_id, measure, value; and a TREC run per exit.

    exit: `first_stage`, `layer_4`, … as the columns of `scores` are named, and `cascade` where the schedule chosen
    in the file `cascade` is more than the deepest exit. Beside `measures` there is `ties`: the share of a query's
    candidates that an exit scores as it does another one. runs: a folder, of `layer_4.trec` and so on. Raises BadInput.
    """
    qrels = read_qrels(collection, split)
    table = parquet.read(scores, ["query_id", "doc_id", "tokens", "first_stage"])
    if table.duplicated(["query_id", "doc_id"]).any():
        raise BadInput(f"{scores}: a candidate stands twice for one query; score again")
    by_exit = {exit: rankings(table, exit) for exit in exits_in(table)}
    schedule = read_chosen_schedule(cascade, layers_in(table))
    if schedule is not None:
        by_exit["cascade"] = {query: dict(ranked) for query, ranked in replay_all(table, schedule).items()}
    values = [measures_per_query(qrels, run, measures).assign(exit=exit) for exit, run in by_exit.items()]
    tied = [tie_shares(table, exit).assign(exit=exit) for exit in exits_in(table)]
    results = pd.concat([*values, *tied]).assign(**cell, split=split)
    results = results[results["query_id"].isin(answerable_queries(qrels))]
    with atomic(runs) as unfinished:
        for exit, run in by_exit.items():
            write_run(
                unfinished / f"{exit}.trec", {query: list(docs.items()) for query, docs in run.items()}, exit
            )
    files = {"scores": scores, "cascade": cascade, "qrels": collection / f"qrels/{split}.tsv"}
    parquet.write(
        out,
        results[[*cell, "split", "exit", "query_id", "measure", "value"]],
        {name: sha256(file) for name, file in files.items()},
    )
