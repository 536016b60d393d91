"""Time several contenders on the same lists in turns, and compare their times by ratios.

Other load on a machine changes a time by a factor of several, but it slows contenders alike that run in turns. So a
contender's time is given as its ratio to the time of a reference contender on the same list in the same round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from scipy.optimize import isotonic_regression

from lwr.common.progress import show_progress

Contender = TypeVar("Contender")
Item = TypeVar("Item")

REPEATS = 3
"""Number of rounds: how often each contender runs each list."""
RESAMPLES = 2000


def time_in_turns(
    run: Callable[[Contender, Item], object],
    contenders: Sequence[Contender],
    items: Sequence[Item],
    label: str = "time",
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> np.ndarray:
    """Time `run(contender, item)`: all contenders run an item before the next item, in shuffled order.

    Args:
        run: The function that is timed.
        contenders: Its first arguments.
        items: Its second arguments, at least one.
        label: Printed before each line of progress.
        repeats: The number of rounds over all items.
        clock: Returns the time in seconds.

    Returns:
        Seconds, float64 [contenders, rounds, items].
    """
    seconds = np.zeros((len(contenders), repeats, len(items)))
    rng = np.random.default_rng(0)
    turns = [(repeat, i) for repeat in range(repeats) for i in range(len(items))]
    for repeat, i in show_progress(turns, len(turns), label):
        for c in rng.permutation(len(contenders)):
            began = clock()
            run(contenders[c], items[i])
            seconds[c, repeat, i] = clock() - began
    return seconds


def relative_times(seconds: np.ndarray, reference: int) -> np.ndarray:
    """Return each contender's time as a ratio to the reference's, with its 95% interval.

    The ratio is the median over items of the median over rounds. The interval is a percentile bootstrap: items are
    drawn with replacement, then rounds.

    Args:
        seconds: float64 [contenders, rounds, items].
        reference: The index of the contender whose ratio is 1.

    Returns:
        float64 [3, contenders]: the low end, the ratio, the high end.
    """
    rng = np.random.default_rng(0)
    _, rounds, items = seconds.shape
    drawn_items = rng.integers(items, size=(RESAMPLES, 1, items))
    drawn_rounds = rng.integers(rounds, size=(RESAMPLES, rounds, items))
    summaries = []
    for ratios in seconds / seconds[reference]:  # [rounds, items]
        resampled = _typical(ratios[drawn_rounds, drawn_items])  # [resamples]
        low, high = np.percentile(resampled, [2.5, 97.5])
        ratio = _typical(ratios)
        summaries.append((min(low, ratio), ratio, max(high, ratio)))
    return np.array(summaries).T


def _typical(ratios: np.ndarray) -> np.ndarray:
    """Return the median over items of the median over rounds. ratios: float64 [..., rounds, items]."""
    return np.median(np.median(ratios, axis=-2), axis=-1)


def make_monotone(times: np.ndarray) -> np.ndarray:
    """Return the closest times that never fall with depth: neighbours that do are replaced by their mean.

    Pool-adjacent-violators regression of each row. It keeps low <= ratio <= high.

    Args:
        times: float64 [3, layers], from shallow to deep, as `relative_times` returns them.
    """
    return np.stack([isotonic_regression(row).x for row in times])
