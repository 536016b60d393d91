"""Join the shards of a scored split into one table, or those of a teacher's scores into one run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

import pandas as pd

from lwr.common.errors import BadInput
from lwr.formats import parquet
from lwr.formats.trec import read_run, read_run_tag, write_run


def gather(shards: Sequence[Path], out: Path) -> None:
    """Write the queries of all shards to `out`, in the order of the run that `--shard K/N` divided.

    Args:
        shards: The files of shards 1/N to N/N, in this order: Parquet of `lwr score`, or runs of `lwr teach`.
        out: The file to write; runs are joined if its name ends in `.trec`.

    Raises:
        BadInput: A shard is missing, in the wrong place, or was scored from other inputs than the first; or two runs
            rank the same query.
    """
    if out.suffix == ".trec":
        _gather_runs(shards, out)
    else:
        _gather_tables(shards, out)


def _gather_runs(shards: Sequence[Path], out: Path) -> None:
    runs = [read_run(shard) for shard in shards]
    in_order = [query for turn in zip_longest(*runs) for query in turn if query is not None]
    if len(in_order) != len(set(in_order)):
        repeated = next(query for query in in_order if in_order.count(query) > 1)
        raise BadInput(f"{shards[0]}: query {repeated!r} is in two shards; give each shard once")
    ranked = dict(chain.from_iterable(run.items() for run in runs))
    # a shard has no line if there are fewer queries than shards
    tag = next(read_run_tag(shard) for shard, run in zip(shards, runs, strict=True) if run)
    write_run(out, {query: ranked[query] for query in in_order}, tag)


def _gather_tables(shards: Sequence[Path], out: Path) -> None:
    inputs = [parquet.read_inputs(shard) for shard in shards]
    for number, (shard, its_inputs) in enumerate(zip(shards, inputs, strict=True), start=1):
        if its_inputs.get("shard") != f"{number}/{len(shards)}":
            found = its_inputs.get("shard", "none")
            raise BadInput(
                f"{shard}: is shard {found}, not {number}/{len(shards)}; give all shards, in order"
            )
        if its_inputs != inputs[0] | {"shard": its_inputs["shard"]}:
            raise BadInput(f"{shard}: its model, run or collection is not {shards[0]}'s; score it again")
    tables = [_split_by_query(parquet.read(shard, ["query_id", "doc_id"])) for shard in shards]
    in_order = [query for turn in zip_longest(*tables) for query in turn if query is not None]
    parquet.write(out, pd.concat(in_order), inputs[0] | {"shard": "1/1"})


def _split_by_query(scores: pd.DataFrame) -> list[pd.DataFrame]:
    return [rows for _, rows in scores.groupby("query_id", sort=False)]
