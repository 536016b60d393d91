"""The paths of a results folder, and the cell of a model that lies in one."""

from __future__ import annotations

import dataclasses

import pytest

from lwr.common.errors import BadInput
from lwr.common.exits import Cell
from lwr.common.json_lines import write_json
from lwr.common.results_tree import ResultsTree, cell_of_model


def test_cell_of_model_is_read_from_its_provenance(tmp_path):
    cell = Cell("docs", "minilm", 2, "default", 7)
    write_json(tmp_path / "provenance.json", {"cell": dataclasses.asdict(cell)})
    assert cell_of_model(tmp_path) == cell


def test_cell_of_older_model_is_read_from_its_path(tmp_path):
    cell = Cell("docs", "minilm", 2, "default", -7)
    model = ResultsTree(tmp_path).model(cell)
    write_json(model / "provenance.json", {"seed": -7})
    assert cell_of_model(model) == cell


@pytest.mark.parametrize("cell", [None, {"seed": 1}, {"extra": 1}, 3, [1]])
def test_model_without_cell_is_refused(tmp_path, cell):
    write_json(tmp_path / "provenance.json", {"cell": cell})
    with pytest.raises(BadInput, match=r"provenance\.json: field 'cell'"):
        cell_of_model(tmp_path)
