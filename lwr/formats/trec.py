"""Read, write and order TREC runs (`query Q0 passage rank score tag`); ties are broken here alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput
from lwr.common.hashing import hash_share
from lwr.common.json_lines import FLOAT32_LIMIT, read_lines
from lwr.common.progress import show_progress

Run = dict[str, list[tuple[str, float]]]
"""Query id -> (passage id, score), best first."""


def ranking_key(doc_id: str, score: float, is_double: bool = False) -> tuple[float, float]:
    """Return a key that sorts passages best first.

    Scores are compared as float32 unless `is_double`. Passages with equal scores are ordered by the hash of their id,
    which is independent of relevance and of the order in which they are given.
    """
    return -float(score if is_double else np.float32(score)), hash_share(doc_id)


def best_first(scored: Iterable[tuple[str, float]], is_double: bool = False) -> list[tuple[str, float]]:
    """Sort passages by `ranking_key` and make their scores strictly decreasing.

    trec_eval compares scores as float32 and would order equal ones by id. A score that is not below its predecessor
    therefore becomes the next float32 below it.

    Args:
        scored: (passage id, score) of one query, in any order.
        is_double: Whether scores are compared as float64, as fused scores are.

    Returns:
        (passage id, score), best first; the scores are float32 values.

    Raises:
        ValueError: A score is not a finite float32.
    """
    scored = list(scored)
    for doc_id, score in scored:
        if not np.isfinite(np.float32(score)):
            raise ValueError(f"the score of {doc_id!r} is {score}: not a finite float32")
    ranked, last = [], np.float32(np.inf)
    for doc_id, score in sorted(scored, key=lambda pair: ranking_key(*pair, is_double)):
        last = min(np.float32(score), np.nextafter(last, np.float32(-np.inf)))
        ranked.append((doc_id, float(last)))
    return ranked


def scores_by_rank(doc_ids: Iterable[str]) -> list[tuple[str, float]]:
    """Give each passage of a ranking minus its rank as its score.

    A cascade's run has these, because scores of passages that were dropped at different exits do not compare.
    """
    return [(doc_id, -float(rank)) for rank, doc_id in enumerate(doc_ids, start=1)]


def write_run(path: Path, run: Run, tag: str) -> None:
    """Write a run atomically; ranks count from 1.

    Raises:
        ValueError: A score is not finite or, as float32, not below its predecessor; an id or the tag is empty or holds
            whitespace; or a line would start with a byte order mark.
    """
    with atomic(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as writer:
        for query_id, ranked in run.items():
            last = np.float32(np.inf)
            for rank, (doc_id, score) in enumerate(ranked, 1):
                line = f"{query_id} Q0 {doc_id} {rank} {np.float32(score)!s} {tag}"
                if line.split() != line.split(" ") or len(line.split()) != 6 or line[0] == "\ufeff":
                    raise ValueError(f"an id or the tag is empty or holds whitespace: {line!r}")
                if not np.isfinite(np.float32(score)) or np.float32(score) >= last:
                    raise ValueError(f"scores must be finite and decrease strictly: {line!r}; see best_first")
                last = np.float32(score)
                writer.write(line + "\n")


def read_run(path: Path) -> Run:
    """Read a run.

    Returns:
        The passages of each query, sorted by score; equal scores keep their order in the file.

    Raises:
        BadInput: A line does not have six columns, a score is not a finite float32, or a passage is duplicated for a
            query.
    """
    run: dict[str, dict[str, float]] = {}
    lines = show_progress(read_lines(path), None, f"reading {path}", "lines", only_if_long=True)
    for number, line in lines:
        where, columns = f"{path}:{number}", line.split()
        if len(columns) != 6:
            raise BadInput(
                f"{where}: {line[:80]!r} has {len(columns)} columns; write query Q0 passage rank score tag"
            )
        query_id, _, doc_id, _, score, _ = columns
        if doc_id in run.setdefault(query_id, {}):
            raise BadInput(f"{where}: {doc_id!r} is duplicated for query {query_id!r}; remove one line")
        try:
            run[query_id][doc_id] = float(score)
        except ValueError:
            raise BadInput(f"{where}: score {score!r} is not a number; write one") from None
        if not abs(run[query_id][doc_id]) < FLOAT32_LIMIT:
            raise BadInput(f"{where}: score {score!r} is not finite as a float32; write one that is")
    return {query_id: sorted(docs.items(), key=lambda pair: -pair[1]) for query_id, docs in run.items()}


def read_run_tag(path: Path) -> str:
    """Return the tag in the first line of a run, which must be valid and not empty."""
    return next(read_lines(path))[1].split()[-1]
