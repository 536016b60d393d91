"""Parquet tables are read as they were written, with their inputs, and damage is detected."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lwr.common.errors import BadInput
from lwr.formats import parquet

TABLE = pd.DataFrame({"query_id": ["q", "é"] * 200, "value": np.linspace(0, 1, 400), "n": range(400)})


@pytest.fixture
def path(tmp_path):
    parquet.write(tmp_path / "table.parquet", TABLE, {"run": "abc"})
    return tmp_path / "table.parquet"


def test_table_survives_the_round_trip(path):
    pd.testing.assert_frame_equal(parquet.read(path, ["query_id"]), TABLE)
    assert parquet.read_inputs(path) == {"run": "abc"}


def test_same_table_makes_the_same_bytes(path):
    before = path.read_bytes()
    parquet.write(path, TABLE, {"run": "abc"})
    assert path.read_bytes() == before


def test_table_of_another_program_has_no_inputs(path):
    TABLE.to_parquet(path)
    assert parquet.read_inputs(path) == {}


def test_flipped_bit_is_detected_or_changes_no_value(path):
    data = path.read_bytes()
    found = 0
    for position in range(0, len(data), 9):
        path.write_bytes(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
        try:
            read = parquet.read(path, list(TABLE))
            parquet.read_inputs(path)
        except BadInput as error:
            assert str(path) in str(error)  # noqa: PT017
            found += 1
        else:
            assert np.array_equal(read["value"], TABLE["value"])
    assert found > len(data) / 18


@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_missing_or_infinite_number_is_reported_with_its_row(path, value):
    parquet.write(path, TABLE.assign(value=TABLE["value"].where(TABLE.index != 6, value)), {})
    with pytest.raises(BadInput, match=r"table\.parquet: value of row 7 is (nan|inf)"):
        parquet.read(path, [])


def test_missing_column_and_missing_file_are_reported(path):
    with pytest.raises(BadInput, match=r"table\.parquet: no column 'exit'.*query_id, value, n"):
        parquet.read(path, ["exit"])
    with pytest.raises(BadInput, match=r"none\.parquet: no such file"):
        parquet.read(path.with_name("none.parquet"), [])
