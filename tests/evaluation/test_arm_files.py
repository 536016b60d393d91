"""Readers of the files of cascades and costs."""

from __future__ import annotations

import pytest

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_json
from lwr.evaluation.arm_files import ChosenCascade, read_cascades, read_chosen_cascade, read_costs
from lwr.model.cascade_schedule import Schedule


@pytest.fixture
def path(tmp_path):
    return tmp_path / "docs.json"


def test_chosen_schedule_is_read(path):
    write_json(path, {"chosen": "2:5 4", "deepest": "4"})
    expected = ChosenCascade(Schedule.parse("2:5 4"), fused=False)
    assert read_chosen_cascade(path) == read_chosen_cascade(path, [2, 3, 4]) == expected


def test_chosen_schedule_may_be_fused(path):
    write_json(path, {"chosen": "0:9 2:5 4", "deepest": "4", "fused": True})
    assert read_chosen_cascade(path, [2, 3, 4]) == ChosenCascade(Schedule.parse("0:9 2:5 4"), fused=True)
    write_json(path, {"chosen": "4", "deepest": "4", "fused": True})
    assert read_chosen_cascade(path) == ChosenCascade(Schedule.parse("4"), fused=True)


@pytest.mark.parametrize(("fused", "words"), [(False, "0:9 4"), ("yes", "'yes'")])
def test_first_stage_prunes_for_fused_exits_alone(path, fused, words):
    write_json(path, {"chosen": "0:9 4", "deepest": "4", "fused": fused})
    with pytest.raises(BadInput, match=rf"docs\.json: .*{words}.*fused|docs\.json: .*fused.*{words}"):
        read_chosen_cascade(path)


def test_chosen_deepest_exit_is_no_schedule(path):
    write_json(path, {"chosen": "4", "deepest": "4"})
    assert read_chosen_cascade(path) is None


def test_schedule_with_layer_without_head_is_refused(path):
    write_json(path, {"chosen": "2:5 4", "deepest": "4"})
    with pytest.raises(BadInput, match=r"docs\.json: layer 2 of cascade 2:5 4 has no head"):
        read_chosen_cascade(path, [3, 4])


def test_malformed_schedule_is_refused_with_its_file(path):
    write_json(path, {"chosen": "2:five 4", "deepest": "4"})
    with pytest.raises(BadInput, match=r"docs\.json: .*2:five 4"):
        read_chosen_cascade(path)


@pytest.mark.parametrize("read", [read_cascades, read_costs])
def test_file_without_its_arm_is_refused(path, read):
    cost = {"arms": [{"exits": [], "dataset": "docs"}]}
    write_json(path, {"deepest": "4", "measure": "nDCG@10", "schedules": [], "dataset": "docs", **cost})
    with pytest.raises(BadInput, match=r"docs\.json: field 'trained_on' is missing"):
        read([path])


ARM = {"dataset": "d", "trained_on": "d", "base_model": "m", "start_layer": 2, "variant": "v"}
PLAIN = ARM | {
    "deepest": "4",
    "epsilon": 0.01,
    "measure": "nDCG@10",
    "schedules": [{"schedule": "4", "dev": 0.5}],
}
BOUND = {
    "confidence": 0.9,
    "expected shortfall": 0.001,
    "shortfall bound": 0.009,
    "dev queries": 80,
    "queries needed": None,
}


def test_cascades_with_fused_scores_say_how_they_were_chosen(tmp_path):
    schedules = [
        {"schedule": "0:5 4", "dev": 0.6, "fused": True},
        {"schedule": "4", "dev": 0.5, "fused": False},
    ]
    write_json(tmp_path / "a.json", PLAIN | BOUND | {"schedules": schedules})
    write_json(tmp_path / "b.json", PLAIN | {"base_model": "of an older grid"})
    table = read_cascades([tmp_path / "a.json", tmp_path / "b.json"])
    assert list(table["fused"]) == [True, False, False]
    assert list(table["confidence"].fillna(0)) == [0.9, 0.9, 0]
    assert list(table["shortfall bound"].fillna(0)) == [0.009, 0.009, 0]


@pytest.mark.parametrize("choice", [PLAIN, PLAIN | dict.fromkeys(BOUND), PLAIN | BOUND])
def test_cascades_without_fused_scores_have_the_columns_that_they_always_had(path, choice):
    write_json(path, choice)
    assert list(read_cascades([path])) == [*ARM, "deepest", "epsilon", "measure", "schedule", "dev"]
    assert read_cascades([]).empty
