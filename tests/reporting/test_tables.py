"""The tables, on numbers that can be checked by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lwr.common.json_lines import read_json, write_json
from lwr.evaluation.arm_files import read_cascades, read_costs
from lwr.evaluation.compare import compare
from lwr.reporting.tables import (
    build_calibration_table,
    build_layers_table,
    format_calibration,
    format_cascades,
    format_costs,
    format_layers,
    format_number,
    tables,
)

GOOD = {"first_stage": 0.4, "layer_2": 0.3, "layer_3": 0.45, "layer_4": 0.5}
WITH_CASCADE = GOOD | {"cascade": 0.48}
SCHEDULE = "2:3 3"
COUNTED = {"layer_2": (1.0, 5.0), "layer_3": (1.5, 8.0), "layer_4": (2.0, 10.0), "cascade": (1.2, 6.0)}
"""GFLOPs of a pair, milliseconds of a list."""


def about(start: int = 2, dataset: str = "d", **arm) -> dict:
    given = {"dataset": dataset, "trained_on": dataset, "base_model": "m", "start_layer": start}
    return given | {"variant": "v"} | arm


def measured(values: dict[str, float], seed: int = 1, split: str = "test", ties: float = 0, **arm):
    """Two queries per exit, around the mean given; a cascade's equal scores are not counted."""
    rows = [
        {"exit": exit, "query_id": query, "measure": measure, "value": value}
        for exit, mean in values.items()
        for query, off in (("q1", -0.1), ("q2", 0.1))
        for measure, value in (("nDCG@10", mean + off), ("ties", ties))
        if (exit, measure) != ("cascade", "ties")
    ]
    return pd.DataFrame(rows).assign(**about(**arm), seed=seed, split=split)


def cost_file(path: Path, exits=WITH_CASCADE, timed: bool = True, cut: float | None = None, **arm) -> Path:
    """A file that `lwr cost` writes; without the share of cut pairs, that of an older version."""
    rows = [
        {
            "exit": exit,
            "schedule": SCHEDULE if exit == "cascade" else exit.removeprefix("layer_"),
            "gflops_per_pair": gflops,
            "parameters": int(gflops * 1e6),
            "ratio": ms / 10 if timed else None,
            "ratio_low": (ms - 1) / 10 if timed else None,
            "ratio_high": (ms + 1) / 10 if timed else None,
            "peak_memory_mib": 1234.5 if timed else None,
        }
        for exit, (gflops, ms) in COUNTED.items()
        if exit in exits
    ]
    facts = {"device": "a lathe", "precision": "float32", "candidates": 10, "queries": 20 * timed}
    times = {"exit": "layer_4", "p50_ms": 10.0, "p95_ms": 20.0, "pairs_per_second": 1000.0}
    facts["reference"] = about(**arm) | times if timed else None
    told = {} if cut is None else {"cut": cut}
    write_json(path, facts | {"arms": [about(**arm) | told | {"exits": rows}]})
    return path


def cascade_file(path: Path, chosen: str = SCHEDULE, fused: bool = False, **arm) -> Path:
    """A file that `lwr cascade` writes; if fused, all but the deepest exit alone have fused scores."""
    points = {"2": (0.5, 0.3, 0.5, 0.3), SCHEDULE: (0.6, 0.495, 0.61, 0.48), "4": (1.0, 0.5, 1.0, 0.6)}
    schedules = [
        {"schedule": name, **dict(zip(["dev flops", "dev", "test flops", "test"], point, strict=True))}
        | {"chosen": name == chosen, "front": True}
        for name, point in points.items()
    ]
    told = {"measure": "nDCG@10", "epsilon": 0.01, "tried": 9, "deepest": "4", "chosen": chosen}
    if fused:
        told |= {"fused": chosen != "4", "confidence": 0.9, "dev queries": 80, "queries needed": None}
        told |= {"expected shortfall": 0.002, "shortfall bound": 0.009}
        schedules = [row | {"fused": row["schedule"] != "4"} for row in schedules]
    write_json(path, about(**arm) | told | {"schedules": schedules})
    return path


def calibration_file(path: Path, seed: int = 1, errors: float = 0.1, fused: bool = False, **arm) -> Path:
    """A file that `lwr calibrate` writes; the logistic map halves the errors, the isotonic one quarters them."""
    on_test = {
        method: {"ece": errors / divisor, "brier": 2 * errors / divisor, "bins": []}
        for method, divisor in (("raw", 1), ("logistic", 2), ("isotonic", 4))
    }
    exits = ["layer_2", "layer_4", *(["layer_4_fused", "layer_4_compressed_2_by_2_fused"] if fused else [])]
    counts = {"candidates": {"test": 50}, "relevant": {"test": 4}}
    write_json(
        path, about(**arm) | counts | {"seed": seed, "exits": {exit: {"test": on_test} for exit in exits}}
    )
    return path


@pytest.fixture
def table(tmp_path):
    """The table of layers of the measures given, each arm of which has costs and a cascade."""

    def table(*measures: pd.DataFrame, timed: bool = True) -> pd.DataFrame:
        together = pd.concat(measures, ignore_index=True)
        costs, cascades = [], []
        for i, (values, of_arm) in enumerate(together.groupby(list(about()), sort=False)):
            arm = dict(zip(about(), values, strict=True)) | {"start": values[3]}
            del arm["start_layer"]
            has_cascade = "cascade" in set(of_arm["exit"])
            fused = any("fused" in exit for exit in of_arm["exit"])
            costs.append(cost_file(tmp_path / f"cost{i}.json", set(of_arm["exit"]), timed, **arm))
            chosen = SCHEDULE if has_cascade else "4"
            cascades.append(cascade_file(tmp_path / f"cascade{i}.json", chosen, fused, **arm))
        return build_layers_table(together, "nDCG@10", read_costs(costs), read_cascades(cascades))

    return table


def both_splits(values: dict[str, float], dev: float = 0.0, **arm) -> pd.DataFrame:
    """Test as given; dev higher by `dev`."""
    on_dev = {exit: value + dev for exit, value in values.items()}
    return pd.concat([measured(values, **arm), measured(on_dev, split="dev", **arm)])


# --- Quality by layer ---


def test_shares_of_score_and_of_gain(table):
    rows = table(both_splits(WITH_CASCADE)).set_index("exit")
    assert rows["nDCG@10"].to_dict() == pytest.approx(WITH_CASCADE)
    exits = rows.drop("first_stage")
    shares = {"layer_2": 0.6, "layer_3": 0.9, "layer_4": 1.0, "cascade": 0.96}
    assert exits["share of score"].to_dict() == pytest.approx(shares)
    gains = {"layer_2": -1.0, "layer_3": 0.5, "layer_4": 1.0, "cascade": 0.8}
    assert exits["share of gain"].to_dict() == pytest.approx(gains)
    assert rows.loc["first_stage", ["share of score", "share of gain"]].isna().all()


def test_shares_refer_to_the_deepest_exit_not_to_a_better_cascade(table, monkeypatch):
    monkeypatch.setitem(globals(), "SCHEDULE", "2:3 4")
    rows = table(both_splits(GOOD | {"cascade": 0.6})).set_index("exit")
    assert list(rows["layer"]) == [0, 2, 3, 4, 4]
    assert rows["share of score"]["layer_4"] == 1
    assert rows["share of score"]["cascade"] == pytest.approx(1.2)
    assert rows["share of gain"]["cascade"] == pytest.approx(2)


def test_share_of_gain_is_missing_without_gain(table):
    rows = table(both_splits({"first_stage": 0.5, "layer_2": 0.4, "layer_3": 0.45}))
    assert rows["share of gain"].isna().all()
    assert rows["share of score"].notna().sum() == 2


def test_cascade_has_its_schedule_and_last_layer(table):
    rows = table(both_splits(WITH_CASCADE), both_splits(GOOD, start=3))
    assert list(rows["exit"]) == ["first_stage", *list(GOOD)[1:], "cascade", *list(GOOD)[1:]]
    assert list(rows["layer"]) == [0, 2, 3, 4, 3, 2, 3, 4]
    assert list(rows["schedule"]) == ["", "", "", "", SCHEDULE, "", "", ""]


def test_first_stage_is_the_first_row_of_each_data_set(table):
    rows = table(both_splits(GOOD), both_splits(GOOD, start=3), both_splits(GOOD, dataset="other"))
    assert list(rows["layer"]) == [0, 2, 3, 4, 2, 3, 4, 0, 2, 3, 4]
    assert list(rows["dataset"]) == ["d"] * 7 + ["other"] * 4
    first = rows[rows["layer"] == 0]
    assert set(first[["trained_on", "base_model", "variant"]].to_numpy().flat) == {""}


def test_seeds_are_pooled_into_mean_and_spread(table):
    seeds = [
        both_splits({exit: value + d for exit, value in GOOD.items()}, seed=s)
        for s, d in ((1, -0.1), (2, 0.1))
    ]
    rows = table(*seeds)
    assert rows["nDCG@10"][3] == pytest.approx(0.5)
    assert rows["nDCG@10 sd"][3] == pytest.approx(0.1 * 2**0.5)
    assert list(rows["seeds"]) == [1, 2, 2, 2]
    assert pd.isna(rows["nDCG@10 sd"][0]), "a first stage has no seeds"
    text = format_layers(rows, ["nDCG@10"])
    assert list(text["nDCG@10"])[::3] == ["0.400", "0.500 ± 0.141"]


def test_one_seed_has_no_deviation_in_text(table):
    text = format_layers(table(both_splits(GOOD)), ["nDCG@10"])
    assert list(text["nDCG@10"]) == ["0.400", "0.300", "0.450", "0.500"]
    assert list(text["share of gain"]) == ["", "-100%", "50%", "100%"]


def test_dev_and_test_are_separate(table):
    rows = table(both_splits(WITH_CASCADE, dev=0.05)).set_index("exit")
    for exit, value in WITH_CASCADE.items():
        assert rows["nDCG@10"][exit] == pytest.approx(value)
        assert rows["dev nDCG@10"][exit] == pytest.approx(value + 0.05)


def test_mean_is_in_its_interval(table):
    rows = table(both_splits(WITH_CASCADE))
    assert (rows["nDCG@10 low"] <= rows["nDCG@10"]).all()
    assert (rows["nDCG@10"] <= rows["nDCG@10 high"]).all()
    # of two queries, a resample often draws one of them twice
    assert (rows["nDCG@10 high"] - rows["nDCG@10 low"]).to_numpy() == pytest.approx([0.2] * 5)


def test_costs_are_joined_by_exit(table):
    rows = table(both_splits(WITH_CASCADE), both_splits(GOOD, start=3)).set_index(["start_layer", "exit"])
    assert rows["flops"][2].dropna().to_dict() == {
        "layer_2": 0.5,
        "layer_3": 0.75,
        "layer_4": 1,
        "cascade": 0.6,
    }
    assert rows["gflops per pair"][2, "cascade"] == 1.2
    assert (rows["p50 ms"][3, "layer_3"], rows["p95 ms"][3, "layer_3"]) == (8, 16)
    assert rows.loc[0, ["flops", "gflops per pair", "p50 ms", "p95 ms"]].isna().all(axis=None)


def test_ties_are_the_mean_of_queries_and_seeds(table):
    rows = table(*(both_splits(WITH_CASCADE, seed=s, ties=share) for s, share in ((1, 0.1), (2, 0.3))))
    assert list(rows["ties"][:4]) == pytest.approx([0.2] * 4)
    assert pd.isna(rows["ties"][4])
    assert list(format_layers(rows, ["nDCG@10"])["ties"]) == ["20.0%"] * 4 + [""]


def test_text_has_only_columns_with_values(table):
    short = format_layers(table(both_splits(GOOD), timed=False), ["nDCG@10"])
    assert "ms" not in short
    assert "ties" not in short
    assert "trained on" not in short
    assert list(short["layer"]) == ["first stage", "2", "3", "4"]
    assert list(short["FLOPs"]) == ["", "50%", "75%", "100%"]
    long = format_layers(table(both_splits(WITH_CASCADE, ties=0.001, trained_on="big")), ["nDCG@10"])
    assert list(long["ms"]) == ["", "5", "8", "10", "6"]
    assert list(long["layer"])[-1] == "cascade 2:3 3"
    assert list(long["ties"])[:2] == ["0.1%"] * 2
    assert set(long["trained on"]) == {"", "big"}


# --- Compressed passages ---

COMPRESSED = GOOD | {"layer_4_compressed_2_by_2": 0.49}


def test_compressed_exits_are_beside_their_layers(table, monkeypatch):
    monkeypatch.setitem(COUNTED, "layer_4_compressed_2_by_2", (1.6, 7.0))
    rows = table(both_splits(COMPRESSED))
    assert list(rows["exit"]) == ["first_stage", "layer_2", "layer_3", "layer_4", "layer_4_compressed_2_by_2"]
    assert list(rows["compression"]) == ["", "", "", "", "2/2"]
    last = rows.iloc[-1]
    assert (last["layer"], last["flops"], last["p50 ms"]) == (4, 0.8, 7)
    assert last["share of score"] == pytest.approx(0.98)
    assert rows["share of score"][3] == 1, "shares refer to the exit that reads all tokens"
    assert list(format_layers(rows, ["nDCG@10"])["layer"])[3:] == ["4", "4, compressed 2/2"]


# --- Fused scores ---

FUSED = {"first_stage": 0.4, "layer_2": 0.3, "layer_3": 0.45, "layer_4": 0.5}
FUSED |= {"layer_2_fused": 0.42, "layer_3_fused": 0.5, "layer_4_fused": 0.55, "cascade": 0.52}
SORTED = ["layer_2", "layer_2_fused", "layer_3", "layer_3_fused", "layer_4", "layer_4_fused", "cascade"]


def test_fused_exits_are_beside_their_layers_at_the_same_cost(table):
    rows = table(both_splits(FUSED, dev=0.01))
    assert list(rows["exit"]) == ["first_stage", *SORTED]
    assert list(rows["layer"]) == [0, 2, 2, 3, 3, 4, 4, 3]
    assert list(rows["fused"]) == [False, False, True, False, True, False, True, True]
    assert list(rows["flops"])[1:] == [0.5, 0.5, 0.75, 0.75, 1, 1, 0.6]
    assert list(rows["p50 ms"])[1:] == [5, 5, 8, 8, 10, 10, 6]
    by_exit = rows.set_index("exit")
    assert by_exit["dev nDCG@10"]["layer_3_fused"] == pytest.approx(0.51)
    text = format_layers(rows, ["nDCG@10"])
    assert list(text["layer"])[4:] == ["3, fused", "4", "4, fused", "cascade 2:3 3, fused"]


def test_second_choice_has_a_row_and_a_column(tmp_path, monkeypatch):
    monkeypatch.setitem(COUNTED, "cascade_for_fused", (1.9, 9.0))
    values = FUSED | {"cascade_for_fused": 0.54}
    cost, path = cost_file(tmp_path / "cost.json", set(values)), cascade_file(tmp_path / "a.json", fused=True)
    choice = read_json(path, {})
    row = choice["schedules"][1] | {"schedule": "0:9 4", "chosen": False, "chosen for fused": True}
    choice["schedules"].append(row)
    write_json(path, choice | {"for_fused": {"chosen": "0:9 4", "fused": True, "shortfall bound": 0.008}})
    cascades = read_cascades([path])
    rows = build_layers_table(both_splits(values), "nDCG@10", read_costs([cost]), cascades)
    assert list(rows["exit"]) == ["first_stage", *SORTED, "cascade_for_fused"]
    last = rows.iloc[-1]
    assert (last["schedule"], last["layer"], last["fused"], last["p50 ms"]) == ("0:9 4", 4, True, 9)
    assert list(format_layers(rows, ["nDCG@10"])["layer"])[-2:] == [
        "cascade 2:3 3, fused",
        "cascade 0:9 4, fused",
    ]
    text = format_cascades(cascades)
    assert list(text["chosen"]) == ["", "yes", "", ""]
    assert list(text["chosen for fused"]) == ["", "", "", "yes"]
    assert list(cascades["shortfall bound for fused"]) == [0.008] * 4


def test_shares_refer_to_the_deepest_exit_that_is_not_fused(table):
    rows = table(both_splits(FUSED)).set_index("exit")
    shares = {"layer_3": 0.9, "layer_3_fused": 1.0, "layer_4": 1.0, "layer_4_fused": 1.1, "cascade": 1.04}
    assert rows["share of score"][list(shares)].to_dict() == pytest.approx(shares)
    assert rows["share of gain"]["layer_4_fused"] == pytest.approx(1.5)


def test_plain_cascade_is_not_fused_beside_fused_exits(table, monkeypatch):
    monkeypatch.setitem(globals(), "SCHEDULE", "4")
    rows = table(both_splits({name: value for name, value in FUSED.items() if name != "cascade"}))
    assert list(rows["fused"]) == [False, False, True, False, True, False, True]


def test_cascade_of_a_single_fused_exit_costs_what_its_layer_does(tmp_path):
    measures = both_splits(FUSED)
    costs = read_costs([cost_file(tmp_path / "cost.json", set(FUSED) - {"cascade"})])
    cascades = read_cascades([cascade_file(tmp_path / "cascade.json", "2", fused=True)])
    rows = build_layers_table(measures, "nDCG@10", costs, cascades).set_index("exit")
    assert rows.loc["cascade", ["layer", "schedule", "fused", "flops", "p50 ms"]].tolist() == [
        2,
        "2",
        True,
        0.5,
        5,
    ]


def test_kept_quality_refers_to_the_deepest_exit_that_is_not_fused(tmp_path):
    path = cascade_file(tmp_path / "a.json", fused=True)
    choice = read_json(path, {})
    fused_deepest = choice["schedules"][-1] | {"fused": True, "dev": 0.55, "test": 0.63}
    write_json(path, choice | {"schedules": [fused_deepest, *choice["schedules"]]})
    text = format_cascades(read_cascades([path]))
    assert list(text["schedule"]) == ["4", "2", SCHEDULE, "4"]
    assert list(text["fused"]) == ["yes", "yes", "yes", ""]
    assert list(text["dev kept"]) == ["110.0%", "60.0%", "99.0%", "100.0%"]


def test_grid_without_fused_scores_has_the_tables_that_it_always_had(tmp_path):
    """The files in `without_fusion` were written before there were fused scores."""
    measures, costs, cascades, calibrations = [], [], [], []
    three = {name: value for name, value in GOOD.items() if name != "layer_2"}
    for start, values in ((2, WITH_CASCADE), (3, three)):
        for seed in (1, 2):
            measures.append(tmp_path / f"{start}{seed}.parquet")
            of_seed = {name: value + seed / 100 for name, value in values.items()}
            both_splits(of_seed, 0.01, start=start, seed=seed).to_parquet(measures[-1])
            calibrations.append(calibration_file(tmp_path / f"c{start}{seed}.json", seed, start=start))
        costs.append(cost_file(tmp_path / f"cost{start}.json", set(values), timed=False, start=start))
        cascades.append(
            cascade_file(tmp_path / f"{start}.json", SCHEDULE if start == 2 else "4", start=start)
        )
    tables(measures, costs, cascades, calibrations, "nDCG@10", tmp_path / "tables")
    compare(measures, "nDCG@10", 0.02, tmp_path / "tables")
    for expected in sorted((Path(__file__).parent / "without_fusion").iterdir()):
        assert (tmp_path / "tables" / expected.name).read_bytes() == expected.read_bytes(), expected.name


# --- Cost and cascades ---


def test_cost_shares_refer_to_the_deepest_exit_not_to_the_cascade(tmp_path):
    costs = read_costs([cost_file(tmp_path / "a.json"), cost_file(tmp_path / "b.json", start=3)])
    assert list(costs["exit"]) == list(COUNTED) * 2
    assert list(costs["flops"]) == pytest.approx([0.5, 0.75, 1, 0.6] * 2)
    assert list(costs["time"]) == pytest.approx([0.5, 0.8, 1, 0.6] * 2)
    assert list(costs["start_layer"]) == [2] * 4 + [3] * 4
    text = format_costs(costs)
    assert list(text["exit"])[:4] == ["2", "3", "4", SCHEDULE]
    assert list(text["time"])[:4] == ["50%", "80%", "100%", "60%"]
    assert list(text["ratio"])[:2] == ["0.50 [0.40, 0.60]", "0.80 [0.70, 0.90]"]
    assert list(text["p95 ms"])[:2] == ["10", "16"]
    assert list(text["pairs/s"])[:2] == ["2,000", "1,250"]
    assert list(text["parameters, M"])[:2] == ["1", "1.5"]


def test_cost_table_says_which_times_do_not_differ(tmp_path, monkeypatch):
    monkeypatch.setitem(COUNTED, "layer_3", (1.5, 5.5))
    text = format_costs(read_costs([cost_file(tmp_path / "a.json"), cost_file(tmp_path / "b.json", start=3)]))
    # layer 2: 4 to 6 ms, layer 3: 4.5 to 6.5, layer 4: 9 to 11, the cascade: 5 to 7
    assert list(text["as fast as"]) == [f"3, {SCHEDULE}", f"2, {SCHEDULE}", "", "2, 3"] * 2


def test_untimed_exits_have_flops_only(tmp_path):
    costs = read_costs([cost_file(tmp_path / "a.json", timed=False)])
    assert (
        costs[["time", "ratio", "p50 ms", "p95 ms", "pairs per second", "peak memory MiB"]]
        .isna()
        .all(axis=None)
    )
    assert list(costs["flops"]) == pytest.approx([0.5, 0.75, 1, 0.6])
    text = format_costs(costs)
    for column in ("time", "ratio", "as fast as", "p50 ms", "peak memory, MiB"):
        assert set(text[column]) == {""}


def test_kept_quality_refers_to_the_same_arms_deepest_exit(tmp_path):
    decided = read_cascades(
        [cascade_file(tmp_path / "a.json"), cascade_file(tmp_path / "b.json", "4", start=3)]
    )
    text = format_cascades(decided)
    assert list(text["schedule"]) == ["2", SCHEDULE, "4"] * 2
    assert list(text["dev kept"]) == ["60.0%", "99.0%", "100.0%"] * 2
    assert list(text["test kept"]) == ["50.0%", "80.0%", "100.0%"] * 2
    assert list(text["chosen"]) == ["", "yes", "", "", "", "yes"]
    assert list(text["test FLOPs"])[:3] == ["50%", "61%", "100%"]
    assert list(text["dev nDCG@10"])[:3] == ["0.300", "0.495", "0.500"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), ""),
        (0.012345, "0.0123"),
        (1.0, "1"),
        (12.345, "12.3"),
        (99.96, "100"),
        (123.456, "123"),
        (1234567.8, "1,234,568"),
        (0, "0"),
    ],
)
def test_format_number_has_three_significant_digits(value, text):
    assert format_number(value) == text


# --- Calibration ---


def test_calibration_is_the_mean_over_seeds_of_each_exit(tmp_path):
    files = [calibration_file(tmp_path / f"{seed}.json", seed, 0.1 * seed, fused=True) for seed in (1, 3)]
    files.append(calibration_file(tmp_path / "other.json", errors=0.4, start=3))
    table = build_calibration_table(files)
    exits = ["layer_2", "layer_4", "layer_4_fused", "layer_4_compressed_2_by_2_fused"]
    assert list(table["exit"]) == [*exits, "layer_2", "layer_4"]
    assert list(table["fused"]) == [False, False, True, True, False, False]
    assert list(table["seeds"]) == [2] * 4 + [1] * 2
    assert list(table["ECE raw"]) == pytest.approx([0.2] * 4 + [0.4] * 2)
    assert list(table["ECE logistic"]) == pytest.approx([0.1] * 4 + [0.2] * 2)
    assert list(table["Brier isotonic"]) == pytest.approx([0.1] * 4 + [0.2] * 2)
    assert set(table["relevant"]) == {0.08}
    text = format_calibration(table)
    assert list(text["exit"][:4]) == ["layer 2", "layer 4", "layer 4", "layer 4, compressed 2/2"]
    assert list(text["fused"][:4]) == ["", "", "yes", "yes"]
    assert text["ECE raw"][0] == "0.200"
    assert "fused" not in build_calibration_table(files[2:])


# --- Files ---


def test_tables_writes_csv_markdown_and_latex(tmp_path):
    both_splits(WITH_CASCADE).to_parquet(tmp_path / "m.parquet")
    cost, cascade = cost_file(tmp_path / "cost.json"), cascade_file(tmp_path / "cascade.json")
    calibration = calibration_file(tmp_path / "calibration.json")
    tables([tmp_path / "m.parquet"], [cost], [cascade], [calibration], "nDCG@10", tmp_path / "tables")
    text = {file.name: file.read_text(encoding="utf-8") for file in (tmp_path / "tables").iterdir()}
    both = [
        f"{name}.{kind}" for name in ("layers", "cost", "cascades", "calibration") for kind in ("csv", "md")
    ]
    assert text.keys() == {*both, "layers.tex"}
    numbers = pd.read_csv(tmp_path / "tables/layers.csv")
    assert list(numbers["nDCG@10"]) == pytest.approx(list(WITH_CASCADE.values()))
    assert r"\begin{tabular}" in text["layers.tex"]
    assert "| first stage " in text["layers.md"]
    assert "| cascade 2:3 3 |" in text["layers.md"]
    assert text["cost.md"].startswith("Times of ranking one list of 10 passages of d, ")
    assert "over 20 lists, on a lathe, float32. Reference: layer 4 of m, start 2, v.\n\n" in text["cost.md"]
    assert len(pd.read_csv(tmp_path / "tables/cascades.csv")) == 3


def test_cost_table_says_how_many_pairs_are_cut(tmp_path):
    both_splits(WITH_CASCADE).to_parquet(tmp_path / "m.parquet")
    costs = [cost_file(tmp_path / "a.json", cut=0.25), cost_file(tmp_path / "b.json", start=3, cut=0.0)]
    cascades, calibrations = [cascade_file(tmp_path / "c.json")], [calibration_file(tmp_path / "p.json")]
    tables([tmp_path / "m.parquet"], costs, cascades, calibrations, "nDCG@10", tmp_path)
    assert list(pd.read_csv(tmp_path / "cost.csv")["cut"]) == [0.25] * 4 + [0.0] * 4
    assert list(format_costs(read_costs(costs))["pairs cut"]) == ["25%"] * 4 + ["0%"] * 4
    assert "\n\n*pairs cut*: the share of test candidates" in (tmp_path / "cost.md").read_text(
        encoding="utf-8"
    )
    older = cost_file(tmp_path / "older.json")
    assert "cut" not in read_costs([older])
    assert list(format_costs(read_costs([older, costs[0]]))["pairs cut"]) == [""] * 4 + ["25%"] * 4


def test_cost_table_says_that_nothing_was_timed(tmp_path):
    both_splits(WITH_CASCADE).to_parquet(tmp_path / "m.parquet")
    cost = cost_file(tmp_path / "cost.json", timed=False)
    cascade = cascade_file(tmp_path / "cascade.json")
    calibration = calibration_file(tmp_path / "calibration.json")
    tables([tmp_path / "m.parquet"], [cost], [cascade], [calibration], "nDCG@10", tmp_path)
    assert (tmp_path / "cost.md").read_text(encoding="utf-8").startswith("Nothing was timed.\n\n|")
