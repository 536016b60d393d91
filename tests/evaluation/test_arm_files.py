"""Readers of the files of cascades and costs."""

from __future__ import annotations

import pytest

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_json
from lwr.evaluation.arm_files import (
    ChosenCascade,
    find_row,
    read_cascades,
    read_chosen_cascades,
    read_costs,
)
from lwr.model.cascade_schedule import Schedule


@pytest.fixture
def path(tmp_path):
    return tmp_path / "docs.json"


def test_chosen_schedule_is_read(path):
    write_json(path, {"chosen": "2:5 4", "deepest": "4"})
    expected = ChosenCascade(Schedule.parse("2:5 4"), fused=False)
    assert read_chosen_cascades(path) == read_chosen_cascades(path, [2, 3, 4]) == {"cascade": expected}


def test_chosen_schedule_may_be_fused(path):
    write_json(path, {"chosen": "0:9 2:5 4", "deepest": "4", "fused": True})
    expected = ChosenCascade(Schedule.parse("0:9 2:5 4"), fused=True)
    assert read_chosen_cascades(path, [2, 3, 4]) == {"cascade": expected}
    write_json(path, {"chosen": "4", "deepest": "4", "fused": True})
    assert read_chosen_cascades(path) == {"cascade": ChosenCascade(Schedule.parse("4"), fused=True)}


@pytest.mark.parametrize(("fused", "words"), [(False, "0:9 4"), ("yes", "'yes'")])
def test_first_stage_prunes_for_fused_exits_alone(path, fused, words):
    write_json(path, {"chosen": "0:9 4", "deepest": "4", "fused": fused})
    with pytest.raises(BadInput, match=rf"docs\.json: .*{words}.*fused|docs\.json: .*fused.*{words}"):
        read_chosen_cascades(path)


def test_chosen_deepest_exit_is_no_schedule(path):
    write_json(path, {"chosen": "4", "deepest": "4"})
    assert read_chosen_cascades(path) == {}


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (("0:9 4", True), ("0:9 2:5 4", True), ["cascade", "cascade_for_fused"]),
        (("0:9 4", True), ("0:9 4", True), ["cascade"]),  # the same schedule
        (("2:9 4", False), ("2:9 4", True), ["cascade", "cascade_for_fused"]),
        (("4", False), ("0:9 4", True), ["cascade_for_fused"]),
        (
            ("0:9 4", True),
            ("4", True),
            ["cascade"],
        ),  # the second is the deepest fused exit, which has its own name
        (("4", False), ("4", True), []),
        (("4", True), ("4", False), ["cascade", "cascade_for_fused"]),
    ],
)
def test_second_choice_is_against_the_deepest_fused_exit(path, first, second, names):
    choices = [{"chosen": chosen, "fused": fused} for chosen, fused in (first, second)]
    write_json(path, {"deepest": "4", **choices[0], "for_fused": choices[1], "inputs": {"fusion": "ab"}})
    found = read_chosen_cascades(path)
    assert list(found) == names
    expected = {"cascade": first, "cascade_for_fused": second}
    for name, choice in found.items():
        assert (str(choice.schedule), choice.fused, choice.weights) == (*expected[name], "ab")


@pytest.mark.parametrize("broken", [[], {"fused": True}, {"chosen": 4, "fused": True}])
def test_second_choice_without_a_schedule_is_refused(path, broken):
    write_json(path, {"chosen": "4", "deepest": "4", "for_fused": broken})
    with pytest.raises(BadInput, match=r"docs\.json: field 'for_fused' has no 'chosen'"):
        read_chosen_cascades(path)


def test_row_of_a_chosen_schedule_is_the_one_with_the_same_scores(path):
    rows = [{"schedule": "2:5 4", "fused": fused} for fused in (False, True)]
    for row in rows:
        assert find_row(path, rows, ChosenCascade(Schedule.parse("2:5 4"), row["fused"])) is row
    with pytest.raises(BadInput, match=r"docs\.json: 'schedules' has no row of the chosen 2:6 4"):
        find_row(path, rows, ChosenCascade(Schedule.parse("2:6 4"), False))


def test_schedule_with_layer_without_head_is_refused(path):
    write_json(path, {"chosen": "2:5 4", "deepest": "4"})
    with pytest.raises(BadInput, match=r"docs\.json: layer 2 of cascade 2:5 4 has no head"):
        read_chosen_cascades(path, [3, 4])


def test_malformed_schedule_is_refused_with_its_file(path):
    write_json(path, {"chosen": "2:five 4", "deepest": "4"})
    with pytest.raises(BadInput, match=r"docs\.json: .*2:five 4"):
        read_chosen_cascades(path)


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


def test_cascades_of_an_arm_without_a_second_choice_have_none(tmp_path):
    schedules = [{"schedule": "0:5 4", "dev": 0.6, "fused": True, "chosen": False, "chosen for fused": True}]
    second = {"chosen": "0:5 4", "fused": True, "expected shortfall": 0.003, "queries needed": None}
    write_json(tmp_path / "a.json", PLAIN | BOUND | {"schedules": schedules, "for_fused": second})
    write_json(tmp_path / "b.json", PLAIN | BOUND | {"base_model": "of an older grid"})
    table = read_cascades([tmp_path / "a.json", tmp_path / "b.json"])
    assert list(table["chosen for fused"]) == [True, False]
    assert list(table["expected shortfall"]) == [0.001, 0.001]
    assert list(table["expected shortfall for fused"].fillna(0)) == [0.003, 0]


@pytest.mark.parametrize("choice", [PLAIN, PLAIN | dict.fromkeys(BOUND), PLAIN | BOUND])
def test_cascades_without_fused_scores_have_the_columns_that_they_always_had(path, choice):
    write_json(path, choice)
    assert list(read_cascades([path])) == [*ARM, "deepest", "epsilon", "measure", "schedule", "dev"]
    assert read_cascades([]).empty
