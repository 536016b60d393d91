"""A server for one reranker: rerank in the shapes of Jina, Cohere and TEI, scores of all exits, and a page to look at.

It reads no file that a request names, and asks no network for anything.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, StrictUndefined
from starlette.exceptions import HTTPException

from lwr.config.evaluation import ScoringConfig
from lwr.evaluation.flops import count_flops, derive_shape
from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker, logistic
from lwr.reporting.palette import read_colours, read_stylesheet
from lwr.serving import api_types as say
from lwr.serving.admission import OPEN, Gate, Limits, Refused, problem
from lwr.serving.worker import Scored, Worker

PAGE = Path(__file__).with_name("page.html")
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PROBLEMS = {status: {"model": say.Problem} for status in (400, 401, 408, 413, 415, 422, 500, 503)}
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    model: Path,
    depth: Schedule | None,
    name: str,
    host: str,
    port: int,
    key: str | None,
    limits: Limits,
    scoring: ScoringConfig,
) -> None:
    """Serve a reranker until a signal ends it; who is inside then is answered first.

    depth: what ranks where a request names no layer; None: the deepest exit. key: None lets everybody in.
    Raises ValueError where the model can't be read, or has no head at a layer of `depth`.
    """
    reranker = LayerwiseReranker.from_pretrained(model)
    depth = depth or Schedule.single(reranker.exits[-1])
    app = application(reranker, name, depth, limits, key, scoring)
    first, last = reranker.exits[0], reranker.exits[-1]
    print(f"lwr serve: {name}, exits {first}..{last}, ranks by {depth}", file=sys.stderr, flush=True)
    if key is None and host not in LOOPBACK:
        print(f"lwr serve: whoever reaches {host} may use it; --api-key-env asks for a key", file=sys.stderr)
    gc.freeze()  # model and libraries stay: no collection between requests need look through them again
    uvicorn.run(
        app,
        host=host,
        port=port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=60,
    )


@dataclass(frozen=True)
class Ranking:
    """scores: by place in the request; relevance: the same in 0..1; tokens: of all pairs together."""

    best_first: list[int]
    scores: list[float]
    relevance: list[float]
    tokens: int


@dataclass(frozen=True)
class Service:
    """What the routes share."""

    worker: Worker
    depth: Schedule
    limits: Limits

    @property
    def exits(self) -> list[int]:
        return self.worker.reranker.exits

    async def rank(self, query: str, passages: Sequence[str], layer: int | None) -> Ranking:
        """By one exit, or by the server's depth. A cascade's scores are reciprocal ranks: its passages left at
        different exits, whose scores can't be compared. Raises Refused."""
        if layer is not None and layer not in self.exits:
            raise Refused(422, f"layer is {layer}, but exits are {self.exits[0]}..{self.exits[-1]}")
        cascade = layer is None and bool(self.depth.keep)
        depth = self.depth if cascade else [layer or self.depth.last]
        scored = await self.score(query, passages, depth)
        scores = scored.scores[0].astype(np.float64)
        relevance = scores if cascade else logistic(scores)
        best_first = np.argsort(-scores, kind="stable")
        return Ranking(best_first.tolist(), scores.tolist(), relevance.tolist(), int(scored.tokens.sum()))

    async def score(
        self, query: str, passages: Sequence[str], depth: Sequence[int] | Schedule | None = None
    ) -> Scored:
        """depth: None takes all exits. Raises Refused where a limit is passed."""
        most = self.limits
        if len(passages) > most.documents:
            raise Refused(422, f"{len(passages)} documents; at most {most.documents}, send several requests")
        longest = max(map(len, [query, *passages]))
        if longest > most.characters:
            raise Refused(
                422, f"a text has {longest} characters; at most {most.characters}, send parts of it"
            )
        depth = self.exits if depth is None else depth
        return await asyncio.wrap_future(self.worker.submit(query, passages, depth))


def application(
    reranker: LayerwiseReranker,
    name: str,
    depth: Schedule,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    key: str | None = None,
    scoring: ScoringConfig = ScoringConfig(),  # noqa: B008 - frozen
) -> FastAPI:
    """reranker: in evaluation mode, and from now on the application's alone.

    Raises ValueError where it has no head at a layer of `depth`.
    """
    exits, prompt = reranker.exits, reranker.prompt
    unknown = [layer for layer in depth.layers if layer not in exits]
    if unknown:
        raise ValueError(f"depth {depth}: layers {unknown} have no head; exits are {exits[0]}..{exits[-1]}")
    shape = derive_shape(reranker.backbone)
    service = Service(Worker(reranker, scoring), depth, limits)

    @asynccontextmanager
    async def life(_: FastAPI):
        yield
        await asyncio.to_thread(service.worker.close)

    # without FastAPI's own pages of documentation: they load scripts from elsewhere
    app = FastAPI(title="lwr", version=version("lwr"), lifespan=life, docs_url=None, redoc_url=None)
    _answer_problems(app)

    async def rerank(request: say.RerankRequest, version: str, echo: bool) -> say.RerankAnswer:
        ranking = await service.rank(request.query, request.documents, request.layer)
        echo = echo if request.return_documents is None else request.return_documents
        return say.RerankAnswer(
            id=str(uuid4()),
            model=name,
            results=[
                say.Result(
                    index=i,
                    relevance_score=ranking.relevance[i],
                    document=say.Text(text=request.documents[i]) if echo else None,
                )
                for i in ranking.best_first[: request.top_n]
            ],
            usage=say.Usage(total_tokens=ranking.tokens),
            meta=say.Meta(api_version=say.Version(version=version)),
        )

    @app.post("/v1/rerank", responses=PROBLEMS, response_model_exclude_none=True)
    async def rerank_v1(request: say.RerankRequest) -> say.RerankAnswer:
        """Rerank, as Jina's clients and Cohere's older ones ask."""
        return await rerank(request, "1", echo=True)

    @app.post("/v2/rerank", responses=PROBLEMS, response_model_exclude_none=True)
    async def rerank_v2(request: say.RerankRequest) -> say.RerankAnswer:
        """Rerank, as Cohere's clients ask."""
        return await rerank(request, "2", echo=False)

    @app.post("/rerank", responses=PROBLEMS, response_model_exclude_none=True)
    async def rerank_tei(request: say.TeiRequest) -> list[say.TeiResult]:
        """Rerank, as clients of Text Embeddings Inference ask."""
        ranking = await service.rank(request.query, request.texts, request.layer)
        scores = ranking.scores if request.raw_scores else ranking.relevance
        texts = request.texts if request.return_text else [None] * len(request.texts)
        return [say.TeiResult(index=i, score=scores[i], text=texts[i]) for i in ranking.best_first]

    @app.post("/v1/scores", responses=PROBLEMS)
    async def scores(request: say.ScoresRequest) -> say.ScoresAnswer:
        """The scores of all exits, from one pass."""
        scored = await service.score(request.query, request.documents)
        spent = count_flops(shape, scored.tokens).sum(axis=1)
        shares = [spent[layer - 1] / spent[-1] for layer in exits]
        return say.ScoresAnswer(layers=exits, scores=scored.scores.tolist(), flops=shares)

    @app.get("/v1/models", responses={401: PROBLEMS[401]})
    async def models() -> say.Models:
        """The one model, its exits, and what ranks where a request names no layer."""
        lengths = {"query_max_len": prompt.query_max_len, "passage_max_len": prompt.passage_max_len}
        return say.Models(data=[say.Model(id=name, exits=exits, depth=str(depth), **lengths)])

    @app.get("/health")
    async def health() -> say.Health:
        """Answers as soon as the model is loaded, and needs no key."""
        return say.Health()

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
        return HTMLResponse(_read_page(), headers=headers)

    posts = [route.path for route in app.routes if "POST" in route.methods]
    app.add_middleware(Gate, limits=limits, key=key, posts=posts)
    _tell_limits(app, exits, limits, key)
    return app


def _read_page() -> str:
    """Return the page at /, with the stylesheet that it shares with the report."""
    template = Environment(undefined=StrictUndefined).from_string(PAGE.read_text(encoding="utf-8"))
    return template.render(style=read_stylesheet(), accent=read_colours()["accent"])


def _tell_limits(app: FastAPI, exits: list[int], limits: Limits, key: str | None) -> None:
    """Write into the OpenAPI description what depends on the model and the settings."""
    described = app.openapi()  # made once, then kept
    schemas = described["components"]["schemas"]
    text = {"maxLength": limits.characters}
    for name in ("RerankRequest", "TeiRequest", "ScoresRequest"):
        fields = schemas[name]["properties"]
        fields["query"] |= text
        passages = fields.get("documents") or fields["texts"]
        passages["maxItems"] = limits.documents
        for kind in passages["items"].get("anyOf", [passages["items"]]):
            (kind["properties"]["text"] if "properties" in kind else kind).update(text)
        if "layer" in fields:
            fields["layer"]["anyOf"][0] |= {"minimum": exits[0], "maximum": exits[-1]}
    if key is not None:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, methods in described["paths"].items():
            for operation in methods.values():
                operation["security"] = [] if path in OPEN else [{"key": []}]


def _answer_problems(app: FastAPI) -> None:
    """Every error is one sentence in the shape of `say.Problem`, and repeats no long or odd value."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return problem(error.status, error.message, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first, *others = error.errors()
        if first["type"] == "json_invalid":
            return problem(400, f"the body is no JSON: {first['ctx']['error']}, character {first['loc'][1]}")
        where = ".".join(map(str, first["loc"][1:])) or "the body"
        more = f" (and {len(others)} more)" if others else ""
        return problem(422, f"{where}: {first['msg']}{_short(first['input'])}{more}")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        sentence = f"{error.detail}: {request.method} here; /openapi.json tells what there is"
        return problem(
            error.status_code, sentence if error.status_code in (404, 405) else error.detail, error.headers
        )

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return problem(500, f"scoring failed ({type(error).__name__}); the server's log has more")


def _short(value: object) -> str:
    """`, not …` for a number or a short string."""
    plain = isinstance(value, int | float | None) or (isinstance(value, str) and len(value) <= 40)
    return f", not {value!a}" if plain else ""
