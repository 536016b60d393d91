"""Find the schedules that no other one beats in both quality and FLOPs."""

from __future__ import annotations

import numpy as np
import pandas as pd


def pareto_front(measured: pd.DataFrame, flops: str = "flops", quality: str = "quality") -> pd.DataFrame:
    """Return the Pareto-optimal rows of two columns, quality and FLOPs, cheapest first; of equal rows the first."""
    cheapest_first = measured.sort_values([flops, quality], ascending=[True, False], kind="stable")
    best_before = cheapest_first[quality].cummax().shift(fill_value=-np.inf)
    return cheapest_first[cheapest_first[quality] > best_before]
