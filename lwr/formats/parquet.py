"""Tables on disk: Parquet that knows what it was made of, and read so that its damage shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput, first_line

INPUTS_KEY = b"lwr_inputs"  # key of the schema's metadata


def add_inputs(schema: pa.Schema, inputs: Mapping[str, str]) -> pa.Schema:
    """inputs: what a table was made of, by the step's own names: sha256 of files, and what else tells it apart."""
    return schema.with_metadata({INPUTS_KEY: json.dumps(dict(inputs)).encode()})


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Each page carries a checksum, so that a flipped byte is found."""
    return pq.ParquetWriter(path, schema, write_page_checksum=True)


def write(path: Path, table: pd.DataFrame, inputs: Mapping[str, str]) -> None:
    """Whole or not at all; without the table's index."""
    made = pa.Table.from_pandas(table, preserve_index=False)
    schema = add_inputs(made.schema, inputs)
    with atomic(path) as unfinished, open_writer(unfinished, schema) as opened:
        opened.write_table(made.cast(schema))


def read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The whole table.

    Raises BadInput where it is damaged, lacks one of `columns`, or holds a number that is missing or not finite.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise BadInput(f"{path}: no such file") from None
        raise BadInput(f"{path}: damaged ({first_line(error)}); make it again") from None
    if missing := [name for name in columns if name not in table]:
        raise BadInput(f"{path}: no column {missing[0]!r}, only {', '.join(table)}; make it again")
    for name in table.select_dtypes("number"):
        broken = np.flatnonzero(~np.isfinite(table[name].to_numpy(dtype=np.float64, na_value=np.nan)))
        if len(broken):
            value = table[name].iloc[broken[0]]
            raise BadInput(
                f"{path}: {name} of row {broken[0] + 1} is {value}, not a finite number; make it again"
            )
    return table


def read_inputs(path: Path) -> dict[str, str]:
    """What `write` was told; nothing of a file that something else wrote. Raises BadInput where it is damaged."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata.get(INPUTS_KEY, b"{}"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"{path}: damaged ({first_line(error)}); make it again") from None
