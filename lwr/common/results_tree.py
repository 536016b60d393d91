"""Every path of a results folder, for the rules of the workflow and for the library alike.

A rule passes wildcards instead of values: `ResultsTree("results").model(Cell("{dataset}", …))` is a pattern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lwr.common.errors import BadInput
from lwr.common.exits import Arm, Cell
from lwr.common.json_lines import read_json

WILDCARD_CELL = Cell("{dataset}", "{base_model}", "{start_layer}", "{variant}", "{seed}")  # type: ignore[arg-type]
"""The cell in the patterns of the rules."""

TABLES = {
    "layers": ("csv", "md", "tex"),
    "cost": ("csv", "md"),
    "cascades": ("csv", "md"),
    "comparisons": ("csv", "md"),
}
"""Name of each table -> the formats that it is written in."""
FIGURES = ("quality", "gain", "flops", "latency", "wins", "training")
FIGURE_FORMATS = ("html", "svg", "png", "json")


@dataclass(frozen=True)
class ResultsTree:
    """The paths under the folder `root` that a grid writes. `tested` is the data set that is ranked."""

    root: Path

    # Collections, base models

    def collection(self, dataset: str) -> Path:
        """A folder in BEIR layout with first-stage runs and training groups."""
        return self.root / "collections" / dataset

    def corpus(self, dataset: str) -> Path:
        return self.collection(dataset) / "corpus.jsonl"

    def queries(self, dataset: str) -> Path:
        return self.collection(dataset) / "queries.jsonl"

    def qrels(self, dataset: str, split: str) -> Path:
        return self.collection(dataset) / "qrels" / f"{split}.tsv"

    def run(self, dataset: str, split: str) -> Path:
        """The first stage's candidates."""
        return self.collection(dataset) / "runs" / f"{split}.trec"

    def groups(self, dataset: str) -> Path:
        return self.collection(dataset) / "groups.jsonl"

    def base_model(self, name: str) -> Path:
        return self.root / "base_models" / f"{name}.json"

    # One folder per arm, one per cell

    def arm(self, arm: Arm) -> Path:
        return self.root / "cells" / arm.trained_on / arm.base_model / f"start{arm.start_layer}" / arm.variant

    def cascade(self, arm: Arm, tested: str) -> Path:
        return self.arm(arm) / "cascade" / f"{tested}.json"

    def cost(self, arm: Arm, tested: str) -> Path:
        return self.arm(arm) / "cost" / f"{tested}.json"

    def cell(self, cell: Cell) -> Path:
        return self.arm(cell) / f"seed{cell.seed}"

    def model(self, cell: Cell) -> Path:
        return self.cell(cell) / "model"

    def scores(self, cell: Cell, tested: str, split: str) -> Path:
        return self.cell(cell) / "scores" / tested / f"{split}.parquet"

    def score_shard(self, cell: Cell, tested: str, split: str, shard: str) -> Path:
        return self.cell(cell) / "scores" / tested / f"{split}.shards" / f"{shard}.parquet"

    def measures(self, cell: Cell, tested: str, split: str) -> Path:
        return self.cell(cell) / "measures" / tested / f"{split}.parquet"

    def runs(self, cell: Cell, tested: str, split: str) -> Path:
        """A folder with a TREC run per exit."""
        return self.cell(cell) / "runs" / tested / split

    # What people read

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    def table(self, name: str) -> list[Path]:
        """The files of a table of `TABLES`, one per format."""
        return [self.tables / f"{name}.{suffix}" for suffix in TABLES[name]]

    @property
    def recommendation(self) -> Path:
        return self.tables / "recommendation.md"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    def figure_files(self) -> list[Path]:
        return [self.figures / f"{name}.{suffix}" for name in FIGURES for suffix in FIGURE_FORMATS]

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def logs(self) -> Path:
        return self.root / "logs"


def cell_of_model(model: Path) -> Cell:
    """Return the cell that a model was trained for.

    Training records it in provenance.json. For a model that was trained before it did, the cell is read from the path.

    Args:
        model: the folder that `lwr train` wrote.

    Raises:
        BadInput: neither the file nor the path has a cell, or the one in the file is incomplete.
    """
    file = model / "provenance.json"
    recorded = read_json(file, {}).get("cell")
    if recorded is None:
        return _cell_of_path(model)
    try:
        return Cell(**recorded)
    except TypeError:
        raise BadInput(f"{file}: field 'cell' is {recorded!r}, not a cell; train the model again") from None


def _cell_of_path(model: Path) -> Cell:
    pattern = r"/cells/([^/]+)/([^/]+)/start(\d+)/([^/]+)/seed(-?\d+)/model"
    match = re.search(f"{pattern}$", model.absolute().as_posix())
    if match is None:
        raise BadInput(
            f"{model}/provenance.json: field 'cell' is missing; give a model that the workflow trained"
        )
    trained_on, base_model, start_layer, variant, seed = match.groups()
    return Cell(trained_on, base_model, int(start_layer), variant, int(seed))
