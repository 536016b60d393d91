"""The first stage: BM25 over the corpus of a split, or a run made elsewhere."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

from lwr.common.errors import BadInput
from lwr.common.progress import log
from lwr.config.data import FirstStageConfig
from lwr.data import bm25
from lwr.formats.beir import Split, read_corpus, read_qrels, read_queries
from lwr.formats.trec import Run, best_first, read_run, read_run_tag, write_run


def retrieve(collection: Path, out: Path, split: Split, first_stage: FirstStageConfig) -> None:
    """Write the run of a split's judged queries to `out`: at most `first_stage.depth` candidates each.

    From the split's file in `first_stage.runs` where it names one, else by BM25. A query without a candidate
    has no line. Ties: `lwr.formats.trec.best_first`. Raises BadInput.
    """
    queries = read_queries(collection)
    asked = {query_id: queries[query_id] for query_id in sorted(read_qrels(collection, split, queries))}
    if split in first_stage.runs:
        given = Path(first_stage.runs[split])
        run = adopt(given, collection, split, asked, first_stage.depth)
        write_run(out, run, read_run_tag(given))
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_run(out, search(collection, split, asked, first_stage, scratch=out.parent), "bm25")


def search(
    collection: Path, split: Split, queries: dict[str, str], first_stage: FirstStageConfig, scratch: Path
) -> Run:
    """The run of BM25. scratch: a folder with room for the postings of the queries' words, on disk for a while.

    Candidates score above 0: they share a word with the query.
    """
    asked = {query_id: bm25.words(text) for query_id, text in queries.items()}
    distinct = sorted({word for found in asked.values() for word in found})
    vocabulary = {word: number for number, word in enumerate(distinct)}
    numbered = {query_id: [vocabulary[word] for word in found] for query_id, found in asked.items()}
    texts = ((passage.doc_id, passage.full_text) for passage in read_corpus(collection, split))
    with TemporaryFile(dir=scratch) as file:
        index = bm25.build(texts, vocabulary, file)
        if not index.words:
            raise BadInput(f"{collection}: the corpus of {split} holds no words to search for")
        return bm25.search(index, numbered, first_stage.depth, first_stage.k1, first_stage.b)


def adopt(given: Path, collection: Path, split: Split, queries: dict[str, str], depth: int) -> Run:
    """A run made elsewhere: its best `depth` for each of the split's queries.

    Queries of others are left out and counted in the log, as those that a sample of the split left behind.
    Raises BadInput where it holds none of the split's queries, or a passage that the split's corpus lacks.
    """
    whole = read_run(given)
    run = {query_id: best_first(whole[query_id])[:depth] for query_id in queries if query_id in whole}
    if not run:
        raise BadInput(f"{given}: holds none of the {len(queries)} queries of {split}; give a run of {split}")
    missing = {doc_id for ranked in run.values() for doc_id, _ in ranked}
    for passage in read_corpus(collection, split):
        missing.discard(passage.doc_id)
    if missing:
        raise BadInput(
            f"{given}: {len(missing)} passages are not in the corpus of {split}, as {min(missing)!r}; "
            "give a run over this corpus"
        )
    log(
        f"retrieve: {given}: {len(run)} of the {len(queries)} queries of {split}, "
        f"{len(whole) - len(run)} queries of others left out"
    )
    return run
