"""The figures: the files in every case, readable without a network, and the rows that they draw."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from report_inputs import PRIMARY, Inputs, arm, make, nine_arms

import lwr
from lwr.common.exits import ARM_COLUMNS, Cell
from lwr.common.json_lines import write_json, write_jsonl
from lwr.common.results_tree import FIGURE_FORMATS, FIGURES, ResultsTree
from lwr.reporting.figure_data import (
    count_wins,
    exit_rows,
    label_arms,
    read_reliability,
    read_table,
    read_training_losses,
)
from lwr.reporting.figures import (
    MOST_PANELS,
    draw_figures,
    draw_flops,
    draw_gain,
    draw_latency,
    draw_training,
    figures,
)
from lwr.reporting.palette import read_colours

PACKAGE = Path(lwr.__file__).parent


def arms(*rows: tuple) -> pd.DataFrame:
    """Return a table of arms."""
    return pd.DataFrame(rows, columns=ARM_COLUMNS)


def specifications(inputs: Inputs) -> dict[str, dict]:
    """Return the Vega-Lite specification of each figure, without drawing it."""
    charts = draw_figures(inputs.tables, inputs.measures, inputs.models, inputs.calibrations, PRIMARY)
    return {name: chart.to_dict() for name, chart in charts.items()}


def rows_of(spec: dict) -> pd.DataFrame:
    (rows,) = spec["datasets"].values()
    return pd.DataFrame(rows)


def test_arm_labels_name_only_what_differs():
    assert list(label_arms(arms(arm(), arm(start=4)))) == ["minilm, start 2", "minilm, start 4"]
    assert list(label_arms(arms(arm(), arm(variant="none")))) == [
        "minilm, start 2, default",
        "minilm, start 2, none",
    ]


def test_arm_labels_name_the_training_data_of_transferred_models():
    own = arms(arm("a"), arm("b"))
    one_for_all = arms(arm("a"), arm("b", trained="a"))
    lent = arms(arm("a"), arm("b"), arm("b", trained="a"))
    assert set(label_arms(own)) == set(label_arms(one_for_all)) == {"minilm, start 2"}
    assert list(label_arms(lent)) == [f"minilm, start 2, trained on {name}" for name in "aba"]


def test_names_that_look_like_numbers_or_null_stay_text(tmp_path):
    (tmp_path / "t.csv").write_text(
        "base_model,variant,start_layer,flops\n1,null,2,\n,,0,0.5\n", encoding="utf-8"
    )
    table = read_table(tmp_path / "t.csv")
    assert table[["base_model", "variant"]].values.tolist() == [["1", "null"], ["", ""]]
    assert table["flops"].isna().tolist() == [True, False]


def test_exit_rows_have_kind_text_and_interval(tmp_path):
    table = exit_rows(read_table(make(tmp_path).tables / "layers.csv"), PRIMARY)
    assert list(table["kind"][:7]) == ["first stage", *["exit"] * 5, "cascade"]
    assert list(table["what"][5:7]) == ["layer 6", "cascade 2:20 3:10 6"]
    assert pd.isna(table["arm"][0])
    assert (table["low"] < table["quality"]).all()


def test_wins_are_counted_by_mean_over_seeds():
    # q1: layer 2 is better in one seed and worse in the other; q2: worse in both; q3: better in one
    values = {"layer_2": ((0.2, 0.1, 0.5), (0.4, 0.2, 0.6)), "layer_10": ((0.4, 0.3, 0.5), (0.2, 0.4, 0.5))}
    rows = [
        (*arm(), seed, "test", exit, f"q{q}", PRIMARY, value)
        for exit, seeds in values.items()
        for seed, queries in enumerate(seeds)
        for q, value in enumerate(queries)
    ]
    columns = [*ARM_COLUMNS, "seed", "split", "exit", "query_id", "measure", "value"]
    dev = (*arm(), 0, "dev", "layer_2", "q9", PRIMARY, 1.0)
    counts = count_wins(pd.DataFrame([*rows, dev], columns=columns), PRIMARY)
    assert set(counts["exit"]) == {"layer_2"}  # 10 is deeper than 2
    assert dict(zip(counts["outcome"], counts["queries"], strict=True)) == {"lost": 1, "tied": 1, "won": 1}
    assert counts["share"].sum() == pytest.approx(1)
    assert counts["difference"].iloc[0] == pytest.approx((0 - 0.2 + 0.05) / 3)


def test_training_losses_are_means_over_seeds_and_adjacent_steps(tmp_path):
    cells = [Cell("d", "m", 2, "v", seed) for seed in (1, 2)]
    models = [ResultsTree(tmp_path).model(cell) for cell in cells]
    for number, (cell, model) in enumerate(zip(cells, models, strict=True)):
        steps = [{"step": s, "loss": 9.0, "contrastive_layer_2": 1.0 + number} for s in range(1, 601)]
        write_jsonl(model / "training.jsonl", [*steps, {"step": 600, "eval_layer_2": 0.5}])
        write_json(model / "provenance.json", {"cell": dataclasses.asdict(cell)})
    table = read_training_losses(models)
    assert 60 <= len(table) <= 61
    assert set(table["loss"]) == {1.5}
    assert table[ARM_COLUMNS].drop_duplicates().values.tolist() == [["d", "d", "m", 2, "v"]]
    assert read_training_losses([]).empty


def test_losses_of_several_kinds_are_named_and_have_axes_of_their_own(tmp_path):
    models = [ResultsTree(tmp_path).model(Cell("d", "m", 2, variant, 1)) for variant in ("a", "b")]
    for model, loss, variant in zip(models, ("contrastive", "margin_mse"), "ab", strict=True):
        line = {"step": 1, f"{loss}_layer_2": 3.0, "distillation_layer_2": 7.0, "eval_layer_2": 0.5}
        write_jsonl(model / "training.jsonl", [line])
        write_json(model / "provenance.json", {"cell": dataclasses.asdict(Cell("d", "m", 2, variant, 1))})
    table = read_training_losses(models)
    assert table[["variant", "name", "loss"]].values.tolist() == [
        ["a", "contrastive", 3],
        ["b", "margin_mse", 3],
    ]
    figure = draw_training(table).to_dict()
    assert figure["spec"]["encoding"]["y"]["title"] == "loss (contrastive, margin_mse)"
    assert figure["resolve"]["scale"]["y"] == "independent"


def test_axes_have_units_and_arms_look_alike_in_all_figures(tmp_path):
    text = {name: json.dumps(spec) for name, spec in specifications(make(tmp_path, seeds=2)).items()}
    titles = {name: set(re.findall(r'"title": "([^"]+)"', spec)) for name, spec in text.items()}
    assert {"layer", "nDCG@10 (test)"} <= titles["quality"]
    assert {"layer, share of the deepest exit's (%)", "share of the deepest exit's gain (%)"} <= titles[
        "gain"
    ]
    assert {"FLOPs per list, share of the deepest exit (%)", "nDCG@10 (test)"} <= titles["flops"]
    assert {"median time per list of 30 passages (ms)", "nDCG@10 (test)"} <= titles["latency"]
    assert {"test queries (%)", "layer"} <= titles["wins"]
    assert {"probability of relevance", "share that is relevant (test)"} <= titles["reliability"]
    assert {"step", "contrastive loss (nats)"} <= titles["training"]
    scale = r'"domain": (\["minilm.*?\]), "range": (\["#.*?\])'
    looks = {re.search(scale, text[name]).groups() for name in ("quality", "gain", "flops", "latency")}
    assert len(looks) == 1


def test_cascades_of_the_dev_front_are_drawn_with_test_results(tmp_path):
    inputs = make(tmp_path, [arm()])
    front = rows_of(specifications(inputs)["flops"]).query("kind == 'front'").set_index("what")
    cascades = read_table(inputs.tables / "cascades.csv").set_index("schedule")
    assert front["quality"]["schedule 2:15 6"] == pytest.approx(cascades["test"]["2:15 6"], abs=1e-5)
    assert front["share"]["schedule 2:15 6"] == pytest.approx(46.3)
    assert front["gflops per pair"]["schedule 2:15 6"] == pytest.approx(0.463 * 1.9)


def test_schedules_of_complete_passages_have_a_line_where_others_compress(tmp_path):
    inputs = make(tmp_path, [arm()])
    drawn = rows_of(specifications(inputs)["flops"])
    assert "complete front" not in set(drawn["kind"])
    cascades = read_table(inputs.tables / "cascades.csv")
    joint = cascades.iloc[[0]].assign(
        **{"schedule": "2/2:15 6", "dev flops": 0.01, "dev": 0.99, "chosen": False}
    )
    beaten = cascades.iloc[[0]].assign(**{"schedule": "5", "dev flops": 1.0, "dev": 0.0, "chosen": False})
    pd.concat([cascades.assign(front=False), joint, beaten.assign(front=False)]).to_csv(
        inputs.tables / "cascades.csv", index=False
    )
    spec = specifications(inputs)["flops"]
    drawn = rows_of(spec).set_index("kind")["what"]
    assert drawn[["front"]].tolist() == ["schedule 2/2:15 6"]
    complete = set(drawn["complete front"])
    assert "schedule 2:15 6" in complete
    assert complete <= {f"schedule {schedule}" for schedule in cascades["schedule"]}
    assert "Dotted: those of complete passages." in " ".join(spec["title"])


def test_fused_exits_are_drawn_beside_their_layers(tmp_path):
    specs = specifications(make(tmp_path, fused=True))
    for name in ("quality", "gain", "flops", "latency"):
        drawn = rows_of(specs[name])
        fused = drawn[drawn["kind"] == "fused"]
        assert list(fused["what"].head(2)) == ["layer 2, fused", "layer 3, fused"], name
        assert "datum.kind == 'fused'" in json.dumps(specs[name]), name
        if name != "gain":
            assert "Hollow circles: fused exits." in " ".join(specs[name]["title"])
    timed = rows_of(specs["latency"]).set_index(["arm", "what"])["p50 ms"]
    assert timed["minilm, start 2", "layer 3, fused"] == timed["minilm, start 2", "layer 3"] > 0
    assert "schedule 0:25 2:20 3:10 6, fused" in set(rows_of(specs["flops"])["what"])
    assert {"2", "2, fused", "6, fused", "first stage"} <= set(rows_of(specs["wins"])["exit"])


def test_compressed_exits_are_drawn_by_flops_and_time(tmp_path):
    inputs = make(tmp_path)
    for name in ("layers", "cost"):
        rows = read_table(inputs.tables / f"{name}.csv")
        compressed = rows[rows["exit"] == "layer_6"].assign(exit="layer_6_compressed_2_by_2")
        if name == "layers":
            rows, compressed = rows.assign(compression=""), compressed.assign(compression="2/2")
        pd.concat([rows, compressed]).to_csv(inputs.tables / f"{name}.csv", index=False)
    specs = specifications(inputs)
    for name in ("flops", "latency"):
        drawn = rows_of(specs[name])
        assert "layer 6, compressed 2/2" in set(drawn[drawn["kind"] == "compressed"]["what"]), name
        assert "Triangles: compressed passages." in " ".join(specs[name]["title"])
    for name in ("quality", "gain"):
        assert "compressed" not in json.dumps(specs[name])


def test_grid_without_fused_scores_has_no_marks_of_fused_exits(tmp_path):
    assert "fused" not in json.dumps(specifications(make(tmp_path)))


def test_several_data_sets_have_a_panel_each(tmp_path):
    specs = specifications(make(tmp_path, [arm(), arm("nfcorpus"), arm("nfcorpus", start=6)]))
    assert [spec["facet"]["field"] for spec in specs.values()] == ["dataset"] * 4 + ["panel"] * 3
    assert set(rows_of(specs["wins"])["panel"]) >= {"scifact: minilm, start 2", "nfcorpus: minilm, start 6"}


def test_reliability_is_that_of_the_deepest_exit_fused_where_there_are_fused_scores(tmp_path):
    for fused, name in ((False, "layer_6"), (True, "layer_6_fused")):
        bins = read_reliability(make(tmp_path / str(fused), [arm()], seeds=2, fused=fused).calibrations)
        assert set(bins["exit"]) == {name}
        sizes = bins.groupby(["seed", "method"]).size().to_dict()
        assert sizes.pop((1, "perfect")) == 2  # the diagonal, once
        assert set(sizes.values()) == {10}
        raw = bins.query("method == 'raw' and seed == 2")
        assert list(raw["share"]) == pytest.approx(list(0.7 * raw["predicted"]))


def test_note_counts_arms_without_panel(tmp_path):
    many = [arm(variant=f"v{i}") for i in range(MOST_PANELS + 2)]
    specs = specifications(make(tmp_path, many, queries=3))
    assert specs["wins"]["title"] == specs["training"]["title"] == ["The first 12 of 14 arms."]
    assert rows_of(specs["wins"])["panel"].nunique() == MOST_PANELS
    assert rows_of(specs["quality"])["arm"].nunique() == MOST_PANELS + 2


def test_figures_of_one_exit_without_cascade_or_latency(tmp_path):
    specs = specifications(make(tmp_path, [arm(start=6)], cascade=False, cost=False))
    assert [row["why"] for row in specs["latency"]["datasets"].popitem()[1]] == ["no latencies were measured"]
    assert set(rows_of(specs["wins"])["exit"]) == {"first stage"}
    assert not any("cascade" in line for spec in specs.values() for line in spec.get("title", []))


def test_arms_without_times_are_not_in_latency_figure(tmp_path):
    inputs = make(tmp_path)
    cost = pd.read_csv(inputs.tables / "cost.csv")
    cost[cost["start_layer"] == 4].to_csv(inputs.tables / "cost.csv", index=False)
    specs = specifications(inputs)
    assert set(rows_of(specs["latency"])["arm"].dropna()) == {"minilm, start 4"}
    quality, latency = (
        specs[name]["layer"][-1]["encoding"]["color"]["scale"] for name in ("quality", "latency")
    )
    assert quality == latency


def test_latency_figure_without_any_times(tmp_path):
    layers = read_table(make(tmp_path).tables / "layers.csv")
    cost = pd.DataFrame(columns=[*ARM_COLUMNS, "exit", "p50 ms", "p95 ms", "candidates", "device"])
    assert rows_of(draw_latency(layers, cost, PRIMARY).to_dict())["why"].tolist() == [
        "no latencies were measured"
    ]


def test_dominated_schedule_is_not_on_the_front(tmp_path):
    inputs = make(tmp_path, [arm()])
    cascades = pd.read_csv(inputs.tables / "cascades.csv")
    cascades.assign(front=cascades["schedule"] != "6").to_csv(inputs.tables / "cascades.csv", index=False)
    front = rows_of(specifications(inputs)["flops"]).query("kind == 'front'")
    assert set(front["what"]) == {"schedule 2", "schedule 2:15 6", "schedule 2:20 3:10 6"}


def test_empty_figures_say_what_is_missing(tmp_path):
    layers = read_table(make(tmp_path).tables / "layers.csv")
    layers[["share of gain", "share of score", "flops"]] = None
    empty = [
        draw_gain(layers, PRIMARY),
        draw_flops(layers, pd.DataFrame(columns=[*ARM_COLUMNS, "front"]), PRIMARY),
        draw_training(read_training_losses([])),
    ]
    assert [rows_of(chart.to_dict())["why"][0].split()[:2] for chart in empty] == [
        ["no", "arm"],
        ["no", "FLOPs"],
        ["no", "training"],
    ]


def write_figures(inputs: Inputs, out: Path) -> dict[str, str]:
    """Write all figures and return their SVG by name."""
    figures(inputs.tables, inputs.measures, inputs.models, inputs.calibrations, PRIMARY, out)
    wanted = {f"{name}.{suffix}" for name in FIGURES for suffix in FIGURE_FORMATS}
    assert {file.name for file in out.iterdir()} == wanted
    return {name: (out / f"{name}.svg").read_text(encoding="utf-8") for name in FIGURES}


def test_figure_files_are_complete_and_need_no_network(tmp_path):
    svg = write_figures(make(tmp_path, seeds=2), tmp_path / "figures")
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
        {"arms": nine_arms(), "seeds": 3},
        {"arms": [arm(), arm(start=4), arm("nfcorpus"), arm("nfcorpus", base="qwen", start=6)]},
        {"arms": [arm(start=6)], "cost": False, "cascade": False},
        {"arms": [arm(), arm(start=4), arm("nfcorpus")], "fused": True},
    ],
    ids=["one", "nine", "data-sets", "single-exit", "fused"],
)
def test_figures_of_small_and_large_grids_are_drawn(tmp_path, case):
    for svg in write_figures(make(tmp_path, **case), tmp_path / "figures").values():
        ElementTree.fromstring(svg)


def test_colours_of_figures_are_those_of_the_stylesheet(tmp_path):
    text = json.dumps(specifications(make(tmp_path, nine_arms(), queries=3)))
    used = set(re.findall(r'"(#[^"]*)"', text))
    assert used <= set(read_colours().values())
    assert {read_colours()[name] for name in ("arm-1", "arm-7", "lost", "tied", "won", "figure-grid")} <= used


def test_colours_are_spelled_in_the_stylesheet_alone():
    colour = re.compile(r"""(?<![&\w])(#|%23)([0-9a-f]{3}|[0-9a-f]{6})(?![\w-])""", re.IGNORECASE)
    files = [file for suffix in ("py", "html", "css", "yaml", "md") for file in PACKAGE.rglob(f"*.{suffix}")]
    assert [file.name for file in files if colour.search(file.read_text(encoding="utf-8"))] == ["style.css"]
