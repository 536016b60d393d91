"""Make training groups of rows that carry scores: a passage each, or a positive with its negatives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lwr.common.errors import BadInput, first_line, shorten
from lwr.common.json_lines import read_json_rows
from lwr.common.progress import log
from lwr.formats.training_groups import ScoredField, is_float32

OF_PASSAGES: tuple[ScoredField, ...] = ("query", "passage", "score")
OF_LISTS: tuple[ScoredField, ...] = ("query", "positive", "negatives", "scores")

Row = tuple[str, dict[str, Any]]
"""The place of a row, for errors, and its fields."""


def read_scored_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """Stream the rows of several files: JSON lines, a JSON list, or Parquet.

    Raises:
        BadInput: A file is missing or damaged.
    """
    for path in paths:
        yield from _read_parquet(path) if path.suffix == ".parquet" else read_json_rows(path, {})


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=1024))
            for number, row in enumerate(chain.from_iterable(batches), 1):
                yield f"{path}: row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise BadInput(f"{path}: no such file") from None
        raise BadInput(f"{path}: damaged ({first_line(error)}); make it again") from None


def make_groups(
    rows: Iterable[Row], columns: Mapping[ScoredField, str], positive_from: float | None, name: str
) -> Iterator[dict[str, Any]]:
    """Yield training groups with the scores as `pos_scores` and `neg_scores`.

    Rows have the fields of OF_PASSAGES, one passage each, in any order, or those of OF_LISTS, one group each; the first
    row decides. Rows of passages are kept in memory.

    Args:
        rows: As `read_scored_rows` yields them.
        columns: Field -> its name in the rows, if it is another.
        positive_from: The lowest score of a positive among the passages of a query; None: only the best are positives.
        name: The source, for errors.

    Raises:
        BadInput: A row lacks a field or has a wrong value, two scores of a passage differ, or no group is left.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise BadInput(
            f"{name}: no row in it; a row has query, passage, score or query, positive, negatives, scores"
        )
    names: dict[ScoredField, str] = {field: columns.get(field, field) for field in (*OF_PASSAGES, *OF_LISTS)}
    fields = OF_PASSAGES if names["passage"] in first[1] else OF_LISTS
    used = {names[field] for field in fields}
    if ignored := first[1].keys() - used:
        log(f"groups: of the rows, {', '.join(sorted(used))} are read; {', '.join(sorted(ignored))} are not")
    chosen = ((where, _choose(row, fields, names, where)) for where, row in chain([first], rows))
    if fields == OF_LISTS:
        return (_group_of_lists(row, where) for where, row in chosen)
    return _groups_of_passages(chosen, positive_from, name)


def _choose(
    row: dict[str, Any], fields: Sequence[ScoredField], names: Mapping[ScoredField, str], where: str
) -> dict[str, Any]:
    """Return the fields of a row under our names."""
    for field in fields:
        if names[field] not in row:
            raise BadInput(f"{where}: field {names[field]!r} is missing; add it, or name it in `columns`")
    return {field: row[names[field]] for field in fields}


def _group_of_lists(row: dict[str, Any], where: str) -> dict[str, Any]:
    negatives, scores = row["negatives"], row["scores"]
    if (
        not isinstance(negatives, list)
        or not negatives
        or not all(isinstance(text, str) for text in negatives)
    ):
        raise BadInput(
            f"{where}: field 'negatives' is {shorten(negatives)}; make it a list of at least one text"
        )
    if not isinstance(scores, list) or len(scores) != 1 + len(negatives) or not all(map(is_float32, scores)):
        raise BadInput(
            f"{where}: field 'scores' must hold one number for the positive and one for each of the "
            f"{len(negatives)} negatives, finite as a float32"
        )
    return {
        "query": _text(row, "query", where),
        "pos": [_text(row, "positive", where)],
        "neg": negatives,
        "pos_scores": scores[:1],
        "neg_scores": scores[1:],
    }


def _groups_of_passages(
    rows: Iterable[Row], positive_from: float | None, name: str
) -> Iterator[dict[str, Any]]:
    """Yield a group per query, in the order of its first row; count the queries without a positive or a negative."""
    queries: dict[str, dict[str, float]] = {}  # query -> passage -> score
    for where, row in rows:
        if not is_float32(row["score"]):
            raise BadInput(
                f"{where}: field 'score' is {shorten(row['score'])}; make it a number, finite as a float32"
            )
        scores = queries.setdefault(_text(row, "query", where), {})
        known = scores.setdefault(_text(row, "passage", where), row["score"])
        if known != row["score"]:
            raise BadInput(
                f"{where}: this query and passage are scored twice, {known} and {row['score']}; keep one"
            )
    left_out = 0
    for query, scores in queries.items():
        lowest = max(scores.values()) if positive_from is None else positive_from
        pos = {passage: score for passage, score in scores.items() if score >= lowest}
        neg = {passage: score for passage, score in scores.items() if score < lowest}
        if pos and neg:
            yield {
                "query": query,
                "pos": list(pos),
                "neg": list(neg),
                "pos_scores": list(pos.values()),
                "neg_scores": list(neg.values()),
            }
        else:
            left_out += 1
    if left_out == len(queries):
        raise BadInput(
            f"{name}: none of {left_out} queries has a positive and a negative; set positive_from, or add passages"
        )
    if left_out:
        log(
            f"groups: {left_out} of {len(queries)} queries are left out: they have no positive or no negative"
        )


def _text(row: dict[str, Any], field: ScoredField, where: str) -> str:
    if not isinstance(row[field], str) or not row[field].strip():
        raise BadInput(f"{where}: field {field!r} is {shorten(row[field])}; make it a text")
    return row[field]
