"""Training groups: a query, one passage that answers it, and hard negatives from the first stage."""

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
    """What the groups of one query are drawn from, by passage ids."""

    query_id: str
    positives: list[str]  # in an order that knows nothing of them (by hash)
    hard: list[str]  # candidates at the ranks asked for, none of them relevant
    scores: dict[str, float]  # of all these: the teacher's, or the first stage's where it found them

    def scored(self) -> QueryPool:
        """Only what has a score; nothing where that leaves positives or candidates alone."""
        positives, hard = ([d for d in ids if d in self.scores] for ids in (self.positives, self.hard))
        return QueryPool(self.query_id, positives if hard else [], hard, self.scores)


@dataclass(frozen=True)
class MinedGroup:
    """One group, by passage ids."""

    choice: QueryPool
    positive: str
    negatives: list[str]  # hard ones; where they are too few, `mine` fills up from the corpus
    false: set[str]  # likely false negatives, dropped


def mine(collection: Path, run: Path, out: Path, mining: MiningConfig) -> None:
    """Write the groups of the train queries that `run` holds to `out`: JSON lines, sorted by query id.

    Keys are FlagEmbedding's (`query`, `pos`, `neg`: texts; `prompt`: upstream's instruction; with a teacher
    `pos_scores` and `neg_scores`) and the ids beside them (`query_id`, `pos_id`, `neg_id`). Where hard negatives
    are too few, any of the corpus fill up a group; with a teacher only what it scored stands in a group, which
    may then have fewer. Memory holds runs and groups with their texts, not the corpus.

    Raises BadInput where runs and collection do not fit, the corpus is too small for `mining.negatives`, or no
    group comes out.
    """
    queries = read_queries(collection)
    choices = read_choices(collection, queries, run, mining)
    groups = [group for choice in sample(choices, mining) for group in draw(choice, mining)][: mining.groups]
    if not groups:
        fix = "score train candidates and their positives" if mining.teacher_run else "retrieve for train"
        raise BadInput(f"{mining.teacher_run or run}: nothing to make a group of; {fix}")
    if mining.margin is not None:
        dropped = sum(len(group.false) for group in groups)
        log(f"mine: {dropped} likely false negatives dropped from {len(groups)} groups")
    places = fill(groups, collection, mining)
    texts, ids = read_texts(collection, run, groups, {place for some in places for place in some})
    lines = (
        _line(group, queries, texts, [ids[place] for place in some], mining)
        for group, some in zip(groups, places, strict=True)
    )
    write_jsonl(out, lines)


def read_choices(collection: Path, queries: Queries, run: Path, mining: MiningConfig) -> list[QueryPool]:
    """The queries of the run that have a relevant passage, sorted.

    With a teacher, of positives and candidates only those that it scored; queries left without one or the other
    are counted in the log.
    """
    qrels, ranked = read_qrels(collection, "train", queries), read_run(run)
    teacher = None if mining.teacher_run is None else read_run(Path(mining.teacher_run))
    first, last = mining.depth
    choices, unscored = [], 0
    for query_id in sorted(ranked):
        if query_id not in qrels:
            raise BadInput(f"{run}: query {query_id!r} is not judged for train; give the run of train")
        positives = sorted((doc_id for doc_id, grade in qrels[query_id].items() if grade > 0), key=hash_share)
        hard = [doc_id for doc_id, _ in ranked[query_id][first - 1 : last] if doc_id not in positives]
        scores = dict(ranked[query_id] if teacher is None else teacher.get(query_id, ()))
        choice = QueryPool(
            query_id, positives, hard, {d: scores[d] for d in [*positives, *hard] if d in scores}
        )
        if teacher is not None and positives:
            choice = choice.scored()
            unscored += not choice.positives
        if choice.positives:
            choices.append(choice)
    if unscored:
        log(
            f"mine: {unscored} queries make no group: the teacher scored no positive of them, or no candidate"
        )
    return choices


def sample(choices: list[QueryPool], mining: MiningConfig) -> list[QueryPool]:
    """All, or a seeded sample that is enough for `mining.groups`; in the same order."""
    enough = len(choices) if mining.groups is None else -(-mining.groups // mining.samples)
    if enough >= len(choices):
        return choices
    return sorted(random.Random(mining.seed).sample(choices, enough), key=lambda choice: choice.query_id)


def draw(choice: QueryPool, mining: MiningConfig) -> Iterator[MinedGroup]:
    """Up to `mining.samples` groups; positives take turns, and no candidate is a negative twice.

    Only the first may have fewer than `mining.negatives`. They depend on the seed and the query's id, not on
    other queries.
    """
    rng = random.Random(f"{mining.seed}:{choice.query_id}")
    left = choice.hard
    for number in range(mining.samples):
        positive = choice.positives[number % len(choice.positives)]
        false = likely_false(choice, positive, mining.margin)
        hard = [doc_id for doc_id in left if doc_id not in false]
        if len(hard) < (mining.negatives if number else mining.teacher_run is not None):
            return
        negatives = rng.sample(hard, min(mining.negatives, len(hard)))
        yield MinedGroup(choice, positive, negatives, false)
        left = [doc_id for doc_id in left if doc_id not in negatives]


def likely_false(choice: QueryPool, positive: str, margin: float | None) -> set[str]:
    """The candidates that score above the positive's score less the margin.

    None without a margin, and none where the first stage did not find the positive: nothing can be compared.
    """
    if margin is None or positive not in choice.scores:
        return set()
    return {doc_id for doc_id in choice.hard if choice.scores[doc_id] > choice.scores[positive] - margin}


def fill(groups: list[MinedGroup], collection: Path, mining: MiningConfig) -> list[list[int]]:
    """For each group places in the train corpus, in the order to try them; enough, whatever stands there.

    None where a group is full, or where a teacher would have to have scored what stands there.
    """
    short = [mining.teacher_run is None and len(group.negatives) < mining.negatives for group in groups]
    size = sum(1 for _ in read_corpus(collection, "train")) if any(short) else 0
    places: list[list[int]] = []
    for group, is_short in zip(groups, short, strict=True):
        never = len(group.choice.positives) + len(group.false)
        if is_short and size < mining.negatives + never:
            problem = f"a corpus of {size} passages is too small for {mining.negatives} negatives"
            raise BadInput(f"{problem}; lower mining.negatives")
        rng = random.Random(f"{mining.seed}:{group.choice.query_id}:fill")
        places.append(rng.sample(range(size), mining.negatives + never) if is_short else [])
    return places


def read_texts(
    collection: Path, run: Path, groups: list[MinedGroup], places: set[int]
) -> tuple[dict[str, str], dict[int, str]]:
    """Texts by passage id, and passage ids by place in the train corpus, from one reading of it."""
    needed = {doc_id for group in groups for doc_id in [group.positive, *group.negatives]}
    texts, ids = {}, {}
    for place, passage in enumerate(read_corpus(collection, "train")):
        if place in places:
            ids[place] = passage.doc_id
        if place in places or passage.doc_id in needed:
            texts[passage.doc_id] = passage.full_text
    if unknown := needed - texts.keys():
        raise BadInput(f"{run}: passage {min(unknown)!r} is not in the train corpus; retrieve again")
    return texts, ids


def _line(
    group: MinedGroup, queries: Queries, texts: dict[str, str], others: list[str], mining: MiningConfig
) -> dict[str, Any]:
    never = {*group.choice.positives, *group.false, *group.negatives}
    others = [doc_id for doc_id in others if doc_id not in never]
    negatives = [*group.negatives, *others][: mining.negatives]
    line = {
        "query": queries[group.choice.query_id],
        "pos": [texts[group.positive]],
        "neg": [texts[doc_id] for doc_id in negatives],
        "prompt": PromptTemplate().instruction,  # upstream's trainer asks for it in each line
        "query_id": group.choice.query_id,
        "pos_id": [group.positive],
        "neg_id": negatives,
    }
    if mining.teacher_run is not None:
        scores = group.choice.scores
        line |= {"pos_scores": [scores[group.positive]], "neg_scores": [scores[d] for d in negatives]}
    return line
