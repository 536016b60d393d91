"""Readers of the files of cascades and costs."""

from __future__ import annotations

import pytest

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_json
from lwr.evaluation.arm_files import read_cascades, read_chosen_schedule, read_costs
from lwr.model.cascade_schedule import Schedule


@pytest.fixture
def path(tmp_path):
    return tmp_path / "docs.json"


def test_chosen_schedule_is_read(path):
    write_json(path, {"chosen": "2:5 4", "deepest": "4"})
    assert read_chosen_schedule(path) == read_chosen_schedule(path, [2, 3, 4]) == Schedule.parse("2:5 4")


def test_chosen_deepest_exit_is_no_schedule(path):
    write_json(path, {"chosen": "4", "deepest": "4"})
    assert read_chosen_schedule(path) is None


def test_schedule_with_layer_without_head_is_refused(path):
    write_json(path, {"chosen": "2:5 4", "deepest": "4"})
    with pytest.raises(BadInput, match=r"docs\.json: layer 2 of cascade 2:5 4 has no head"):
        read_chosen_schedule(path, [3, 4])


def test_malformed_schedule_is_refused_with_its_file(path):
    write_json(path, {"chosen": "2:five 4", "deepest": "4"})
    with pytest.raises(BadInput, match=r"docs\.json: .*2:five 4"):
        read_chosen_schedule(path)


@pytest.mark.parametrize("read", [read_cascades, read_costs])
def test_file_without_its_arm_is_refused(path, read):
    write_json(path, {"deepest": "4", "measure": "nDCG@10", "schedules": [], "exits": [], "dataset": "docs"})
    with pytest.raises(BadInput, match=r"docs\.json: field 'trained_on' is missing"):
        read([path])
