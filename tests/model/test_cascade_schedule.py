"""Schedules as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from scored_lists import any_schedule, few_examples

from lwr.model.cascade_schedule import Schedule


@given(any_schedule())
@few_examples
def test_schedule_round_trips_through_text(schedule):
    assert Schedule.parse(str(schedule)) == schedule


def test_schedule_by_hand():
    schedule = Schedule.parse(" 2:20  4:10 6\n")
    assert schedule == Schedule(((2, 20), (4, 10)), 6)
    assert (str(schedule), schedule.layers) == ("2:20 4:10 6", [2, 4, 6])
    assert Schedule.parse("4") == Schedule.single(4)


@pytest.mark.parametrize("text", ["a", "", " ", "2:20", "2:20 4:10", "2 4", "2:20:1 4", "2: 4", "2:1.5 4"])
def test_malformed_schedule_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"cascade '.*': write it as `2:20 4:10 6`"):
        Schedule.parse(text)


def test_stage_0_is_the_first_stage_and_scores_nothing():
    schedule = Schedule.parse("0:50 3:10 6")
    assert (str(schedule), schedule.layers, schedule.from_first_stage) == ("0:50 3:10 6", [3, 6], 50)
    assert Schedule.parse("3:10 6").from_first_stage is None


@pytest.mark.parametrize(
    "text", ["4:2 2", "4:2 4", "4:2 3:1 6", "4:0 6", "4:-1 6", "0:0 6", "0:5 0", "0", "-1", "3:5 0:2 6"]
)
def test_descending_layers_and_zero_survivors_are_refused(text):
    with pytest.raises(
        ValueError, match=rf"cascade '{text}': layers must ascend.*one candidate must survive"
    ):
        Schedule.parse(text)
