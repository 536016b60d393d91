"""Print the tables of docs/ablations.md, in Markdown, from the results of config/ablations.yaml.

    python benchmarks/quality/ablations.py results/ablations --pair taught-long long

nDCG@10 on test by variant and exit, alone and fused; and the differences to the first variant at the same exit, with
95% bootstrap intervals over queries and seeds. `--pair A B` also prints the differences of A to another variant, B.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from evidence import MEASURE, difference_rows, quality_rows, to_markdown

from lwr.common.results_tree import ResultsTree
from lwr.evaluation.compare import compare_exits
from lwr.evaluation.measures import read_measures


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
    for first, second in given.pair:
        print()
        print(to_markdown(difference_rows(compare_variants(tree, first, second))))


def compare_variants(tree: ResultsTree, first: str, second: str) -> pd.DataFrame:
    """Compare the exits of two variants on test, as the table of comparisons does with the grid's first variant."""
    cells = [cell for arm in tree.arms_on_disk() for cell in tree.cells_on_disk(arm)]
    files = [
        tree.measures(cell, cell.trained_on, "test")
        for variant in (second, first)
        for cell in cells
        if cell.variant == variant
    ]
    return compare_exits(read_measures(files), MEASURE, margin=0.0)


if __name__ == "__main__":
    main()
