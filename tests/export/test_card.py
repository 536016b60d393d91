"""Tests of the model card: its numbers are those of the grid, its code runs."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from lwr.cli.app import app
from lwr.common.errors import BadInput
from lwr.common.exits import Cell
from lwr.common.json_lines import write_json
from lwr.common.results_tree import ResultsTree
from lwr.config.evaluation import CascadeSearchConfig, CostConfig, ScoringConfig
from lwr.evaluation.cascade import cascade
from lwr.evaluation.compare import compare
from lwr.evaluation.cost import ArmFiles, cost
from lwr.evaluation.evaluate import evaluate
from lwr.export.card import card
from lwr.formats.beir import Passage, write_collection
from lwr.formats.trec import write_run
from lwr.reporting.tables import tables
from lwr.scoring.score import score

CELL = Cell("made-up", "tiny", start_layer=2, variant="default", seed=1)
ARM = {"dataset": "made-up"} | dataclasses.asdict(CELL.arm)  # as `lwr evaluate` and others write it


@pytest.fixture(scope="module")
def tree(tmp_path_factory, build_reranker) -> ResultsTree:
    """Write the results of a grid of one cell, from an untrained model to its tables."""
    tree = ResultsTree(tmp_path_factory.mktemp("grid") / "results")
    model = tree.model(CELL)
    build_reranker().save_pretrained(model)
    origin = {
        "cell": dataclasses.asdict(CELL),
        "settings": {"epochs": 2, "lr": 2e-5, "lora": {"rank": 8}},
        "seed": 1,
        "groups_sha256": "c0ffee" * 10,
        "base_fingerprint": "5a" * 32,
        "lwr": "0.1.0",
        "git_commit": "337a3e1c0ffee0ddba11",
        "packages": {"torch": "2.13.0", "peft": "0.19.0"},
        "machine": {"host": "a-private-host"},
    }
    write_json(model / "provenance.json", origin)

    queries = {split: [f"{split}{i}" for i in range(6)] for split in ("dev", "test")}
    collection = tree.collection("made-up")
    write_collection(
        collection,
        [Passage(f"d{i}", "", "def decode(s)" + " and more" * (i % 4) + str(i)) for i in range(12)],
        {query: f"load {query}" for of_split in queries.values() for query in of_split},
        {split: {q: {f"d{i}": 1} for i, q in enumerate(of_split)} for split, of_split in queries.items()},
    )
    cascades, costs = tree.cascade(CELL.arm, "made-up"), tree.cost("made-up")
    scores = {split: tree.scores(CELL, "made-up", split) for split in queries}
    measures = {split: tree.measures(CELL, "made-up", split) for split in queries}
    for split, of_split in queries.items():
        run = tree.run("made-up", split)
        write_run(run, {query: [(f"d{i}", 9.0 - i) for i in range(8)] for query in of_split}, "bm25")
        score(model, collection, split, run, ScoringConfig(), scores[split])
    cascade(
        model, [scores["dev"]], [scores["test"]], collection, CascadeSearchConfig(epsilon=0.9), ARM, cascades
    )
    for split in queries:
        inputs = scores[split], collection, split, ["nDCG@10", "RR@10"], cascades
        evaluate(*inputs, ARM | {"seed": 1}, measures[split], tree.runs(CELL, "made-up", split))
    cost(
        [ArmFiles(model, scores["test"], cascades)], collection, ScoringConfig(), CostConfig(queries=2), costs
    )
    tables([*measures.values()], [costs], [cascades], "nDCG@10", tree.tables)
    compare([*measures.values()], "nDCG@10", 0.02, tree.tables)
    return tree


@pytest.fixture(scope="module")
def model(tree) -> Path:
    return tree.model(CELL)


def front_of(text: str) -> dict:
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def test_front_matter_describes_the_model(model):
    front = front_of(card(model, license="mit"))
    del front["model-index"]
    assert front == {
        "pipeline_tag": "text-ranking",
        "library_name": "lwr",
        "license": "mit",
        "base_model": "owner/tiny-base",
        "tags": ["reranker", "cross-encoder", "layerwise", "lwr"],
        "datasets": ["made-up"],
        "metrics": ["nDCG@10", "RR@10"],
    }
    assert front_of(card(model))["license"] == "unknown"


def test_front_matter_has_the_measures_of_every_exit(model, tree):
    [index] = front_of(card(model, name="me/mine"))["model-index"]
    assert index["name"] == "mine"
    [results] = index["results"]
    assert results["task"] == {"type": "text-ranking"}
    assert results["dataset"] == {"name": "made-up", "type": "made-up", "split": "test"}
    found = {metric["name"]: metric["value"] for metric in results["metrics"]}
    layers = pd.read_csv(tree.tables / "layers.csv").set_index("exit")
    for exit, name in {"layer_2": "layer 2", "layer_4": "layer 4"}.items():
        for measure in ("nDCG@10", "RR@10"):
            assert found[f"{measure}, {name}"] == pytest.approx(layers.loc[exit, measure], abs=1e-4)
    assert not any("first stage" in name for name in found)
    assert {metric["type"] for metric in results["metrics"]} == {"ndcg@10", "rr@10"}


def test_tables_have_the_first_stage_and_every_exit(model, tree):
    text = card(model)
    layers = pd.read_csv(tree.tables / "layers.csv").set_index("exit")["nDCG@10"]
    for exit in ("first_stage", "layer_2", "layer_3", "layer_4"):
        name = exit.removeprefix("layer_").replace("_", " ")
        assert re.search(rf"^\| {name} +\| {layers[exit]:.3f} ", text, re.M), exit
    costs = pd.read_csv(tree.tables / "cost.csv")
    assert text.count("| 100% ") >= 2
    assert costs["device"].iloc[0] in text
    schedules = pd.read_csv(tree.tables / "cascades.csv", dtype=str)["schedule"]
    assert all(f"| {schedule} " in text for schedule in schedules)
    assert "### The shallowest exit as good as layer 4" in text
    assert "### The best cascade" in text
    assert not re.search(r"\| *(data set|base model) *\|", text), "columns of the arm are left out"


def test_card_has_settings_and_checksums_but_not_the_machine(model):
    text = card(model)
    assert '| lora | {"rank": 8} |' in text
    assert "c0ffee" * 10 in text
    assert "5a" * 32 in text
    assert "commit 337a3e1c0ffe" in text
    assert "a-private-host" not in text
    assert "Pairs above 64 tokens are cut" in text
    assert "{" not in re.sub(r"\| lora [^\n]*|```.*?```", "", text, flags=re.S), "every placeholder is filled"


def test_python_example_runs(model):
    name = str(model)
    (code,) = re.findall(r"```python\n(.*?)```", card(model, name=name), re.S)
    assert code.count("reranker.rank(") >= 2
    exec(code, {})


def test_command_example_runs(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("passages.txt").write_text("one\ntwo\n")
    (command,) = re.findall(r"```\nlwr (.*?)\n```", card(model, name=str(model)))
    done = CliRunner().invoke(app, shlex.split(command))
    assert done.exit_code == 0, done.exception
    assert len(done.stdout.splitlines()) == 2


def test_model_outside_a_grid_gets_a_card_without_results(tmp_path, build_reranker):
    build_reranker(str(tmp_path / "private-folder")).save_pretrained(tmp_path / "model")
    text = card(tmp_path / "model", name="me/mine")
    assert text.split("\n# ")[1].startswith("mine\n")
    assert "no results" in text
    assert "## Results" not in text
    assert front_of(text).keys() == {"pipeline_tag", "library_name", "license", "tags"}
    assert "private-folder" not in text
    with pytest.raises(BadInput, match="leave out --results"):
        card(tmp_path / "model", tmp_path)


def test_missing_tables_and_missing_rows_are_refused(model, tree, tmp_path, build_reranker):
    with pytest.raises(BadInput, match=r"layers\.csv: no such file"):
        card(model, tmp_path)
    other = ResultsTree(tmp_path).model(dataclasses.replace(CELL, base_model="another"))
    build_reranker().save_pretrained(other)
    write_json(other / "provenance.json", {"seed": 1})  # as written before the cell was recorded
    with pytest.raises(BadInput, match="no row of made-up, another, start 2, default"):
        card(other, tree.root)


def test_moved_model_keeps_its_cell(model, tree, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    assert card(moved, tree.root) == card(model)
    assert "no results" in card(moved)
    assert "trained on made-up" in card(moved)


def test_command_writes_and_uploads_the_card(hub, model, tmp_path):
    words = ["card", "--model", str(model), "--license", "mit", "--out", str(tmp_path / "README.md")]
    done = CliRunner().invoke(app, [*words, "--push-to", "me/mine", "--private"])
    assert done.exit_code == 0, done.exception
    assert done.stdout.splitlines()[-1] == "https://hub/me/mine/commit/1"
    assert hub.files["README.md"] == (tmp_path / "README.md").read_bytes()
    assert b'from_pretrained("me/mine")' in hub.files["README.md"]
    assert "provenance.json" not in hub.files
    assert hub.calls[0] == ("create_repo", "me/mine", {"private": True, "exist_ok": True})


def test_command_prints_the_card_by_default(model):
    done = CliRunner().invoke(app, ["card", "--model", str(model)])
    assert done.exit_code == 0, done.exception
    assert done.stdout == card(model)
