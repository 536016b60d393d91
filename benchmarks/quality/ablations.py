"""Print the tables of docs/ablations.md, in Markdown, from the results of config/ablations.yaml.

    python benchmarks/quality/ablations.py results/ablations --pair taught-long long

nDCG@10 on test by variant and exit, alone and fused; and the differences to the first variant at the same exit, with
95% bootstrap intervals over queries and seeds. `--pair A B` also prints the difference of two other variants, with its
interval and the p-value of a paired randomisation test, which is not adjusted for the number of comparisons.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from evidence import MEASURE, difference_rows, format_p_value, quality_rows, to_markdown

from lwr.common.exits import ARM_COLUMNS, Arm, is_fused, is_layer, layer_of
from lwr.common.results_tree import ResultsTree
from lwr.evaluation.statistics.paired_tests import compare_pair
from lwr.reporting.advise import format_difference


def main() -> None:
    """Print the tables."""
    description, _, details = (__doc__ or "").partition("\n\n")
    options = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("results", type=Path, help="the results folder of the grid")
    options.add_argument(
        "--pair", nargs=2, action="append", default=[], metavar=("A", "B"), help="two variants to compare"
    )
    given = options.parse_args()
    tree = ResultsTree(given.results)
    layers, comparisons = (pd.read_csv(tree.tables / f"{name}.csv") for name in ("layers", "comparisons"))
    print(to_markdown(quality_rows(layers, None)))
    print()
    print(to_markdown(difference_rows(comparisons[comparisons["split"] == "test"])))
    if given.pair:
        rows = [row for first, second in given.pair for row in pair_rows(tree, layers, first, second)]
        print()
        print(to_markdown(iter(rows)))


def pair_rows(tree: ResultsTree, layers: pd.DataFrame, first: str, second: str) -> Iterator[dict[str, str]]:
    """Yield a row, alone and fused, with the difference of two variants on test at each layer."""
    arms = layers[layers["layer"] > 0]
    for point, rows in arms[arms["variant"] == first].groupby(ARM_COLUMNS, sort=False):
        dataset, trained_on, base_model, start_layer, _ = point
        a, b = (
            read_measures(tree, Arm(trained_on, base_model, int(start_layer), variant), dataset)
            for variant in (first, second)
        )
        for kind, chosen in (("", is_layer), (", fused", is_fused)):
            by_layer = {}
            for exit in filter(chosen, rows["exit"]):
                compared = compare_pair(a[exit], b[exit], paired_seeds=False, margin=0.0)
                told = f"{format_difference(compared)}, {format_p_value(compared['p randomisation'])}"
                by_layer[f"layer {layer_of(exit)}"] = told
            yield {"difference": f"{first} - {second}{kind}", **by_layer}


def read_measures(tree: ResultsTree, arm: Arm, dataset: str) -> dict[str, np.ndarray]:
    """Return exit -> nDCG@10 of an arm on test, float64 [seeds, queries], the queries sorted."""
    tables = [pd.read_parquet(tree.measures(cell, dataset, "test")) for cell in tree.cells_on_disk(arm)]
    tables = [table[table["measure"] == MEASURE].sort_values("query_id") for table in tables]
    return {
        str(exit): np.stack([table.loc[table["exit"] == exit, "value"] for table in tables])
        for exit in tables[0]["exit"].unique()
    }


if __name__ == "__main__":
    main()
