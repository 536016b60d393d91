"""A look at dev while training: some queries ranked by every exit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lwr.common.errors import BadInput
from lwr.evaluation.measures import measures_per_query, rankings
from lwr.formats.beir import Qrels, read_candidate_texts, read_qrels, read_queries, sample_queries
from lwr.formats.trec import read_run
from lwr.model.prompt import Row
from lwr.model.reranker import LayerwiseReranker


@dataclass(frozen=True)
class DevEvaluation:
    """Some dev queries with their candidates, tokenised once, to rank while training."""

    rows: list[Row]
    pairs: list[tuple[str, str]]  # (query id, passage id) of each row
    qrels: Qrels

    def ndcg(self, reranker: LayerwiseReranker, precision: str) -> dict[int, float]:
        """nDCG@10 of each exit, the mean over queries."""
        training = reranker.training
        reranker.eval()
        scores = reranker.score_rows(self.rows, reranker.exits, precision=precision)
        reranker.train(training)
        table = pd.DataFrame(self.pairs, columns=["query_id", "doc_id"])
        return {
            k: self._mean_ndcg(table.assign(score=by_layer))
            for k, by_layer in zip(reranker.exits, scores, strict=True)
        }

    def _mean_ndcg(self, table: pd.DataFrame) -> float:
        return float(measures_per_query(self.qrels, rankings(table, "score"), ["nDCG@10"])["value"].mean())


def read_dev_evaluation(
    reranker: LayerwiseReranker, collection: Path, dev_run: Path, queries: int
) -> DevEvaluation:
    """The candidates of at most `queries` dev queries, a sample by hash. Raises BadInput."""
    texts, run = read_queries(collection), read_run(dev_run)
    qrels = read_qrels(collection, "dev", texts)
    if unknown := run.keys() - qrels.keys():
        raise BadInput(f"{dev_run}: query {min(unknown)!r} is not judged for dev; give the run of dev")
    sample = sample_queries(run, queries)
    candidates = {query: run[query] for query in sample}
    passages = read_candidate_texts(collection, "dev", candidates)
    pairs = [(query, doc) for query in sample for doc, _ in candidates[query]]
    rows = reranker.prompt.rows([(texts[query], passages[doc]) for query, doc in pairs])
    return DevEvaluation(rows, pairs, {query: qrels[query] for query in sample})
