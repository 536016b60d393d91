"""What runs, and what runs again: each change schedules the jobs that can feel it, and no others."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

pytestmark = pytest.mark.xdist_group("workflow")  # the finished grid is made once

CELLS = {("tiny-llama", "2"), ("tiny-llama", "4"), ("tiny-bert", "4")}


def cells(plan, rule):
    return {(w["base_model"], w["start_layer"], w["seed"]) for name, w in plan if name == rule}


def test_the_grid_ends_in_a_table_of_every_cell_and_exit(finished):
    table = pd.read_csv(finished.folder / "results/test/tables/layers.csv", keep_default_na=False)
    exits = table[table["layer"] > 0]
    assert {(m, str(s)) for m, s in zip(exits["base_model"], exits["start_layer"], strict=True)} == CELLS
    assert list(exits[exits["base_model"] == "tiny-llama"]["layer"]) == [2, 3, 4, 4]
    assert (table["layer"] == 0).sum() == 1


def test_the_run_ends_by_printing_the_table_and_where_everything_is(finished):
    printed = (finished.folder / "printed.txt").read_text(encoding="utf-8")
    assert (finished.folder / "results/test/tables/layers.md").read_text(encoding="utf-8") in printed
    assert "results/test/tables/" in printed


def test_a_second_run_does_nothing(finished):
    assert finished.plan() == []


def test_without_one_cells_scores_only_what_follows_from_them_runs(house):
    shutil.rmtree(house.folder / "results/test/cells/json-docs/tiny-bert/start4/default/seed1/scores")
    plan = house.plan()
    assert {rule for rule, _ in plan} == {"score", "evaluate", "tables"}
    assert cells(plan, "score") == cells(plan, "evaluate") == {("tiny-bert", "4", "1")}


def test_one_more_seed_trains_only_its_own_cells(house):
    house.edit_config(lambda config: config["seeds"].append(2))
    plan = house.plan()
    assert {rule for rule, _ in plan} == {"train", "score", "evaluate", "tables"}
    for rule in ("train", "score", "evaluate"):
        assert cells(plan, rule) == {(model, start, "2") for model, start in CELLS}


def test_the_same_seed_gives_the_same_tables(finished, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished.folder, again, ignore=shutil.ignore_patterns("results", ".snakemake"))
    other = type(finished)(again)
    other.snakemake()
    assert other.tables() == finished.tables()
