"""A PyTerrier transformer: rank the candidates of each query by an exit, a cascade, or within a budget of time.

PyTerrier (`pip install python-terrier`) is not among the dependencies of lwr. This transformer needs no Java.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyterrier as pt

from lwr.common.errors import BadInput
from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker


class LayerwiseTransformer(pt.Transformer):
    """Rank the passages of each query, in a frame with the columns qid, query, docno and a column of texts.

    The score is that of the exit; in a cascade it is the negated rank, as scores of different exits cannot be compared.
    Fused scores, and a cascade that begins with the first stage, read the column `score`.

    Example:
        >>> four = LayerwiseTransformer(LayerwiseReranker.from_pretrained("path/to/model"), layer=4)
        >>> (bm25 % 100 >> pt.text.get_text(dataset, "text") >> four).search("read a csv file")
    """

    def __init__(self, reranker: LayerwiseReranker, text_column: str = "text", **how: Any):
        """Set the reranker and how it ranks.

        Args:
            reranker: The model, in evaluation mode.
            text_column: The column of the passages.
            how: Arguments of `LayerwiseReranker.rank`: layer, cascade, fused, compression, budget_ms, instruction, …

        Raises:
            BadInput: An argument is what the transformer itself gives to `rank`.
        """
        super().__init__()
        if taken := {"query", "documents", "first_stage", "top_k", "return_documents"} & how.keys():
            raise BadInput(f"{min(taken)}: the transformer reads it from the frame; cut rankings by `% 10`")
        self.reranker, self.text_column, self.how = reranker, text_column, how

    def transform(self, results: pd.DataFrame) -> pd.DataFrame:
        """Return the rows with `score` and `rank` (from 0), queries in their order, the best passage first.

        Raises:
            InputValidationError: A column is missing.
            ValueError: As `LayerwiseReranker.rank`.
        """
        pt.validate.columns(results, includes=["qid", "query", "docno", self.text_column])
        ranked = [self._rank(of_query) for _, of_query in results.groupby("qid", sort=False)]
        if not ranked:
            return results.assign(score=pd.Series(dtype=float), rank=pd.Series(dtype=int))
        return pd.concat(ranked, ignore_index=True)

    def _rank(self, of_query: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of one query, ranked."""
        schedule = Schedule.requested(
            self.how.get("layer"), self.how.get("cascade"), self.reranker.exits[-1], None
        )
        reads_first_stage = schedule.uses_first_stage(self.how.get("fused", False)) and "score" in of_query
        ranking = self.reranker.rank(
            of_query["query"].iloc[0],
            of_query[self.text_column],
            first_stage=of_query["score"].to_numpy() if reads_first_stage else None,
            return_documents=False,
            **self.how,
        )
        ranks = range(len(ranking))
        scores = [-rank for rank in ranks] if schedule.keep else [entry["score"] for entry in ranking]
        order = [entry["corpus_id"] for entry in ranking]
        return of_query.iloc[order].assign(score=scores, rank=list(ranks))
