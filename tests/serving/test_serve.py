"""The server: requests of every kind of client, offline scores in shared batches, and bad requests."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import sleep

import numpy as np
import pytest
import tiny
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from lwr.cli.app import app
from lwr.config.evaluation import ScoringConfig, Windows
from lwr.formats.fusion import Fusion
from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker
from lwr.serving.admission import Limits
from lwr.serving.application import build_application
from lwr.serving.worker import Worker

QUERY = "load the object"
TEXTS = [f"def decode{i}(s): return s" + " and more" * (i % 4) for i in range(9)]
LIMITS = Limits(body_bytes=20_000, documents=50, characters=1000, requests=64)


def build(architecture: str = "llama") -> LayerwiseReranker:
    tokenizer = tiny.tokenizer(encoder=architecture in tiny.ENCODERS)
    lengths = {"query_max_len": 16, "passage_max_len": 160}
    return LayerwiseReranker(tiny.backbone(architecture), tokenizer, start_layer=2, **lengths).eval()


@pytest.fixture(scope="module")
def offline() -> LayerwiseReranker:
    return build()


@pytest.fixture(scope="module")
def client():
    with TestClient(build_application(build(), "tiny", Schedule.single(4), LIMITS)) as client:
        yield client


def scores_of(model: LayerwiseReranker, query: str, texts: list[str], layer: int) -> np.ndarray:
    rows = model.prompt.rows([(query, text) for text in texts])
    return model.score_rows(rows, [layer])[0].astype(np.float64)


def squeezed(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-scores))


def by_index(results: list[dict], key: str) -> list[float]:
    return [result[key] for result in sorted(results, key=lambda result: result["index"])]


# --- The shapes of all clients ---


@pytest.mark.parametrize("layer", [None, 2, 3, 4])
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_rerank_for_jina_and_cohere(client, offline, path, layer):
    asked = {"model": "theirs", "query": QUERY, "documents": TEXTS, "layer": layer}
    answer = client.post(path, json=asked).raise_for_status().json()
    expected = scores_of(offline, QUERY, TEXTS, layer or 4)
    results = answer["results"]
    assert [result["index"] for result in results] == np.argsort(-expected, kind="stable").tolist()
    np.testing.assert_allclose(by_index(results, "relevance_score"), squeezed(expected), atol=1e-5)
    assert answer["model"] == "tiny"
    assert answer["id"]
    rows = offline.prompt.rows([(QUERY, text) for text in TEXTS])
    assert answer["usage"] == {"total_tokens": sum(map(len, rows))}
    assert answer["meta"] == {"api_version": {"version": path[2]}}


@pytest.mark.parametrize(
    ("path", "asked", "told"),
    [
        ("/v1/rerank", None, True),
        ("/v1/rerank", False, False),
        ("/v2/rerank", None, False),
        ("/v2/rerank", True, True),
    ],
)
def test_documents_may_be_objects_and_are_returned_on_request(client, path, asked, told):
    documents = [TEXTS[0], {"text": TEXTS[1], "title": "not read"}]
    body = {"query": QUERY, "documents": documents, "return_documents": asked}
    for result in client.post(path, json=body).raise_for_status().json()["results"]:
        keys = {"index", "relevance_score"}
        assert set(result) == (keys | {"document"} if told else keys)
        if told:
            assert result["document"] == {"text": TEXTS[result["index"]]}


@pytest.mark.parametrize(("top_n", "many"), [(1, 1), (4, 4), (9, 9), (1000, 9), (0, 9)])
def test_top_n_limits_results(client, top_n, many):
    asked = {"query": QUERY, "documents": TEXTS}
    whole = client.post("/v2/rerank", json=asked).json()["results"]
    assert client.post("/v2/rerank", json=asked | {"top_n": top_n}).json()["results"] == whole[:many]


@pytest.mark.parametrize("raw", [False, True])
def test_rerank_for_tei(client, offline, raw):
    asked = {"query": QUERY, "texts": TEXTS, "raw_scores": raw, "return_text": raw, "truncate": True}
    answer = client.post("/rerank", json=asked).raise_for_status().json()
    expected = scores_of(offline, QUERY, TEXTS, 4)
    assert [result["index"] for result in answer] == np.argsort(-expected, kind="stable").tolist()
    np.testing.assert_allclose(
        by_index(answer, "score"), expected if raw else squeezed(expected), rtol=1e-5, atol=1e-5
    )
    assert all(result.get("text") == (TEXTS[result["index"]] if raw else None) for result in answer)
    assert all(("text" in result) == raw for result in answer)


PASSAGES = TEXTS[:3]
ASKED = {"query": QUERY, "documents": PASSAGES}
BODIES = {
    # what clients of each service send to it; unknown names of models, and keys that mean nothing here, are ignored
    "dify: OpenAI-API-compatible": ("/rerank", {"model": "m", **ASKED, "top_n": 2, "return_documents": True}),
    "dify: Jina": ("/v1/rerank", {"model": "m", **ASKED, "top_n": 2}),
    "Infinity": (
        "/rerank",
        {"model": "m", **ASKED, "return_documents": False, "raw_scores": False, "top_n": None},
    ),
    "vLLM": ("/rerank", {"model": "m", **ASKED, "truncate_prompt_tokens": 20}),
    "vLLM, v1": (
        "/v1/rerank",
        {"model": "m", **ASKED, "top_n": 2, "truncate_prompt_tokens": -1, "user": "u"},
    ),
    "vLLM, v2": ("/v2/rerank", {"model": "m", **ASKED}),
    "llama.cpp": ("/reranking", {"model": "m", **ASKED, "top_n": 2}),
    "llama.cpp, v1": ("/v1/reranking", {"model": "m", **ASKED, "top_n": 2}),
    "RAGFlow: Xinference": (
        "/v1/rerank",
        {
            "model": "m",
            "query": QUERY,
            "return_documents": "true",
            "return_len": "true",
            "documents": PASSAGES,
        },
    ),
    "RAGFlow: LocalAI": ("/rerank", {"model": "m", **ASKED, "top_n": 3}),
    "RAGFlow: SILICONFLOW": (
        "/v1/rerank",
        {"model": "m", **ASKED, "top_n": 3, "return_documents": False, "max_chunks_per_doc": 1024}
        | {"overlap_tokens": 80},
    ),
    "Xinference": (
        "/v1/rerank",
        {"model": "m", **ASKED, "top_n": None, "max_chunks_per_doc": None, "return_documents": None}
        | {"return_len": None},
    ),
    "Open WebUI": ("/v1/rerank", {"model": "m", **ASKED, "top_n": 3}),
    "Cohere, v1": (
        "/v1/rerank",
        {"model": "m", **ASKED, "top_n": 2, "rank_fields": None, "return_documents": True}
        | {"max_chunks_per_doc": 10},
    ),
    "Cohere, v2": ("/v2/rerank", {"model": "m", **ASKED, "top_n": 2, "max_tokens_per_doc": 4096}),
}


@pytest.mark.parametrize("name", list(BODIES))
def test_body_of_each_client_gets_results(client, offline, name):
    path, body = BODIES[name]
    answer = client.post(path, json=body).raise_for_status().json()
    expected = scores_of(offline, QUERY, PASSAGES, 4)
    best = np.argsort(-expected, kind="stable").tolist()[: body.get("top_n")]
    assert [result["index"] for result in answer["results"]] == best
    np.testing.assert_allclose(
        [result["relevance_score"] for result in answer["results"]], squeezed(expected)[best], atol=1e-5
    )
    wanted = body.get("return_documents") in (True, "true", None) and not path.startswith("/v2")
    texts = [result.get("document", {}).get("text") for result in answer["results"]]
    assert texts == [PASSAGES[i] if wanted else None for i in best]
    tokens = sum(map(len, offline.prompt.rows([(QUERY, text) for text in PASSAGES])))
    assert answer["usage"]["total_tokens"] == tokens
    if not path.startswith(("/v1/rerank", "/v2")) or path == "/v1/reranking":
        assert answer["usage"]["prompt_tokens"] == tokens
    counted = {"input_tokens": tokens, "output_tokens": 0} if body.get("return_len") == "true" else None
    assert answer["meta"].get("tokens") == counted


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/reranking", "/v1/reranking"])
def test_texts_get_the_list_of_tei(client, path):
    body = {"query": QUERY, "texts": PASSAGES, "truncate": True, "truncation_direction": "Right"}
    answer = client.post(path, json=body).raise_for_status().json()
    assert [set(result) for result in answer] == [{"index", "score"}] * 3
    both = client.post(path, json=body | {"documents": ["ignored"]}).raise_for_status().json()
    assert both == answer


@pytest.mark.parametrize("top_n", [0, 2, None])
def test_top_n_limits_texts(client, top_n):
    body = {"query": QUERY, "texts": PASSAGES}
    whole = client.post("/rerank", json=body).json()
    assert client.post("/rerank", json=body | {"top_n": top_n}).json() == whole[: top_n or 3]


@pytest.mark.parametrize("top_k", [2, None])
@pytest.mark.parametrize("return_documents", [False, True])
def test_client_of_voyage_finds_data(client, top_k, return_documents):
    body = {"model": "m", **ASKED, "top_k": top_k, "truncation": True, "return_documents": return_documents}
    answer = client.post("/v1/rerank", json=body).raise_for_status().json()
    whole = client.post("/v1/rerank", json=ASKED).json()
    assert "data" not in whole
    best = whole["results"][: top_k or 3]
    document = {i: {"document": PASSAGES[i]} if return_documents else {} for i in range(3)}
    wanted = [{k: r[k] for k in ("index", "relevance_score")} | document[r["index"]] for r in best]
    assert answer["data"] == wanted


def test_query_may_be_an_object_with_a_text(client):
    whole = client.post("/v1/rerank", json=ASKED).json()["results"]
    asked = ASKED | {"query": {"text": QUERY}}
    assert client.post("/v1/rerank", json=asked).raise_for_status().json()["results"] == whole


@pytest.mark.parametrize("raw", [{"raw_scores": True}, {"use_activation": False}])
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_raw_scores_of_documents(client, offline, path, raw):
    answer = client.post(path, json=ASKED | raw).raise_for_status().json()
    expected = scores_of(offline, QUERY, PASSAGES, 4)
    np.testing.assert_allclose(by_index(answer["results"], "relevance_score"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rank_fields", "read"),
    [
        (None, ["first", "second", "plain"]),
        ([], ["first", "second", "plain"]),
        (["text"], ["first", "second", "plain"]),
        (["title"], ["A", "B", "plain"]),
        (["title", "text"], ["title: A\ntext: first", "title: B\ntext: second", "plain"]),
        (["text", "title"], ["text: first\ntitle: A", "text: second\ntitle: B", "plain"]),
        (["title", "year"], ["title: A\nyear: 1999", "title: B", "plain"]),
        (["tags", "title"], ['tags: ["é", 1]\ntitle: A', "title: B", "plain"]),
        (["year", "tags"], ['year: 1999\ntags: ["é", 1]', "second", "plain"]),
    ],
)
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_rank_fields_are_read_in_their_order(client, offline, path, rank_fields, read):
    documents = [
        {"text": "first", "title": "A", "year": 1999, "tags": ["é", 1]},
        {"title": "B", "text": "second", "year": None},
        "plain",
    ]
    body = {"query": QUERY, "documents": documents, "rank_fields": rank_fields}
    results = client.post(path, json=body).raise_for_status().json()["results"]
    assert [text["text"] for text in by_index(results, "document")] == read
    expected = squeezed(scores_of(offline, QUERY, read, 4))
    np.testing.assert_allclose(by_index(results, "relevance_score"), expected, atol=1e-5)


def test_documents_need_no_text_beside_named_fields(client):
    body = {"query": QUERY, "documents": [{"title": "A"}, {"body": "B"}], "rank_fields": ["title", "name"]}
    told = problem_of(client.post("/v1/rerank", json=body), 422)
    assert told.startswith("documents.1: ")
    assert client.post("/v1/rerank", json=body | {"documents": body["documents"][:1]}).status_code == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"query": QUERY}, "documents: "),
        ({"query": QUERY, "texts": []}, "texts: "),
        ({"query": QUERY, "texts": [{"text": "a"}]}, r"texts\.0: "),
        ({"query": QUERY, "documents": [1]}, r"documents\.0: .*not 1"),
        ({"query": 7, "texts": ["a"]}, "query: .*not 7"),
        ({"query": QUERY, "texts": ["a"], "return_text": "yes"}, "return_text: .*not 'yes'"),
        (ASKED | {"rank_fields": "title"}, "rank_fields: .*not 'title'"),
        (ASKED | {"rank_fields": [1]}, r"rank_fields\.0: .*not 1"),
        (ASKED | {"raw_scores": 1}, "raw_scores: .*not 1"),
    ],
)
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_wrong_value_is_named_whoever_asks(client, path, body, told):
    assert re.match(told, problem_of(client.post(path, json=body), 422))


def test_scores_of_all_exits(client, offline):
    answer = client.post("/v1/scores", json={"query": QUERY, "documents": TEXTS}).raise_for_status().json()
    assert answer["layers"] == [2, 3, 4]
    for layer, scores in zip(answer["layers"], answer["scores"], strict=True):
        np.testing.assert_allclose(scores, scores_of(offline, QUERY, TEXTS, layer), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(answer["flops"], [0.5, 0.75, 1.0])


def test_long_documents_are_read_in_windows(offline):
    windows, texts = Windows(overlap=4, most=3), [text + " and more" * 90 for text in TEXTS]
    scoring = ScoringConfig(windows=windows)
    with TestClient(
        build_application(build(), "tiny", Schedule.single(4), LIMITS, scoring=scoring)
    ) as client:
        asked = {"query": QUERY, "documents": texts, "raw_scores": True}
        ranked = client.post("/v2/rerank", json=asked).raise_for_status().json()
        every = client.post("/v1/scores", json={"query": QUERY, "documents": texts}).json()
        (model,) = client.get("/v1/models").json()["data"]
    assert model["windows"] == {"overlap": 4, "most": 3, "pool": "max"}
    rows = offline.prompt.rows([(QUERY, text) for text in texts], windows=windows)
    expected = offline.score_rows(rows, offline.exits)
    found = by_index(ranked["results"], "relevance_score")
    np.testing.assert_allclose(found, expected[-1], rtol=1e-5, atol=1e-5)
    assert ranked["usage"]["total_tokens"] == sum(row.tokens_of_windows for row in rows)
    np.testing.assert_allclose(every["scores"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(every["flops"], [0.5, 0.75, 1.0])


def test_cascade_scores_are_reciprocal_ranks_and_layer_overrides_it(offline):
    schedule = Schedule.parse("2:5 3:2 4")
    with TestClient(build_application(build(), "tiny", schedule, LIMITS)) as client:
        asked = {"query": QUERY, "documents": TEXTS}
        ranked = client.post("/v2/rerank", json=asked).json()["results"]
        at_exit = client.post("/v2/rerank", json=asked | {"layer": 3}).json()["results"]
        assert client.get("/v1/models").json()["data"][0]["depth"] == "2:5 3:2 4"
    rows = offline.prompt.rows([(QUERY, text) for text in TEXTS])
    assert [result["index"] for result in ranked] == offline.rank_rows(rows, schedule).order.tolist()
    np.testing.assert_allclose([result["relevance_score"] for result in ranked], 1 / np.arange(1, 10))
    expected = squeezed(scores_of(offline, QUERY, TEXTS, 3))
    np.testing.assert_allclose(by_index(at_exit, "relevance_score"), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "texts"), [("/v1/rerank", "documents"), ("/v2/rerank", "documents"), ("/rerank", "texts")]
)
def test_documents_are_compressed_on_request(client, offline, path, texts):
    asked = {"query": QUERY, texts: TEXTS, "raw_scores": True}
    answer = client.post(path, json=asked | {"layer": 4, "compression": "2/2"}).json()
    results, score = (answer["results"], "relevance_score") if texts == "documents" else (answer, "score")
    expected = offline.score([(QUERY, text) for text in TEXTS], 4, compression="2/2")
    np.testing.assert_allclose(by_index(results, score), expected, atol=1e-5)
    assert np.abs(expected - scores_of(offline, QUERY, TEXTS, 4)).max() > 1e-3


def test_server_ranks_by_a_compressed_cascade(offline):
    schedule = Schedule.parse("2/2:5 4")
    with TestClient(build_application(build(), "tiny", schedule, LIMITS)) as client:
        ranked = client.post("/v2/rerank", json={"query": QUERY, "documents": TEXTS}).json()["results"]
    expected = [each["corpus_id"] for each in offline.rank(QUERY, TEXTS, cascade=schedule)]
    assert [result["index"] for result in ranked] == expected


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({"compression": "2"}, 422, "compression: String should match pattern"),
        (
            {"compression": "3/2", "layer": 2},
            409,
            "no block reads the tokens after layer 3; give layers below 2",
        ),
        ({"compression": "4/2"}, 409, "give layers below 4"),
        ({"compression": "3/2 2/2"}, 409, "layers must ascend"),
    ],
)
def test_compression_that_is_not_possible_is_refused(client, asked, status, told):
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS} | asked)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text


def test_compression_is_refused_where_tokens_mix_otherwise():
    with TestClient(build_application(build("lfm2"), "tiny", Schedule.single(4), LIMITS)) as client:
        asked = {"query": QUERY, "documents": TEXTS, "compression": "2/2"}
        answer = client.post("/v1/rerank", json=asked)
    assert (answer.status_code, "cannot be compressed" in answer.text) == (409, True)


def test_health_tells_when_the_worker_has_ended(client, monkeypatch):
    monkeypatch.setattr(Worker, "is_alive", False)
    answer = client.get("/health")
    assert answer.status_code == 500
    assert "restart" in answer.json()["message"]


# --- Fused scores ---


FIRST_STAGE_SCORES = [3.5, 9.25, 1.0, 4.5, 4.5, 7.0, 2.0, 8.0, 0.5]


def fused_reranker() -> LayerwiseReranker:
    reranker = build()
    exits = {k: {f"layer_{known}": (-1.0) ** known for known in range(2, k + 1)} for k in (2, 3, 4)}
    reranker.fusion = Fusion({k: {"first_stage": 0.5} | weights for k, weights in exits.items()}, exits)
    return reranker


@pytest.mark.parametrize("first_stage", [FIRST_STAGE_SCORES, None])
@pytest.mark.parametrize(
    ("path", "texts", "score"),
    [
        *((path, "documents", "relevance_score") for path in ("/v1/rerank", "/v2/rerank", "/rerank")),
        ("/rerank", "texts", "score"),
    ],
)
def test_every_shape_of_request_takes_first_stage_scores(path, texts, score, first_stage):
    offline = fused_reranker()
    body = {"query": QUERY, texts: TEXTS, "first_stage": first_stage, "raw_scores": True}
    with TestClient(
        build_application(fused_reranker(), "t", Schedule.single(4), LIMITS, fused=True)
    ) as client:
        answers = {
            layer: client.post(path, json=body | {"layer": layer}).raise_for_status().json()
            for layer in (None, 3)
        }
    rows = offline.prompt.rows([(QUERY, text) for text in TEXTS])
    for layer, answer in answers.items():
        results = answer if texts == "texts" else answer["results"]
        expected = offline.rank_rows(rows, Schedule.single(layer or 4), first_stage=first_stage, fused=True)
        assert [result["index"] for result in results] == expected.order.tolist()
        np.testing.assert_allclose(by_index(results, score), expected.scores, rtol=1e-5, atol=1e-5)


def test_cascade_that_starts_with_the_first_stage_reads_its_survivors_alone():
    schedule = Schedule.parse("0:4 2:2 4")
    body = {"query": QUERY, "documents": TEXTS}
    offline = fused_reranker()
    with TestClient(build_application(fused_reranker(), "t", schedule, LIMITS, fused=True)) as client:
        answer = client.post("/v2/rerank", json=body | {"first_stage": FIRST_STAGE_SCORES}).json()
        told = problem_of(client.post("/v2/rerank", json=body), 422)
        (model,) = client.get("/v1/models").json()["data"]
        described = client.get("/openapi.json").json()["components"]["schemas"]
    rows = offline.prompt.rows([(QUERY, text) for text in TEXTS])
    ranking = offline.rank_rows(rows, schedule, first_stage=FIRST_STAGE_SCORES, fused=True)
    assert [result["index"] for result in answer["results"]] == ranking.order.tolist()
    tokens = sum(len(row) for row, layer in zip(rows, ranking.layers, strict=True) if layer > 0)
    assert answer["usage"]["total_tokens"] == tokens
    assert "give first_stage" in told
    assert (model["depth"], model["fused"]) == ("0:4 2:2 4", True)
    assert "first_stage" in described["TeiRequest"]["properties"]


@pytest.mark.parametrize(
    ("first_stage", "told"),
    [
        (FIRST_STAGE_SCORES[:8], r"\[8\], but there are 9 documents"),
        ([*FIRST_STAGE_SCORES[:8], None], r"first_stage\.8: "),
        ([*FIRST_STAGE_SCORES[:8], "high"], r"first_stage\.8: "),
        ([*FIRST_STAGE_SCORES[:8], 1e300], r"first_stage\[8\] is 1e\+300"),
        ("1, 2", "first_stage: "),
    ],
)
@pytest.mark.parametrize("texts", ["documents", "texts"])
def test_first_stage_without_a_score_for_each_document_is_refused(first_stage, told, texts):
    body = {"query": QUERY, texts: TEXTS, "first_stage": first_stage}
    with TestClient(
        build_application(fused_reranker(), "t", Schedule.single(4), LIMITS, fused=True)
    ) as client:
        assert re.search(told, problem_of(client.post("/rerank", json=body), 422))


def test_first_stage_that_nothing_uses_is_refused(client):
    body = {"query": QUERY, "documents": TEXTS, "first_stage": FIRST_STAGE_SCORES}
    assert "nothing uses it" in problem_of(client.post("/rerank", json=body), 422)
    described = client.get("/openapi.json").json()["components"]["schemas"]
    assert "first_stage" not in described["RerankRequest"]["properties"]


def test_fused_without_weights_is_refused():
    with pytest.raises(ValueError, match="no weights of fused scores"):
        build_application(build(), "tiny", Schedule.single(4), fused=True)


def test_health_and_models(client):
    assert client.get("/health").json() == {"status": "ok"}
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert model["exits"] == [2, 3, 4]
    assert (model["depth"], model["fused"]) == ("4", False)


def test_page_may_connect_to_this_server_only(client):
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org/", "")
    assert "https://" not in page.text


def test_schedule_with_layers_without_heads_is_refused():
    with pytest.raises(ValueError, match=r"layers \[1, 5\] have no head; exits are 2..4"):
        build_application(build(), "tiny", Schedule.parse("1:5 5"))


# --- Many at once ---


def test_server_survives_scores_that_are_not_finite(offline):
    reranker = build()
    with TestClient(
        build_application(reranker, "t", Schedule.single(4)), raise_server_exceptions=False
    ) as client:
        reranker.head(3).data.fill_(np.nan)
        answer = client.post("/rerank", json={"query": "a", "texts": ["b"], "layer": 3})
        assert answer.status_code == 500
        assert answer.json()["error_type"] == "backend"
        assert client.post("/rerank", json={"query": "a", "texts": ["b"]}).status_code == 200


@pytest.mark.parametrize("architecture", ["llama", "bert", "qwen3"])
def test_concurrent_requests_get_the_offline_scores(architecture):
    offline = build(architecture)
    asked = [
        ({"query": f"{QUERY} {i % 5}", "texts": TEXTS[i % 7 :], "layer": 2 + i % 3, "raw_scores": True})
        for i in range(60)
    ]
    with (
        TestClient(build_application(build(architecture), "tiny", Schedule.single(4))) as client,
        ThreadPoolExecutor(16) as threads,
    ):
        answers = list(threads.map(lambda body: client.post("/rerank", json=body).json(), asked))
    for body, answer in zip(asked, answers, strict=True):
        expected = scores_of(offline, body["query"], body["texts"], body["layer"])
        np.testing.assert_allclose(by_index(answer, "score"), expected, rtol=1e-5, atol=1e-5)


# --- Bad requests ---

GOOD = {"query": QUERY, "documents": TEXTS[:2]}
JSON = {"Content-Type": "application/json"}


def problem_of(answer, status: int) -> str:
    """The sentence, under the three names that clients look for."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "error_type", "detail", "message"}
    assert body["error"] == body["detail"] == body["message"]
    return body["error"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"query": ""}, "query: "),
        ({"query": None}, "query: .*not None"),
        ({"query": 7}, "query: .*not 7"),
        ({"query": ["a"]}, "query: "),
        ({"query": "\ud800"}, "query: "),
        ({"documents": []}, "documents: "),
        ({"documents": "text"}, "documents: .*not 'text'"),
        ({"documents": [1]}, "documents.0: .*not 1"),
        ({"documents": ["a", {"body": "b"}]}, "documents.1: "),
        ({"documents": ["a", {"text": None}]}, "documents.1: .*not None"),
        ({"documents": ["a", "\udc00"]}, "documents.1: "),
        ({"documents": [[]] * 40}, r"documents.0: Input should be a valid string$"),
        ({"top_n": -1}, "top_n: .*not -1"),
        ({"top_k": 0}, "top_k: .*not 0"),
        ({"query": {"texts": "a"}}, "query: "),
        ({"top_n": "3"}, "top_n: .*not '3'"),
        ({"top_n": 1.5}, "top_n: .*not 1.5"),
        ({"top_n": float("nan")}, "top_n: "),
        ({"return_documents": "yes"}, "return_documents: .*not 'yes'"),
        ({"layer": 1}, r"layer is 1, but exits are 2\.\.4"),
        ({"layer": 5}, r"layer is 5, but exits are 2\.\.4"),
        ({"layer": 0}, r"layer is 0, but exits are 2\.\.4"),
        ({"layer": True}, "layer: .*not True"),
    ],
    ids=lambda value: str(ascii(value))[:30] if isinstance(value, dict) else "",
)
def test_wrong_value_is_named(client, change, told):
    body = json.dumps(GOOD | change).encode()
    assert re.match(told, problem_of(client.post("/v1/rerank", content=body, headers=JSON), 422))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"null", 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b"{}", 422),
        (bytes(range(256)), 400),
        (b"\xff\xfe\x00", 400),
        (b'{"query": "a\x00b", "documents": ["c"]}', 400),
        (b"[" * 9000, 400),
        (b'{"query": "a", "documents": ["b"], "top_n": ' + b"1" * 9000 + b"}", 400),
    ],
    ids=[
        "empty",
        "cut",
        "null",
        "list",
        "string",
        "no-keys",
        "binary",
        "utf16",
        "raw-nul",
        "deep",
        "huge-int",
    ],
)
def test_malformed_body_is_refused(client, body, status):
    assert problem_of(client.post("/v1/rerank", content=body, headers=JSON), status)
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("text", ["\0", "a\0b", "\x1b[2J\x07", "\ufffe\U0010ffff", " ", "\u202e", ""])
def test_odd_characters_are_accepted(client, text):
    asked = {"query": "q" + text, "documents": [text, "a"]}
    answer = client.post("/v1/rerank", json=asked).raise_for_status().json()
    assert sorted(result["document"]["text"] for result in answer["results"]) == sorted([text, "a"])


def test_limits_of_a_request(client):
    many = problem_of(client.post("/v1/rerank", json=GOOD | {"documents": ["a"] * 51}), 422)
    assert many == "51 documents; at most 50, send several requests"
    long = problem_of(client.post("/v1/rerank", json=GOOD | {"documents": ["a" * 1001]}), 422)
    assert long == "a text has 1001 characters; at most 1000, send parts of it"
    assert problem_of(client.post("/v1/rerank", json=GOOD | {"query": "a" * 1001}), 422)
    assert "20000" in problem_of(client.post("/v1/rerank", json=GOOD | {"x": "a" * 20_000}), 413)


def test_body_without_length_is_limited(client):
    sent = []

    def endless():
        for piece in range(1000):
            sent.append(piece)
            yield b"x" * 1000

    assert "at most 20000" in problem_of(client.post("/v1/rerank", content=endless(), headers=JSON), 413)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_other_content_types_are_refused(client, kind):
    headers = {"Content-Type": kind} if kind else {}
    told = problem_of(client.post("/v1/rerank", content=json.dumps(GOOD), headers=headers), 415)
    assert told == f"Content-Type is {kind or 'missing'}; send application/json"


def test_unknown_paths_and_methods(client):
    assert "GET" in problem_of(client.get("/v1/rerank"), 405)
    assert client.get("/v1/rerank").headers["allow"] == "POST"
    assert problem_of(client.get("/etc/passwd"), 404)
    assert problem_of(client.get("/docs"), 404)


def test_full_server_answers_503_with_retry_after():
    with TestClient(build_application(build(), "tiny", Schedule.single(4), Limits(requests=0))) as client:
        answer = client.post("/v1/rerank", json=GOOD)
        assert problem_of(answer, 503)
        assert answer.json()["error_type"] == "overloaded"
        assert answer.headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200


def test_api_key_is_required():
    app = build_application(build(), "tiny", Schedule.single(4), key="sécret")
    with TestClient(app) as client:
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer "},
            {"Authorization": "x"},
        ):
            answer = client.post("/v1/rerank", json=GOOD, headers=given)
            assert problem_of(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert client.get("/v1/models", headers=given).status_code == 401
            assert client.get("/openapi.json", headers=given).status_code == 401
            forged = given | {"Host": "x/health?"}
            assert client.post("/v1/rerank", json=GOOD, headers=forged).status_code == 401
        assert client.get("/health").status_code == 200
        assert client.get("/").status_code == 200
        right = {"Authorization": "Bearer sécret".encode()}
        assert client.post("/v1/rerank", json=GOOD, headers=right).status_code == 200


# --- The command ---


def test_command_reports_wrong_options(monkeypatch, tmp_path):
    def run(*arguments: str) -> str:
        return str(CliRunner().invoke(app, ["serve", "--model", str(tmp_path), *arguments]).exception)

    assert "give one of the two" in run("--layer", "3", "--cascade", "2:5 3")
    monkeypatch.delenv("LWR_TEST_KEY", raising=False)
    assert "LWR_TEST_KEY: that variable is not set" in run("--api-key-env", "LWR_TEST_KEY")
    assert "write it as" in run("--cascade", "two")
    assert "overlap" in run("--windows", "{overlap: -1}")
    assert "give a number of milliseconds" in run("--budget-ms", "inf")
    assert run("--budget-ms", "nan") == "2"  # refused by the option's minimum


# --- A budget of time ---


@pytest.mark.parametrize(("budget", "layer"), [(1e-6, 2), (1e9, 4)])
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_a_budget_chooses_the_exit_and_the_answer_names_it(client, offline, path, budget, layer):
    asked = {"query": QUERY, "documents": TEXTS, "budget_ms": budget, "raw_scores": True}
    answer = client.post(path, json=asked).raise_for_status().json()
    expected = scores_of(offline, QUERY, TEXTS, layer)
    assert answer["meta"]["layer"] == layer
    assert [result["index"] for result in answer["results"]] == np.argsort(-expected, kind="stable").tolist()
    np.testing.assert_allclose(by_index(answer["results"], "relevance_score"), expected, atol=1e-5)


def test_a_budget_for_tei(client, offline):
    asked = {"query": QUERY, "texts": TEXTS, "budget_ms": 1e-6, "raw_scores": True}
    answer = client.post("/rerank", json=asked).raise_for_status().json()
    np.testing.assert_allclose(
        by_index(answer, "score"), scores_of(offline, QUERY, TEXTS, 2), rtol=1e-5, atol=1e-5
    )


def test_the_servers_budget_applies_where_a_request_names_no_layer():
    application = build_application(build(), "tiny", Schedule.single(4), LIMITS, budget_ms=1e-6)
    with TestClient(application) as client:
        asked = {"query": QUERY, "documents": TEXTS}

        def layer_of(**more) -> int | None:
            answer = client.post("/v1/rerank", json=asked | more).raise_for_status().json()
            return answer["meta"].get("layer")

        assert layer_of() == 2
        assert layer_of(budget_ms=1e9) == 4
        assert layer_of(layer=3) is None
        [model] = client.get("/v1/models").json()["data"]
        assert model["depth"] == "deepest exit within 1e-06 ms"


def test_waiting_counts_for_the_budget(monkeypatch):
    """A request that waited longer than its budget is answered by the first exit."""
    scoring, go = Event(), Event()
    score_rows = LayerwiseReranker.score_rows

    def held(*arguments):
        scoring.set()
        go.wait(10)
        return score_rows(*arguments)

    monkeypatch.setattr(LayerwiseReranker, "score_rows", held)
    asked = {"query": QUERY, "documents": TEXTS}
    application = build_application(build(), "tiny", Schedule.single(4), LIMITS)
    with TestClient(application) as client, ThreadPoolExecutor(2) as threads:
        before = threads.submit(client.post, "/v1/rerank", json=asked)
        assert scoring.wait(10)
        waits = threads.submit(client.post, "/v1/rerank", json=asked | {"budget_ms": 500})
        sleep(0.6)
        go.set()
        assert waits.result().json()["meta"]["layer"] == 2
        before.result().raise_for_status()


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        ({"budget_ms": 0}, 422, "budget_ms"),
        ({"budget_ms": -5}, 422, "budget_ms"),
        ({"budget_ms": "50"}, 422, "budget_ms"),
        ({"budget_ms": 50, "layer": 3}, 409, "leave out layer and compression"),
        ({"budget_ms": 50, "compression": "2/2"}, 409, "leave out layer and compression"),
        ({"budget_ms": 50, "first_stage": [1.0] * 9}, 422, "nothing uses it"),
    ],
)
def test_wrong_budgets_are_refused(client, more, status, says):
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS} | more)
    assert answer.status_code == status
    assert says in answer.json()["error"]


def test_a_budget_beside_a_layer_is_refused_on_the_command_line(tmp_path):
    build().save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--layer", "3", "--budget-ms", "20"]
    result = CliRunner().invoke(app, ["serve", *options])
    assert result.exit_code != 0
    assert "chooses the exit" in str(result.exception or result.output)
