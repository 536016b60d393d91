"""Join the scores of a teacher's run to training groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lwr.common.errors import BadInput
from lwr.common.progress import log
from lwr.formats.trec import read_run

NumberedGroup = tuple[int, dict[str, Any]]
"""The number of a line, from 1, and its group."""


def join_teacher_scores(groups: Iterable[NumberedGroup], path: Path, run: Path) -> Iterator[NumberedGroup]:
    """Put a teacher's scores into groups, in place of those that they have, by the ids of query and passages.

    Passages without a score are left out, and so are groups of which no positive or no negative remains; the log says
    how many. Passages drawn at random because the first stage found too few have no score.

    Args:
        groups: The groups of `path`.
        path: The file of groups, for errors.
        run: TREC run with the scores.

    Raises:
        BadInput: A group has no ids, or no group is left.
    """
    scores = {query_id: dict(ranked) for query_id, ranked in read_run(run).items()}
    passages = passages_left_out = count = groups_left_out = 0
    for number, group in groups:
        where = f"{path}:{number}"
        if missing := [key for key in ("query_id", "pos_id", "neg_id") if key not in group]:
            raise BadInput(
                f"{where}: no field {missing[0]!r}, by which a teacher's scores are joined; mine the groups again, or "
                "use scores in the groups (external: true)"
            )
        of_query = scores.get(group["query_id"], {})
        kept = {key: _with_scores(group, key, of_query) for key in ("pos", "neg")}
        count += 1
        passages += len(group["pos"]) + len(group["neg"])
        passages_left_out += len(group["pos"]) + len(group["neg"]) - sum(map(len, kept.values()))
        if not all(kept.values()):
            groups_left_out += 1
            continue
        joined = dict(group)
        for key, found in kept.items():
            joined[key] = [text for text, _, _ in found]
            joined[f"{key}_id"] = [doc_id for _, doc_id, _ in found]
            joined[f"{key}_scores"] = [score for _, _, score in found]
        yield number, joined
    if groups_left_out == count:
        raise BadInput(
            f"{run}: scores no positive with a negative of the {count} groups in {path}; score the train candidates "
            "and positives of the same collection"
        )
    if passages_left_out:
        log(
            f"train: the teacher did not score {passages_left_out} of {passages} passages, which are left out, and "
            f"{groups_left_out} of {count} groups with them"
        )


def _with_scores(group: dict[str, Any], key: str, scores: dict[str, float]) -> list[tuple[str, str, float]]:
    """Return (text, id, score) of the positives or negatives that have a score."""
    pairs = zip(group[key], group[f"{key}_id"], strict=True)
    return [(text, doc_id, scores[doc_id]) for text, doc_id in pairs if doc_id in scores]
