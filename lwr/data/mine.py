"""Mine training groups: a query, a passage that answers it, and hard negatives from the first stage.

The negatives of a group are drawn from the first-stage candidates of its query. If these are too few, random passages
of the train corpus fill up the group. A passage is not a negative if it is the query itself (its id is the query's)
or if its text is that of a positive, of a likely false negative or of another negative of the group; texts are
compared with whitespace normalised. The corpus may not fit into memory, so a first pass over it keeps 8 bytes per
passage, a digest of its text, by which random passages are chosen; a second pass reads the texts of the groups.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lwr.common.errors import BadInput
from lwr.common.hashing import hash_share
from lwr.common.json_lines import write_jsonl
from lwr.common.progress import log, show_progress
from lwr.config.data.dataset import MiningConfig
from lwr.config.model import PromptTemplate
from lwr.formats.beir import Queries, answerable_queries, read_corpus, read_qrels, read_queries
from lwr.formats.trec import read_run


@dataclass(frozen=True)
class QueryPool:
    """The passages from which the groups of one query are drawn, by their ids."""

    query_id: str
    positives: list[str]  # ordered by hash, so the order is independent of grades and ranks
    relevant: list[str]  # the positives, and with a teacher also those that it did not score
    candidates: list[str]  # found by the first stage at the ranks of the settings, and not relevant
    scores: dict[str, float]  # by the teacher, or else by the first stage for what it found

    def only_scored(self) -> QueryPool:
        """Return the pool without the passages that have no score; it has no positives if no candidate remains."""
        positives = [doc_id for doc_id in self.positives if doc_id in self.scores]
        candidates = [doc_id for doc_id in self.candidates if doc_id in self.scores]
        return replace(self, positives=positives if candidates else [], candidates=candidates)


@dataclass(frozen=True)
class TrainCorpus:
    """The digests of the texts of the train corpus, in its order, and the positions of some passages in it."""

    digests: array[int]  # int64
    positions: dict[str, int]  # passage id -> position

    def digest(self, doc_id: str) -> int | str:
        """Return the digest of a passage's text; its id, which equals no digest, if the corpus lacks it."""
        at = self.positions.get(doc_id)
        return doc_id if at is None else self.digests[at]


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
    Memory holds the runs, the texts of the groups, and 8 bytes per passage of the corpus.

    Raises:
        BadInput: The run does not fit the collection, the corpus is too small for `mining.negatives`, or no group can
            be made.
    """
    queries = read_queries(collection)
    pools = sample_pools(read_query_pools(collection, queries, run, mining), mining)
    corpus = read_train_corpus(collection, pools)
    pools = drop_same_texts(pools, corpus)
    drawn_from = show_progress(pools, len(pools), "mine: draw", "queries", only_if_long=True)
    groups = [group for pool in drawn_from for group in draw_groups(pool, mining)][: mining.groups]
    if not groups:
        fix = "score train candidates and their positives" if mining.teacher_run else "retrieve for train"
        raise BadInput(f"{mining.teacher_run or run}: no group can be made; {fix}")
    if mining.margin is not None:
        dropped = sum(len(group.likely_false) for group in groups)
        log(f"mine: {dropped} likely false negatives dropped from {len(groups)} groups")
    fillers = draw_fillers(groups, corpus, mining)
    texts, id_at = read_texts(collection, run, groups, {at for drawn in fillers for at in drawn})
    lines = (
        _line(group, queries, texts, [*group.negatives, *(id_at[at] for at in drawn)], mining)
        for group, drawn in zip(groups, fillers, strict=True)
    )
    write_jsonl(out, show_progress(lines, len(groups), "mine: write", "groups", only_if_long=True))


def read_query_pools(collection: Path, queries: Queries, run: Path, mining: MiningConfig) -> list[QueryPool]:
    """Read the pools of the queries of `run` that have a relevant passage, sorted by query id.

    With a teacher, pools contain only passages that it scored. A query whose positives or candidates it did not score
    has no pool; the number of such queries is logged, and so are those of queries that `run` lacks, and of candidates
    with the id of their query.

    Raises:
        BadInput: The run ranks a query that is not judged for train.
    """
    qrels, ranked = read_qrels(collection, "train", queries), read_run(run)
    teacher = None if mining.teacher_run is None else read_run(Path(mining.teacher_run))
    first_rank, last_rank = mining.depth
    pools, unscored, same_id = [], 0, 0
    for query_id in show_progress(
        sorted(ranked), len(ranked), "mine: candidates", "queries", only_if_long=True
    ):
        if query_id not in qrels:
            raise BadInput(f"{run}: query {query_id!r} is not judged for train; give the run of train")
        positives = sorted((doc_id for doc_id, grade in qrels[query_id].items() if grade > 0), key=hash_share)
        found = [doc_id for doc_id, _ in ranked[query_id][first_rank - 1 : last_rank]]
        candidates = [doc_id for doc_id in found if doc_id not in positives and doc_id != query_id]
        same_id += query_id in found and query_id not in positives
        scored = dict(ranked[query_id] if teacher is None else teacher.get(query_id, ()))
        scores = {doc_id: scored[doc_id] for doc_id in [*positives, *candidates] if doc_id in scored}
        pool = QueryPool(query_id, positives, positives, candidates, scores)
        if teacher is not None and positives:
            pool = pool.only_scored()
            unscored += 0 if pool.positives else 1
        if pool.positives:
            pools.append(pool)
    answerable = answerable_queries(qrels)
    if without := sorted(answerable.keys() - ranked.keys()):
        log(
            f"mine: {len(without)} of the {len(answerable)} train queries make no group, such as "
            f"{without[0]!r}: they have no candidate in {run}"
        )
    if unscored:
        log(
            f"mine: {unscored} queries make no group: the teacher scored none of their positives, or no candidate"
        )
    if same_id:
        log(f"mine: {same_id} candidates have the id of their query and are left out")
    return pools


def sample_pools(pools: list[QueryPool], mining: MiningConfig) -> list[QueryPool]:
    """Return all pools, or a seeded sample that suffices for `mining.groups`, in the same order."""
    enough = len(pools) if mining.groups is None else -(-mining.groups // mining.samples)
    if enough >= len(pools):
        return pools
    return sorted(random.Random(mining.seed).sample(pools, enough), key=lambda pool: pool.query_id)


def read_train_corpus(collection: Path, pools: list[QueryPool]) -> TrainCorpus:
    """Read the digests of the train corpus, and the positions of the passages that pools or their queries name."""
    named = {doc_id for pool in pools for doc_id in [pool.query_id, *pool.relevant, *pool.candidates]}
    corpus = TrainCorpus(array("q"), {})
    for at, passage in enumerate(read_corpus(collection, "train")):
        corpus.digests.append(_digest(passage.full_text))
        if passage.doc_id in named:
            corpus.positions[passage.doc_id] = at
    return corpus


def _digest(text: str) -> int:
    """Return 64 bits that texts share which differ in whitespace alone."""
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def drop_same_texts(pools: list[QueryPool], corpus: TrainCorpus) -> list[QueryPool]:
    """Drop candidates with the text of a relevant passage or of a better candidate, and log their numbers."""
    kept, like_positive, like_candidate = [], 0, 0
    for pool in show_progress(pools, len(pools), "mine: compare texts", "queries", only_if_long=True):
        relevant = {corpus.digest(doc_id) for doc_id in pool.relevant}
        candidates: dict[int | str, str] = {}
        for doc_id in pool.candidates:
            digest = corpus.digest(doc_id)
            like_positive += digest in relevant
            like_candidate += digest in candidates
            if digest not in relevant:
                candidates.setdefault(digest, doc_id)
        kept.append(replace(pool, candidates=list(candidates.values())))
    for count, whose in [(like_positive, "a positive"), (like_candidate, "a better candidate")]:
        if count:
            log(f"mine: {count} candidates have the text of {whose} of their query and are left out")
    return kept


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


def draw_fillers(groups: list[MinedGroup], corpus: TrainCorpus, mining: MiningConfig) -> list[list[int]]:
    """Draw random passages of the train corpus for each group that has too few negatives.

    Passages with the text of a positive, of a likely false negative or of another negative are passed over; their
    number is logged.

    Returns:
        For each group, positions in the corpus; empty for a group that needs none, and with a teacher, as it did not
        score these passages.

    Raises:
        BadInput: The corpus is too small, or too few of its texts differ.
    """
    fillers: list[list[int]] = []
    skipped = 0
    for group in show_progress(groups, len(groups), "mine: fill up", "groups", only_if_long=True):
        if mining.teacher_run is not None or len(group.negatives) == mining.negatives:
            fillers.append([])
            continue
        drawn, skipped_here = _draw_fillers(group, corpus, mining)
        fillers.append(drawn)
        skipped += skipped_here
    if skipped:
        log(f"mine: {skipped} random passages have the text of a passage of their group and are left out")
    return fillers


def _draw_fillers(group: MinedGroup, corpus: TrainCorpus, mining: MiningConfig) -> tuple[list[int], int]:
    """Return the positions of a group's fillers, and how many were passed over because of their texts."""
    size, needed = len(corpus.digests), mining.negatives - len(group.negatives)
    # At worst, all positives, likely false negatives and negatives of the group are among those drawn.
    count = mining.negatives + len(group.pool.positives) + len(group.likely_false)
    if size < count:
        problem = f"a corpus of {size} passages is too small for {mining.negatives} negatives"
        raise BadInput(f"{problem}; lower mining.negatives")
    of_group = [*group.pool.positives, *group.likely_false, *group.negatives]
    at_group = {corpus.positions.get(doc_id) for doc_id in [group.pool.query_id, *of_group]}
    digests = {corpus.digest(doc_id) for doc_id in of_group}
    while True:
        rng = random.Random(f"{mining.seed}:{group.pool.query_id}:fill")
        drawn = (at for at in rng.sample(range(size), count) if at not in at_group)
        fillers, skipped = _take_distinct(drawn, needed, corpus, digests)
        if len(fillers) == needed:
            return fillers, skipped
        if count == size:
            raise BadInput(
                f"query {group.pool.query_id!r}: only {len(fillers) + len(group.negatives)} texts of the corpus differ "
                f"from its positives and from each other, too few for {mining.negatives} negatives; lower "
                "mining.negatives"
            )
        count = min(2 * count, size)  # many passages share a text


def _take_distinct(
    drawn: Iterable[int], needed: int, corpus: TrainCorpus, digests: Collection[int | str]
) -> tuple[list[int], int]:
    """Take the first `needed` positions whose texts differ from `digests` and each other; count those passed over."""
    taken: list[int] = []
    seen, skipped = set(digests), 0
    for at in drawn:
        if len(taken) == needed:
            break
        if corpus.digests[at] in seen:
            skipped += 1
            continue
        seen.add(corpus.digests[at])
        taken.append(at)
    return taken, skipped


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
