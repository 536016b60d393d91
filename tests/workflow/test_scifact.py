"""A real collection from end to end: what the recommendation says of the cascade, is so."""

from __future__ import annotations

import json

import ir_measures
import pandas as pd
import pytest

from lwr.beir import read_qrels
from lwr.trec import read_run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workflow")]


def test_the_recommendation_says_what_the_cascade_keeps_on_test(scifact):
    results = scifact.folder / "results/scifact"
    arm = results / "cells/scifact/minilm/start2/default"
    decided = json.loads((arm / "cascade/scifact.json").read_text(encoding="utf-8"))
    by_schedule = pd.DataFrame(decided["schedules"]).set_index("schedule")
    chosen, deepest = by_schedule.loc[decided["chosen"]], by_schedule.loc["6"]
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
    assert f"**`{decided['chosen']}`**" in advice
    assert f"{kept:.1%}" in advice
    assert f"99% at half the FLOPs: {'yes' if reached else 'no'}" in advice


def test_training_taught_the_deep_exits_to_rank(scifact):
    layers = pd.read_csv(scifact.folder / "results/scifact/tables/layers.csv").set_index("exit")["nDCG@10"]
    assert layers["layer_6"] > layers["layer_2"] + 0.1
    assert layers["layer_6"] > 0.45
