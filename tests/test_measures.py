"""Measures are those of ir_measures, on rankings whose ties know nothing of relevance."""

from __future__ import annotations

import math

import ir_measures
import numpy as np
import pandas as pd
import pytest

from lwr.beir import Passage, write_collection
from lwr.files import BadInput
from lwr.measures import evaluate, per_query, rankings

DOCS = [f"d{i}" for i in range(20)]
QRELS = {"q1": {"d3": 1}, "q2": {"d0": 1, "d7": 1}, "q3": {"d5": 0}}
CELL = {
    "dataset": "made-up",
    "trained_on": "made-up",
    "base_model": "m",
    "start_layer": 1,
    "variant": "v",
    "seed": 1,
}


def mean(run, measure, qrels=QRELS) -> float:
    return per_query(qrels, run, [measure])["value"].mean()


def ranked(*docs: str) -> dict[str, float]:
    return {doc: float(len(docs) - rank) for rank, doc in enumerate(docs)}


def table(score) -> pd.DataFrame:
    rows = [(query, doc, score(query, doc)) for query in ("q1", "q2") for doc in DOCS]
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "layer_1"])


def test_values_worked_out_by_hand():
    run = {"q1": ranked("d1", "d3", "d2"), "q2": ranked("d0", "d1", "d7")}
    assert mean(run, "RR@10") == pytest.approx((1 / 2 + 1) / 2)
    ideal = 1 + 1 / math.log2(3)
    assert mean(run, "nDCG@10") == pytest.approx((1 / math.log2(3) + (1 + 1 / 2) / ideal) / 2)
    assert mean(run, "P@1") == pytest.approx(1 / 2)
    assert mean(run, "R@2") == pytest.approx((1 + 1 / 2) / 2)


def test_a_query_that_the_run_lacks_counts_nothing_and_one_without_relevant_is_not_asked():
    values = per_query(QRELS, {"q1": ranked("d3")}, ["RR@10"]).set_index("query_id")["value"]
    assert values.to_dict() == {"q1": 1.0, "q2": 0.0}


def test_an_oracle_and_its_reverse():
    relevant = {(query, doc) for query, docs in QRELS.items() for doc in docs}
    oracle = rankings(table(lambda query, doc: float((query, doc) in relevant)), "layer_1")
    reverse = rankings(table(lambda query, doc: -float((query, doc) in relevant)), "layer_1")
    assert mean(oracle, "nDCG@10") == pytest.approx(1)
    assert mean(reverse, "nDCG@10") == 0
    assert mean(reverse, "RR@20") == pytest.approx((1 / 20 + 1 / 19) / 2)


def test_a_constant_scorer_gets_what_chance_gives():
    queries = {
        f"q{i}": {DOCS[i % 20]: 1} for i in range(400)
    }  # the relevant passage stands everywhere in the list
    rows = pd.DataFrame(
        [(q, d, 0.0) for q in queries for d in DOCS], columns=["query_id", "doc_id", "layer_1"]
    )
    by_chance = np.mean([1 / rank for rank in range(1, 21)])
    assert mean(rankings(rows, "layer_1"), "RR@20", queries) == pytest.approx(by_chance)
    as_listed = rows.sample(frac=1, random_state=3)  # and how the candidates came in doesn't matter
    assert rankings(as_listed, "layer_1") == rankings(rows, "layer_1")


def test_scores_are_strictly_decreasing_in_the_precision_that_trec_eval_has():
    for run in (table(lambda *_: 0.1), table(lambda _, doc: 1e30 if doc < "d15" else 1.0)):
        for docs in rankings(run, "layer_1").values():
            scores = np.array(list(docs.values()), dtype=np.float32)
            assert (np.diff(scores) < 0).all()


@pytest.fixture
def collection(tmp_path):
    qrels = {"test": {query: docs for query, docs in QRELS.items() if query != "q3"}}
    corpus = [Passage(doc, "", f"text {doc}") for doc in DOCS]
    write_collection(tmp_path, corpus, {query: query for query in qrels["test"]}, qrels)
    return tmp_path


def test_evaluate_writes_a_row_per_exit_query_and_measure(collection):
    scores = table(lambda query, doc: float(doc[1:])).assign(first_stage=lambda t: -t["layer_1"])
    scores.to_parquet(collection / "scores.parquet")
    evaluate(
        collection / "scores.parquet",
        collection,
        "test",
        ["nDCG@10", "R@20"],
        CELL,
        collection / "out.parquet",
    )
    out = pd.read_parquet(collection / "out.parquet")
    assert list(out.columns) == [*CELL, "split", "exit", "query_id", "measure", "value"]
    assert len(out) == 2 * 2 * 2
    first = out[(out["exit"] == "first_stage") & (out["measure"] == "nDCG@10")].set_index("query_id")["value"]
    run = {q: {d: -float(d[1:]) for d in DOCS} for q in ("q1", "q2")}
    expected = {
        m.query_id: m.value
        for m in ir_measures.iter_calc([ir_measures.nDCG @ 10], QRELS, run)
        if m.query_id != "q3"
    }
    assert first.to_dict() == pytest.approx(expected)


def test_a_candidate_scored_twice_is_refused(collection):
    scores = table(lambda *_: 1.0)
    pd.concat([scores, scores.head(1)]).to_parquet(collection / "scores.parquet")
    with pytest.raises(BadInput, match="stands twice"):
        evaluate(collection / "scores.parquet", collection, "test", ["P@1"], CELL, collection / "out.parquet")
    assert not (collection / "out.parquet").exists()
