"""Join the shards of a scored split into one table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from lwr.common.errors import BadInput
from lwr.formats import parquet


def gather(shards: Sequence[Path], out: Path) -> None:
    """Write the queries of all shards to `out`, in the order of the run that `lwr score --shard K/N` divided.

    Args:
        shards: The files of shards 1/N to N/N, in this order.
        out: The file to write.

    Raises:
        BadInput: A shard is missing, in the wrong place, or was scored from other inputs than the first.
    """
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
