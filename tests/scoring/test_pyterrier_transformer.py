"""The PyTerrier transformer ranks as `LayerwiseReranker.rank` does. Skipped where PyTerrier is not installed."""

from __future__ import annotations

import pandas as pd
import pytest
import tiny

from lwr.common.errors import BadInput
from lwr.formats.fusion import Fusion

pt = pytest.importorskip("pyterrier")
transformer = pytest.importorskip("lwr.scoring.pyterrier_transformer")

QUERIES = {"q2": "load the object", "q1": "decode a string"}
TEXTS = [f"def decode{i}(s): return s" + " and more" * (i % 4) for i in range(6)]
CANDIDATES = pd.DataFrame(
    [
        {"qid": qid, "query": query, "docno": f"d{i}", "text": text, "score": float(i % 3), "rank": i}
        for i, text in enumerate(TEXTS)
        for qid, query in QUERIES.items()
    ]
)


@pytest.fixture(scope="module")
def reranker():
    reranker = tiny.build_reranker("llama").eval()
    exits = {k: {f"layer_{known}": 1.0 for known in range(2, k + 1)} for k in (2, 3, 4)}
    reranker.fusion = Fusion({k: {"first_stage": 0.5} | weights for k, weights in exits.items()}, exits)
    return reranker


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"layer": 3},
        {"layer": 3, "fused": True},
        {"cascade": "2:3 4"},
        {"cascade": "0:4 2:2 4", "fused": True},
        {"budget_ms": 1e9, "instruction": "Is B short?"},
    ],
    ids=str,
)
def test_frame_is_ranked_as_by_rank(reranker, how):
    ranked = transformer.LayerwiseTransformer(reranker, **how)(CANDIDATES)
    assert list(ranked["qid"]) == ["q2"] * 6 + ["q1"] * 6
    for qid, of_query in ranked.groupby("qid"):
        given = CANDIDATES[CANDIDATES["qid"] == qid]
        first_stage = given["score"].to_numpy() if "fused" in how else None
        expected = reranker.rank(QUERIES[qid], given["text"], first_stage=first_stage, **how)
        assert list(of_query["docno"]) == [f"d{entry['corpus_id']}" for entry in expected]
        assert list(of_query["text"]) == [entry["text"] for entry in expected]
        assert list(of_query["rank"]) == list(range(6))
        if "cascade" in how:
            assert list(of_query["score"]) == [0, -1, -2, -3, -4, -5]
        else:
            assert list(of_query["score"]) == [entry["score"] for entry in expected]


def test_it_composes_with_other_transformers(reranker):
    rerank = transformer.LayerwiseTransformer(reranker, "body", layer=2) % 2
    frame = CANDIDATES.rename(columns={"text": "body"}).drop(columns=["score", "rank"])
    ranked = rerank(frame)
    assert list(ranked["rank"]) == [0, 1, 0, 1]
    assert list(ranked["score"]) == sorted(ranked["score"][:2], reverse=True) + sorted(
        ranked["score"][2:], reverse=True
    )


def test_no_candidates_give_an_empty_frame(reranker):
    ranked = transformer.LayerwiseTransformer(reranker)(CANDIDATES.iloc[:0])
    assert len(ranked) == 0
    assert {"qid", "docno", "score", "rank"} <= set(ranked)


def test_wrong_use_is_refused(reranker):
    with pytest.raises(BadInput, match=r"top_k: .* cut rankings by `% 10`"):
        transformer.LayerwiseTransformer(reranker, top_k=3)
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        transformer.LayerwiseTransformer(reranker)(CANDIDATES.drop(columns="text"))
    with pytest.raises(ValueError, match="have no head"):
        transformer.LayerwiseTransformer(reranker, layer=1)(CANDIDATES)
