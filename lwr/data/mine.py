"""Mine training groups: a query, a passage that answers it, and hard negatives from the first stage.

The negatives of a group are drawn from the first-stage candidates of its query. If these are too few, random passages
of the train corpus fill up the group. The corpus may not fit into memory, so random passages are chosen by their
position in it, before it is read. A chosen passage may turn out to be unusable: a positive of the query, a likely
false negative, or a negative that the group already has. Therefore more positions are drawn than a group needs, so
many that enough remain in any case. Then one pass over the corpus reads the passages at all these positions together
with the texts of the other passages, and each group takes the first usable ones in the order in which they were
drawn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwr.common.errors import BadInput
from lwr.common.hashing import hash_share
from lwr.common.json_lines import write_jsonl
from lwr.common.progress import log
from lwr.config.data import MiningConfig
from lwr.config.model import PromptTemplate
from lwr.formats.beir import Queries, read_corpus, read_qrels, read_queries
from lwr.formats.trec import read_run


@dataclass(frozen=True)
class QueryPool:
    """The passages from which the groups of one query are drawn, by their ids."""

    query_id: str
    positives: list[str]  # ordered by hash, so the order is independent of grades and ranks
    candidates: list[str]  # found by the first stage at the ranks of the settings, and not relevant
    scores: dict[str, float]  # by the teacher, or else by the first stage for what it found

    def only_scored(self) -> QueryPool:
        """Return the pool without the passages that have no score; it has no positives if no candidate remains."""
        positives = [doc_id for doc_id in self.positives if doc_id in self.scores]
        candidates = [doc_id for doc_id in self.candidates if doc_id in self.scores]
        return QueryPool(self.query_id, positives if candidates else [], candidates, self.scores)


@dataclass(frozen=True)
class MinedGroup:
    """A group by passage ids, before it is filled up from the corpus."""

    pool: QueryPool
    positive: str
    negatives: list[str]  # hard ones; perhaps fewer than the settings ask for
    likely_false: set[str]  # candidates that are not used, as they may answer the query


def mine(collection: Path, run: Path, out: Path, mining: MiningConfig) -> None:
    """Write training groups of the train queries that `run` ranks, as JSON lines sorted by query id.

    The keys are FlagEmbedding's (`query`, `pos`, `neg`: texts; `prompt`: upstream's instruction; with a teacher
    `pos_scores` and `neg_scores`) and `query_id`, `pos_id`, `neg_id`. Groups with too few hard negatives are filled up
    from the corpus. With a teacher, groups contain only passages that it scored, so that they may have fewer negatives.
    Memory holds the runs and the texts of the groups, not the corpus.

    Raises:
        BadInput: The run does not fit the collection, the corpus is too small for `mining.negatives`, or no group can
            be made.
    """
    queries = read_queries(collection)
    pools = sample_pools(read_query_pools(collection, queries, run, mining), mining)
    groups = [group for pool in pools for group in draw_groups(pool, mining)][: mining.groups]
    if not groups:
        fix = "score train candidates and their positives" if mining.teacher_run else "retrieve for train"
        raise BadInput(f"{mining.teacher_run or run}: no group can be made; {fix}")
    if mining.margin is not None:
        dropped = sum(len(group.likely_false) for group in groups)
        log(f"mine: {dropped} likely false negatives dropped from {len(groups)} groups")
    positions = draw_filler_positions(groups, collection, mining)
    texts, id_at = read_texts(collection, run, groups, {at for drawn in positions for at in drawn})
    lines = (
        _line(group, queries, texts, _fill_up(group, [id_at[at] for at in drawn], mining), mining)
        for group, drawn in zip(groups, positions, strict=True)
    )
    write_jsonl(out, lines)


def read_query_pools(collection: Path, queries: Queries, run: Path, mining: MiningConfig) -> list[QueryPool]:
    """Read the pools of the queries of `run` that have a relevant passage, sorted by query id.

    With a teacher, pools contain only passages that it scored. A query whose positives or candidates it did not score
    has no pool; the number of such queries is logged.

    Raises:
        BadInput: The run ranks a query that is not judged for train.
    """
    qrels, ranked = read_qrels(collection, "train", queries), read_run(run)
    teacher = None if mining.teacher_run is None else read_run(Path(mining.teacher_run))
    first_rank, last_rank = mining.depth
    pools, unscored = [], 0
    for query_id in sorted(ranked):
        if query_id not in qrels:
            raise BadInput(f"{run}: query {query_id!r} is not judged for train; give the run of train")
        positives = sorted((doc_id for doc_id, grade in qrels[query_id].items() if grade > 0), key=hash_share)
        found = [doc_id for doc_id, _ in ranked[query_id][first_rank - 1 : last_rank]]
        candidates = [doc_id for doc_id in found if doc_id not in positives]
        scored = dict(ranked[query_id] if teacher is None else teacher.get(query_id, ()))
        scores = {doc_id: scored[doc_id] for doc_id in [*positives, *candidates] if doc_id in scored}
        pool = QueryPool(query_id, positives, candidates, scores)
        if teacher is not None and positives:
            pool = pool.only_scored()
            unscored += 0 if pool.positives else 1
        if pool.positives:
            pools.append(pool)
    if unscored:
        log(
            f"mine: {unscored} queries make no group: the teacher scored none of their positives, or no candidate"
        )
    return pools


def sample_pools(pools: list[QueryPool], mining: MiningConfig) -> list[QueryPool]:
    """Return all pools, or a seeded sample that suffices for `mining.groups`, in the same order."""
    enough = len(pools) if mining.groups is None else -(-mining.groups // mining.samples)
    if enough >= len(pools):
        return pools
    return sorted(random.Random(mining.seed).sample(pools, enough), key=lambda pool: pool.query_id)


def draw_groups(pool: QueryPool, mining: MiningConfig) -> Iterator[MinedGroup]:
    """Draw up to `mining.samples` groups of one query; they depend on the seed and the query alone.

    The positives take turns, and no two groups share a negative. Only the first group may have fewer than
    `mining.negatives`.
    """
    rng = random.Random(f"{mining.seed}:{pool.query_id}")
    unused = pool.candidates
    for number in range(mining.samples):
        positive = pool.positives[number % len(pool.positives)]
        likely_false = find_likely_false(pool, positive, mining.margin)
        usable = [doc_id for doc_id in unused if doc_id not in likely_false]
        if len(usable) < _needed_negatives(number, mining):
            return
        negatives = rng.sample(usable, min(mining.negatives, len(usable)))
        yield MinedGroup(pool, positive, negatives, likely_false)
        unused = [doc_id for doc_id in unused if doc_id not in negatives]


def _needed_negatives(number: int, mining: MiningConfig) -> int:
    """Return how many hard negatives the group `number` (counted from 0) of a query needs."""
    if number > 0:
        return mining.negatives
    # The first group of a query may be filled up from the corpus, unless a teacher would have to score the fillers.
    return 0 if mining.teacher_run is None else 1


def find_likely_false(pool: QueryPool, positive: str, margin: float | None) -> set[str]:
    """Return the candidates that probably answer the query: they score above the positive's score minus `margin`.

    There are none without a margin, or if the positive has no score to compare with.
    """
    if margin is None or positive not in pool.scores:
        return set()
    return {doc_id for doc_id in pool.candidates if pool.scores[doc_id] > pool.scores[positive] - margin}


def draw_filler_positions(
    groups: list[MinedGroup], collection: Path, mining: MiningConfig
) -> list[list[int]]:
    """Draw random positions in the train corpus for each group that has too few negatives.

    Returns:
        For each group, positions in the order in which their passages are tried, so many that enough are usable; empty
        for a group that needs none, and with a teacher, as it did not score these passages.

    Raises:
        BadInput: The corpus is too small.
    """
    is_short = [mining.teacher_run is None and len(group.negatives) < mining.negatives for group in groups]
    corpus_size = sum(1 for _ in read_corpus(collection, "train")) if any(is_short) else 0
    positions: list[list[int]] = []
    for group, needs_fillers in zip(groups, is_short, strict=True):
        if not needs_fillers:
            positions.append([])
            continue
        # At worst, all positives, likely false negatives and negatives of the group are among those drawn.
        count = mining.negatives + len(group.pool.positives) + len(group.likely_false)
        if corpus_size < count:
            problem = f"a corpus of {corpus_size} passages is too small for {mining.negatives} negatives"
            raise BadInput(f"{problem}; lower mining.negatives")
        rng = random.Random(f"{mining.seed}:{group.pool.query_id}:fill")
        positions.append(rng.sample(range(corpus_size), count))
    return positions


def read_texts(
    collection: Path, run: Path, groups: list[MinedGroup], positions: set[int]
) -> tuple[dict[str, str], dict[int, str]]:
    """Read the texts of the groups' passages and of those at `positions`, in one pass over the train corpus.

    Returns:
        Passage id -> text, and position -> passage id.

    Raises:
        BadInput: A passage of a group is not in the corpus.
    """
    needed = {doc_id for group in groups for doc_id in [group.positive, *group.negatives]}
    texts, id_at = {}, {}
    for at, passage in enumerate(read_corpus(collection, "train")):
        if at in positions:
            id_at[at] = passage.doc_id
        if at in positions or passage.doc_id in needed:
            texts[passage.doc_id] = passage.full_text
    if unknown := needed - texts.keys():
        raise BadInput(f"{run}: passage {min(unknown)!r} is not in the train corpus; retrieve again")
    return texts, id_at


def _fill_up(group: MinedGroup, fillers: list[str], mining: MiningConfig) -> list[str]:
    """Return the negatives of a group: its hard ones, then as many usable fillers as are missing."""
    unusable = {*group.pool.positives, *group.likely_false, *group.negatives}
    usable = [doc_id for doc_id in fillers if doc_id not in unusable]
    return [*group.negatives, *usable][: mining.negatives]


def _line(
    group: MinedGroup, queries: Queries, texts: dict[str, str], negatives: list[str], mining: MiningConfig
) -> dict[str, Any]:
    line = {
        "query": queries[group.pool.query_id],
        "pos": [texts[group.positive]],
        "neg": [texts[doc_id] for doc_id in negatives],
        "prompt": PromptTemplate().instruction,  # FlagEmbedding's trainer expects it in each line
        "query_id": group.pool.query_id,
        "pos_id": [group.positive],
        "neg_id": negatives,
    }
    if mining.teacher_run is not None:
        scores = group.pool.scores
        line |= {
            "pos_scores": [scores[group.positive]],
            "neg_scores": [scores[doc_id] for doc_id in negatives],
        }
    return line
