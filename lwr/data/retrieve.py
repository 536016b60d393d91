"""Write the first stage's candidates: by BM25, by embeddings or by both, or from a run made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from lwr.common.errors import BadInput
from lwr.common.progress import format_share, log
from lwr.config.data.first_stage import Bm25Section, EmbeddingFirstStage, FirstStage
from lwr.data import bm25, dense
from lwr.data.words import tokenizer_of
from lwr.formats.beir import Qrels, Queries, Split, read_corpus, read_qrels, read_queries
from lwr.formats.trec import Run, best_first, read_run, read_run_tag, write_run

RANK_OFFSET = 60
"""The constant of reciprocal rank fusion, as in Cormack et al. 2009."""
MOST = 0.5
"""Larger shares of queries without a candidate are an error."""


def retrieve(
    collection: Path, out: Path, split: Split, first_stage: FirstStage, embeddings: Path | None = None
) -> None:
    """Write a run of the judged queries of a split, with at most `first_stage.depth` candidates each.

    The candidates come from the file that `first_stage.runs` names for the split, or else from the retriever. A query
    without candidates has no line; the number of such queries is logged. Ties are broken by
    `lwr.formats.trec.best_first`.

    Args:
        collection: Folder in BEIR layout.
        out: The file to write.
        split: The split.
        first_stage: The retriever and its settings.
        embeddings: Folder that `lwr embed` wrote, for a retriever that needs it.

    Raises:
        BadInput: The corpus has no words, most queries have no candidate, or the given run or the embeddings do not
            fit the collection.
    """
    queries = read_queries(collection)
    qrels = read_qrels(collection, split, queries)
    judged = {query_id: queries[query_id] for query_id in sorted(qrels)}
    if split in first_stage.runs:
        given = Path(first_stage.runs[split])
        run, tag = select_from_run(given, collection, split, qrels, first_stage), read_run_tag(given)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        run = search_corpus(collection, split, qrels, judged, first_stage, embeddings, scratch=out.parent)
        tag = first_stage.kind
    _check_candidates(run, list(judged), collection, split, first_stage)
    write_run(out, run, tag)


def search_corpus(
    collection: Path,
    split: Split,
    qrels: Qrels,
    queries: Queries,
    first_stage: FirstStage,
    embeddings: Path | None,
    scratch: Path,
) -> Run:
    """Search the corpus of a split by the retriever of a first stage.

    Args:
        collection: Folder in BEIR layout.
        split: Whose corpus to search.
        qrels: The judgements of the split.
        queries: Query id -> text, of its judged queries.
        first_stage: The retriever and its settings.
        embeddings: Folder that `lwr embed` wrote, for a retriever that needs it.
        scratch: Folder for a temporary file.

    Raises:
        BadInput: The corpus has no words, or the embeddings are missing, not needed, or of something else.
    """
    needs_embeddings = isinstance(first_stage, EmbeddingFirstStage)
    if embeddings is None and needs_embeddings:
        raise BadInput(
            f"first_stage.kind {first_stage.kind} needs the embeddings of {collection}; make them by `lwr embed`, and "
            "give them by --embeddings"
        )
    if embeddings is not None and not needs_embeddings:
        raise BadInput(f"first_stage.kind {first_stage.kind} reads no embeddings; leave out --embeddings")
    top_k = first_stage.depth + 1  # one more than a run holds, in place of a passage that is the query
    found: list[Run] = []
    if isinstance(first_stage, Bm25Section):
        found.append(search_by_words(collection, split, queries, first_stage, top_k, scratch))
    if isinstance(first_stage, EmbeddingFirstStage) and embeddings is not None:
        of_collection = dense.read_embeddings_of(embeddings, collection, first_stage)
        found.append(dense.search(of_collection, collection, split, queries, top_k))
    lists = [select_candidates(run, qrels, split, first_stage) for run in found]
    return lists[0] if len(lists) == 1 else fuse_ranks(lists, first_stage.depth)


def fuse_ranks(lists: Sequence[Run], depth: int) -> Run:
    """Combine runs by reciprocal rank fusion: a score is the sum of 1 / (60 + rank) over the lists, ranks from 1.

    Returns:
        The `depth` best passages of each query that one of the runs has.
    """
    fused: dict[str, dict[str, float]] = {}
    for run in lists:
        for query_id, ranked in run.items():
            scores = fused.setdefault(query_id, {})
            for rank, (doc_id, _) in enumerate(ranked, start=1):
                scores[doc_id] = scores.get(doc_id, 0.0) + 1 / (RANK_OFFSET + rank)
    return {query_id: best_first(scores.items())[:depth] for query_id, scores in fused.items()}


def select_candidates(found: Run, qrels: Qrels, split: Split, first_stage: FirstStage) -> Run:
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
    run: Run, query_ids: list[str], collection: Path, split: Split, first_stage: FirstStage
) -> None:
    """Log the number of queries without a candidate; refuse a run in which most queries, or all, have none.

    A given run may have few of the queries: it is refused only if it has none.
    """
    without = [query_id for query_id in query_ids if query_id not in run]
    if not without:
        return
    count = f"{len(without)} of the {len(query_ids)} queries of {split} ({format_share(len(without), len(query_ids))})"
    problem = f"{count} have no candidate, such as {', '.join(map(repr, without[:3]))}"
    given = first_stage.runs.get(split)
    if given and not run:
        raise BadInput(
            f"{collection}: {problem}: {given} ranks none but the queries themselves; give another run"
        )
    if not given and len(without) > MOST * len(query_ids):
        raise BadInput(
            f"{collection}: {problem}: {_explain(first_stage)}, or give a run under first_stage.runs"
        )
    effect = "they make no training groups" if split == "train" else "every measure counts them as 0"
    log(f"retrieve: WARNING: {problem}; no reranker can answer them, and {effect}")


def _explain(first_stage: FirstStage) -> str:
    """Return the likely reason why most queries have no candidate, and the fix."""
    if isinstance(first_stage, Bm25Section):
        return (
            f"BM25 reads the texts as {first_stage.language}; set first_stage.language to their language, or "
            "first_stage.kind to dense"
        )
    return "no passage is left but the queries themselves; set first_stage.keep_same_id"


def search_by_words(
    collection: Path,
    split: Split,
    queries: Queries,
    settings: Bm25Section,
    top_k: int,
    scratch: Path,
) -> Run:
    """Search the corpus of a split by BM25; candidates share at least a word with their query.

    Args:
        collection: The collection.
        split: Whose corpus to search.
        queries: Query id -> text.
        settings: Language and parameters of BM25.
        top_k: Candidates per query.
        scratch: Folder for a temporary file with the postings of the queries' words.

    Raises:
        BadInput: The corpus has no words.
    """
    tokenize = tokenizer_of(settings.language)
    words = {query_id: tokenize(text) for query_id, text in queries.items()}
    distinct = sorted({word for found in words.values() for word in found})
    vocabulary = {word: number for number, word in enumerate(distinct)}
    numbers = {query_id: [vocabulary[word] for word in found] for query_id, found in words.items()}
    texts = ((passage.doc_id, passage.full_text) for passage in read_corpus(collection, split))
    with TemporaryFile(dir=scratch) as file:
        index = bm25.build_index(texts, vocabulary, tokenize, file)
        if not index.word_count:
            raise BadInput(
                f"{collection}: the corpus of {split} has no words of {settings.language} to search for; set "
                "first_stage.language to its language"
            )
        return bm25.search(index, numbers, top_k, settings.k1, settings.b)


def select_from_run(
    given: Path, collection: Path, split: Split, qrels: Qrels, first_stage: FirstStage
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
