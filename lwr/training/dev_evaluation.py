"""Evaluate every exit on a sample of dev queries during training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lwr.common.errors import BadInput
from lwr.evaluation.measures import measures_per_query, rankings
from lwr.formats.beir import Qrels, read_candidate_texts, read_qrels, read_queries, sample_queries
from lwr.formats.trec import read_run
from lwr.model.prompt import Row
from lwr.model.reranker import LayerwiseReranker


@dataclass(frozen=True)
class DevEvaluation:
    """A sample of dev queries with their candidates, tokenised once and scored at every evaluation."""

    rows: list[Row]
    pairs: list[tuple[str, str]]  # (query id, passage id) of each row
    qrels: Qrels
    measure: str = "nDCG@10"  # as ir_measures names it

    def evaluate(
        self,
        reranker: LayerwiseReranker,
        on_scored: Callable[[int], object] | None = None,
    ) -> dict[int, float]:
        """Return the mean of the measure of each exit, by layer; the reranker's mode (training or not) is restored.

        After each batch, `on_scored` is called with its number of pairs.
        """
        training = reranker.training
        reranker.eval()
        # [exits, rows]
        scores = reranker.score_rows(self.rows, reranker.exits, on_scored=on_scored)
        reranker.train(training)
        return {
            layer: self._mean(exit_scores) for layer, exit_scores in zip(reranker.exits, scores, strict=True)
        }

    def _mean(self, scores: np.ndarray) -> float:
        """Return the mean over queries of the measure for the scores of one exit, float32 [rows]."""
        table = pd.DataFrame(self.pairs, columns=["query_id", "doc_id"]).assign(score=scores)
        per_query = measures_per_query(self.qrels, rankings(table, "score"), [self.measure])
        return float(per_query["value"].mean())


def read_dev_evaluation(
    reranker: LayerwiseReranker, collection: Path, dev_run: Path, max_queries: int, measure: str = "nDCG@10"
) -> DevEvaluation:
    """Read and tokenise the candidates of dev queries.

    Args:
        reranker: The model whose prompt is used.
        collection: Folder in BEIR layout.
        dev_run: TREC run of the dev queries.
        max_queries: If the run has more queries, a sample of this size is chosen by the hash of their ids. Queries
            that the run lacks are left out: they have the same value at every exit, 0.
        measure: The measure, as ir_measures names it.

    Raises:
        BadInput: The files do not fit together.
    """
    queries, run = read_queries(collection), read_run(dev_run)
    qrels = read_qrels(collection, "dev", queries)
    if unknown := run.keys() - qrels.keys():
        raise BadInput(f"{dev_run}: query {min(unknown)!r} is not judged for dev; give the run of dev")
    sample = sample_queries(run, max_queries)
    candidates = {query_id: run[query_id] for query_id in sample}
    passages = read_candidate_texts(collection, "dev", candidates)
    pairs = [(query_id, doc_id) for query_id, ranked in candidates.items() for doc_id, _ in ranked]
    rows = reranker.prompt.rows([(queries[query_id], passages[doc_id]) for query_id, doc_id in pairs])
    return DevEvaluation(rows, pairs, {query_id: qrels[query_id] for query_id in sample}, measure)
