"""Measures by hand, and ties that are broken without knowledge of relevance."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from lwr.evaluation.measures import measures_per_query, rankings, tie_shares

DOCS = [f"d{i}" for i in range(20)]
QRELS = {"q1": {"d3": 1}, "q2": {"d0": 1, "d7": 1}, "q3": {"d5": 0}}


def mean(run, measure, qrels=QRELS) -> float:
    return measures_per_query(qrels, run, [measure])["value"].mean()


def ranked(*docs: str) -> dict[str, float]:
    return {doc: float(len(docs) - rank) for rank, doc in enumerate(docs)}


def table(score) -> pd.DataFrame:
    rows = [(query, doc, score(query, doc)) for query in ("q1", "q2") for doc in DOCS]
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "layer_1"])


def test_measures_by_hand():
    run = {"q1": ranked("d1", "d3", "d2"), "q2": ranked("d0", "d1", "d7")}
    assert mean(run, "RR@10") == pytest.approx((1 / 2 + 1) / 2)
    ideal = 1 + 1 / math.log2(3)
    assert mean(run, "nDCG@10") == pytest.approx((1 / math.log2(3) + (1 + 1 / 2) / ideal) / 2)
    assert mean(run, "P@1") == pytest.approx(1 / 2)
    assert mean(run, "R@2") == pytest.approx((1 + 1 / 2) / 2)


def test_query_missing_from_run_counts_0_and_unjudged_query_is_left_out():
    values = measures_per_query(QRELS, {"q1": ranked("d3")}, ["RR@10"]).set_index("query_id")["value"]
    assert values.to_dict() == {"q1": 1.0, "q2": 0.0}


def test_oracle_and_its_reverse():
    relevant = {(query, doc) for query, docs in QRELS.items() for doc in docs}
    oracle = rankings(table(lambda query, doc: float((query, doc) in relevant)), "layer_1")
    reverse = rankings(table(lambda query, doc: -float((query, doc) in relevant)), "layer_1")
    assert mean(oracle, "nDCG@10") == pytest.approx(1)
    assert mean(reverse, "nDCG@10") == 0
    assert mean(reverse, "RR@20") == pytest.approx((1 / 20 + 1 / 19) / 2)


def test_constant_scorer_gets_what_chance_gives():
    # the relevant passage is at every position of the list equally often
    queries = {f"q{i}": {DOCS[i % 20]: 1} for i in range(400)}
    rows = pd.DataFrame(
        [(q, d, 0.0) for q in queries for d in DOCS], columns=["query_id", "doc_id", "layer_1"]
    )
    by_chance = np.mean([1 / rank for rank in range(1, 21)])
    assert mean(rankings(rows, "layer_1"), "RR@20", queries) == pytest.approx(by_chance)
    as_listed = rows.sample(frac=1, random_state=3)  # the order of candidates does not matter
    assert rankings(as_listed, "layer_1") == rankings(rows, "layer_1")


def test_scores_decrease_strictly_in_float32():
    for run in (table(lambda *_: 0.1), table(lambda _, doc: 1e30 if doc < "d15" else 1.0)):
        for docs in rankings(run, "layer_1").values():
            scores = np.array(list(docs.values()), dtype=np.float32)
            assert (np.diff(scores) < 0).all()


def test_queries_are_sorted():
    scores = table(lambda query, doc: 1.0).iloc[::-1].reset_index(drop=True)
    run = rankings(scores, "layer_1")
    assert list(run) == ["q1", "q2"]
    assert tie_shares(scores, "layer_1")["query_id"].tolist() == ["q1", "q2"]
    values = measures_per_query(QRELS, run, ["RR@10", "P@1"])
    assert list(values) == ["query_id", "measure", "value"]
    assert values[["query_id", "measure"]].to_numpy().tolist() == [
        ["q1", "RR@10"],
        ["q2", "RR@10"],
        ["q1", "P@1"],
        ["q2", "P@1"],
    ]


def shares(scores: list[float], dtype: str = "float32") -> float:
    """`ties` of one query whose passages have these scores; another query has the first of them too."""
    rows = [("q1", f"d{i}", score) for i, score in enumerate(scores)] + [("q2", "d0", scores[0])]
    made = pd.DataFrame(rows, columns=["query_id", "doc_id", "layer_1"]).astype({"layer_1": dtype})
    values = tie_shares(made, "layer_1")
    assert list(values.columns) == ["query_id", "measure", "value"]
    assert set(values["measure"]) == {"ties"}
    of_query = values.set_index("query_id")["value"]
    assert of_query["q2"] == 0  # equal scores of different queries are not ties
    return of_query["q1"]


def test_ties_are_share_of_passages_with_equal_score():
    assert shares([1.0] * 4) == 1
    assert shares([1.0, 2.0, 3.0]) == 0
    assert shares([1.0, 2.0, 1.0, 3.0]) == 0.5
    assert shares([1.0, 2.0, 1.0, 2.0, 3.0]) == pytest.approx(4 / 5)
    assert shares([0.0, -0.0]) == 1


def test_next_float32_is_not_a_tie():
    assert shares([0.1, float(np.nextafter(np.float32(0.1), np.float32(1)))]) == 0


def test_scores_equal_in_float32_are_a_tie():
    # a first stage comes in float64, but trec.ranking_key ranks it as a float32
    assert shares([0.1, 0.1 + 1e-12], dtype="float64") == 1
