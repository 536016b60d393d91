"""One scored split: TREC runs of every exit and of the cascade, and what they are worth per query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lwr.common.files import BadInput, atomic, sha256
from lwr.config.config import Split
from lwr.evaluation.measures import exits_of, per_query, rankings, ties
from lwr.evaluation.replay import cascaded, read_chosen
from lwr.formats import parquet
from lwr.formats.beir import answered, read_qrels
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
    by_exit = {exit: rankings(table, exit) for exit in exits_of(table)}
    schedule = read_chosen(cascade, [int(name[6:]) for name in exits_of(table) if name != "first_stage"])
    if schedule is not None:
        by_exit["cascade"] = {query: dict(ranked) for query, ranked in cascaded(table, schedule).items()}
    values = [per_query(qrels, run, measures).assign(exit=exit) for exit, run in by_exit.items()]
    tied = [ties(table, exit).assign(exit=exit) for exit in exits_of(table)]
    results = pd.concat([*values, *tied]).assign(**cell, split=split)
    results = results[results["query_id"].isin(answered(qrels))]
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
