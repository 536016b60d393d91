"""Read and write collections in BEIR layout: corpus.jsonl, queries.jsonl and qrels/{split}.tsv."""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput
from lwr.common.hashing import hash_share
from lwr.common.json_lines import is_utf8, plain_or_gzipped, read_jsonl, read_lines, write_jsonl
from lwr.common.progress import Progress, log
from lwr.common.texts import with_title

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
QRELS_HEADER = "query-id\tcorpus-id\tscore"
HIGHEST_GRADE = 10_000
"""trec_eval counts passages by grade in an array, and cuts a grade to 32 bits."""
Queries = dict[str, str]
"""Query id -> text."""
Qrels = dict[str, dict[str, int]]
"""Query id -> passage id -> grade. A passage is relevant if its grade is above 0."""


@dataclass(frozen=True)
class Passage:
    """A text that is searched."""

    doc_id: str
    title: str
    text: str
    split: Split | None = (
        None  # the only split whose corpus has this passage; None: the corpus of every split
    )

    @property
    def full_text(self) -> str:
        """The title and the text, as they are searched and reranked."""
        return with_title(self.title, self.text)


@dataclass(frozen=True)
class Origin:
    """The names that errors give to the parts of a collection: where the user finds what is wrong."""

    corpus: str = "corpus.jsonl"
    queries: str = "queries.jsonl"
    qrels: dict[Split, str] = field(default_factory=dict)  # split -> name; default: qrels/{split}.tsv


@dataclass(frozen=True)
class Collection:
    """The passages and queries of a source, and the judgements of each split."""

    corpus: Iterable[Passage]  # may be a stream, which is read once
    queries: Queries
    qrels: dict[Split, Qrels]
    origin: Origin = Origin()
    drop_dangling: bool = False  # leave out judgements of passages or queries that are missing


def read_corpus(folder: Path, split: Split | None = None, *, quiet: bool = False) -> Iterator[Passage]:
    """Stream the passages of a collection; see `read_corpus_file`."""
    return read_corpus_file(plain_or_gzipped(folder / "corpus.jsonl"), split, quiet=quiet)


def read_corpus_file(path: Path, split: Split | None = None, *, quiet: bool = False) -> Iterator[Passage]:
    """Stream the passages of a corpus file.

    Duplicate ids are not detected here, as that needs memory; `write_collection` detects them.

    Args:
        path: JSON lines, plain or `.gz`, with the fields `_id`, `text` and optionally `title` and `metadata.split`.
        split: Yield only the corpus of this split; None: all passages.
        quiet: Show no progress, because the caller does.

    Raises:
        BadInput: The file is missing or a line is not a passage.
    """
    with Progress(f"reading {path}", unit="passages", only_if_long=True, hidden=quiet) as progress:
        for number, row in enumerate(read_jsonl(path, {"_id": str, "text": str}), 1):
            passage = parse_passage(row, f"{path}:{number}")
            if split is None or passage.split in (None, split):
                yield passage
            progress.advance()


def parse_passage(row: dict[str, Any], where: str) -> Passage:
    """Make a passage of a row with the fields `_id` and `text`, which are strings.

    Args:
        row: The row; `title` and `metadata` may be missing or null.
        where: The place of the row, for errors.

    Raises:
        BadInput: A field has another type or value, or the id cannot be part of a TREC run.
    """
    title, metadata = row.get("title") or "", row.get("metadata") or {}
    if not isinstance(title, str):
        raise BadInput(f"{where}: field 'title' is {title!r}; make it a string or leave it out")
    if not isinstance(metadata, dict):
        raise BadInput(f"{where}: field 'metadata' is {metadata!r}; make it an object or leave it out")
    split = metadata.get("split")
    if split not in (None, *SPLITS):
        raise BadInput(f"{where}: metadata.split is {split!r}; make it one of {SPLITS} or leave it out")
    _check_id(row["_id"], where)
    return Passage(row["_id"], title, row["text"], split)


def read_candidate_texts(
    collection: Path, split: Split, candidates: Mapping[str, Iterable[tuple[str, float]]]
) -> dict[str, str]:
    """Read the texts of the passages that a run names, in one pass over the corpus of `split`.

    Args:
        collection: The folder of the collection.
        split: The split whose corpus is read.
        candidates: The run: query id -> (passage id, score).

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
    """Read the queries of a collection; see `read_queries_file`."""
    return read_queries_file(plain_or_gzipped(folder / "queries.jsonl"))


def read_queries_file(path: Path) -> Queries:
    """Read a file of queries.

    Args:
        path: JSON lines, plain or `.gz`, with the fields `_id` and `text`.

    Raises:
        BadInput: The file is missing, a line is not a query, an id is duplicated or a text is blank.
    """
    queries: Queries = {}
    for number, row in enumerate(read_jsonl(path, {"_id": str, "text": str}), 1):
        _check_id(row["_id"], f"{path}:{number}", seen=queries)
        if not row["text"].strip():
            raise BadInput(f"{path}:{number}: query {row['_id']!r} has no text; write one or remove the line")
        queries[row["_id"]] = row["text"]
    return queries


def _check_id(new_id: str, where: str, seen: Container[str] = ()) -> None:
    """Refuse an id that is among `seen`, or that readers of TREC runs would not read back.

    They split lines at whitespace, end a name at a NUL and skip a byte order mark.
    """
    if new_id.split() != [new_id] or "\0" in new_id or "\ufeff" in new_id:
        raise BadInput(
            f"{where}: id {new_id!r} is empty or holds whitespace, a NUL or a byte order mark, which run files "
            "cannot hold; rename it"
        )
    if new_id in seen:
        raise BadInput(f"{where}: id {new_id!r} is duplicated; remove one or rename it")


def read_qrels(folder: Path, split: Split, query_ids: Container[str] | None = None) -> Qrels:
    """Read the relevance judgements of a split from qrels/{split}.tsv, plain or `.gz`.

    Args:
        folder: The collection.
        split: Which judgements to read.
        query_ids: The known queries; None: do not check.

    Raises:
        BadInput: The file is missing or malformed, a pair is judged twice, or a query is unknown.
    """
    path = plain_or_gzipped(folder / "qrels" / f"{split}.tsv")
    qrels: Qrels = {}
    lines = read_lines(path)
    if next(lines, (1, ""))[1] != QRELS_HEADER:
        raise BadInput(f"{path}:1: no header; the first line must be {QRELS_HEADER!r}")
    for number, line in lines:
        where = f"{path}:{number}"
        query_id, doc_id, grade = _parse_judgement(line, where)
        if query_ids is not None and query_id not in query_ids:
            raise BadInput(f"{where}: query {query_id!r} is not in queries.jsonl; add it or remove the line")
        if doc_id in qrels.setdefault(query_id, {}):
            raise BadInput(f"{where}: {query_id!r} and {doc_id!r} are judged twice; remove one line")
        qrels[query_id][doc_id] = grade
    return qrels


def _parse_judgement(line: str, where: str) -> tuple[str, str, int]:
    """Split a line of qrels into query id, passage id and grade."""
    columns = line.split("\t")
    if len(columns) != 3:
        raise BadInput(f"{where}: {line!r} has {len(columns)} columns; write the three of {QRELS_HEADER!r}")
    query_id, doc_id, grade = columns
    _check_id(query_id, where)
    _check_id(doc_id, where)
    return query_id, doc_id, parse_grade(grade, where)


def parse_grade(grade: object, where: str) -> int:
    """Return a grade that is a whole number: an int, a float such as 1.0, or a string of either.

    Raises:
        BadInput: It is none of these, or so high that trec_eval cannot count it.
    """
    try:
        value = float(grade) if isinstance(grade, str) else grade
        number = int(value) if isinstance(value, int | float) else None
    except (ValueError, OverflowError):  # words, NaN, infinity
        value = number = None
    if number is None or isinstance(value, bool) or number != value:
        raise BadInput(f"{where}: grade {grade!r} is not a whole number; write 1 for relevant")
    if abs(number) > HIGHEST_GRADE:
        raise BadInput(
            f"{where}: grade {number} is not between -{HIGHEST_GRADE} and {HIGHEST_GRADE}; scale it"
        )
    return number


def answerable_queries(qrels: Qrels) -> Qrels:
    """Return the judgements of the queries that have a relevant passage."""
    return {query: docs for query, docs in qrels.items() if any(grade > 0 for grade in docs.values())}


def sample_queries(query_ids: Iterable[str], at_most: int | None) -> list[str]:
    """Return a sample of query ids, sorted: the `at_most` ids with the lowest hashes; None: all.

    A larger sample contains each smaller one.
    """
    return sorted(sorted(query_ids, key=lambda query_id: (hash_share(query_id), query_id))[:at_most])


def write_collection(
    folder: Path,
    corpus: Iterable[Passage],
    queries: Queries,
    qrels: dict[Split, Qrels],
    origin: Origin = Origin(),
    drop_dangling: bool = False,
) -> None:
    """Write corpus, queries and judgements into `folder`, all of them or none, so that the readers here accept them.

    A split without judgements gets a file with the header alone, as the workflow expects three files. The corpus is
    streamed: 8 bytes per passage are held in memory. The number of passages without a text is logged.

    Args:
        folder: Where the files are written.
        corpus: The passages.
        queries: Query id -> text.
        qrels: The judgements of each split.
        origin: Names of the parts, for errors.
        drop_dangling: Leave out judgements of passages and queries that are missing, and log their number.

    Raises:
        BadInput: A given split has no query, two splits share one, a judged query is unknown or blank, a judged
            passage is not in the corpus of its split, an id is duplicated or cannot be part of a TREC run, a grade is
            too high, or a text is not a string or not UTF-8.
    """
    if drop_dangling:
        missing_queries: dict[Split, Container[str]] = {
            split: judged.keys() - queries.keys() for split, judged in qrels.items()
        }
        qrels = _drop_dangling(qrels, missing_queries, {}, origin)
    _check_queries(queries, qrels, origin)
    with (
        atomic(folder / "corpus.jsonl") as corpus_draft,
        atomic(folder / "queries.jsonl") as queries_draft,
        atomic(folder / "qrels") as qrels_draft,
    ):
        missing = _write_corpus(corpus_draft, corpus, qrels, origin)
        if drop_dangling:
            complete, qrels = qrels, _drop_dangling(qrels, {}, missing, origin)
            left_out = {query for split in qrels for query in complete[split].keys() - qrels[split].keys()}
            queries = {query: text for query, text in queries.items() if query not in left_out}
        else:
            _refuse_missing(missing, origin)
        write_jsonl(queries_draft, ({"_id": query_id, "text": text} for query_id, text in queries.items()))
        qrels_draft.mkdir()
        for split in SPLITS:
            _write_qrels(qrels_draft / f"{split}.tsv", qrels.get(split, {}))


def _qrels_name(origin: Origin, split: Split) -> str:
    return origin.qrels.get(split, f"qrels/{split}.tsv")


def _write_corpus(
    path: Path, corpus: Iterable[Passage], qrels: dict[Split, Qrels], origin: Origin
) -> dict[Split, set[str]]:
    """Write the passages, check them, and return the judged passages of each split that its corpus lacks."""
    id_hashes = array("q")
    missing: dict[Split, set[str]] = {
        split: {doc for docs in judged.values() for doc in docs} for split, judged in qrels.items()
    }
    blank: list[str] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number, passage in enumerate(corpus, 1):
            _check_passage(passage, f"{origin.corpus}:{number}")
            if not passage.full_text.strip():
                blank.append(passage.doc_id)
            id_hashes.append(hash(passage.doc_id))
            for split, doc_ids in missing.items():
                if passage.split in (None, split):
                    doc_ids.discard(passage.doc_id)
            metadata = {} if passage.split is None else {"metadata": {"split": passage.split}}
            yield {"_id": passage.doc_id, "title": passage.title, "text": passage.text, **metadata}

    write_jsonl(path, rows())
    check_unique_ids(path, id_hashes, origin.corpus)
    if blank:
        log(f"collect: {len(blank)} passages of {origin.corpus} have no text, such as {blank[0]!r}")
    return missing


def _check_passage(passage: Passage, where: str) -> None:
    """Refuse a passage that `read_corpus` would refuse."""
    _check_id(passage.doc_id, where)
    for name, text in [("title", passage.title), ("text", passage.text)]:
        _check_text(text, f"{where}: {name} of passage {passage.doc_id!r}")


def _check_text(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise BadInput(f"{what} is {text!r}; make it a string")
    if not is_utf8(text):
        raise BadInput(f"{what} holds half a surrogate pair, which UTF-8 cannot hold; remove it")


def _refuse_missing(missing: dict[Split, set[str]], origin: Origin) -> None:
    for split, doc_ids in missing.items():
        if doc_ids:
            raise BadInput(
                f"{len(doc_ids)} passages judged for {split} are not in its corpus, such as {min(doc_ids)!r}; "
                f"add them to {origin.corpus}, remove their lines from {_qrels_name(origin, split)}, or set "
                "`dangling: drop` in the source"
            )


def _drop_dangling(
    qrels: dict[Split, Qrels],
    queries: Mapping[Split, Container[str]],
    passages: Mapping[Split, Container[str]],
    origin: Origin,
) -> dict[Split, Qrels]:
    """Return the judgements without those of some queries or passages, and log how many each split loses.

    Raises:
        BadInput: No judgement of a split is left.
    """
    kept: dict[Split, Qrels] = {}
    for split, judged in qrels.items():
        dangling = [
            (query, doc)
            for query, docs in judged.items()
            for doc in docs
            if query in queries.get(split, ()) or doc in passages.get(split, ())
        ]
        dropped = set(dangling)
        rest = {
            query: {doc: grade for doc, grade in docs.items() if (query, doc) not in dropped}
            for query, docs in judged.items()
        }
        kept[split] = {query: docs for query, docs in rest.items() if docs}
        if dangling:
            what = "queries" if queries else "passages"
            problem = (
                f"{len(dangling)} judgements of {split} in {_qrels_name(origin, split)} are of {what} that are "
                f"missing, such as {dangling[0]}"
            )
            if not kept[split]:
                raise BadInput(f"{problem}: no other is left; give the corpus that was judged")
            log(
                f"collect: {problem}; they are left out, and {len(judged) - len(kept[split])} queries with them"
            )
    return kept


def check_unique_ids(corpus: Path, id_hashes: array[int], name: str = "corpus.jsonl") -> None:
    """Refuse a corpus file with a duplicate id, without holding all ids in memory.

    Args:
        corpus: The file; it is read again only if two hashes are equal.
        id_hashes: int64, the hashes of its ids in any order; sorted in place.
        name: Name of the corpus in errors.

    Raises:
        BadInput: An id is duplicated.
    """
    ordered = np.frombuffer(id_hashes, dtype=np.int64)
    ordered.sort()
    shared_hashes = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not shared_hashes:
        return
    seen: set[str] = set()
    for number, row in enumerate(read_jsonl(corpus, {"_id": str}), 1):
        if hash(row["_id"]) in shared_hashes:
            _check_id(row["_id"], f"{name}:{number}", seen)
            seen.add(row["_id"])


def _write_qrels(path: Path, qrels: Qrels) -> None:
    lines = [QRELS_HEADER]
    for query_id, docs in qrels.items():
        lines += [f"{query_id}\t{doc_id}\t{grade}" for doc_id, grade in docs.items()]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")


def _check_queries(queries: Queries, qrels: dict[Split, Qrels], origin: Origin) -> None:
    """Check that each split has queries, that each of them has a text and that no two splits share one.

    Judgements are checked as `read_qrels` checks them.
    """
    split_of: dict[str, Split] = {}
    for split, judged in qrels.items():
        if not judged:
            raise BadInput(f"no query is left for {split}; add data or enlarge the split's share")
        for query_id, docs in judged.items():
            where = _qrels_name(origin, split)
            _check_id(query_id, f"queries of {split}")
            text = queries.get(query_id, "")
            _check_text(text, f"{origin.queries}: text of query {query_id!r}")
            if not text.strip():
                problem = f"query {query_id!r} is judged for {split} but has no text"
                raise BadInput(f"{origin.queries}: {problem}; write one, or remove its judgements")
            if query_id in split_of:
                splits = f"{split_of[query_id]} and {split}"
                raise BadInput(
                    f"query {query_id!r} is judged for {splits}; remove it from one of their qrels"
                )
            split_of[query_id] = split
            for doc_id, grade in docs.items():
                _check_id(doc_id, where)
                parse_grade(grade, f"{where}: {query_id!r} and {doc_id!r}")
