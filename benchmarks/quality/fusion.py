"""How much do fused scores gain, and how often does the chosen cascade keep its promise? A Markdown table per data set.

    python benchmarks/quality/fusion.py results python-docs

For a grid whose scores exist, such as the quickstart's. The queries of dev and test together, which no training saw,
are split at random into as many dev queries as the grid has and the rest, again and again. Each time, weights are
fitted and a cascade is chosen on dev; then both are measured on the rest. The promise is 99% of the deepest exit alone.
Splits of one pool are not independent, so the number of misses varies more than that of independent trials does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lwr.common.exits import FIRST_STAGE, compressions_in, layers_in, model_exits_in
from lwr.config.evaluation import CascadeSearchConfig, FusionConfig
from lwr.evaluation.cascade import choose_with_confidence
from lwr.evaluation.flops import BackboneShape, read_shape
from lwr.evaluation.fuse import fit_with_folds, read_lists
from lwr.evaluation.schedules.replay import read_candidates
from lwr.evaluation.schedules.search import enumerate_schedules, measure_schedules
from lwr.formats import parquet
from lwr.formats.beir import Qrels, answerable_queries, read_qrels
from lwr.formats.fusion import CrossFittedFusion, Fusion
from lwr.model.cascade_schedule import Compression, Schedule

RULES = ("plain, mean on dev", "fused, mean on dev", "plain or fused, with confidence")


def main() -> None:
    """Print the tables of several data sets."""
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="the results folder of the grid")
    parser.add_argument("datasets", nargs="+", help="data sets that are trained on and ranked")
    parser.add_argument("--arm", default="minilm/start2/default", help="base model, start layer and variant")
    parser.add_argument("--splits", type=int, default=20, help="number of random splits")
    parser.add_argument("--confidence", type=float, default=FusionConfig().confidence)
    options = parser.parse_args()
    for dataset in options.datasets:
        print(f"\n{dataset}\n")
        print(
            compare(options.results, dataset, options.arm, options.splits, options.confidence).to_markdown(
                index=False
            )
        )


def compare(results: Path, dataset: str, arm: str, splits: int, confidence: float) -> pd.DataFrame:
    """Choose and measure on every split; return a row per rule."""
    cells = sorted((results / "cells" / dataset / arm).glob("seed*"))
    collection = results / "collections" / dataset
    shape = read_shape(cells[0] / "model")
    columns = ["query_id", "doc_id", "tokens", FIRST_STAGE]
    seeds = [
        pd.concat(
            [parquet.read(cell / f"scores/{dataset}/{split}.parquet", columns) for split in ("dev", "test")]
        )
        for cell in cells
    ]
    qrels: Qrels = {}
    for split in ("dev", "test"):
        qrels |= answerable_queries(read_qrels(collection, split))
    dev_size = len(answerable_queries(read_qrels(collection, "dev")))
    rows: list[dict[str, float | str]] = []
    for split in range(splits):
        queries = np.random.default_rng(split).permutation(sorted(qrels))
        dev, test = (
            {query: qrels[query] for query in part} for part in (queries[:dev_size], queries[dev_size:])
        )
        for rule, result in choose_and_measure(seeds, dev, test, shape, confidence).items():
            rows.append({"rule": rule, **result})
            print(f"# {dataset}, split {split + 1}/{splits}, {rule}: {result}", flush=True)
    return summarise(pd.DataFrame(rows), len(seeds), dev_size, len(qrels) - dev_size)


def choose_and_measure(
    seeds: Sequence[pd.DataFrame], dev: Qrels, test: Qrels, shape: BackboneShape, confidence: float
) -> dict[str, dict[str, float | str]]:
    """Choose by each rule on dev; return what is kept of the deepest exit on test, and at what cost."""
    settings = CascadeSearchConfig()
    layers = layers_in(seeds[0].columns)
    deepest = Schedule.single(layers[-1])
    lists = read_lists(seeds, dev)
    final, *folds = fit_with_folds(lists, model_exits_in(seeds[0]), FusionConfig())
    cross_fitted = CrossFittedFusion(tuple(folds))

    def measure(qrels: Qrels, schedules: Sequence[Schedule], fusion: Fusion | CrossFittedFusion | None):
        candidates = [read_candidates(table, sorted(qrels), fusion) for table in seeds]
        return measure_schedules(candidates, qrels, shape, schedules)

    plain_on_test = measure(test, [deepest], None)
    length = int(seeds[0].groupby("query_id").size().max())
    widths = [Compression(steps) for steps in compressions_in(seeds[0])]
    plain = measure(dev, list(enumerate_schedules(layers, length, settings, False, widths)), None)
    fused = measure(dev, list(enumerate_schedules(layers, length, settings, True, widths)), cross_fitted)
    reference = plain.quality[plain.schedules.index(deepest)].mean()
    chosen: dict[str, tuple[Schedule, Fusion | None]] = {}
    for rule, tried, weights in ((RULES[0], plain, None), (RULES[1], fused, final)):
        kept = tried.quality.mean(axis=1) >= (1 - settings.epsilon) * reference
        cheapest = np.flatnonzero(kept)[np.argmin(tried.flops[kept])]
        chosen[rule] = tried.schedules[cheapest], weights
    row, _ = choose_with_confidence(plain, fused, str(deepest), settings.epsilon, confidence)
    is_plain = row < len(plain.schedules)
    chosen[RULES[2]] = [*plain.schedules, *fused.schedules][row], None if is_plain else final

    results: dict[str, dict[str, float | str]] = {
        "deepest exit, fused": describe(measure(test, [deepest], final), plain_on_test, deepest)
    }
    for rule, (schedule, fusion) in chosen.items():
        results[rule] = describe(measure(test, [schedule], fusion), plain_on_test, schedule)
        results[rule]["schedule"] = f"{schedule}{', fused' if fusion else ''}"
    return results


def describe(measured, plain, schedule: Schedule) -> dict[str, float | str]:
    """Return schedule, FLOPs, and the mean quality on test as a share of the deepest exit's."""
    kept = measured.quality.mean() / plain.quality.mean()
    return {"schedule": str(schedule), "flops": float(measured.flops[0]), "kept": float(kept)}


def summarise(rows: pd.DataFrame, seeds: int, dev: int, test: int) -> pd.DataFrame:
    """Return a row per rule: means over splits, and in how many of them less than 99% was kept."""
    promised = 1 - CascadeSearchConfig().epsilon
    table = []
    for rule, group in rows.groupby("rule", sort=False):
        table.append(
            {
                "rule": rule,
                "seeds": seeds,
                "dev / test queries": f"{dev} / {test}",
                "FLOPs": f"{group['flops'].mean():.0%}",
                "kept on test, mean": f"{group['kept'].mean():.1%}",
                "worst": f"{group['kept'].min():.1%}",
                f"below {promised:.0%}": f"{(group['kept'] < promised).sum()} of {len(group)}",
                "chosen most often": f"`{group['schedule'].mode()[0]}`",
            }
        )
    return pd.DataFrame(table)


if __name__ == "__main__":
    main()
