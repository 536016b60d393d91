"""The tables of a grid by data set, and what they say of an arm: its deepest exit and the cascade to deploy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lwr.common.errors import BadInput
from lwr.common.exits import ARM_COLUMNS, CASCADE, CASCADE_FOR_FUSED, is_fused, is_layer
from lwr.evaluation.arm_files import CHOSEN_COLUMNS
from lwr.reporting.fused import (
    CascadeChoice,
    chosen_elsewhere,
    complete_cascades,
    complete_layers,
    is_deepest_alone,
    is_deepest_fused,
)

READ = ("layers", "cost", "cascades", "comparisons")
"""Names of the tables that are read."""
SCHEDULE_TYPES = {"schedule": str, "deepest": str}
"""Types of columns that pandas would read as numbers where all schedules are single exits."""


@dataclass(frozen=True)
class Evidence:
    """The tables of a grid for one data set, the measure that decides, and the margin of non-inferiority in it."""

    layers: pd.DataFrame
    cost: pd.DataFrame
    cascades: pd.DataFrame
    comparisons: pd.DataFrame
    primary: str
    margin: float
    chosen_on: str | None = None  # the data set whose dev is read, where this one has no dev queries


def read_evidence(tables: Path) -> dict[str, Evidence]:
    """Read the tables in a folder, by data set.

    A data set without dev queries gets the dev results of the data set that its choices were made on, of the same arms.

    Raises:
        BadInput: A table is missing.
    """
    for name in READ:
        if not (tables / f"{name}.csv").is_file():
            raise BadInput(
                f"{tables}/{name}.csv: no such file; run the workflow, or give its results with --results"
            )
    layers, cost, cascades, comparisons = (
        pd.read_csv(tables / f"{name}.csv", dtype=SCHEDULE_TYPES) for name in READ
    )
    layers, cascades = complete_layers(layers), complete_cascades(cascades)
    primary, margin = comparisons["measure"].iloc[0], float(comparisons["margin"].iloc[0])
    chosen_on = chosen_elsewhere(cascades)
    evidence = {}
    for dataset, of_dataset in layers.groupby("dataset", sort=False):
        compared, other = comparisons[comparisons["dataset"] == dataset], chosen_on.get(str(dataset))
        if other is not None:
            of_dataset = _with_dev_of(layers[layers["dataset"] == other], of_dataset, f"dev {primary}")
            on_dev = comparisons[(comparisons["dataset"] == other) & (comparisons["split"] == "dev")]
            compared = pd.concat([on_dev.assign(dataset=dataset), compared], ignore_index=True)
        evidence[dataset] = Evidence(
            of_dataset,
            cost[cost["dataset"] == dataset],
            cascades[cascades["dataset"] == dataset],
            compared,
            primary,
            margin,
            other,
        )
    return evidence


def _with_dev_of(other: pd.DataFrame, layers: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return rows of the table of layers with a column of the same arm and exit in the rows of another data set."""
    key = [*ARM_COLUMNS[1:], "exit"]
    joined = layers.drop(columns=column).merge(other[[*key, column]], how="left", on=key)
    return joined.set_axis(layers.index)


def rows_of_arm(table: pd.DataFrame, arm: pd.Series) -> pd.DataFrame:
    """Return the rows of an arm, which is given as its values by ARM_COLUMNS."""
    return table[(table[ARM_COLUMNS] == arm).all(axis=1)]


def best_arm(evidence: Evidence) -> pd.Series:
    """Return the arm whose deepest exit, alone or fused, is the best on dev: its values by ARM_COLUMNS."""
    exits = evidence.layers[evidence.layers["exit"].map(lambda name: is_layer(name) or is_fused(name))]
    deepest = exits[exits["layer"] == exits.groupby(ARM_COLUMNS)["layer"].transform("max")]
    return deepest.loc[deepest[f"dev {evidence.primary}"].idxmax(), ARM_COLUMNS]


def deepest_exit(evidence: Evidence, arm: pd.Series) -> pd.Series:
    """Return the row of an arm's deepest exit, not fused, in the table of layers."""
    quality = rows_of_arm(evidence.layers, arm)
    return quality[quality["exit"].map(is_layer)].iloc[-1]


def cascade_choices(evidence: Evidence, arm: pd.Series) -> list[CascadeChoice]:
    """Return the schedules that dev chose for an arm, the one to deploy first.

    The one to deploy keeps the quality of the deepest exit alone. The one that keeps the quality of the deepest fused
    exit comes first if, on dev, the other ranks worse than that exit by more than the margin of non-inferiority, or
    takes no fewer FLOPs and ranks no better. There is one choice if both are the same schedule, or if the grid has no
    second one.
    """
    schedules = rows_of_arm(evidence.cascades, arm)
    is_reference = {CASCADE: is_deepest_alone, CASCADE_FOR_FUSED: is_deepest_fused}
    chosen = [
        CascadeChoice(
            exit, schedules[schedules[column]].iloc[0], schedules[is_reference[exit](schedules)].iloc[0]
        )
        for exit, column in CHOSEN_COLUMNS.items()
        if schedules[column].any()
    ]
    if len(chosen) == 1 or chosen[0].row.name == chosen[1].row.name:
        return chosen[:1]
    alone, fused = (choice.row for choice in chosen)
    is_worse = alone["dev"] < chosen[1].reference["dev"] - evidence.margin
    is_beaten = alone["dev flops"] >= fused["dev flops"] and alone["dev"] <= fused["dev"]
    return chosen[::-1] if is_worse or is_beaten else chosen
