"""Tests of the model card: its numbers are those of the grid, its code runs."""

from __future__ import annotations

import dataclasses
import json
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
from lwr.evaluation.arm_files import CHOICE_COLUMNS
from lwr.evaluation.calibrate import calibrate
from lwr.evaluation.cascade import cascade
from lwr.evaluation.compare import compare
from lwr.evaluation.cost import ArmFiles, cost
from lwr.evaluation.evaluate import evaluate
from lwr.export.card import card
from lwr.export.export import export
from lwr.formats.beir import Passage, write_collection
from lwr.formats.calibration import read_calibration
from lwr.formats.fusion import Fusion, fusion_record
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
    calibration = tree.calibration(CELL, "made-up")
    calibrate(scores["dev"], scores["test"], collection, ARM | {"seed": 1}, calibration)
    tables([*measures.values()], [costs], [cascades], [calibration], "nDCG@10", tree.tables)
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


def test_numbers_of_probabilities_are_on_the_card_and_in_exports(model, tree, tmp_path):
    known = read_calibration(tree.calibration(CELL, "made-up"))
    text = card(model)
    for exit, name in {"first_stage": "first stage", "layer_2": "layer 2", "layer_4": "layer 4"}.items():
        line = known[exit]
        assert re.search(rf"\| {name} +\| {line.slope:.6g} +\| {line.intercept:.6g} +\|", text)
    export(model, 3, tmp_path / "exit")
    assert read_calibration(tmp_path / "exit/calibration.json") == {"layer_3": known["layer_3"]}
    readme = (tmp_path / "exit/README.md").read_text(encoding="utf-8")
    assert f"{known['layer_3'].slope:.6g}" in readme.partition("## Probabilities")[2]


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


@pytest.fixture
def fused_model(tree, tmp_path) -> Path:
    """Copy the grid, with weights of fused scores and tables that have them."""
    copied = ResultsTree(tmp_path / "results")
    shutil.copytree(tree.root, copied.root)
    exits = {k: {f"layer_{known}": 1.0 for known in range(2, k + 1)} for k in (2, 3, 4)}
    fusion = Fusion({k: {"first_stage": 1.0} | weights for k, weights in exits.items()}, exits)
    write_json(copied.fusion(CELL.arm, "made-up"), fusion_record(fusion))
    layers = pd.read_csv(copied.tables / "layers.csv", dtype={"schedule": str}).assign(fused=False)
    layer_3 = layers[layers["exit"] == "layer_3"]
    layer_3_fused = layer_3.assign(exit="layer_3_fused", fused=True, **{"nDCG@10": 0.987})
    pd.concat([layers, layer_3_fused]).to_csv(copied.tables / "layers.csv", index=False)
    types = {"schedule": str, "deepest": str}
    cascades = pd.read_csv(copied.tables / "cascades.csv", dtype=types).assign(fused=False)
    cascades = cascades.assign(**dict.fromkeys(CHOICE_COLUMNS, 0.5))
    chosen = cascades[cascades["chosen"]].assign(schedule="0:1 4", fused=True)
    cascades = pd.concat([cascades.assign(chosen=False), chosen])
    cascades.to_csv(copied.tables / "cascades.csv", index=False)
    return copied.model(CELL)


def test_card_and_upload_have_the_fusion_of_the_grid(fused_model, hub):
    text = card(fused_model, name=str(fused_model))
    assert 'reranker.rank(query, passages, cascade="0:1 4", first_stage=[12.4, 9.1], fused=True)' in text
    assert re.search(r"^\| 3, fused +\| 0\.987 ", text, re.M)
    assert "belong to the first stage" in text
    done = CliRunner().invoke(app, ["card", "--model", str(fused_model), "--push-to", "me/mine"])
    assert done.exit_code == 0, done.exception
    uploaded = json.loads(hub.files["fusion.json"])
    assert uploaded["with_first_stage"]["layer_2"] == {"first_stage": 1.0, "layer_2": 1.0}
    (fused_model / "fusion.json").write_bytes(hub.files["fusion.json"])
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(code, {})


def test_card_without_weights_shows_no_fused_example(fused_model):
    shutil.rmtree(fused_model.parents[1] / "fusion")
    text = card(fused_model)
    assert "fused=True" not in text
    assert "cascade=" not in text.partition("## Results")[0]


def test_export_says_what_fused_scores_would_add(fused_model, tmp_path):
    export(fused_model, 3, tmp_path / "exit")
    readme = (tmp_path / "exit/README.md").read_text()
    layers = pd.read_csv(fused_model.parents[6] / "tables/layers.csv").set_index("exit")["nDCG@10"]
    assert f"nDCG@10 0.987 instead of {layers['layer_3']:.3f} on made-up" in readme
    assert not (tmp_path / "exit/fusion.json").exists()
    export(fused_model, 2, tmp_path / "other")  # neither weights of its own nor a row in the tables
    assert "What is left out" not in (tmp_path / "other/README.md").read_text()


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
