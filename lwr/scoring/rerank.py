"""Rank the candidates of queries by one exit or by a cascade.

With the workflow's candidates, token budget, precision and number of threads, and scores from a single shard, an exit's
run equals the workflow's to the byte, because the same queries share the same batches. A cascade drops candidates
during the forward pass, one pass per query, whereas the workflow replays recorded scores. Both give the same run unless
two scores of a query differ by no more than rounding, about 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lwr.common.errors import BadInput
from lwr.common.hashing import hash_share
from lwr.common.progress import show_progress
from lwr.config.evaluation import ScoringConfig
from lwr.formats.trec import best_first
from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import read_stored_exits
from lwr.scoring.score import QueryCandidates, score_in_chunks, tokenize_pairs


@dataclass(frozen=True)
class RankedPassage:
    """A passage of a ranking, with the last exit that read it and its score there (a float32)."""

    doc_id: str
    score: float
    layer: int
    text: str


@dataclass(frozen=True)
class RankedQuery:
    """A query and its passages, best first."""

    query_id: str
    query: str
    passages: list[RankedPassage]


def resolve_schedule(model: str, schedule: Schedule | None, revision: str | None = None) -> Schedule:
    """Return `schedule`, or the deepest exit alone if it is None, after checking it against the model's exits.

    No weights are read.

    Raises:
        BadInput: The schedule reads a layer without a head.
    """
    exits = read_stored_exits(model, revision)
    schedule = schedule or Schedule.single(exits[-1])
    unknown = [layer for layer in schedule.layers if layer not in exits]
    if unknown:
        raise BadInput(f"{model}: layers {unknown} have no head; exits are {exits[0]}..{exits[-1]}")
    return schedule


def rerank(
    reranker: LayerwiseReranker,
    queries: Sequence[QueryCandidates],
    schedule: Schedule,
    settings: ScoringConfig = ScoringConfig(),  # noqa: B008 - frozen
    top_k: int | None = None,
) -> list[RankedQuery]:
    """Rank the candidates of each query.

    Ties are broken as in `lwr.formats.trec.ranking_key`. Scores of a single exit decrease strictly, as in a run.
    Scores of a cascade decrease among the passages of one exit; a passage that survived longer ranks higher. A cascade
    reads all candidates of a query in one forward pass, whose blocks compute as many tokens at a time as a batch has.

    Args:
        reranker: The model.
        queries: The queries and their candidates.
        schedule: The exit or the cascade that ranks.
        settings: Token budget and precision.
        top_k: Passages returned per query; None returns all.

    Returns:
        The rankings, in the order of `queries`.
    """
    rank = _rank_by_cascade if schedule.keep else _rank_by_exit
    ranked = rank(reranker, queries, schedule, settings)
    if len(queries) > 1:
        ranked = show_progress(ranked, len(queries), "rerank")
    return [RankedQuery(query.query_id, query.query, passages[:top_k]) for query, passages in ranked]


def _rank_by_exit(
    reranker: LayerwiseReranker,
    queries: Sequence[QueryCandidates],
    schedule: Schedule,
    settings: ScoringConfig,
) -> Iterator[tuple[QueryCandidates, list[RankedPassage]]]:
    layer = schedule.last
    for chunk, _, scores in score_in_chunks(reranker, queries, [layer], settings):  # scores: [1, pairs]
        ends = np.cumsum([len(query.doc_ids) for query in chunk])
        for query, query_scores in zip(chunk, np.split(scores[0], ends[:-1]), strict=True):
            texts = dict(zip(query.doc_ids, query.passages, strict=True))
            ranked = best_first(zip(query.doc_ids, query_scores, strict=True))
            yield query, [RankedPassage(doc_id, score, layer, texts[doc_id]) for doc_id, score in ranked]


def _rank_by_cascade(
    reranker: LayerwiseReranker,
    queries: Sequence[QueryCandidates],
    schedule: Schedule,
    settings: ScoringConfig,
) -> Iterator[tuple[QueryCandidates, list[RankedPassage]]]:
    for query in queries:
        # rank_rows keeps the order of its rows among equal scores, so the rows come in the order that breaks ties
        pairs = zip(query.doc_ids, query.passages, strict=True)
        doc_ids, texts = map(list, zip(*sorted(pairs, key=lambda pair: hash_share(pair[0])), strict=True))
        ordered = QueryCandidates(query.query_id, query.query, doc_ids, texts, query.instruction)
        rows = tokenize_pairs(reranker.prompt, [ordered])
        ranking = reranker.rank_rows(rows, schedule, settings.tokens_per_batch, settings.precision)
        passages = [
            RankedPassage(doc_ids[i], float(ranking.scores[i]), int(ranking.layers[i]), texts[i])
            for i in ranking.order.tolist()
        ]
        yield query, passages
