"""Choose a cascade: a schedule in which only the best candidates of an exit go on to the next one.

Schedules are tried on scores that exist already: which candidates survive follows from the scores
(`lwr.evaluation.replay`), and what a schedule costs follows from the candidates' tokens. The chosen one later runs in
one forward pass, as `LayerwiseReranker.cascade`.

Letters of shapes: Q queries, C candidates of the query that has most of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lwr.common.errors import BadInput
from lwr.common.exits import FIRST_STAGE
from lwr.common.hashing import sha256
from lwr.common.json_lines import write_json
from lwr.config.evaluation import CascadeSearchConfig
from lwr.evaluation.flops import BackboneShape, count_flops, read_shape
from lwr.evaluation.replay import Candidates, read_candidates, replay
from lwr.formats import parquet
from lwr.formats.beir import Qrels, Split, answerable_queries, read_qrels
from lwr.model.cascade_schedule import Schedule

SURVIVORS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
"""Numbers of survivors that are tried where the settings name none."""
CUTOFF = 10
"""The k of nDCG@k, by which cascades are chosen."""


def cascade(
    model: Path,
    dev: Sequence[Path],
    test: Sequence[Path],
    collection: Path,
    settings: CascadeSearchConfig,
    arm: dict[str, str | int],
    out: Path,
) -> None:
    """Choose a schedule on dev; write it as JSON, with the Pareto front of dev and the results of both on test.

    Args:
        model: The folder of one of the trainings, for its shapes.
        dev: The scores of each seed's training, Parquet as `lwr score` writes it.
        test: The same for test.
        collection: BEIR folder with the judgements.
        settings: Limits on the schedules to try, and the share of quality that the chosen one may lose.
        arm: The columns that identify the arm, written at the top of the file.
        out: The file to write.

    Raises:
        BadInput: No query is judged, or no judged query has a candidate.
    """
    shape = read_shape(model)
    dev_seeds, dev_qrels = _read_seeds(dev, collection, "dev")
    test_seeds, test_qrels = _read_seeds(test, collection, "test")
    deepest = max(dev_seeds[0].ranks)
    tried = list(enumerate_schedules(sorted(dev_seeds[0].ranks), dev_seeds[0].docs.shape[1], settings))
    on_dev = measure_schedules(dev_seeds, dev_qrels, shape, tried)
    front = pareto_front(on_dev)
    chosen = choose_schedule(on_dev, deepest, settings.epsilon)

    table = pd.concat([front, on_dev[on_dev["schedule"] == str(deepest)]]).drop_duplicates("schedule")
    reported = [Schedule.parse(text) for text in table["schedule"]]
    on_test = measure_schedules(test_seeds, test_qrels, shape, reported)
    table = table.rename(columns={"flops": "dev flops", "quality": "dev"})
    table["test flops"] = on_test["flops"].to_numpy()
    table["test"] = on_test["quality"].to_numpy()
    table["chosen"] = table["schedule"] == chosen
    table["front"] = table["schedule"].isin(front["schedule"])
    choice: dict[str, Any] = {
        **arm,
        "measure": f"nDCG@{CUTOFF}",
        "epsilon": settings.epsilon,
        "tried": len(tried),
        "deepest": str(deepest),
        "chosen": chosen,
        "schedules": table.to_dict("records"),
        "inputs": {
            "dev": [sha256(file) for file in dev],
            "test": [sha256(file) for file in test],
            "qrels": {split: sha256(collection / f"qrels/{split}.tsv") for split in ("dev", "test")},
        },
    }
    write_json(out, choice)


def _read_seeds(paths: Sequence[Path], collection: Path, split: Split) -> tuple[list[Candidates], Qrels]:
    """Read the candidates of each seed, of the queries that have a relevant passage, and these queries' judgements."""
    judged = answerable_queries(read_qrels(collection, split))
    if not judged:
        raise BadInput(
            f"{collection}/qrels/{split}.tsv: no query has a relevant passage; a cascade needs some"
        )
    columns = ["query_id", "doc_id", "tokens", FIRST_STAGE]
    seeds = [read_candidates(parquet.read(path, columns), sorted(judged)) for path in paths]
    if not seeds[0].docs.size:
        raise BadInput(f"{paths[0]}: no judged query of {split} has a candidate; retrieve and score again")
    return seeds, judged


# --- Schedules to try ---


def enumerate_schedules(
    exits: Sequence[int], candidates: int, settings: CascadeSearchConfig
) -> Iterator[Schedule]:
    """Yield every schedule that the settings allow, single exits among them.

    Args:
        exits: Layers, ascending.
        candidates: Length of the longest list; at least one of these must be dropped by each stage.
        settings: The number of exits to try (evenly spread), the number of stages, and the numbers of survivors.
    """
    tried = np.linspace(0, len(exits) - 1, min(len(exits), settings.exits)).round().astype(int)
    survivors = sorted((n for n in settings.keep or SURVIVORS if n < candidates), reverse=True)
    for stages in range(1, settings.stages + 1):
        for layers in combinations([exits[i] for i in tried], stages):
            for kept in combinations(survivors, stages - 1):
                yield Schedule(tuple(zip(layers, kept, strict=False)), layers[-1])


# --- Quality and cost of schedules ---


def measure_schedules(
    seeds: Sequence[Candidates], qrels: Qrels, shape: BackboneShape, schedules: Sequence[Schedule]
) -> pd.DataFrame:
    """Measure quality and cost of schedules, as means over queries and seeds.

    Args:
        seeds: The same queries and candidates, ranked by each seed's training.
        qrels: The judgements of these queries; each has a relevant passage.
        shape: The shape of the backbone.
        schedules: The schedules to measure.

    Returns:
        A table with the columns schedule, flops (share of the deepest exit's) and quality (nDCG@10).
    """
    judged = [(candidates, *_grades(candidates, qrels), _flops(candidates, shape)) for candidates in seeds]
    rows = []
    for schedule in schedules:
        qualities, shares = [], []
        for candidates, grades, ideal, flops in judged:
            order, depth = replay(candidates, schedule)
            qualities.append(ndcg(grades, ideal, order).mean())
            spent = np.take_along_axis(flops, depth[None], axis=0).sum()  # [1, Q, C] before the sum
            shares.append(spent / flops[max(candidates.ranks)].sum())
        rows.append((str(schedule), float(np.mean(shares)), float(np.mean(qualities))))
    return pd.DataFrame(rows, columns=["schedule", "flops", "quality"])


def _flops(candidates: Candidates, shape: BackboneShape) -> np.ndarray:
    """Return each pair's FLOPs up to each layer, float64 [1 + layers, Q, C]; 0 up to layer 0."""
    return np.stack([np.zeros_like(candidates.tokens), *count_flops(shape, candidates.tokens)])


def _grades(candidates: Candidates, qrels: Qrels) -> tuple[np.ndarray, np.ndarray]:
    """Return the candidates' grades, float64 [Q, C], and each query's best possible DCG, float64 [Q]."""
    grades = [
        [max(qrels[query].get(doc, 0), 0) for doc in docs]
        for query, docs in zip(candidates.queries, candidates.docs, strict=True)
    ]
    best = [
        sorted((grade for grade in qrels[query].values() if grade > 0), reverse=True)[:CUTOFF]
        for query in candidates.queries
    ]
    return np.array(grades, dtype=np.float64), np.array([_discounts(len(b)) @ b for b in best])


def ndcg(grades: np.ndarray, ideal: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Compute nDCG@10 per query as trec_eval does; float64 [Q].

    Thousands of schedules are measured, for which the dictionaries that ir_measures takes are too slow. A test
    compares the two.

    Args:
        grades: float64 [Q, C].
        ideal: float64 [Q], the DCG@10 of the best possible ranking.
        order: int [Q, C], columns of `grades` from best to worst.
    """
    top = np.take_along_axis(grades, order[:, :CUTOFF], axis=1)  # [Q, min(C, 10)]
    return top @ _discounts(top.shape[1]) / ideal


def _discounts(ranks: int) -> np.ndarray:
    return 1 / np.log2(np.arange(ranks) + 2)


# --- The choice ---


def pareto_front(measured: pd.DataFrame) -> pd.DataFrame:
    """Return the Pareto-optimal rows of quality and FLOPs, cheapest first; of equal rows the first."""
    cheapest_first = measured.sort_values(["flops", "quality"], ascending=[True, False], kind="stable")
    best_before = cheapest_first["quality"].cummax().shift(fill_value=-np.inf)
    return cheapest_first[cheapest_first["quality"] > best_before].reset_index(drop=True)


def choose_schedule(measured: pd.DataFrame, deepest: int, epsilon: float) -> str:
    """Return the cheapest schedule that keeps at least 1 - epsilon of the deepest exit's quality."""
    quality = measured.set_index("schedule")["quality"]
    front = pareto_front(measured)
    return front[front["quality"] >= (1 - epsilon) * quality[str(deepest)]]["schedule"].iloc[0]
