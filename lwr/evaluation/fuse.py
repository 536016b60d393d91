"""Fit the weights of fused scores on dev, for every exit (see `lwr.formats.fusion`).

The loss is the listwise softmax cross-entropy of ListNet (Cao et al. 2007) with the judgements' grades as targets, and
a penalty on the weights. It is convex, so the weights are its only minimum. For dev itself, weights are fitted once
more without each fold of the queries, as in stacked generalisation (Wolpert 1992).

Letters of shapes: N lists, one per query and seed; M candidates of all lists; F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from lwr.common.errors import BadInput
from lwr.common.exits import (
    FIRST_STAGE,
    CompressionStep,
    compressions_in,
    layers_in,
    model_exits_in,
    read_name,
)
from lwr.common.hashing import sha256
from lwr.common.json_lines import write_json
from lwr.common.progress import log, show_progress
from lwr.config.evaluation import FusionConfig
from lwr.evaluation.schedules.replay import measure_exits, read_scores
from lwr.formats.beir import Qrels, answerable_queries, read_qrels
from lwr.formats.fusion import CrossFittedFusion, Fusion, fold_of, fusion_record, normalize_first_stage

DIGITS = 6
"""Significant digits of a weight: differences beyond them are noise of the optimiser."""


def fuse(
    dev: Sequence[Path],
    collection: Path,
    settings: FusionConfig,
    measure: str,
    arm: dict[str, str | int],
    out: Path,
    label: str = "fuse",
) -> None:
    """Fit the weights of an arm, all seeds together, and write them as JSON with the dev quality that they give.

    Args:
        dev: The scores of each seed's training, Parquet as `lwr score` writes it.
        collection: BEIR folder with the judgements.
        settings: The penalty, and the number of folds.
        measure: The measure that is reported; the fit does not depend on it.
        arm: The columns that identify the arm, written at the top of the file.
        out: The file to write.
        label: Printed before each line of progress.

    Raises:
        BadInput: An input cannot be read, no query is judged, or the seeds have other exits.
    """
    qrels = answerable_queries(read_qrels(collection, "dev"))
    if not qrels:
        raise BadInput(f"{collection}/qrels/dev.tsv: no query has a relevant passage; weights need some")
    seeds = [read_scores(path) for path in dev]
    exits = model_exits_in(seeds[0])
    for path, scores in zip(dev, seeds, strict=True):
        if model_exits_in(scores) != exits:
            raise BadInput(f"{path}: has other exits than {dev[0]}; give the seeds of one arm")
    lists = read_lists(seeds, qrels)
    if not lists.queries.size:
        log(f"{label}: no dev query has a relevant candidate; every exit keeps its own scores")
    fits = show_progress(fit_with_folds(lists, exits, settings), 1 + settings.folds, label)
    fusion, *folds = fits
    cross_fitted = CrossFittedFusion(tuple(folds))
    record: dict[str, Any] = {
        **arm,
        "measure": measure,
        "penalty": settings.penalty,
        "folds": settings.folds,
        "dev queries": len(set(lists.queries)),
        "dev lists": len(lists.queries),
        "dev": _report_quality(seeds, qrels, measure, fusion, cross_fitted),
        **fusion_record(fusion),
        "out_of_fold": [fusion_record(fold) for fold in folds],
        "inputs": {
            "dev": [sha256(file) for file in dev],
            "qrels": {"dev": sha256(collection / "qrels/dev.tsv")},
        },
    }
    write_json(out, record)


# --- The lists that are fitted ---


@dataclass(frozen=True)
class Lists:
    """Candidates of several lists, one list after the other, each with a relevant candidate."""

    features: dict[str, np.ndarray]  # name -> float64 [M]
    targets: np.ndarray  # float64 [M], grades; they sum to 1 within a list
    lengths: np.ndarray  # int [N]
    queries: np.ndarray  # str [N], the query of each list

    def select(self, chosen: np.ndarray) -> Lists:
        """Return some of the lists. chosen: bool [N]."""
        rows = np.repeat(chosen, self.lengths)
        features = {name: values[rows] for name, values in self.features.items()}
        return Lists(features, self.targets[rows], self.lengths[chosen], self.queries[chosen])


def read_lists(seeds: Sequence[pd.DataFrame], qrels: Qrels) -> Lists:
    """Read the lists of all seeds that have a relevant candidate.

    Args:
        seeds: For each seed, the scores of every candidate of a query.
        qrels: The judgements; queries without are left out.
    """
    tables = []
    for seed, scores in enumerate(seeds):
        pairs = zip(scores["query_id"], scores["doc_id"], strict=True)
        grades = np.array(
            [max(qrels.get(query, {}).get(doc, 0), 0) for query, doc in pairs], dtype=np.float64
        )
        by_query = scores["query_id"]
        first_stage = scores.groupby(by_query, sort=False)[FIRST_STAGE].transform(normalize_first_stage)
        total = pd.Series(grades).groupby(by_query.to_numpy()).transform("sum").to_numpy()
        table = scores.assign(target=np.divide(grades, total, where=total > 0, out=grades), seed=seed)
        table[FIRST_STAGE] = first_stage.astype(np.float64)
        tables.append(table[total > 0].sort_values("query_id", kind="stable"))
    table = pd.concat(tables, ignore_index=True)
    names = [FIRST_STAGE, *model_exits_in(table)]
    lists = table.groupby(["seed", "query_id"], sort=True).size()
    return Lists(
        {name: table[name].to_numpy(np.float64) for name in names},
        table["target"].to_numpy(np.float64),
        lists.to_numpy(),
        lists.index.get_level_values("query_id").to_numpy(object),
    )


# --- The fit ---


def fit_with_folds(lists: Lists, exits: Sequence[str], settings: FusionConfig) -> Iterator[Fusion]:
    """Yield the weights fitted on all lists, then those fitted without each fold of queries."""
    yield fit_fusion(lists, exits, settings.penalty)
    folds = np.array([fold_of(query, settings.folds) for query in lists.queries], dtype=int)
    for fold in range(settings.folds):
        yield fit_fusion(lists.select(folds != fold), exits, settings.penalty)


def fit_fusion(lists: Lists, exits: Sequence[str], penalty: float) -> Fusion:
    """Fit the weights of every exit, with and without the first stage.

    Args:
        lists: The candidates with the scores of all exits.
        exits: The names of the exits: layers, and those of compressed passages.
        penalty: As for `fit_weights`.
    """
    layers = layers_in(exits)
    compressed = {steps: _fit_pass(lists, layers, steps, penalty) for steps in compressions_in(exits)}
    return replace(_fit_pass(lists, layers, (), penalty), compressed=compressed)


def _fit_pass(
    lists: Lists, layers: Sequence[int], steps: tuple[CompressionStep, ...], penalty: float
) -> Fusion:
    """Fit the weights of the exits of a pass with these steps of compression, if any those behind the first step.

    An exit's features are the first stage and the exits up to it as the pass reads them.
    """
    names = {layer: read_name(layer, steps) for layer in layers}
    fitted = [layer for layer in layers if not steps or layer > steps[0][0]]
    with_first_stage, without_first_stage = (
        {
            layer: _fit_exit(
                lists, [*before, *(name for known, name in names.items() if known <= layer)], penalty
            )
            for layer in fitted
        }
        for before in ([FIRST_STAGE], [])
    )
    return Fusion(with_first_stage, without_first_stage)


def _fit_exit(lists: Lists, names: Sequence[str], penalty: float) -> dict[str, float]:
    """Fit the weights of one exit, whose own scores are the last of `names`; without lists these alone count."""
    if not lists.queries.size:
        return {name: float(name == names[-1]) for name in names}
    features = np.stack([lists.features[name] for name in names], axis=1)  # [M, F]
    weights = fit_weights(features, lists.targets, lists.lengths, penalty)
    return {name: float(f"{weight:.{DIGITS}g}") for name, weight in zip(names, weights, strict=True)}


def fit_weights(features: np.ndarray, targets: np.ndarray, lengths: np.ndarray, penalty: float) -> np.ndarray:
    """Fit weights that minimise the listwise loss and the penalty.

    A weight is penalised in units of its feature's standard deviation within lists, so that the result does not depend
    on a feature's unit. A feature that is constant within every list gets the weight 0.

    Args:
        features: float64 [M, F].
        targets: float64 [M], which sum to 1 within a list.
        lengths: int [N], the number of candidates of each list; they lie one after the other.
        penalty: Factor of half the squared norm of the weights.

    Returns:
        float64 [F].
    """
    starts = np.cumsum(lengths) - lengths  # [N]
    # The loss does not change when a constant is added to a list. Constant lists become exactly 0.
    shifted = features - np.repeat(features[starts], lengths, axis=0)
    means = np.add.reduceat(shifted, starts, axis=0) / lengths[:, None]  # [N, F]
    scales = np.sqrt(np.mean((shifted - np.repeat(means, lengths, axis=0)) ** 2, axis=0))  # [F]
    varies = scales > 0
    scaled = shifted[:, varies] / scales[varies]
    found = minimize(
        listwise_loss,
        np.zeros(varies.sum()),
        args=(scaled, targets, lengths, penalty),
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 1e-13, "gtol": 1e-7, "maxiter": 1000},
    )
    weights = np.zeros(features.shape[1])
    weights[varies] = found.x / scales[varies]
    return weights


def listwise_loss(
    weights: np.ndarray, features: np.ndarray, targets: np.ndarray, lengths: np.ndarray, penalty: float
) -> tuple[float, np.ndarray]:
    """Compute the mean cross-entropy of the softmax over each list plus penalty, and its gradient.

    Args:
        weights: float64 [F].
        features: float64 [M, F].
        targets: float64 [M].
        lengths: int [N].
        penalty: Factor of half the squared norm of `weights`.

    Returns:
        The loss, and float64 [F].
    """
    starts = np.cumsum(lengths) - lengths
    scores = features @ weights  # [M]
    scores = scores - np.repeat(np.maximum.reduceat(scores, starts), lengths)
    shares = np.exp(scores)
    totals = np.add.reduceat(shares, starts)  # [N]
    shares /= np.repeat(totals, lengths)
    loss = (np.log(totals).sum() - targets @ scores) / len(lengths) + penalty * (weights @ weights) / 2
    gradient = (shares - targets) @ features / len(lengths) + penalty * weights
    return float(loss), gradient


# --- What the weights give on dev ---


def _report_quality(
    seeds: Sequence[pd.DataFrame],
    qrels: Qrels,
    measure: str,
    fusion: Fusion,
    cross_fitted: CrossFittedFusion,
) -> dict[str, Any]:
    """Return the dev quality of every exit: plain, with these weights, and with weights fitted on other folds."""
    plain = _mean_quality(seeds, qrels, measure, None)
    report: dict[str, Any] = {exit: {"plain": mean} for exit, mean in plain.items()}
    sets = {
        "with_first_stage": (fusion, cross_fitted),
        "without_first_stage": (
            _without_first_stage(fusion),
            CrossFittedFusion(tuple(map(_without_first_stage, cross_fitted.folds))),
        ),
    }
    for name, (fitted, held_out) in sets.items():
        in_sample = _mean_quality(seeds, qrels, measure, fitted)
        out_of_fold = _mean_quality(seeds, qrels, measure, held_out)
        for exit in plain:
            report[exit][name] = {"in_sample": in_sample[exit], "out_of_fold": out_of_fold[exit]}
    return report


def _without_first_stage(fusion: Fusion) -> Fusion:
    compressed = {steps: _without_first_stage(part) for steps, part in fusion.compressed.items()}
    return Fusion(fusion.without_first_stage, fusion.without_first_stage, compressed)


def _mean_quality(
    seeds: Sequence[pd.DataFrame],
    qrels: Qrels,
    measure: str,
    fusion: Fusion | CrossFittedFusion | None,
) -> dict[str, float]:
    """Return name of an exit -> mean over queries and seeds."""
    return {
        exit: float(np.mean([of_seed.mean() for of_seed in values]))
        for exit, values in measure_exits(seeds, qrels, measure, fusion).items()
        if exit != FIRST_STAGE
    }
