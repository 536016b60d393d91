"""The shards of a scored split -> one table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from lwr.files import atomic


def gather(shards: Sequence[Path], out: Path) -> None:
    """Write the queries of all shards to `out` in the order they had before `lwr score --shard K/N` dealt them."""
    dealt = [_queries(pd.read_parquet(shard)) for shard in shards]
    in_order = [query for row in zip_longest(*dealt) for query in row if query is not None]
    with atomic(out) as unfinished:
        pd.concat(in_order).to_parquet(unfinished, index=False)


def _queries(scores: pd.DataFrame) -> list[pd.DataFrame]:
    return [of_query for _, of_query in scores.groupby("query_id", sort=False)]
