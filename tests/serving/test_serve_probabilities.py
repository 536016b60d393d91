"""The server's field `probabilities`: every shape of request, and what it conflicts with."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from fastapi.testclient import TestClient

from lwr.formats.calibration import Calibration, Logistic
from lwr.formats.fusion import Fusion
from lwr.model.cascade_schedule import Schedule
from lwr.serving.admission import Limits
from lwr.serving.application import build_application

QUERY = "load the object"
TEXTS = [f"def decode{i}(s): return s" + " and more" * (i % 4) for i in range(9)]
FIRST_STAGE = [3.5, 9.25, 1.0, 4.5, 4.5, 7.0, 2.0, 8.0, 0.5]
LIMITS = Limits(body_bytes=50_000, documents=50, characters=8000)
LINES = {f"layer_{k}": Logistic(float(k), -0.5) for k in (2, 3, 4)} | {"layer_4_fused": Logistic(0.5, 0.5)}


def client_of(
    calibration: Calibration | None = LINES, schedule: str = "4", fused: bool = False
) -> TestClient:
    reranker = tiny.build_reranker("llama").eval()
    reranker.calibration = calibration
    if fused:
        weights = {k: {"first_stage": 0.5, f"layer_{k}": 1.0} for k in (2, 3, 4)}
        reranker.fusion = Fusion(weights, {k: {f"layer_{k}": 1.0} for k in (2, 3, 4)})
    return TestClient(build_application(reranker, "tiny", Schedule.parse(schedule), LIMITS, fused=fused))


@pytest.fixture(scope="module")
def client():
    with client_of() as client:
        yield client


def scores_of(answer, key: str) -> np.ndarray:
    results = answer if isinstance(answer, list) else answer["results"]
    return np.array([result[key] for result in sorted(results, key=lambda result: result["index"])])


def squeezed(scores: np.ndarray, line: Logistic) -> np.ndarray:
    return 1 / (1 + np.exp(-(line.slope * scores + line.intercept)))


@pytest.mark.parametrize(("more", "layer"), [({}, 4), ({"layer": 3}, 3), ({"budget_ms": 1e-6}, 2)], ids=str)
@pytest.mark.parametrize(
    ("path", "texts", "key"),
    [
        *((path, "documents", "relevance_score") for path in ("/v1/rerank", "/v2/rerank", "/rerank")),
        ("/rerank", "texts", "score"),
    ],
)
def test_every_shape_of_request_may_ask_for_probabilities(client, path, texts, key, more, layer):
    asked = {"query": QUERY, texts: TEXTS} | more
    raw = client.post(path, json=asked | {"raw_scores": True}).raise_for_status().json()
    answer = client.post(path, json=asked | {"probabilities": True}).raise_for_status().json()
    expected = squeezed(scores_of(raw, key), LINES[f"layer_{layer}"])
    np.testing.assert_allclose(scores_of(answer, key), expected, atol=1e-5)


def test_fused_scores_have_probabilities_where_the_first_stage_is_given():
    asked = {"query": QUERY, "documents": TEXTS}
    with client_of(fused=True) as client:
        given = asked | {"first_stage": FIRST_STAGE}
        raw = client.post("/v2/rerank", json=given | {"raw_scores": True}).raise_for_status().json()
        answer = client.post("/v2/rerank", json=given | {"probabilities": True}).raise_for_status().json()
        refused = client.post("/v2/rerank", json=asked | {"probabilities": True})
    expected = squeezed(scores_of(raw, "relevance_score"), LINES["layer_4_fused"])
    np.testing.assert_allclose(scores_of(answer, "relevance_score"), expected, atol=1e-5)
    assert (refused.status_code, "give first_stage" in refused.text) == (409, True)


@pytest.mark.parametrize(
    ("how", "more", "expected"),
    [
        ({}, {"raw_scores": True}, "ask for one of the two"),
        ({}, {"use_activation": False}, "ask for one of the two"),
        ({}, {"compression": "2/2"}, "no calibration of layer_4_compressed_2_by_2"),
        ({"schedule": "2:4 4"}, {}, "cascade 2:4 4 ranks by several exits; name a layer"),
        ({"calibration": None}, {}, "has no calibration"),
        ({"calibration": None}, {"budget_ms": 50}, "has no calibration"),
        ({"calibration": {"layer_3": LINES["layer_3"]}}, {}, "no calibration of layer_4, only of layer_3"),
    ],
    ids=str,
)
def test_conflicts_are_refused(how, more, expected):
    with client_of(**how) as client:
        answer = client.post(
            "/v1/rerank", json={"query": QUERY, "documents": TEXTS, "probabilities": True} | more
        )
    assert (answer.status_code, expected in answer.json()["error"]) == (409, True)
