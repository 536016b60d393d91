"""The web application of one reranker: its endpoints, its page at /, and its OpenAPI description.

It reads no file that a request names, and sends nothing to a network but its answers.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, StrictUndefined

from lwr.common.exits import describe_layers
from lwr.config.evaluation import ScoringConfig
from lwr.evaluation.flops import count_flops, derive_shape
from lwr.model.cascade_schedule import Schedule, stage_weights
from lwr.model.reranker import LayerwiseReranker
from lwr.reporting.palette import read_colours, read_stylesheet
from lwr.serving import api_types as api
from lwr.serving.admission import PUBLIC_PATHS, Admission, Limits
from lwr.serving.errors import Refused, add_error_handlers
from lwr.serving.ranking import Ranker
from lwr.serving.worker import Worker

PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": api.Problem} for status in (400, 401, 408, 409, 413, 415, 422, 500, 503)
}


def build_application(
    reranker: LayerwiseReranker,
    name: str,
    schedule: Schedule,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    key: str | None = None,
    scoring: ScoringConfig = ScoringConfig(),  # noqa: B008 - frozen
    fused: bool = False,
    budget_ms: float | None = None,
) -> FastAPI:
    """Build the application that serves a reranker.

    Args:
        reranker: The model, in evaluation mode; from now on only the application may use it.
        name: The model's name in answers.
        schedule: The exit or the cascade that ranks where a request names no layer.
        limits: The limits that a request may not exceed.
        key: The API key; None: no key is required.
        scoring: Precision, tokens per batch, and windows.
        fused: Whether to rank by fused scores, also where a request names a layer.
        budget_ms: The budget in milliseconds of requests that name neither a layer nor a budget; None: there is none,
            and `schedule` ranks.

    Raises:
        ValueError: The reranker has no head at a layer of `schedule`, or no weights of its fused scores.
    """
    exits = reranker.exits
    unknown = [layer for layer in schedule.layers if layer not in exits]
    if unknown:
        raise ValueError(
            f"schedule {schedule}: layers {unknown} have no head; exits are {describe_layers(exits)}"
        )
    if fused:
        stage_weights(reranker.fusion, schedule, has_first_stage=True)
    _ = reranker.can_compress  # tried now, as only the worker's thread may use the model later
    worker = Worker(reranker, scoring)

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        yield
        await asyncio.to_thread(worker.close)

    # FastAPI's own pages of documentation are off: they load scripts from other servers.
    app = FastAPI(title="lwr", version=version("lwr"), lifespan=lifespan, docs_url=None, redoc_url=None)
    add_error_handlers(app)
    Endpoints(Ranker(worker, schedule, limits, fused, budget_ms), name).add_to(app)
    post_paths = [
        route.path for route in app.routes if isinstance(route, APIRoute) and "POST" in (route.methods or ())
    ]
    app.add_middleware(Admission, limits=limits, key=key, post_paths=post_paths)
    _describe_limits(app, exits, limits, schedule.uses_first_stage(fused))
    if key is not None:
        _describe_key(app)
    return app


class Endpoints:
    """The endpoints of a server. FastAPI puts their docstrings into the OpenAPI description."""

    def __init__(self, ranker: Ranker, name: str):
        self.ranker, self.name = ranker, name
        self.shape = derive_shape(ranker.reranker.backbone)

    def add_to(self, app: FastAPI) -> None:
        """Add a route per endpoint to an application."""
        post = partial(app.add_api_route, methods=["POST"], responses=ERRORS)
        post("/v1/rerank", self.rerank_v1, response_model_exclude_none=True)
        post("/v2/rerank", self.rerank_v2, response_model_exclude_none=True)
        post("/rerank", self.rerank_unversioned, response_model_exclude_none=True)
        for path in ("/reranking", "/v1/reranking"):  # llama.cpp's other names
            post(path, self.rerank_unversioned, response_model_exclude_none=True, include_in_schema=False)
        post("/v1/scores", self.scores)
        get = partial(app.add_api_route, methods=["GET"])
        get("/v1/models", self.models, responses={401: ERRORS[401]})
        get("/health", self.health, responses={500: ERRORS[500]})
        get("/", self.page, include_in_schema=False)

    async def rerank_v1(self, request: api.AnyRerankRequest) -> api.RerankAnswer | list[api.TeiResult]:
        """Rerank for clients of Jina, vLLM and Xinference, and for older clients of Cohere."""
        if isinstance(request, api.TeiRequest):
            return await self._rerank_texts(request)
        return await self._rerank(request, "1", return_documents=True)

    async def rerank_v2(self, request: api.RerankRequest) -> api.RerankAnswer:
        """Rerank for clients of Cohere."""
        return await self._rerank(request, "2", return_documents=False)

    async def rerank_unversioned(
        self, request: api.AnyRerankRequest
    ) -> api.RerankAnswer | list[api.TeiResult]:
        """Rerank `texts` for clients of Text Embeddings Inference, and `documents` for all others."""
        if isinstance(request, api.TeiRequest):
            return await self._rerank_texts(request)
        answer = await self._rerank(request, "1", return_documents=True)
        answer.usage.prompt_tokens = answer.usage.total_tokens
        return answer

    async def _rerank(
        self, request: api.RerankRequest, api_version: str, return_documents: bool
    ) -> api.RerankAnswer:
        """Rerank documents; `return_documents` is what the request's key of that name defaults to."""
        is_raw = request.raw_scores or request.use_activation is False
        _check_one_scale(is_raw, request.probabilities)
        ranking = await self.ranker.rank(
            request.query,
            request.documents,
            request.layer,
            request.first_stage,
            request.compression,
            request.budget_ms,
            request.instruction,
            request.probabilities,
        )
        if request.return_documents is not None:
            return_documents = request.return_documents
        scores = ranking.scores if is_raw else ranking.relevance
        results = [
            api.Result(
                index=i,
                relevance_score=scores[i],
                document=api.Text(text=request.documents[i]) if return_documents else None,
            )
            for i in ranking.best_first[: request.top_n or request.top_k or None]
        ]
        is_of_voyage = "top_k" in request.model_fields_set
        return api.RerankAnswer(
            id=str(uuid4()),
            model=self.name,
            results=results,
            data=[_write_for_voyage(result) for result in results] if is_of_voyage else None,
            usage=api.Usage(total_tokens=ranking.tokens),
            meta=api.Meta(
                api_version=api.Version(version=api_version),
                tokens=api.Tokens(input_tokens=ranking.tokens) if request.return_len else None,
                layer=ranking.layer,
            ),
        )

    async def _rerank_texts(self, request: api.TeiRequest) -> list[api.TeiResult]:
        _check_one_scale(request.raw_scores, request.probabilities)
        ranking = await self.ranker.rank(
            request.query,
            request.texts,
            request.layer,
            request.first_stage,
            request.compression,
            request.budget_ms,
            request.instruction,
            request.probabilities,
        )
        scores = ranking.scores if request.raw_scores else ranking.relevance
        texts = request.texts if request.return_text else [None] * len(request.texts)
        best = ranking.best_first[: request.top_n or None]
        return [api.TeiResult(index=i, score=scores[i], text=texts[i]) for i in best]

    async def scores(self, request: api.ScoresRequest) -> api.ScoresAnswer:
        """Score documents at all exits, in one pass."""
        exits = self.ranker.exits
        scored = await self.ranker.score(request.query, request.documents, exits, request.instruction)
        spent = count_flops(self.shape, scored.tokens).sum(axis=1)  # [layers]
        shares = [spent[layer - 1] / spent[-1] for layer in exits]
        return api.ScoresAnswer(layers=exits, scores=scored.scores.tolist(), flops=shares)

    async def models(self) -> api.Models:
        """List the one model, its exits, and what ranks where a request names no layer."""
        prompt = self.ranker.reranker.prompt
        model = api.Model(
            id=self.name,
            exits=self.ranker.exits,
            depth=self.ranker.describe_depth(),
            fused=self.ranker.fused,
            query_max_len=prompt.query_max_len,
            passage_max_len=prompt.passage_max_len,
            windows=self.ranker.worker.scoring.windows,
        )
        return api.Models(data=[model])

    async def health(self) -> api.Health:
        """Answer as soon as the model is loaded, and as long as it scores. No key is required."""
        if not self.ranker.worker.is_alive:
            raise Refused(500, "the thread that scores has ended; restart the server")
        return api.Health()

    async def page(self) -> HTMLResponse:
        """Show the page."""
        return HTMLResponse(render_page(), headers=PAGE_HEADERS)


def _check_one_scale(is_raw: bool, probabilities: bool) -> None:
    """Refuse a request for raw scores and probabilities together (409)."""
    if is_raw and probabilities:
        raise Refused(409, "raw scores and probabilities: ask for one of the two")


def _write_for_voyage(result: api.Result) -> api.VoyageResult:
    text = result.document.text if result.document else None
    return api.VoyageResult(index=result.index, relevance_score=result.relevance_score, document=text)


def render_page() -> str:
    """Return the page with the stylesheet that it shares with the report."""
    environment = Environment(undefined=StrictUndefined)
    template = environment.from_string(PAGE.read_text(encoding="utf-8"))
    return template.render(style=read_stylesheet(), accent=read_colours()["accent"])


def _describe_limits(app: FastAPI, exits: list[int], limits: Limits, uses_first_stage: bool) -> None:
    """Write into the OpenAPI description what depends on the model and the limits."""
    description = app.openapi()  # FastAPI keeps the description that this call makes
    for path in ("/rerank", "/v1/rerank"):
        body = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        # a body with both `texts` and `documents` is one of TEI's
        body["schema"] = {"anyOf": body["schema"]["oneOf"]}
    schemas = description["components"]["schemas"]
    text = {"maxLength": limits.characters}
    for name in ("RerankRequest", "TeiRequest", "ScoresRequest"):
        fields = schemas[name]["properties"]
        query, query_object = fields["query"]["anyOf"]
        query |= text
        fields["instruction"]["anyOf"][0] |= text
        query_object["properties"]["text"] |= text
        passages = fields.get("documents") or fields["texts"]
        passages["maxItems"] = limits.documents
        for kind in passages["items"].get("anyOf", [passages["items"]]):
            schema = kind["properties"]["text"] if "properties" in kind else kind
            schema.update(text)
        if not uses_first_stage:
            fields.pop("first_stage", None)
        if "layer" in fields:
            fields["layer"]["anyOf"][0] |= {"minimum": exits[0], "maximum": exits[-1]}


def _describe_key(app: FastAPI) -> None:
    """Write into the OpenAPI description which paths need the API key."""
    description = app.openapi()
    description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in description["paths"].items():
        for operation in methods.values():
            operation["security"] = [] if path in PUBLIC_PATHS else [{"key": []}]
