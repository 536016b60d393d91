"""The figures: all there in every case, readable without a network, and the numbers behind them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from report_inputs import ARM, PRIMARY, Inputs, arm, large, make

from lwr.common.json_lines import write_jsonl
from lwr.reporting.figure_data import arm_label, by_exit, read_table, training_losses, won_and_lost
from lwr.reporting.figures import FIGURES, PANELS, curves, figures, flops, gain, latency, quality, wins


def arms(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=ARM)


def charts(inputs: Inputs) -> list[dict]:
    """The six specifications; nothing is drawn, which takes the time."""
    tables = {name: read_table(inputs.tables / f"{name}.csv") for name in ("layers", "cascades", "cost")}
    per_query = pd.concat([pd.read_parquet(file) for file in inputs.measures])
    made = [
        quality(tables["layers"], PRIMARY),
        gain(tables["layers"], PRIMARY),
        flops(tables["layers"], tables["cascades"], PRIMARY),
        latency(tables["layers"], tables["cost"], PRIMARY),
        wins(won_and_lost(per_query, PRIMARY)),
        curves(training_losses(inputs.training)),
    ]
    return [chart.to_dict() for chart in made]


def rows_of(spec: dict) -> pd.DataFrame:
    (rows,) = spec["datasets"].values()
    return pd.DataFrame(rows)


def test_a_label_tells_what_arms_do_not_share():
    assert list(arm_label(arms(arm(), arm(start=4)))) == ["minilm, start 2", "minilm, start 4"]
    assert list(arm_label(arms(arm(), arm(variant="none")))) == [
        "minilm, start 2, default",
        "minilm, start 2, none",
    ]


def test_what_was_trained_on_is_in_the_label_if_models_are_lent_to_other_data():
    own = arms(arm("a"), arm("b"))
    one_for_all = arms(arm("a"), arm("b", trained="a"))
    lent = arms(arm("a"), arm("b"), arm("b", trained="a"))
    assert set(arm_label(own)) == set(arm_label(one_for_all)) == {"minilm, start 2"}
    assert list(arm_label(lent)) == [f"minilm, start 2, trained on {name}" for name in "aba"]


def test_names_that_look_like_numbers_or_nothing_stay_names(tmp_path):
    (tmp_path / "t.csv").write_text(
        "base_model,variant,start_layer,flops\n1,null,2,\n,,0,0.5\n", encoding="utf-8"
    )
    table = read_table(tmp_path / "t.csv")
    assert table[["base_model", "variant"]].values.tolist() == [["1", "null"], ["", ""]]
    assert table["flops"].isna().tolist() == [True, False]


def test_rows_by_exit(tmp_path):
    table = by_exit(read_table(make(tmp_path).tables / "layers.csv"), PRIMARY)
    assert list(table["kind"][:7]) == ["first stage", *["exit"] * 5, "cascade"]
    assert list(table["what"][5:7]) == ["layer 6", "cascade 2:20 3:10 6"]
    assert pd.isna(table["arm"][0])
    assert (table["low"] < table["quality"]).all()


def test_a_query_is_won_lost_or_tied_by_its_mean_over_seeds():
    # q1: layer 2 is better in one seed and worse in the other; q2: worse in both; q3: better in one
    values = {"layer_2": ((0.2, 0.1, 0.5), (0.4, 0.2, 0.6)), "layer_10": ((0.4, 0.3, 0.5), (0.2, 0.4, 0.5))}
    rows = [
        (*arm(), seed, "test", exit, f"q{q}", PRIMARY, value)
        for exit, seeds in values.items()
        for seed, queries in enumerate(seeds)
        for q, value in enumerate(queries)
    ]
    columns = [*ARM, "seed", "split", "exit", "query_id", "measure", "value"]
    dev = (*arm(), 0, "dev", "layer_2", "q9", PRIMARY, 1.0)
    counts = won_and_lost(pd.DataFrame([*rows, dev], columns=columns), PRIMARY)
    assert set(counts["exit"]) == {"layer_2"}  # 10 is deeper than 2
    assert dict(zip(counts["outcome"], counts["queries"], strict=True)) == {"lost": 1, "tied": 1, "won": 1}
    assert counts["share"].sum() == pytest.approx(1)
    assert counts["difference"].iloc[0] == pytest.approx((0 - 0.2 + 0.05) / 3)


def test_seeds_of_a_training_are_pooled_and_long_trainings_thinned(tmp_path):
    files = [tmp_path / f"cells/d/m/start2/v/seed{seed}/model/training.jsonl" for seed in (1, 2)]
    for seed, file in enumerate(files):
        steps = [{"step": s, "loss": 9.0, "contrastive_layer_2": 1.0 + seed} for s in range(1, 601)]
        write_jsonl(file, [*steps, {"step": 600, "eval_layer_2": 0.5}])
    table = training_losses(files)
    assert 60 <= len(table) <= 61
    assert set(table["loss"]) == {1.5}
    assert table[ARM].drop_duplicates().values.tolist() == [["d", "d", "m", 2, "v"]]
    assert training_losses([]).empty


def test_axes_have_units_and_arms_the_same_looks_in_all_figures(tmp_path):
    text = [json.dumps(spec) for spec in charts(make(tmp_path, seeds=2))]
    titles = [set(re.findall(r'"title": "([^"]+)"', spec)) for spec in text]
    assert {"layer", "nDCG@10 (test)"} <= titles[0]
    assert {"layer, share of the deepest exit's (%)", "share of the deepest exit's gain (%)"} <= titles[1]
    assert {"FLOPs per list, share of the deepest exit (%)", "nDCG@10 (test)"} <= titles[2]
    assert {"median time per list of 30 passages (ms)", "nDCG@10 (test)"} <= titles[3]
    assert {"test queries (%)", "layer"} <= titles[4]
    assert {"step", "contrastive loss (nats)"} <= titles[5]
    looks = {
        re.search(r'"domain": (\["minilm.*?\]), "range": (\["#.*?\])', spec).groups() for spec in text[:4]
    }
    assert len(looks) == 1


def test_the_front_is_shown_by_what_it_does_on_test(tmp_path):
    inputs = make(tmp_path, [arm()])
    front = rows_of(charts(inputs)[2]).query("kind == 'front'").set_index("what")
    cascades = read_table(inputs.tables / "cascades.csv").set_index("schedule")
    assert front["quality"]["schedule 2:15 6"] == pytest.approx(cascades["test"]["2:15 6"], abs=1e-5)
    assert front["share"]["schedule 2:15 6"] == pytest.approx(46.3)
    assert front["gflops per pair"]["schedule 2:15 6"] == pytest.approx(0.463 * 1.9)


def test_several_data_sets_stand_side_by_side(tmp_path):
    specs = charts(make(tmp_path, [arm(), arm("nfcorpus"), arm("nfcorpus", start=6)]))
    assert [spec["facet"]["field"] for spec in specs] == ["dataset"] * 4 + ["panel"] * 2
    assert set(rows_of(specs[4])["panel"]) >= {"scifact: minilm, start 2", "nfcorpus: minilm, start 6"}


def test_more_arms_than_have_a_panel_are_told_of(tmp_path):
    many = [arm(variant=f"v{i}") for i in range(PANELS + 2)]
    specs = charts(make(tmp_path, many, queries=3))
    assert specs[4]["title"] == specs[5]["title"] == ["The first 12 of 14 arms."]
    assert rows_of(specs[4])["panel"].nunique() == PANELS
    assert rows_of(specs[0])["arm"].nunique() == PANELS + 2


def test_one_exit_without_cascade_or_latency(tmp_path):
    specs = charts(make(tmp_path, [arm(start=6)], cascade=False, cost=False))
    assert [row["why"] for row in specs[3]["datasets"].popitem()[1]] == ["no latencies were measured"]
    assert set(rows_of(specs[4])["exit"]) == {"first stage"}
    assert not any("cascade" in line for spec in specs for line in spec.get("title", []))


def test_arms_that_were_not_timed_are_left_out(tmp_path):
    inputs = make(tmp_path)
    cost = pd.read_csv(inputs.tables / "cost.csv")
    cost[cost["start_layer"] == 4].to_csv(inputs.tables / "cost.csv", index=False)
    by_layer, _, _, by_time, *_ = charts(inputs)
    assert set(rows_of(by_time)["arm"].dropna()) == {"minilm, start 4"}
    colours = [spec["layer"][-1]["encoding"]["color"]["scale"] for spec in (by_layer, by_time)]
    assert colours[0] == colours[1]


def test_nothing_was_timed_at_all(tmp_path):
    layers = read_table(make(tmp_path).tables / "layers.csv")
    cost = pd.DataFrame(columns=[*ARM, "exit", "p50 ms", "p95 ms", "candidates", "device"])
    assert rows_of(latency(layers, cost, PRIMARY).to_dict())["why"].tolist() == ["no latencies were measured"]


def test_a_schedule_that_another_beats_is_not_on_the_line(tmp_path):
    inputs = make(tmp_path, [arm()])
    cascades = pd.read_csv(inputs.tables / "cascades.csv")
    cascades.assign(front=cascades["schedule"] != "6").to_csv(inputs.tables / "cascades.csv", index=False)
    front = rows_of(charts(inputs)[2]).query("kind == 'front'")
    assert set(front["what"]) == {"schedule 2", "schedule 2:15 6", "schedule 2:20 3:10 6"}


def test_no_gain_no_flops_no_training_are_said(tmp_path):
    layers = read_table(make(tmp_path).tables / "layers.csv")
    layers[["share of gain", "share of score", "flops"]] = None
    told = [
        gain(layers, PRIMARY),
        flops(layers, pd.DataFrame(columns=["front"]), PRIMARY),
        curves(training_losses([])),
    ]
    assert [rows_of(chart.to_dict())["why"][0].split()[:2] for chart in told] == [
        ["no", "arm"],
        ["no", "FLOPs"],
        ["no", "training"],
    ]


def written(inputs: Inputs, out: Path) -> dict[str, str]:
    figures(inputs.tables, inputs.measures, inputs.training, PRIMARY, out)
    wanted = {f"{name}.{suffix}" for name in FIGURES for suffix in ("html", "svg", "png", "json")}
    assert {file.name for file in out.iterdir()} == wanted
    return {name: (out / f"{name}.svg").read_text(encoding="utf-8") for name in FIGURES}


def test_all_files_are_there_and_need_no_network(tmp_path):
    svg = written(make(tmp_path, seeds=2), tmp_path / "figures")
    for name in FIGURES:
        ElementTree.fromstring(svg[name])
        page = (tmp_path / f"figures/{name}.html").read_text(encoding="utf-8")
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
        assert (tmp_path / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "$schema" in json.loads((tmp_path / f"figures/{name}.json").read_text(encoding="utf-8"))
    assert "nDCG@10 (test)" in svg["quality"]
    assert "FLOPs per list, share of the deepest exit (%)" in svg["flops"]
    assert "median time per list of 30 passages (ms)" in svg["latency"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        {"arms": [arm()]},
        {"arms": large(), "seeds": 3},
        {"arms": [arm(), arm(start=4), arm("nfcorpus"), arm("nfcorpus", base="qwen", start=6)]},
        {"arms": [arm(start=6)], "cost": False, "cascade": False},
    ],
    ids=["one", "nine", "data-sets", "single-exit"],
)
def test_all_cases_are_drawn(tmp_path, case):
    for svg in written(make(tmp_path, **case), tmp_path / "figures").values():
        ElementTree.fromstring(svg)
