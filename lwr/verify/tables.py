"""Check the files that people read: tables against what they were made of, figures and the report for completeness."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from lwr.common.exits import ARM_COLUMNS, FIRST_STAGE
from lwr.common.results_tree import ANY_CELL, FIGURE_FORMATS, TABLES, ResultsTree
from lwr.evaluation.arm_files import read_cascades, read_costs
from lwr.formats.tables import csv_text
from lwr.reporting.tables import build_calibration_table
from lwr.verify.verdict import REMAKE, Verdict

FIGURE_ENDS = {".html": b"</html>", ".svg": b"</svg>", ".png": b"IEND\xaeB`\x82"}
"""Suffix of a figure -> the bytes that a complete file ends in."""

TableRow = tuple
"""The values of `ARM_COLUMNS` and the exit: what a row of layers.csv is about."""


class LayerMeans:
    """Means over queries that follow from the measures, by row and column of layers.csv, and by seed."""

    def __init__(self) -> None:
        self.by_row: dict[TableRow, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))

    def add(self, measures: pd.DataFrame, split: str) -> None:
        """Add the measures of a split: columns `ARM_COLUMNS`, seed, exit, measure, value."""
        means = measures.groupby([*ARM_COLUMNS, "exit", "measure", "seed"], sort=False)["value"].mean()
        for (*row, measure, seed), mean in means.items():
            column = f"dev {measure}" if split == "dev" else measure
            self.by_row[tuple(row)][column][seed] = float(mean)


def check_tables(tree: ResultsTree, means: LayerMeans, verdict: Verdict) -> None:
    """Check tables and recommendation, figures and the report."""
    for name in TABLES:
        for path in tree.table(name):
            verdict.check(path, _table_faults(tree, name, path, means))
    verdict.check(tree.recommendation, _text_faults(tree.recommendation))
    for path in tree.existing(tree.figures / "*"):
        verdict.check(path, _figure_faults(path))
    verdict.check(tree.report, _report_faults(tree.report))


def _table_faults(tree: ResultsTree, name: str, path: Path, means: LayerMeans) -> Iterator[str]:
    yield from _text_faults(path)
    if path.suffix != ".csv":
        return
    if name == "layers":
        yield from layer_faults(path, means)
    elif name == "cost":
        costs = tree.cost("*")
        yield from _row_faults(path, read_costs(tree.existing(costs)), costs)
    elif name == "cascades":
        cascades = tree.cascade(ANY_CELL, "*")
        yield from _row_faults(path, read_cascades(tree.existing(cascades)), cascades)
    elif name == "calibration":
        calibrations = tree.calibration(ANY_CELL, "*")
        yield from _row_faults(path, build_calibration_table(tree.existing(calibrations)), calibrations)
    else:
        pd.read_csv(path)  # comparisons: may have no rows, but must be a table


def _text_faults(path: Path) -> Iterator[str]:
    if not path.read_text(encoding="utf-8").strip():
        yield f"empty; {REMAKE}"


def _row_faults(path: Path, expected: pd.DataFrame, sources: Path) -> Iterator[str]:
    """Compare a table with the rows, in any order, of the files that it was made of. sources: their pattern."""
    if pd.read_csv(path).empty:
        yield f"no row in it; {REMAKE}"
    if sorted(csv_text(expected).splitlines()) != sorted(path.read_text(encoding="utf-8").splitlines()):
        yield f"holds other rows than {sources}; {REMAKE}"


def layer_faults(path: Path, means: LayerMeans) -> Iterator[str]:
    """Compare layers.csv with the means over seeds."""
    text_columns = {name: str for name in ARM_COLUMNS if name != "start_layer"}
    table = pd.read_csv(path, keep_default_na=False, dtype=text_columns)
    written = {(*row[ARM_COLUMNS].tolist(), row["exit"]): row for _, row in table.iterrows()}
    columns = {column for by_column in means.by_row.values() for column in by_column} & set(table)
    for key in sorted(means.by_row, key=str):
        about = " ".join(map(str, key))
        row = written.get(_written_key(key))
        if row is None:
            yield f"lacks {about}; {REMAKE}"
            continue
        for column in sorted(columns):
            of_seeds = list(means.by_row[key].get(column, {}).values())
            expected = float(np.mean(of_seeds)) if of_seeds else np.nan
            value = float(row[column]) if row[column] != "" else np.nan  # not all data sets have all measures
            if not np.isclose(expected, value, rtol=0, atol=2e-6, equal_nan=True):
                yield f"{column} of {about} is {value}, by its measures {expected:.6f}; {REMAKE}"
    for key in written.keys() - means.by_row.keys():
        if key[-1] != FIRST_STAGE:
            yield f"has a row of {' '.join(map(str, key))}, whose measures are missing; run the workflow again"


def _written_key(key: TableRow) -> TableRow:
    """Return how layers.csv names a row; the first stage is there once per data set, without an arm."""
    dataset, exit = key[0], key[-1]
    return (dataset, "", "", 0, "", exit) if exit == FIRST_STAGE else key


def _figure_faults(path: Path) -> Iterator[str]:
    content = path.read_bytes()
    if path.suffix == ".json":
        json.loads(content)
    elif path.suffix in FIGURE_ENDS and not content.rstrip().endswith(FIGURE_ENDS[path.suffix]):
        yield f"cut short; {REMAKE}"
    for suffix in FIGURE_FORMATS:
        other = path.with_suffix(f".{suffix}")
        if not other.is_file():
            yield f"{other}: missing; run the workflow again"


def _report_faults(path: Path) -> Iterator[str]:
    if not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        yield f"cut short; {REMAKE}"
