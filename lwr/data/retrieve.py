"""Write the first stage's candidates: by BM25 over the corpus of a split, or from a run made elsewhere."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

from lwr.common.errors import BadInput
from lwr.common.progress import log
from lwr.config.data import FirstStageConfig
from lwr.data import bm25
from lwr.formats.beir import Queries, Split, read_corpus, read_qrels, read_queries
from lwr.formats.trec import Run, best_first, read_run, read_run_tag, write_run


def retrieve(collection: Path, out: Path, split: Split, first_stage: FirstStageConfig) -> None:
    """Write a run of the judged queries of a split, with at most `first_stage.depth` candidates each.

    The candidates come from the file that `first_stage.runs` names for the split, or else from BM25. A query without
    candidates has no line. Ties are broken by `lwr.formats.trec.best_first`.

    Raises:
        BadInput: The corpus has no words, or the given run does not fit the collection.
    """
    queries = read_queries(collection)
    judged = {query_id: queries[query_id] for query_id in sorted(read_qrels(collection, split, queries))}
    if split in first_stage.runs:
        given = Path(first_stage.runs[split])
        run, tag = select_from_run(given, collection, split, judged, first_stage.depth), read_run_tag(given)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        run, tag = search_corpus(collection, split, judged, first_stage, scratch=out.parent), "bm25"
    write_run(out, run, tag)


def search_corpus(
    collection: Path, split: Split, queries: Queries, first_stage: FirstStageConfig, scratch: Path
) -> Run:
    """Search the corpus of a split by BM25; candidates share at least a word with their query.

    Args:
        collection: The collection.
        split: Whose corpus to search.
        queries: Query id -> text.
        first_stage: Candidates per query and parameters of BM25.
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
        return bm25.search(index, numbers, first_stage.depth, first_stage.k1, first_stage.b)


def select_from_run(given: Path, collection: Path, split: Split, queries: Queries, top_k: int) -> Run:
    """Take the `top_k` best passages of each query from a run made elsewhere.

    Other queries of the run are ignored, such as those left out by a sample of the split; their number is logged.

    Raises:
        BadInput: The run has none of the queries, or ranks a passage that is not in the corpus of the split.
    """
    complete = read_run(given)
    run = {query_id: best_first(complete[query_id])[:top_k] for query_id in queries if query_id in complete}
    if not run:
        raise BadInput(f"{given}: has none of the {len(queries)} queries of {split}; give a run of {split}")
    missing = {doc_id for ranked in run.values() for doc_id, _ in ranked}
    for passage in read_corpus(collection, split):
        missing.discard(passage.doc_id)
    if missing:
        raise BadInput(
            f"{given}: {len(missing)} passages are not in the corpus of {split}, such as {min(missing)!r}; "
            "give a run over this corpus"
        )
    log(
        f"retrieve: {given}: {len(run)} of the {len(queries)} queries of {split}, "
        f"{len(complete) - len(run)} other queries ignored"
    )
    return run
