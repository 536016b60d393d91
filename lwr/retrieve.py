"""The first stage: BM25 over the corpus of a split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import bm25s
import numpy as np
import Stemmer

from lwr.beir import read_corpus, read_qrels, read_queries
from lwr.config import FirstStage, Split
from lwr.files import BadInput
from lwr.trec import best_first, write_run


def retrieve(collection: Path, out: Path, split: Split, first_stage: FirstStage) -> None:
    """Write the run of a split's judged queries to `out`.

    Candidates score above 0 and are at most `first_stage.depth`; a query that shares no word with any passage
    has no line. Ties: `lwr.trec.best_first`, also for who is in the last place. Raises BadInput.
    """
    queries = read_queries(collection)
    query_ids = sorted(read_qrels(collection, split, queries))
    doc_ids: list[str] = []

    def texts() -> Iterator[str]:
        for passage in read_corpus(collection, split):
            doc_ids.append(passage.doc_id)
            yield passage.full_text

    corpus_words = words(texts())
    if not any(corpus_words):
        raise BadInput(f"{collection}: the corpus of {split} holds no words to search for")
    index = bm25s.BM25(method="lucene", k1=first_stage.k1, b=first_stage.b)
    index.index(corpus_words, show_progress=False)
    run = {}
    for query_id, query in zip(query_ids, words(queries[query_id] for query_id in query_ids), strict=True):
        scores = index.get_scores_from_ids(index.get_tokens_ids(query))
        found = candidates(scores, first_stage.depth)
        run[query_id] = best_first((doc_ids[i], scores[i]) for i in found)[: first_stage.depth]
    write_run(out, run, tag="bm25")


def words(texts: Iterable[str]) -> list[list[str]]:
    """Lower-cased words of two letters and more, without English stop words, stemmed (Snowball English)."""
    stemmer = Stemmer.Stemmer("english")
    return bm25s.tokenize(texts, stopwords="english", stemmer=stemmer, return_ids=False, show_progress=False)


def candidates(scores: np.ndarray, depth: int) -> np.ndarray:
    """Positions of the `depth` best scores and of all equal to the last of them, unsorted; none of 0."""
    found = np.flatnonzero(scores > 0)
    if len(found) > depth:
        last = np.partition(scores[found], -depth)[-depth]
        found = found[scores[found] >= last]
    return found
