"""Read queries and their candidates from files, for `lwr rerank`."""

from __future__ import annotations

import sys
from pathlib import Path

from lwr.common.errors import BadInput
from lwr.common.json_lines import decode_lines, is_utf8, read_lines
from lwr.formats.beir import read_corpus_file, read_queries_file
from lwr.formats.training_groups import read_training_groups
from lwr.formats.trec import Run, read_run
from lwr.model.prompt import LinePrompts, Prompt
from lwr.scoring.query_candidates import QueryCandidates, join_texts

STDIN = Path("-")


def read_run_candidates(run: Path, queries: Path, corpus: Path) -> list[QueryCandidates]:
    """Read the queries of a TREC run and the texts of their candidates.

    The corpus is streamed: memory holds the run and the passages that it names.

    Args:
        run: A TREC run.
        queries: JSON lines in BEIR's format, with every query of the run.
        corpus: JSON lines in BEIR's format, with every passage of the run.

    Raises:
        BadInput: A file is malformed, the run is empty, or it names a query or a passage that is not in the files.
    """
    candidates = read_run(run)
    if not candidates:
        raise BadInput(f"{run}: has no candidates; write query Q0 passage rank score tag")
    query_texts = read_queries_file(queries)
    for query_id in candidates:
        if query_id not in query_texts:
            place = _first_line(run, 0, {query_id})
            raise BadInput(f"{place}: query {query_id!r} is not in {queries}; add it or remove its lines")
    passages = _read_passages(run, candidates, corpus)
    return join_texts(candidates, query_texts, passages)


def _read_passages(run: Path, candidates: Run, corpus: Path) -> dict[str, str]:
    """Read passage id -> text of the candidates. Raises BadInput for an id that is missing or duplicated."""
    wanted = {doc_id for ranked in candidates.values() for doc_id, _ in ranked}
    texts: dict[str, str] = {}
    for passage in read_corpus_file(corpus):
        if passage.doc_id in texts:
            raise BadInput(f"{corpus}: id {passage.doc_id!r} is duplicated; remove one or rename it")
        if passage.doc_id in wanted:
            texts[passage.doc_id] = passage.full_text
    if missing := wanted - texts.keys():
        place = _first_line(run, 2, missing)
        raise BadInput(
            f"{place}: this passage, one of {len(missing)}, is not in {corpus}; give the corpus that was searched"
        )
    return texts


def _first_line(run: Path, column: int, values: set[str]) -> str:
    """Return `file:line: value` of the first line of a run that has one of `values` in a column (from 0)."""
    found = ((number, line.split()[column]) for number, line in read_lines(run))
    return next(f"{run}:{number}: {value!r}" for number, value in found if value in values)


def read_group_candidates(groups: Path) -> list[QueryCandidates]:
    """Read the queries of FlagEmbedding's training lines; positives and negatives are the candidates.

    A query's id is its line number, and passages are named `7-pos-1`, `7-neg-3`. The line number is part of a passage's
    id because ties are broken by a hash of the id: without it, ties would favour or harm the positives of every query.

    Raises:
        BadInput: A line is malformed.
    """
    queries = []
    for number, line in enumerate(read_training_groups([groups]), start=1):
        doc_ids = [
            f"{number}-{kind}-{i}" for kind in ("pos", "neg") for i, _ in enumerate(line[kind], start=1)
        ]
        passages = [*line["pos"], *line["neg"]]
        prompts = LinePrompts.from_line(line)
        queries.append(QueryCandidates(str(number), line["query"], doc_ids, passages, prompts))
    return queries


def check_prompts(groups: Path, queries: list[QueryCandidates], prompt: Prompt) -> None:
    """Raise BadInput if a line of the groups sets an instruction that the prompt has no place for."""
    for query in queries:
        prompt.check_line(query.prompts, f"{groups}:{query.query_id}")


def read_passage_candidates(query: str, passages: Path) -> list[QueryCandidates]:
    """Read the candidates of one query from a file with a passage per line; ids are line numbers.

    Args:
        query: The query's text; its id is `1`.
        passages: A text file; `STDIN` reads standard input.

    Raises:
        BadInput: The query or the file is empty or not UTF-8, or a line is blank.
    """
    if not query.strip():
        raise BadInput("--query has no text; write one")
    if not is_utf8(query):
        raise BadInput(f"--query {query!r} is not UTF-8; write it in UTF-8")
    if passages == STDIN:
        name = "standard input"
        lines = list(decode_lines(sys.stdin.buffer, name))
    else:
        name = str(passages)
        lines = list(read_lines(passages))
    if not lines:
        raise BadInput(f"{name}: has no passages; write one per line")
    return [QueryCandidates("1", query, [str(number) for number, _ in lines], [text for _, text in lines])]
