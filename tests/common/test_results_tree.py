"""Paths of results/ are fixed, as users and older results depend on them, and are found again on disk."""

import dataclasses
from pathlib import Path

import pytest

from lwr.common.errors import BadInput
from lwr.common.exits import Arm, Cell
from lwr.common.json_lines import write_json
from lwr.common.results_tree import ANY_CELL, WILDCARD_CELL, ResultsTree, cell_of_model, find_results

TREE = ResultsTree(Path("results"))
ARM = Arm("docs", "tiny", 2, "plain")
CELL = Cell("docs", "tiny", 2, "plain", 1)
FOLDER = "results/cells/docs/tiny/start2/plain"

PATHS = {
    "collections": (TREE.collections, "results/collections"),
    "collection": (TREE.collection("docs"), "results/collections/docs"),
    "corpus": (TREE.corpus("docs"), "results/collections/docs/corpus.jsonl"),
    "queries": (TREE.queries("docs"), "results/collections/docs/queries.jsonl"),
    "qrels": (TREE.qrels("docs", "dev"), "results/collections/docs/qrels/dev.tsv"),
    "embeddings": (TREE.embeddings("docs"), "results/collections/docs/embeddings"),
    "run": (TREE.run("docs", "dev"), "results/collections/docs/runs/dev.trec"),
    "groups": (TREE.groups("docs"), "results/collections/docs/groups.jsonl"),
    "teacher_run": (TREE.teacher_run("docs", "big"), "results/collections/docs/teachers/big.trec"),
    "teacher_shard": (
        TREE.teacher_shard("docs", "big", "{shard}"),
        "results/collections/docs/teachers/big.shards/{shard}.trec",
    ),
    "base_model": (TREE.base_model("tiny"), "results/base_models/tiny.json"),
    "cells": (TREE.cells, "results/cells"),
    "arm": (TREE.arm(ARM), FOLDER),
    "fusion": (TREE.fusion(ARM, "news"), f"{FOLDER}/fusion/news.json"),
    "precision": (TREE.precision(ARM, "news"), f"{FOLDER}/precision/news.json"),
    "cascade": (TREE.cascade(ARM, "news"), f"{FOLDER}/cascade/news.json"),
    "cost": (TREE.cost("news"), "results/cost/news.json"),
    "cell": (TREE.cell(CELL), f"{FOLDER}/seed1"),
    "model": (TREE.model(CELL), f"{FOLDER}/seed1/model"),
    "scores": (TREE.scores(CELL, "news", "test"), f"{FOLDER}/seed1/scores/news/test.parquet"),
    "score_shard": (
        TREE.score_shard(CELL, "news", "test", "1of4"),
        f"{FOLDER}/seed1/scores/news/test.shards/1of4.parquet",
    ),
    "measures": (TREE.measures(CELL, "news", "test"), f"{FOLDER}/seed1/measures/news/test.parquet"),
    "runs": (TREE.runs(CELL, "news", "test"), f"{FOLDER}/seed1/runs/news/test"),
    "calibration": (TREE.calibration(CELL, "news"), f"{FOLDER}/seed1/calibration/news.json"),
    "tables": (TREE.tables, "results/tables"),
    "recommendation": (TREE.recommendation, "results/tables/recommendation.md"),
    "figures": (TREE.figures, "results/figures"),
    "report": (TREE.report, "results/report.html"),
    "logs": (TREE.logs, "results/logs"),
}
"""Name of a path function -> what it returns, and the expected path."""


@pytest.mark.parametrize("name", PATHS)
def test_path_is_fixed(name):
    path, expected = PATHS[name]
    assert path == Path(expected)


def test_every_path_function_is_tested():
    public = {name for name in vars(ResultsTree) if not name.startswith("_")}
    assert public == PATHS.keys() | {"table", "figure_files", "existing", "arms_on_disk", "cells_on_disk"}


def test_table_has_a_file_per_format():
    assert TREE.table("layers") == [
        Path(f"results/tables/layers.{suffix}") for suffix in ("csv", "md", "tex")
    ]
    assert TREE.table("cost") == [Path("results/tables/cost.csv"), Path("results/tables/cost.md")]


def test_figures_have_a_file_per_format():
    files = TREE.figure_files()
    assert Path("results/figures/quality.svg") in files
    assert len(files) == len(set(files)) == 7 * 4


def test_wildcards_make_a_pattern():
    model = TREE.model(WILDCARD_CELL)
    assert str(model) == "results/cells/{dataset}/{base_model}/start{start_layer}/{variant}/seed{seed}/model"


def test_cell_of_model_is_read_from_its_provenance(tmp_path):
    cell = Cell("docs", "minilm", 2, "default", 7)
    write_json(tmp_path / "provenance.json", {"cell": dataclasses.asdict(cell)})
    assert cell_of_model(tmp_path) == cell


def test_cell_of_older_model_is_read_from_its_path(tmp_path):
    cell = Cell("docs", "minilm", 2, "default", -7)
    model = ResultsTree(tmp_path).model(cell)
    write_json(model / "provenance.json", {"seed": -7})
    assert cell_of_model(model) == cell


@pytest.mark.parametrize("cell", [None, {"seed": 1}, {"extra": 1}, 3, [1]])
def test_model_without_cell_is_refused(tmp_path, cell):
    write_json(tmp_path / "provenance.json", {"cell": cell})
    with pytest.raises(BadInput, match=r"provenance\.json: field 'cell'"):
        cell_of_model(tmp_path)


def test_arms_and_cells_on_disk_are_those_with_a_folder(tmp_path):
    tree = ResultsTree(tmp_path)
    cells = [Cell("docs", base, 2, "default", seed) for base in ("bert", "minilm") for seed in (-1, 3)]
    for cell in cells:
        tree.model(cell).mkdir(parents=True)
    (tree.arm(cells[0]) / ".draft-0a1b2c3d-seed4").mkdir()
    (tree.arm(cells[0]) / "seed5").touch()
    (tree.cells / "docs/bert/starting/default").mkdir(parents=True)
    assert tree.arms_on_disk() == [cells[0].arm, cells[2].arm]
    assert [cell for arm in tree.arms_on_disk() for cell in tree.cells_on_disk(arm)] == cells


def test_existing_finds_what_matches_a_pattern_without_drafts(tmp_path):
    tree = ResultsTree(tmp_path / "results [1]")
    cell = Cell("docs", "minilm", 2, "default", 1)
    written = [tree.scores(cell, "docs", split) for split in ("dev", "test")]
    for path in (*written, written[0].with_name(".draft-0a1b2c3d-dev.parquet")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert tree.existing(tree.scores(ANY_CELL, "*", "*")) == written
    assert tree.existing(tree.scores(ANY_CELL, "other", "*")) == []


def test_arms_and_cells_on_disk_are_listed(tmp_path):
    tree = ResultsTree(tmp_path)
    cells = [Cell("docs", "tiny", 2, "plain", -1), Cell("docs", "tiny", 2, "plain", 3)]
    for cell in cells:
        tree.model(cell).mkdir(parents=True)
    (tree.arm(ARM) / "seed4.checkpoints-1").mkdir()
    (tree.root / "cells/docs/tiny/startx/plain").mkdir(parents=True)
    assert tree.arms_on_disk() == [ARM]
    assert tree.cells_on_disk(ARM) == cells


def test_existing_paths_exclude_drafts(tmp_path):
    tree = ResultsTree(tmp_path)
    for name in ("dev.tsv", ".draft-1-test.tsv"):
        file = tree.qrels("docs", "dev").with_name(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert tree.existing(tree.qrels("docs", "*")) == [tree.qrels("docs", "dev")]


def test_results_folder_of_a_model_is_found(tmp_path):
    tree = ResultsTree(tmp_path / "results")
    tree.model(CELL).mkdir(parents=True)
    assert find_results(tree.model(CELL), CELL) == tree
    assert find_results(tree.model(CELL), Cell("docs", "tiny", 2, "plain", 2)) is None
    assert find_results(tmp_path, CELL) is None
