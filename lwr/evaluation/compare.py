"""Which exit ranks better: paired tests over queries, intervals over queries and seeds.

An arm is a cell of the grid without its seed; its seeds are repetitions of it. Tests take the query as their unit,
on its mean over seeds: more seeds measure a query better, they do not add evidence about queries. So p-values speak
of new queries for the seeds at hand; intervals resample the seeds as well, and are wider where training is unsteady.

Sources: Smucker, Allan and Carterette 2007 (t-test and randomisation in retrieval); Owen 2007, The pigeonhole
bootstrap (resampling two crossed factors); Holm 1979; Cohen 1988 (d_z); Wellek 2010 (non-inferiority).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lwr.common.exits import ARM_COLUMNS, FIRST_STAGE

COLUMNS = [
    *[
        "split",
        "dataset",
        "family",
        *ARM_COLUMNS[1:],
        "exit",
        *(f"versus_{name}" for name in ARM_COLUMNS[1:]),
        "versus_exit",
    ],
    *["seeds", "queries", "value", "versus_value", "difference", "low", "high"],
    *[
        "p t",
        "p randomisation",
        "p Holm",
        "effect size",
        "p noninferior",
        "p noninferior Holm",
        "noninferior",
    ],
    *["wins", "ties", "losses"],
]
RESAMPLES = 2000
EQUAL = 1e-12
"""Means of equal numbers over seeds differ in their last digits; differences this small are none."""

Arm = tuple[str, str, int, str]
"""The values of ARM_COLUMNS within one data set."""
Exit = tuple[Arm, str]
"""An arm and the name of one of its exits."""
NO_ARM: Arm = ("", "", 0, "")
"""Whose exit the first stage is: it is the same for all arms."""


def interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Low and high of the mean's 95% percentile bootstrap interval; the same for the same arguments.

    values: float64 [seeds, queries]. Queries and seeds are both drawn with replacement, apart from each other.
    """
    rng = np.random.default_rng(seed)
    return _middle(_resampled_means(values, _draw(values, resamples, rng), rng))


def _draw(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of queries, int64 [resamples, queries]."""
    return rng.integers(values.shape[1], size=(resamples, values.shape[1]))


def _resampled_means(values: np.ndarray, queries: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float64 [resamples], over the queries given and as many seeds as there are, drawn here."""
    by_seed = values[:, queries].mean(axis=2)  # [seeds, resamples]
    seeds = rng.integers(len(values), size=by_seed.shape)
    return np.take_along_axis(by_seed, seeds, axis=0).mean(axis=0)


def _middle(means: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def comparison(a: np.ndarray, b: np.ndarray, paired: bool, margin: float) -> dict[str, float]:
    """The columns of `compare` from `seeds` to `losses` that tell of A (a) against B (b); no p is adjusted.

    a, b: float64 [seeds, queries], the same queries in the same order.
    paired: row i of both is of one training; seeds are then resampled jointly, else apart. Queries always jointly.
    margin: in units of the measure; A is not inferior where the difference is larger than -margin.

    difference is A's mean less B's, low and high its bootstrap interval. `p t` and `p randomisation` are two-sided;
    `p noninferior` is a one-sided t-test of H0: difference <= -margin. `effect size` is Cohen's d_z: the mean of the
    queries' differences over their sample standard deviation. Where all queries differ by the same, it is 0 if that
    is 0, else infinite with its sign, and t-tests give their limits: 1 where the hypothesis tested holds, else 0.
    One query is no evidence: p is 1. wins, ties and losses count queries.
    """
    differences = a.mean(axis=0) - b.mean(axis=0)
    low, high = interval(a - b) if paired else _interval_apart(a, b)
    return {
        "seeds": len(a),
        "queries": len(differences),
        "value": a.mean(),
        "versus_value": b.mean(),
        "difference": differences.mean(),
        "low": low,
        "high": high,
        "p t": _p_t(differences, 0.0, "two-sided"),
        "p randomisation": _p_randomisation(differences),
        "effect size": _effect_size(differences),
        "p noninferior": _p_t(differences, -margin, "greater"),
        "wins": int((differences > EQUAL).sum()),
        "ties": int((abs(differences) <= EQUAL).sum()),
        "losses": int((differences < -EQUAL).sum()),
    }


def _interval_apart(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    queries = _draw(a, RESAMPLES, rng)
    return _middle(_resampled_means(a, queries, rng) - _resampled_means(b, queries, rng))


def _p_t(differences: np.ndarray, null: float, alternative: str) -> float:
    if len(differences) == 1:
        return 1.0
    if np.ptp(differences) > EQUAL:
        return float(stats.ttest_1samp(differences, null, alternative=alternative).pvalue)
    beyond = differences.mean() - null
    rejected = beyond > EQUAL if alternative == "greater" else abs(beyond) > EQUAL
    return 0.0 if rejected else 1.0


def _p_randomisation(differences: np.ndarray) -> float:
    """Two-sided, by flipping the sign of each query's difference at random, 9999 times; never below 0.0001.

    scipy.stats.permutation_test does the same forty times slower: it permutes where a product is enough.
    """
    rng = np.random.default_rng(0)
    flipped = rng.integers(2, size=(9999, len(differences)), dtype=np.int8).astype(np.float64)
    total = differences.sum()
    as_far = abs(total - 2 * (flipped @ differences)) >= abs(total) - EQUAL
    return float((1 + as_far.sum()) / 10_000)


def _effect_size(differences: np.ndarray) -> float:
    mean = differences.mean()
    if np.ptp(differences) > EQUAL:
        return float(mean / differences.std(ddof=1))
    return float(np.copysign(np.inf, mean)) if abs(mean) > EQUAL else 0.0


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values adjusted for one family by Holm's step-down method, in the order given. float64 [tests]."""
    raw = np.asarray(p, dtype=np.float64)
    order = np.argsort(raw)
    stepped = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def compare(measures: pd.DataFrame, measure: str, margin: float) -> pd.DataFrame:
    """One row per comparison, of the columns `COLUMNS`; splits, data sets, arms and exits in the order of the rows.

    measures: columns of the arm, seed, split, exit, query_id, measure, value: what `lwr evaluate` writes, concatenated.
    margin: of non-inferiority, in units of the measure.

    The families, in each split and data set, over which `p Holm` adjusts `p randomisation`:
    deepest: each other exit of an arm (a cascade too) against the arm's deepest layer. Only here is asked whether an
    exit is not inferior; elsewhere `p noninferior`, `p noninferior Holm` and `noninferior` are missing.
    first stage: each exit of each arm (a cascade too) against the first stage, whose versus_ columns are empty or 0.
    arms: each arm against the first one of the data set, at each layer that both have, and deepest layer against
    deepest where these have different numbers.

    Raises ValueError where an exit lacks a query or a seed that its data set or its arm has, or has one twice.
    """
    chosen = measures[measures["measure"] == measure]
    rows = []
    for (split, dataset), ranked in chosen.groupby(["split", "dataset"], sort=False):
        values = _values(ranked, f"{split} split of {dataset}")
        for family, one, other in _pairs(list(values)):
            told = {"split": split, "dataset": dataset, "family": family}
            told |= _told(one, "") | _told(other, "versus_")
            paired = one[0] == other[0]  # exits of one training
            rows.append(told | comparison(values[one], values[other], paired, margin))
    table = pd.DataFrame(rows)

    families = table.groupby(["split", "dataset", "family"], sort=False)
    deepest = table["family"] == "deepest"
    adjusted = families["p noninferior"].transform(holm).where(deepest)
    return table.assign(
        **{
            "p Holm": families["p randomisation"].transform(holm),
            "p noninferior": table["p noninferior"].where(deepest),
            "p noninferior Holm": adjusted,
            "noninferior": (adjusted < 0.05).astype("boolean").where(deepest),
        }
    )[COLUMNS]


def _values(ranked: pd.DataFrame, where: str) -> dict[Exit, np.ndarray]:
    """Per exit float64 [seeds, queries], seeds and queries sorted; the first stage stands once, [1, queries]."""
    queries = sorted(ranked["query_id"].unique())
    values = {}
    for arm, cell in ranked.groupby(ARM_COLUMNS[1:], sort=False):
        seeds = sorted(cell["seed"].unique())
        for name, rows in cell.groupby("exit", sort=False):
            rows = rows.sort_values(["seed", "query_id"])
            if list(zip(rows["seed"], rows["query_id"], strict=True)) != list(product(seeds, queries)):
                raise ValueError(
                    f"{where}: {name} of {' '.join(map(str, arm))} must have each of {len(queries)} queries "
                    f"once for each of the seeds {', '.join(map(str, seeds))}"
                )
            grid = rows["value"].to_numpy(np.float64).reshape(len(seeds), len(queries))
            if name == FIRST_STAGE:  # the same for each arm and seed
                values[NO_ARM, name] = grid[:1]
            else:
                values[arm, name] = grid
    return values


def _pairs(exits: Iterable[Exit]) -> Iterator[tuple[str, Exit, Exit]]:
    """The family, the exit that is compared and the one that it is compared to."""
    arms: dict[Arm, list[Exit]] = {}
    for exit in exits:
        arms.setdefault(exit[0], []).append(exit)
    [first_stage] = arms.pop(NO_ARM)
    deepest = {arm: max(_layers(own), key=_depth) for arm, own in arms.items()}

    for arm, own in arms.items():
        yield from (("deepest", exit, deepest[arm]) for exit in own if exit != deepest[arm])
    for own in arms.values():
        yield from (("first stage", exit, first_stage) for exit in own)
    baseline, *others = arms
    for arm in others:
        both = product(_layers(arms[arm]), _layers(arms[baseline]))
        yield from (("arms", exit, other) for exit, other in both if _depth(exit) == _depth(other))
        if _depth(deepest[arm]) != _depth(deepest[baseline]):
            yield "arms", deepest[arm], deepest[baseline]


def _layers(exits: Iterable[Exit]) -> list[Exit]:
    """Those of one depth: a cascade has none."""
    return [exit for exit in exits if exit[1].startswith("layer_")]


def _depth(exit: Exit) -> int:
    return int(exit[1].removeprefix("layer_"))


def _told(exit: Exit, prefix: str) -> dict[str, Any]:
    arm, name = exit
    return {
        f"{prefix}{column}": told
        for column, told in zip([*ARM_COLUMNS[1:], "exit"], [*arm, name], strict=True)
    }


def readable_comparisons(table: pd.DataFrame, margin: float) -> pd.DataFrame:
    """The rows of `compare` as text, for people; `margin` is the one given there.

    Of an arm its base model and start layer are told; its variant where the table has several, and what it was
    trained on where that is not what is ranked.
    """
    variants = {*table["variant"], *table["versus_variant"]} - {""}
    elsewhere = table["trained_on"].ne(table["dataset"]).any()

    def exit_alone(row: dict[str, Any], prefix: str) -> str:
        return row[f"{prefix}exit"].replace("_", " ")

    def exit_of(row: dict[str, Any], prefix: str) -> str:
        arm = f"{row[f'{prefix}base_model']} start {row[f'{prefix}start_layer']}"
        arm += f" {row[f'{prefix}variant']}" if len(variants) > 1 else ""
        arm += f" trained on {row[f'{prefix}trained_on']}" if elsewhere else ""
        return f"{arm}: {exit_alone(row, prefix)}"

    rows = [
        {
            "data set": row["dataset"],
            "what": exit_of(row, ""),
            "against": exit_of(row, "versus_") if row["family"] == "arms" else exit_alone(row, "versus_"),
            "difference": f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            "p (Holm)": "<0.001" if row["p Holm"] < 0.001 else f"{row['p Holm']:.3f}",
            "effect size": f"{row['effect size']:+.2f}",
            "won/tied/lost": f"{row['wins']}/{row['ties']}/{row['losses']}",
            f"not worse by {margin:g}": {True: "yes", False: "no"}.get(row["noninferior"], ""),
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)
