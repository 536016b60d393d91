"""Name every path of a results folder, for the rules of the workflow and for the library.

A rule passes wildcards instead of values: `ResultsTree(Path("results")).model(WILDCARD_CELL)` is a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lwr.common.errors import BadInput
from lwr.common.exits import Arm, Cell
from lwr.common.json_lines import read_json

WILDCARD_CELL = Cell("{dataset}", "{base_model}", "{start_layer}", "{variant}", "{seed}")  # type: ignore[arg-type]
"""A cell of wildcards, for the patterns of rules."""
ANY_CELL = Cell("*", "*", "*", "*", "*")  # type: ignore[arg-type]
"""A cell of wildcards, for the patterns of `ResultsTree.existing`."""

TABLES = {
    "layers": ("csv", "md", "tex"),
    "cost": ("csv", "md"),
    "cascades": ("csv", "md"),
    "comparisons": ("csv", "md"),
    "calibration": ("csv", "md"),
}
"""Name of each table -> the formats it is written in."""
FIGURES = ("quality", "gain", "flops", "latency", "wins", "reliability", "training")
FIGURE_FORMATS = ("html", "svg", "png", "json")


@dataclass(frozen=True)
class ResultsTree:
    """The paths that a grid writes under the folder `root`. `tested` is the data set that is ranked."""

    root: Path

    # Collections, base models

    @property
    def collections(self) -> Path:
        """The folder of all collections."""
        return self.root / "collections"

    def collection(self, dataset: str) -> Path:
        """Return the folder of a collection: BEIR layout, first-stage runs, training groups."""
        return self.collections / dataset

    def corpus(self, dataset: str) -> Path:
        """Return the file of passages."""
        return self.collection(dataset) / "corpus.jsonl"

    def queries(self, dataset: str) -> Path:
        """Return the file of queries."""
        return self.collection(dataset) / "queries.jsonl"

    def qrels(self, dataset: str, split: str) -> Path:
        """Return the file of relevance judgements of a split."""
        return self.collection(dataset) / "qrels" / f"{split}.tsv"

    def embeddings(self, dataset: str) -> Path:
        """Return the folder with the embeddings of passages and queries, of a dense first stage."""
        return self.collection(dataset) / "embeddings"

    def run(self, dataset: str, split: str) -> Path:
        """Return the TREC run of the first stage for a split."""
        return self.collection(dataset) / "runs" / f"{split}.trec"

    def groups(self, dataset: str) -> Path:
        """Return the file of training groups."""
        return self.collection(dataset) / "groups.jsonl"

    def teacher_run(self, dataset: str, teacher: str) -> Path:
        """Return the TREC run with a teacher's scores of the train candidates and positives."""
        return self.collection(dataset) / "teachers" / f"{teacher}.trec"

    def teacher_shard(self, dataset: str, teacher: str, shard: str) -> Path:
        """Return the run with one shard of a teacher's scores; `shard` is its name without suffix."""
        return self.collection(dataset) / "teachers" / f"{teacher}.shards" / f"{shard}.trec"

    def base_model(self, name: str) -> Path:
        """Return the file that describes a base model."""
        return self.root / "base_models" / f"{name}.json"

    # One folder per arm, one per cell

    @property
    def cells(self) -> Path:
        """The folder of all arms and cells."""
        return self.root / "cells"

    def arm(self, arm: Arm) -> Path:
        """Return the folder of an arm."""
        return self.cells / arm.trained_on / arm.base_model / f"start{arm.start_layer}" / arm.variant

    def fusion(self, arm: Arm, tested: str) -> Path:
        """Return the file with the weights of an arm's fused scores."""
        return self.arm(arm) / "fusion" / f"{tested}.json"

    def precision(self, arm: Arm, tested: str) -> Path:
        """Return the file with what an arm's scores in int8 lose on dev; a grid that scores otherwise has none."""
        return self.arm(arm) / "precision" / f"{tested}.json"

    def cascade(self, arm: Arm, tested: str) -> Path:
        """Return the file with the cascade chosen for an arm."""
        return self.arm(arm) / "cascade" / f"{tested}.json"

    def cell(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.arm(cell) / f"seed{cell.seed}"

    def model(self, cell: Cell) -> Path:
        """Return the folder of a trained model."""
        return self.cell(cell) / "model"

    def scores(self, cell: Cell, tested: str, split: str) -> Path:
        """Return the file with the scores of all exits for a split."""
        return self.cell(cell) / "scores" / tested / f"{split}.parquet"

    def score_shard(self, cell: Cell, tested: str, split: str, shard: str) -> Path:
        """Return the file with one shard of the scores; `shard` is its name without suffix."""
        return self.cell(cell) / "scores" / tested / f"{split}.shards" / f"{shard}.parquet"

    def measures(self, cell: Cell, tested: str, split: str) -> Path:
        """Return the file with the measures per query and exit for a split."""
        return self.cell(cell) / "measures" / tested / f"{split}.parquet"

    def runs(self, cell: Cell, tested: str, split: str) -> Path:
        """Return the folder with one TREC run per exit."""
        return self.cell(cell) / "runs" / tested / split

    def calibration(self, cell: Cell, tested: str) -> Path:
        """Return the file with the calibration of a cell's scores."""
        return self.cell(cell) / "calibration" / f"{tested}.json"

    # Costs, tables, figures, report

    def cost(self, tested: str) -> Path:
        """Return the file with the costs of all arms that rank a data set."""
        return self.root / "cost" / f"{tested}.json"

    @property
    def tables(self) -> Path:
        """The folder of all tables."""
        return self.root / "tables"

    def table(self, name: str) -> list[Path]:
        """Return the files of a table of `TABLES`, one per format."""
        return [self.tables / f"{name}.{suffix}" for suffix in TABLES[name]]

    @property
    def recommendation(self) -> Path:
        """The text that recommends an arm and an exit."""
        return self.tables / "recommendation.md"

    @property
    def figures(self) -> Path:
        """The folder of all figures."""
        return self.root / "figures"

    def figure_files(self) -> list[Path]:
        """Return the files of all figures, one per figure and format."""
        return [self.figures / f"{name}.{suffix}" for name in FIGURES for suffix in FIGURE_FORMATS]

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    @property
    def logs(self) -> Path:
        """The folder of log files."""
        return self.root / "logs"

    # What exists on disk

    def existing(self, pattern: Path) -> list[Path]:
        """Return the finished files and folders that match a path of this tree with `*` in place of values."""
        found = self.root.glob(str(pattern.relative_to(self.root)))
        return sorted(path for path in found if not path.name.startswith("."))

    def arms_on_disk(self) -> list[Arm]:
        """Return the arms that have a folder."""
        arms = []
        for folder in self.existing(self.arm(ANY_CELL)):
            trained_on, base_model, start, variant = folder.parts[-4:]
            start_layer = start.removeprefix("start")
            if folder.is_dir() and start_layer.isdecimal():
                arms.append(Arm(trained_on, base_model, int(start_layer), variant))
        return arms

    def cells_on_disk(self, arm: Arm) -> list[Cell]:
        """Return the cells of an arm that have a folder."""
        folders = self.existing(self.arm(arm) / "seed*")
        return [
            Cell(**asdict(arm), seed=int(folder.name.removeprefix("seed")))
            for folder in folders
            if folder.is_dir() and re.fullmatch(r"seed-?\d+", folder.name)
        ]


def cell_of_model(model: Path) -> Cell:
    """Return the cell that a model was trained for.

    Training records it in provenance.json. If an older version trained the model, the cell is read from the path.

    Args:
        model: The folder that `lwr train` wrote.

    Raises:
        BadInput: Neither the file nor the path has a cell, or the one in the file is incomplete.
    """
    file = model / "provenance.json"
    recorded = read_json(file, {}).get("cell")
    if recorded is None:
        return _cell_of_path(model)
    try:
        return Cell(**recorded)
    except TypeError:
        raise BadInput(f"{file}: field 'cell' is {recorded!r}, not a cell; train the model again") from None


def find_cell(model: Path) -> Cell | None:
    """Return the cell that a model was trained for; None if neither its file nor its path has one."""
    try:
        return cell_of_model(model)
    except BadInput:
        return None


def _cell_of_path(model: Path) -> Cell:
    pattern = r"/cells/([^/]+)/([^/]+)/start(\d+)/([^/]+)/seed(-?\d+)/model"
    match = re.search(f"{pattern}$", model.absolute().as_posix())
    if match is None:
        raise BadInput(
            f"{model}/provenance.json: field 'cell' is missing; give a model that the workflow trained"
        )
    trained_on, base_model, start_layer, variant, seed = match.groups()
    return Cell(trained_on, base_model, int(start_layer), variant, int(seed))


def find_results(model: Path, cell: Cell) -> ResultsTree | None:
    """Return the results folder that has a model at the path of its cell; None if the model is elsewhere."""
    model = model.resolve()
    for root in model.parents:
        tree = ResultsTree(root)
        if tree.model(cell) == model:
            return tree
    return None


def find_fusion_of_grid(model: Path, results: Path | None = None) -> Path | None:
    """Return the weights that a grid fitted for a model; None if there are none, or no grid.

    They are those for the data set that the model was trained on. A model that does not rank it gets those for the data
    set that it ranks, if this is only one.

    Args:
        model: Folder of a trained reranker.
        results: Folder of the grid's results; None: the one that the model lies in.
    """
    return _find_of_grid(model, results, ResultsTree.fusion)


def find_calibration_of_grid(model: Path, results: Path | None = None) -> Path | None:
    """Return the calibration that a grid fitted for a model, as `find_fusion_of_grid` does for weights."""
    return _find_of_grid(model, results, ResultsTree.calibration)


def _find_of_grid(
    model: Path, results: Path | None, path: Callable[[ResultsTree, Cell, str], Path]
) -> Path | None:
    """Return the file of a model that a grid wrote for a data set. path: from tree, cell and data set."""
    cell = find_cell(model)
    if cell is None:
        return None
    tree = find_results(model, cell) if results is None else ResultsTree(results)
    if tree is None:
        return None
    file = path(tree, cell, cell.trained_on)
    if file.is_file():
        return file
    others = tree.existing(path(tree, cell, "*"))
    return others[0] if len(others) == 1 else None
