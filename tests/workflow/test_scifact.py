"""SciFact from end to end: the recommendation, the exits and the reranked files agree with each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import ir_measures
import pandas as pd
import pytest
import yaml

from lwr.export.card import card
from lwr.formats.beir import read_qrels
from lwr.formats.trec import read_run

pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("workflow")]


def test_recommendation_reports_what_the_cascade_keeps_on_test(scifact):
    results = scifact.folder / "results/scifact"
    arm = results / "cells/scifact/minilm/start2/default"
    decided = json.loads((arm / "cascade/scifact.json").read_text(encoding="utf-8"))
    by_schedule = pd.DataFrame(decided["schedules"]).set_index(["schedule", "fused"])
    chosen, deepest = by_schedule.loc[decided["chosen"], decided["fused"]], by_schedule.loc["6", False]
    assert chosen["dev"] >= (1 - decided["epsilon"]) * deepest["dev"]
    assert chosen["dev flops"] < deepest["dev flops"] == 1

    qrels = read_qrels(results / "collections/scifact", "test")
    for exit, expected in (("cascade", chosen["test"]), ("layer_6", deepest["test"])):
        run = {q: dict(docs) for q, docs in read_run(arm / f"seed1/runs/scifact/test/{exit}.trec").items()}
        measured = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)
        assert measured[ir_measures.nDCG @ 10] == pytest.approx(expected, abs=1e-6)

    kept = chosen["test"] / deepest["test"]
    reached = kept >= 0.99 and chosen["test flops"] <= 0.5
    advice = (results / "tables/recommendation.md").read_text(encoding="utf-8")
    assert f"**`{decided['chosen']}`{', fused' if decided['fused'] else ''}**" in advice
    assert f"{kept:.1%}" in advice
    assert f"99% at half the FLOPs: {'yes' if reached else 'no'}" in advice


def test_trained_deep_exits_rank_better_than_shallow_ones(scifact):
    layers = pd.read_csv(scifact.folder / "results/scifact/tables/layers.csv").set_index("exit")["nDCG@10"]
    assert layers["layer_6"] > layers["layer_2"] + 0.1
    assert layers["layer_6"] > 0.45


@pytest.mark.parametrize("exit", ["layer_6", "layer_4", "cascade"])
def test_rerank_from_files_writes_the_run_of_the_workflow(scifact, tmp_path, exit):
    results = scifact.folder / "results/scifact"
    collection, arm = results / "collections/scifact", results / "cells/scifact/minilm/start2/default"
    decided = json.loads((arm / "cascade/scifact.json").read_text(encoding="utf-8"))
    assert ":" in decided["chosen"], "this grid chooses a cascade of several exits"
    depth = ["--layer", exit.removeprefix("layer_")]
    if exit == "cascade":
        depth = ["--cascade", decided["chosen"]]
        if decided["fused"]:
            depth += ["--fused", "--fusion", str(arm / "fusion/scifact.json")]
    files = {
        "--model": arm / "seed1/model",
        "--queries": collection / "queries.jsonl",
        "--run": collection / "runs/test.trec",
        "--corpus": collection / "corpus.jsonl",
        "--out": tmp_path / "out.trec",
    }
    options_of_files = [str(word) for option in files.items() for word in option]
    # rounding depends on the number of threads; with two cores, dev and test are scored side by side on one each
    environment = os.environ | {"PYTHONPATH": str(scifact.folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lwr.cli", "rerank", *options_of_files, *depth]
    subprocess.run(command, cwd=scifact.folder, env=environment, check=True, timeout=600)
    expected = arm / f"seed1/runs/scifact/test/{exit}.trec"
    assert (tmp_path / "out.trec").read_bytes() == expected.read_bytes()


def test_model_card_has_the_numbers_of_the_grid(scifact):
    results = scifact.folder / "results/scifact"
    text = card(results / "cells/scifact/minilm/start2/default/seed1/model", license="apache-2.0")
    layers = pd.read_csv(results / "tables/layers.csv").set_index("exit")["nDCG@10"]
    assert all(f"{layers[exit]:.3f}" in text for exit in ("first_stage", "layer_2", "layer_6", "cascade"))
    chosen = json.loads(
        (results / "cells/scifact/minilm/start2/default/cascade/scifact.json").read_text(encoding="utf-8")
    )["chosen"]
    assert f'cascade="{chosen}"' in text
    train = yaml.safe_load((scifact.folder / scifact.config).read_text(encoding="utf-8"))["train"]
    assert f"| passage_max_len | {train['passage_max_len']} |" in text
