"""Types of requests and answers: those of Jina, Cohere and Text Embeddings Inference (TEI), and our own.

Keys that this server does not know or need (`model`, `truncate`, `max_tokens_per_doc`, …) are ignored.
FastAPI puts the docstrings of classes and the descriptions of fields into the OpenAPI description.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationInfo,
    WithJsonSchema,
)

from lwr.common.json_lines import is_utf8
from lwr.config.evaluation import Windows


def _text_of(document: Any, info: ValidationInfo) -> Any:
    """Return the text of an object, and anything else as it is.

    The text is written from the fields that the request's `rank_fields` name, in that order: the value of a single
    field, a line `field: value` for each of several. It is the field `text` if none is named, or the object has none.
    """
    if not isinstance(document, dict):
        return document
    named = info.data.get("rank_fields") or ["text"]
    fields = {name: document[name] for name in named if document.get(name) is not None}
    if not fields:
        return document.get("text", document)
    if len(named) == 1:
        return document[named[0]]
    return "\n".join(f"{name}: {_write_value(value)}" for name, value in fields.items())


def _query_of(query: Any) -> Any:
    """Return the text of an object, as Jina's clients may send it, and anything else as it is."""
    return query.get("text", query) if isinstance(query, dict) else query


def _write_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _truth_of(value: Any) -> Any:
    """Return the truth value that some clients write as a text, and anything else as it is."""
    return TRUTH_VALUES.get(value, value) if isinstance(value, str) else value


def _check_utf8(text: str) -> str:
    r"""Refuse half a surrogate pair, which JSON can write (`\ud800`), but neither tokenizers nor answers can hold."""
    if not is_utf8(text):
        raise ValueError("half a surrogate pair, which UTF-8 cannot hold; remove it")
    return text


def _integer_of(value: Any) -> Any:
    """Return 3 for 3.0, which is the same number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


TRUTH_VALUES = {"true": True, "True": True, "false": False, "False": False}
IntegerLike = BeforeValidator(_integer_of)
Truth = Annotated[
    bool,
    BeforeValidator(_truth_of),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": list(TRUTH_VALUES)}]}),
]
Passage = Annotated[str, AfterValidator(_check_utf8)]
Query = Annotated[
    str,
    StringConstraints(min_length=1),
    AfterValidator(_check_utf8),
    BeforeValidator(_query_of),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "object",
                    "properties": {"text": {"type": "string", "minLength": 1}},
                    "required": ["text"],
                },
            ]
        }
    ),
]
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
RawScores = Annotated[
    Truth, Field(description="Return scores as the head computes them, instead of mapping them to 0..1.")
]
TopN = Annotated[
    Annotated[int, Field(ge=0), IntegerLike] | None,
    Field(description="Number of documents to return, from the best; null, or 0 as vLLM writes it: all."),
]
FirstStage = Annotated[
    list[float] | None,
    Field(
        description=(
            "The score of each document from the retriever that found it, in their order, where the server ranks by "
            "fused scores or its cascade starts with the first stage; null: scores are fused without it."
        )
    ),
]
Layer = Annotated[
    Annotated[int, IntegerLike] | None,
    Field(description="The exit to rank by, instead of the exit or cascade of the server."),
]
Compression = Annotated[
    Annotated[str, Field(pattern=r"^[1-9][0-9]{0,2}/[1-9][0-9]{0,2}( [1-9][0-9]{0,2}/[1-9][0-9]{0,2}){0,9}$")]
    | None,
    Field(
        description=(
            "Token compression, layer/ratio: with `2/2`, each two neighbouring document tokens become one after "
            "layer 2; `2/2 4/2` does so twice. Its layers must be below the one that ranks."
        ),
    ),
]

BudgetMs = Annotated[
    Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
    Field(
        description=(
            "Milliseconds within which to answer, waiting included, instead of `layer`: the deepest exit that is "
            "reached in time ranks all documents; the first exit always is."
        )
    ),
]
Probabilities = Annotated[
    Truth,
    Field(
        description=(
            "Return calibrated probabilities of relevance, if the model has a calibration, instead of scores mapped to "
            "0..1. Not with raw scores, nor where a cascade ranks."
        )
    ),
]


Instruction = Annotated[
    Annotated[str, StringConstraints(min_length=1), AfterValidator(_check_utf8)] | None,
    Field(
        description=(
            "What makes a document relevant, in place of the instruction of the model's prompt; null: the model's own. "
            "A model whose prompt has no place for one, or too few tokens, refuses it (409)."
        )
    ),
]


class Request(BaseModel):
    """Base of requests; strict: a text that reads like a number is not accepted as one."""

    model_config = ConfigDict(strict=True)


class RerankRequest(Request):
    """Request of the clients of Jina, Cohere, vLLM, Infinity, Xinference and llama.cpp."""

    query: Query
    rank_fields: list[str] | None = Field(  # before `documents`, which are read by it
        default=None,
        description=(
            "Fields of documents that are objects, which are ranked by a line `field: value` for each, in this order; "
            "an object with none of them, and all if this is null, by `text`."
        ),
    )
    documents: Annotated[list[Document], NonEmpty]
    first_stage: FirstStage = None
    top_n: TopN = None
    top_k: Annotated[int, Field(ge=1), IntegerLike] | None = Field(
        default=None,
        description="Voyage's name of `top_n`. If it is there, even as null, the answer has `data`, too, as Voyage's.",
    )
    return_documents: Truth | None = Field(
        default=None,
        description="Whether results contain the documents; null: false under /v2, else true.",
    )
    return_len: Truth | None = Field(
        default=None, description="Whether `meta` contains the number of tokens."
    )
    raw_scores: RawScores = False
    use_activation: Truth | None = Field(
        default=None,
        description="vLLM's name of the opposite of `raw_scores`; false is the same as raw scores.",
    )
    layer: Layer = None
    compression: Compression = None
    budget_ms: BudgetMs = None
    instruction: Instruction = None
    probabilities: Probabilities = False


class TeiRequest(Request):
    """Request of clients of Text Embeddings Inference."""

    query: Query
    texts: Annotated[list[Passage], NonEmpty]
    first_stage: FirstStage = None
    raw_scores: RawScores = False
    return_text: Truth = False
    top_n: TopN = None
    layer: Layer = None
    compression: Compression = None
    budget_ms: BudgetMs = None
    instruction: Instruction = None
    probabilities: Probabilities = False


def _kind_of(body: Any) -> str:
    """Return the name of the type of a body; only clients of TEI send `texts`."""
    return "TeiRequest" if isinstance(body, dict) and "texts" in body else "RerankRequest"


AnyRerankRequest = Annotated[
    Annotated[RerankRequest, Tag("RerankRequest")] | Annotated[TeiRequest, Tag("TeiRequest")],
    Discriminator(_kind_of),
]


class ScoresRequest(Request):
    """Request for the scores of all exits, which only this server has."""

    query: Query
    documents: Annotated[list[Document], NonEmpty]
    instruction: Instruction = None


class Text(BaseModel):
    """A document in an answer."""

    text: str


class Result(BaseModel):
    """A document's score."""

    index: int = Field(description="Position of the document in the request, from 0.")
    relevance_score: float = Field(
        description=(
            "The logistic function of the head's score, with `raw_scores` that score, or with `probabilities` the "
            "calibrated probability; under a cascade, the reciprocal rank."
        ),
    )
    document: Text | None = None


class Usage(BaseModel):
    """The cost of a request."""

    total_tokens: int = Field(
        description="Tokens that the backbone reads: query, prompt and document of each pair."
    )
    prompt_tokens: int | None = Field(default=None, description="The same; under /rerank.")


class Version(BaseModel):
    """Version of an interface."""

    version: str


class Tokens(BaseModel):
    """Numbers of tokens, for clients of Xinference."""

    input_tokens: int
    output_tokens: int = 0


class Meta(BaseModel):
    """Metadata of an answer."""

    api_version: Version
    tokens: Tokens | None = None
    layer: int | None = Field(
        default=None, description="The exit that ranked, where a budget of time chose it."
    )


class VoyageResult(BaseModel):
    """A document's score, for clients of Voyage."""

    index: int
    relevance_score: float
    document: str | None = None


class RerankAnswer(BaseModel):
    """Answer to a request with `documents`, the best document first."""

    id: str
    model: str
    results: list[Result]
    data: list[VoyageResult] | None = Field(
        default=None, description="The results again, where the request has `top_k`."
    )
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
    depth: str = Field(
        description="The exit, the cascade or the budget of time by which is ranked where a request names no layer."
    )
    fused: bool = Field(
        description="Whether scores are fused with those of shallower exits and of `first_stage`."
    )
    query_max_len: int = Field(description="Tokens of a query that are read.")
    passage_max_len: int = Field(
        description="Tokens of a document, or of each of its windows, that are read."
    )
    windows: Windows | None = Field(
        description="How longer documents are read in windows; null: they are cut."
    )


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
