"""Print the tables of docs/ablations.md, in Markdown, from the results of config/ablations.yaml.

    python benchmarks/quality/ablations.py results/ablations

nDCG@10 on test by variant and exit, alone and fused; and the differences to the first variant at the same exit, with
95% bootstrap intervals over queries and seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from evidence import difference_rows, quality_rows, to_markdown


def main() -> None:
    """Print both tables."""
    description, _, details = (__doc__ or "").partition("\n\n")
    options = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("results", type=Path, help="the results folder of the grid")
    tables = options.parse_args().results / "tables"
    layers, comparisons = (pd.read_csv(tables / f"{name}.csv") for name in ("layers", "comparisons"))
    print(to_markdown(quality_rows(layers, None)))
    print()
    print(to_markdown(difference_rows(comparisons[comparisons["split"] == "test"])))


if __name__ == "__main__":
    main()
