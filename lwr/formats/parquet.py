"""Read and write Parquet tables that record their inputs and whose damage is detected."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api.types import is_numeric_dtype

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput, first_line, shorten

INPUTS_KEY = b"lwr_inputs"
"""Key of the inputs in the metadata of a table's schema."""


def add_inputs(schema: pa.Schema, inputs: Mapping[str, str]) -> pa.Schema:
    """Return the schema with the inputs of a table in its metadata.

    Args:
        schema: The columns of the table.
        inputs: Name of an input -> a value that identifies it, such as the sha256 of its file.
    """
    return schema.with_metadata({INPUTS_KEY: json.dumps(dict(inputs)).encode()})


@contextmanager
def open_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Open a Parquet file for writing, with a checksum per page so that a flipped bit is detected.

    The file is closed here, because a writer that fails as the disk is full leaves its own file open.
    """
    with (
        pa.OSFile(str(path), "wb") as file,
        pq.ParquetWriter(file, schema, write_page_checksum=True) as writer,
    ):
        yield writer


def write(path: Path, table: pd.DataFrame, inputs: Mapping[str, str]) -> None:
    """Write a table atomically, without its index.

    Args:
        path: The file.
        table: The table.
        inputs: As for `add_inputs`.
    """
    columns = pa.Table.from_pandas(table, preserve_index=False)
    schema = add_inputs(columns.schema, inputs)
    with atomic(path) as draft, open_writer(draft, schema) as writer:
        writer.write_table(columns.cast(schema))


def read(path: Path, columns: Sequence[str], texts: Sequence[str] = ("query_id", "doc_id")) -> pd.DataFrame:
    """Read a complete table.

    Args:
        path: The file.
        columns: Columns that the table must have; others are read as well.
        texts: Columns that may hold text; all others must hold numbers.

    Raises:
        BadInput: The file is missing or damaged, lacks one of `columns`, or a number in it is missing or not finite.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise BadInput(f"{path}: no such file") from None
        raise BadInput(f"{path}: damaged ({first_line(error)}); make it again") from None
    if missing := [name for name in columns if name not in table]:
        raise BadInput(f"{path}: no column {missing[0]!r}, only {', '.join(table)}; make it again")
    for name in table.columns.difference(texts, sort=False):
        if len(table) and not is_numeric_dtype(table[name]):
            value = shorten(table[name].iloc[0])
            raise BadInput(f"{path}: {name} of row 1 is {value}, not a number; make it again")
    for name in table.select_dtypes("number"):
        broken = np.flatnonzero(~np.isfinite(table[name].to_numpy(dtype=np.float64, na_value=np.nan)))
        if len(broken):
            value = table[name].iloc[broken[0]]
            raise BadInput(
                f"{path}: {name} of row {broken[0] + 1} is {value}, not a finite number; make it again"
            )
    return table


def read_inputs(path: Path) -> dict[str, str]:
    """Return the inputs that a table records; empty for a table that another program wrote.

    Raises:
        BadInput: The file is damaged.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata.get(INPUTS_KEY, b"{}"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"{path}: damaged ({first_line(error)}); make it again") from None
