"""A data set without dev queries is ranked with the choices that were made on the dev queries of another."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from project import Project, copy_project, keep_one_cell

from lwr.common.exits import Arm
from lwr.common.results_tree import ResultsTree
from lwr.formats.beir import Passage, write_collection
from lwr.verify.verify import verify

pytestmark = pytest.mark.xdist_group("workflow")

ARM = Arm("json-docs", "tiny-llama", 2, "default")


def add_test_only(project: Project) -> None:
    """Add a BEIR folder with test queries alone, ranked by the models that are trained on json-docs."""
    corpus = [Passage(f"d{i}", "", f"def decode{i}(s): return load the object {i}") for i in range(12)]
    queries = {f"q{i}": f"load the object {i}" for i in range(5)}
    folder = project.folder / "data/test-only"
    write_collection(folder, corpus, queries, {"test": {f"q{i}": {f"d{i}": 1} for i in range(5)}})
    for split in ("train", "dev"):
        (folder / f"qrels/{split}.tsv").unlink()

    def edit(config: dict) -> None:
        source = {"kind": "beir", "path": "data/test-only"}
        config["datasets"]["test-only"] = {"source": source, "train": False, "chosen_on": "json-docs"}
        config["datasets"]["json-docs"]["tests"] = ["json-docs", "test-only"]

    project.edit_config(edit)


@pytest.mark.slow
def test_plan_ranks_no_dev_queries_and_chooses_on_those_of_the_other(tmp_path):
    project = copy_project(tmp_path)
    project.edit_config(keep_one_cell)
    add_test_only(project)
    project.edit_config(lambda config: config.update(score={"precision": "int8"}))
    plan = project.plan()
    own, other = ("json-docs", "dev"), ("test-only", "test")
    for rule in ("score", "evaluate"):
        ranked = {(w["tested"], w["split"]) for name, w in plan if name == rule}
        assert ranked == {own, ("json-docs", "test"), other}
    assert [w["tested"] for name, w in plan if name == "precision"] == ["json-docs"]
    run = project.snakemake("--dry-run", "--printshellcmds")
    commands = (run.stdout + run.stderr).splitlines()
    for step, times in {"cascade": 1, "calibrate": 1, "fuse": 0}.items():
        chosen = [line for line in commands if f"lwr {step} " in line]
        assert len(chosen) == 2
        assert sum("--dev-collection results/test/collections/json-docs" in line for line in chosen) == times
        assert all("json-docs/dev.parquet" in line for line in chosen)


@pytest.mark.slow
@pytest.mark.nightly
def test_choices_come_from_the_dev_queries_of_another_data_set(cell):
    add_test_only(cell)
    assert {w.get("split") for rule, w in cell.plan() if rule in ("score", "evaluate")} == {"test"}
    cell.snakemake()
    tree = ResultsTree(cell.results)
    own, other = (
        {
            name: json.loads(path(ARM, tested).read_text())
            for name, path in (("cascade", tree.cascade), ("fusion", tree.fusion))
        }
        for tested in ("json-docs", "test-only")
    )
    assert "chosen_on" not in own["cascade"]
    assert other["cascade"]["chosen_on"] == "json-docs"
    for key in ("chosen", "for_fused", "dev queries"):
        assert other["cascade"][key] == own["cascade"][key]
    for row, of_own in zip(other["cascade"]["schedules"], own["cascade"]["schedules"], strict=True):
        assert (row["schedule"], row["dev"]) == (of_own["schedule"], of_own["dev"])
    assert other["cascade"]["schedules"] != own["cascade"]["schedules"]  # test is that of each
    assert {**other["fusion"], "dataset": "json-docs"} == own["fusion"]

    table = pd.read_csv(tree.tables / "cascades.csv")
    assert set(table.loc[table["dataset"] == "test-only", "chosen on"]) == {"json-docs"}
    assert table.loc[table["dataset"] == "json-docs", "chosen on"].isna().all()
    assert "| chosen on" in (tree.tables / "cascades.md").read_text()
    note = (
        "test-only has no dev queries: weights of fused scores and cascades were chosen on dev of json-docs."
    )
    assert note in (tree.tables / "layers.md").read_text()
    advice = tree.recommendation.read_text().split("## test-only")[1]
    assert "test-only has no dev queries: dev is that of json-docs" in advice
    assert "nan" not in advice

    verdict = verify(tree.root)
    assert not verdict.faults, verdict.faults
    assert cell.plan() == []
