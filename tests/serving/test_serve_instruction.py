"""The server's field `instruction`: every shape of request, shared batches, and models that refuse it."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import tiny
from fastapi.testclient import TestClient

from lwr.config.model import PromptTemplate
from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker
from lwr.serving.admission import Limits
from lwr.serving.application import build_application

QUERY = "load the object"
TEXTS = [f"def decode{i}(s): return s" + " and more" * (i % 4) for i in range(9)]
INSTRUCTION = "Is B the code that A asks for?"
LIMITS = Limits(body_bytes=50_000, documents=50, characters=8000)


def build(architecture: str = "llama") -> LayerwiseReranker:
    return tiny.build_reranker(architecture).eval()


@cache
def offline() -> LayerwiseReranker:
    return build()


@pytest.fixture(scope="module")
def client():
    with TestClient(build_application(build(), "tiny", Schedule.single(4), LIMITS)) as client:
        yield client


def scores_of(answer, key: str) -> list[float]:
    results = answer if isinstance(answer, list) else answer["results"]
    return [result[key] for result in sorted(results, key=lambda result: result["index"])]


def expected(instruction: str | None, layer: int = 4) -> np.ndarray:
    return offline().score([(QUERY, text) for text in TEXTS], layer, instruction=instruction)


@pytest.mark.parametrize("more", [{}, {"layer": 3}, {"budget_ms": 1e-6}], ids=str)
@pytest.mark.parametrize(
    ("path", "texts", "key"),
    [
        *((path, "documents", "relevance_score") for path in ("/v1/rerank", "/v2/rerank", "/rerank")),
        ("/rerank", "texts", "score"),
    ],
)
def test_every_shape_of_request_takes_an_instruction(client, path, texts, key, more):
    asked = {"query": QUERY, texts: TEXTS, "raw_scores": True, "instruction": INSTRUCTION} | more
    layer = 2 if "budget_ms" in more else more.get("layer", 4)
    found = scores_of(client.post(path, json=asked).raise_for_status().json(), key)
    np.testing.assert_allclose(found, expected(INSTRUCTION, layer), rtol=1e-5, atol=1e-5)
    assert not np.allclose(found, expected(None, layer), atol=1e-3)


def test_the_models_own_instruction_changes_no_bit(client):
    asked = {"query": QUERY, "documents": TEXTS, "raw_scores": True}
    own = asked | {"instruction": PromptTemplate().instruction}
    plain, own = (client.post("/v1/rerank", json=body).json()["results"] for body in (asked, own))
    assert own == plain


def test_scores_of_all_exits_with_an_instruction(client):
    asked = {"query": QUERY, "documents": TEXTS, "instruction": INSTRUCTION}
    found = client.post("/v1/scores", json=asked).raise_for_status().json()["scores"]
    pairs = [(QUERY, text) for text in TEXTS]
    every = offline().score(pairs, layers="all", instruction=INSTRUCTION)
    np.testing.assert_allclose(found, every, rtol=1e-5, atol=1e-5)


def test_a_cascade_obeys_the_instruction():
    application = build_application(build(), "tiny", Schedule.parse("2:5 3:2 4"), LIMITS)
    with TestClient(application) as client:
        asked = {"query": QUERY, "documents": TEXTS, "instruction": INSTRUCTION}
        results = client.post("/v1/rerank", json=asked).raise_for_status().json()["results"]
    ranked = offline().rank(QUERY, TEXTS, cascade="2:5 3:2 4", instruction=INSTRUCTION)
    assert [result["index"] for result in results] == [entry["corpus_id"] for entry in ranked]


def test_requests_with_several_instructions_share_batches(client):
    instructions = [None, INSTRUCTION, "Is it short?", "Does B answer A?"] * 6

    def ask(instruction: str | None) -> list[float]:
        asked = {"query": QUERY, "texts": TEXTS, "raw_scores": True, "instruction": instruction}
        return scores_of(client.post("/rerank", json=asked).raise_for_status().json(), "score")

    with ThreadPoolExecutor(8) as threads:
        for instruction, found in zip(instructions, threads.map(ask, instructions), strict=True):
            np.testing.assert_allclose(found, expected(instruction), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/scores"])
@pytest.mark.parametrize(
    ("architecture", "instruction", "status", "told"),
    [
        ("bert", INSTRUCTION, 409, "the model reads none .encoders read pairs without one.; leave it out"),
        ("llama", "and more " * 300, 409, "leave none for query and passage"),
        ("llama", "a" * 8001, 422, "a text has 8001 characters"),
        ("llama", "", 422, "instruction: "),
        ("llama", 7, 422, "instruction: .*not 7"),
        ("llama", "a\ud800", 422, "instruction: .*string"),
    ],
    ids=["encoder", "no-tokens-left", "too-long", "empty", "number", "surrogate"],
)
def test_a_wrong_instruction_is_refused(path, architecture, instruction, status, told):
    application = build_application(build(architecture), "tiny", Schedule.single(4), LIMITS)
    with TestClient(application) as client:
        body = {"query": QUERY, "documents": TEXTS, "instruction": instruction}
        content = json.dumps(body).encode()  # escapes half a surrogate pair
        answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, answer.text
        assert re.search(told, answer.json()["error"])
        assert client.post(path, json=body | {"instruction": None}).status_code == 200


def test_description_limits_the_instruction(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("RerankRequest", "TeiRequest", "ScoresRequest"):
        text = schemas[name]["properties"]["instruction"]["anyOf"][0]
        assert text == {"type": "string", "minLength": 1, "maxLength": 8000}
