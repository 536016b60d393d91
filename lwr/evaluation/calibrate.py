"""Calibrate the scores of a cell: fit on dev what probability of relevance a score has, and measure it on test.

Two maps are fitted for the first stage and every exit, alone and fused: a line through the logistic function (Platt
1999, fitted as by Lin, Lin and Weng 2007) and an isotonic one (Zadrozny and Elkan 2002). The expected calibration error
is that of Naeini, Cooper and Hauskrecht 2015, in bins of equal mass.

A candidate that is not judged counts as not relevant. Queries without any judgement are left out. On dev, fused scores
of a query have weights that were fitted without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression, minimize
from scipy.stats import beta

from lwr.common.errors import BadInput
from lwr.common.exits import ARM_COLUMNS, FIRST_STAGE, compression_steps, fused_name, layer_of, model_exits_in
from lwr.common.exits import label as name_of
from lwr.common.hashing import sha256
from lwr.common.json_lines import write_json
from lwr.common.progress import log
from lwr.evaluation.arm_files import read_arm, read_arm_fusion
from lwr.evaluation.schedules.replay import add_fused, read_scores
from lwr.formats.beir import Split, read_qrels
from lwr.formats.calibration import RAW, Logistic, read_calibration

BINS = 10
DIGITS = 6
"""Significant digits of the numbers in the file, the line of an exit aside."""
RESAMPLES = 2000
MOST_THRESHOLDS = 1000
"""Thresholds that are tried; where more candidates are relevant, evenly spread ones of their scores."""
METHODS = ("raw", "logistic", "isotonic")
"""How scores become probabilities: by the logistic function alone, or by one of the two maps."""


def calibrate(
    dev: Path,
    test: Path,
    collection: Path,
    cell: dict[str, str | int],
    out: Path,
    fusion: Path | None = None,
    dev_collection: Path | None = None,
) -> None:
    """Write the two maps of every exit as JSON, with their calibration error and Brier score on test.

    Args:
        dev: Parquet that `lwr score` wrote.
        test: The same for test.
        collection: BEIR folder with the judgements.
        cell: The columns that identify the cell, written at the top of the file.
        out: The file to write.
        fusion: JSON that `lwr fuse` wrote; None: no scores are fused.
        dev_collection: BEIR folder with the judgements of dev, if `collection` has no dev queries.

    Raises:
        BadInput: An input cannot be read, does not belong to the others, or has no candidate of a judged query.
    """
    folders = {"dev": dev_collection or collection, "test": collection}
    fitted = read_judged_scores(dev, folders["dev"], "dev", fusion)
    measured = read_judged_scores(test, collection, "test", fusion)
    if missing := [exit for exit in fitted.exits if exit not in measured.exits]:
        raise BadInput(f"{test}: no scores of {missing[0]}, which {dev} has; give both splits of one cell")
    exits = {exit: _calibrate_exit(fitted, measured, exit) for exit in fitted.exits}
    if flat := [name_of(exit) for exit, maps in exits.items() if maps["logistic"]["slope"] == 0]:
        log(
            f"{dev}: a higher score is not more often relevant, so all probabilities are equal: {', '.join(flat)}"
        )
    inputs = {"dev": dev, "test": test} | ({} if fusion is None else {"fusion": fusion})
    splits = {"dev": fitted, "test": measured}
    write_json(
        out,
        {
            **cell,
            "candidates": {name: len(split.relevant) for name, split in splits.items()},
            "relevant": {name: int(split.relevant.sum()) for name, split in splits.items()},
            "exits": exits,
            "inputs": {
                **{name: sha256(path) for name, path in inputs.items()},
                "qrels": {split: sha256(folder / f"qrels/{split}.tsv") for split, folder in folders.items()},
            },
        },
    )


def _calibrate_exit(dev: JudgedScores, test: JudgedScores, exit: str) -> dict[str, Any]:
    """Return the maps of an exit and what they give on test, as the file holds them."""
    logistic = fit_logistic(dev.of(exit), dev.relevant)
    isotonic = fit_isotonic(dev.of(exit), dev.relevant)
    on_test = {}
    for method, scale in zip(METHODS, (RAW, logistic, isotonic), strict=True):
        probabilities = scale.probabilities(test.of(exit))
        bins = reliability(probabilities, test.relevant)
        brier = float(np.mean((probabilities - test.relevant) ** 2))
        on_test[method] = {
            "ece": _round(expected_calibration_error(bins)),
            "brier": _round(brier),
            "bins": [[_round(predicted), _round(share), int(size)] for predicted, share, size in bins],
        }
    return {
        "logistic": {"slope": logistic.slope, "intercept": logistic.intercept},
        "isotonic": {
            "scores": [_round(score) for score in isotonic.scores],
            "probabilities": [_round(value) for value in isotonic.values],
        },
        "test": on_test,
    }


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


# --- Scores with judgements ---


@dataclass(frozen=True)
class JudgedScores:
    """The scores of the candidates of judged queries, and whether each is relevant."""

    table: pd.DataFrame  # a column per exit
    exits: list[str]
    query: np.ndarray  # int [N], the number of the candidate's query, from 0
    relevant: np.ndarray  # bool [N]

    def of(self, exit: str) -> np.ndarray:
        """Return the scores of an exit, float64 [N]."""
        return self.table[exit].to_numpy(np.float64)


def read_judged_scores(
    path: Path, collection: Path, split: Split, fusion: Path | None = None
) -> JudgedScores:
    """Read the scores of a split beside its judgements.

    Args:
        path: Parquet that `lwr score` wrote.
        collection: BEIR folder with the judgements.
        split: The split that was scored.
        fusion: JSON that `lwr fuse` wrote, for fused exits. Queries of dev get the weights that were fitted without
            them.

    Raises:
        BadInput: An input cannot be read, or no judged query has a candidate.
    """
    table, qrels = read_scores(path), read_qrels(collection, split)
    exits = model_exits_in(table)
    if fusion is not None:
        table = add_fused(table, read_arm_fusion(fusion, exits, cross_fitted=split == "dev"))
        exits += [fused_name(layer_of(exit), compression_steps(exit)) for exit in exits]
    is_judged = table["query_id"].isin(qrels.keys())
    if without := table.loc[~is_judged, "query_id"].nunique():
        log(f"{path}: {without} queries have no judgement and are left out")
    table = table[is_judged]
    if table.empty:
        raise BadInput(
            f"{path}: no query of it is judged in {collection}/qrels/{split}.tsv; give the collection it was scored on"
        )
    pairs = zip(table["query_id"], table["doc_id"], strict=True)
    relevant = np.array([qrels[query].get(doc, 0) > 0 for query, doc in pairs])
    return JudgedScores(table, [FIRST_STAGE, *exits], pd.factorize(table["query_id"])[0], relevant)


# --- The maps ---


def fit_logistic(scores: np.ndarray, relevant: np.ndarray) -> Logistic:
    """Fit slope and intercept by maximum likelihood.

    The targets are those of Platt: (n + 1) / (n + 2) for the n relevant ones and 1 / (m + 2) for the m others. So the
    slope is finite where a score separates the two, and with many candidates the likelihood is that of 1 and 0.
    A slope below 0, which would reverse the ranking, becomes 0.

    Args:
        scores: float64 [N].
        relevant: bool [N].
    """
    count = relevant.sum()
    targets = np.where(relevant, (count + 1) / (count + 2), 1 / (len(relevant) - count + 2))
    centre, scale = scores.mean(), scores.std() or 1.0
    scaled = (scores - centre) / scale

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        logits = line[0] * scaled + line[1]
        errors = np.exp(-np.logaddexp(0, -logits)) - targets
        value = np.mean(np.logaddexp(0, logits) - targets * logits)
        return float(value), np.array([np.mean(errors * scaled), np.mean(errors)])

    start = np.array([0.0, np.log(targets.mean() / (1 - targets.mean()))])
    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None), (None, None)],
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000},
    )
    slope = found.x[0] / scale
    return Logistic(float(slope), float(found.x[1] - slope * centre))


@dataclass(frozen=True)
class Isotonic:
    """Probabilities that never fall with the score: a line between the scores that are known, constant beyond them."""

    scores: np.ndarray  # float64 [K], ascending
    values: np.ndarray  # float64 [K]

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability of relevance of each score."""
        return np.interp(scores, self.scores, self.values)


def fit_isotonic(scores: np.ndarray, relevant: np.ndarray) -> Isotonic:
    """Fit the probabilities that never fall and are the closest in squares: pool adjacent violators.

    Args:
        scores: float64 [N].
        relevant: bool [N].
    """
    distinct, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    shares = np.bincount(place, weights=relevant) / counts
    fitted = isotonic_regression(shares, weights=counts)
    blocks = np.asarray(fitted.blocks)  # where each block of equal values begins, and the number of scores
    ends = np.unique([blocks[:-1], blocks[1:] - 1])  # the first and the last score of each block
    return Isotonic(distinct[ends], np.asarray(fitted.x)[ends])


# --- How well probabilities are calibrated ---


def reliability(probabilities: np.ndarray, relevant: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the mean probability, the share of relevant candidates, and the size of bins of equal mass.

    Equal probabilities share a bin, so that the order of candidates does not matter; there may be fewer bins then.

    Returns:
        float64 [bins, 3], by ascending probability.
    """
    edges = np.quantile(probabilities, np.arange(1, bins) / bins, method="inverted_cdf")
    _, place = np.unique(np.searchsorted(edges, probabilities), return_inverse=True)
    sizes = np.bincount(place)
    means = [np.bincount(place, weights=values) / sizes for values in (probabilities, relevant)]
    return np.stack([*means, sizes], axis=1)


def expected_calibration_error(bins: np.ndarray) -> float:
    """Return the mean distance of probability and share over candidates, from the bins of `reliability`."""
    return float(np.average(np.abs(bins[:, 0] - bins[:, 1]), weights=bins[:, 2]))


# --- Thresholds ---


@dataclass(frozen=True)
class KeptByThreshold:
    """What is kept of all candidates whose score is at least a threshold.

    Attributes:
        threshold: The score.
        kept: The number of candidates.
        precision: The share of relevant ones among them; NaN if none is kept.
        low: The lower end of its 95% interval.
        high: The upper end.
        recall: The share that is kept of the relevant candidates; NaN if there is none.
    """

    threshold: float
    kept: int
    precision: float
    low: float
    high: float
    recall: float


def measure_thresholds(
    scores: np.ndarray, judged: JudgedScores, thresholds: np.ndarray
) -> list[KeptByThreshold]:
    """Measure what thresholds keep, over the candidates of all queries together.

    An end of the interval is the one further out of two: the percentile bootstrap over queries, because candidates of a
    query depend on each other; and Clopper and Pearson's, because a bootstrap of few candidates that are all relevant
    has no width. A sample that keeps no candidate has precision 0.

    Args:
        scores: float64 [N].
        judged: The candidates that have these scores.
        thresholds: float64 [T], ascending.
    """
    queries = judged.query.max() + 1
    place = np.searchsorted(thresholds, scores, side="right")  # [N], the number of thresholds that keep it
    counts = np.zeros((2, queries, len(thresholds) + 1))
    np.add.at(counts[0], (judged.query, place), 1)
    np.add.at(counts[1], (judged.query, place), judged.relevant)
    from_above = counts[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]
    counts = from_above[:, :, 1:]  # [2, Q, T]: kept, relevant ones among them
    drawn = np.random.default_rng(0).multinomial(queries, np.full(queries, 1 / queries), size=RESAMPLES)
    sampled_kept, sampled_found = (drawn.astype(np.float64) @ count for count in counts)  # [samples, T]
    precision = np.divide(
        sampled_found, sampled_kept, where=sampled_kept > 0, out=np.zeros_like(sampled_kept)
    )
    low, high = np.percentile(precision, [2.5, 97.5], axis=0)
    kept, found = counts.sum(axis=1)  # [T]
    exact_low = np.where(found > 0, beta.ppf(0.025, found, kept - found + 1), 0.0)
    exact_high = np.where(found < kept, beta.ppf(0.975, found + 1, kept - found), 1.0)
    total = judged.relevant.sum()
    return [
        KeptByThreshold(
            float(thresholds[i]),
            int(kept[i]),
            float(found[i] / kept[i]) if kept[i] else np.nan,
            float(min(low[i], exact_low[i])),
            float(max(high[i], exact_high[i])),
            float(found[i] / total) if total else np.nan,
        )
        for i in range(len(thresholds))
    ]


def choose_threshold(
    scores: np.ndarray, judged: JudgedScores, precision: float
) -> tuple[KeptByThreshold | None, KeptByThreshold | None]:
    """Choose the lowest threshold whose precision is at least `precision` by the lower end of its interval.

    Only scores of relevant candidates are tried: between two of them, a lower threshold keeps more candidates that are
    not relevant, and nothing else.

    Args:
        scores: float64 [N], of dev.
        judged: The candidates that have these scores.
        precision: What the lower end must reach.

    Returns:
        The choice, or None if there is none; and the threshold with the highest lower end, None if no candidate is
        relevant.
    """
    tried = np.unique(scores[judged.relevant])
    if not tried.size:
        return None, None
    spread = np.linspace(0, len(tried) - 1, min(len(tried), MOST_THRESHOLDS)).round().astype(int)
    measured = measure_thresholds(scores, judged, tried[spread])
    good = [kept for kept in measured if kept.low >= precision]
    return (good[0] if good else None), max(measured, key=lambda kept: kept.low)


# --- The file ---


def read_logistic(path: Path, exit: str) -> Logistic:
    """Read the line of an exit from a file that `calibrate` wrote. Raises BadInput."""
    calibration = read_calibration(path)
    if exit not in calibration:
        raise BadInput(
            f"{path}: no calibration of {exit}, only of {', '.join(calibration)}; run `lwr calibrate` again"
        )
    return calibration[exit]


def read_calibrations(files: Sequence[Path]) -> pd.DataFrame:
    """Read what calibration gives on test: a row per cell, exit and method.

    Returns:
        Columns ARM_COLUMNS, seed, exit, method (of METHODS), relevant (share of the test candidates), ece, brier, bins.
    """
    rows = []
    for file in files:
        record = read_arm(file, {"seed": int, "exits": dict, "candidates": dict, "relevant": dict})
        about = {name: record[name] for name in [*ARM_COLUMNS, "seed"]}
        about["relevant"] = record["relevant"]["test"] / record["candidates"]["test"]
        rows += [
            {**about, "exit": exit, "method": method, **values}
            for exit, of_exit in record["exits"].items()
            for method, values in of_exit["test"].items()
        ]
    return pd.DataFrame(rows)
