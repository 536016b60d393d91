"""Choose the cheapest schedule that keeps its promise on new queries, at a stated confidence.

The cheapest of thousands of schedules whose mean on dev keeps 99% of the deepest exit's quality is often one that was
lucky on these queries. So a schedule must keep more than that on dev, by a margin. The margin is counted in standard
errors of the schedule's own surplus: one that hardly differs from the deepest exit needs little. It is the smallest
with which the complete search, repeated on bootstrap samples of the dev queries, chooses a schedule that breaks the
promise on an independent sample of as many queries in at most 1 - confidence of the repetitions. The search is repeated
as a whole, so the margin accounts for the number of schedules that are tried.

Source of the bootstrap: Efron and Tibshirani (1993), An Introduction to the Bootstrap.

Letters of shapes: S schedules, Q queries, B bootstrap samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

SAMPLES = 1000
"""Number of repetitions of the search."""
SAMPLES_AT_ONCE = 100
SMALLEST_DEVIATION = 1e-6
"""Of a schedule's surplus over queries: what equals the deepest exit everywhere has none."""
MARGINS = np.linspace(0, 4, 101)
"""Margins that are tried, in standard errors of the mean."""


@dataclass(frozen=True)
class Choice:
    """The chosen schedule, and what is to be expected of it on as many new queries as dev has.

    Attributes:
        index: The schedule; None if none keeps the promise at this confidence.
        margin: How many standard errors the mean on dev had to lie above the promise. NaN if no margin suffices.
        shortfall: Expected loss of the search as a share of the reference's quality; negative: a gain. Where the search
            finds nothing, the reference itself is taken, which loses nothing. NaN without a choice.
        shortfall_bound: The loss of the search that is not exceeded at the stated confidence; at most epsilon. NaN
            without a choice.
        queries_needed: About how many dev queries the best schedule needs at least to pass; None if one is chosen, or
            if no schedule keeps the promise on these dev queries even without a margin.
    """

    index: int | None
    margin: float
    shortfall: float
    shortfall_bound: float
    queries_needed: int | None


def choose_schedule(
    quality: np.ndarray,
    flops: np.ndarray,
    reference: np.ndarray,
    epsilon: float,
    confidence: float,
    seed: int = 0,
) -> Choice:
    """Choose the cheapest schedule that keeps at least 1 - epsilon of the reference's mean quality.

    Args:
        quality: float64 [S, Q], of each schedule and dev query.
        flops: float64 [S].
        reference: float64 [Q], of the exit whose quality is to be kept: the deepest, by its own or its fused scores.
        epsilon: The share of the reference's quality that may be lost.
        confidence: The probability, in 0.5..1, that the choice keeps the promise on as many new queries.
        seed: Random seed of the bootstrap.
    """
    cheapest_first = np.lexsort((-quality.mean(axis=1), flops))
    quality = quality[cheapest_first]
    surplus = quality - (1 - epsilon) * reference  # [S, Q]; the promise is a mean of at least 0
    deviation = np.maximum(surplus.std(axis=1, keepdims=True), SMALLEST_DEVIATION)
    scaled = surplus / deviation * np.sqrt(reference.size)  # [S, Q]; its mean is in standard errors
    searched, confirmed = _bootstrap_shares(reference.size, seed)  # [Q, B] each
    found = _repeat_search(scaled, searched)  # [M, B]
    misses = (_means_at(surplus, found, confirmed) < 0).mean(axis=1)  # [M]; False where nothing was found
    too_often = np.flatnonzero(misses > 1 - confidence)
    least = too_often[-1] + 1 if too_often.size else 0  # all greater margins suffice, too
    margin = float(MARGINS[least]) if least < len(MARGINS) else float("nan")
    on_dev = scaled.mean(axis=1)  # [S]
    if not on_dev.max() >= margin:
        return Choice(None, margin, float("nan"), float("nan"), _queries_needed(surplus, confidence))
    chosen = int(np.argmax(on_dev >= margin))
    of_reference = reference @ confirmed  # [B]
    of_choice = _means_at(quality, found[least], confirmed)  # [B]
    of_choice = np.where(
        found[least] < len(quality), of_choice, of_reference
    )  # without a choice: the reference
    loses_nothing = np.ones_like(of_reference)  # where the reference has none of the quality
    kept = np.divide(of_choice, of_reference, out=loses_nothing, where=of_reference > 0)
    bound = float(1 - np.quantile(kept, 1 - confidence, method="higher"))
    return Choice(int(cheapest_first[chosen]), margin, float(1 - kept.mean()), bound, None)


def _bootstrap_shares(queries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs of independent bootstrap samples: float64 [Q, B] twice, the share of each query in a sample."""
    draw = np.random.default_rng(seed).multinomial(queries, np.full(queries, 1 / queries), (2, SAMPLES))
    searched, confirmed = draw.transpose(0, 2, 1) / queries
    return searched, confirmed


def _repeat_search(scaled: np.ndarray, searched: np.ndarray) -> np.ndarray:
    """Repeat the search on bootstrap samples: int [M, B], the first schedule that exceeds each margin; S for none."""
    found = np.empty((len(MARGINS), searched.shape[1]), dtype=np.int64)
    for sample in range(0, searched.shape[1], SAMPLES_AT_ONCE):
        means = scaled @ searched[:, sample : sample + SAMPLES_AT_ONCE]  # [S, some of B]
        best_so_far = np.maximum.accumulate(means, axis=0)
        for offset, column in enumerate(best_so_far.T):
            found[:, sample + offset] = np.searchsorted(column, MARGINS)
    return found


def _means_at(values: np.ndarray, index: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return each sample's mean of one schedule's values; NaN where the schedule is S, none.

    Args:
        values: float64 [S, Q].
        index: int [..., B], a schedule for each sample.
        shares: float64 [Q, B], the share of each query in a sample.

    Returns:
        float64 [..., B].
    """
    rows, place = np.unique(index, return_inverse=True)  # few of the schedules are ever chosen
    with_none = np.vstack([values, np.full(values.shape[1], np.nan)])
    means = with_none[rows] @ shares  # [rows, B]
    return means[place.reshape(index.shape), np.arange(shares.shape[1])]


def _queries_needed(surplus: np.ndarray, confidence: float) -> int | None:
    """Estimate how many dev queries the most certain schedule needs to keep the promise on as many new ones.

    The mean on dev and that on new queries both vary, hence the 2. The number of schedules is not taken into account:
    the estimate is a lower bound. None if no schedule keeps the promise on dev.
    """
    deviations = np.maximum(surplus.std(axis=1), SMALLEST_DEVIATION)  # [S]
    certainty = (surplus.mean(axis=1) / deviations).max()
    if certainty <= 0:
        return None
    return max(surplus.shape[1] + 1, int(np.ceil(2 * (norm.ppf(confidence) / certainty) ** 2)))
