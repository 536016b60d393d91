"""Join the candidates of queries with their texts, and score them a chunk of queries at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from lwr.common.errors import BadInput
from lwr.common.progress import log
from lwr.config.evaluation import ScoringConfig, Windows
from lwr.formats.trec import Run
from lwr.model.cascade_schedule import Compression
from lwr.model.prompt import LinePrompts, Prompt, PromptTooLong, Row
from lwr.model.reranker import LayerwiseReranker

Item = TypeVar("Item")
Result = TypeVar("Result")

QUERIES_PER_CHUNK = 64  # the pairs of a chunk are sorted by length together, and held in memory together


@dataclass(frozen=True)
class QueryCandidates:
    """A query and its candidates."""

    query_id: str
    query: str
    doc_ids: list[str]
    passages: list[str]  # texts, in the order of doc_ids
    prompts: LinePrompts = LinePrompts()  # noqa: RUF009 - frozen
    first_stage: list[float] | None = None  # scores of a run, in the order of doc_ids


def join_texts(
    candidates: Run, queries: Mapping[str, str], passages: Mapping[str, str]
) -> list[QueryCandidates]:
    """Add the texts to the ids and scores of a run; `queries` and `passages` map id -> text."""
    joined = []
    for query_id, ranked in candidates.items():
        doc_ids, scores = [doc_id for doc_id, _ in ranked], [score for _, score in ranked]
        texts = [passages[doc_id] for doc_id in doc_ids]
        joined.append(QueryCandidates(query_id, queries[query_id], doc_ids, texts, first_stage=scores))
    return joined


def split_into_chunks(queries: Sequence[QueryCandidates]) -> Iterator[Sequence[QueryCandidates]]:
    """Yield `QUERIES_PER_CHUNK` queries at a time."""
    for start in range(0, len(queries), QUERIES_PER_CHUNK):
        yield queries[start : start + QUERIES_PER_CHUNK]


def score_in_chunks(
    reranker: LayerwiseReranker,
    queries: Sequence[QueryCandidates],
    layers: Sequence[int],
    settings: ScoringConfig,
    on_scored: Callable[[int], object] | None = None,
    compression: Compression | None = None,
) -> Iterator[tuple[Sequence[QueryCandidates], list[Row], np.ndarray]]:
    """Score all candidates, `QUERIES_PER_CHUNK` queries at a time.

    After each batch, `on_scored` is called with its number of pairs.

    The last bits of a score depend on the other pairs of its batch. Batches depend on the queries, their order and the
    token budget, but not on `layers`: the same queries get the same scores at one exit as at all of them.

    Yields:
        The queries of a chunk, the rows of their pairs, query by query, and the scores, float32 [layers, pairs].

    Raises:
        FloatingPointError: A score is not finite.
    """
    for chunk, rows in tokenize_ahead(reranker.prompt, queries, settings.windows):
        scores = reranker.score_rows(rows, layers, settings.tokens_per_batch, on_scored, compression)
        check_finite(scores, chunk, layers)
        yield chunk, rows, scores


def check_finite(scores: np.ndarray, queries: Sequence[QueryCandidates], layers: Sequence[int]) -> None:
    """Raise FloatingPointError if one of `scores` [layers, pairs of the queries] is not finite."""
    not_finite = np.argwhere(~np.isfinite(scores))  # [bad scores, (layer, pair)]
    if len(not_finite) == 0:
        return
    layer, pair = not_finite[0]
    query_id, doc_id = [(query.query_id, doc_id) for query in queries for doc_id in query.doc_ids][pair]
    raise FloatingPointError(
        f"the score of query {query_id!r} and passage {doc_id!r} at layer {layers[layer]} is not finite; "
        "score with precision: float32, or train again with a lower lr"
    )


def check_windows(prompt: Prompt, queries: Sequence[QueryCandidates], windows: Windows | None) -> None:
    """Raise BadInput if the overlap would fill the windows of passages beside one of the queries."""
    if windows is None:
        return
    for query in queries:
        try:
            prompt.check_windows(windows, query.query, query.prompts)
        except PromptTooLong as error:
            raise BadInput(f"query {query.query_id!r}: {error}") from None


def log_cut_queries(prompt: Prompt, queries: Sequence[QueryCandidates], label: str) -> None:
    """Log how many queries do not fit, if any."""
    told = prompt.describe_cut_queries((query.query, query.prompts) for query in queries)
    if told is not None:
        log(f"{label}: {told}")


def tokenize_pairs(
    prompt: Prompt, queries: Sequence[QueryCandidates], windows: Windows | None = None
) -> list[Row]:
    """Return a row per pair, query by query, with the windows of its passage; each distinct text is tokenised once."""
    groups = [(query.query, query.passages, query.prompts) for query in queries]
    return [row for rows in prompt.group_rows(groups, windows) for row in rows]


def tokenize_ahead(
    prompt: Prompt, queries: Sequence[QueryCandidates], windows: Windows | None = None
) -> Iterator[tuple[Sequence[QueryCandidates], list[Row]]]:
    """Yield chunks of queries with the rows of their pairs, query by query; the next chunk's are made meanwhile."""
    return compute_ahead(partial(tokenize_pairs, prompt, windows=windows), split_into_chunks(queries))


def compute_ahead(compute: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its result; while the caller uses one, a thread computes the next.

    So texts are tokenised while a device computes. Memory holds two results. If `compute` uses a tokenizer, the caller
    must not use it meanwhile.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        started = ((item, executor.submit(compute, item)) for item in items)
        present = next(started, None)
        while present is not None:
            item, result = present[0], present[1].result()
            present = next(started, None)
            yield item, result
