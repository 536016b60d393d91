"""Rank the candidates of queries by one exit or by a cascade, by their own or by fused scores.

With the workflow's candidates, token budget, precision and number of threads, and scores from a single shard, an exit's
run equals the workflow's to the byte, because the same queries share the same batches. A cascade drops candidates
during the forward pass, one pass per query, whereas the workflow replays recorded scores. Both give the same run unless
two scores of a query differ by no more than rounding, about 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lwr.common.errors import BadInput
from lwr.common.exits import describe_layers
from lwr.common.hashing import hash_share
from lwr.common.progress import Progress, log
from lwr.common.results_tree import find_fusion_of_grid
from lwr.config.evaluation import ScoringConfig
from lwr.formats.fusion import Fusion
from lwr.formats.trec import best_first
from lwr.model.cascade_schedule import Schedule, plan_ranking
from lwr.model.prompt import Row
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import read_stored_exits, read_stored_fusion
from lwr.scoring.query_candidates import (
    QueryCandidates,
    check_windows,
    compute_ahead,
    log_cut_queries,
    score_in_chunks,
)


@dataclass(frozen=True)
class RankedPassage:
    """A passage of a ranking, with the last exit that read it and its score there.

    The layer is 0 if the first stage dropped the passage; the score is then that of the first stage.
    """

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


Ranked = tuple[QueryCandidates, list[RankedPassage], list[Row]]
"""A query, its passages, best first, and the rows that were read."""


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
        raise BadInput(f"{model}: layers {unknown} have no head; exits are {describe_layers(exits)}")
    return schedule


def resolve_fusion(model: str, fused: bool, file: Path | None, revision: str | None = None) -> Fusion | None:
    """Return the weights of fused scores, after checking them against the model's exits; None unless `fused`.

    No weights of the model are read.

    Args:
        model: Folder or hub id.
        fused: Whether scores are to be fused.
        file: A file that `lwr fuse` wrote; None: the model's own fusion.json, or else the weights of its grid (see
            `find_fusion_of_grid`), which the log names.
        revision: Revision of a hub id.

    Raises:
        BadInput: There are no weights, or they are of other exits; or a file is given, but scores are not fused.
    """
    if not fused:
        if file is not None:
            raise BadInput(f"--fusion {file} without --fused: give both")
        return None
    fusion = read_stored_fusion(model, revision, file)
    if fusion is not None:
        return fusion
    of_grid = find_fusion_of_grid(Path(model))
    if of_grid is None:
        raise BadInput(
            f"{model}: has no fusion.json with the weights of fused scores; fit them with `lwr fuse` and give their "
            "file with --fusion"
        )
    log(f"weights of fused scores: {of_grid}")
    return read_stored_fusion(model, file=of_grid)


def rerank(
    reranker: LayerwiseReranker,
    queries: Sequence[QueryCandidates],
    schedule: Schedule,
    settings: ScoringConfig = ScoringConfig(),  # noqa: B008 - frozen
    top_k: int | None = None,
    fused: bool = False,
) -> list[RankedQuery]:
    """Rank the candidates of each query.

    Ties are broken as in `lwr.formats.trec.ranking_key`; fused scores are compared as float64. Scores of a single exit
    decrease strictly, as in a run. Scores of a cascade decrease among the passages of one exit; a passage that survived
    longer ranks higher. A cascade reads all candidates of a query that the first stage lets through in one forward
    pass, whose blocks compute as many tokens at a time as a batch has.

    Args:
        reranker: The model.
        queries: The queries and their candidates.
        schedule: The exit or the cascade that ranks.
        settings: Token budget, and windows.
        top_k: Passages returned per query; None returns all.
        fused: Whether to rank by fused scores, with the weights of the first stage for queries that have its scores.

    Returns:
        The rankings, in the order of `queries`. How many queries, and how many of the pairs that were read, are cut is
        logged if any are.

    Raises:
        BadInput: Windows overlap by as many tokens as they have.
        ValueError: Weights or first-stage scores are missing, or scores are given that nothing uses.
        UnsupportedBackbone: The tokens of the backbone cannot be compressed.
        FloatingPointError: A score is not finite.
        MemoryError: A batch does not fit into memory.
    """
    check_windows(reranker.prompt, queries, settings.windows)
    log_cut_queries(reranker.prompt, queries, "rerank")
    rank = _rank_by_cascade if schedule.keep else _rank_by_exit
    pairs = sum(len(query.doc_ids) for query in queries)
    ranked, cut, read = [], 0, 0
    with Progress("rerank", pairs, "pairs", only_if_long=len(queries) == 1) as progress:
        for query, passages, rows in rank(reranker, queries, schedule, settings, fused, progress.advance):
            ranked.append(RankedQuery(query.query_id, query.query, passages[:top_k]))
            cut, read = cut + reranker.prompt.count_cut(rows), read + len(rows)
    if cut:
        log(f"rerank: {reranker.prompt.describe_cut(cut, read, settings.windows)}")
    return ranked


def _first_stage_of(query: QueryCandidates, schedule: Schedule, fused: bool) -> list[float] | None:
    """Return the first-stage scores of a query if something uses them."""
    return query.first_stage if schedule.uses_first_stage(fused) else None


def _rank_by_exit(
    reranker: LayerwiseReranker,
    queries: Sequence[QueryCandidates],
    schedule: Schedule,
    settings: ScoringConfig,
    fused: bool,
    on_scored: Callable[[int], object],
) -> Iterator[Ranked]:
    layer = schedule.last
    layers = [k for k in reranker.exits if k <= layer] if fused else [layer]
    # scores: [layers, pairs]
    scored = score_in_chunks(reranker, queries, layers, settings, on_scored, schedule.compression)
    for chunk, rows, scores in scored:
        ends = np.cumsum([len(query.doc_ids) for query in chunk])
        for query, end, by_layer in zip(chunk, ends, np.split(scores, ends[:-1], axis=1), strict=True):
            texts = dict(zip(query.doc_ids, query.passages, strict=True))
            first_stage = _first_stage_of(query, schedule, fused)
            plan = plan_ranking(schedule, len(texts), first_stage, reranker.fusion, fused)
            last = plan.fuse(by_layer[[layers.index(k) for k in plan.layers]])  # [candidates]
            ranked = best_first(zip(query.doc_ids, last, strict=True), is_double=fused)
            passages = [RankedPassage(doc_id, score, layer, texts[doc_id]) for doc_id, score in ranked]
            yield query, passages, rows[end - len(texts) : end]


def _rank_by_cascade(
    reranker: LayerwiseReranker,
    queries: Sequence[QueryCandidates],
    schedule: Schedule,
    settings: ScoringConfig,
    fused: bool,
    on_scored: Callable[[int], object],
) -> Iterator[Ranked]:
    def read(query: QueryCandidates) -> list[Row | None]:
        pairs = [(query.query, text) for text in query.passages]
        first_stage = _first_stage_of(query, schedule, fused)
        return reranker.rows_to_read(pairs, schedule, first_stage, query.prompts, settings.windows)

    # rank_rows keeps the order of its rows among equal scores, so the rows come in the order that breaks ties
    for query, rows in compute_ahead(read, map(_order_by_hash, queries)):
        first_stage = _first_stage_of(query, schedule, fused)
        ranking = reranker.rank_rows(
            rows, schedule, settings.tokens_per_batch, first_stage=first_stage, fused=fused
        )
        passages = [
            RankedPassage(
                query.doc_ids[i], float(ranking.scores[i]), int(ranking.layers[i]), query.passages[i]
            )
            for i in ranking.order.tolist()
        ]
        on_scored(len(rows))
        yield query, passages, [row for row in rows if row is not None]


def _order_by_hash(query: QueryCandidates) -> QueryCandidates:
    """Return the query with its candidates in the order in which equal scores are ranked."""
    order = sorted(range(len(query.doc_ids)), key=lambda i: hash_share(query.doc_ids[i]))
    return replace(
        query,
        doc_ids=[query.doc_ids[i] for i in order],
        passages=[query.passages[i] for i in order],
        first_stage=query.first_stage and [query.first_stage[i] for i in order],
    )
