"""Paired tests over queries, and bootstrap intervals over queries and seeds.

The unit of a test is the query, with its mean over seeds: more seeds measure a query better, but do not add evidence
about queries. So p-values are about new queries for the given seeds. Intervals resample the seeds as well, and are
wider if the results of training vary between seeds.

Sources: Smucker, Allan and Carterette 2007 (t-test and randomisation in retrieval); Owen 2007, The pigeonhole
bootstrap (resampling two crossed factors); Holm 1979; Cohen 1988 (d_z); Wellek 2010 (non-inferiority).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 2000
EQUAL = 1e-12
"""Differences up to this are zero: means of equal numbers over seeds differ in their last digits."""


def interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Return low and high of the mean's 95% percentile bootstrap interval; the same for the same arguments.

    Args:
        values: float64 [seeds, queries]. Seeds and queries are both drawn with replacement, independently.
        resamples: Number of bootstrap samples.
        seed: The seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    return _middle_95_percent(_resampled_means(values, _draw_queries(values, resamples, rng), rng))


def _draw_queries(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw indices of queries, int64 [resamples, queries]."""
    return rng.integers(values.shape[1], size=(resamples, values.shape[1]))


def _resampled_means(values: np.ndarray, queries: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return means, float64 [resamples], over the given queries and over as many drawn seeds as there are."""
    by_seed = values[:, queries].mean(axis=2)  # [seeds, resamples]
    seeds = rng.integers(len(values), size=by_seed.shape)  # [seeds, resamples]
    return np.take_along_axis(by_seed, seeds, axis=0).mean(axis=0)


def _middle_95_percent(means: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def compare_pair(a: np.ndarray, b: np.ndarray, paired_seeds: bool, margin: float) -> dict[str, float]:
    """Compare A with B over the same queries; no p-value is adjusted.

    Args:
        a: float64 [seeds, queries] of A.
        b: float64 [seeds, queries] of B, its queries in the same order.
        paired_seeds: Whether row i of both is of one training. Seeds are then resampled jointly, otherwise
            independently. Queries are always resampled jointly.
        margin: In units of the measure; A is not inferior if the difference is larger than -margin.

    Returns:
        `difference` is A's mean less B's, `low` and `high` its bootstrap interval. `p t` and `p randomisation` are
        two-sided; `p noninferior` is a one-sided t-test of H0: difference <= -margin. `effect size` is Cohen's d_z:
        the mean of the queries' differences over their sample standard deviation. If all queries have the same
        difference, the effect size is 0 for a difference of 0, otherwise infinite with its sign, and t-tests give their
        limits: 1 if the tested hypothesis holds, otherwise 0. With a single query, p is 1. `wins`, `ties` and `losses`
        count queries.
    """
    differences = a.mean(axis=0) - b.mean(axis=0)  # [queries]
    low, high = interval(a - b) if paired_seeds else _interval_of_independent_seeds(a, b)
    return {
        "seeds": len(a),
        "queries": len(differences),
        "value": a.mean(),
        "versus_value": b.mean(),
        "difference": differences.mean(),
        "low": low,
        "high": high,
        "p t": _p_t(differences, 0.0, "two-sided"),
        "p randomisation": _p_randomisation(differences),
        "effect size": _effect_size(differences),
        "p noninferior": _p_t(differences, -margin, "greater"),
        "wins": int((differences > EQUAL).sum()),
        "ties": int((abs(differences) <= EQUAL).sum()),
        "losses": int((differences < -EQUAL).sum()),
    }


def _interval_of_independent_seeds(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    queries = _draw_queries(a, RESAMPLES, rng)
    return _middle_95_percent(_resampled_means(a, queries, rng) - _resampled_means(b, queries, rng))


def _p_t(differences: np.ndarray, null: float, alternative: str) -> float:
    if len(differences) == 1:
        return 1.0
    if np.ptp(differences) > EQUAL:
        result: Any = stats.ttest_1samp(differences, null, alternative=alternative)
        return float(result.pvalue)
    beyond = differences.mean() - null
    rejected = beyond > EQUAL if alternative == "greater" else abs(beyond) > EQUAL
    return 0.0 if rejected else 1.0


def _p_randomisation(differences: np.ndarray) -> float:
    """Compute the two-sided p of 9999 random flips of the sign of each query's difference; at least 0.0001.

    scipy.stats.permutation_test does the same forty times slower, because it permutes; a matrix product is enough.
    """
    rng = np.random.default_rng(0)
    flipped = rng.integers(2, size=(9999, len(differences)), dtype=np.int8).astype(np.float64)
    total = differences.sum()
    as_extreme = abs(total - 2 * (flipped @ differences)) >= abs(total) - EQUAL  # [9999]
    return float((1 + as_extreme.sum()) / 10_000)


def _effect_size(differences: np.ndarray) -> float:
    mean = differences.mean()
    if np.ptp(differences) > EQUAL:
        return float(mean / differences.std(ddof=1))
    return float(np.copysign(np.inf, mean)) if abs(mean) > EQUAL else 0.0


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjust the p-values of one family by Holm's step-down method; float64 [tests], in the given order."""
    raw = np.asarray(p, dtype=np.float64)
    order = np.argsort(raw)
    stepped = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
