"""Calibrations: the lines that turn the scores of exits into probabilities of relevance.

`lwr calibrate` fits them on dev. A folder of a reranker holds them in `calibration.json`, in the layout of that step's
file, of which only the lines are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from lwr.common.errors import BadInput
from lwr.common.exits import FIRST_STAGE, CompressionStep, fused_name, read_name
from lwr.common.json_lines import read_json

FILE_NAME = "calibration.json"
"""The name of the file in a folder of a model."""


@dataclass(frozen=True)
class Logistic:
    """A score s has the probability 1 / (1 + exp(-(slope * s + intercept))); the slope is not negative."""

    slope: float
    intercept: float

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability of relevance of each score, float64 of the same shape."""
        line = self.slope * np.asarray(scores, dtype=np.float64) + self.intercept
        return np.exp(-np.logaddexp(0.0, -line))


RAW = Logistic(1.0, 0.0)
"""Scores that are taken for the logarithm of the odds as they are (`normalize=True`)."""

Calibration = dict[str, Logistic]
"""Name of an exit, fused or not, or `first_stage` -> its line."""


def calibration_record(calibration: Calibration) -> dict[str, Any]:
    """Return the lines as `calibration.json` holds them."""
    return {"exits": {exit: {"logistic": asdict(line)} for exit, line in calibration.items()}}


def read_calibration(path: Path) -> Calibration:
    """Read the lines of a file that `lwr calibrate` or `save_pretrained` wrote.

    Raises:
        BadInput: The file cannot be read as such, or a line is not of a finite slope from 0 on and intercept.
    """
    exits = read_json(path, {"exits": dict})["exits"]
    return {exit: _read_line(path, exit, maps) for exit, maps in exits.items()}


def _read_line(path: Path, exit: str, maps: Any) -> Logistic:
    try:
        line = Logistic(float(maps["logistic"]["slope"]), float(maps["logistic"]["intercept"]))
        is_valid = isfinite(line.slope) and line.slope >= 0 and isfinite(line.intercept)
    except (KeyError, TypeError, ValueError):
        is_valid, line = False, RAW
    if not is_valid:
        raise BadInput(
            f"{path}: exits, {exit}: expected `logistic` with a finite slope from 0 on and a finite intercept; "
            "run `lwr calibrate` again"
        )
    return line


def lines_of_layers(
    calibration: Calibration | None,
    layers: Iterable[int],
    steps: Sequence[CompressionStep] = (),
    fused: bool = False,
    has_first_stage: bool = False,
) -> dict[int, Logistic]:
    """Return the line of each layer at which candidates may be scored last.

    Args:
        calibration: The lines of a reranker; None: it has none.
        layers: The layers; 0: the first stage.
        steps: The steps of a compression.
        fused: Whether scores are fused.
        has_first_stage: Whether the first stage's scores are among what is fused.

    Raises:
        ValueError: There is no calibration, or none of such an exit.
    """
    if calibration is None:
        raise ValueError(
            "the reranker has no calibration, which probabilities need: set its `calibration` to what read_calibration "
            "reads from the file that `lwr calibrate` wrote"
        )
    if fused and not has_first_stage:
        raise ValueError(
            "fused scores are calibrated with the first stage's: give first_stage, or do not fuse"
        )
    name_of = fused_name if fused else read_name
    names = {layer: name_of(layer, steps) if layer else FIRST_STAGE for layer in layers}
    for name in names.values():
        if name not in calibration:
            raise ValueError(f"no calibration of {name}, only of {', '.join(calibration)}")
    return {layer: calibration[name] for layer, name in names.items()}


def probabilities_of(scores: np.ndarray, layers: np.ndarray, lines: Mapping[int, Logistic]) -> np.ndarray:
    """Return the probability of relevance of each candidate, float64 [C].

    Args:
        scores: float [C], the score of each candidate at its layer.
        layers: int [C].
        lines: The line of each layer.
    """
    probabilities = np.zeros(len(scores))
    for layer, line in lines.items():
        at_layer = layers == layer
        probabilities[at_layer] = line.probabilities(scores[at_layer])
    return probabilities
