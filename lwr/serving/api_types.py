"""What clients send and get: rerank as Jina, Cohere and Text Embeddings Inference (TEI) shape it, and our own scores.

Keys that a reranker has no use for (`model`, `truncate`, `rank_fields`, `max_tokens_per_doc`, …) are passed over.
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
    """`{"text": "…"}` is its text."""
    return document["text"] if isinstance(document, dict) and "text" in document else document


def _is_utf8(text: str) -> str:
    r"""JSON can write half a surrogate pair (`\ud800`); no tokenizer takes it, and no answer could hold it."""
    if not is_utf8(text):
        raise ValueError("half a surrogate pair, which UTF-8 cannot hold; remove it")
    return text


def _whole_number(value: Any) -> Any:
    """To JSON, 3.0 is 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole_number)
Passage = Annotated[str, AfterValidator(_is_utf8)]
Query = Annotated[str, StringConstraints(min_length=1), AfterValidator(_is_utf8)]
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
# of a million wrong ones the first is named, and no list of a million errors is made
Many = Field(min_length=1, fail_fast=True)
Layer = Annotated[
    Annotated[int, Whole] | None, Field(description="Rank by this exit instead of the server's depth.")
]


class Request(BaseModel):
    """A number is a number and no text that reads like one."""

    model_config = ConfigDict(strict=True)


class RerankRequest(Request):
    """Jina's and Cohere's."""

    query: Query
    documents: Annotated[list[Document], Many]
    top_n: Annotated[int, Field(ge=1), Whole] | None = Field(
        default=None, description="How many of the best are answered; null: all."
    )
    return_documents: bool | None = Field(default=None, description="null: yes under /v1, no under /v2.")
    layer: Layer = None


class TeiRequest(Request):
    """TEI's."""

    query: Query
    texts: Annotated[list[Passage], Many]
    raw_scores: bool = Field(
        default=False, description="Scores as the head gives them, not squeezed into 0..1."
    )
    return_text: bool = False
    layer: Layer = None


class ScoresRequest(Request):
    """Ours: all exits of all documents."""

    query: Query
    documents: Annotated[list[Document], Many]


class Text(BaseModel):
    text: str


class Result(BaseModel):
    index: int = Field(description="Place in the request, from 0.")
    relevance_score: float = Field(
        ge=0,
        le=1,
        description="The logistic function of the head's score; under a cascade the reciprocal rank.",
    )
    document: Text | None = None


class Usage(BaseModel):
    total_tokens: int = Field(
        description="As the backbone reads them: query, prompt and document, once each pair."
    )


class Version(BaseModel):
    version: str


class Meta(BaseModel):
    api_version: Version


class RerankAnswer(BaseModel):
    """Best first."""

    id: str
    model: str
    results: list[Result]
    usage: Usage
    meta: Meta


class TeiResult(BaseModel):
    index: int
    score: float
    text: str | None = None


class ScoresAnswer(BaseModel):
    layers: list[int]
    scores: list[list[float]] = Field(description="Of each layer, of each document; not squeezed.")
    flops: list[float] = Field(description="Up to each layer, as a share of the deepest's.")


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    owned_by: Literal["lwr"] = "lwr"
    exits: list[int] = Field(description="What `layer` may be.")
    depth: str = Field(description="What ranks where a request names no layer: an exit, or a cascade.")
    query_max_len: int = Field(description="Tokens.")
    passage_max_len: int = Field(description="Tokens.")


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Problem(BaseModel):
    """One sentence under the names that clients look for it: TEI's `error`, Jina's `detail`, Cohere's `message`."""

    error: str
    error_type: str
    detail: str
    message: str
