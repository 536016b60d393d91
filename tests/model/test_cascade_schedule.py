"""Schedules as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from scored_lists import any_schedule, few_examples

from lwr.formats.fusion import Fusion
from lwr.model.cascade_schedule import Compression, Schedule, plan_ranking


@given(any_schedule())
@few_examples
def test_schedule_round_trips_through_text(schedule):
    assert Schedule.parse(str(schedule)) == schedule


def test_schedule_by_hand():
    schedule = Schedule.parse(" 2:20  4:10 6\n")
    assert schedule == Schedule(((2, 20), (4, 10)), 6)
    assert (str(schedule), schedule.layers) == ("2:20 4:10 6", [2, 4, 6])
    assert Schedule.parse("4") == Schedule.single(4)


@pytest.mark.parametrize(
    "text", ["a", "", " ", "2:20", "2:20 4:10", "2 4", "2:20:1 4", "2: 4", "2:1.5 4", "-1"]
)
def test_malformed_schedule_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"cascade '.*': write it as `2:20 4:10 6`"):
        Schedule.parse(text)


@pytest.mark.parametrize("text", ["2/ 4", "/2 4", "2/2", "2:5/2 4", "2//2 4", "4:-1 6"])
def test_malformed_widths_are_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"`2/2:20` also makes one of each two passage tokens"):
        Schedule.parse(text)


def test_schedule_with_widths_by_hand():
    schedule = Schedule.parse("0:50 2/2:20 4/3 5:5 6")
    assert schedule == Schedule(((0, 50), (2, 20), (5, 5)), 6, Compression(((2, 2), (4, 3))))
    assert (str(schedule), schedule.layers) == ("0:50 2/2:20 4/3 5:5 6", [2, 5, 6])
    assert Schedule.parse("0:50 2:20 5:5 6").compress("2/2 4/3") == schedule
    with pytest.raises(ValueError, match=r"layer 6 ranks, so no block reads the tokens after layer 6"):
        Schedule.single(6).compress("6/2")
    with pytest.raises(ValueError, match=r"give one of the two"):
        schedule.compress("3/2")


def test_exits_behind_a_compression_are_named_by_it():
    schedule = Schedule.parse("0:50 2/2:20 3/1 4/3 5:5 6")
    assert schedule.steps == ((2, 2), (4, 3))
    named = {layer: schedule.exit_at(layer) for layer in (0, 2, 4, 6)}
    assert named == {
        0: "first_stage",
        2: "layer_2",
        4: "layer_4_compressed_2_by_2",
        6: "layer_6_compressed_2_by_2_4_by_3",
    }
    assert Schedule.parse("2/1 6").exit_at(6) == "layer_6"


def test_fused_scores_of_a_compression_without_weights_are_refused():
    weights = {k: {f"layer_{k}": 1.0} for k in (2, 4)}
    behind = {4: {"layer_4_compressed_2_by_2": 1.0}}
    fusion = Fusion(weights, weights, {((2, 2),): Fusion(behind, behind)})
    plan = plan_ranking(Schedule.parse("2/2:1 4"), 3, fusion=fusion, fused=True)
    assert plan.weights == {2: {"layer_2": 1.0}, 4: {"layer_4_compressed_2_by_2": 1.0}}
    with pytest.raises(
        ValueError, match=r"no weights for layer_4_compressed_2_by_4, but for layer_2, layer_4, .*2_by_2"
    ):
        plan_ranking(Schedule.parse("2/4 4"), 3, fusion=fusion, fused=True)


def test_stage_0_is_the_first_stage_and_scores_nothing():
    schedule = Schedule.parse("0:50 3:10 6")
    assert (str(schedule), schedule.layers, schedule.from_first_stage) == ("0:50 3:10 6", [3, 6], 50)
    assert Schedule.parse("3:10 6").from_first_stage is None


@pytest.mark.parametrize(
    "text",
    ["4:2 2", "4:2 4", "4:2 3:1 6", "4:0 6", "0:0 6", "0:5 0", "0", "3:5 0:2 6", "0/2 6", "2/0 6", "4/2 4"],
)
def test_descending_layers_and_zero_survivors_are_refused(text):
    with pytest.raises(
        ValueError, match=rf"cascade '{text}': layers must ascend.*one candidate must survive"
    ):
        Schedule.parse(text)
