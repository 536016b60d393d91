"""Names of exits can be composed, parsed and sorted."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwr.common.exits import (
    CASCADE,
    CASCADE_FOR_FUSED,
    CASCADES,
    FIRST_STAGE,
    Arm,
    Cell,
    all_exits_in,
    compressed_name,
    compression_steps,
    describe_layers,
    exit_name,
    exits_in,
    fused_name,
    is_layer,
    label,
    layer_of,
    layers_in,
    layers_with_head,
    sort_key,
)

COLUMNS = ["query_id", "layer_12", "tokens", "first_stage", "layer_2", "cascade"]


@pytest.mark.parametrize("layer", [1, 4, 40])
def test_exit_name_round_trips(layer):
    assert layer_of(exit_name(layer)) == layer
    assert is_layer(exit_name(layer))


def test_exit_names_on_disk_are_fixed():
    assert [exit_name(4), FIRST_STAGE, CASCADE] == ["layer_4", "first_stage", "cascade"]


@pytest.mark.parametrize("name", [FIRST_STAGE, CASCADE, "layer_", "layer_x", "layer_4 ", "my_layer_4", ""])
def test_other_names_are_not_layers(name):
    assert not is_layer(name)
    with pytest.raises(ValueError, match="layer"):
        layer_of(name)


def test_exits_and_layers_are_found_among_columns_in_their_order():
    assert layers_in(COLUMNS) == [12, 2]
    assert exits_in(COLUMNS) == ["layer_12", "first_stage", "layer_2"]


def test_exits_sort_from_first_stage_over_layers_to_cascade():
    names = [CASCADE_FOR_FUSED, CASCADE, "layer_10", "layer_9", FIRST_STAGE, "layer_1"]
    assert sorted(names, key=sort_key) == [FIRST_STAGE, "layer_1", "layer_9", "layer_10", *CASCADES]


@pytest.mark.parametrize("steps", [[(3, 2)], [(2, 2), (10, 4)]])
def test_compressed_name_round_trips(steps):
    name = compressed_name(12, steps)
    assert (layer_of(name), compression_steps(name), is_layer(name)) == (12, steps, False)
    assert compression_steps("layer_12") == compression_steps("layer_12_compressed_3_by_2_x") == []


def test_compressed_exits_come_after_their_layer_and_have_a_label():
    assert compressed_name(6, [(2, 2)]) == "layer_6_compressed_2_by_2"
    columns = [
        "layer_6_compressed_10_by_2",
        "layer_6_compressed_2_by_4",
        "layer_6_fused",
        "layer_6",
        "layer_5",
    ]
    expected = [
        "layer_5",
        "layer_6",
        "layer_6_fused",
        "layer_6_compressed_2_by_4",
        "layer_6_compressed_10_by_2",
    ]
    assert all_exits_in([*columns, "query_id", "tokens"]) == expected
    assert label(compressed_name(6, [(2, 2), (4, 3)])) == "layer 6, compressed 2/2 4/3"
    assert label(fused_name(6, [(2, 2)])) == "layer 6, compressed 2/2, fused"
    assert label("layer_6_fused") == "layer 6, fused"


def test_names_that_are_not_exits_cannot_be_sorted():
    with pytest.raises(ValueError, match="tokens"):
        sort_key("tokens")


def test_labels_hold_no_underscore():
    assert [label(name) for name in (FIRST_STAGE, "layer_4", *CASCADES)] == [
        "first stage",
        "layer 4",
        "cascade",
        "cascade for fused",
    ]


def test_cells_of_two_seeds_share_their_arm():
    cells = [Cell("docs", "tiny", 2, "base", seed) for seed in (0, 1)]
    assert cells[0] != cells[1]
    assert cells[0].arm == cells[1].arm == Arm("docs", "tiny", 2, "base")


@given(st.integers(1, 30), st.integers(0, 30), st.integers(1, 40))
def test_layers_with_a_head_begin_at_the_start_and_end_at_the_last(start, more, every):
    layers = layers_with_head(start, start + more, every)
    assert (layers[0], layers[-1]) == (start, start + more)
    assert all(b - a == every for a, b in pairwise(layers[:-1]))
    assert not more or 1 <= layers[-1] - layers[-2] <= every


def test_layers_are_described_briefly_if_none_is_left_out():
    assert describe_layers([4]) == "4..4"
    assert describe_layers([2, 3, 4]) == "2..4"
    assert describe_layers([2, 4, 5]) == "2, 4, 5"
