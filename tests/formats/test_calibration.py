"""Lines of calibrations: the file, and which line turns a candidate's score into a probability."""

from __future__ import annotations

import numpy as np
import pytest

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_json
from lwr.formats.calibration import (
    Logistic,
    calibration_record,
    lines_of_layers,
    probabilities_of,
    read_calibration,
)

LINES = {
    "first_stage": Logistic(0.1, -3.0),
    "layer_2": Logistic(0.5, -2.0),
    "layer_3": Logistic(1.5, -1.0),
    "layer_3_compressed_2_by_2": Logistic(1.25, -1.0),
    "layer_3_fused": Logistic(2.5, -4.0),
}


def test_lines_are_read_as_they_were_written(tmp_path):
    write_json(tmp_path / "calibration.json", calibration_record(LINES))
    assert read_calibration(tmp_path / "calibration.json") == LINES


@pytest.mark.parametrize(
    "maps",
    [
        {},
        None,
        {"logistic": {"slope": 1.0}},
        {"logistic": {"slope": -0.5, "intercept": 0.0}},
        {"logistic": {"slope": "steep", "intercept": 0.0}},
        {"logistic": {"slope": float("inf"), "intercept": 0.0}},
    ],
)
def test_line_that_is_none_is_refused(tmp_path, maps):
    write_json(tmp_path / "c.json", {"exits": {"layer_2": maps}})
    with pytest.raises(BadInput, match=r"c\.json.*(layer_2: expected `logistic`|Infinity)"):
        read_calibration(tmp_path / "c.json")


def test_line_is_that_of_the_layer_as_it_was_read():
    assert lines_of_layers(LINES, [0, 2, 3]) == {
        0: LINES["first_stage"],
        2: LINES["layer_2"],
        3: LINES["layer_3"],
    }
    steps = [(2, 2)]
    compressed = {2: LINES["layer_2"], 3: LINES["layer_3_compressed_2_by_2"]}
    assert lines_of_layers(LINES, [2, 3], steps) == compressed
    fused = {0: LINES["first_stage"], 3: LINES["layer_3_fused"]}
    assert lines_of_layers(LINES, [0, 3], fused=True, has_first_stage=True) == fused


@pytest.mark.parametrize(
    ("calibration", "how", "expected"),
    [
        (None, {}, "the reranker has no calibration"),
        (LINES, {"layers": [2, 4]}, "no calibration of layer_4, only of first_stage, layer_2"),
        (LINES, {"fused": True, "has_first_stage": True}, "no calibration of layer_2_fused"),
        (LINES, {"fused": True, "layers": [3]}, "give first_stage, or do not fuse"),
    ],
)
def test_exit_without_a_line_is_refused(calibration, how, expected):
    with pytest.raises(ValueError, match=expected):
        lines_of_layers(calibration, **{"layers": [2], **how})


def test_each_candidate_gets_the_probability_of_its_layer():
    scores, layers = np.array([2.0, 0.0, 10.0]), np.array([3, 2, 0])
    expected = [1 / (1 + np.exp(-z)) for z in (1.5 * 2 - 1, -2.0, 0.1 * 10 - 3)]
    lines = lines_of_layers(LINES, [0, 2, 3])
    np.testing.assert_allclose(probabilities_of(scores, layers, lines), expected)
