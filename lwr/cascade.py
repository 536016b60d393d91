"""Cascades: all candidates of a query enter, at chosen exits only the best go on, few are read to the end.

A schedule is chosen on dev from scores that are there already: who survives, follows from them, and what it costs,
from the candidates' tokens. In one forward pass it runs as `LayerwiseReranker.cascade`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from lwr import parquet
from lwr.beir import Qrels, read_qrels
from lwr.config import Cascade, Split
from lwr.files import BadInput, hash_share, read_json, sha256, write_json
from lwr.flops import Shape, flops, read_shape
from lwr.schedule import Schedule
from lwr.trec import Run

LADDER = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 700, 1000)


# --- replaying a schedule on scores --------------------------------------------------------------------


@dataclass(frozen=True)
class Candidates:
    """The candidates of some queries as rectangles [queries, widest list]; short lists are filled up."""

    queries: list[str]
    docs: np.ndarray  # str; "" where filled up
    tokens: np.ndarray  # float64, of the pair; 0 where filled up
    places: dict[int, np.ndarray]  # layer -> int, each candidate's place in the ranking of that exit, from 0


def read_candidates(scores: pd.DataFrame, queries: Sequence[str] | None = None) -> Candidates:
    """Of a table that `lwr score` wrote. queries: these, in this order, also those without candidates; None: its own.

    Ties go by `trec.sort_key`'s rule, as everywhere.
    """
    layers = [int(column.removeprefix("layer_")) for column in scores.columns if column.startswith("layer_")]
    scores = scores.assign(
        hash=scores["doc_id"].map({doc: hash_share(doc) for doc in scores["doc_id"].unique()})
    )
    lists = dict(iter(scores.groupby("query_id", sort=False)))
    queries = list(lists) if queries is None else list(queries)
    shape = len(queries), max((len(lists[query]) for query in queries if query in lists), default=0)

    docs, tokens = np.full(shape, "", dtype=object), np.zeros(shape)
    places = {k: np.full(shape, shape[1]) for k in layers}
    for row, query in enumerate(queries):
        if query in lists:
            listed = lists[query]
            docs[row, : len(listed)], tokens[row, : len(listed)] = listed["doc_id"], listed["tokens"]
            for k in layers:
                best_first = np.lexsort((listed["hash"], -listed[f"layer_{k}"].to_numpy(np.float32)))
                places[k][row, best_first] = np.arange(len(listed))
    return Candidates(queries, docs, tokens, places)


def replay(candidates: Candidates, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """The ranking that a schedule ends in, and how deep each candidate is read.

    int [queries, widest list]: columns of `candidates` from best to worst, those filled up last. Survivors go by
    their places at the last exit, before those who left at the exit before, by their places there, and so on.
    int [queries, widest list]: the layer where a candidate was scored last; 0 where filled up.
    """
    alive = candidates.docs != ""
    read, place = np.zeros(alive.shape, dtype=int), np.full(alive.shape, alive.shape[1])
    for layer, survivors in [*schedule.keep, (schedule.last, 0)]:
        read, place = np.where(alive, layer, read), np.where(alive, candidates.places[layer], place)
        among_alive = np.where(alive, place, alive.shape[1]).argsort(axis=1).argsort(axis=1)
        alive = alive & (among_alive < survivors)
    return np.lexsort((place, -read)), read


def cascaded(scores: pd.DataFrame, schedule: Schedule) -> Run:
    """The run of a cascade, its queries sorted as `measures.rankings` sorts them."""
    candidates = read_candidates(scores, sorted(scores["query_id"].unique()))
    order, read = replay(candidates, schedule)
    sizes = (read > 0).sum(axis=1)
    return {
        query: by_place(docs[ranked[:size]])
        for query, docs, ranked, size in zip(candidates.queries, candidates.docs, order, sizes, strict=True)
    }


def by_place(docs: Iterable[str]) -> list[tuple[str, float]]:
    """Passages best first with what stands for their scores in a cascade's run, minus their place from 1 on: who left
    at different exits, has no scores to compare."""
    return [(doc, -float(place)) for place, doc in enumerate(docs, start=1)]


# --- choosing one --------------------------------------------------------------------------------------


def schedules(exits: Sequence[int], candidates: int, settings: Cascade) -> Iterator[Schedule]:
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


def front(measured: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other row beats in one of quality and FLOPs without losing in the other, cheapest first."""
    cheapest = measured.sort_values(["flops", "quality"], ascending=[True, False], kind="stable")
    before = cheapest["quality"].cummax().shift(fill_value=-np.inf)
    return cheapest[cheapest["quality"] > before].reset_index(drop=True)


def choose(measured: pd.DataFrame, deepest: int, epsilon: float) -> str:
    """The cheapest schedule that keeps 1 - epsilon of the deepest exit's quality."""
    quality = measured.set_index("schedule")["quality"]
    on_front = front(measured)
    return on_front[on_front["quality"] >= (1 - epsilon) * quality[str(deepest)]]["schedule"].iloc[0]


def decide(
    model: Path,
    dev: Sequence[Path],
    test: Sequence[Path],
    collection: Path,
    settings: Cascade,
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
    chosen = choose(measured, exits[-1], settings.epsilon)

    best = front(measured)
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


def read_chosen(path: Path, exits: Sequence[int]) -> Schedule | None:
    """The schedule that `decide` chose; None where that is the deepest exit alone.

    exits: of the model that it is for. Raises BadInput.
    """
    decided = read_json(path, {"chosen": str, "deepest": str})
    try:
        schedule = Schedule.parse(decided["chosen"])
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from None
    if unknown := sorted(set(schedule.layers) - set(exits)):
        raise BadInput(
            f"{path}: layer {unknown[0]} of cascade {schedule} has no head; choose it for this model again"
        )
    return None if decided["chosen"] == decided["deepest"] else schedule


def _seeds(paths: Sequence[Path], collection: Path, split: Split) -> tuple[list[Candidates], Qrels]:
    qrels = read_qrels(collection, split)
    judged = {query: docs for query, docs in qrels.items() if any(grade > 0 for grade in docs.values())}
    if not judged:
        raise BadInput(
            f"{collection}/qrels/{split}.tsv: no query has a relevant passage; a cascade needs some"
        )
    columns = ["query_id", "doc_id", "tokens", "first_stage"]
    seeds = [read_candidates(parquet.read(path, columns), sorted(judged)) for path in paths]
    if not seeds[0].docs.size:
        raise BadInput(f"{paths[0]}: no judged query of {split} has a candidate; retrieve and score again")
    return seeds, judged
