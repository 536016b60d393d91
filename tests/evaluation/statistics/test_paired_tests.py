"""Paired tests and intervals, against scipy, statsmodels and numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from lwr.evaluation.statistics.paired_tests import compare_pair, holm, interval

pytestmark = pytest.mark.filterwarnings("error")


def two(queries: int = 40, seeds: int = 1, gain: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """A and B [seeds, queries]; A is better by `gain` on average."""
    rng = np.random.default_rng(7)
    b = rng.uniform(0.2, 0.8, (seeds, queries))
    return b + gain + rng.normal(0, 0.1, (seeds, queries)), b


# --- one comparison ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.0, 0.02, -0.1])
def test_t_test_equals_scipy_on_means_over_seeds(gain):
    a, b = two(seeds=3, gain=gain)
    expected = stats.ttest_rel(a.mean(axis=0), b.mean(axis=0)).pvalue
    assert compare_pair(a, b, True, 0.02)["p t"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gain", [0.0, 0.03, -0.06])
def test_randomisation_is_close_to_exact_test_of_scipy(gain):
    a, b = two(queries=12, gain=gain)
    exact = stats.permutation_test(
        (a[0] - b[0],), np.mean, permutation_type="samples", vectorized=True, n_resamples=2**12
    )
    assert len(exact.null_distribution) == 2**12
    # four standard errors of 9999 draws
    assert compare_pair(a, b, True, 0.02)["p randomisation"] == pytest.approx(exact.pvalue, abs=0.02)


def test_randomisation_of_three_queries_by_hand():
    """Two of eight patterns of signs are as extreme as +, +, +."""
    a = np.array([[0.3, 0.4, 0.6]])
    assert compare_pair(a, np.zeros_like(a), True, 0.0)["p randomisation"] == pytest.approx(0.25, abs=0.02)


def test_rounding_error_of_zero_sum_gives_p_1():
    a = np.array([[0.1, 0.2, -0.3]])
    assert compare_pair(a, np.zeros_like(a), True, 0.0)["p randomisation"] == 1.0


@pytest.mark.parametrize("margin", [0.0, 0.02, 0.1])
def test_non_inferiority_equals_statsmodels(margin):
    a, b = two(gain=-0.03)
    _, expected, _ = DescrStatsW((a - b)[0]).ttest_mean(-margin, alternative="larger")
    assert compare_pair(a, b, True, margin)["p noninferior"] == pytest.approx(expected, rel=1e-9)


def test_effect_size_and_counts_by_hand():
    a, b = np.array([[0.5, 0.5, 0.5, 0.9]]), np.array([[0.4, 0.5, 0.6, 0.5]])
    found = compare_pair(a, b, True, 0.02)
    assert (found["wins"], found["ties"], found["losses"]) == (2, 1, 1)
    assert (found["seeds"], found["queries"]) == (1, 4)
    assert (found["value"], found["versus_value"]) == pytest.approx((0.6, 0.5))
    assert found["difference"] == pytest.approx(0.1)
    # differences .1, 0, -.1, .4: squares about the mean .1 sum to .14, over 3
    assert found["effect size"] == pytest.approx(0.1 / (0.14 / 3) ** 0.5)


def test_copies_of_a_seed_do_not_change_p():
    a, b = two()
    once, thrice = compare_pair(a, b, True, 0.02), compare_pair(a.repeat(3, 0), b.repeat(3, 0), True, 0.02)
    for column in ("p t", "p randomisation", "p noninferior", "effect size", "low", "high", "wins"):
        assert thrice[column] == pytest.approx(once[column], rel=1e-6)


def test_identical_exits_do_not_differ():
    _, b = two(seeds=3)
    found = compare_pair(b[::-1], b, True, 0.02)  # sums in another order: last digits may differ
    assert found["p t"] == found["p randomisation"] == 1
    assert found["effect size"] == 0
    assert found["p noninferior"] == 0
    assert (found["wins"], found["ties"], found["losses"]) == (0, 40, 0)


@pytest.mark.parametrize(
    ("gain", "effect", "p_noninferior"), [(0.1, np.inf, 0), (-0.01, -np.inf, 0), (-0.02, -np.inf, 1)]
)
def test_constant_difference_gives_limits(gain, effect, p_noninferior):
    _, b = two()
    found = compare_pair(b + gain, b, True, 0.02)
    assert found["p t"] == 0
    assert found["p randomisation"] == 0.0001
    assert found["effect size"] == effect
    assert found["p noninferior"] == p_noninferior
    assert (found["low"], found["high"]) == pytest.approx((gain, gain))


def test_single_query_gives_p_1():
    found = compare_pair(np.array([[0.9]]), np.array([[0.1]]), True, 0.02)
    assert found["p t"] == found["p randomisation"] == found["p noninferior"] == 1


# --- intervals -----------------------------------------------------------------------------------------


def width(bounds: tuple[float, float]) -> float:
    return bounds[1] - bounds[0]


def test_interval_of_one_seed_is_close_to_scipy():
    values, _ = two(queries=200)
    expected = stats.bootstrap(
        (values[0],), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert interval(values) == pytest.approx((expected.low, expected.high), abs=0.1 * width(expected))
    assert interval(values) == interval(values)
    assert interval(values) != interval(values, seed=1)


def test_differing_seeds_widen_interval_and_copies_do_not():
    values, _ = two()
    copies = values.repeat(3, axis=0)
    assert interval(copies) == pytest.approx(interval(values))
    apart = copies + np.array([[-0.2], [0.0], [0.2]])
    assert width(interval(apart)) > 2 * width(interval(copies))


def test_seeds_are_resampled_jointly_only_within_an_arm():
    """A is B and 0.1 in each seed; seeds differ much. Only in pairs is that as good as certain."""
    _, b = two(seeds=3)
    b = b + np.array([[-0.3], [0.0], [0.3]])
    jointly, apart = compare_pair(b + 0.1, b, True, 0.02), compare_pair(b + 0.1, b, False, 0.02)
    assert (jointly["low"], jointly["high"]) == pytest.approx((0.1, 0.1))
    assert apart["low"] < -0.1
    assert apart["high"] > 0.3
    assert apart["p t"] == jointly["p t"]


def test_queries_are_resampled_jointly_between_arms():
    _, b = two()
    apart = compare_pair((b + 0.1).repeat(2, axis=0), b, False, 0.02)
    assert (apart["low"], apart["high"]) == pytest.approx((0.1, 0.1))


# --- Holm ----------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # .005 × 4, .01 × 3, .03 × 2, .04 × 1 raised to the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])


def test_holm_equals_statsmodels():
    p = np.random.default_rng(3).uniform(0, 1, 25) ** 3
    p[5] = p[6]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
