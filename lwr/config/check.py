"""The step `check`: describe a grid, or report all that is wrong with its config."""

from __future__ import annotations

from pathlib import Path

from lwr.config.consistency import last_layer
from lwr.config.grid import GridConfig
from lwr.config.load import read


def check(file: Path) -> str:
    """Read the config of a grid and describe the grid. Raises BadInput with one line per problem."""
    return describe(read(file))


def describe(config: GridConfig) -> str:
    """Return a few lines that say what a grid trains, ranks and measures."""
    cells = config.cells()
    rows = []
    for dataset in dict.fromkeys(cell.trained_on for cell in cells):
        rows.append(("data set", f"{dataset}; ranked: {', '.join(config.tests_of(dataset))}"))
    for name, base in config.base_models.items():
        starts = ", ".join(map(str, config.start_layers_of(name)))
        last = last_layer(base)
        depth = "not downloaded yet" if last is None else f"last layer: {last}"
        rows.append(("base model", f"{name}; start layers: {starts}; {depth}"))
    rows += [("variant", name) for name in config.variants]
    rows += [("teacher", f"{name}; of kind {teacher.kind}") for name, teacher in config.teachers.items()]
    rows += [("seeds", ", ".join(map(str, config.seeds))), ("measures", ", ".join(config.measures))]
    total = f"{len(cells)} cells, a training each, written to {config.results}/"
    return "\n".join([total, *(f"  {label:<12}{text}" for label, text in rows)])
