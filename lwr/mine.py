"""Training groups: a query, one passage that answers it, and hard negatives from the first stage."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from lwr.beir import Qrels, read_corpus, read_qrels, read_queries
from lwr.config import Mining
from lwr.files import BadInput, hash_share, write_jsonl
from lwr.trec import Run, read_run


@dataclass(frozen=True)
class Group:
    query_id: str
    positive: str  # passage ids
    negatives: list[str]


def mine(collection: Path, run: Path, out: Path, mining: Mining) -> None:
    """Write the groups of the train queries that `run` holds to `out`: JSON lines, sorted by query id.

    Keys are FlagEmbedding's (`query`, `pos`, `neg`: texts) and the ids beside them (`query_id`, `pos_id`,
    `neg_id`). Raises BadInput where run and collection do not fit, or the corpus is too small for
    `mining.negatives`.
    """
    queries = read_queries(collection)
    qrels = read_qrels(collection, "train", queries)
    ranked = read_run(run)
    for query_id in ranked:
        if query_id not in qrels:
            raise BadInput(f"{run}: query {query_id!r} is not judged for train; give the run of train")
    doc_ids = [passage.doc_id for passage in read_corpus(collection, "train")]
    groups = [draw(query_id, ranked, qrels, doc_ids, mining) for query_id in sample(ranked, qrels, mining)]
    needed = {doc_id for group in groups for doc_id in [group.positive, *group.negatives]}
    texts = {p.doc_id: p.full_text for p in read_corpus(collection, "train") if p.doc_id in needed}
    if unknown := needed - texts.keys():
        raise BadInput(f"{run}: passage {min(unknown)!r} is not in the train corpus; retrieve again")
    write_jsonl(
        out,
        (
            {
                "query": queries[group.query_id],
                "pos": [texts[group.positive]],
                "neg": [texts[doc_id] for doc_id in group.negatives],
                "query_id": group.query_id,
                "pos_id": [group.positive],
                "neg_id": group.negatives,
            }
            for group in groups
        ),
    )


def sample(ranked: Run, qrels: Qrels, mining: Mining) -> list[str]:
    """The queries that make a group, sorted: all with a relevant passage, or a seeded sample of those."""
    query_ids = sorted(query_id for query_id in ranked if positives(qrels[query_id]))
    if mining.groups is None or mining.groups >= len(query_ids):
        return query_ids
    return sorted(random.Random(mining.seed).sample(query_ids, mining.groups))


def positives(judged: dict[str, int]) -> list[str]:
    """Ids of the relevant passages, in an order that knows nothing of them (by hash)."""
    return sorted((doc_id for doc_id, grade in judged.items() if grade > 0), key=hash_share)


def draw(query_id: str, ranked: Run, qrels: Qrels, doc_ids: list[str], mining: Mining) -> Group:
    """One group: negatives from the ranks of `mining.depth`; where these are too few, any of the corpus.

    No relevant passage is a negative. A query's group depends on the seed and its id, not on other queries.
    """
    rng = random.Random(f"{mining.seed}:{query_id}")
    relevant = positives(qrels[query_id])
    first, last = mining.depth
    hard = [doc_id for doc_id, _ in ranked[query_id][first - 1 : last] if doc_id not in relevant]
    negatives = rng.sample(hard, min(mining.negatives, len(hard)))
    if len(doc_ids) < mining.negatives + len(relevant):
        problem = f"a corpus of {len(doc_ids)} passages is too small for {mining.negatives} negatives"
        raise BadInput(f"{problem}; lower mining.negatives")
    while len(negatives) < mining.negatives:
        doc_id = rng.choice(doc_ids)
        if doc_id not in relevant and doc_id not in negatives:
            negatives.append(doc_id)
    return Group(query_id, relevant[0], negatives)
