"""Comparisons of exits: against scipy, statsmodels and numbers worked by hand; and what is compared to what."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from lwr.evaluation.compare import COLUMNS, compare, comparison, holm, interval, readable_comparisons


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def two(queries: int = 40, seeds: int = 1, gain: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """A and B [seeds, queries]; A is better by `gain` on average."""
    rng = np.random.default_rng(7)
    b = rng.uniform(0.2, 0.8, (seeds, queries))
    return b + gain + rng.normal(0, 0.1, (seeds, queries)), b


# --- one comparison ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.0, 0.02, -0.1])
def test_t_test_equals_scipys_on_means_over_seeds(gain):
    a, b = two(seeds=3, gain=gain)
    expected = stats.ttest_rel(a.mean(axis=0), b.mean(axis=0)).pvalue
    assert comparison(a, b, True, 0.02)["p t"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gain", [0.0, 0.03, -0.06])
def test_randomisation_is_close_to_scipys_exact_test(gain):
    a, b = two(queries=12, gain=gain)
    exact = stats.permutation_test(
        (a[0] - b[0],), np.mean, permutation_type="samples", vectorized=True, n_resamples=2**12
    )
    assert len(exact.null_distribution) == 2**12
    # four standard errors of 9999 draws
    assert comparison(a, b, True, 0.02)["p randomisation"] == pytest.approx(exact.pvalue, abs=0.02)


def test_randomisation_of_three_queries_by_hand():
    """Of eight patterns of signs two lie as far out as +, +, +."""
    a = np.array([[0.3, 0.4, 0.6]])
    assert comparison(a, np.zeros_like(a), True, 0.0)["p randomisation"] == pytest.approx(0.25, abs=0.02)


def test_a_sum_that_is_0_but_for_its_last_digit_is_never_far_out():
    a = np.array([[0.1, 0.2, -0.3]])
    assert comparison(a, np.zeros_like(a), True, 0.0)["p randomisation"] == 1.0


@pytest.mark.parametrize("margin", [0.0, 0.02, 0.1])
def test_non_inferiority_equals_statsmodels(margin):
    a, b = two(gain=-0.03)
    _, expected, _ = DescrStatsW((a - b)[0]).ttest_mean(-margin, alternative="larger")
    assert comparison(a, b, True, margin)["p noninferior"] == pytest.approx(expected, rel=1e-9)


def test_effect_size_and_counts_by_hand():
    a, b = np.array([[0.5, 0.5, 0.5, 0.9]]), np.array([[0.4, 0.5, 0.6, 0.5]])
    found = comparison(a, b, True, 0.02)
    assert (found["wins"], found["ties"], found["losses"]) == (2, 1, 1)
    assert (found["seeds"], found["queries"]) == (1, 4)
    assert (found["value"], found["versus_value"]) == pytest.approx((0.6, 0.5))
    assert found["difference"] == pytest.approx(0.1)
    # differences .1, 0, -.1, .4: squares about the mean .1 sum to .14, over 3
    assert found["effect size"] == pytest.approx(0.1 / (0.14 / 3) ** 0.5)


def test_more_seeds_of_the_same_are_no_more_evidence():
    a, b = two()
    once, thrice = comparison(a, b, True, 0.02), comparison(a.repeat(3, 0), b.repeat(3, 0), True, 0.02)
    for column in ("p t", "p randomisation", "p noninferior", "effect size", "low", "high", "wins"):
        assert thrice[column] == pytest.approx(once[column], rel=1e-6)


def test_identical_exits_differ_in_nothing():
    _, b = two(seeds=3)
    found = comparison(b[::-1], b, True, 0.02)  # sums in another order: last digits may differ
    assert found["p t"] == found["p randomisation"] == 1
    assert found["effect size"] == 0
    assert found["p noninferior"] == 0
    assert (found["wins"], found["ties"], found["losses"]) == (0, 40, 0)


@pytest.mark.parametrize(
    ("gain", "effect", "p_noninferior"), [(0.1, np.inf, 0), (-0.01, -np.inf, 0), (-0.02, -np.inf, 1)]
)
def test_the_same_difference_everywhere_gives_the_limits(gain, effect, p_noninferior):
    _, b = two()
    found = comparison(b + gain, b, True, 0.02)
    assert found["p t"] == 0
    assert found["p randomisation"] == 0.0001
    assert found["effect size"] == effect
    assert found["p noninferior"] == p_noninferior
    assert (found["low"], found["high"]) == pytest.approx((gain, gain))


def test_one_query_is_no_evidence():
    found = comparison(np.array([[0.9]]), np.array([[0.1]]), True, 0.02)
    assert found["p t"] == found["p randomisation"] == found["p noninferior"] == 1


# --- intervals -----------------------------------------------------------------------------------------


def width(bounds: tuple[float, float]) -> float:
    return bounds[1] - bounds[0]


def test_interval_of_one_seed_is_close_to_scipys():
    values, _ = two(queries=200)
    expected = stats.bootstrap(
        (values[0],), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert interval(values) == pytest.approx((expected.low, expected.high), abs=0.1 * width(expected))
    assert interval(values) == interval(values)
    assert interval(values) != interval(values, seed=1)


def test_copies_of_a_seed_leave_the_interval_and_seeds_that_differ_widen_it():
    values, _ = two()
    copies = values.repeat(3, axis=0)
    assert interval(copies) == pytest.approx(interval(values))
    apart = copies + np.array([[-0.2], [0.0], [0.2]])
    assert width(interval(apart)) > 2 * width(interval(copies))


def test_seeds_are_resampled_jointly_within_an_arm_and_apart_between_arms():
    """A is B and 0.1 in each seed; seeds differ much. Only in pairs is that as good as certain."""
    _, b = two(seeds=3)
    b = b + np.array([[-0.3], [0.0], [0.3]])
    jointly, apart = comparison(b + 0.1, b, True, 0.02), comparison(b + 0.1, b, False, 0.02)
    assert (jointly["low"], jointly["high"]) == pytest.approx((0.1, 0.1))
    assert apart["low"] < -0.1
    assert apart["high"] > 0.3
    assert apart["p t"] == jointly["p t"]


def test_queries_are_resampled_jointly_between_arms():
    _, b = two()
    apart = comparison((b + 0.1).repeat(2, axis=0), b, False, 0.02)
    assert (apart["low"], apart["high"]) == pytest.approx((0.1, 0.1))


# --- Holm ----------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # .005 × 4, .01 × 3, .03 × 2, .04 × 1 raised to what stands before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])


def test_holm_equals_statsmodels():
    p = np.random.default_rng(3).uniform(0, 1, 25) ** 3
    p[5] = p[6]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


# --- a grid --------------------------------------------------------------------------------------------


def measured(
    exits: dict[str, float], seeds: int = 1, split: str = "test", dataset: str = "d", **arm
) -> pd.DataFrame:
    """Twelve queries per exit, each query off by its own amount and each exit but the first stage by a little noise."""
    about = {"dataset": dataset, "trained_on": dataset, "base_model": "m", "start_layer": 2, "variant": "v"}
    rows = []
    for seed in range(seeds):
        for exit, mean in exits.items():
            noise = np.random.default_rng([seed, *exit.encode()]).normal(0, 0.005, 12)
            values = mean + np.linspace(-0.2, 0.2, 12) + noise * (exit != "first_stage")
            about_exit = {"seed": seed, "split": split, "exit": exit, "measure": "nDCG@10"}
            rows += [
                {**about, **arm, **about_exit, "query_id": f"q{query}", "value": value}
                for query, value in enumerate(values)
            ]
    return pd.DataFrame(rows)


GOOD = {"first_stage": 0.4, "layer_2": 0.3, "layer_4": 0.495, "layer_10": 0.5}


def compared(*cells: pd.DataFrame) -> pd.DataFrame:
    return compare(pd.concat(cells), "nDCG@10", 0.02)


def whose(table: pd.DataFrame, family: str) -> list[tuple[str, str]]:
    rows = table[table["family"] == family]
    return list(zip(rows["exit"], rows["versus_exit"], strict=True))


def test_each_exit_against_the_deepest_and_the_first_stage():
    table = compared(measured(GOOD | {"cascade": 0.45}, seeds=2))
    assert list(table.columns) == COLUMNS
    assert whose(table, "deepest") == [(name, "layer_10") for name in ("layer_2", "layer_4", "cascade")]
    assert whose(table, "first stage") == [
        (name, "first_stage") for name in ("layer_2", "layer_4", "layer_10", "cascade")
    ]
    assert whose(table, "arms") == []
    first = table[table["family"] == "first stage"]
    about_first = first[["versus_trained_on", "versus_base_model", "versus_start_layer", "versus_variant"]]
    assert {*about_first.itertuples(index=False, name=None)} == {("", "", 0, "")}
    assert set(table["seeds"]) == {2}
    assert set(table["queries"]) == {12}


def test_what_is_better_by_construction_is_found_better():
    table = compared(measured(GOOD, seeds=3)).set_index(["family", "exit"])
    worse, close = table.loc[("deepest", "layer_2")], table.loc[("deepest", "layer_4")]
    assert worse["p Holm"] < 0.01
    assert worse["high"] < -0.1
    assert not worse["noninferior"]
    assert close["difference"] == pytest.approx(-0.005, abs=0.01)
    assert close["noninferior"]
    better = table.loc[("first stage", "layer_10")]
    assert better["p Holm"] < 0.01
    assert better["low"] > 0.05
    assert better["wins"] == 12
    assert (
        table.loc["first stage", ["p noninferior", "p noninferior Holm", "noninferior"]].isna().all(axis=None)
    )


def test_arms_against_the_first_in_layers_that_both_have():
    cells = [
        measured(GOOD, base_model="zeta"),
        measured({"first_stage": 0.4, "layer_4": 0.5, "layer_10": 0.5}, base_model="alpha", start_layer=4),
    ]
    arms = compared(*cells).query("family == 'arms'")
    assert whose(arms, "arms") == [("layer_4", "layer_4"), ("layer_10", "layer_10")]
    assert set(arms["base_model"]) == {"alpha"}
    assert set(arms["versus_base_model"]) == {"zeta"}
    assert set(arms["versus_start_layer"]) == {2}


def test_deepest_against_deepest_where_their_numbers_differ():
    control = {"first_stage": 0.4, "layer_2": 0.3, "layer_4": 0.5, "cascade": 0.4}
    table = compared(measured(GOOD | {"cascade": 0.4}), measured(control, base_model="control"))
    assert whose(table, "arms") == [("layer_2", "layer_2"), ("layer_4", "layer_4"), ("layer_4", "layer_10")]


def test_arms_of_the_same_values_are_the_same():
    cells = [measured(GOOD, seeds=2), measured(GOOD, seeds=2, variant="w")]
    arms = compared(*cells).query("family == 'arms'")
    assert list(arms["p Holm"]) == list(arms["p t"]) == [1, 1, 1]
    assert (arms["ties"] == 12).all()
    assert (arms["low"] < 0).all()  # seeds of two arms are no pairs
    assert (arms["high"] > 0).all()


def test_seeds_need_not_be_as_many_in_each_arm():
    table = compared(measured(GOOD, seeds=3), measured(GOOD, seeds=1, variant="w"))
    assert list(table.query("family == 'arms'")["seeds"]) == [1, 1, 1]


def test_holm_stays_within_split_data_set_and_family():
    one = compared(measured(GOOD))
    cells = [
        measured(GOOD, dataset=dataset, split=split) for dataset in ("z", "d") for split in ("test", "dev")
    ]
    many = compared(*cells)
    for (split, dataset), rows in many.groupby(["split", "dataset"]):
        for column in ("p Holm", "p noninferior Holm"):
            pd.testing.assert_series_equal(rows.reset_index()[column], one[column]), (split, dataset)
    for family, rows in one.groupby("family"):
        assert list(rows["p Holm"]) == pytest.approx(holm(rows["p randomisation"])), family
    deepest = one.query("family == 'deepest'")
    assert list(deepest["p noninferior Holm"]) == pytest.approx(holm(deepest["p noninferior"]))


def test_rows_keep_the_grids_order():
    cells = [measured(GOOD, dataset=dataset, base_model=base) for dataset in "zd" for base in "yc"]
    table = compared(*cells)
    assert list(dict.fromkeys(table["dataset"])) == ["z", "d"]
    assert list(dict.fromkeys(table["family"])) == ["deepest", "first stage", "arms"]
    assert list(dict.fromkeys(table["base_model"])) == ["y", "c"]
    assert set(table["versus_base_model"]) == {"y", "c", ""}
    assert set(table.query("family == 'arms'")["versus_base_model"]) == {"y"}


def test_the_order_of_rows_within_an_exit_is_nothing():
    cell = measured(GOOD, seeds=2)
    shuffled = pd.concat([rows.iloc[::-1] for _, rows in cell.groupby("exit", sort=False)])
    pd.testing.assert_frame_equal(compared(shuffled), compared(cell))


def test_other_measures_are_left_out():
    cell = measured(GOOD)
    other = cell.assign(measure="RR", value=0.0)
    pd.testing.assert_frame_equal(compared(cell, other), compared(cell))


def test_a_model_of_one_layer_has_nothing_to_compare_it_to_but_the_first_stage():
    table = compared(measured({"first_stage": 0.4, "layer_4": 0.5}))
    assert whose(table, "first stage") == [("layer_4", "first_stage")]
    assert len(table) == 1


def missing_query(cell: pd.DataFrame) -> pd.DataFrame:
    return cell[(cell["exit"] != "layer_4") | (cell["query_id"] != "q3")]


def missing_seed(cell: pd.DataFrame) -> pd.DataFrame:
    return cell[(cell["exit"] != "layer_4") | (cell["seed"] != 1)]


def twice(cell: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([cell, cell[cell["exit"] == "layer_4"]])


@pytest.mark.parametrize("spoil", [missing_query, missing_seed, twice])
def test_an_exit_without_its_full_rectangle_is_named(spoil):
    with pytest.raises(ValueError, match="test split of d: layer_4 of d m 2 v must have each of 12 queries"):
        compared(spoil(measured(GOOD, seeds=2)))


# --- for people ----------------------------------------------------------------------------------------


def test_the_text():
    row = compared(measured(GOOD, base_model="minilm")).query("family == 'deepest'").iloc[:1]
    row = row.assign(difference=-0.0123, low=-0.0311, high=0.0058)
    row = row.assign(**{"p Holm": 0.0004, "effect size": -0.314, "wins": 31, "ties": 140, "losses": 29})
    assert readable_comparisons(row, 0.02).to_dict("records") == [
        {
            "data set": "d",
            "what": "minilm start 2: layer 2",
            "against": "layer 10",
            "difference": "-0.012 [-0.031, +0.006]",
            "p (Holm)": "<0.001",
            "effect size": "-0.31",
            "won/tied/lost": "31/140/29",
            "not worse by 0.02": "no",
        }
    ]


def test_the_text_says_against_what():
    table = compared(measured(GOOD), measured(GOOD, start_layer=4))
    text = readable_comparisons(table, 0.02).assign(family=table["family"]).set_index("family")
    assert list(text.loc["deepest", "not worse by 0.02"]) == ["no", "yes"] * 2
    assert set(text.loc[["first stage", "arms"], "not worse by 0.02"]) == {""}
    assert set(text.loc["first stage", "against"]) == {"first stage"}
    assert list(text.loc["arms", "what"]) == [f"m start 4: layer {layer}" for layer in (2, 4, 10)]
    assert list(text.loc["arms", "against"]) == [f"m start 2: layer {layer}" for layer in (2, 4, 10)]
    assert set(text.loc["arms", "difference"].str[:6]) == {"+0.000"}
    assert set(text.loc["arms", "p (Holm)"]) == {"1.000"}


def test_the_text_tells_variants_and_what_was_trained_on_where_there_are_others():
    table = compared(measured(GOOD), measured(GOOD, variant="w", trained_on="big")).query("family == 'arms'")
    text = readable_comparisons(table, 0.02)
    assert text["what"].iloc[0] == "m start 2 w trained on big: layer 2"
    assert text["against"].iloc[0] == "m start 2 v trained on d: layer 2"
