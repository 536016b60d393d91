"""All exits of all candidates in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from lwr import parquet
from lwr.beir import read_corpus, read_queries
from lwr.config import Score, Split
from lwr.files import BadInput, atomic, sha256
from lwr.progress import progress
from lwr.reranker import LayerwiseReranker
from lwr.trec import Run, read_run

QUERIES_AT_ONCE = 64  # their candidates are sorted by length together, and held in memory together


def score(
    model: Path,
    collection: Path,
    split: Split,
    run: Path,
    settings: Score,
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
    texts = candidate_texts(collection, split, candidates)
    reranker = LayerwiseReranker.from_pretrained(model)
    chunks = -(-len(candidates) // QUERIES_AT_ONCE)
    schema = parquet.with_inputs(_schema(reranker), made_of(model, collection, run) | {"shard": shard})
    with atomic(out) as unfinished, parquet.writer(unfinished, schema) as writer:
        for table in progress(_tables(reranker, queries, texts, candidates, settings), chunks, label):
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
    settings: Score,
) -> Iterator[pa.Table]:
    asked = list(candidates)
    for start in range(0, len(asked), QUERIES_AT_ONCE):
        some = asked[start : start + QUERIES_AT_ONCE]
        pairs = [(query, doc, first_stage) for query in some for doc, first_stage in candidates[query]]
        rows = reranker.prompt.rows([(queries[query], texts[doc]) for query, doc, _ in pairs])
        scores = reranker.score_rows(rows, reranker.exits, settings.tokens_per_batch, settings.precision)
        if not np.isfinite(scores).all():
            layer, row = np.argwhere(~np.isfinite(scores))[0]
            raise FloatingPointError(
                f"the score of query {pairs[row][0]!r} and passage {pairs[row][1]!r} at layer {reranker.exits[layer]} "
                "is not finite; score with precision: float32, or train again with a lower lr"
            )
        query_ids, doc_ids, first_stage = map(list, zip(*pairs, strict=True))
        columns = [query_ids, doc_ids, list(map(len, rows)), first_stage, *scores]
        yield pa.table(columns, schema=_schema(reranker))


def candidate_texts(collection: Path, split: Split, candidates: Run) -> dict[str, str]:
    """doc_id -> text of the passages that a run names, from one reading of the corpus.

    Raises BadInput where the corpus lacks one.
    """
    wanted = {doc for ranked in candidates.values() for doc, _ in ranked}
    texts = {p.doc_id: p.full_text for p in read_corpus(collection, split) if p.doc_id in wanted}
    if missing := wanted - texts.keys():
        raise BadInput(
            f"{collection}/corpus.jsonl: no passage {min(missing)!r}, which the run names; retrieve again"
        )
    return texts
