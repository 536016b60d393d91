"""Types of requests and answers: of Jina, Cohere and Text Embeddings Inference (TEI), and of this server alone.

Keys that have no meaning for a reranker (`model`, `truncate`, `rank_fields`, `max_tokens_per_doc`, …) are ignored.
FastAPI puts the docstrings of classes and the descriptions of fields into the OpenAPI description.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

from lwr.common.json_lines import is_utf8


def _text_of(document: Any) -> Any:
    """Return the text of an object `{"text": "…"}`, and anything else as it is."""
    return document["text"] if isinstance(document, dict) and "text" in document else document


def _check_utf8(text: str) -> str:
    r"""Refuse half a surrogate pair, which JSON can write (`\ud800`), but neither tokenizers nor answers can hold."""
    if not is_utf8(text):
        raise ValueError("half a surrogate pair, which UTF-8 cannot hold; remove it")
    return text


def _integer_of(value: Any) -> Any:
    """Return 3 for 3.0, which is the same number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


IntegerLike = BeforeValidator(_integer_of)
Passage = Annotated[str, AfterValidator(_check_utf8)]
Query = Annotated[str, StringConstraints(min_length=1), AfterValidator(_check_utf8)]
Document = Annotated[
    Passage,
    BeforeValidator(_text_of),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
            ]
        }
    ),
]
# fail_fast: an error names the first wrong document only, and not each of a million.
NonEmpty = Field(min_length=1, fail_fast=True)
Layer = Annotated[
    Annotated[int, IntegerLike] | None,
    Field(description="The exit to rank by, instead of the exit or cascade of the server."),
]


class Request(BaseModel):
    """Base of requests; strict: a text that reads like a number is not accepted as one."""

    model_config = ConfigDict(strict=True)


class RerankRequest(Request):
    """Request of Jina's and Cohere's clients."""

    query: Query
    documents: Annotated[list[Document], NonEmpty]
    top_n: Annotated[int, Field(ge=1), IntegerLike] | None = Field(
        default=None, description="Number of documents to return, from the best; null: all."
    )
    return_documents: bool | None = Field(
        default=None,
        description="Whether results contain the documents; null: true under /v1, false under /v2.",
    )
    layer: Layer = None


class TeiRequest(Request):
    """Request of clients of Text Embeddings Inference."""

    query: Query
    texts: Annotated[list[Passage], NonEmpty]
    raw_scores: bool = Field(
        default=False, description="Return scores as the head computes them, instead of mapping them to 0..1."
    )
    return_text: bool = False
    layer: Layer = None


class ScoresRequest(Request):
    """Request for the scores of all exits, which only this server has."""

    query: Query
    documents: Annotated[list[Document], NonEmpty]


class Text(BaseModel):
    """A document in an answer."""

    text: str


class Result(BaseModel):
    """A document's score."""

    index: int = Field(description="Position of the document in the request, from 0.")
    relevance_score: float = Field(
        ge=0,
        le=1,
        description="The logistic function of the head's score; under a cascade, the reciprocal rank.",
    )
    document: Text | None = None


class Usage(BaseModel):
    """The cost of a request."""

    total_tokens: int = Field(
        description="Tokens that the backbone reads: query, prompt and document of each pair."
    )


class Version(BaseModel):
    """Version of an interface."""

    version: str


class Meta(BaseModel):
    """Metadata of an answer."""

    api_version: Version


class RerankAnswer(BaseModel):
    """Answer to Jina's and Cohere's clients, the best document first."""

    id: str
    model: str
    results: list[Result]
    usage: Usage
    meta: Meta


class TeiResult(BaseModel):
    """A document's score, for clients of Text Embeddings Inference."""

    index: int
    score: float
    text: str | None = None


class ScoresAnswer(BaseModel):
    """The scores of all exits, and their costs."""

    layers: list[int]
    scores: list[list[float]] = Field(
        description="Scores as the head computes them: a list per layer, with a score per document."
    )
    flops: list[float] = Field(description="FLOPs up to each layer, as a share of those of the deepest exit.")


class Model(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    owned_by: Literal["lwr"] = "lwr"
    exits: list[int] = Field(description="The values that `layer` may have.")
    depth: str = Field(description="The exit or the cascade that ranks where a request names no layer.")
    query_max_len: int = Field(description="Tokens of a query that are read.")
    passage_max_len: int = Field(description="Tokens of a document that are read.")


class Models(BaseModel):
    """The list of models, which has one entry."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """The state of the server."""

    status: Literal["ok"] = "ok"


class Problem(BaseModel):
    """An error: one sentence, under the names of TEI (`error`), Jina (`detail`) and Cohere (`message`)."""

    error: str
    error_type: str
    detail: str
    message: str
