"""The shards of a scored split -> one table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from lwr.common.errors import BadInput
from lwr.formats import parquet


def gather(shards: Sequence[Path], out: Path) -> None:
    """Write the queries of all shards to `out` in the order they had before `lwr score --shard K/N` dealt them.

    Raises BadInput where one is missing, stands at another's place, or was made of something else than the first.
    """
    inputs = [parquet.read_inputs(shard) for shard in shards]
    for number, (shard, made_of) in enumerate(zip(shards, inputs, strict=True), 1):
        if made_of.get("shard") != f"{number}/{len(shards)}":
            which = made_of.get("shard", "none")
            raise BadInput(
                f"{shard}: is shard {which}, not {number}/{len(shards)}; give all shards, in order"
            )
        if made_of != inputs[0] | {"shard": made_of["shard"]}:
            raise BadInput(f"{shard}: its model, run or collection is not {shards[0]}'s; score it again")
    dealt = [_queries(parquet.read(shard, ["query_id", "doc_id"])) for shard in shards]
    in_order = [query for row in zip_longest(*dealt) for query in row if query is not None]
    parquet.write(out, pd.concat(in_order), inputs[0] | {"shard": "1/1"})


def _queries(scores: pd.DataFrame) -> list[pd.DataFrame]:
    return [of_query for _, of_query in scores.groupby("query_id", sort=False)]
