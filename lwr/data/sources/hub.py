"""Read a collection from the Hugging Face hub, in the form of the BEIR data sets there, at fixed commits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lwr.common.errors import BadInput, missing_extra
from lwr.config.data.sources import HubSource, ScoredHubSource
from lwr.data.sources.splits import with_dev_split
from lwr.formats.beir import Collection, Origin, Passage, Qrels, Queries, Split, parse_grade, parse_passage

SPLIT_OF: dict[str, Split] = {"train": "train", "dev": "dev", "validation": "dev", "test": "test"}
"""Name of a split on the hub -> our split. Other splits are ignored."""
ID_COLUMNS = ["_id", "id"]
"""Names of the column of ids, of which data sets have one or the other."""


def read(source: HubSource) -> Collection:
    """Read the subsets `corpus` (streamed) and `queries` of `source.id`, and the splits of `source.qrels`.

    Errors of the package datasets pass through, such as those for a data set that does not exist.

    Raises:
        BadInput: The package datasets is not installed, `dev_from_train` does not fit the splits, or a row lacks a
            column, or has an id, a text or a grade that is not one.
    """
    try:
        from datasets import get_dataset_split_names, load_dataset
    except ImportError:
        raise missing_extra("kind hub", "datasets", "hub") from None
    texts = {
        subset: load_dataset(source.id, subset, split=subset, revision=source.revision, streaming=True)
        for subset in ("corpus", "queries")
    }
    judgements: dict[Split, tuple[str, Any]] = {
        SPLIT_OF[name]: (
            name,
            load_dataset(source.qrels, split=name, revision=source.qrels_revision, streaming=True),
        )
        for name in get_dataset_split_names(source.qrels, revision=source.qrels_revision)
        if name in SPLIT_OF
    }
    names: dict[Split, str] = {split: f"{source.qrels} {judgements[split][0]}" for split in judgements}
    qrels: dict[Split, Qrels] = {
        split: _collect_qrels(rows, names[split]) for split, (_, rows) in judgements.items()
    }
    origin = Origin(f"{source.id} corpus", f"{source.id} queries", {"dev": names.get("train", ""), **names})
    return Collection(
        _read_passages(texts["corpus"], origin.corpus),
        _read_queries(texts["queries"], origin.queries),
        with_dev_split(qrels, source.dev_from_train, source.qrels),
        origin,
        drop_dangling=source.dangling == "drop",
    )


def read_scored_rows(source: ScoredHubSource) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the rows of a split, each with its place.

    Errors of the package datasets pass through, such as those for a data set that does not exist.

    Raises:
        BadInput: The package datasets is not installed.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise missing_extra("kind scored_hub", "datasets", "hub") from None
    rows: Any = load_dataset(
        source.id, source.subset, split=source.split, revision=source.revision, streaming=True
    )
    for number, row in enumerate(rows, 1):
        yield f"{source.id} {source.split}:{number}", row


def _read_passages(rows: Iterable[dict[str, Any]], name: str) -> Iterator[Passage]:
    """Yield the passages; a text that is null is empty."""
    for number, row in enumerate(rows, 1):
        where = f"{name}:{number}"
        fields = {"_id": _read_id(row, ID_COLUMNS, where), "text": _read_text(row, where)}
        yield parse_passage(fields | {"title": row.get("title")}, where)


def _read_queries(rows: Iterable[dict[str, Any]], name: str) -> Queries:
    """Return the queries; a text that is null is empty, which is refused where the query is judged."""
    queries: Queries = {}
    for number, row in enumerate(rows, 1):
        where = f"{name}:{number}"
        query_id, text = _read_id(row, ID_COLUMNS, where), _read_text(row, where)
        if queries.setdefault(query_id, text) != text:
            raise BadInput(f"{where}: id {query_id!r} is duplicated with another text; use another data set")
    return queries


def _collect_qrels(rows: Iterable[dict[str, Any]], name: str) -> Qrels:
    qrels: Qrels = {}
    for number, row in enumerate(rows, 1):
        where = f"{name}:{number}"
        query_id, doc_id = _read_id(row, ["query-id"], where), _read_id(row, ["corpus-id"], where)
        grade, judged = (
            parse_grade(_read_column(row, ["score"], where), where),
            qrels.setdefault(query_id, {}),
        )
        if judged.setdefault(doc_id, grade) != grade:
            raise BadInput(
                f"{where}: {query_id!r} and {doc_id!r} are judged twice, {judged[doc_id]} and {grade}; use other qrels"
            )
    return qrels


def _read_column(row: dict[str, Any], names: Sequence[str], where: str) -> Any:
    """Return the value of the first column of `names` that the row has."""
    found = [name for name in names if name in row]
    if not found:
        raise BadInput(f"{where}: no column {' or '.join(map(repr, names))}, but {', '.join(map(repr, row))}")
    return row[found[0]]


def _read_id(row: dict[str, Any], names: Sequence[str], where: str) -> str:
    """Return an id as a string: the hub stores ids that look like numbers as numbers."""
    value = _read_column(row, names, where)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadInput(f"{where}: id {value!r} is not a string or a whole number; use another data set")
    return str(value)


def _read_text(row: dict[str, Any], where: str) -> str:
    text = _read_column(row, ["text"], where)
    if not isinstance(text, str | None):
        raise BadInput(f"{where}: column 'text' is {text!r}, not a string; use another data set")
    return text or ""
