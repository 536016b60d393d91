"""All exits of all candidates in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput
from lwr.common.hashing import sha256
from lwr.common.progress import show_progress
from lwr.config.evaluation import ScoringConfig
from lwr.formats import parquet
from lwr.formats.beir import Split, read_candidate_texts, read_queries
from lwr.formats.trec import Run, read_run
from lwr.model.prompt import Prompt, Row
from lwr.model.reranker import LayerwiseReranker

QUERIES_AT_ONCE = 64  # their candidates are sorted by length together, and held in memory together


def score(
    model: Path,
    collection: Path,
    split: Split,
    run: Path,
    settings: ScoringConfig,
    out: Path,
    shard: str = "1/1",
    label: str = "score",
) -> None:
    """Write Parquet: query_id, doc_id, tokens (int32), first_stage (float64), layer_k (float32) for every exit k.

    One row per candidate of `run`, in the run's order; tokens: the pair's length as the backbone reads it.
    shard: `K/N` takes every N-th query from the K-th on. Memory holds the texts of the candidates, not the corpus.
    Raises BadInput where corpus, queries and run don't fit, FloatingPointError where a score is not finite.
    """
    whole = read_run(run)
    if not whole:
        raise BadInput(f"{run}: no candidate in it; retrieve again")
    candidates = _shard(whole, shard)
    queries = read_queries(collection)
    if unknown := candidates.keys() - queries.keys():
        raise BadInput(f"{run}: query {min(unknown)!r} is not in {collection}/queries.jsonl; retrieve again")
    texts = read_candidate_texts(collection, split, candidates)
    reranker = LayerwiseReranker.from_pretrained(model)
    chunks = -(-len(candidates) // QUERIES_AT_ONCE)
    schema = parquet.add_inputs(_schema(reranker), made_of(model, collection, run) | {"shard": shard})
    with atomic(out) as unfinished, parquet.open_writer(unfinished, schema) as writer:
        for table in show_progress(_tables(reranker, queries, texts, candidates, settings), chunks, label):
            writer.write_table(table.cast(schema))


def made_of(model: Path, collection: Path, run: Path) -> dict[str, str]:
    """What scores follow from: sha256 of the model's weights, of the texts, and of the candidates."""
    files = {"run": run, **{name: collection / f"{name}.jsonl" for name in ("corpus", "queries")}}
    files |= {f"model/{file.name}": file for file in sorted(model.glob("*.safetensors"))}
    return {name: sha256(file) for name, file in files.items()}


def _shard(candidates: Run, shard: str) -> Run:
    try:
        number, count = (int(part) for part in shard.split("/"))
    except ValueError:
        number = count = 0
    if not 1 <= number <= count:
        raise ValueError(f"shard {shard!r}: write K/N with K in 1..N, such as 1/4")
    return dict(list(candidates.items())[number - 1 :: count])


def _schema(reranker: LayerwiseReranker) -> pa.Schema:
    pair = [("query_id", pa.string()), ("doc_id", pa.string()), ("tokens", pa.int32())]
    first_stage = ("first_stage", pa.float64())
    return pa.schema([*pair, first_stage] + [(f"layer_{k}", pa.float32()) for k in reranker.exits])


def _tables(
    reranker: LayerwiseReranker,
    queries: dict[str, str],
    texts: dict[str, str],
    candidates: Run,
    settings: ScoringConfig,
) -> Iterator[pa.Table]:
    asked = [
        QueryCandidates(query, queries[query], [doc for doc, _ in ranked], [texts[doc] for doc, _ in ranked])
        for query, ranked in candidates.items()
    ]
    for some, rows, scores in score_lists(reranker, asked, reranker.exits, settings):
        pairs = [(query.query_id, doc, first) for query in some for doc, first in candidates[query.query_id]]
        query_ids, doc_ids, first_stage = map(list, zip(*pairs, strict=True))
        columns = [query_ids, doc_ids, list(map(len, rows)), first_stage, *scores]
        yield pa.table(columns, schema=_schema(reranker))


@dataclass(frozen=True)
class QueryCandidates:
    """A query and its candidates. instruction: instead of the template's; None: that one."""

    query_id: str
    query: str
    doc_ids: list[str]
    passages: list[str]  # their texts
    instruction: str | None = None


def score_lists(
    reranker: LayerwiseReranker,
    asked: Sequence[QueryCandidates],
    layers: Sequence[int],
    settings: ScoringConfig,
) -> Iterator[tuple[Sequence[QueryCandidates], list[Row], np.ndarray]]:
    """By some queries at once: these, the rows of their pairs one after the other, and float32 [layers, pairs].

    In its last bits a score depends on the pairs beside it in a batch. Batches follow from the queries, their order
    and the budget of tokens, not from `layers`: the same lists score the same at one exit as at all of them.
    Raises FloatingPointError for a score that is not finite.
    """
    for start in range(0, len(asked), QUERIES_AT_ONCE):
        some = asked[start : start + QUERIES_AT_ONCE]
        rows = rows_of(reranker.prompt, some)
        scores = reranker.score_rows(rows, layers, settings.tokens_per_batch, settings.precision)
        _check_finite(scores, some, layers)
        yield some, rows, scores


def _check_finite(scores: np.ndarray, asked: Sequence[QueryCandidates], layers: Sequence[int]) -> None:
    if np.isfinite(scores).all():
        return
    layer, pair = np.argwhere(~np.isfinite(scores))[0]
    query, passage = [(query.query_id, doc) for query in asked for doc in query.doc_ids][pair]
    raise FloatingPointError(
        f"the score of query {query!r} and passage {passage!r} at layer {layers[layer]} is not finite; "
        "score with precision: float32, or train again with a lower lr"
    )


def rows_of(prompt: Prompt, asked: Sequence[QueryCandidates]) -> list[Row]:
    """The pairs of some queries as the backbone reads them, one query's after the other's."""
    queries = prompt.queries(query.query for query in asked)
    passages = prompt.passages(text for query in asked for text in query.passages)
    return [
        prompt.row(queries[query.query], passages[text], query.instruction)
        for query in asked
        for text in query.passages
    ]
