"""How often does the choice of a schedule break its promise, where the truth is known? Print a Markdown table.

    python benchmarks/quality/promise.py

Qualities are drawn, not measured: a query has a quality under the deepest exit, normal with mean 0.7 and deviation 0.3.
A schedule changes it by its own mean, which rises from -0.05 for the cheapest of 100 schedules to 0.02 for the last,
and by noise that neighbouring schedules share in part. So the mean of each schedule over all queries is known. Each
pool of queries is split at random 20 times; a schedule is chosen on dev, which is to keep 99% with a confidence of 90%,
and its mean is compared with 99% of the deepest exit's: on the test queries of the split, and over all queries.
"""

from __future__ import annotations

import argparse

import numpy as np

from lwr.evaluation.schedules.choice import choose_schedule

SCHEDULES, SPLITS = 100, 20
MEAN, DEVIATION = 0.7, 0.3
EPSILON, CONFIDENCE = 0.01, 0.9
NOISE = 0.1  # deviation of a query's change by a schedule
SHARED = 0.95  # correlation between the noise of neighbouring schedules


def main() -> None:
    """Simulate and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--pools", type=int, default=25)
    pools = options.parse_args().pools
    print(f"{pools} pools, {SPLITS} splits each, {SCHEDULES} schedules\n")
    print(
        "| dev / test queries | no choice | missed on test | missed over all queries | pools with 4 or more misses |"
    )
    print("|:--|--:|--:|--:|--:|")
    for dev, test in ((240, 300), (240, 80)):
        outcomes = np.array([split_pool(pool, dev, test) for pool in range(pools)])  # [pools, splits, 3]
        chose_none, missed_test, missed_all = outcomes.transpose(2, 0, 1)
        many = int((missed_test.sum(axis=1) >= 4).sum())
        shares = " | ".join(f"{each.mean():.1%}" for each in (chose_none, missed_test, missed_all))
        print(f"| {dev} / {test} | {shares} | {many} of {pools} |", flush=True)


def split_pool(pool: int, dev: int, test: int) -> list[tuple[bool, bool, bool]]:
    """Return for each split whether nothing was chosen, and whether the choice misses on test, and over all queries."""
    rng = np.random.default_rng(pool)
    changes = np.linspace(-0.05, 0.02, SCHEDULES)  # [S], the means over all queries
    reference = rng.normal(MEAN, DEVIATION, dev + test)  # [Q]
    quality = reference + changes[:, None] + NOISE * draw_noise(rng, dev + test)  # [S, Q]
    flops = np.linspace(0.1, 1, SCHEDULES)
    outcomes = []
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(dev + test)
        on_dev, on_test = order[:dev], order[dev:]
        choice = choose_schedule(quality[:, on_dev], flops, reference[on_dev], EPSILON, CONFIDENCE)
        if choice.index is None:  # the deepest exit is taken, which loses nothing
            outcomes.append((True, False, False))
            continue
        kept = quality[choice.index, on_test].mean() >= (1 - EPSILON) * reference[on_test].mean()
        kept_at_all = MEAN + changes[choice.index] >= (1 - EPSILON) * MEAN
        outcomes.append((False, not kept, not kept_at_all))
    return outcomes


def draw_noise(rng: np.random.Generator, queries: int) -> np.ndarray:
    """Draw float64 [S, Q] of mean 0 and deviation 1, in which neighbouring schedules have the correlation SHARED."""
    noise = rng.normal(size=(SCHEDULES, queries))
    for schedule in range(1, SCHEDULES):
        noise[schedule] = SHARED * noise[schedule - 1] + np.sqrt(1 - SHARED**2) * noise[schedule]
    return noise


if __name__ == "__main__":
    main()
