"""Measure on dev what scores in int8 lose against those in float32, before anything is chosen by them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lwr.common.atomic import check_writable
from lwr.common.errors import BadInput
from lwr.common.exits import exit_name, model_exits_in
from lwr.common.exits import label as name_of
from lwr.common.hashing import sha256
from lwr.common.json_lines import write_json
from lwr.common.progress import Progress, log
from lwr.config.evaluation import ScoringConfig
from lwr.evaluation.schedules.replay import candidates_of, measure_exits, read_scores
from lwr.evaluation.statistics.paired_tests import interval
from lwr.formats.beir import (
    answerable_queries,
    read_candidate_texts,
    read_qrels,
    read_queries,
    sample_queries,
)
from lwr.model.reranker import LayerwiseReranker
from lwr.scoring.query_candidates import join_texts, score_in_chunks

QUERIES = 200
"""The number of dev queries that are scored in float32, too; fewer if dev has fewer."""


def compare_precision(
    models: Sequence[Path],
    dev: Sequence[Path],
    collection: Path,
    settings: ScoringConfig,
    margin: float,
    measure: str,
    arm: dict[str, str | int],
    out: Path,
    label: str = "precision",
) -> None:
    """Score a sample of dev in float32, compare the exits of complete passages, and write JSON.

    Args:
        models: The model of each seed of an arm.
        dev: What each of them scored in int8, Parquet as `lwr score` writes it.
        collection: BEIR folder with texts and judgements.
        settings: As for the scores in int8; `precision` names theirs.
        margin: The loss of the measure up to which the deepest exit counts as kept.
        measure: The measure.
        arm: The columns that identify the arm, written at the top of the file.
        out: The file to write.
        label: Printed before each line of progress.

    Raises:
        BadInput: An input cannot be read, or the deepest exit loses more than the margin.
    """
    check_writable(out)
    qrels = answerable_queries(read_qrels(collection, "dev"))
    tables = [read_scores(path) for path in dev]
    sample = sample_queries(qrels.keys() & set(tables[0]["query_id"]), QUERIES)
    if not sample:
        raise BadInput(f"{dev[0]}: no judged query of dev has a candidate; retrieve and score again")
    judged = {query_id: qrels[query_id] for query_id in sample}
    tables = [table[table["query_id"].isin(sample)] for table in tables]
    in_float32 = settings.model_copy(update={"precision": "float32"})
    with Progress(label, sum(map(len, tables)), "pairs") as progress:
        recomputed = [
            _score_again(model, table, collection, in_float32, progress)
            for model, table in zip(models, tables, strict=True)
        ]
    exits = [exit for exit in model_exits_in(tables[0]) if exit in recomputed[0]]  # without compressed ones
    quality = {
        precision: measure_exits(of_precision, judged, measure)
        for precision, of_precision in ((settings.precision, tables), ("float32", recomputed))
    }  # precision -> exit -> float64 [seeds, queries]
    rows = []
    for exit in exits:
        values, reference = quality[settings.precision][exit], quality["float32"][exit]
        low, high = interval(values - reference)
        difference = float((values - reference).mean())
        rows.append(
            {
                "exit": exit,
                "float32": float(reference.mean()),
                "difference": difference,
                "low": low,
                "high": high,
            }
        )
    deepest = rows[-1]
    told = f"{deepest['difference']:+.3f} [{deepest['low']:+.3f}, {deepest['high']:+.3f}] {measure}"
    about = f"{settings.precision} changes {name_of(deepest['exit'])} by {told} on {len(sample)} dev queries"
    if deepest["difference"] < -margin:
        raise BadInput(
            f"{about}, a larger loss than the margin of {margin:g}; use `score: {{precision: float32}}`, or bfloat16 "
            "where the CPU computes in it"
        )
    log(f"{label}: {about}, within the margin of {margin:g}")
    record = {
        **arm,
        "precision": settings.precision,
        "measure": measure,
        "margin": margin,
        "dev queries": len(sample),
        "exits": rows,
        "inputs": {"dev": [sha256(file) for file in dev]},
    }
    write_json(out, record)


def _score_again(
    model: Path, scores: pd.DataFrame, collection: Path, settings: ScoringConfig, progress: Progress
) -> pd.DataFrame:
    """Return the table with scores of its candidates in another precision, at the exits of complete passages.

    It is computed on the CPU, as int8 is.
    """
    reranker = LayerwiseReranker.from_pretrained(model, device="cpu", precision=settings.precision)
    run = candidates_of(scores)
    texts = read_candidate_texts(collection, "dev", run)
    queries = join_texts(run, read_queries(collection), texts)
    chunks = [
        of_chunk
        for _, _, of_chunk in score_in_chunks(reranker, queries, reranker.exits, settings, progress.advance)
    ]  # each [exits, pairs]
    ordered = pd.concat([ranked for _, ranked in scores.groupby("query_id", sort=False)], ignore_index=True)
    columns = dict(zip(map(exit_name, reranker.exits), np.concatenate(chunks, axis=1), strict=True))
    return ordered[["query_id", "doc_id", "tokens", "first_stage"]].assign(**columns)
