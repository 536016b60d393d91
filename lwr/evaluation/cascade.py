"""Choosing a cascade: all candidates of a query enter, at chosen exits only the best go on, few are read to the end.

A schedule is chosen on dev from scores that are there already: who survives, follows from them
(`lwr.evaluation.replay`), and what it costs, from the candidates' tokens. In one forward pass it runs as
`LayerwiseReranker.cascade`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from lwr.common.errors import BadInput
from lwr.common.hashing import sha256
from lwr.common.json_lines import write_json
from lwr.config.evaluation import CascadeSearchConfig
from lwr.evaluation.flops import Shape, flops, read_shape
from lwr.evaluation.replay import Candidates, read_candidates, replay
from lwr.formats import parquet
from lwr.formats.beir import Qrels, Split, answerable_queries, read_qrels
from lwr.model.cascade_schedule import Schedule

LADDER = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 700, 1000)


def schedules(exits: Sequence[int], candidates: int, settings: CascadeSearchConfig) -> Iterator[Schedule]:
    """Every schedule that the settings allow for lists of so many candidates, single exits among them."""
    tried = np.linspace(0, len(exits) - 1, min(len(exits), settings.exits)).round().astype(int)
    ladder = [n for n in settings.keep or LADDER if n < candidates]
    for count in range(1, settings.stages + 1):
        for layers in combinations([exits[i] for i in tried], count):
            for kept in combinations(sorted(ladder, reverse=True), count - 1):
                yield Schedule(tuple(zip(layers, kept, strict=False)), layers[-1])


def measure(
    seeds: Sequence[Candidates], qrels: Qrels, shape: Shape, tried: Sequence[Schedule]
) -> pd.DataFrame:
    """Columns schedule, flops (share of the deepest exit's), quality (nDCG@10): means over queries and seeds.

    seeds: the same queries and candidates, ranked by each seed's training.
    """
    judged = [(candidates, *_gains(candidates, qrels), _flops(candidates, shape)) for candidates in seeds]
    rows = []
    for schedule in tried:
        quality, cost = [], []
        for candidates, gains, ideal, by_layer in judged:
            order, read = replay(candidates, schedule)
            quality.append(ndcg(gains, ideal, order).mean())
            spent = np.take_along_axis(by_layer, read[None], axis=0).sum()
            cost.append(spent / by_layer[max(candidates.places)].sum())
        rows.append((str(schedule), float(np.mean(cost)), float(np.mean(quality))))
    return pd.DataFrame(rows, columns=["schedule", "flops", "quality"])


def _flops(candidates: Candidates, shape: Shape) -> np.ndarray:
    """float64 [1 + layers, queries, widest list], of each pair up to each layer; none up to layer 0."""
    return np.stack([np.zeros_like(candidates.tokens), *flops(shape, candidates.tokens)])


def _gains(candidates: Candidates, qrels: Qrels) -> tuple[np.ndarray, np.ndarray]:
    """The candidates' grades, float64 [queries, widest list], and each query's best possible DCG@10."""
    grades = [
        [max(qrels[query].get(doc, 0), 0) for doc in docs]
        for query, docs in zip(candidates.queries, candidates.docs, strict=True)
    ]
    best = [
        sorted((g for g in qrels[query].values() if g > 0), reverse=True)[:10] for query in candidates.queries
    ]
    return np.array(grades, dtype=np.float64), np.array([_discounts(len(b)) @ b for b in best])


def ndcg(gains: np.ndarray, ideal: np.ndarray, order: np.ndarray) -> np.ndarray:
    """nDCG@10 as trec_eval computes it, float64 [queries]; a library's dicts are too slow for thousands of schedules.

    gains, order: [queries, widest list]; ideal: [queries], the DCG@10 of the best ranking there is.
    """
    top = np.take_along_axis(gains, order[:, :10], axis=1)
    return top @ _discounts(top.shape[1]) / ideal


def _discounts(ranks: int) -> np.ndarray:
    return 1 / np.log2(np.arange(ranks) + 2)


def pareto_front(measured: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other row beats in one of quality and FLOPs without losing in the other, cheapest first."""
    cheapest = measured.sort_values(["flops", "quality"], ascending=[True, False], kind="stable")
    before = cheapest["quality"].cummax().shift(fill_value=-np.inf)
    return cheapest[cheapest["quality"] > before].reset_index(drop=True)


def choose_schedule(measured: pd.DataFrame, deepest: int, epsilon: float) -> str:
    """The cheapest schedule that keeps 1 - epsilon of the deepest exit's quality."""
    quality = measured.set_index("schedule")["quality"]
    on_front = pareto_front(measured)
    return on_front[on_front["quality"] >= (1 - epsilon) * quality[str(deepest)]]["schedule"].iloc[0]


def cascade(
    model: Path,
    dev: Sequence[Path],
    test: Sequence[Path],
    collection: Path,
    settings: CascadeSearchConfig,
    arm: dict[str, str | int],
    out: Path,
) -> None:
    """Write JSON: the schedule chosen on dev, the whole dev front, and what test says of both.

    dev, test: the scores of each seed's training, Parquet as `lwr score` writes it. model: one of these trainings,
    for its shapes. arm: what is written at the top. Raises BadInput where nothing is judged.
    """
    shape = read_shape(model)
    (on_dev, dev_qrels), (on_test, test_qrels) = (
        _seeds(paths, collection, split) for paths, split in ((dev, "dev"), (test, "test"))
    )
    exits = sorted(on_dev[0].places)
    tried = list(schedules(exits, on_dev[0].docs.shape[1], settings))
    measured = measure(on_dev, dev_qrels, shape, tried)
    chosen = choose_schedule(measured, exits[-1], settings.epsilon)

    best = pareto_front(measured)
    deepest = measured[measured["schedule"] == str(exits[-1])]
    told = pd.concat([best, deepest]).drop_duplicates("schedule")
    outcome = measure(on_test, test_qrels, shape, [Schedule.parse(text) for text in told["schedule"]])
    told = told.rename(columns={"flops": "dev flops", "quality": "dev"}).assign(
        **{"test flops": outcome["flops"].to_numpy(), "test": outcome["quality"].to_numpy()}
    )
    told["chosen"] = told["schedule"] == chosen
    told["front"] = told["schedule"].isin(best["schedule"])
    write_json(
        out,
        {
            **arm,
            "measure": "nDCG@10",
            "epsilon": settings.epsilon,
            "tried": len(tried),
            "deepest": str(exits[-1]),
            "chosen": chosen,
            "schedules": told.to_dict("records"),
            "inputs": {
                **{"dev": list(map(sha256, dev)), "test": list(map(sha256, test))},
                "qrels": {split: sha256(collection / f"qrels/{split}.tsv") for split in ("dev", "test")},
            },
        },
    )


def _seeds(paths: Sequence[Path], collection: Path, split: Split) -> tuple[list[Candidates], Qrels]:
    qrels = read_qrels(collection, split)
    judged = answerable_queries(qrels)
    if not judged:
        raise BadInput(
            f"{collection}/qrels/{split}.tsv: no query has a relevant passage; a cascade needs some"
        )
    columns = ["query_id", "doc_id", "tokens", "first_stage"]
    seeds = [read_candidates(parquet.read(path, columns), sorted(judged)) for path in paths]
    if not seeds[0].docs.size:
        raise BadInput(f"{paths[0]}: no judged query of {split} has a candidate; retrieve and score again")
    return seeds, judged
