"""The table of quality by layer, on numbers that can be checked in the head."""

from __future__ import annotations

import pandas as pd
import pytest

from lwr.tables import layers_table, readable, write_tables


def measured(
    values: dict[str, float], start: int = 2, seed: int = 1, dataset: str = "d", **cell
) -> pd.DataFrame:
    """Two queries per exit, around the mean given."""
    about = {
        "dataset": dataset,
        "trained_on": dataset,
        "base_model": "m",
        "start_layer": start,
        "variant": "v",
    }
    rows = [
        {
            **about,
            **cell,
            "seed": seed,
            "exit": exit,
            "query_id": query,
            "measure": "nDCG@10",
            "value": value + off,
        }
        for exit, value in values.items()
        for query, off in (("q1", -0.1), ("q2", 0.1))
    ]
    return pd.DataFrame(rows)


GOOD = {"first_stage": 0.4, "layer_2": 0.3, "layer_3": 0.45, "layer_4": 0.5}


def test_shares_of_score_and_of_gain():
    table = layers_table(measured(GOOD), "nDCG@10").set_index("layer")
    assert table["nDCG@10"].to_dict() == pytest.approx({0: 0.4, 2: 0.3, 3: 0.45, 4: 0.5})
    assert table["share of score"].drop(0).to_dict() == pytest.approx({2: 0.6, 3: 0.9, 4: 1.0})
    assert table["share of gain"].drop(0).to_dict() == pytest.approx({2: -1.0, 3: 0.5, 4: 1.0})
    assert pd.isna(table["share of score"][0])


def test_no_share_of_a_gain_that_is_none():
    table = layers_table(measured({"first_stage": 0.5, "layer_2": 0.4, "layer_3": 0.45}), "nDCG@10")
    assert table["share of gain"].isna().all()


def test_the_first_stage_stands_once_per_data_set_and_first():
    cells = [measured(GOOD), measured(GOOD, start=3), measured(GOOD, dataset="other")]
    table = layers_table(pd.concat(cells), "nDCG@10")
    assert list(table["layer"]) == [0, 2, 3, 4, 2, 3, 4, 0, 2, 3, 4]
    assert list(table["dataset"]) == ["d"] * 7 + ["other"] * 4


def test_seeds_are_pooled_into_mean_and_spread():
    seeds = [
        measured({exit: value + d for exit, value in GOOD.items()}, seed=s) for s, d in ((1, -0.1), (2, 0.1))
    ]
    table = layers_table(pd.concat(seeds), "nDCG@10").set_index("layer")
    assert table["nDCG@10"][4] == pytest.approx(0.5)
    assert table["nDCG@10 sd"][4] == pytest.approx(0.1 * 2**0.5)
    assert list(table["seeds"]) == [1, 2, 2, 2]
    text = readable(table.reset_index(), ["nDCG@10"])
    assert text["nDCG@10"].iloc[3] == "0.500 ± 0.141"


def test_one_seed_has_no_spread_in_the_text():
    text = readable(layers_table(measured(GOOD), "nDCG@10"), ["nDCG@10"])
    assert list(text["nDCG@10"]) == ["0.400", "0.300", "0.450", "0.500"]
    assert list(text["share of gain"]) == ["", "-100%", "50%", "100%"]


def test_what_was_trained_on_is_told_where_it_is_something_else():
    assert "trained on" not in readable(layers_table(measured(GOOD), "nDCG@10"), ["nDCG@10"])
    elsewhere = layers_table(measured(GOOD, trained_on="big"), "nDCG@10")
    assert set(readable(elsewhere, ["nDCG@10"])["trained on"]) == {"", "big"}


def test_the_three_files(tmp_path):
    measured(GOOD).to_parquet(tmp_path / "m.parquet")
    write_tables([tmp_path / "m.parquet"], "nDCG@10", tmp_path / "tables")
    assert sorted(file.name for file in (tmp_path / "tables").iterdir()) == [
        "layers.csv",
        "layers.md",
        "layers.tex",
    ]
    numbers = pd.read_csv(tmp_path / "tables/layers.csv")
    assert list(numbers["nDCG@10"]) == pytest.approx([0.4, 0.3, 0.45, 0.5])
    assert r"\begin{tabular}" in (tmp_path / "tables/layers.tex").read_text(encoding="utf-8")
    assert "| first stage |" in (tmp_path / "tables/layers.md").read_text(encoding="utf-8")
