"""Write the first stage's candidates: by BM25 over the corpus of a split, or from a run made elsewhere."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

from lwr.common.errors import BadInput
from lwr.common.progress import log
from lwr.config.data import FirstStageConfig
from lwr.data import bm25
from lwr.formats.beir import Qrels, Queries, Split, read_corpus, read_qrels, read_queries
from lwr.formats.trec import Run, best_first, read_run, read_run_tag, write_run


def retrieve(collection: Path, out: Path, split: Split, first_stage: FirstStageConfig) -> None:
    """Write a run of the judged queries of a split, with at most `first_stage.depth` candidates each.

    The candidates come from the file that `first_stage.runs` names for the split, or else from BM25. A query without
    candidates has no line; the number of such queries is logged. Ties are broken by `lwr.formats.trec.best_first`.

    Raises:
        BadInput: The corpus has no words, no query has a candidate, or the given run does not fit the collection.
    """
    queries = read_queries(collection)
    qrels = read_qrels(collection, split, queries)
    judged = {query_id: queries[query_id] for query_id in sorted(qrels)}
    if split in first_stage.runs:
        given = Path(first_stage.runs[split])
        run, tag = select_from_run(given, collection, split, qrels, first_stage), read_run_tag(given)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        # One more than the run holds, in place of a passage that is the query.
        found = search_corpus(collection, split, judged, first_stage, first_stage.depth + 1, out.parent)
        run, tag = select_candidates(found, qrels, split, first_stage), "bm25"
    _check_candidates(run, list(judged), collection, split, first_stage)
    write_run(out, run, tag)


def select_candidates(found: Run, qrels: Qrels, split: Split, first_stage: FirstStageConfig) -> Run:
    """Return the best candidates of each query, at most `first_stage.depth`."""
    kept = found if first_stage.keep_same_id else drop_same_id(found, qrels, split)
    return {query_id: best_first(ranked)[: first_stage.depth] for query_id, ranked in kept.items()}


def drop_same_id(run: Run, qrels: Qrels, split: Split) -> Run:
    """Drop each candidate whose id is that of its query, unless it is judged relevant, and log their number.

    Where a query is a passage of the corpus, as in ArguAna and Quora, it would be its own best candidate. BEIR's
    evaluation drops these as well (`ignore_identical_ids` in beir/retrieval/evaluation.py). The exception is for
    collections that number queries and passages alike.
    """
    kept: Run = {}
    dropped: list[str] = []
    for query_id, ranked in run.items():
        is_answer = qrels[query_id].get(query_id, 0) > 0
        others = [(doc_id, score) for doc_id, score in ranked if is_answer or doc_id != query_id]
        if len(others) < len(ranked):
            dropped.append(query_id)
        if others:
            kept[query_id] = others
    if dropped:
        log(
            f"retrieve: {len(dropped)} candidates of {split} have the id of their query, such as {dropped[0]!r}, and "
            "are left out; first_stage.keep_same_id keeps them"
        )
    return kept


def _check_candidates(
    run: Run, query_ids: list[str], collection: Path, split: Split, first_stage: FirstStageConfig
) -> None:
    """Log the number of queries without a candidate; refuse a run in which no query has one."""
    without = [query_id for query_id in query_ids if query_id not in run]
    if not without:
        return
    if not run:
        given = first_stage.runs.get(split)
        reason = (
            f"{given} ranks none but the queries themselves"
            if given
            else "BM25 splits words at spaces and knows English stop words and word endings alone"
        )
        raise BadInput(
            f"{collection}: none of the {len(query_ids)} queries of {split} has a candidate: {reason}; give a run of "
            f"your own under first_stage.runs.{split}"
        )
    examples = ", ".join(map(repr, without[:3]))
    log(
        f"retrieve: {len(without)} of the {len(query_ids)} queries of {split} have no candidate, such as {examples}; "
        "no reranker can answer them"
    )


def search_corpus(
    collection: Path,
    split: Split,
    queries: Queries,
    first_stage: FirstStageConfig,
    top_k: int,
    scratch: Path,
) -> Run:
    """Search the corpus of a split by BM25; candidates share at least a word with their query.

    Args:
        collection: The collection.
        split: Whose corpus to search.
        queries: Query id -> text.
        first_stage: Parameters of BM25.
        top_k: Candidates per query.
        scratch: Folder for a temporary file with the postings of the queries' words.

    Raises:
        BadInput: The corpus has no words.
    """
    words = {query_id: bm25.tokenize(text) for query_id, text in queries.items()}
    distinct = sorted({word for found in words.values() for word in found})
    vocabulary = {word: number for number, word in enumerate(distinct)}
    numbers = {query_id: [vocabulary[word] for word in found] for query_id, found in words.items()}
    texts = ((passage.doc_id, passage.full_text) for passage in read_corpus(collection, split))
    with TemporaryFile(dir=scratch) as file:
        index = bm25.build_index(texts, vocabulary, file)
        if not index.word_count:
            raise BadInput(f"{collection}: the corpus of {split} has no words to search for")
        return bm25.search(index, numbers, top_k, first_stage.k1, first_stage.b)


def select_from_run(
    given: Path, collection: Path, split: Split, qrels: Qrels, first_stage: FirstStageConfig
) -> Run:
    """Take the candidates of the judged queries from a run made elsewhere.

    Other queries of the run are ignored, such as those left out by a sample of the split; their number is logged.

    Raises:
        BadInput: The run has none of the queries, or ranks a passage that is not in the corpus of the split.
    """
    complete = read_run(given)
    found = {query_id: complete[query_id] for query_id in sorted(qrels) if query_id in complete}
    if not found:
        raise BadInput(f"{given}: has none of the {len(qrels)} queries of {split}; give a run of {split}")
    run = select_candidates(found, qrels, split, first_stage)
    missing = {doc_id for ranked in run.values() for doc_id, _ in ranked}
    for passage in read_corpus(collection, split):
        missing.discard(passage.doc_id)
    if missing:
        raise BadInput(
            f"{given}: {len(missing)} passages are not in the corpus of {split}, such as {min(missing)!r}; "
            "give a run over this corpus"
        )
    log(
        f"retrieve: {given}: {len(found)} of the {len(qrels)} queries of {split}, "
        f"{len(complete) - len(found)} other queries ignored"
    )
    return run
