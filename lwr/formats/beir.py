"""Collections in BEIR layout: corpus.jsonl, queries.jsonl, qrels/{split}.tsv; validated on the way in."""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput
from lwr.common.hashing import hash_share
from lwr.common.json_lines import read_jsonl, read_lines, write_jsonl
from lwr.formats.trec import Run

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
HEADER = "query-id\tcorpus-id\tscore"
HIGHEST_GRADE = 10_000  # trec_eval counts passages by grade in an array, and cuts a grade to 32 bits
Queries = dict[str, str]  # query id -> text
Qrels = dict[str, dict[str, int]]  # query id -> passage id -> grade; relevant above 0


@dataclass(frozen=True)
class Passage:
    """A text to be found. With a `split` it is in the corpus of that split alone, else in every split's."""

    doc_id: str
    title: str
    text: str
    split: Split | None = None

    @property
    def full_text(self) -> str:
        """What is searched and reranked."""
        return f"{self.title} {self.text}" if self.title else self.text


@dataclass(frozen=True)
class Collection:
    """What a source gives; `corpus` is streamed once."""

    corpus: Iterable[Passage]
    queries: Queries
    qrels: dict[Split, Qrels]


def read_corpus(folder: Path, split: Split | None = None) -> Iterator[Passage]:
    """Stream corpus.jsonl: see `read_corpus_file`."""
    return read_corpus_file(folder / "corpus.jsonl", split)


def read_corpus_file(path: Path, split: Split | None = None) -> Iterator[Passage]:
    """Stream a corpus file, `.gz` or plain: the passages of one split's corpus, or all. Raises BadInput.

    An id that stands twice goes unseen here, for it takes memory to see: `write_collection` looks, once.
    """
    for number, row in enumerate(read_jsonl(path, {"_id": str, "text": str}), 1):
        passage = _passage(row, f"{path}:{number}")
        _check_id(passage.doc_id, (), f"{path}:{number}")
        if split is None or passage.split in (None, split):
            yield passage


def _passage(row: dict[str, Any], where: str) -> Passage:
    title, metadata = row.get("title") or "", row.get("metadata") or {}
    if not isinstance(title, str):
        raise BadInput(f"{where}: field 'title' is {title!r}; make it a string or leave it out")
    if not isinstance(metadata, dict):
        raise BadInput(f"{where}: field 'metadata' is {metadata!r}; make it an object or leave it out")
    split = metadata.get("split")
    if split not in (None, *SPLITS):
        raise BadInput(f"{where}: metadata.split is {split!r}; make it one of {SPLITS} or leave it out")
    return Passage(row["_id"], title, row["text"], split)


def read_candidate_texts(collection: Path, split: Split, candidates: Run) -> dict[str, str]:
    """Read the texts of the passages that a run names, in one pass over the corpus of `split`.

    Returns:
        Passage id -> text.

    Raises:
        BadInput: The corpus lacks one of the passages.
    """
    wanted = {doc_id for ranked in candidates.values() for doc_id, _ in ranked}
    texts = {
        passage.doc_id: passage.full_text
        for passage in read_corpus(collection, split)
        if passage.doc_id in wanted
    }
    if missing := wanted - texts.keys():
        raise BadInput(
            f"{collection}/corpus.jsonl: no passage {min(missing)!r}, which the run names; retrieve again"
        )
    return texts


def read_queries(folder: Path) -> Queries:
    """queries.jsonl: see `read_query_file`."""
    return read_queries_file(folder / "queries.jsonl")


def read_queries_file(path: Path) -> Queries:
    """A file of queries, `.gz` or plain. Raises BadInput, also for an id twice or a blank text."""
    queries: Queries = {}
    for number, row in enumerate(read_jsonl(path, {"_id": str, "text": str}), 1):
        _check_id(row["_id"], queries, f"{path}:{number}")
        if not row["text"].strip():
            raise BadInput(f"{path}:{number}: query {row['_id']!r} has no text; write one or remove the line")
        queries[row["_id"]] = row["text"]
    return queries


def _check_id(new: str, seen: Container[str], where: str) -> None:
    """Refuse an id that stands twice or cannot stand in a TREC run, whose readers end a name at a NUL, and pass over a
    byte order mark."""
    if new.split() != [new] or "\0" in new or "\ufeff" in new:
        raise BadInput(
            f"{where}: id {new!r} is empty or holds whitespace, a NUL or a byte order mark, no id for a run file; "
            "rename it"
        )
    if new in seen:
        raise BadInput(f"{where}: id {new!r} stands twice; remove one or rename it")


def read_qrels(folder: Path, split: Split, query_ids: Container[str] | None = None) -> Qrels:
    """qrels/{split}.tsv. Raises BadInput, also for a pair judged twice or a query not among `query_ids`."""
    path = folder / "qrels" / f"{split}.tsv"
    qrels: Qrels = {}
    lines = read_lines(path)
    if next(lines, (1, ""))[1] != HEADER:
        raise BadInput(f"{path}:1: no header; the first line must be {HEADER!r}")
    for number, line in lines:
        where, columns = f"{path}:{number}", line.split("\t")
        if len(columns) != 3:
            raise BadInput(f"{where}: {line!r} has {len(columns)} columns; write the three of {HEADER!r}")
        query_id, doc_id, grade = columns
        if query_ids is not None and query_id not in query_ids:
            raise BadInput(f"{where}: query {query_id!r} is not in queries.jsonl; add it or remove the line")
        if doc_id in qrels.setdefault(query_id, {}):
            raise BadInput(f"{where}: {query_id!r} and {doc_id!r} are judged twice; remove one line")
        _check_id(query_id, (), where)
        _check_id(doc_id, (), where)
        try:
            qrels[query_id][doc_id] = int(grade)
        except ValueError:
            raise BadInput(f"{where}: grade {grade!r} is not a whole number; write 1 for relevant") from None
        if abs(qrels[query_id][doc_id]) > HIGHEST_GRADE:
            raise BadInput(
                f"{where}: grade {grade} is not between -{HIGHEST_GRADE} and {HIGHEST_GRADE}; scale it"
            )
    return qrels


def answerable_queries(qrels: Qrels) -> Qrels:
    """The queries that have a relevant passage."""
    return {query: docs for query, docs in qrels.items() if any(grade > 0 for grade in docs.values())}


def sample_queries(query_ids: Iterable[str], at_most: int | None) -> list[str]:
    """The sample of a split's queries: the first by hash, in sorted order. None: all."""
    return sorted(sorted(query_ids, key=lambda query_id: (hash_share(query_id), query_id))[:at_most])


def write_collection(
    folder: Path, corpus: Iterable[Passage], queries: Queries, qrels: dict[Split, Qrels]
) -> None:
    """Write the three parts of a collection into `folder`, all of them or none. `corpus` is streamed once.

    Raises BadInput where a split has no query, two splits share one, a judged query is unknown or blank, a
    judged passage is not in the corpus of its split, or an id stands twice or cannot stand in a TREC run.
    Memory holds 8 bytes of each passage.
    """
    _check_queries(queries, qrels)
    hashes = array("q")  # of the passages' ids
    sought = {split: {doc for judged in rows.values() for doc in judged} for split, rows in qrels.items()}

    def rows() -> Iterator[dict[str, Any]]:
        for number, passage in enumerate(corpus, 1):
            _check_id(passage.doc_id, (), f"corpus.jsonl:{number}")
            hashes.append(hash(passage.doc_id))
            for split in qrels if passage.split is None else [passage.split]:
                sought.get(split, set()).discard(passage.doc_id)
            metadata = {} if passage.split is None else {"metadata": {"split": passage.split}}
            yield {"_id": passage.doc_id, "title": passage.title, "text": passage.text, **metadata}

    with (
        atomic(folder / "corpus.jsonl") as corpus_draft,
        atomic(folder / "queries.jsonl") as queries_draft,
        atomic(folder / "qrels") as qrels_draft,
    ):
        write_jsonl(corpus_draft, rows())
        check_unique_ids(corpus_draft, hashes)
        for split, missing in sought.items():
            if missing:
                raise BadInput(
                    f"{len(missing)} passages judged for {split} are not in its corpus, as {min(missing)!r}; "
                    f"add them to corpus.jsonl or remove their lines from qrels/{split}.tsv"
                )
        write_jsonl(queries_draft, ({"_id": query_id, "text": text} for query_id, text in queries.items()))
        qrels_draft.mkdir()
        for split in SPLITS:  # one without queries has a header alone: the workflow counts on three files
            judged = qrels.get(split, {})
            rows_of_split = (
                (query, doc, grade) for query, docs in judged.items() for doc, grade in docs.items()
            )
            lines = [HEADER, *(f"{query}\t{doc}\t{grade}" for query, doc, grade in rows_of_split), ""]
            (qrels_draft / f"{split}.tsv").write_text("\n".join(lines), encoding="utf-8", newline="\n")


def check_unique_ids(corpus: Path, hashes: array[int]) -> None:
    """Refuse a corpus file in which an id stands twice; `hashes`: of its ids, sorted here in place."""
    ordered = np.frombuffer(hashes, dtype=np.int64)
    ordered.sort()
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    seen: set[str] = set()
    for number, row in enumerate(read_jsonl(corpus, {"_id": str}) if suspects else (), 1):
        if hash(row["_id"]) in suspects:
            _check_id(row["_id"], seen, f"corpus.jsonl:{number}")
            seen.add(row["_id"])


def _check_queries(queries: Queries, qrels: dict[Split, Qrels]) -> None:
    split_of: dict[str, Split] = {}
    for split, judged in qrels.items():
        if not judged:
            raise BadInput(f"no query is left for {split}; add data or enlarge the split's share")
        for query_id in judged:
            if not queries.get(query_id, "").strip():
                raise BadInput(f"query {query_id!r} is judged for {split} but has no text")
            _check_id(query_id, (), f"queries of {split}")
            if query_id in split_of:
                both = f"{split_of[query_id]} and {split}"
                raise BadInput(f"query {query_id!r} is judged for {both}; remove it from one of their qrels")
            split_of[query_id] = split
