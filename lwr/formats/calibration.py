"""The calibration of an exit: the line that turns its scores into probabilities of relevance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
