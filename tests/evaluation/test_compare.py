"""Which exits are compared with which, and how the comparisons are written."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lwr.evaluation.compare import COLUMNS, FAMILY_TITLES, compare, compare_exits, format_comparisons
from lwr.evaluation.statistics.paired_tests import holm

pytestmark = pytest.mark.filterwarnings("error")


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
    return compare_exits(pd.concat(cells), "nDCG@10", 0.02)


def whose(table: pd.DataFrame, family: str) -> list[tuple[str, str]]:
    rows = table[table["family"] == family]
    return list(zip(rows["exit"], rows["versus_exit"], strict=True))


def test_exits_are_compared_with_deepest_and_first_stage():
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


FUSED = {"first_stage": 0.4, "layer_2": 0.3, "layer_2_fused": 0.45, "layer_4": 0.5, "layer_4_fused": 0.55}


def test_exits_are_compared_with_the_plain_and_the_fused_deepest_exit():
    table = compared(measured(FUSED | {"cascade": 0.545}))
    others = ["layer_2", "layer_2_fused", "layer_4_fused", "cascade"]
    assert whose(table, "deepest") == [(name, "layer_4") for name in others]
    others = ["layer_2", "layer_2_fused", "layer_4", "cascade"]
    assert whose(table, "fused deepest") == [(name, "layer_4_fused") for name in others]
    assert len(whose(table, "first stage")) == 5
    tested = table.set_index(["family", "exit"])["noninferior"]
    assert tested["deepest"].to_dict() == dict.fromkeys(others[:1], False) | {
        "layer_2_fused": False,
        "layer_4_fused": True,
        "cascade": True,
    }
    assert tested["fused deepest"].to_dict() == dict.fromkeys(others[:3], False) | {"cascade": True}
    assert tested["first stage"].isna().all()


def test_fused_exits_of_arms_are_compared_with_fused_ones():
    table = compared(measured(FUSED), measured(FUSED, start_layer=3))
    assert whose(table, "arms") == [("layer_2", "layer_2"), ("layer_4", "layer_4")]
    assert whose(table, "fused arms") == [(name, name) for name in ("layer_2_fused", "layer_4_fused")]
    for family, rows in table.groupby("family"):
        assert list(rows["p Holm"]) == pytest.approx(holm(rows["p randomisation"])), family
    text = format_comparisons(table.query("family == 'fused arms'"), 0.02)
    assert text["against"].iloc[0] == "m start 2: layer 2, fused"


def test_exit_better_by_construction_is_significantly_better():
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


def test_arms_are_compared_with_first_arm_at_shared_layers():
    cells = [
        measured(GOOD, base_model="zeta"),
        measured({"first_stage": 0.4, "layer_4": 0.5, "layer_10": 0.5}, base_model="alpha", start_layer=4),
    ]
    arms = compared(*cells).query("family == 'arms'")
    assert whose(arms, "arms") == [("layer_4", "layer_4"), ("layer_10", "layer_10")]
    assert set(arms["base_model"]) == {"alpha"}
    assert set(arms["versus_base_model"]) == {"zeta"}
    assert set(arms["versus_start_layer"]) == {2}


def test_deepest_layers_are_compared_where_they_differ():
    control = {"first_stage": 0.4, "layer_2": 0.3, "layer_4": 0.5, "cascade": 0.4}
    table = compared(measured(GOOD | {"cascade": 0.4}), measured(control, base_model="control"))
    assert whose(table, "arms") == [("layer_2", "layer_2"), ("layer_4", "layer_4"), ("layer_4", "layer_10")]


def test_arms_of_equal_values_do_not_differ():
    cells = [measured(GOOD, seeds=2), measured(GOOD, seeds=2, variant="w")]
    arms = compared(*cells).query("family == 'arms'")
    assert list(arms["p Holm"]) == list(arms["p t"]) == [1, 1, 1]
    assert (arms["ties"] == 12).all()
    assert (arms["low"] < 0).all()  # seeds of two arms are no pairs
    assert (arms["high"] > 0).all()


def test_arms_may_differ_in_number_of_seeds():
    table = compared(measured(GOOD, seeds=3), measured(GOOD, seeds=1, variant="w"))
    assert list(table.query("family == 'arms'")["seeds"]) == [1, 1, 1]


def test_holm_adjusts_within_split_data_set_and_family():
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


def test_rows_keep_the_order_of_the_grid():
    cells = [measured(GOOD, dataset=dataset, base_model=base) for dataset in "zd" for base in "yc"]
    table = compared(*cells)
    assert list(dict.fromkeys(table["dataset"])) == ["z", "d"]
    assert list(dict.fromkeys(table["family"])) == ["deepest", "first stage", "arms"]
    assert list(dict.fromkeys(table["base_model"])) == ["y", "c"]
    assert set(table["versus_base_model"]) == {"y", "c", ""}
    assert set(table.query("family == 'arms'")["versus_base_model"]) == {"y"}


def test_order_of_rows_within_an_exit_does_not_matter():
    cell = measured(GOOD, seeds=2)
    shuffled = pd.concat([rows.iloc[::-1] for _, rows in cell.groupby("exit", sort=False)])
    pd.testing.assert_frame_equal(compared(shuffled), compared(cell))


def test_other_measures_are_left_out():
    cell = measured(GOOD)
    other = cell.assign(measure="RR", value=0.0)
    pd.testing.assert_frame_equal(compared(cell, other), compared(cell))


def test_model_of_one_layer_is_compared_with_first_stage_alone():
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
def test_exit_lacking_queries_or_seeds_is_named_in_error(spoil):
    with pytest.raises(ValueError, match="test split of d: layer_4 of d m 2 v must have each of 12 queries"):
        compared(spoil(measured(GOOD, seeds=2)))


# --- files -------------------------------------------------------------------------------------------


def test_compare_writes_numbers_of_both_splits_and_text_of_test(tmp_path):
    files = []
    for split in ("dev", "test"):
        for start_layer in (2, 4):
            files.append(tmp_path / f"{split}{start_layer}.parquet")
            measured(GOOD, split=split, start_layer=start_layer).to_parquet(files[-1])
    compare(files, "nDCG@10", 0.02, tmp_path / "tables")
    names = sorted(file.name for file in (tmp_path / "tables").iterdir())
    assert names == ["comparisons.csv", "comparisons.md"]
    rows = pd.read_csv(tmp_path / "tables/comparisons.csv")
    assert list(rows.columns) == [*COLUMNS, "measure", "margin"]
    of_a_split = 2 * 2 + 2 * 3 + 3  # with the deepest exit, with the first stage, between arms
    assert rows["split"].value_counts().to_dict() == {"dev": of_a_split, "test": of_a_split}
    assert (set(rows["measure"]), set(rows["margin"])) == ({"nDCG@10"}, {0.02})
    text = (tmp_path / "tables/comparisons.md").read_text(encoding="utf-8")
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    families = [title for family, title in FAMILY_TITLES.items() if "fused" not in family]
    assert titles == [f"## {title}" for title in families]
    assert text.count(": layer") == of_a_split + 3  # rows between arms name both


# --- text ---------------------------------------------------------------------------------------------


def test_text_of_a_comparison():
    row = compared(measured(GOOD, base_model="minilm")).query("family == 'deepest'").iloc[:1]
    row = row.assign(difference=-0.0123, low=-0.0311, high=0.0058)
    row = row.assign(**{"p Holm": 0.0004, "effect size": -0.314, "wins": 31, "ties": 140, "losses": 29})
    assert format_comparisons(row, 0.02).to_dict("records") == [
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


def test_text_names_the_other_exit():
    table = compared(measured(GOOD), measured(GOOD, start_layer=4))
    text = format_comparisons(table, 0.02).assign(family=table["family"]).set_index("family")
    assert list(text.loc["deepest", "not worse by 0.02"]) == ["no", "yes"] * 2
    assert set(text.loc[["first stage", "arms"], "not worse by 0.02"]) == {""}
    assert set(text.loc["first stage", "against"]) == {"first stage"}
    assert list(text.loc["arms", "what"]) == [f"m start 4: layer {layer}" for layer in (2, 4, 10)]
    assert list(text.loc["arms", "against"]) == [f"m start 2: layer {layer}" for layer in (2, 4, 10)]
    assert set(text.loc["arms", "difference"].str[:6]) == {"+0.000"}
    assert set(text.loc["arms", "p (Holm)"]) == {"1.000"}


def test_text_names_variant_and_training_set_where_they_differ():
    table = compared(measured(GOOD), measured(GOOD, variant="w", trained_on="big")).query("family == 'arms'")
    text = format_comparisons(table, 0.02)
    assert text["what"].iloc[0] == "m start 2 w trained on big: layer 2"
    assert text["against"].iloc[0] == "m start 2 v trained on d: layer 2"
