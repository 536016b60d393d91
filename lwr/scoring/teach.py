"""Score the train candidates and positives of a collection with a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lwr.common.atomic import check_writable
from lwr.common.errors import BadInput
from lwr.common.progress import Progress
from lwr.config.teachers.sections import (
    BiEncoderTeacher,
    CrossEncoderTeacher,
    LayerwiseTeacher,
    StandaloneTeacher,
    YesNoTeacher,
)
from lwr.formats.beir import read_candidate_texts, read_qrels, read_queries
from lwr.formats.trec import Run, best_first, read_run, write_run
from lwr.scoring.query_candidates import QueryCandidates, join_texts
from lwr.scoring.score import select_shard
from lwr.scoring.teachers.bi_encoder import score_with_bi_encoder
from lwr.scoring.teachers.cross_encoder import score_with_cross_encoder
from lwr.scoring.teachers.layerwise import score_with_layerwise
from lwr.scoring.teachers.yes_no import score_with_yes_no


def teach(
    teacher: StandaloneTeacher,
    collection: Path,
    run: Path,
    out: Path,
    name: str = "teacher",
    shard: str = "1/1",
    label: str = "teach",
) -> None:
    """Write a teacher's scores of the train candidates and positives as a TREC run.

    `lwr mine` takes it as `mining.teacher_run`, `lwr train` as `--teacher-run`. Positives that the first stage did not
    find are scored, too. The first stage's scores, times `first_stage_weight`, are added. Memory holds the texts that
    are scored, not the corpus.

    Args:
        teacher: The teacher.
        collection: Folder in BEIR layout.
        run: TREC run with the candidates of the train queries.
        out: The file to write.
        name: Tag of the run.
        shard: `K/N` scores only every N-th query, starting at the K-th.
        label: Prefix of the progress lines.

    Raises:
        BadInput: Corpus, queries and run do not fit together, or the teacher cannot be loaded.
        FloatingPointError: A score is not finite.
    """
    check_writable(out)
    queries = read_queries(collection)
    wanted = select_shard(_add_positives(run, read_qrels(collection, "train", queries)), shard)
    candidates = join_texts(wanted, queries, read_candidate_texts(collection, "train", wanted))
    taught: Run = {}
    with Progress(label, sum(map(len, wanted.values())), "pairs") as progress:
        for chunk, scores in _score(teacher, candidates, progress.advance):
            ends = np.cumsum([len(query.doc_ids) for query in chunk])
            for query, its_scores in zip(chunk, np.split(scores, ends[:-1]), strict=True):
                from_first_stage = teacher.first_stage_weight * np.array(query.first_stage)
                taught[query.query_id] = _rank(query, its_scores + from_first_stage)
    write_run(out, taught, name)


def _add_positives(run: Path, qrels: dict[str, dict[str, int]]) -> Run:
    """Read a run, and add the positives that it lacks, with the lowest score of the query's candidates."""
    candidates = read_run(run)
    if not candidates:
        raise BadInput(f"{run}: has no candidates; retrieve again")
    if unknown := candidates.keys() - qrels.keys():
        raise BadInput(f"{run}: query {min(unknown)!r} is not judged for train; give the run of train")
    for query_id, ranked in candidates.items():
        found = {doc_id for doc_id, _ in ranked}
        lowest = min(score for _, score in ranked)
        ranked += [
            (doc_id, lowest) for doc_id, grade in qrels[query_id].items() if grade > 0 and doc_id not in found
        ]
    return candidates


def _score(
    teacher: StandaloneTeacher, queries: Sequence[QueryCandidates], on_scored: Callable[[int], object]
) -> Iterator[tuple[Sequence[QueryCandidates], np.ndarray]]:
    """Yield chunks of queries, and the scores of their pairs, float [pairs], query by query."""
    match teacher:
        case CrossEncoderTeacher():
            return score_with_cross_encoder(teacher, queries, on_scored)
        case YesNoTeacher():
            return score_with_yes_no(teacher, queries, on_scored)
        case LayerwiseTeacher():
            return score_with_layerwise(teacher, queries, on_scored)
        case BiEncoderTeacher():
            return score_with_bi_encoder(teacher, queries, on_scored)


def _rank(query: QueryCandidates, scores: np.ndarray) -> list[tuple[str, float]]:
    """Return (passage id, score), best first."""
    if not np.isfinite(scores).all():
        doc_id = query.doc_ids[int(np.flatnonzero(~np.isfinite(scores))[0])]
        raise FloatingPointError(
            f"the teacher's score of query {query.query_id!r} and passage {doc_id!r} is not finite; set its precision "
            "to float32"
        )
    return best_first(zip(query.doc_ids, scores.tolist(), strict=True))
