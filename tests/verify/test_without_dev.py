"""A data set without dev queries, through all steps: choices from the dev queries of another, named in every table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from results_tree import ARM, CELLS, MEASURES, build

from lwr.common.results_tree import ResultsTree
from lwr.config.data.first_stage import Bm25FirstStage
from lwr.config.evaluation import CascadeSearchConfig, CostConfig, FusionConfig, ScoringConfig
from lwr.data.retrieve import retrieve
from lwr.evaluation.calibrate import calibrate
from lwr.evaluation.cascade import ChoiceRule, cascade
from lwr.evaluation.compare import compare
from lwr.evaluation.cost import ArmFiles, cost
from lwr.evaluation.evaluate import evaluate
from lwr.evaluation.fuse import fuse
from lwr.formats.beir import Passage, write_collection
from lwr.reporting.advise import advice_text, advise
from lwr.reporting.tables import tables
from lwr.scoring.score import score
from lwr.verify.verify import verify

BOTH = ("docs", "small")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> ResultsTree:
    """A results tree whose cells rank docs, which has dev queries, and small, which has none."""
    tree = ResultsTree(build(tmp_path_factory.mktemp("without-dev")))
    _collect(tree)
    for cell in CELLS:
        run, scores = tree.run("small", "test"), tree.scores(cell, "small", "test")
        score(tree.model(cell), tree.collection("small"), "test", run, ScoringConfig(), scores)
    dev = [tree.scores(cell, "docs", "dev") for cell in CELLS]
    _choose(tree, dev)
    for cell, of_dev in zip(CELLS, dev, strict=True):
        _measure(tree, cell, of_dev)
    measures = [tree.measures(cell, "docs", "dev") for cell in CELLS]
    measures += [tree.measures(cell, name, "test") for name in BOTH for cell in CELLS]
    costs, cascades = ([path(name) for name in BOTH] for path in (tree.cost, lambda n: tree.cascade(ARM, n)))
    calibrations = [tree.calibration(cell, name) for name in BOTH for cell in CELLS]
    tables(measures, costs, cascades, calibrations, "nDCG@10", tree.tables)
    compare(measures, "nDCG@10", 0.02, tree.tables)
    advise(tree.tables, tree.recommendation)
    return tree


def _collect(tree: ResultsTree) -> None:
    passages = [Passage(f"d{i}", "", f"def f{i}(x): return decode(x, {i * i})") for i in range(12)]
    queries, qrels = {f"t{i}": f"decode {i * i}" for i in range(5)}, {f"t{i}": {f"d{i}": 1} for i in range(5)}
    write_collection(tree.collection("small"), passages, queries, {"test": qrels})
    retrieve(tree.collection("small"), tree.run("small", "test"), "test", Bm25FirstStage(depth=8))


def _choose(tree: ResultsTree, dev: list[Path]) -> None:
    about, weights, chosen = (
        {"dataset": "small", **asdict(ARM)},
        tree.fusion(ARM, "small"),
        tree.cascade(ARM, "small"),
    )
    test, model = [tree.scores(cell, "small", "test") for cell in CELLS], tree.model(CELLS[0])
    small, docs = tree.collection("small"), tree.collection("docs")
    fuse(dev, docs, FusionConfig(), "nDCG@10", about, weights)
    search, rule = CascadeSearchConfig(epsilon=0.9, keep=[3]), ChoiceRule(fusion=weights)
    cascade(model, dev, test, small, search, about, chosen, rule, dev_collection=docs)
    files = ArmFiles(model, test[0], chosen, weights)
    cost([files], small, ScoringConfig(), CostConfig(queries=None), tree.cost("small"))


def _measure(tree: ResultsTree, cell, dev: Path) -> None:
    about, weights = {"dataset": "small", **asdict(cell)}, tree.fusion(ARM, "small")
    test, small = tree.scores(cell, "small", "test"), tree.collection("small")
    out, runs = tree.measures(cell, "small", "test"), tree.runs(cell, "small", "test")
    evaluate(test, small, "test", MEASURES, tree.cascade(ARM, "small"), about, out, runs, weights)
    fitted = tree.calibration(cell, "small")
    calibrate(dev, test, small, about, fitted, weights, dev_collection=tree.collection("docs"))


def test_choices_are_those_of_the_other_data_set(tree):
    own, other = (json.loads(tree.cascade(ARM, name).read_text()) for name in BOTH)
    assert "chosen_on" not in own
    assert other["chosen_on"] == "docs"
    for key in ("chosen", "for_fused", "dev queries"):
        assert other[key] == own[key]
    on_dev = [
        [(row["schedule"], row["fused"], row["dev"]) for row in one["schedules"]] for one in (own, other)
    ]
    assert on_dev[0] == on_dev[1]
    assert own["inputs"]["test"] != other["inputs"]["test"]
    for cell in CELLS:
        maps = [json.loads(tree.calibration(cell, name).read_text())["exits"]["layer_4"] for name in BOTH]
        assert maps[0]["logistic"] == maps[1]["logistic"]


def test_tables_and_recommendation_say_where_it_was_chosen(tree):
    table = pd.read_csv(tree.tables / "cascades.csv").set_index("dataset")["chosen on"]
    assert set(table["small"]) == {"docs"}
    assert table["docs"].isna().all()
    assert "| chosen on" in (tree.tables / "cascades.md").read_text()
    note = "small has no dev queries: weights of fused scores and cascades were chosen on dev of docs."
    assert note in (tree.tables / "layers.md").read_text()
    advice = tree.recommendation.read_text().split("## small")[1]
    assert "small has no dev queries: dev is that of docs" in advice
    assert "nan" not in advice
    by_threshold = advice_text(tree.tables, precision=0.01).split("## small")[1]
    assert by_threshold.count("| 1 |") == by_threshold.count("| 2 |") == 1


def test_verify_finds_no_fault_but_a_change_of_the_other_dev(tree):
    verdict = verify(tree.root)
    assert verdict.faults == verdict.notes == []
    qrels = tree.qrels("docs", "dev")
    before = qrels.read_text()
    qrels.write_text(before.replace("\t1\n", "\t2\n"))
    faults = [fault for fault in verify(tree.root).faults if "small" in fault]
    qrels.write_text(before)
    assert any(str(tree.cascade(ARM, "small")) in fault for fault in faults)
    assert any(str(tree.fusion(ARM, "small")) in fault for fault in faults)
    assert any("calibration" in fault for fault in faults)
